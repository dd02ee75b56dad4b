"""The exact engine against rational arithmetic, regioncam, plain evaluation and the grid, and its own geometry."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from networks import ConvNet, mlp, plain_hashes, random_slice
from oracles import (
    FAMILIES,
    GENERIC,
    SCALES,
    Case,
    Region,
    boundary_length,
    chain,
    cut_by_output,
    degenerate_network,
    degenerate_networks,
    fraction_regions,
    generic_network,
    linear_region_count,
    partition_sides,
    regioncam_count,
    slopes,
)
from torch import Tensor, nn

import regiongrid as rg
from regiongrid import exact
from regiongrid.network.program import Breakpoint, Maximum
from regiongrid.subdivision.subdivide import Subdivision

Array = np.ndarray[Any, Any]


def by_pattern(found: Any) -> dict[int, int]:
    """Row of every pattern."""
    return {pattern: row for row, pattern in enumerate(found.regions["pattern"].tolist())}


def differences(found: Any, truth: Sequence[Region]) -> str:
    """What to print when the regions are wrong: counts, and the patterns on one side only with their areas."""
    known, rows = {region.hash: region for region in truth}, by_pattern(found)
    missed = sorted((float(region.area) for key, region in known.items() if key not in rows), reverse=True)
    invented = sorted((found.regions["area"][row] for key, row in rows.items() if key not in known), reverse=True)
    text = f"{len(found.regions)} regions, in truth {len(truth)}"
    return f"{text}; areas of missed ones {missed[:5]}, of ones that do not exist {invented[:5]}"


def check_regions(case: Case, found: Any, truth: Sequence[Region]) -> None:
    """Same number, same patterns, areas to 1e-9."""
    message = f"{case.name}: {differences(found, truth)}"
    assert len(found.regions) == len(found.polygons) == len(truth), message
    rows = by_pattern(found)
    assert set(rows) == {region.hash for region in truth}, message
    order = [rows[region.hash] for region in truth]
    areas = np.array([float(region.area) for region in truth])
    domain = 4 * case.slice.half_width**2
    np.testing.assert_allclose(
        found.regions["area"][order], areas, rtol=1e-9, atol=1e-13 * domain, err_msg=f"areas of {case.name}"
    )


def check_table(case: Case, found: Any, truth: Sequence[Region]) -> None:
    """Shape columns, neighbours, depths, layers and boundary lengths, where no side is too short for float64."""
    sides = partition_sides(truth)
    rows = by_pattern(found)
    order = [rows[region.hash] for region in truth]
    table = {name: found.regions[name][order] for name in found.regions.columns}
    h = case.slice.half_width

    def column(values: Iterator[float]) -> Array:
        return np.array(list(values))

    perimeters = column(region.perimeter for region in truth)
    np.testing.assert_allclose(table["perimeter"], perimeters, rtol=1e-9, atol=1e-12 * h, err_msg=case.name)
    middles = [centroid(region) for region in truth]
    error = 1e-9 * h + 1e-13 * h * h * h / np.maximum(table["area"], 1e-300)
    assert (np.abs(table["centroid_u"] - column(u for u, _ in middles)) <= error).all(), case.name
    assert (np.abs(table["centroid_v"] - column(v for _, v in middles)) <= error).all(), case.name
    assert table["sides"].tolist() == [len(region.corners) for region in truth], case.name
    assert table["depth"].tolist() == [region.depth for region in truth], case.name
    assert (table["components"] == 1).all()
    pairs = {side.regions for side in sides if len(side.regions) == 2}
    neighbours = Counter(itertools.chain.from_iterable(pairs))
    assert table["neighbours"].tolist() == [neighbours[number] for number in range(len(truth))], case.name
    for touches, region in zip(table["touches_border"].tolist(), truth):
        corner, side = region.on_border(h)
        assert side <= touches <= corner, case.name
    check_layers(case, found, truth, sides)


def centroid(region: Region) -> tuple[float, float]:
    polygon, total, u, v = region.polygon, Fraction(0), Fraction(0), Fraction(0)
    for p, q in itertools.pairwise([*polygon, polygon[0]]):
        cross = p[0] * q[1] - q[0] * p[1]
        total, u, v = total + cross, u + (p[0] + q[0]) * cross, v + (p[1] + q[1]) * cross
    return float(u / (3 * total)), float(v / (3 * total))


def check_layers(case: Case, found: Any, truth: Sequence[Region], sides: Sequence[Any]) -> None:
    h = case.slice.half_width
    assert [layer["layer"] for layer in found.layers] == [k + 1 for k in range(len(case.network.program.stages))]
    before = 0.0
    for k, (layer, stage) in enumerate(zip(found.layers, case.network.program.stages)):
        length = boundary_length(truth, sides, k + 1)
        assert layer["operator"] == stage.label
        assert layer["regions"] == len({region.prefixes[k] for region in truth}), case.name
        assert layer["boundary_length"] == pytest.approx(length, rel=1e-9, abs=1e-12 * h), case.name
        assert layer["own_length"] == pytest.approx(length - before, rel=1e-9, abs=1e-12 * h), case.name
        before = length
    assert found.boundary_length == pytest.approx(before, rel=1e-9, abs=1e-12 * h), case.name


def check_mesh(case: Case, found: Any) -> None:
    """Euler's formula, areas, convexity, and polygons and sides that refer to each other."""
    polygons, h = found.polygons, case.slice.half_width
    sides, regions = polygons.sides, len(polygons)
    assert sorted(set(polygons.corners.tolist())) == list(range(len(polygons.points))), case.name
    assert len(polygons.points) - len(sides) + regions == 1, case.name
    assert found.regions["area"].sum() == pytest.approx(4 * h * h, rel=1e-12), case.name
    assert (found.regions["area"] >= 0).all(), case.name
    assert np.abs(polygons.points).max() == pytest.approx(h, rel=1e-15)
    region = np.repeat(np.arange(regions), np.diff(polygons.starts))
    following = np.concatenate([np.roll(polygons.corners[a:b], -1) for a, b in itertools.pairwise(polygons.starts)])
    used = polygons.corner_sides
    forwards = (
        (sides.first[used] == polygons.corners) & (sides.second[used] == following) & (sides.left[used] == region)
    )
    backwards = (sides.second[used] == polygons.corners) & (sides.first[used] == following)
    assert (forwards ^ (backwards & (sides.right[used] == region))).all(), case.name
    inner = (sides.left >= 0) & (sides.right >= 0)
    assert (np.bincount(used, minlength=len(sides)) == np.where(inner, 2, 1)).all(), case.name
    assert (sides.left != sides.right).all(), case.name
    assert ((sides.left >= 0) | (sides.right >= 0)).all(), case.name
    check_owners(case, found, inner)
    for a, b in itertools.pairwise(polygons.starts):
        check_convex(polygons.points[polygons.corners[a:b]], h, case.name)


