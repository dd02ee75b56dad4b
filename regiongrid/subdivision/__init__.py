"""`exact`: the partition of a slice as polygons, with every sign decided exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from torch import nn

from regiongrid.errors import InputError
from regiongrid.kernels.polygons import measure_polygons
from regiongrid.kernels.threads import cpu_count
from regiongrid.network import Network, load_network
from regiongrid.network.on_slice import SliceProgram, restrict
from regiongrid.network.program import Maximum
from regiongrid.regions import RegionTable, summarise
from regiongrid.resources import available_memory, one_torch_thread
from regiongrid.slices import Slice
from regiongrid.subdivision.polygons import Polygons, Sides

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regiongrid.subdivision.level_sets import LevelSet
    from regiongrid.subdivision.linear import LinearRegions
    from regiongrid.subdivision.parts import Part

_MEMORY_SHARE = 4  # of what may be used: the finished polygons, their copies while they are put together, the table


@dataclass(frozen=True, eq=False)
class Exact:
    """The regions of one slice, exactly.

    Attributes
    ----------
    network, slice
        What was subdivided, and where.
    polygons
        The partition: points, polygons, and the sides between them.
    regions
        One row a polygon, in its order; see `regiongrid.regions.COLUMNS` for columns and units.
    layers
        For each breakpoint ``layer`` (from 1), ``operator``; ``regions`` and ``boundary_length`` when only the layers
        up to it count; and ``own_length``, the length of the sides at which a unit of this layer changes.
    effort
        What it took: vertices at which each stage was evaluated, signs, signs that float64 left undecided, signs and
        places of points settled by exact arithmetic, and seconds (summed over threads).
    seconds
        Wall time of ``fold``, ``subdivide`` and ``measure``.
    """

    network: Network
    slice: Slice
    polygons: Polygons = field(repr=False)
    regions: RegionTable = field(repr=False)
    layers: tuple[dict[str, Any], ...] = field(repr=False)
    effort: dict[str, Any]
    seconds: dict[str, float]
    _folded: SliceProgram = field(repr=False)
    _options: dict[str, Any] = field(repr=False)

    @cached_property
    def boundary_length(self) -> float:
        """Length of all sides between two regions, each once, input units."""
        return float(self.polygons.side_lengths[self.polygons.sides.stage >= 0].sum())

    @cached_property
    def _summary(self) -> dict[str, Any]:
        return {
            "slice": {
                "description": self.slice.description,
                "half_width": self.slice.half_width,
                "anchors": self.slice.anchors.tolist(),
            },
            **summarise(self.regions, domain_area=self.slice.domain_area, boundary_length=self.boundary_length),
            "by_layer": list(self.layers),
            "points": len(self.polygons.points),
            "sides_total": len(self.polygons.sides),
            "effort": self.effort,
            "warnings": [],
            "seconds": self.seconds,
        }

    def summary(self) -> dict[str, Any]:
        """Statistics of the slice in plain numbers, as in the command's JSON (``slices[i]``)."""
        return dict(self._summary)

    def decision_boundary(self) -> LevelSet:
        """Where the largest output changes (argmax over all entries of the output).

        Raises
        ------
        InputError
            The network has a single output, or an operator that is not affine (softmax) makes it.
        """
        from regiongrid.subdivision.level_sets import decision_boundary

        return decision_boundary(self._folded, self.regions.pattern, **self._options)

    def level_set(self, output: int, value: float = 0.0) -> LevelSet:
        """Where entry ``output`` of the (flattened) output equals ``value``.

        Raises
        ------
        InputError
            There is no such entry, or an operator that is not affine (softmax) makes the output.
        """
        from regiongrid.subdivision.level_sets import level_set

        return level_set(self._folded, self.regions.pattern, output, value, **self._options)

    def linear_regions(self) -> LinearRegions:
        """Regions joined where the network is one and the same affine map on both sides.

        Raises
        ------
        InputError
            An operator that is not affine (softmax) makes the output.
        """
        from regiongrid.subdivision.linear import linear_regions

        return linear_regions(self._folded, self.polygons, **self._options)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Polygons, anchors and the distributions of area and eccentricity; written to ``path`` if given."""
        from regiongrid.plots import plot_exact

        return plot_exact(self, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the polygons to a ``.npz`` or GeoJSON-like ``.json`` file; see `regiongrid.subdivision.export`."""
        from regiongrid.subdivision.export import save_polygons

        save_polygons(self, path)

    def __str__(self) -> str:
        from regiongrid.commands.report import as_text

        return as_text(self)


class Options(TypedDict, total=False):
    """Keyword options of `exact`; their meaning and defaults stand there."""

    threads: int | None
    max_memory: int | None
    seed: int
    progress: Callable[[int, float], None] | None


@overload
def exact(network: Network | nn.Module | str | Path, slices: Slice, **options: Unpack[Options]) -> Exact: ...


@overload
def exact(
    network: Network | nn.Module | str | Path, slices: Sequence[Slice], **options: Unpack[Options]
) -> list[Exact]: ...


