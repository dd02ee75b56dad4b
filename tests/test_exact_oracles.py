"""The oracles against what is known by hand, against plain evaluation, and against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import plain_hashes
from oracles import (
    BENDS,
    FAMILIES,
    GENERIC,
    SCALES,
    Case,
    Corners,
    Dyadic,
    Region,
    boundary_length,
    chain,
    cut_by_output,
    degenerate_network,
    degenerate_networks,
    distance,
    double_area,
    fraction_pattern,
    fraction_regions,
    generic_network,
    linear_region_count,
    partition_sides,
    regioncam_count,
    regioncam_partition,
    slopes,
    split,
)

import regiongrid as rg
from regiongrid.network.program import Breakpoint, Maximum

SQUARE = ((-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1))
floats = st.floats(allow_nan=False, allow_infinity=False, width=64)


def lines_case(lines: Sequence[Sequence[float]], half_width: float = 1.0, bend: Breakpoint | None = None) -> Case:
    """One unit a row (a, b, c): it is on where a u + b v + c > 0. The output is the sum of all units."""
    rows = np.array(lines, dtype=float)
    layers = [(rows[:, :2], rows[:, 2]), (np.ones((1, len(rows))), np.zeros(1))]
    return Case("lines", chain(layers, [bend]), rg.Slice.square(half_width))


def regions_of(lines: Sequence[Sequence[float]], half_width: float = 1.0, bend: Breakpoint | None = None) -> int:
    return len(fraction_regions(lines_case(lines, half_width, bend).program))


@given(st.lists(floats, min_size=1, max_size=4), st.lists(floats, min_size=4, max_size=4))
def test_dyadic_numbers_are_fractions(a: list[float], b: list[float]) -> None:
    x, y = Dyadic.of(np.array(a)), Dyadic.of(np.array(b))[: len(a)]
    assert x.fractions() == [Fraction(value) for value in a]
    assert (x - y).fractions() == [Fraction(p) - Fraction(q) for p, q in zip(a, b)]
    assert (x * y).fractions() == [Fraction(p) * Fraction(q) for p, q in zip(a, b)]


@given(st.lists(st.tuples(*[st.integers(-9, 9)] * 3), min_size=1, max_size=6))
def test_split_keeps_area_and_convexity_and_sides(lines: list[tuple[int, int, int]]) -> None:
    parts: list[Corners] = [SQUARE]
    for line in lines:
        pieces = [piece for part in parts for piece in split(part, line)]
        parts = [piece for piece in pieces if piece is not None]
    assert sum(double_area(part) for part in parts) == 8
    for part in parts:
        turns = [double_area(corners) for corners in zip(part, part[1:] + part[:1], part[2:] + part[:2])]
        assert min(turns) > 0
        for c, a, b in lines:
            signs = {(c * w + a * u + b * v > 0) - (c * w + a * u + b * v < 0) for u, v, w in part}
            assert not {-1, 1} <= signs


def test_split_counts_zero_as_off() -> None:
    assert split(SQUARE, (0, 0, 0)) == (None, SQUARE)
    assert split(SQUARE, (1, 1, 0)) == (SQUARE, None)  # u = -1 along a side, positive inside
    assert split(SQUARE, (-1, 1, 0)) == (None, SQUARE)
    on, off = split(SQUARE, (0, 1, 0))
    assert on is not None
    assert off is not None
    assert set(on) == {(0, -1, 1), (1, -1, 1), (1, 1, 1), (0, 1, 1)}
    assert double_area(off) == 4


@pytest.mark.parametrize(("n", "half_width"), [(1, 1.0), (3, 1.0), (8, 1.0), (15, 2.0), (22, 0.7), (12, 1e6)])
def test_lines_in_general_position(n: int, half_width: float) -> None:
    """1 + lines that meet the square + crossings in it; over (nearly) the whole plane 1 + n + n (n - 1) / 2."""
    rows = np.random.default_rng(n).standard_normal((n, 3))
    corners = half_width * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    values = rows[:, :2] @ corners.T + rows[:, 2:]
    met = int((np.abs(np.sign(values).sum(axis=1)) < 4).sum())
    crossings = [np.linalg.solve([p[:2], q[:2]], [-p[2], -q[2]]) for p, q in itertools.combinations(rows, 2)]
    inside = sum(bool((np.abs(crossing) < half_width).all()) for crossing in crossings)
    case = lines_case(rows.tolist(), half_width)
    assert len(fraction_regions(case.program)) == 1 + met + inside
    if half_width == 1e6:
        assert 1 + met + inside == 1 + n + n * (n - 1) // 2
    else:
        assert regioncam_count(case.program) == 1 + met + inside


KNOWN: dict[str, tuple[Sequence[Sequence[float]], Breakpoint | None, int]] = {
    "pencil through the origin": ([(1, k, 0) for k in range(-3, 4)], None, 14),
    "pencil through (1/2, 1/4)": ([(4, 4 * k, -2 - k) for k in range(1, 6)], None, 10),
    "pencil through a corner of the square": ([(k, -1, 1 - k) for k in range(1, 5)], None, 5),
    "one line three times": ([(1, 2, 0), (1, 2, 0), (2, 4, 0)], None, 2),
    "w and -w": ([(1, 2, 0.5), (-1, -2, -0.5)], None, 2),
    "along the four sides": ([(1, 0, -1), (-1, 0, 1), (1, 0, 1), (0, 1, -1), (0, 1, 1)], None, 1),
    "through corners only": ([(1, 1, -2), (1, 1, 2), (1, -1, 2)], None, 1),
    "no line at all": ([(0, 0, 0), (0, 0, 1), (0, 0, -1)], None, 1),
    "grid of 4 by 3 lines": ([(8, 0, k) for k in (-3, 0, 1, 5)] + [(0, 8, k) for k in (-2, 2, 4)], None, 20),
    "clamp": ([(3, 0, 0)], BENDS["hardtanh"](1), 3),
    "clamp, one threshold inside": ([(1, 0, 0.5)], BENDS["hardtanh"](1), 2),
    "three thresholds, crossed": ([(1, 0, 0), (0, 1, 0)], slopes(2, [-0.5, 0, 0.5], [1, 2, 3, 4]), 16),
    "largest of two": ([(1, 0, 0), (0, 1, 0)], BENDS["maximum"](2), 2),
    "largest of three equal": ([(1, 1, 0)] * 3, BENDS["maximum"](3), 1),
    "upper envelope": ([(1, 0, 0), (0, 0, 0.5), (-1, 0, 0)], Maximum(np.array([[0, 1, 2]] * 3), 3), 3),
    "lower envelope": ([(1, 0, 0), (0, 0, 0.5), (-1, 0, 0)], Maximum(np.array([[0, 1, 2]] * 3), 3, -1), 2),
    "envelope touched in its corner": ([(1, 0, 0), (0, 0, 0), (-1, 0, 0)], Maximum(np.array([[0, 1, 2]] * 3), 3), 2),
    "windows with fewer entries": ([(1, 0, 0), (0, 1, 0), (-1, 0, 0)], BENDS["pool"](3), 5),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_counts(name: str) -> None:
    lines, bend, count = KNOWN[name]
    assert regions_of(lines, bend=bend) == count


def test_tied_maximum_takes_the_first_winner() -> None:
    (region,) = fraction_regions(lines_case([(1, 1, 0)] * 3, bend=BENDS["pool"](3)).program)
    assert region.decisions == ((1, 0, 0),)  # the first window is (none, 0, 1)


def test_sawtooth_doubles_with_every_layer() -> None:
    """|2 |2 |u| - 1| - 1|: its kinks cut the square into 2, 4, 8 strips of equal width."""
    fold = np.array([[2.0]]), np.array([-1.0])
    layers = [(np.array([[1.0, 0.0]]), np.zeros(1)), fold, fold, fold]
    case = Case("sawtooth", chain(layers, [BENDS["abs"](1)] * 3), rg.Slice.square())
    regions = fraction_regions(case.program)
    assert [region.area for region in regions] == [Fraction(1, 2)] * 8
    assert [len({region.prefixes[k] for region in regions}) for k in range(3)] == [2, 4, 8]
    assert {region.depth for region in regions} == {3}
    sides = partition_sides(regions)
    assert [boundary_length(regions, sides, k) for k in range(4)] == [0, 2, 6, 14]
    output = case.network.program.output
    assert output is not None
    assert linear_region_count(regions, sides, output) == 8
    slopes_found = {region.affine_map(output)[0][1] for region in regions}
    assert slopes_found == {-8, 8}
    assert sorted(region.on_border(1.0) for region in regions) == [(True, True)] * 8


def test_units_without_a_way_out_make_no_linear_region() -> None:
    layers = [(np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2)), (np.array([[1.0, 0.0]]), np.zeros(1))]
    case = Case("blind", chain(layers, [None]), rg.Slice.square())
    regions = fraction_regions(case.program)
    output = case.network.program.output
    assert output is not None
    assert len(regions) == 4
    assert linear_region_count(regions, partition_sides(regions), output) == 2


def test_decision_boundary_and_level_of_a_plane() -> None:
    """Outputs u, v and 1/2: three half-lines from (1/2, 1/2); u and v are 1/4 on a line of length 2 each."""
    layers = [(np.eye(2), np.full(2, 2.0)), (np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), np.array([-2, -2, 0.5]))]
    case = Case("plane", chain(layers, [None]), rg.Slice.square())
    (region,) = fraction_regions(case.program)
    output = case.network.program.output
    assert output is not None
    thirds = cut_by_output([region], output, Maximum(np.array([[0, 1, 2]]), 3))
    assert sorted(piece.area for piece in thirds) == [Fraction(7, 8), Fraction(7, 8), Fraction(9, 4)]
    length = boundary_length(thirds, partition_sides(thirds), 2) - boundary_length(thirds, partition_sides(thirds), 1)
    assert length == pytest.approx(1.5 + 1.5 + math.sqrt(0.5), rel=1e-15)
    halves = cut_by_output([region], output, slopes(3, [0.25], [0, 1]))
    assert boundary_length(halves, partition_sides(halves), 2) == 2 + 2


def check_partition(case: Case, regions: list[Region]) -> None:
    """What holds for every partition: areas, patterns, Euler's formula, strictly convex polygons, lengths."""
    h = Fraction(case.slice.half_width)
    assert sum(region.area for region in regions) == 4 * h * h
    assert len({region.decisions for region in regions}) == len({region.hash for region in regions}) == len(regions)
    sides = partition_sides(regions)
    ends = {end for side in sides for end in side.ends}
    assert len(ends) - len(sides) + len(regions) == 1
    for region in regions:
        polygon = region.corners
        turns = [double_area(t) for t in zip(polygon, polygon[1:] + polygon[:1], polygon[2:] + polygon[:2])]
        assert min(turns) > 0
    inner = [side for side in sides if len(side.regions) == 2]
    assert all(side.regions[0] != side.regions[1] for side in inner)
    border = [side for side in sides if len(side.regions) == 1]
    assert math.fsum(side.length for side in border) == pytest.approx(8 * float(h), rel=1e-14)
    outlines = math.fsum(region.perimeter for region in regions)
    total = boundary_length(regions, sides, len(case.network.program.stages))
    assert outlines == pytest.approx(2 * total + 8 * float(h), rel=1e-13)