def check_owners(case: Case, found: Any, inner: Array) -> None:
    """Border sides lie on the border and have no owner; inner ones name a breakpoint, a unit and a threshold."""
    sides, points = found.polygons.sides, found.polygons.points
    ends = np.abs(np.stack([points[sides.first], points[sides.second]]))[:, ~inner]
    on_border = np.abs(ends - case.slice.half_width) <= 4e-16 * case.slice.half_width
    assert on_border.all(axis=0).any(axis=1).all(), case.name
    for name in ("stage", "unit", "threshold"):
        assert (getattr(sides, name)[~inner] == -1).all(), case.name
    for stage, unit, threshold in zip(sides.stage[inner], sides.unit[inner], sides.threshold[inner]):
        bend = case.network.program.stages[stage].breakpoint
        assert 0 <= unit < bend.units
        assert 0 <= threshold < (1 if isinstance(bend, Maximum) else len(bend.thresholds))


def check_convex(corners: Array, half_width: float, name: str) -> None:
    """Counterclockwise and convex, up to the rounding of the corners."""
    ahead, behind = np.roll(corners, -1, axis=0) - corners, corners - np.roll(corners, 1, axis=0)
    turns = behind[:, 0] * ahead[:, 1] - behind[:, 1] * ahead[:, 0]
    slack = 1e-14 * half_width * (np.linalg.norm(ahead, axis=1) + np.linalg.norm(behind, axis=1))
    assert (turns >= -slack).all(), f"{name}: turns {turns}, corners {corners.tolist()}"


