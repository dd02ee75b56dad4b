"""Measures of many convex polygons: area, centroid, perimeter, sides, shape and inscribed circle.

Every polygon is measured in differences to a corner of its own, in units of its own size: neither a far-away origin
nor a size of 1e-150 costs digits. What rounding left of a polygon of zero area still gets finite numbers.

**Eccentricity** is sqrt(1 - l2/l1) with l1 >= l2 the eigenvalues of the second central moments of the filled polygon
(Green's theorem: sums over the corners), taken as sqrt((l1 - l2) / l1), which does not cancel for round polygons. What
is accurate to rounding is its square: the eccentricity of a polygon that is round up to rounding is about 1e-8, not 0.

**Inradius** is the largest r such that a point keeps the distance r from every side, found by moving all sides inwards
at unit speed. Where two sides turn by the angle t their corner takes tan(t/2) from both per unit of time, so each side
has a time at which it vanishes; the earliest one is taken out, its neighbours meet, and the time at which nothing is
left is r (the deepest point of the polygon's medial axis). For a triangle it is 2 area / perimeter. In any convex
polygon r lies between area / perimeter and twice that, which also bounds what rounding can do to a sliver.
Where rounding has crowded corners or bent a side inwards, the convex hull of the vertices takes the polygon's place.

**Elongation** is the largest over the smallest distance of all pairs of vertices, max / (min + 1e-10) with the 1e-10
in input units: what SplineCam (Humayun et al., CVPR 2023) reports as eccentricity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError
from regiongrid.kernels.components import unknown_backend

MAX_COORDINATE = 1e150
"""Largest size of a coordinate: the square of twice as much is still a float64."""
ROUNDING = 2.0**-40
"""A corner is off its true place by at most this part of the largest coordinate among all points.

