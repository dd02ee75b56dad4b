"""Whole networks in plain torch, float64: the oracle of the tests, and what the kernels are calibrated against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from regiongrid.kernels.mlp_hash import Mlp


def preactivations(
    mlp: Mlp,
    xy: Tensor,  # [B, 2] float64, in [-1, 1]
    which: Tensor,  # [B] int64, the slice of each point
) -> tuple[list[Tensor], list[Tensor]]:
    """Pre-activations and values of every layer, [B, n_l] float64 each."""
    z = xy[:, :1] * mlp.head[which, 0] + xy[:, 1:] * mlp.head[which, 1] + mlp.head[which, 2]
    before: list[Tensor] = []
    after: list[Tensor] = []
    for layer in range(mlp.layers):
        if layer:
            z = after[-1] @ mlp.weights[layer - 1].T + mlp.biases[layer - 1]
        before.append(z)
        after.append(_bend(mlp, layer, z)[0])
    return before, after


def hash_points(mlp: Mlp, xy: Tensor, which: Tensor) -> Tensor:
    """Hashes of the decisions of the first 1, 2, ... layers, int64 [layers, B]."""
    pattern = np.full(len(xy), mlp.start, np.int64)
    prefixes = []
    for layer, z in enumerate(preactivations(mlp, xy, which)[0]):
        keys = mlp.keys[layer].view(np.int64)
        for t, below in enumerate(_bend(mlp, layer, z)[1]):
            pattern = pattern ^ np.bitwise_xor.reduce(np.where(below.cpu().numpy(), keys[t], 0), axis=1)
        prefixes.append(pattern)
    return torch.from_numpy(np.stack(prefixes)).to(xy.device)


def _bend(mlp: Mlp, layer: int, z: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Values behind the breakpoint, and for each threshold which units are above it."""
    bend = mlp.bends[layer]
    if bend is None:
        return z.clamp(min=0), [z > 0]
    thresholds, slopes, intercepts = (
        torch.from_numpy(array).to(z) for array in (bend.thresholds, bend.slopes, bend.intercepts)
    )
    above = [z > threshold for threshold in thresholds]
    piece = torch.stack(above).sum(0)
    unit = torch.arange(z.shape[1], device=z.device)
    return slopes[piece, unit] * z + intercepts[piece, unit], above