@pytest.mark.parametrize("seed", range(10))
def test_partitions_of_degenerate_networks(seed: int) -> None:
    for case in degenerate_networks(seed):
        check_partition(case, fraction_regions(case.program))


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_of_degenerate_networks_point_by_point(family: str) -> None:
    """Inside every region, and at random points, the plain rational evaluation finds the region's decisions."""
    rng = np.random.default_rng(0)
    for seed in (20, 21, 22):
        case = degenerate_network(family, seed)
        program = case.program
        regions = fraction_regions(program)
        for number in rng.permutation(len(regions))[:8]:
            assert fraction_pattern(program, *regions[number].middle) == regions[number].decisions
        known = {region.decisions for region in regions}
        for u, v in rng.uniform(-1, 1, (4, 2)):
            assert fraction_pattern(program, Fraction(u), Fraction(v)) in known


def middles(case: Case, regions: Sequence[Region]) -> np.ndarray:
    return case.slice.points([[float(c) for c in region.middle] for region in regions])


@pytest.mark.parametrize("kind", GENERIC)
def test_generic_networks_agree_with_regioncam_and_with_plain_evaluation(kind: str) -> None:
    """Same regions, corners, sides and areas as regioncam; same hashes as the program at points inside."""
    counts, resolved = [], []
    for seed in range(100, 101 if kind == "wide-conv" else 105):
        case = generic_network(kind, seed)
        program = case.program
        regions = fraction_regions(program)
        check_partition(case, regions)
        sides = partition_sides(regions)
        corners = {end for side in sides for end in side.ends}
        other = regioncam_partition(program)
        assert (other.faces, other.vertices, other.edges) == (len(regions), len(corners), len(sides)), case.name
        domain = 4 * case.slice.half_width**2
        areas = np.array([float(region.area) for region in regions])
        np.testing.assert_allclose(np.sort(other.areas), np.sort(areas), rtol=0, atol=2e-5 * domain, err_msg=case.name)
        large = [region for region, area in zip(regions, areas) if area > 1e-9 * domain]
        found = plain_hashes(program.program, middles(case, large))
        assert found.tolist() == [region.hash for region in large], case.name
        counts.append(len(regions))
        resolved.append(len(large) / len(regions))
    assert max(counts) > 40
    assert min(resolved) > 0.9


