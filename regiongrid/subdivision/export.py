"""Polygons of a slice as files: ``.npz`` to go on computing with, ``.json`` for tools that read GeoJSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError
from regiongrid.files import atomic_path, read_npz
from regiongrid.kernels.threads import spans
from regiongrid.subdivision.polygons import Polygons, Sides

if TYPE_CHECKING:
    from regiongrid.subdivision import Exact

FORMATS = ("npz", "json")
_POLYGON_COLUMNS = ("corners", "corner_sides", "corner_lines")
_SIDE_COLUMNS = ("first", "second", "left", "right", "stage", "unit", "threshold")
_TYPES: dict[str, type[np.generic]] = {
    "points": np.float64,
    "starts": np.int64,
    "pattern": np.uint64,
    **dict.fromkeys((*_POLYGON_COLUMNS, *(f"side_{name}" for name in _SIDE_COLUMNS)), np.int32),
}
_PROPERTIES = ("area", "depth", "eccentricity")
_CHUNK_REGIONS = 1 << 14
_WHAT = "polygon file"


class SavedPolygons(NamedTuple):
    """What `load_polygons` reads: the polygons, and the pattern hash of each, [R]."""

    polygons: Polygons
    pattern: NDArray[np.uint64]


def save_polygons(exact: Exact, path: str | os.PathLike[str]) -> None:
    """Write the polygons of a slice to ``path``, whole or not at all; its suffix says how.

    ``.npz``
        Plain arrays, to the last bit, which ``np.load(path, allow_pickle=False)`` reads as well as `load_polygons`:
        ``points`` [V, 2], ``starts`` [R + 1], ``corners``, ``corner_sides`` and ``corner_lines`` [starts[R]] as in
        `regiongrid.subdivision.polygons.Polygons`; ``side_first``, ``side_second``, ``side_left``, ``side_right``,
        ``side_stage``, ``side_unit`` and ``side_threshold`` [m] as in `Sides`; ``pattern`` and ``area`` [R]. Beside
        them stand those of `Slice.save` (``origin``, ``u``, ``v``, ``half_width``, ``anchors``, ``description``), so
        that the file is a slice file too.
    ``.json``
        A FeatureCollection as in GeoJSON (RFC 7946, but in slice coordinates instead of degrees). One Polygon feature
        a region, with a closed ring of (u, v) in input units, counterclockwise; its properties are ``pattern`` (``0x``
        and 16 hexadecimal digits), ``area``, ``depth`` and ``eccentricity``. The member ``slice`` holds
        ``half_width``, ``anchors`` and ``description``.

    Raises
    ------
    InputError
        ``path`` has another suffix.
    RegiongridError
        The file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    write = {".npz": _write_npz, ".json": _write_json}.get(suffix)
    if write is None:
        raise InputError(f"polygons are written to a .npz or .json file, got {os.fspath(path)!r}")
    with atomic_path(path) as temporary:
        write(exact, temporary)


def load_polygons(path: str | os.PathLike[str]) -> SavedPolygons:
    """Read polygons that `save_polygons` has written to a ``.npz`` file. `Slice.load` reads their slice from it.

    Examples
    --------
    >>> polygons, pattern = load_polygons("polygons.npz")  # doctest: +SKIP

    Raises
    ------
    InputError
        The file is missing, damaged, another kind of file, or its arrays do not fit together.
    """
    if Path(path).suffix.lower() != ".npz":
        raise InputError(f"polygons are read from a .npz file, got {os.fspath(path)!r}")
    arrays = read_npz(path, _WHAT)
    missing = [name for name in _TYPES if name not in arrays]
    if missing:
        raise InputError(f"{_WHAT} {path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}")
    checked: dict[str, Any] = {name: _checked(arrays[name], name, path) for name in _TYPES}
    sides = Sides(**{name: checked[f"side_{name}"] for name in _SIDE_COLUMNS})
    polygons = Polygons(**{name: checked[name] for name in ("points", "starts", *_POLYGON_COLUMNS)}, sides=sides)
    fault = _fault(polygons, checked["pattern"])
    if fault is not None:
        raise InputError(f"{_WHAT} {path} is damaged: {fault}; write it again with save_polygons")
    return SavedPolygons(polygons, checked["pattern"])


