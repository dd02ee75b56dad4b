"""Polygon measures: closed forms, exact rationals, a linear program, scikit-image, and what rounding does."""

import dataclasses
import itertools
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull
from skimage.draw import polygon2mask
from skimage.measure import regionprops

from regiongrid.errors import InputError
from regiongrid.kernels.polygons import PolygonMeasures, cpu, measure_polygons

BACKENDS = ["cpu", "reference"]
FIELDS = [field.name for field in dataclasses.fields(PolygonMeasures)]
ULP = 2.0**-52


def pack(outlines, lines=None):
    """Arguments of measure_polygons for separate outlines; by default every side lies on a line of its own."""
    points = np.concatenate([np.asarray(outline, float) for outline in outlines])
    starts = np.cumsum([0, *(len(outline) for outline in outlines)])
    numbers = [np.arange(len(outline)) for outline in outlines] if lines is None else lines
    # rows of the points in another order than the corners
    corners = np.arange(len(points), dtype=np.int32)[::-1].copy()
    return points[::-1].copy(), starts, corners, np.concatenate(numbers).astype(np.int32)


def measure(outline, lines=None, backend="cpu"):
    """The measures of one polygon, as numbers."""
    measures = measure_polygons(*pack([outline], None if lines is None else [np.asarray(lines)]), backend=backend)
    return PolygonMeasures(**{name: getattr(measures, name)[0] for name in FIELDS})


def turned(outline, angle):
    return np.asarray(outline) @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def random_hull(seed, count, log_aspect, angle):
    """Convex hull of random points, stretched along u and turned."""
    points = np.random.default_rng(seed).normal(size=(count, 2))
    hull = points[ConvexHull(points).vertices]
    return turned(hull * [1.0, 10.0**-log_aspect], angle)


def hulls(largest_log_aspect, most_points=14):
    return st.builds(
        random_hull,
        st.integers(0, 2**32 - 1),
        st.integers(3, most_points),
        st.floats(0, largest_log_aspect),
        st.floats(0, 2 * np.pi),
    )


def regular(n, radius=1.0):
    angles = 2 * np.pi * np.arange(n) / n
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rectangle(width, height):
    return np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])


def thinness(outline):
    """About length over width: rounding of the corners is magnified by it."""
    measures = measure(outline)
    return float(np.ptp(outline, axis=0).max() * measures.perimeter / measures.area)


def assert_close(actual, expected, *, thin=1.0, size=1.0, skip=()):
    """All measures agree up to the rounding of corners of a polygon that is ``thin`` times as long as wide."""
    tolerance = 1e-14 * thin
    allowed = {
        "area": tolerance * expected.area,
        "centroid_u": tolerance * size,
        "centroid_v": tolerance * size,
        "perimeter": 1e-14 * expected.perimeter,
        "sides": 0,
        "elongation": 1e-13 * expected.elongation,
        "inradius": tolerance * expected.inradius,
    }
    for name, bound in allowed.items():
        if name not in skip:
            got, wanted = getattr(actual, name), getattr(expected, name)
            assert np.all(np.abs(got - wanted) <= bound), f"{name}: {got!r}, expected {wanted!r} within {bound!r}"
    # the square is what rounding leaves alone
    assert np.all(np.abs(actual.eccentricity**2 - expected.eccentricity**2) <= 1e-13)


def exact_twice(outline):
    """Double signed area, without rounding if the corners have few digits."""
    after = np.roll(outline, -1, axis=0)
    return float(outline[:, 0] @ after[:, 1] - outline[:, 1] @ after[:, 0])


