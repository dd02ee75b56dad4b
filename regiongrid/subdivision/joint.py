"""Several slices subdivided in one mesh: one walk through the layers, with matrix products over all of them.

A slice of a few hundred polygons spends most of its time on the way from one array operation to the next. The squares
of several slices make one mesh of as many parts that share nothing, so that all of them go that way together. Exact
arithmetic, too, works as for a single slice: what a polygon comes from tells its slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.network.on_slice import SliceProgram
from regiongrid.subdivision import as_polygons
from regiongrid.subdivision.mesh import BORDER_LINES, Mesh, square
from regiongrid.subdivision.parts import Part
from regiongrid.subdivision.polygons import Polygons
from regiongrid.subdivision.rational import Forms, Rationals, border_forms, uv_forms
from regiongrid.subdivision.rows import UNIT, Bound, Rows
from regiongrid.subdivision.subdivide import Subdivision
from regiongrid.subdivision.values import VertexValues

_SALT_SEED = 0x5A17


def joinable(folded: Sequence[SliceProgram]) -> bool:
    """Whether slices can share a mesh: (u, v) enter in front of the first breakpoint and nowhere else."""
    first = folded[0]
    behind = {name for stage in first.stages[1:] for name in stage.preactivations}
    behind |= {name for segment in first.program.segments[1:] for name in segment.inputs}
    shared = all(mine is theirs for other in folded for mine, theirs in zip(first.segments, other.segments))
    return shared and not behind & set(first.uv_values)


@dataclass(frozen=True, eq=False)
class Joint:
    """The exact partition of several slices."""

    polygons: Polygons
    slice_of: NDArray[np.int64]  # [R] number of the slice that a polygon lies in
    stages: int

    @cached_property
    def side_slices(self) -> NDArray[np.int64]:
        """Number of the slice that a side lies in, [m]."""
        sides = self.polygons.sides
        slices: NDArray[np.int64] = self.slice_of[np.maximum(sides.left, sides.right)]
        return slices

    def regions_up_to(self, stage: int, slices: int) -> NDArray[np.int64]:
        """Regions of each slice when only the stages up to this one (counted from 0) count, [slices].

        Regions of a first part of the network are convex, so what is connected without its sides is one of them.
        """
        sides = self.polygons.sides
        later = (sides.stage > stage) & (sides.left >= 0) & (sides.right >= 0)
        label = _connected(sides.left[later], sides.right[later], len(self.polygons))
        first = np.unique(label, return_index=True)[1]
        return np.bincount(self.slice_of[first], minlength=slices)


def subdivide_jointly(
    folded: Sequence[SliceProgram],
    *,
    values: VertexValues | None = None,
    threads: int = 1,
    seed: int = 0,
    max_bytes: int | None = None,
) -> Joint:
    """Subdivide slices that are `joinable`; every sign is decided exactly, as by `regiongrid.subdivision.exact`.

    Parameters
    ----------
    values
        ``VertexValues`` of any slice of the same program, to share what is the same for all of them.
    threads, seed, max_bytes
        As for `regiongrid.subdivision.subdivide.Subdivision`.

    Raises
    ------
    MemoryLimitError
        The polygons take more than ``max_bytes``.
    UnsupportedOperatorError
        A breakpoint jumps at its threshold.
    """
    shared = VertexValues(folded[0]) if values is None else values
    subdivision = _JointSubdivision(folded, shared, threads=threads, seed=seed, max_bytes=max_bytes)
    part, _ = subdivision.run()
    polygons = as_polygons(part, folded[0])
    return Joint(polygons, _slice_of_polygons(part, len(folded)), len(folded[0].stages))


class _JointSubdivision(Subdivision):
    def __init__(self, folded: Sequence[SliceProgram], values: VertexValues, **options: Any) -> None:
        joint = _JointValues(folded, values)
        super().__init__(folded[0], values=joint, rationals=_JointRationals(folded), **options)
        self._slices = [part.slice for part in folded]

    def _start(self) -> Mesh:
        """The squares of all slices side by side: polygon, and corners and edges by fours, in the slices' order."""
        count, one = len(self._slices), square(1.0)
        shift = BORDER_LINES * np.repeat(np.arange(count, dtype=np.int32), BORDER_LINES)
        half_widths = np.array([plane.half_width for plane in self._slices])
        # Polygons of equal hash are taken for one, but two slices may hold the same region.
        salt = np.random.Generator(np.random.PCG64(_SALT_SEED)).integers(0, 1 << 63, count, dtype=np.uint64)
        return Mesh(
            points=(half_widths[:, None, None] * one.points).reshape(-1, 2),
            point_error=np.zeros(count * BORDER_LINES),
            point_lines=np.tile(one.point_lines, (count, 1)) + shift[:, None],
            first=np.tile(one.first, count) + shift,
            second=np.tile(one.second, count) + shift,
            line=np.tile(one.line, count) + shift,
            starts=BORDER_LINES * np.arange(count + 1),
            halves=np.tile(one.halves, count) + 2 * shift,
            hashes=np.tile(one.hashes, count) ^ salt,
            depths=np.zeros(count, np.int32),
        )


