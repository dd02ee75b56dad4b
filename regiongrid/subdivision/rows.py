"""A value of the network at the vertices of a block, and the bound on its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
UNIT = 2.0**-53


@dataclass(frozen=True)
class Bound:
    """The error of unit j at vertex v is at most gain[j] * scale[v] + offset[j]."""

    gain: Array  # [n]
    offset: Array  # [n]
    scale: Array  # [V]
    rounding: Array  # [V] in place of scale: the error that rounding in the last step is likely to make


@dataclass
class Rows:
    """A value at the vertices of a block."""

    data: Array  # [V, n]
    error: Array  # [V] bound on the Euclidean norm of the error of a row
    bound: Bound | None = None  # sharper, unit by unit, where the value was just computed
    norms: Array | None = None  # [V] of the rows, where known
    fixed: NDArray[np.bool_] | None = None  # [V, n] entries that are exact, because all that comes into them is zero

    def bounds(self) -> Bound:
        width = self.data.shape[1]
        return self.bound or Bound(np.ones(width), np.zeros(width), self.error, 4 * UNIT * self.sizes())

    def exact_entries(self) -> NDArray[np.bool_] | None:
        """Entries known to be exact, [V, n]: behind an activation those that are zero."""
        return self.fixed if self.fixed is not None or self.bound is not None else self.data == 0

    def take(self, vertices: NDArray[Any]) -> Rows:
        return Rows(self.data[vertices], self.error[vertices])

    def sizes(self) -> Array:
        return np.sqrt(np.einsum("ij,ij->i", self.data, self.data)) if self.norms is None else self.norms
