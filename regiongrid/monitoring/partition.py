"""The regions of all slices, from either engine, as a few numbers a slice."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from regiongrid.estimation import estimate
from regiongrid.kernels.polygons import measure_polygons
from regiongrid.kernels.threads import spans
from regiongrid.network import Network
from regiongrid.network.on_slice import SliceProgram
from regiongrid.resources import available_memory
from regiongrid.slices import Slice
from regiongrid.subdivision import exact

if TYPE_CHECKING:
    from regiongrid.subdivision.joint import Joint

Array = NDArray[np.float64]
PerSlice = dict[str, Array]
"""Name of a measure -> one number a slice, [S]."""

SLICES_TOGETHER = 16
"""Slices that share a mesh: fixed, so that no result depends on the number of threads."""
_MEMORY_SHARE = 8  # of what is available, for the polygons of one group


def exactly(
    folded: Sequence[SliceProgram], network: Network, wanted: frozenset[str], pool: ThreadPoolExecutor, threads: int
) -> PerSlice:
    """Measures of the exact polygons of every slice, by ``threads`` workers of ``pool``.

    Raises
    ------
    MemoryLimitError
        The polygons take more than an eighth of the available memory.
    UnsupportedOperatorError
        A breakpoint jumps at its threshold.
    """
    from regiongrid.subdivision.joint import joinable, subdivide_jointly
    from regiongrid.subdivision.values import VertexValues

    if not joinable(folded):
        return _one_by_one(folded, network, wanted, threads)
    available = available_memory()
    limit = None if available is None else available // _MEMORY_SHARE

    values = VertexValues(folded[0])

    def measure(first: int, last: int) -> PerSlice:
        group = folded[first:last]
        return _of_joint(subdivide_jointly(group, values=values, max_bytes=limit), group, wanted)

    futures = [pool.submit(measure, *span) for span in spans(len(folded), SLICES_TOGETHER)]
    return _joined([future.result() for future in futures])


def on_grid(
    network: Network, slices: Sequence[Slice], res: int, wanted: frozenset[str], threads: int, device: str, seed: int
) -> PerSlice:
    """Measures of the pattern images of every slice; see `regiongrid.estimation.estimate`."""
    rows = []
    by_layer = "by_layer" in wanted
    for found in estimate(network, list(slices), res, by_layer=by_layer, threads=threads, device=device, seed=seed):
        table, plane = found.regions, found.slice
        row = _of_columns(table.area, table.eccentricity, None, plane.domain_area, wanted)
        row |= _boundary(found.totals.boundary_length, plane.domain_area, wanted)
        row |= {f"by_layer/{layer['layer']}": float(layer["regions"]) for layer in found.layers}
        rows.append({name: np.array([value]) for name, value in row.items()})
    return _joined(rows)


def _one_by_one(folded: Sequence[SliceProgram], network: Network, wanted: frozenset[str], threads: int) -> PerSlice:
    """For networks that read the input, or values affine in it, behind their first breakpoint."""
    rows = []
    for found in exact(network, [part.slice for part in folded], threads=threads):
        table, area = found.regions, found.slice.domain_area
        row = _of_columns(table.area, table.eccentricity, table.elongation, area, wanted)
        row |= _boundary(found.boundary_length, area, wanted)
        if "by_layer" in wanted:
            row |= {f"by_layer/{layer['layer']}": float(layer["regions"]) for layer in found.layers}
        rows.append({name: np.array([value]) for name, value in row.items()})
    return _joined(rows)


def _of_joint(joint: Joint, folded: Sequence[SliceProgram], wanted: frozenset[str]) -> PerSlice:
    polygons, slices = joint.polygons, len(folded)
    measures = measure_polygons(polygons.points, polygons.starts, polygons.corners, polygons.corner_lines, threads=1)
    area = np.array([part.slice.domain_area for part in folded])
    inner = (polygons.sides.stage >= 0).astype(np.float64)
    lengths = np.bincount(joint.side_slices, weights=polygons.side_lengths * inner, minlength=slices)
    order = np.argsort(joint.slice_of, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(joint.slice_of, minlength=slices))[:-1])
    rows = []
    for k, group in enumerate(groups):
        row = _of_columns(
            measures.area[group], measures.eccentricity[group], measures.elongation[group], area[k], wanted
        )
        rows.append(row | _boundary(lengths[k], area[k], wanted))
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows[0] else {}
    if "by_layer" in wanted:
        for stage in range(joint.stages - 1):
            found[f"by_layer/{stage + 1}"] = joint.regions_up_to(stage, slices).astype(np.float64)
        found[f"by_layer/{joint.stages}"] = np.array([float(group.size) for group in groups])
    return found


def _of_columns(
    area: Array, eccentricity: Array, elongation: Array | None, domain_area: float, wanted: frozenset[str]
) -> dict[str, float]:
    row: dict[str, float] = {}
    if "count" in wanted:
        row["count"] = float(area.size)
    if "area" in wanted:
        row |= {"area_mean": domain_area / area.size, "area_median": _median(area)}
    if "eccentricity" in wanted:
        row |= {"eccentricity_mean": float(eccentricity.mean()), "eccentricity_median": _median(eccentricity)}
    if "elongation" in wanted and elongation is not None:
        row |= {
            "elongation_mean": float(elongation.mean()),
            "elongation_median": _median(elongation),
            "elongation_p95": _p95(elongation),
        }
    return row


def _median(values: Array) -> float:
    """What np.median gives, in a fifth of the time for a few hundred values."""
    middle = values.size // 2
    if values.size % 2:
        return float(np.partition(values, middle)[middle])
    return float(np.partition(values, (middle - 1, middle))[middle - 1 : middle + 1].mean())


def _p95(values: Array) -> float:
    """What np.percentile(values, 95) gives, likewise."""
    place = 0.95 * (values.size - 1)
    low = int(place)
    high = min(low + 1, values.size - 1)
    ordered = np.partition(values, (low, high))
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def _boundary(length: float, domain_area: float, wanted: frozenset[str]) -> dict[str, float]:
    if "boundary" not in wanted:
        return {}
    return {"boundary_length": float(length), "boundary_density": float(length) / domain_area}


def _joined(parts: Sequence[PerSlice]) -> PerSlice:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