def _checked(array: NDArray[Any], name: str, path: str | os.PathLike[str]) -> NDArray[Any]:
    dtype, dimensions = np.dtype(_TYPES[name]), 2 if name == "points" else 1
    if array.ndim != dimensions or array.dtype != dtype:
        raise InputError(
            f"{_WHAT} {path}: {name} must be {dtype} with {dimensions} dimension(s), got {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    return array


def _write_npz(exact: Exact, path: Path) -> None:
    polygons, plane = exact.polygons, exact.slice
    arrays: dict[str, Any] = {
        "points": polygons.points,
        "starts": polygons.starts,
        **{name: getattr(polygons, name) for name in _POLYGON_COLUMNS},
        **{f"side_{name}": getattr(polygons.sides, name) for name in _SIDE_COLUMNS},
        "pattern": exact.regions["pattern"],
        "area": exact.regions["area"],
        "origin": plane.origin,
        "u": plane.u,
        "v": plane.v,
        "half_width": np.float64(plane.half_width),
        "anchors": plane.anchors,
        "description": np.array(plane.description),
    }
    with path.open("wb") as handle:
        np.savez_compressed(handle, **arrays)


def _write_json(exact: Exact, path: Path) -> None:
    plane = exact.slice
    about = {"half_width": plane.half_width, "anchors": plane.anchors.tolist(), "description": plane.description}
    with path.open("x", encoding="utf-8") as file:
        file.write(f'{{"type": "FeatureCollection",\n"slice": {_json(about)},\n"features": [\n')
        for number, feature in enumerate(_features(exact)):
            file.write((",\n" if number else "") + _json(feature))
        file.write("\n]}\n")


def _features(exact: Exact) -> Iterator[dict[str, Any]]:
    """One feature a region; a chunk of regions at a time, since Python lists take far more memory than arrays."""
    polygons, regions = exact.polygons, exact.regions
    for low, high in spans(len(polygons), _CHUNK_REGIONS):
        begin = int(polygons.starts[low])
        starts = (polygons.starts[low : high + 1] - begin).tolist()
        corners = polygons.points[polygons.corners[begin : int(polygons.starts[high])]].tolist()
        patterns = regions["pattern"][low:high].tolist()
        columns = [_finite(regions[name][low:high]) for name in _PROPERTIES]
        for first, last, pattern, *values in zip(starts, starts[1:], patterns, *columns):
            yield {
                "type": "Feature",
                "properties": {"pattern": f"0x{pattern:016x}", **dict(zip(_PROPERTIES, values))},
                "geometry": {"type": "Polygon", "coordinates": [[*corners[first:last], corners[first]]]},
            }


def _finite(values: NDArray[Any]) -> list[float | int | None]:
    """Plain numbers; None for what JSON has no number for."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _fault(polygons: Polygons, pattern: NDArray[np.uint64]) -> str | None:
    """What is wrong with polygons from a file, None if they are sound: numbers in range, and sides that fit corners."""
    starts, sides, regions = polygons.starts, polygons.sides, polygons.starts.size - 1
    corners, points, count = polygons.corners.size, len(polygons.points), len(sides)
    if polygons.points.shape[1] != 2 or not np.isfinite(polygons.points).all():
        return "points must have shape [V, 2] and be finite"
    if regions < 1 or starts[0] != 0 or starts[-1] != corners or np.diff(starts).min() < 3:
        return f"starts must rise from 0 to the {corners} corners, by at least 3 a polygon"
    sizes = {name: getattr(polygons, name).size for name in _POLYGON_COLUMNS}
    if len(set(sizes.values())) > 1:
        return f"the columns of corners have different lengths, {sizes}"
    sizes = {name: getattr(sides, name).size for name in _SIDE_COLUMNS}
    if len(set(sizes.values())) > 1:
        return f"the columns of sides have different lengths, {sizes}"
    if pattern.size != regions:
        return f"there are {pattern.size} patterns for {regions} polygons"
    ranges: dict[str, tuple[NDArray[np.int32], int, int]] = {
        "corners": (polygons.corners, 0, points),
        "corner_sides": (polygons.corner_sides, 0, count),
        "side_first": (sides.first, 0, points),
        "side_second": (sides.second, 0, points),
        "side_left": (sides.left, -1, regions),
        "side_right": (sides.right, -1, regions),
    }
    for name, (values, least, end) in ranges.items():
        if values.size and (values.min() < least or values.max() >= end):
            return f"{name} must lie from {least} to {end - 1}, got {values.min()} to {values.max()}"
    if not _sides_fit(polygons):
        return "corner_sides do not run from corner to corner with their polygon beside them"
    return None


def _sides_fit(polygons: Polygons) -> bool:
    sides, chosen = polygons.sides, polygons.corner_sides
    region = np.repeat(np.arange(len(polygons)), np.diff(polygons.starts))
    following = np.roll(polygons.corners, -1)
    following[polygons.starts[1:] - 1] = polygons.corners[polygons.starts[:-1]]
    forwards = (
        (sides.first[chosen] == polygons.corners) & (sides.second[chosen] == following) & (sides.left[chosen] == region)
    )
    backwards = (
        (sides.second[chosen] == polygons.corners)
        & (sides.first[chosen] == following)
        & (sides.right[chosen] == region)
    )
    return bool((forwards | backwards).all())
