"""Fully connected networks as a plain chain of layers, for the kernels that run all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regiongrid.kernels.mlp_hash import MAX_THRESHOLDS, Array, Bend, Mlp
from regiongrid.kernels.pattern_hash import START, decision_keys
from regiongrid.network.on_slice import SliceProgram
from regiongrid.network.program import Breakpoint, Piecewise


def chain(slices: Sequence[SliceProgram], seed: int, device: torch.device) -> Mlp | None:
    """The program on these slices as a chain of matrices and elementwise breakpoints, None if it is none.

    A chain has one value between layers: no shortcut, no window breakpoint, no convolution that stayed an operator.
    """
    folded = slices[0]
    bends, keys = [], []
    for stage in folded.stages:
        breakpoint = stage.breakpoint
        if len(stage.preactivations) != 1 or not _fits(breakpoint):
            return None
        bends.append(_bend(breakpoint))
        numbers = decision_keys(stage.first_decision, breakpoint.decisions, seed)
        keys.append(numbers.reshape(-1, breakpoint.units))
    first = folded.stages[0].preactivations[0]
    layers = [_layer(slices, k) for k in range(1, len(folded.stages))]
    if first not in folded.uv_values or any(layer is None for layer in layers):
        return None
    weights, biases = zip(*(layer for layer in layers if layer is not None)) if layers else ((), ())
    return Mlp(
        head=torch.stack([_head(on_slice, first) for on_slice in slices]).to(device),
        weights=tuple(weight.to(device) for weight in weights),
        biases=tuple(bias.to(device) for bias in biases),
        bends=tuple(bends),
        keys=tuple(keys),
        start=int(START.astype(np.int64)),
    )


def _fits(breakpoint: Breakpoint) -> bool:
    return isinstance(breakpoint, Piecewise) and breakpoint.thresholds.shape[0] <= MAX_THRESHOLDS


def _bend(breakpoint: Breakpoint) -> Bend | None:
    assert isinstance(breakpoint, Piecewise)
    if breakpoint.is_relu:
        return None
    numbers: tuple[Array, ...] = (breakpoint.thresholds, breakpoint.slopes, breakpoint.intercepts)
    return Bend(*(np.asarray(array, np.float64) for array in numbers))


def _head(folded: SliceProgram, name: str) -> Tensor:
    """Change along x and y, which are (u, v) over the half-width, and constant: [3, n]."""
    affine = folded.uv_values[name]
    return torch.stack([*(affine.tangents * folded.slice.half_width).unbind(1), affine.constant])


def _layer(slices: Sequence[SliceProgram], k: int) -> tuple[Tensor, Tensor] | None:
    """Matrix and constant of layer k if it hangs on the value of layer k - 1 alone and is the same on every slice."""
    folded = slices[0]
    segment = folded.segments[k - 1]
    (name,) = folded.stages[k].preactivations
    if segment.inputs != (folded.stages[k - 1].value,) or segment.outputs != (name,) or not segment.matrices:
        return None
    constant = segment.from_uv[name].constant
    for on_slice in slices:
        affine = on_slice.segments[k - 1].from_uv[name]
        if bool(affine.tangents.any()) or not torch.equal(affine.constant, constant):
            return None
    return segment.matrices[name, segment.inputs[0]], constant
