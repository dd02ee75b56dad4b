"""Pattern hashes of whole fully connected networks, coordinates in, hash out.

Beside `regiongrid.kernels.pattern_hash`, which applies one breakpoint to pre-activations that something else has
computed, this operation runs all layers of a network that is a plain chain of affine maps and elementwise breakpoints.
``reference.py`` is the definition in float64, ``scaling.py`` prepares a network for float16 pairs, ``gpu.py`` has the
kernels and launches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]

MAX_THRESHOLDS = 2


@dataclass(frozen=True)
class Bend:
    """An elementwise breakpoint other than ReLU; see `regiongrid.network.program.Piecewise`."""

    thresholds: Array  # [T, n] float64, rows ascending
    slopes: Array  # [T + 1, n]
    intercepts: Array  # [T + 1, n]


@dataclass(frozen=True)
class Mlp:
    """A chain of affine maps and breakpoints on S slices, in float64 on one device.

    Layer 0 is affine in the slice coordinates (x, y), which are (u, v) over the half-width: both in [-1, 1].
    """

    head: Tensor  # [S, 3, n_0]: the change along x, along y, and the constant
    weights: tuple[Tensor, ...]  # [n_l, n_l-1] for layer l = 1, 2, ...
    biases: tuple[Tensor, ...]  # [n_l] for layer l = 1, 2, ...
    bends: tuple[Bend | None, ...]  # for layer l = 0, 1, ...; None is ReLU
    keys: tuple[Array, ...]  # uint64 [T, n_l], T = 1 for ReLU
    start: int  # hash with every decision off, as a signed 64-bit number

    @property
    def slices(self) -> int:
        return int(self.head.shape[0])

    @property
    def layers(self) -> int:
        return len(self.bends)

    @property
    def widths(self) -> tuple[int, ...]:
        return (int(self.head.shape[2]), *(int(weight.shape[0]) for weight in self.weights))
