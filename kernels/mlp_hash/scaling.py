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
# Constant of units that only fill up a tile, or are zero: far below zero, hence off and never close to a threshold.
PADDING = -(2.0**15)


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
    """Scale a network by what its values are at a sample of points; None if it cannot be held in float16 pairs.

    Pairs of float16 keep 22 bits of a number, but nothing below 2^-25. ``first``, ``gain`` and ``offset`` make room for
    that: 2^-25 in each value, and what the weights lose.
    """
    before, after = preactivations(mlp, xy, which)
    if not all(bool(values.isfinite().all()) for values in (*before, *after)):
        return None
    units = [torch.full_like(before[0][0], _power_of_two(_largest(before[0], after[0])))]
    head = mlp.head * units[0]
    largest = float(head.abs().max())
    first = 2**0.5 * head[:, :2].norm(dim=1) + head[:, 2].abs() + 1.5
    head[:, 2] = _off_where_zero(head[:, 2], (head == 0).all(dim=1), mlp.bends[0])
    weights, biases, gain, offset = [], [], [0.0], [0.0]
    for layer in range(1, mlp.layers):
        matrix, bias = mlp.weights[layer - 1] / units[-1], mlp.biases[layer - 1]
        typical = float((after[layer - 1] * units[-1]).norm(dim=1).median())
        size = torch.maximum(matrix.norm(dim=1) * typical + bias.abs(), after[layer].abs().amax(dim=0))
        even = torch.where(size > 0, torch.exp2(-torch.round(torch.log2(size.clamp(min=1e-300)))), 1.0)
        units.append(even * _power_of_two(_largest(before[layer] * even, after[layer] * even)))
        weight, constant = matrix * units[-1][:, None], bias * units[-1]
        largest = max(largest, float(weight.abs().max()))
        lost = weight - sum(part.double() for part in split(weight))
        gain.append(max(float(weight.norm(dim=1).max()), 2.0**22 * float(lost.norm(dim=1).max())))
        offset.append(float(constant.abs().max()) + 0.5 * gain[-1] * weight.shape[1] ** 0.5)
        weights.append(weight)
        biases.append(_off_where_zero(constant, (weight == 0).all(dim=1) & (constant == 0), mlp.bends[layer]))
    if not largest < _LARGEST_WEIGHT:
        return None
    bends = tuple(_scale_bend(bend, unit) for bend, unit in zip(mlp.bends, units))
    scaled = Mlp(head, tuple(weights), tuple(biases), bends, mlp.keys, mlp.start)
    return Scaled(scaled, tuple(units), first, tuple(gain), tuple(offset))


def _off_where_zero(constant: Tensor, zero: Tensor, bend: Bend | None) -> Tensor:
    """A ReLU unit without weights and bias is at its threshold everywhere, and off: far below it no point is close."""
    return torch.where(zero, PADDING, constant) if bend is None else constant


def _largest(*tensors: Tensor) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors)


def _power_of_two(largest: float) -> float:
    """What brings the largest value of a layer to about `_LARGEST_VALUE`."""
    return float(2.0 ** np.round(np.log2(_LARGEST_VALUE / largest))) if largest > 0 else 1.0


def _scale_bend(bend: Bend | None, unit: Tensor) -> Bend | None:
    if bend is None:
        return None
    numbers = unit.cpu().numpy()
    return Bend(bend.thresholds * numbers, bend.slopes, bend.intercepts * numbers)


def split(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Two float16 tensors whose sum is ``numbers`` to 22 bits, or to 2^-25 where that is less."""
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
    padded[:, units:, 12] = PADDING
    return padded.contiguous()


def padded_bias(bias: Tensor, size: int) -> Tensor:
    """float32 [size]."""
    return pad(bias, (0, size - bias.shape[0]), value=PADDING).float()


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