def exact_moments(outline):
    """Area, centroid and eccentricity of the float64 corners in rational arithmetic."""
    corners = [(Fraction(float(u)), Fraction(float(v))) for u, v in outline]

    def sides(points):
        return [(x, y, a, b, x * b - a * y) for (x, y), (a, b) in zip(points, points[1:] + points[:1])]

    twice = sum(cross for *_, cross in sides(corners))
    centre_u = sum(cross * (x + a) for x, _, a, _, cross in sides(corners)) / (3 * twice)
    centre_v = sum(cross * (y + b) for _, y, _, b, cross in sides(corners)) / (3 * twice)
    about = sides([(u - centre_u, v - centre_v) for u, v in corners])
    square_u = sum(cross * (x * x + x * a + a * a) for x, _, a, _, cross in about) * 2
    square_v = sum(cross * (y * y + y * b + b * b) for _, y, _, b, cross in about) * 2
    mixed = sum(cross * (x * b + 2 * x * y + 2 * a * b + a * y) for x, y, a, b, cross in about)
    difference = (((square_u - square_v) / 2) ** 2 + mixed**2) / ((square_u + square_v) / 2) ** 2
    quotient = np.sqrt(float(difference))
    return float(twice / 2), float(centre_u), float(centre_v), float(np.sqrt(2 * quotient / (1 + quotient)))


def inradius_by_linear_program(outline):
    """Largest r with a centre at distance r or more from every side, by scipy's solver, for well-shaped polygons."""
    steps = np.roll(outline, -1, axis=0) - outline
    normals = np.stack([steps[:, 1], -steps[:, 0]], axis=1) / np.linalg.norm(steps, axis=1)[:, None]
    found = linprog(
        [0, 0, -1],
        A_ub=np.column_stack([normals, np.ones(len(outline))]),
        b_ub=(normals * outline).sum(axis=1),
        bounds=[(None, None), (None, None), (0, None)],
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.success
    return found.x[2]


@settings(max_examples=150)
@given(outline=hulls(5), offset=st.floats(-10, 10), log_scale=st.integers(-12, 12))
def test_cpu_matches_reference(outline, offset, log_scale):
    outline = outline * 10.0**log_scale + offset * 10.0**log_scale
    assert_close(
        measure(outline), measure(outline, backend="reference"), thin=thinness(outline), size=20 * 10.0**log_scale
    )


@settings(max_examples=150)
@given(outline=hulls(6), offset=st.sampled_from([0.0, 1.0, 1e6]))
def test_moments_match_rational_arithmetic(outline, offset):
    outline = outline + offset
    area, centre_u, centre_v, eccentricity = exact_moments(outline)
    thin = thinness(outline)
    measures = measure(outline)
    assert measures.area == pytest.approx(area, rel=1e-15 * thin)
    assert measures.centroid_u == pytest.approx(centre_u, abs=1e-15 * (thin + abs(offset)))
    assert measures.centroid_v == pytest.approx(centre_v, abs=1e-15 * (thin + abs(offset)))
    assert measures.eccentricity == pytest.approx(eccentricity, abs=min(1e-9, 1e-15 / eccentricity))


@settings(max_examples=60)
@given(outline=hulls(1, most_points=60))
def test_inradius_matches_a_linear_program(outline):
    expected = inradius_by_linear_program(outline)
    assert measure(outline).inradius == pytest.approx(expected, rel=1e-8)
    assert measure(outline, backend="reference").inradius == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n", [20, 200, 500])
def test_inradius_of_many_corners_at_random_angles(n):
    """No two sides of these vanish together, and the shortest are far shorter than the others."""
    angles = np.sort(np.random.default_rng(n).uniform(0, 2 * np.pi, n))
    outline = np.stack([np.cos(angles), 0.5 * np.sin(angles)], axis=1)
    measures = measure(outline)
    assert measures.inradius == pytest.approx(inradius_by_linear_program(outline), abs=1e-9)
    assert measures.sides == n
    if n <= 200:
        assert measures.inradius == pytest.approx(measure(outline, backend="reference").inradius, rel=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 16, 101, 300])
