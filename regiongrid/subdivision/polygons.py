"""The exact partition of a slice: shared points, polygons over them, and the sides between polygons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Sides:
    """The sides of all polygons, each once; m sides.

    A side runs from point ``first`` to point ``second``; region ``left`` lies on its left, ``right`` on its right.
    """

    first: NDArray[np.int32]  # [m] rows of the points
    second: NDArray[np.int32]  # [m]
    left: NDArray[np.int32]  # [m] rows of the region table, -1 outside the domain
    right: NDArray[np.int32]  # [m]
    stage: NDArray[np.int32]  # [m] breakpoint whose decision changes here, counted from 0; -1 on the domain's border
    unit: NDArray[np.int32]  # [m] unit of that breakpoint (window of a maximum); -1 on the domain's border
    threshold: NDArray[np.int32]  # [m] which of the unit's thresholds; 0 for a maximum, -1 on the domain's border

    def __len__(self) -> int:
        return int(self.first.size)


@dataclass(frozen=True, eq=False)
class Polygons:
    """A partition of the domain into R convex polygons. Neighbours share points and sides: nothing gapes or overlaps.

    The corners of polygon k are ``corners[starts[k] : starts[k + 1]]``, counterclockwise; the side from corner i to the
    next one of its polygon is ``corner_sides[i]``.
    """

    points: NDArray[np.float64]  # [V, 2] slice coordinates (u, v)
    starts: NDArray[np.int64]  # [R + 1]
    corners: NDArray[np.int32]  # [starts[R]] rows of the points
    corner_sides: NDArray[np.int32]  # [starts[R]] rows of the sides
    corner_lines: NDArray[np.int32]  # [starts[R]] within a polygon, sides of equal number lie on one straight line
    sides: Sides

    def __len__(self) -> int:
        return int(self.starts.size) - 1

    @cached_property
    def side_lengths(self) -> NDArray[np.float64]:
        """Length of every side, input units, [m]."""
        ends = self.points[self.sides.second] - self.points[self.sides.first]
        lengths: NDArray[np.float64] = np.hypot(ends[:, 0], ends[:, 1])
        return lengths

    def outline(self, region: int) -> NDArray[np.float64]:
        """Corners of one polygon, counterclockwise, [n, 2]."""
        corners: NDArray[np.float64] = self.points[self.corners[self.starts[region] : self.starts[region + 1]]]
        return corners