def check_changes(case: Case, found: Any, truth: Sequence[Region]) -> None:
    """The owner of a side is the first breakpoint that tells its two regions apart, and a unit of it that does."""
    known = {region.hash: region for region in truth}
    patterns, sides = found.regions["pattern"].tolist(), found.polygons.sides
    for left, right, stage, unit in zip(sides.left, sides.right, sides.stage, sides.unit):
        if stage < 0:
            continue
        one, other = (known[patterns[row]].decisions for row in (left, right))
        assert one[:stage] == other[:stage], case.name
        assert one[stage][unit] != other[stage][unit], case.name


def check_linear_regions(case: Case, found: Any, truth: Sequence[Region]) -> None:
    output = case.network.program.output
    assert output is not None
    linear = found.linear_regions()
    assert linear.count == linear_region_count(truth, partition_sides(truth), output), case.name
    rows = by_pattern(found)
    maps = np.array([region.affine_map(output) for region in truth], dtype=float)
    number = linear.number[[rows[region.hash] for region in truth]]
    scale = 1 + np.abs(maps).max()
    np.testing.assert_allclose(linear.constant[number], maps[..., 0], rtol=1e-9, atol=1e-11 * scale)
    np.testing.assert_allclose(linear.jacobian[number], maps[..., 1:], rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "nearly"])
def test_degenerate_networks_are_counted_exactly(family: str, seed: int) -> None:
    for number in (seed, 100 + seed):
        case = degenerate_network(family, number)
        truth = fraction_regions(case.program)
        found = exact(case.network, case.slice)
        check_regions(case, found, truth)
        check_table(case, found, truth)
        check_mesh(case, found)
        check_changes(case, found, truth)
        check_linear_regions(case, found, truth)


@pytest.mark.parametrize("scale", list(SCALES)[1:])
@pytest.mark.parametrize("family", FAMILIES)
def test_degenerate_networks_at_every_scale(family: str, scale: str) -> None:
    case = degenerate_network(family, 7, scale)
    truth = fraction_regions(case.program)
    found = exact(case.network, case.slice)
    check_regions(case, found, truth)
    check_mesh(case, found)


@pytest.mark.parametrize("seed", range(20))
def test_lines_that_nearly_meet(seed: int) -> None:
    """Regions far smaller than the rounding of their corners are there and have their patterns."""
    case = degenerate_network("nearly", seed)
    truth = fraction_regions(case.program)
    found = exact(case.network, case.slice)
    check_regions(case, found, truth)
    check_mesh(case, found)
    check_changes(case, found, truth)


REGIONCAM_IS_WRONG: set[str] = set()
"""Generic cases on which regioncam (float32) and the rational count disagree."""


@pytest.mark.parametrize("block", range(6))
@pytest.mark.parametrize("kind", [kind for kind in GENERIC if kind != "wide-conv"])
def test_generic_networks_agree_with_regioncam(kind: str, block: int) -> None:
    counts = []
    for seed in range(8 * block, 8 * block + 8):
        case = generic_network(kind, seed)
        found = exact(case.network, case.slice)
        counts.append(len(found.regions))
        check_mesh(case, found)
        if len(found.regions) != regioncam_count(case.program):
            truth = fraction_regions(case.program)
            check_regions(case, found, truth)
            assert case.name in REGIONCAM_IS_WRONG
    assert max(counts) > 20


@pytest.mark.parametrize("kind", GENERIC)
def test_generic_networks_agree_with_rational_arithmetic(kind: str) -> None:
    for seed in range(60, 61 if kind == "wide-conv" else 64):
        case = generic_network(kind, seed)
        truth = fraction_regions(case.program)
        found = exact(case.network, case.slice)
        check_regions(case, found, truth)
        check_table(case, found, truth)
        check_mesh(case, found)
        check_changes(case, found, truth)
        check_linear_regions(case, found, truth)
        check_interior_points(case, found)


