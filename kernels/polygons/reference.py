"""Polygon measures in plain numpy, one polygon and one question at a time.

The inradius takes the directions of all sides as given; where rounding has crowded several corners they may point
anywhere, and it can come out too small (by half at most). The cpu backend takes the convex hull there.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from regiongrid.kernels.polygons import FLAT, ROUNDING, SMALLEST_DISTANCE, PolygonMeasures, unusable_outline

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]


def measure_polygons(points: Floats, starts: NDArray[np.int64], corners: Int32s, lines: Int32s) -> PolygonMeasures:
    """See :func:`regiongrid.kernels.polygons.measure_polygons`."""
    noise = ROUNDING * float(np.abs(points).max(initial=0.0))
    rows = [
        _measure(row, points[corners[start:stop]], lines[start:stop], noise)
        for row, (start, stop) in enumerate(pairwise(starts))
    ]
    area, centroid_u, centroid_v, perimeter, sides, eccentricity, elongation, inradius = np.array(rows).reshape(-1, 8).T
    return PolygonMeasures(
        area=area,
        centroid_u=centroid_u,
        centroid_v=centroid_v,
        perimeter=perimeter,
        sides=sides.astype(np.int64),
        eccentricity=eccentricity,
        elongation=elongation,
        inradius=inradius,
    )


def _measure(row: int, outline: Floats, lines: Int32s, noise: float) -> tuple[float, ...]:
    offsets = outline - outline[0]
    extent = float(np.abs(offsets).max())
    if extent == 0.0:
        return (0.0, *outline[0], 0.0, 0, 0.0, 0.0, 0.0)
    local = offsets / extent
    mean = local.mean(axis=0)
    twice = float(_crosses(local - mean).sum())
    perimeter = float(_side_lengths(local).sum())
    is_vertex = lines != np.roll(lines, 1)
    if (twice < 0.0 or is_vertex.sum() < 3) and abs(twice) * extent > noise:
        raise unusable_outline(row, twice / 2 * extent * extent, int(is_vertex.sum()))
    flat = twice <= FLAT
    centre = mean if flat else mean + _centroid(local - mean)
    depth = 0.0 if flat else _inradius(local[is_vertex] - centre, twice / perimeter)
    return (
        0.0 if flat else twice / 2 * extent * extent,
        *(outline[0] + centre * extent),
        perimeter * extent,
        _sides(outline, lines),
        1.0 if flat else _eccentricity(local - centre),
        _elongation(outline[is_vertex]),
        depth * extent,
    )


def _crosses(outline: Floats) -> Floats:
    """Double signed area of the triangle between the origin and each side."""
    after = np.roll(outline, -1, axis=0)
    crosses: Floats = outline[:, 0] * after[:, 1] - outline[:, 1] * after[:, 0]
    return crosses


def _side_lengths(outline: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(np.roll(outline, -1, axis=0) - outline, axis=1)
    return lengths


def _centroid(outline: Floats) -> Floats:
    crosses = _crosses(outline)
    centroid: Floats = crosses @ (outline + np.roll(outline, -1, axis=0)) / (3 * crosses.sum())
    return centroid


def _sides(outline: Floats, lines: Int32s) -> int:
    """Cyclic runs of equal line numbers among the sides of positive length."""
    walked = lines[(outline != np.roll(outline, -1, axis=0)).any(axis=1)]
    if not walked.size:
        return 0
    return max(int(np.count_nonzero(walked != np.roll(walked, 1))), 1)


def _eccentricity(centred: Floats) -> float:
    """Green's theorem for the integrals of x^2, x y and y^2 over the polygon, about its centroid."""
    crosses = _crosses(centred)
    (x, y), (to_x, to_y) = centred.T, np.roll(centred, -1, axis=0).T
    square_x = float(crosses @ (x * x + x * to_x + to_x * to_x)) / 12
    square_y = float(crosses @ (y * y + y * to_y + to_y * to_y)) / 12
    mixed = float(crosses @ (x * to_y + 2 * x * y + 2 * to_x * to_y + to_x * y)) / 24
    difference = np.hypot((square_x - square_y) / 2, mixed)
    mean = (square_x + square_y) / 2
    if mean <= difference:  # the smaller eigenvalue is lost in rounding
        return 1.0
    return float(np.sqrt(2 * difference / (mean + difference)))


def _elongation(vertices: Floats) -> float:
    if len(vertices) < 2:
        return 0.0
    one, other = np.triu_indices(len(vertices), 1)
    distances = np.hypot(*(vertices[one] - vertices[other]).T)
    return float(distances.max() / (distances.min() + SMALLEST_DISTANCE))


def _inradius(centred: Floats, most: float) -> float:
    """The smallest inscribed circle of all the triangles that the lines of three sides form around the polygon.

    That is the dual of the linear program that asks for a centre and the largest radius: no circle fits into the
    polygon that does not fit into each triangle, and the largest one is held by three sides, or by two parallel ones.
    Three directions s, t, w around the circle have s sin(t, w) + t sin(w, s) + w sin(s, t) = 0 with all sines >= 0, so
    with the distances d of the three lines from any inner point the radius of their triangle is

        (d_s sin(t, w) + d_t sin(w, s) + d_w sin(s, t)) / (sin(t, w) + sin(w, s) + sin(s, t)).

    Rounding of a sliver could move it out of the bounds that hold for every convex polygon: ``most`` = double area /
    perimeter, and half of it.
    """
    lengths = _side_lengths(centred)
    outline = centred[lengths > 0]
    steps = (np.roll(centred, -1, axis=0) - centred)[lengths > 0] / lengths[lengths > 0, None]
    distances = np.maximum(outline[:, 0] * steps[:, 1] - outline[:, 1] * steps[:, 0], 0.0)
    sines = steps[:, :1] * steps[:, 1] - steps[:, 1:] * steps[:, 0]
    smallest = most
    for side, distance in enumerate(distances):
        total = sines + sines[:, side] + sines[side, :, None]  # of side j and side k, [j, k]
        weighed = distance * sines + distances[:, None] * sines[:, side] + distances * sines[side, :, None]
        around = (sines >= 0) & (sines[:, side] >= 0) & (sines[side, :, None] >= 0) & (total > 0)
        smallest = min(smallest, float((weighed[around] / total[around]).min(initial=smallest)))
    return max(smallest, most / 2)