def test_degenerate_networks_have_the_hashes_of_plain_evaluation() -> None:
    """Short numbers: float64 evaluation at a middle is right although lines meet."""
    for family, seed in itertools.product([f for f in FAMILIES if f != "nearly"], range(30, 34)):
        case = degenerate_network(family, seed)
        regions = [region for region in fraction_regions(case.program) if region.area > 1e-9]
        found = plain_hashes(case.program.program, middles(case, regions))
        assert found.tolist() == [region.hash for region in regions], case.name


def test_every_family_is_degenerate() -> None:
    """Each family has cases in which lines really coincide, meet, or run along the border: not general position."""
    for family in FAMILIES:
        corners_of_many, repeated = 0, 0
        for seed in range(8):
            case = degenerate_network(family, seed)
            regions = fraction_regions(case.program)
            at = [end for side in partition_sides(regions) for end in side.ends]
            corners_of_many += max(at.count(end) for end in set(at)) > 4
            values = next(iter(case.program.uv_values[n] for n in case.network.program.stages[0].preactivations))
            rows = torch.cat([values.tangents, values.constant[:, None]], dim=1).numpy()
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            unit = rows[lengths[:, 0] > 0] / lengths[lengths > 0][:, None]
            close = np.abs(unit @ unit.T) > 1 - 1e-14
            along = (np.abs(np.abs(rows[:, 2]) - np.abs(rows[:, :2]).sum(axis=1)) == 0).any()
            repeated += bool(close.sum() > len(unit) or along)
        assert corners_of_many + repeated >= 3, family