@pytest.mark.parametrize(("widths", "half_width"), [([2, 40, 40, 3], 2.0), ([30, 48, 48, 48, 5], 12.0)], ids=str)
def test_thousands_of_regions(widths: list[int], half_width: float) -> None:
    torch.manual_seed(3)
    network = rg.load_network(mlp(widths))
    case = Case("large", network, random_slice(widths[0], half_width, 3))
    found = exact(network, case.slice)
    assert len(found.regions) == regioncam_count(case.program)
    assert len(found.regions) > 1000
    check_mesh(case, found)
    check_interior_points(case, found)


def check_interior_points(case: Case, found: Any, points: int = 3) -> None:
    """Random convex combinations of the corners of every region of decent size have its pattern."""
    decent = np.flatnonzero(found.regions["inradius"] > 1e-7 * case.slice.half_width)
    assert len(decent) > 0
    rng = np.random.default_rng(0)
    uv = []
    for row in decent:
        outline = found.polygons.outline(row)
        weights = 0.1 / len(outline) + 0.9 * rng.dirichlet(np.ones(len(outline)), points)
        uv.append(weights @ outline)
    hashes = plain_hashes(found.network.program, case.slice.points(np.concatenate(uv)))
    wanted = np.repeat(found.regions["pattern"][decent], points)
    wrong = np.flatnonzero(hashes != wanted)
    assert len(wrong) == 0, f"{case.name}: {len(wrong)} points, region {decent[wrong[0] // points]}"


@pytest.mark.parametrize("seed", range(4))
def test_no_point_lies_outside_the_domain(seed: int) -> None:
    case = generic_network("residual", seed)
    found = exact(case.network, case.slice)
    sides, points = found.polygons.sides, np.abs(found.polygons.points)
    assert points.max() == case.slice.half_width
    border = sides.stage < 0
    ends = np.stack([points[sides.first[border]], points[sides.second[border]]])
    assert (ends == case.slice.half_width).all(axis=0).any(axis=1).all()


class Apply(nn.Module):
    """A linear map, a function, a linear map, a ReLU, a linear map."""

    def __init__(self, function: Callable[[Tensor], Tensor], d: int, inner: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.function = function
        self.before, self.after, self.head = nn.Linear(d, 8), nn.Linear(inner, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.after(self.function(self.before(x)).flatten(1))))
        return out


OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "maximum": (lambda x: torch.maximum(x, 0.5 - 0.7 * x.flip(1)), 8),
    "minimum": (lambda x: torch.minimum(x[:, :4], 2 * x[:, 4:]), 4),
    "clamp": (lambda x: x.clamp(-0.2, 0.3), 8),
    "abs": (torch.abs, 8),
    "PReLU": (nn.PReLU(8), 8),
    "Hardtanh": (nn.Hardtanh(-0.4, 0.1), 8),
    "ReLU6": (nn.ReLU6(), 8),
    "relu6": (nn.functional.relu6, 8),
    "Threshold": (nn.Threshold(0.1, 0.1), 8),
    "MaxPool1d": (lambda x: nn.functional.max_pool1d(x[:, None], 3, 2, padding=1), 4),
    "MaxPool2d after ReLU": (lambda x: nn.functional.max_pool2d(torch.relu(x).reshape(-1, 1, 2, 4), 2), 2),
    "amax": (lambda x: x.reshape(-1, 2, 4).amax(2), 2),
    "amin": (lambda x: x.reshape(-1, 2, 4).amin(1), 4),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    function, inner = OPERATORS[name]
    network = rg.load_network(Apply(function, 4, inner), input_shape=(4,))
    for seed, half_width in ((0, 1.5), (1, 12.0)):
        case = Case(name, network, random_slice(4, half_width, seed))
        truth = fraction_regions(case.program)
        found = exact(network, case.slice)
        if half_width == 12.0:
            assert all(len({region.decisions[k] for region in truth}) > 1 for k in range(len(network.program.stages)))
        check_regions(case, found, truth)
        check_table(case, found, truth)
        check_mesh(case, found)
        check_changes(case, found, truth)
        check_interior_points(case, found)