def exact(
    network: Network | nn.Module | str | Path,
    slices: Slice | Sequence[Slice],
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Exact | list[Exact]:
    """Find all regions of a network on one slice or on several, as polygons.

    The domain is subdivided breakpoint by breakpoint. Values are computed once a vertex, in float64 with a bound on
    their error; where a sign stays open, it is settled in whole-number arithmetic from the coefficients of the network
    on the slice (float64 numbers, taken as exact). So no region is missed, invented or counted twice, however small it
    is and however many lines meet in a point. A unit that is zero on a whole polygon is off there and cuts nothing.

    Parameters
    ----------
    network
        A `Network`, a module or a checkpoint file; see `load_network` for what a module or a file needs.
    slices
        One `Slice` (the result is one `Exact`) or a sequence (a list of them).
    threads
        Worker threads; all cores that the process may use if not given. No result depends on it.
    max_memory
        Bytes that the run may use; four fifths of what is available if not given.
    seed
        Seed of the hash keys.
    progress
        Called with the slice's number and the share of the work that is done.

    Raises
    ------
    MemoryLimitError
        The polygons take more memory than allowed. The number of regions cannot be known before.
    UnsupportedOperatorError
        A breakpoint jumps at its threshold.
    InputError
        A choice that does not exist, or a slice that does not fit the network.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> result = exact(net, Slice.square(10.0))
    >>> len(result.regions), round(float(result.regions.area.sum()), 9)
    (7, 400.0)
    """
    net = load_network(network)
    wanted = [slices] if isinstance(slices, Slice) else list(slices)
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    if max_memory is not None and max_memory < 1:
        raise InputError(f"max_memory is {max_memory}; it must be a positive number of bytes")
    if not wanted:
        raise InputError("no slice was given; pass at least one")
    options = {"threads": threads or cpu_count(), "seed": seed, "max_bytes": _polygon_bytes(max_memory)}
    done = [
        _one(net, slice_, options, None if progress is None else partial(progress, number))
        for number, slice_ in enumerate(wanted)
    ]
    return done[0] if isinstance(slices, Slice) else done


def _polygon_bytes(max_memory: int | None) -> int | None:
    available = available_memory()
    limit = max_memory if max_memory is not None else None if available is None else available * 4 // 5
    return None if limit is None else limit // _MEMORY_SHARE


def _one(net: Network, slice_: Slice, options: dict[str, Any], progress: Callable[[float], None] | None) -> Exact:
    from regiongrid.subdivision.subdivide import Subdivision

    start = time.perf_counter()
    folded = restrict(net.program, slice_)
    fold = time.perf_counter() - start
    with one_torch_thread():
        subdivision = Subdivision(folded, progress=progress, **options)
        part, _ = subdivision.run()
    subdivided = time.perf_counter()
    polygons = as_polygons(part, folded)
    regions = region_table(polygons, part.hashes, part.depths, options["threads"])
    layers = _layers(folded, polygons, subdivision.faces)
    seconds = {
        "fold": fold,
        "subdivide": subdivided - start - fold,
        "measure": time.perf_counter() - subdivided,
    }
    effort = vars(subdivision.effort)
    return Exact(net, slice_, polygons, regions, layers, effort, seconds, folded, options)


def as_polygons(part: Part, folded: SliceProgram) -> Polygons:
    """The finished mesh with its sides: who lies left and right, and which unit changes."""
    faces = part.hashes.size
    edge, back = part.halves >> 1, part.halves & 1
    face = np.repeat(np.arange(faces, dtype=np.int32), np.diff(part.starts))
    beside = np.full((part.first.size, 2), -1, np.int32)
    beside[edge, back] = face
    unit, threshold = _units(folded, part.owner)
    sides = Sides(part.first, part.second, beside[:, 0], beside[:, 1], part.owner[:, 0], unit, threshold)
    corners = np.where(back == 0, part.first[edge], part.second[edge])
    return Polygons(part.points, part.starts, corners, edge, part.lines, sides)


def _units(folded: SliceProgram, owner: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Unit and threshold of the decision at each side."""
    unit = np.full(len(owner), -1, np.int32)
    threshold = np.full(len(owner), -1, np.int32)
    for k, stage in enumerate(folded.stages):
        own = owner[:, 0] == k
        if isinstance(stage.breakpoint, Maximum):
            unit[own], threshold[own] = owner[own, 1], 0
        else:
            threshold[own], unit[own] = np.divmod(owner[own, 1], stage.breakpoint.units)
    return unit, threshold


def region_table(
    polygons: Polygons, patterns: NDArray[np.uint64], depths: NDArray[np.int32], threads: int
) -> RegionTable:
    """Measures of every polygon."""
    measures = measure_polygons(
        polygons.points, polygons.starts, polygons.corners, polygons.corner_lines, threads=threads
    )
    sides, faces = polygons.sides, len(polygons)
    inner = (sides.left >= 0) & (sides.right >= 0)
    low, high = np.minimum(sides.left, sides.right)[inner], np.maximum(sides.left, sides.right)[inner]
    pairs = np.unique(low.astype(np.int64) * faces + high)  # two regions may meet along two sides
    neighbours = np.bincount(pairs // faces, minlength=faces) + np.bincount(pairs % faces, minlength=faces)
    touches = np.zeros(faces, np.bool_)
    for one, other in ((sides.left, sides.right), (sides.right, sides.left)):
        touches[one[(other < 0) & (one >= 0)]] = True
    return RegionTable(
        {
            "pattern": patterns,
            "area": measures.area,
            "centroid_u": measures.centroid_u,
            "centroid_v": measures.centroid_v,
            "perimeter": measures.perimeter,
            "eccentricity": measures.eccentricity,
            "elongation": measures.elongation,
            "sides": measures.sides,
            "inradius": measures.inradius,
            "components": np.ones(faces, np.int64),
            "neighbours": neighbours,
            "touches_border": touches,
            "depth": depths.astype(np.int64),
        }
    )


def _layers(folded: SliceProgram, polygons: Polygons, faces: Sequence[int]) -> tuple[dict[str, Any], ...]:
    own = np.bincount(polygons.sides.stage + 1, weights=polygons.side_lengths, minlength=len(folded.stages) + 1)[1:]
    return tuple(
        {
            "layer": k + 1,
            "operator": stage.label,
            "regions": int(faces[k]),
            "boundary_length": float(own[: k + 1].sum()),
            "own_length": float(own[k]),
        }
        for k, stage in enumerate(folded.stages)
    )
