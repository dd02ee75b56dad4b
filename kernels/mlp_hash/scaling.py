"""Networks in pairs of float16 numbers: scaled to the range of float16, split, padded, and laid out in tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from regiongrid.kernels.mlp_hash import Array, Bend, Mlp
from regiongrid.kernels.mlp_hash.reference import preactivations

HEAD_ROWS = 16
# Largest value of a layer on the sample, after scaling: far from the largest float16 (65504) and from the smallest.
_LARGEST_VALUE = 2.0**8
_LARGEST_WEIGHT = 2.0**15
# Constant of the units that only fill up a tile: far below zero, hence off and never close to a threshold.
_PADDING = -(2.0**15)


@dataclass(frozen=True)
class Scaled:
    """A network with every unit multiplied by a power of two, which changes no decision.

    Behind layer l > 0 the errors of all units are measured with one number a point, gain[l] |h| + offset[l], h being
    the values of layer l - 1: units are scaled to about the same size, so that this number serves all of them.
    """

    mlp: Mlp
    units: tuple[Tensor, ...]  # [n_l] float64: the powers of two
    first: Tensor  # [S, n_0]: size of what is added up into a unit of layer 0, largest over the slice
    gain: tuple[float, ...]  # by layer; that of layer 0 is not used
    offset: tuple[float, ...]


def scale(mlp: Mlp, xy: Tensor, which: Tensor) -> Scaled | None:
    """Scale a network by what its values are at a sample of points; None if it cannot be held in float16 pairs."""
    before, after = preactivations(mlp, xy, which)
    if not all(bool(values.isfinite().all()) for values in (*before, *after)):
        return None
    units = [torch.full_like(before[0][0], _power_of_two(_LARGEST_VALUE / _largest(before[0], after[0])))]
    head = mlp.head * units[0]
    first = 2**0.5 * head[:, :2].norm(dim=1) + head[:, 2].abs()
    weights, biases, gain, offset = [], [], [0.0], [0.0]
    for layer in range(1, mlp.layers):
        matrix, bias = mlp.weights[layer - 1] / units[-1], mlp.biases[layer - 1]
        typical = float((after[layer - 1] * units[-1]).norm(dim=1).median())
        size = matrix.norm(dim=1) * typical + bias.abs()
        even = torch.where(size > 0, torch.exp2(-torch.round(torch.log2(size.clamp(min=1e-300)))), 1.0)
        common = _power_of_two(_LARGEST_VALUE / _largest(before[layer] * even, after[layer] * even))
        units.append(even * common)
        weights.append(matrix * units[-1][:, None])
        biases.append(bias * units[-1])
        gain.append(float(weights[-1].norm(dim=1).max()))
        offset.append(float(biases[-1].abs().max()))
    largest = max(float(tensor.abs().max()) for tensor in (head, *weights))
    if not largest < _LARGEST_WEIGHT:
        return None
    bends = tuple(_scale_bend(bend, unit) for bend, unit in zip(mlp.bends, units))
    scaled = Mlp(head, tuple(weights), tuple(biases), bends, mlp.keys, mlp.start)
    return Scaled(scaled, tuple(units), first, tuple(gain), tuple(offset))


def _largest(*tensors: Tensor) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors)


def _power_of_two(ratio: float) -> float:
    return float(2.0 ** np.round(np.log2(ratio))) if np.isfinite(ratio) and ratio > 0 else 1.0


def _scale_bend(bend: Bend | None, unit: Tensor) -> Bend | None:
    if bend is None:
        return None
    numbers = unit.cpu().numpy()
    return Bend(bend.thresholds * numbers, bend.slopes, bend.intercepts * numbers)


def split(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Two float16 tensors whose sum is ``numbers`` to 22 bits."""
    large = numbers.to(torch.float16)
    return large, (numbers - large.to(numbers.dtype)).to(torch.float16)


def head_rows(head: Tensor, size: int) -> Tensor:
    """The 16 factors of (x, y, 1) split into three parts each, float16 [S, size, 16]; see `gpu._coordinates`."""

    def parts(numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        large, middle = split(numbers)
        return large, middle, (numbers - large.to(numbers.dtype) - middle.to(numbers.dtype)).to(torch.float16)

    x1, x2, x3 = parts(head[:, 0])
    y1, y2, y3 = parts(head[:, 1])
    c1, c2, c3 = parts(head[:, 2])
    rows = [x1, x2, x3, x1, x2, x1, y1, y2, y3, y1, y2, y1, c1, c2, c3, torch.zeros_like(c1)]
    units = head.shape[2]
    padded = pad(torch.stack(rows, dim=2), (0, 0, 0, size - units))
    padded[:, units:, 12] = _PADDING
    return padded.contiguous()


def padded_bias(bias: Tensor, size: int) -> Tensor:
    """float32 [size]."""
    return pad(bias, (0, size - bias.shape[0]), value=_PADDING).float()


def weight_pair(weight: Tensor, rows: int, columns: int) -> Tensor:
    """The large and the small halves of a matrix, zero-padded, float16 [2, rows, columns]."""
    return torch.stack(split(pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))))


def key_bits(keys: Array, thresholds: int, size: int, device: torch.device) -> Tensor:
    """Bit k of the key of every decision, float16 [thresholds, 64, size]; zero where there is no decision."""
    bits = (keys[:, None, :] >> np.arange(64, dtype=np.uint64)[None, :, None]) & np.uint64(1)
    tensor = torch.from_numpy(bits.astype(np.float16)).to(device)
    return pad(tensor, (0, size - tensor.shape[2], 0, 0, 0, thresholds - tensor.shape[0])).contiguous()


def bend_rows(bend: Bend | None, thresholds: int, size: int, device: torch.device) -> Tensor:
    """Thresholds, slopes and intercepts for the kernels, float32 [3 thresholds + 2, size].

    Missing thresholds are infinite: no point is ever close to them. ReLU among other breakpoints is written as what it
    is: threshold 0, slopes 0 and 1.
    """
    if thresholds == 0:
        return torch.zeros(0, size, device=device)
    rows = np.zeros((3 * thresholds + 2, size), np.float32)
    if bend is None:
        rows[1:thresholds] = np.inf
        rows[thresholds + 1 : 2 * thresholds + 1] = 1.0
    else:
        rows[:thresholds] = np.inf
        known, units = bend.thresholds.shape
        rows[:known, :units] = bend.thresholds
        rows[thresholds : thresholds + known + 1, :units] = bend.slopes
        rows[2 * thresholds + 1 : 2 * thresholds + known + 2, :units] = bend.intercepts
    return torch.from_numpy(rows).to(device)