def test_scales_only_stretch_the_picture() -> None:
    """A power of two in front of half-width and biases scales every area by its square and keeps the patterns."""
    family = FAMILIES["concurrent"]
    rng = [np.random.default_rng(5) for _ in range(2)]
    plain, small = (
        Case("", chain([(w, b * s), (np.ones((1, 6)), np.zeros(1))], [None]), rg.Slice.square(s))
        for (w, b), s in zip([family(r, 6, 2, 0) for r in rng], (1.0, 2.0**-20))
    )
    areas = [{r.hash: r.area for r in fraction_regions(case.program)} for case in (plain, small)]
    assert areas[0] == {key: area * 2**40 for key, area in areas[1].items()}
    assert len(areas[0]) > 8
    assert {scale for scale in SCALES if f" {scale}" in degenerate_network("integers", 3, scale).name} == {*SCALES}


def test_distance_keeps_its_digits_where_squares_underflow() -> None:
    assert distance((0, 0, 1), (3, 4, 2**600)) == math.ldexp(5, -600)
    assert distance((1, 1, 1), (1, 2, 1)) == 1.0
    assert distance((0, 0, 1), (1, 1, 3)) == pytest.approx(math.sqrt(2) / 3, rel=1e-15)


def test_regioncam_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="two entries"):
        regioncam_count(lines_case([(1, 0, 0)] * 3, bend=BENDS["pool"](3)).program)
    jump = slopes(1, [0.5], [0, 1])
    jump.intercepts[1] += 1
    with pytest.raises(ValueError, match="jumps"):
        regioncam_count(lines_case([(1, 0, 0)], bend=jump).program)
