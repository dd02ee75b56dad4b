"""Polygon measures in numba: a few short loops over the corners of one polygon, then the next."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from regiongrid.kernels.polygons import FLAT, ROUNDING, SMALLEST_DISTANCE, PolygonMeasures, unusable_outline
from regiongrid.kernels.threads import cpu_count, run_spans

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

# polygons a worker takes at once
SPAN = 1 << 12


@njit(cache=True, nogil=True, error_model="numpy")
def _gather(
    points: Floats, corners: Int32s, lines: Int32s, x: Floats, y: Floats, vertices: Floats
) -> tuple[int, float]:
    """Copy the corners of one polygon, and once more those between two lines.

    Returns how many vertices there are, and the size of the polygon: its largest coordinate relative to corner 0.
    """
    count = 0
    extent = 0.0
    before = lines[-1]
    for i in range(corners.size):
        x[i], y[i] = points[corners[i], 0], points[corners[i], 1]
        extent = max(extent, abs(x[i] - x[0]), abs(y[i] - y[0]))
        if lines[i] != before:
            vertices[0, count], vertices[1, count] = x[i], y[i]
            count += 1
        before = lines[i]
    return count, extent


@njit(cache=True, nogil=True, error_model="numpy")
def _walk(x: Floats, y: Floats, lines: Int32s, shrink: float) -> tuple[float, int]:
    """Perimeter in units of 1 / shrink, and the number of straight sides of positive length."""
    n = lines.size
    length = 0.0
    changes = 0
    first = last = np.int32(0)
    walked = False
    for i in range(n):
        after = i + 1 if i + 1 < n else 0
        step_x, step_y = x[after] - x[i], y[after] - y[i]
        if step_x == 0.0 and step_y == 0.0:
            continue
        step_x *= shrink
        step_y *= shrink
        length += math.sqrt(step_x * step_x + step_y * step_y)
        if not walked:
            first = lines[i]
        elif lines[i] != last:
            changes += 1
        last = lines[i]
        walked = True
    if not walked:
        return 0.0, 0
    return length, max(changes + (last != first), 1)


@njit(cache=True, nogil=True, error_model="numpy")
def _fan(x: Floats, y: Floats, n: int, shrink: float) -> tuple[float, float, float, float]:
    """Signed double area, and the centroid from corner 0, of the triangles between corner 0 and each side.

    The weights of the centroid are the double areas of the triangles, those that rounding has turned over left out:
    so it stays among the corners. Last comes the sum of the weights.
    """
    twice = weight = centre_x = centre_y = 0.0
    one_x, one_y = (x[1] - x[0]) * shrink, (y[1] - y[0]) * shrink
    for i in range(2, n):
        two_x, two_y = (x[i] - x[0]) * shrink, (y[i] - y[0]) * shrink
        cross = one_x * two_y - one_y * two_x
        twice += cross
        share = max(cross, 0.0)
        weight += share
        centre_x += share * (one_x + two_x)
        centre_y += share * (one_y + two_y)
        one_x, one_y = two_x, two_y
    if twice <= FLAT:
        return twice, 0.0, 0.0, weight
    return twice, centre_x / (3.0 * weight), centre_y / (3.0 * weight), weight


@njit(cache=True, nogil=True, error_model="numpy")
def _eccentricity(
    x: Floats, y: Floats, n: int, shrink: float, centre_x: float, centre_y: float, weight: float
) -> float:
    """From the second moments about the centroid: a triangle with corners a, b, c has those of a, b, c and a + b + c.

    Each with a twelfth of its area, which cancels in the quotient. Nothing but squares is added, so a sliver cannot
    get a negative moment.
    """
    square_x = mixed = square_y = 0.0
    base_x, base_y = (x[1] - x[0]) * shrink, (y[1] - y[0]) * shrink
    one_x, one_y = base_x - centre_x, base_y - centre_y
    for i in range(2, n):
        next_x, next_y = (x[i] - x[0]) * shrink, (y[i] - y[0]) * shrink
        share = max(base_x * next_y - base_y * next_x, 0.0) / weight
        two_x, two_y = next_x - centre_x, next_y - centre_y
        sum_x, sum_y = one_x + two_x - centre_x, one_y + two_y - centre_y
        square_x += share * (one_x * one_x + two_x * two_x + centre_x * centre_x + sum_x * sum_x)
        mixed += share * (one_x * one_y + two_x * two_y + centre_x * centre_y + sum_x * sum_y)
        square_y += share * (one_y * one_y + two_y * two_y + centre_y * centre_y + sum_y * sum_y)
        base_x, base_y, one_x, one_y = next_x, next_y, two_x, two_y
    half = 0.5 * (square_x - square_y)
    difference = math.sqrt(half * half + mixed * mixed)
    largest = 0.5 * (square_x + square_y) + difference
    return math.sqrt(min(2.0 * difference / largest, 1.0))


@njit(cache=True, nogil=True, error_model="numpy")
def _distances(vertices: Floats, count: int, shrink: float) -> tuple[float, float]:
    """Smallest and largest squared distance of two vertices."""
    smallest = math.inf
    largest = 0.0
    for i in range(1, count):
        for j in range(i):
            x = (vertices[0, i] - vertices[0, j]) * shrink
            y = (vertices[1, i] - vertices[1, j]) * shrink
            square = x * x + y * y
            smallest = min(smallest, square)
            largest = max(largest, square)
    return smallest, largest


@njit(cache=True, nogil=True, error_model="numpy")
def _turns(vertices: Floats, count: int, shrink: float, lengths: Floats, tangents: Floats) -> bool:
    """Length of each side and tan(turn / 2) of each vertex; whether it turns left at every vertex, and once in all."""
    in_x = (vertices[0, 0] - vertices[0, count - 1]) * shrink
    in_y = (vertices[1, 0] - vertices[1, count - 1]) * shrink
    before = math.sqrt(in_x * in_x + in_y * in_y)
    rounds = 0
    for i in range(count):
        after = i + 1 if i + 1 < count else 0
        out_x, out_y = (vertices[0, after] - vertices[0, i]) * shrink, (vertices[1, after] - vertices[1, i]) * shrink
        length = math.sqrt(out_x * out_x + out_y * out_y)
        cross = in_x * out_y - in_y * out_x
        dot = in_x * out_x + in_y * out_y
        if cross <= FLAT:
            return False
        rounds += in_y < 0.0 and out_y >= 0.0
        tangents[i] = cross / (before * length + dot) if dot > 0.0 else (before * length - dot) / cross
        lengths[i] = length
        in_x, in_y, before = out_x, out_y, length
    return rounds == 1


@njit(cache=True, nogil=True, error_model="numpy")
def _hull(vertices: Floats, count: int, shrink: float, x: Floats, y: Floats) -> int:
    """Replace vertices by those of their convex hull, counterclockwise (Andrew's chains, 1979); returns how many."""
    for i in range(1, count):
        at_x, at_y = vertices[0, i], vertices[1, i]
        k = i
        while k > 0 and (at_x < vertices[0, k - 1] or (at_x == vertices[0, k - 1] and at_y < vertices[1, k - 1])):
            vertices[0, k], vertices[1, k] = vertices[0, k - 1], vertices[1, k - 1]
            k -= 1
        vertices[0, k], vertices[1, k] = at_x, at_y
    size = 0
    fixed = 1
    for step in range(2 * count - 1):  # there along the lower chain, back along the upper one
        if step == count:
            fixed = size
        i = step if step < count else 2 * (count - 1) - step
        while size > fixed:
            in_x, in_y = (x[size - 1] - x[size - 2]) * shrink, (y[size - 1] - y[size - 2]) * shrink
            out_x, out_y = (vertices[0, i] - x[size - 1]) * shrink, (vertices[1, i] - y[size - 1]) * shrink
            if in_x * out_y - in_y * out_x > FLAT:
                break
            size -= 1
        x[size], y[size] = vertices[0, i], vertices[1, i]
        size += 1
    for i in range(size - 1):
        vertices[0, i], vertices[1, i] = x[i], y[i]
    return size - 1


@njit(cache=True, nogil=True, error_model="numpy")
def _shrink_to_point(times: Floats, tangents: Floats, count: int) -> float:
    """Time until a polygon has shrunk to a point or a segment; overwrites the lengths of its sides in ``times``."""
    for i in range(count):
        times[i] /= tangents[i] + tangents[i + 1 if i + 1 < count else 0]
    while count > 3:
        k = 0
        for i in range(1, count):
            if times[i] < times[k]:
                k = i
        now = times[k]
        before = k - 1 if k > 0 else count - 1
        after = k + 1 if k + 1 < count else 0
        beyond = after + 1 if after + 1 < count else 0
        product = tangents[k] * tangents[after]
        if product >= 1.0:  # the neighbours have turned by half a circle: they lie on each other
            return float(now)
        joined = (tangents[k] + tangents[after]) / (1.0 - product)
        left = (times[before] - now) * (tangents[before] + tangents[k])
        right = (times[after] - now) * (tangents[after] + tangents[beyond])
        times[before] = now + left / (tangents[before] + joined)
        times[after] = now + right / (joined + tangents[beyond])
        tangents[after] = joined
        count -= 1
        for i in range(k, count):
            times[i] = times[i + 1]
            tangents[i] = tangents[i + 1]
    return float(min(times[0], times[1], times[2]))


@njit(cache=True, nogil=True, error_model="numpy")
def _inradius(vertices: Floats, count: int, shrink: float, most: float, times: Floats, tangents: Floats) -> float:
    """Radius of the largest inscribed circle; ``most`` is double area / perimeter. May reduce and sort the vertices."""
    convex = count > 3 and _turns(vertices, count, shrink, times, tangents)
    if count > 3 and not convex:
        # rounding has crowded vertices, or bent a side inwards at one
        count = _hull(vertices, count, shrink, times, tangents)
        convex = count > 3 and _turns(vertices, count, shrink, times, tangents)
    if not convex:  # a triangle, or as thin as rounding
        return most
    return min(max(_shrink_to_point(times, tangents, count), 0.5 * most), most)


@njit(cache=True, nogil=True, error_model="numpy")
def _measure(
    points: Floats,
    starts: Int64s,
    corners: Int32s,
    lines: Int32s,
    start: int,
    stop: int,
    noise: float,
    area: Floats,
    centroid_u: Floats,
    centroid_v: Floats,
    perimeter: Floats,
    sides: Int64s,
    eccentricity: Floats,
    elongation: Floats,
    inradius: Floats,
) -> int:
    """Measure the polygons ``start`` to ``stop``; returns the first unusable one (with its area and sides), or -1."""
    room = 0
    for k in range(start, stop):
        room = max(room, starts[k + 1] - starts[k])
    x, y = np.empty(room), np.empty(room)
    times, tangents = np.empty(room + 1), np.empty(room + 1)
    vertices = np.empty((2, room))
    for k in range(start, stop):
        n = starts[k + 1] - starts[k]
        here = lines[starts[k] : starts[k + 1]]
        count, extent = _gather(points, corners[starts[k] : starts[k + 1]], here, x, y, vertices)
        # A power of two scales without rounding; 2^-1000 leaves a subnormal size without an infinite inverse.
        exponent = max(math.frexp(extent)[1], -1000)
        scale, shrink = math.ldexp(1.0, exponent), math.ldexp(1.0, -exponent)
        twice, centre_x, centre_y, weight = _fan(x, y, n, shrink)
        length, sides[k] = _walk(x, y, here, shrink)
        if (twice < 0.0 or count < 3) and abs(twice) * scale > noise:
            area[k], sides[k] = 0.5 * twice * scale * scale, count
            return k
        perimeter[k] = length * scale
        smallest, largest = _distances(vertices, count, shrink)
        elongation[k] = math.sqrt(largest) * scale / (math.sqrt(smallest) * scale + SMALLEST_DISTANCE)
        if twice > FLAT:
            area[k] = 0.5 * twice * scale * scale
            eccentricity[k] = _eccentricity(x, y, n, shrink, centre_x, centre_y, weight)
            inradius[k] = _inradius(vertices, count, shrink, twice / length, times, tangents) * scale
        else:
            area[k] = inradius[k] = 0.0
            eccentricity[k] = 1.0 if extent > 0.0 else 0.0
            for i in range(n):
                centre_x += (x[i] - x[0]) * shrink / n
                centre_y += (y[i] - y[0]) * shrink / n
        centroid_u[k] = x[0] + centre_x * scale
        centroid_v[k] = y[0] + centre_y * scale
    return -1


def measure_polygons(
    points: Floats, starts: Int64s, corners: Int32s, lines: Int32s, threads: int | None = None
) -> PolygonMeasures:
    """See :func:`regiongrid.kernels.polygons.measure_polygons`."""
    polygons = starts.size - 1
    area, centroid_u, centroid_v, perimeter, eccentricity, elongation, inradius = np.empty((7, polygons))
    measures = PolygonMeasures(
        area=area,
        centroid_u=centroid_u,
        centroid_v=centroid_v,
        perimeter=perimeter,
        sides=np.empty(polygons, np.int64),
        eccentricity=eccentricity,
        elongation=elongation,
        inradius=inradius,
    )
    noise = ROUNDING * float(np.abs(points).max(initial=0.0))

    def measure(start: int, stop: int) -> None:
        unusable = _measure(
            points,
            starts,
            corners,
            lines,
            start,
            stop,
            noise,
            measures.area,
            measures.centroid_u,
            measures.centroid_v,
            measures.perimeter,
            measures.sides,
            measures.eccentricity,
            measures.elongation,
            measures.inradius,
        )
        if unusable >= 0:
            raise unusable_outline(unusable, float(area[unusable]), int(measures.sides[unusable]))

    run_spans(measure, polygons, SPAN, threads if threads is not None else cpu_count())
    return measures