def test_convolutions_pool_residual_clamp_and_maximum() -> None:
    torch.manual_seed(2)
    network = rg.load_network(ConvNet().eval(), input_shape=(1, 6, 6))
    case = Case("ConvNet", network, random_slice(36, 0.6, 0))
    truth = fraction_regions(case.program)
    found = exact(network, case.slice)
    assert len(truth) > 50
    check_regions(case, found, truth)
    check_table(case, found, truth)
    check_mesh(case, found)
    check_changes(case, found, truth)
    check_interior_points(case, found)


JOINED = [
    "relu 3",
    "leaky 5",
    "bends 1",
    "residual 2",
    "conv 4",
    "integers 2",
    "zero-bias 4",
    "duplicated 3",
    "border 5",
]


@pytest.mark.parametrize("name", JOINED)
def test_the_grid_sees_only_regions_that_exist(name: str) -> None:
    kind, seed = name.split()
    case = generic_network(kind, int(seed)) if kind in GENERIC else degenerate_network(kind, int(seed))
    if kind in FAMILIES:  # no pixel centres on the lines: where w and -w are both off, nine pixels are no region
        case = dataclasses.replace(case, slice=rg.Slice([0.0123, -0.0077], [1.0, 0.0], [0.0, 1.0], 0.97))
    found = exact(case.network, case.slice)
    res = 256
    grid = rg.estimate(case.network, case.slice, res=res).regions
    rows = by_pattern(found)
    seen = grid["pattern"][grid["pixels"] >= 9].tolist()
    assert len(seen) > 3
    assert [pattern for pattern in seen if pattern not in rows] == []
    pixel = case.slice.pixel_size(res)
    areas = dict(zip(grid["pattern"].tolist(), grid["area"].tolist()))
    for pattern, row in rows.items():
        slack = pixel * found.regions["perimeter"][row] + 4 * pixel**2
        assert abs(areas.get(pattern, 0.0) - found.regions["area"][row]) <= slack
    assert sum(found.regions["area"][rows[p]] for p in areas if p in rows) >= 0.95 * case.slice.domain_area


def arrays(found: Any) -> dict[str, Array]:
    polygons = found.polygons
    return {
        **{name: found.regions[name] for name in found.regions.columns},
        **{name: getattr(polygons, name) for name in ("points", "starts", "corners", "corner_sides", "corner_lines")},
        **{f"side {field.name}": getattr(polygons.sides, field.name) for field in dataclasses.fields(polygons.sides)},
    }


def many_blocks() -> Case:
    torch.manual_seed(5)
    return Case("blocks", rg.load_network(mlp([20, 64, 64, 64, 4])), random_slice(20, 10.0, 5))


def test_no_result_depends_on_threads() -> None:
    case = many_blocks()
    one, two = (exact(case.network, case.slice, threads=threads) for threads in (1, 2))
    assert one.effort["blocks"] > 1
    assert arrays(one).keys() == arrays(two).keys()
    for name, values in arrays(one).items():
        np.testing.assert_array_equal(values, arrays(two)[name], err_msg=name)
    assert one.layers == two.layers
    assert len(one.regions) == regioncam_count(case.program)
    check_mesh(case, one)