It only tells a polygon that rounding has turned over from one that was given clockwise.
"""
FLAT = 1e-290
"""A polygon whose double area is at most this part of its squared size has zero area: no quotient below underflows."""
SMALLEST_DISTANCE = 1e-10
"""Added to the smallest distance in the elongation, input units."""


@dataclass(frozen=True, eq=False)
class PolygonMeasures:
    """Measures of R polygons, one entry a polygon.

    If rounding has left no area (all corners on one line, or coincident): area and inradius are 0, the centroid is the
    mean of the corners, and the eccentricity is 1, or 0 if all corners coincide.
    """

    area: NDArray[np.float64]  # [R] shoelace formula, input units squared, >= 0
    centroid_u: NDArray[np.float64]  # [R] centroid of the filled polygon, input units
    centroid_v: NDArray[np.float64]  # [R]
    perimeter: NDArray[np.float64]  # [R] sum of the side lengths, input units
    sides: NDArray[np.int64]  # [R] straight sides of positive length
    eccentricity: NDArray[np.float64]  # [R] sqrt(1 - l2/l1): 0 for a regular polygon, towards 1 for a sliver
    elongation: NDArray[np.float64]  # [R] largest over smallest distance between vertices
    inradius: NDArray[np.float64]  # [R] radius of the largest inscribed circle, input units


def measure_polygons(
    points: NDArray[np.float64],  # [V, 2]
    starts: NDArray[np.int64],  # [R + 1]
    corners: NDArray[np.int32],  # [H]
    lines: NDArray[np.int32],  # [H]
    *,
    backend: str = "cpu",
    threads: int | None = None,
) -> PolygonMeasures:
    """Measure R convex polygons over shared points.

    The corners of polygon k are ``points[corners[starts[k] : starts[k + 1]]]``, counterclockwise, at least three.
    Its side from corner i to the next one lies on line ``lines[i]``: within a polygon, neighbouring sides with one
    number are parts of one straight side, and the corner between them is no vertex (the sides are counted and the
    elongation and the inradius taken without it). Sides of zero length do not count.

    That the polygons are convex (up to rounding of the points) is not checked.

    Parameters
    ----------
    points
        Coordinates (u, v), shape ``[V, 2]``, at most 1e150 in size.
    starts
        Where the corners of each polygon start, shape ``[R + 1]``.
    corners
        Rows of ``points``, shape ``[H]`` with H = ``starts[R]``.
    lines
        Line of the side that starts at each corner, shape ``[H]``; any numbers.
    backend
        ``"cpu"`` (numba) or ``"reference"`` (numpy, polygon by polygon).
    threads
        Worker threads of the cpu backend; by default all cores this process may use. The result does not depend on it.

    Raises
    ------
    InputError
        For unusable arrays, for a polygon that runs clockwise or has an area but fewer than three lines, or for an
        unknown backend.

    Examples
    --------
    A rectangle of 4 x 2 with a fifth corner in the middle of its lower side:

    >>> points = np.array([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 2.0]])
    >>> measures = measure_polygons(
    ...     points, np.array([0, 5]), np.arange(5, dtype=np.int32), np.array([7, 7, 1, 2, 3], np.int32)
    ... )
    >>> measures.area.tolist(), measures.perimeter.tolist(), measures.sides.tolist(), measures.inradius.tolist()
    ([8.0], [12.0], [4], [1.0])
    >>> measures.eccentricity.round(4).tolist(), measures.elongation.round(4).tolist()
    ([0.866], [2.2361])
    """
    _check(points, starts, corners, lines)
    if backend == "cpu":
        from regiongrid.kernels.polygons import cpu

        return cpu.measure_polygons(points, starts, corners, lines, threads)
    if backend == "reference":
        from regiongrid.kernels.polygons import reference

        return reference.measure_polygons(points, starts, corners, lines)
    raise unknown_backend(backend)


def unusable_outline(row: int, signed_area: float, lines: int) -> InputError:
    """The error for a polygon that is clockwise, or that has an area but too few lines."""
    return InputError(
        f"polygon {row} must run counterclockwise along at least three lines, got a signed area of {signed_area:g} and "
        f"{lines} lines; reverse clockwise corners, and give sides one line number only if they lie on one line"
    )


def _check(
    points: NDArray[np.float64], starts: NDArray[np.int64], corners: NDArray[np.int32], lines: NDArray[np.int32]
) -> None:
    _check_array("points", points, np.float64, 2)
    _check_array("starts", starts, np.int64, 1)
    _check_array("corners", corners, np.int32, 1)
    _check_array("lines", lines, np.int32, 1)
    if points.shape[1] != 2:
        raise InputError(f"points must have shape [V, 2], got {points.shape}")
    if not np.abs(points).max(initial=0.0) <= MAX_COORDINATE:  # NaN is not, either
        worst = np.argmax(~(np.abs(points).max(axis=1) <= MAX_COORDINATE))
        raise InputError(
            f"points must be finite and at most {MAX_COORDINATE:g} in size, point {worst} is {points[worst]}"
        )
    if starts.size == 0 or starts[0] != 0 or starts[-1] != corners.size:
        ends = starts[[0, -1]].tolist() if starts.size else "none"
        raise InputError(f"starts must begin with 0 and end with the {corners.size} corners, got {ends}")
    counts = np.diff(starts)
    if counts.min(initial=3) < 3:
        row = int(np.argmax(counts < 3))
        raise InputError(f"a polygon needs at least three corners, polygon {row} has {counts[row]}")
    if lines.size != corners.size:
        raise InputError(f"lines must hold one number a corner, got {lines.size} for {corners.size} corners")
    if corners.size and not (corners.min() >= 0 and corners.max() < points.shape[0]):
        raise InputError(
            f"corners must be rows of the {points.shape[0]} points, got {corners.min()} to {corners.max()}"
        )


def _check_array(name: str, array: object, dtype: type[np.generic], dimensions: int) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} must be a numpy array, got {type(array).__name__}")
    if array.dtype != dtype or array.ndim != dimensions or not array.flags.c_contiguous:
        raise InputError(
            f"{name} must be a C-contiguous {np.dtype(dtype)} array with {dimensions} axes, got {array.dtype} of shape "
            f"{array.shape} and strides {array.strides}; pass np.ascontiguousarray({name}, np.{np.dtype(dtype)})"
        )