def test_regular_polygon(n, backend):
    radius = 0.3
    measures = measure(regular(n, radius) + np.array([5.0, -2.0]), backend=backend)
    half = np.pi / n
    longest = 2 * radius * (1.0 if n % 2 == 0 else np.cos(half / 2))
    assert measures.area == pytest.approx(n / 2 * radius**2 * np.sin(2 * half), rel=1e-13)
    assert measures.perimeter == pytest.approx(2 * n * radius * np.sin(half), rel=1e-13)
    assert measures.inradius == pytest.approx(radius * np.cos(half), rel=1e-13)
    assert measures.elongation == pytest.approx(longest / (2 * radius * np.sin(half) + 1e-10), rel=1e-12)
    assert (measures.centroid_u, measures.centroid_v) == pytest.approx((5.0, -2.0), abs=1e-14)
    assert measures.sides == n
    assert measures.eccentricity <= 1e-7  # its square is zero up to rounding


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.5])
@pytest.mark.parametrize("ratio", [1.0, 0.999, 0.5, 1e-2, 1e-4, 1e-6])
def test_rectangle(ratio, angle, backend):
    measures = measure(turned(rectangle(3.0, 3.0 * ratio), angle), backend=backend)
    assert measures.area == pytest.approx(9 * ratio, rel=1e-15 / ratio)
    assert measures.perimeter == pytest.approx(6 + 6 * ratio, rel=1e-14)
    assert measures.inradius == pytest.approx(1.5 * ratio, rel=1e-15 / ratio)
    assert measures.eccentricity**2 == pytest.approx(1 - ratio**2, abs=1e-14)
    if ratio < 1.0:
        assert measures.eccentricity == pytest.approx(np.sqrt(1 - ratio**2), abs=1e-9)
    assert measures.elongation == pytest.approx(3 * np.hypot(1, ratio) / (3 * ratio + 1e-10), rel=1e-15 / ratio)
    assert measures.sides == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_triangle_of_3_4_5(backend):
    measures = measure([[1.0, 1.0], [5.0, 1.0], [1.0, 4.0]], backend=backend)
    assert (measures.area, measures.perimeter, measures.sides) == (6.0, 12.0, 3)
    assert measures.inradius == pytest.approx(1.0, rel=1e-15)
    assert (measures.centroid_u, measures.centroid_v) == pytest.approx((7 / 3, 2.0), rel=1e-15)
    assert measures.elongation == pytest.approx(5 / (3 + 1e-10), rel=1e-15)
    # covariance of a triangle: that of its corners / 4, here proportional to [[32, -12], [-12, 18]]
    half_gap = np.hypot(7, 12)
    assert measures.eccentricity == pytest.approx(np.sqrt(2 * half_gap / (25 + half_gap)), rel=1e-15)


@settings(max_examples=100)
@given(
    outline=st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)), min_size=3, max_size=3),
    log_height=st.integers(0, 300),
)
def test_triangles_down_to_the_thinnest(outline, log_height):
    outline = np.array(outline, float)
    twice = np.linalg.det(np.diff(outline, axis=0)).round()
    assume(twice != 0)
    outline = (outline if twice > 0 else outline[::-1]) * [1.0, 10.0**-log_height]
    measures = measure(outline)
    height = 10.0**-log_height
    assert measures.inradius == pytest.approx(2 * measures.area / measures.perimeter, rel=1e-15, abs=0)
    if log_height < 280:
        assert measures.area == pytest.approx(abs(twice) / 2 * height, rel=1e-12)
    assert 0.0 <= measures.eccentricity <= 1.0
    assert np.isfinite(measures.elongation)
    if log_height > 20:
        assert measures.eccentricity > 0.99 or np.ptp(outline[:, 0]) == 0


@settings(max_examples=100)
@given(outline=hulls(3), extra=st.lists(st.integers(0, 4), min_size=14, max_size=14), seed=st.integers(0, 1000))
def test_corners_inside_a_side_change_nothing(outline, extra, seed):
    rng = np.random.default_rng(seed)
    corners, lines = [], []
    for number, (corner, after) in enumerate(zip(outline, np.roll(outline, -1, axis=0))):
        places = [0.0, *np.sort(rng.uniform(0, 1, extra[number]))]
        corners += [corner + place * (after - corner) for place in places]
        lines += [number] * len(places)
    roll = int(rng.integers(len(corners)))  # so that a side may run across the end of the list
    for backend in BACKENDS:
        divided = measure(np.roll(corners, roll, axis=0), np.roll(lines, roll), backend)
        assert_close(divided, measure(outline), thin=thinness(outline))