@pytest.fixture
def single_polygons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind every stage, each polygon becomes a block of its own."""
    defaults = Subdivision.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "block_bytes", 1)


@pytest.mark.usefixtures("single_polygons")
@pytest.mark.parametrize("seed", range(3))
def test_blocks_fit_together(seed: int) -> None:
    """What two blocks share is cut alike in both, also where lines meet in points or run along the edges."""
    blocks = 0
    for case in [
        *degenerate_networks(40 + seed),
        *(generic_network(k, 6 + seed) for k in ("relu", "bends", "residual")),
    ]:
        truth = fraction_regions(case.program)
        found = exact(case.network, case.slice, threads=1 + seed % 2)
        check_regions(case, found, truth)
        check_mesh(case, found)
        check_changes(case, found, truth)
        blocks = max(blocks, found.effort["blocks"])
        if "nearly" not in case.name and " w" not in case.name and "half" not in case.name:
            check_table(case, found, truth)
            check_linear_regions(case, found, truth)
    assert blocks > 50


def test_exhaustion_of_memory_is_an_error_that_says_so() -> None:
    case = many_blocks()
    with pytest.raises(rg.MemoryLimitError, match="max_memory"):
        exact(case.network, case.slice, max_memory=1 << 16)


def test_slices_one_or_many() -> None:
    torch.manual_seed(1)
    module = mlp([5, 9, 7, 2])
    planes = [random_slice(5, 2.0, seed) for seed in range(3)]
    many = exact(module, planes)
    assert isinstance(many, list)
    assert len({len(found.regions) for found in many}) > 1
    for plane, found in zip(planes, many):
        alone = exact(module, plane)
        assert found.slice is plane
        assert alone.regions["pattern"].tolist() == found.regions["pattern"].tolist()


def test_a_network_without_a_cut_is_one_region() -> None:
    layers = [(np.eye(2), np.full(2, 5.0)), (np.ones((2, 2)), np.zeros(2))]
    case = Case("whole", chain(layers, [None]), rg.Slice.square())
    found = exact(case.network, case.slice)
    check_regions(case, found, fraction_regions(case.program))
    check_mesh(case, found)
    assert len(found.regions) == 1
    assert found.boundary_length == 0
    assert found.regions["depth"].tolist() == [0]
    assert found.regions["area"].tolist() == [4.0]
    assert found.regions["perimeter"].tolist() == [8.0]
    assert found.regions["inradius"].tolist() == [1.0]
    assert found.regions["eccentricity"].tolist() == [0.0]
    assert found.regions["elongation"][0] == pytest.approx(math.sqrt(2), rel=1e-9)


def test_shape_columns_of_known_polygons() -> None:
    """Lines u = -1/2 and u = 1/2 ... and one diagonal: rectangles, triangles and trapezia with known shapes."""
    layers = [(np.array([[2.0, 0.0], [1.0, -1.0]]), np.array([1.0, -1.5])), (np.ones((1, 2)), np.zeros(1))]
    case = Case("known", chain(layers, [None]), rg.Slice.square())
    found = exact(case.network, case.slice)
    order = np.argsort(found.regions["area"])
    table = {name: found.regions[name][order] for name in found.regions.columns}
    np.testing.assert_allclose(table["area"], [0.125, 1.0, 2.875], rtol=1e-15)
    np.testing.assert_allclose(table["perimeter"], [1 + math.sqrt(0.5), 5.0, 6.0 + math.sqrt(0.5)], rtol=1e-15)
    assert table["sides"].tolist() == [3, 4, 5]
    assert table["neighbours"].tolist() == [1, 1, 2]
    assert table["touches_border"].all()
    np.testing.assert_allclose(table["inradius"][:2], [0.125 / (0.5 + math.sqrt(0.125)), 0.25], rtol=1e-9)
    np.testing.assert_allclose(table["elongation"][:2], [math.sqrt(2), math.sqrt(4.25) / 0.5], rtol=1e-8)
    # Second moments: a right isosceles triangle 1 : 3, a rectangle 0.5 x 2 has variances 0.5^2 / 12 and 2^2 / 12.
    np.testing.assert_allclose(table["eccentricity"][:2], [math.sqrt(2 / 3), math.sqrt(1 - 0.25 / 4)], rtol=1e-9)


LEVELS = ["relu 2", "leaky 7", "residual 2", "residual 9"]


@pytest.mark.parametrize("name", LEVELS)
def test_decision_boundary_and_level_sets(name: str) -> None:
    kind, seed = name.split()
    case = generic_network(kind, int(seed))
    truth = fraction_regions(case.program)
    output, stages = case.network.program.output, len(case.network.program.stages)
    assert output is not None
    found = exact(case.network, case.slice)
    classes = case.program.sizes[output]
    largest = max(truth, key=lambda region: region.area)
    c, a, b = largest.affine_map(output)[0]
    u, v = largest.middle
    middle = float(c + a * u + b * v)
    cuts: list[tuple[Any, Breakpoint]] = [
        (found.decision_boundary(), Maximum(np.arange(classes)[None], classes)),
        (found.level_set(0, middle), slopes(classes, [middle], [0, 1])),
    ]
    lengths = []
    for levels, bend in cuts:
        pieces = cut_by_output(truth, output, bend)
        if not isinstance(bend, Maximum):  # of the other outputs the level does not count
            pieces = [dataclasses.replace(p, decisions=(*p.decisions[:-1], p.decisions[-1][:1])) for p in pieces]
        sides = partition_sides(pieces)
        wanted = boundary_length(pieces, sides, stages + 1) - boundary_length(pieces, sides, stages)
        lengths.append(wanted)
        assert levels.length == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        ends = levels.segments
        assert ends.shape == (len(levels.region), 2, 2)
        assert np.hypot(*(ends[:, 1] - ends[:, 0]).T).sum() == pytest.approx(levels.length, rel=1e-12, abs=1e-15)
        assert len(ends) > 0
        _, values = case.network.program.run(torch.from_numpy(case.slice.points(ends.mean(axis=1))))
        assert values is not None
        top = values.reshape(len(ends), classes).numpy()
        if isinstance(bend, Maximum):
            ranked = np.sort(top, axis=1)
            np.testing.assert_allclose(ranked[:, -1], ranked[:, -2], atol=1e-9)
        else:
            np.testing.assert_allclose(top[:, 0], middle, atol=1e-9)
    assert min(lengths) > 0


def test_summary_in_plain_numbers() -> None:
    case = degenerate_network("integers", 2)
    found = exact(case.network, case.slice)
    summary = found.summary()
    assert summary["regions"] == len(found.regions)
    assert summary["area"]["mean"] == pytest.approx(4 / len(found.regions))
    assert summary["boundary"]["length"] == pytest.approx(found.boundary_length)
    assert summary["boundary"]["density"] == pytest.approx(found.boundary_length / 4)


def test_seed_changes_patterns_and_nothing_else() -> None:
    case = degenerate_network("mirrored", 5)
    found = exact(case.network, case.slice, seed=9)
    assert set(found.regions["pattern"].tolist()) == {r.hash for r in fraction_regions(case.program, seed=9)}
    np.testing.assert_array_equal(found.regions["area"], exact(case.network, case.slice).regions["area"])


def test_progress_rises_to_one() -> None:
    case = generic_network("relu", 3)
    shares: list[tuple[int, float]] = []
    exact(case.network, [case.slice] * 2, progress=lambda number, share: shares.append((number, share)))
    for number in (0, 1):
        own = [share for n, share in shares if n == number]
        assert own == sorted(own)
        assert own[-1] == pytest.approx(1.0)
        assert len(own) >= 1


def test_errors_name_what_is_wrong() -> None:
    module = mlp([5, 6, 2])
    with pytest.raises(rg.InputError, match="dimension"):
        exact(module, random_slice(4, 1.0, 0))
    with pytest.raises(rg.InputError, match="threads"):
        exact(module, random_slice(5, 1.0, 0), threads=0)
    with pytest.raises(rg.InputError, match="no slice"):
        exact(module, [])
    found = exact(module, random_slice(5, 1.0, 0))
    with pytest.raises(rg.InputError, match="2"):
        found.level_set(2)
    with pytest.raises(rg.InputError, match="single output"):
        exact(mlp([5, 6, 1]), random_slice(5, 1.0, 0)).decision_boundary()
    jump = rg.load_network(Apply(nn.Threshold(0.1, -0.5), 5, 8), input_shape=(5,))
    with pytest.raises(rg.UnsupportedOperatorError, match="jumps"):
        exact(jump, random_slice(5, 1.0, 0))
    torch.manual_seed(2)
    cut = rg.load_network(ConvNet().eval(), input_shape=(1, 6, 6))
    with pytest.raises(rg.InputError, match="softmax"):
        exact(cut, random_slice(36, 0.05, 0)).linear_regions()


def test_all_degenerate_families_are_seen() -> None:
    """The loops above run over what `degenerate_networks` offers."""
    names = {case.name.split(" seed")[0] for case in degenerate_networks(0)}
    assert names == set(FAMILIES)