class _JointValues(VertexValues):
    def __init__(self, folded: Sequence[SliceProgram], values: VertexValues) -> None:
        vars(self).update(vars(values))  # the maps behind the first breakpoint are the same for all slices
        self._all = {
            name: (
                np.stack([part.uv_values[name].constant.numpy() for part in folded])[:, None],  # [S, 1, n]
                np.stack([part.uv_values[name].tangents.numpy().T for part in folded]),  # [S, 2, n]
            )
            for name in set(folded[0].stages[0].preactivations) & set(folded[0].uv_values)
        }

    def _from_uv(self, name: str, points: NDArray[np.float64], point_error: NDArray[np.float64]) -> Rows:
        """Values at the corners of all squares: those of slice s are rows 4 s to 4 s + 3."""
        constant, tangents = self._all[name]
        data = points.reshape(-1, BORDER_LINES, 2) @ tangents + constant
        rounding = 4 * UNIT * np.hypot(points[:, 0], points[:, 1])
        scale = point_error + rounding
        gains, offsets = np.hypot(tangents[:, 0], tangents[:, 1]), 4 * UNIT * np.abs(constant[:, 0])
        error = scale * np.repeat(np.linalg.norm(gains, axis=1), BORDER_LINES)
        error += np.repeat(np.linalg.norm(offsets, axis=1), BORDER_LINES)
        bound = Bound(gains.max(axis=0), offsets.max(axis=0), scale, rounding)
        return Rows(data.reshape(len(points), -1), error, bound)


class _JointRationals(Rationals):
    def __init__(self, folded: Sequence[SliceProgram]) -> None:
        super().__init__(folded[0])
        self.distance *= min(part.slice.half_width for part in folded) / folded[0].slice.half_width
        self._border = [form for part in folded for form in border_forms(part.slice.half_width)]
        self._parts = folded
        self._first: dict[int, dict[str, Forms]] = {}

    def _first_values(self, face: int) -> dict[str, Forms]:
        if face not in self._first:
            self._first[face] = uv_forms(self._parts[face])
        return self._first[face]


def _slice_of_polygons(part: Part, slices: int) -> NDArray[np.int64]:
    """The first corners of a mesh keep their numbers: number 4 s is one of slice s."""
    label = _connected(part.first, part.second, len(part.points))
    slice_of_label = np.empty(slices, np.int64)
    slice_of_label[label[BORDER_LINES * np.arange(slices)]] = np.arange(slices)
    corner = part.first[part.halves[part.starts[:-1]] >> 1]
    of_polygon: NDArray[np.int64] = slice_of_label[label[corner]]
    return of_polygon


def _connected(first: NDArray[Any], second: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Number of the connected component of each of ``size`` nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(first.size, np.int8), (first, second)), shape=(size, size))
    label: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return label