@settings(max_examples=100)
@given(outline=hulls(1), seed=st.integers(0, 2**32 - 1))
def test_corners_that_rounding_has_crowded(outline, seed):
    """Corners within a few roundings of each other, in any order: sides between them may point anywhere."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, len(outline))
    crowd = np.repeat(outline, counts, axis=0)
    crowd += rng.integers(-2, 3, crowd.shape) * ULP * (rng.random((len(crowd), 1)) < 0.8)
    clean, crowded = measure(outline), measure(crowd)
    assert crowded.sides == np.count_nonzero((crowd != np.roll(crowd, -1, axis=0)).any(axis=1))
    assert_close(crowded, clean, thin=thinness(outline), skip=("sides", "elongation"))
    corners = outline[:, None] - outline
    farthest = np.linalg.norm(corners, axis=-1).max()
    if crowd.shape != outline.shape:
        assert crowded.elongation == pytest.approx(farthest / 1e-10, rel=1e-4)


def test_crowded_corners_that_run_around_once_more():
    """Every corner of this square turns left, those near (1, 1) by a full circle too much."""
    loop = 1 - ULP * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    assert_close(measure([[0, 0], [1, 0], *loop, [0, 1]]), measure(rectangle(1, 1)), skip=("sides", "elongation"))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150)
@given(outline=hulls(18), offset=st.floats(-1, 1))
def test_slivers_as_thin_as_rounding_keep_their_bounds(outline, offset, backend):
    outline = outline + offset
    measures = measure(outline, backend=backend)
    for name in FIELDS:
        assert np.isfinite(getattr(measures, name)), name
    assert measures.area >= 0
    most = 2 * measures.area / measures.perimeter
    assert (0.5 - 1e-14) * most <= measures.inradius <= (1 + 1e-14) * most
    assert 0 <= measures.eccentricity <= 1
    if backend == "cpu":
        centroid = np.array([measures.centroid_u, measures.centroid_v])
        assert (centroid >= outline.min(axis=0) - 1e-15).all()
        assert (centroid <= outline.max(axis=0) + 1e-15).all()


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(4, 12), place=st.sampled_from([1.0, -1.5, 2.0**30]))
def test_polygons_of_a_few_roundings_lose_nothing(seed, count, place):
    """A polygon on the finest grid of float64 numbers about ``place`` has the measures of its copy on the integers."""
    grid = np.random.default_rng(seed).integers(0, 9, (count, 2))
    assume(np.linalg.matrix_rank(grid - grid[0]) == 2)
    outline = grid[ConvexHull(grid).vertices].astype(float)
    step = np.spacing(abs(place))
    large, small = measure(outline), measure(place + outline * step)
    assert small.area == large.area * step * step
    assert small.perimeter == large.perimeter * step
    assert small.inradius == large.inradius * step
    assert small.eccentricity == large.eccentricity
    assert small.sides == large.sides
    assert small.centroid_u == pytest.approx(place + large.centroid_u * step, abs=step)
    assert small.centroid_v == pytest.approx(place + large.centroid_v * step, abs=step)


@settings(max_examples=60)
@given(outline=hulls(4), exponent=st.sampled_from([-1060, -500, -330, -30, 30, 330, 490]))
def test_a_power_of_two_scales_exactly(outline, exponent):
    outline = np.round(outline * 2.0**8) / 2.0**8  # few digits, so that the smallest copies are exact as well
    assume(len(np.unique(outline, axis=0)) >= 3 and exact_twice(outline) > 0)
    plain, scaled = measure(outline), measure(np.ldexp(outline, exponent))
    assert scaled.area == np.ldexp(plain.area, 2 * exponent)  # below about 1e-308 it underflows
    for name in ("perimeter", "inradius", "centroid_u", "centroid_v"):
        wanted = np.ldexp(getattr(plain, name), exponent)
        assert getattr(scaled, name) == pytest.approx(wanted, rel=1e-15, abs=2.0**-1074), name
    assert scaled.eccentricity == pytest.approx(plain.eccentricity, rel=1e-15)
    assert scaled.sides == plain.sides
    distances = [np.hypot(*(one - other)) for one, other in itertools.combinations(outline, 2)]
    wanted = np.ldexp(max(distances), exponent) / (np.ldexp(min(distances), exponent) + 1e-10)
    assert scaled.elongation == pytest.approx(wanted, rel=1e-14)


@settings(max_examples=100)
@given(outline=hulls(3), angle=st.floats(0, 6.3), shift=st.floats(-1, 1), roll=st.integers(0, 13))
def test_motions_and_the_first_corner_change_nothing(outline, angle, shift, roll):
    plain = measure(outline)
    thin = thinness(outline)
    rolled = measure(np.roll(outline, roll, axis=0))
    assert_close(rolled, plain, thin=thin)
    moved = measure(turned(outline, angle) + shift)
    centre = turned([[plain.centroid_u, plain.centroid_v]], angle)[0] + shift
    expected = dataclasses.replace(plain, centroid_u=centre[0], centroid_v=centre[1])
    smallest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(outline, 2))
    assert moved.elongation == pytest.approx(plain.elongation, rel=1e-14 / smallest)
    assert_close(moved, expected, thin=10 * thin, skip=("elongation",))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), log_aspect=st.floats(0, 0.6), angle=st.floats(0, 6.3))
def test_matches_skimage_on_a_raster(seed, log_aspect, angle):
    outline = random_hull(seed, 12, log_aspect, angle)
    outline = 20 + (outline - outline.min(axis=0)) * 360 / np.ptp(outline, axis=0).max()
    (raster,) = regionprops(polygon2mask((400, 400), outline).astype(np.uint8))
    measures = measure(outline)
    width = 2 * measures.inradius
    assert measures.area == pytest.approx(raster.area, rel=3 / width)
    assert (measures.centroid_u, measures.centroid_v) == pytest.approx(raster.centroid, abs=2)
    assert measures.eccentricity**2 == pytest.approx(raster.eccentricity**2, abs=6 / width)
    assert measures.perimeter == pytest.approx(raster.perimeter_crofton, rel=0.05)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    outlines = [random_hull(seed, 3 + seed % 9, seed % 7, seed) for seed in range(500)]
    with mock.patch.object(cpu, "SPAN", 37):
        one = measure_polygons(*pack(outlines), threads=1)
        more = measure_polygons(*pack(outlines), threads=threads)
    for name in FIELDS:
        assert getattr(one, name).tobytes() == getattr(more, name).tobytes(), name
    alone = [measure(outline) for outline in outlines]
    for name in FIELDS:
        assert getattr(one, name).tolist() == [getattr(measures, name) for measures in alone], name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("outline", "centre", "perimeter", "sides"),
    [
        ([[0, 0], [1, 1], [3, 3]], (4 / 3, 4 / 3), 6 * np.sqrt(2), 3),
        ([[0, 0], [0, 0], [2, 0], [2, 0]], (1, 0), 4, 2),
        ([[1e-100, 0], [3e-100, 0], [2e-100, 0]], (2e-100, 0), 4e-100, 3),
    ],
    ids=["diagonal", "doubled ends", "tiny"],
)
def test_no_area(outline, centre, perimeter, sides, backend):
    measures = measure(outline, backend=backend)
    assert (measures.area, measures.inradius, measures.eccentricity, measures.sides) == (0, 0, 1, sides)
    assert (measures.centroid_u, measures.centroid_v) == pytest.approx(centre, rel=1e-15)
    assert measures.perimeter == pytest.approx(perimeter, rel=1e-15)
    assert np.isfinite(measures.elongation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_point(backend):
    measures = measure([[0.1, 0.2]] * 4, backend=backend)
    assert (measures.centroid_u, measures.centroid_v) == (0.1, 0.2)
    for name in ("area", "perimeter", "sides", "eccentricity", "elongation", "inradius"):
        assert getattr(measures, name) == 0, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_may_turn_a_polygon_over(backend):
    clockwise = 1 + np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]) * ULP
    measures = measure(clockwise, backend=backend)
    assert (measures.area, measures.inradius, measures.eccentricity) == (0, 0, 1)
    assert measures.centroid_u == pytest.approx(1, abs=2 * ULP)
    assert measures.perimeter == pytest.approx((2 + np.sqrt(2)) * ULP, rel=1e-15)


def test_rounding_may_cross_sides():
    """The signed triangles of this polygon, weighed as they are, have their centroid below all its corners."""
    outline = 1 + np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [2.0, 2.0]]) * ULP
    measures = measure(outline)
    assert measures.area == ULP**2
    assert 1 <= measures.centroid_u <= 1 + 3 * ULP
    assert 1 <= measures.centroid_v <= 1 + 2 * ULP
    assert 0 <= measures.eccentricity <= 1
    assert 0 <= measures.inradius <= 2 * measures.area / measures.perimeter


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("lines", "sides"),
    [
        ([0, 1, 2, 3, 4], 5),
        ([0, 0, 1, 2, 2], 3),
        ([2, 0, 1, 1, 2], 3),
        ([5, 6, 5, 6, 7], 5),
        ([-1, -1, 3, 2, 9], 4),
    ],
    ids=str,
)
def test_sides_are_cyclic_runs_of_one_line(lines, sides, backend):
    assert measure(regular(5), lines, backend).sides == sides


@pytest.mark.parametrize("backend", BACKENDS)
def test_sides_of_no_length_do_not_count(backend):
    outline = [[0, 0], [2, 0], [2, 0], [2, 0], [4, 0], [4, 3], [4, 3]]
    measures = measure(outline, [0, 8, 9, 0, 1, 7, 2], backend)
    assert measures.sides == 3
    assert measures.area == 6.0
    assert measures.inradius == pytest.approx(2 * 6 / 12, rel=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_polygons(backend):
    none = np.empty(0, np.int32)
    measures = measure_polygons(np.empty((0, 2)), np.zeros(1, np.int64), none, none, backend=backend)
    for name in FIELDS:
        assert getattr(measures, name).shape == (0,)
    assert measures.sides.dtype == np.int64


@pytest.mark.parametrize("backend", BACKENDS)
def test_clockwise_polygons_are_refused(backend):
    outlines = [regular(4)] * 5 + [regular(4)[::-1]] + [regular(4)] * 3
    with pytest.raises(InputError, match=r"polygon 5 must run counterclockwise.* signed area of -2 and 4 lines"):
        measure_polygons(*pack(outlines), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_area_needs_three_lines(backend):
    with pytest.raises(InputError, match=r"polygon 0 .* at least three lines, got a signed area of 2 and 2 lines"):
        measure(regular(4), [0, 0, 1, 1], backend)


def changed(**replaced):
    arguments = dict(zip(("points", "starts", "corners", "lines"), pack([regular(3), regular(4)])))
    return {**arguments, **replaced}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(points=[[0.0, 0.0]]), "points must be a numpy array, got list"),
        (changed(points=np.zeros((7, 2), np.float32)), r"points must be a C-contiguous float64 .* got float32"),
        (changed(points=np.zeros((7, 3))), r"points must have shape \[V, 2\], got \(7, 3\)"),
        (changed(points=np.zeros((2, 7)).T), "points must be a C-contiguous"),
        (changed(points=np.array([[0, 0], [0, np.nan]] * 4)), r"finite .* point 1 is \[ 0. nan\]"),
        (changed(points=np.array([[0, 0], [-np.inf, 0]] * 4)), r"finite .* point 1 is \[-inf"),
        (changed(points=np.full((7, 2), 2e150)), r"at most 1e\+150 in size, point 0"),
        (changed(starts=np.array([0, 3, 7], np.int32)), "starts must be a C-contiguous int64"),
        (changed(starts=np.array([0, 3, 6])), r"starts must begin with 0 and end with the 7 corners, got \[0, 6\]"),
        (changed(starts=np.array([1, 4, 7])), r"starts must begin with 0 and end with the 7 corners, got \[1, 7\]"),
        (changed(starts=np.empty(0, np.int64)), "starts must begin with 0 .* got none"),
        (changed(starts=np.array([0, 5, 7])), "at least three corners, polygon 1 has 2"),
        (changed(starts=np.array([0, 9, 7])), "at least three corners, polygon 1 has -2"),
        (changed(lines=np.zeros(6, np.int32)), "got 6 for 7 corners"),
        (changed(corners=np.arange(1, 8, dtype=np.int32)), "rows of the 7 points, got 1 to 7"),
        (changed(corners=np.arange(-1, 6, dtype=np.int32)), "rows of the 7 points, got -1 to 5"),
        (changed(backend="gpu"), "backend must be 'cpu' or 'reference', got 'gpu'"),
    ],
)
def test_unusable_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        measure_polygons(**arguments)
