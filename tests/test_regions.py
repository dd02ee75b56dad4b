"""The region table: measures against scikit-image and exact geometry, files, summary."""

import doctest
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import perimeter_crofton

from regiongrid import regions
from regiongrid.errors import InputError, RegiongridError
from regiongrid.kernels import components, moments
from regiongrid.regions import (
    COLUMNS,
    RegionTable,
    boundary_by_layer,
    component_image,
    label_image,
    measure_regions,
    summarise,
)

PATTERNS = np.array([0, 2**64 - 1, 1, 1 << 63, 1 << 32, 2, 0x0123456789ABCDEF, 3 << 62], dtype=np.uint64)
GRID_COLUMNS = [
    "pattern",
    "pixels",
    "area",
    "area_lower",
    "area_upper",
    "centroid_u",
    "centroid_v",
    "perimeter",
    "eccentricity",
    "boundary_pixels",
    "components",
    "neighbours",
    "touches_border",
]


def pixel_centres(pixels: int) -> np.ndarray:
    """Centres of the pixels of [-1, 1]."""
    return (2 * np.arange(pixels) + 1 - pixels) / pixels


def random_lines(lines: int, seed: int) -> np.ndarray:
    """Rows (a, b, c) of lines a u + b v = c with unit normals, all directions alike."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, lines)
    return np.stack([np.cos(angle), np.sin(angle), rng.uniform(-1, 1, lines)], axis=1)


def line_keys(lines: int) -> np.ndarray:
    return np.random.default_rng(99).integers(1, 2**64 - 1, size=lines, dtype=np.uint64)


def arrangement(lines: np.ndarray, pixels: int) -> np.ndarray:
    """Pattern image of a line arrangement on [-1, 1]^2, whose regions are convex."""
    u = pixel_centres(pixels)
    hashes = np.zeros((pixels, pixels), dtype=np.uint64)
    for (a, b, c), key in zip(lines, line_keys(len(lines))):
        hashes ^= np.where(a * u + b * u[:, None] > c, key, np.uint64(0))
    return hashes


def clip(polygon: np.ndarray, line: np.ndarray, side: float) -> np.ndarray:
    """Part of a convex polygon where side * (a u + b v - c) >= 0."""
    height = side * (polygon @ line[:2] - line[2])
    corners = []
    for k in range(len(polygon)):
        h, g = height[k - 1], height[k]
        if (h >= 0) != (g >= 0):
            corners.append(polygon[k - 1] + h / (h - g) * (polygon[k] - polygon[k - 1]))
        if g >= 0:
            corners.append(polygon[k])
    return np.array(corners).reshape(-1, 2)


def polygon_area(polygon: np.ndarray) -> float:
    u, v = polygon.T
    return float(abs(np.dot(u, np.roll(v, -1)) - np.dot(v, np.roll(u, -1))) / 2)


def exact_cells(lines: np.ndarray) -> dict[int, np.ndarray]:
    """Polygon of each cell of the arrangement in the square, by pattern hash."""
    cells = {0: np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])}
    for line, key in zip(lines, line_keys(len(lines)).tolist()):
        pieces = {pattern: clip(cell, line, -1.0) for pattern, cell in cells.items()}
        pieces |= {pattern ^ key: clip(cell, line, 1.0) for pattern, cell in cells.items()}
        cells = {pattern: cell for pattern, cell in pieces.items() if len(cell) > 2}
    return cells


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """A failure shows the five worst values."""
    error = np.abs(np.asarray(actual, dtype=float) - np.asarray(expected, dtype=float))
    worst = np.argsort(-error)[:5]
    lines = [f"{k}: got {actual[k]!r}, expected {expected[k]!r}" for k in worst.tolist()]
    assert (error <= tolerance).all(), f"{what}, worst rows: " + "; ".join(lines)


shapes = st.one_of(st.tuples(st.integers(1, 10), st.integers(1, 16)), st.sampled_from([(1, 1), (1, 9), (9, 1)]))
labelled = shapes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(0, 7))).map(
    PATTERNS.__getitem__
)
arrangements = st.builds(
    lambda lines, seed, pixels: arrangement(random_lines(lines, seed), pixels),
    st.integers(0, 12),
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
)
images = st.one_of(labelled, arrangements)


@settings(deadline=None, max_examples=80)
@given(hashes=images, pixel_size=st.sampled_from([1.0, 0.37, 1e-3]))
def test_kernels_and_skimage_fill_the_same_table(hashes, pixel_size):
    table, totals = measure_regions(hashes, pixel_size)
    oracle, oracle_totals = measure_regions(hashes, pixel_size, method="skimage")
    assert table.columns == oracle.columns == tuple(GRID_COLUMNS)
    inside = ~table.touches_border
    for name in table.columns:
        assert table[name].dtype == oracle[name].dtype == np.dtype(COLUMNS[name].dtype)
        rows = inside if name == "perimeter" else slice(None)
        tolerance = {"perimeter": 1e-9 * pixel_size, "eccentricity": 1e-6}.get(name, 0)
        if name.startswith("centroid"):
            tolerance = 1e-12 * pixel_size
        if name == "pattern":
            assert table.pattern.tolist() == oracle.pattern.tolist()
        else:
            assert_close(table[name][rows], oracle[name][rows], tolerance, name)
    for name in ("regions", "regions_half_resolution", "components", "boundary_pixels", "mixed_share"):
        assert getattr(totals, name) == getattr(oracle_totals, name)
    assert totals.boundary_length == pytest.approx(totals.adjacency.lengths().sum())
    assert totals.domain_area == pytest.approx(table.area.sum())


@settings(deadline=None, max_examples=60)
@given(mask=hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))))
def test_interior_perimeter_is_skimage_crofton_for_any_shape(mask):
    hashes = np.pad(mask, 2).astype(np.uint64)
    _, totals = measure_regions(hashes, 0.5)
    assert totals.boundary_length == pytest.approx(0.5 * perimeter_crofton(hashes, directions=4))
    two_directions = math.pi / 4 * totals.adjacency.edges.sum()
    assert two_directions == pytest.approx(perimeter_crofton(hashes, directions=2))


def test_known_rectangle():
    """A 3 x 2 rectangle inside 6 x 5 pixels of size 0.1."""
    hashes = np.zeros((5, 6), dtype=np.uint64)
    hashes[1:3, 2:5] = 4
    table, totals = measure_regions(hashes, 0.1)
    row = {name: table[name][1] for name in table.columns}
    assert row["area"] == pytest.approx(0.06)
    assert row["area_lower"] == pytest.approx(0.02)
    assert row["area_upper"] == pytest.approx(0.12)
    assert (row["centroid_u"], row["centroid_v"]) == pytest.approx((0.05, -0.05))
    assert row["eccentricity"] == pytest.approx(math.sqrt(1 - (1 / 4) / (2 / 3)))
    assert row["perimeter"] == pytest.approx(0.1 * math.pi / 8 * (10 + 16 / math.sqrt(2)))
    assert (row["pixels"], row["boundary_pixels"], row["components"], row["neighbours"]) == (6, 6, 1, 1)
    assert not row["touches_border"]
    assert totals.boundary_length == pytest.approx(row["perimeter"])
    assert totals.mixed_share == pytest.approx(1 - (2 + 8) / 30)
    assert table.perimeter[0] == pytest.approx(row["perimeter"] + 2 * (0.6 + 0.5))


def test_eccentricity_of_one_pixel_and_of_lines():
    hashes = np.zeros((9, 9), dtype=np.uint64)
    hashes[1, 1] = 1
    hashes[3, 1:6] = 2
    hashes[range(4, 8), range(4, 8)] = 3
    table, _ = measure_regions(hashes, 1.0)
    found = dict(zip(table.pattern.tolist(), table.eccentricity.tolist()))
    assert found[1] == 0.0
    assert found[2] == 1.0
    assert found[3] == 1.0
    assert dict(zip(table.pattern.tolist(), table.components.tolist()))[3] == 4


def test_centroid_and_eccentricity_of_exact_polygons():
    lines = random_lines(4, seed=3)
    table, _ = measure_regions(arrangement(lines, 1024), 2 / 1024)
    cells = exact_cells(lines)
    assert set(table.pattern.tolist()) == set(cells)
    for k, pattern in enumerate(table.pattern.tolist()):
        assert table.area[k] == pytest.approx(polygon_area(cells[pattern]), abs=4e-3)
        if len(cells[pattern]) == 3:
            centre = cells[pattern].mean(axis=0)
            assert (table.centroid_u[k], table.centroid_v[k]) == pytest.approx(tuple(centre), abs=4e-3)


@pytest.mark.parametrize("seed", range(6))
def test_area_bracket_holds_for_convex_regions(seed):
    lines = random_lines(14, seed)
    cells = exact_cells(lines)
    table, totals = measure_regions(arrangement(lines, 61), 2 / 61)
    areas = np.array([polygon_area(cells[pattern]) for pattern in table.pattern.tolist()])
    above = areas - table.area_upper
    assert (areas >= table.area_lower - 1e-12).all(), f"areas below the lower end by {(table.area_lower - areas).max()}"
    # only the tip of a sliver may leave through a gap between pixel centres, and such tips are tiny
    assert above.max() < totals.pixel_size**2, f"area above the upper end by {above.max()}"
    assert (above > 0).mean() < 0.05
    assert (table.area_upper - table.area_lower).sum() >= totals.mixed_share * totals.domain_area


def chord(line: np.ndarray) -> float:
    """Length of a line in [-1, 1]^2."""
    a, b, c = line
    near, far = -math.inf, math.inf
    for start, direction in ((a * c, -b), (b * c, a)):
        ends = sorted(((-1 - start) / direction, (1 - start) / direction))
        near, far = max(near, ends[0]), min(far, ends[1])
    return max(far - near, 0.0)


def test_boundary_length_of_lines_that_end_at_the_border_is_unbiased(monkeypatch):
    """The mean error over lines in all directions, in pixels, is that of the rim: none with its term."""
    pixels = 24
    lines = random_lines(4000, seed=8) * [1, 1, math.sqrt(2)]
    lines = lines[[chord(line) > 0 for line in lines]]
    truth = np.array([chord(line) for line in lines])

    def mean_error() -> tuple[float, float]:
        found = [measure_regions(arrangement(line[None], pixels), 2 / pixels)[1].boundary_length for line in lines]
        error = (np.array(found) - truth) * pixels / 2
        return float(error.mean()), float(error.std() / math.sqrt(len(lines)))

    mean, standard_error = mean_error()
    assert abs(mean) < 4 * standard_error < 0.08, f"mean error {mean:.3f} +- {standard_error:.3f} pixels"
    monkeypatch.setattr(regions, "_RIM_WEIGHT", 0.0)
    assert mean_error()[0] == pytest.approx(-1.18, abs=0.08)


def test_perimeter_of_half_planes_clipped_by_the_border():
    """The border's sides are exact, so the perimeters of both halves are the border and twice the boundary."""
    for line in random_lines(40, seed=2) * [1, 1, 0.9]:
        table, totals = measure_regions(arrangement(line[None], 50), 2 / 50)
        assert len(table) == 2
        assert table.perimeter.sum() == pytest.approx(8 + 2 * totals.boundary_length)
        cells = exact_cells(line[None])
        sides = [np.linalg.norm(np.roll(cells[p], -1, axis=0) - cells[p], axis=1) for p in table.pattern.tolist()]
        assert_close(table.perimeter, np.array([side.sum() for side in sides]), 0.2, "perimeter")


def test_a_rectangle_in_the_corner():
    """Two thirds of the sides lie on the border and are exact; the rest is an axis-parallel Crofton estimate."""
    hashes = np.ones((30, 30), dtype=np.uint64)
    hashes[:10, :20] = 2
    table, _ = measure_regions(hashes, 1.0)
    assert table.perimeter[0] == pytest.approx(30 + 30 * math.pi / 8 * (1 + math.sqrt(2)), abs=1.3)


@settings(deadline=None, max_examples=40)
@given(hashes=images)
def test_label_images_agree_with_the_table(hashes):
    table, totals = measure_regions(hashes, 1.0)
    numbers, pieces = label_image(hashes), component_image(hashes)
    assert (table.pattern[numbers] == hashes).all()
    assert np.bincount(numbers.ravel()).tolist() == table.pixels.tolist()
    assert pieces.max() + 1 == totals.components
    assert label_image(hashes, threads=1).tolist() == numbers.tolist()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), pixels=st.integers(1, 40))
def test_boundary_by_layer_is_the_length_of_the_coarser_image(seed, pixels):
    lines = random_lines(9, seed)
    table, totals = measure_regions(arrangement(lines, pixels), 0.25)
    numbers = label_image(arrangement(lines, pixels))
    coarser = [arrangement(lines[:count], pixels) for count in (0, 2, 5, 9)]
    first = np.unique(numbers, return_index=True)[1]
    rows = boundary_by_layer(totals.adjacency, np.stack([image.ravel()[first] for image in coarser]))
    for layer, (row, image) in enumerate(zip(rows, coarser), start=1):
        coarse_table, coarse_totals = measure_regions(image, 0.25)
        assert row["layer"] == layer
        assert row["regions"] == len(coarse_table)
        assert row["boundary_length"] == pytest.approx(coarse_totals.boundary_length, rel=1e-12)
    assert rows[0] == {"layer": 1, "regions": 1, "boundary_length": 0.0}
    assert rows[-1]["regions"] == len(table)


def test_boundary_by_layer_refuses_too_few_regions():
    _, totals = measure_regions(np.array([[1, 2, 3]], dtype=np.uint64), 1.0)
    with pytest.raises(InputError, match="at least 3 regions"):
        boundary_by_layer(totals.adjacency, np.zeros((2, 2), dtype=np.uint64))


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_unusable_pixel_size_is_refused(size):
    with pytest.raises(InputError, match="pixel_size"):
        measure_regions(np.zeros((2, 2), dtype=np.uint64), size)


def test_unknown_method_is_refused():
    with pytest.raises(InputError, match="'opencv'"):
        measure_regions(np.zeros((2, 2), dtype=np.uint64), 1.0, method="opencv")


def example_table() -> RegionTable:
    return measure_regions(arrangement(random_lines(12, seed=1), 50), 2 / 50)[0]


def test_table_behaves_like_columns():
    table = example_table()
    assert table["area"] is table.area
    assert list(table) == list(table.columns) == list(table.to_dict())
    assert "area" in table
    assert "sides" not in table
    assert "perimeter" in dir(table)
    assert (table.take(table.area > 0.01).area > 0.01).all()
    wider = table.with_columns(sides=np.full(len(table), 4), score=np.zeros(len(table)))
    assert wider.sides.dtype == np.int64
    assert wider.columns == (*table.columns, "sides", "score")
    copy = pickle.loads(pickle.dumps(wider))
    assert copy.columns == wider.columns
    assert copy.pattern.tolist() == wider.pattern.tolist()
    with pytest.raises(ValueError, match="read-only"):
        table.area[0] = 1.0
    with pytest.raises(InputError, match="no column 'inradius'; it has pattern, pixels"):
        table["inradius"]
    with pytest.raises(AttributeError, match="no column 'inradius'"):
        _ = table.inradius


def test_sorting_is_stable_in_both_directions():
    table = RegionTable({"pattern": np.arange(5, dtype=np.uint64), "sides": [3, 4, 3, 5, 4]})
    assert table.sort_by("sides").pattern.tolist() == [0, 2, 1, 4, 3]
    assert table.sort_by("sides", descending=True).pattern.tolist() == [3, 1, 4, 0, 2]


def test_repr_is_a_short_summary():
    table = measure_regions(np.array([[1, 1, 2], [1, 1, 2]], dtype=np.uint64), 0.5)[0].with_columns(score=[1.0, 2.0])
    lines = repr(table).splitlines()
    assert lines[0] == "RegionTable: 2 regions, 14 columns"
    assert lines[1] == "  pattern          0x0000000000000001, ..."
    assert lines[3] == "  area             min 0.5, median 0.75, max 1  [input units^2]"
    assert lines[-2] == "  touches_border   true in 2"
    assert "0 regions" in repr(RegionTable({"pattern": np.empty(0, np.uint64), "area": []}))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"area": [1.0]}, "'pattern'"),
        ({"pattern": np.zeros(2, np.uint64), "area": [1.0]}, "equal lengths"),
        ({"pattern": np.zeros((1, 2), np.uint64)}, "1-D"),
        ({"pattern": [1.0, 2.0]}, "must be uint64, got float64"),
        ({"pattern": np.zeros(1, np.uint64), "components": [1.5]}, "must be int64, got float64"),
    ],
    ids=["no pattern", "lengths", "two-dimensional", "float pattern", "float count"],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(InputError, match=message):
        RegionTable(columns)


@settings(deadline=None, max_examples=40)
@given(
    patterns=hnp.arrays(np.uint64, st.integers(0, 6)),
    seed=st.integers(0, 2**32 - 1),
    special=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=6, max_size=6),
    suffix=st.sampled_from([".csv", ".parquet"]),
)
def test_files_keep_every_bit(tmp_path_factory, patterns, seed, special, suffix):
    rng = np.random.default_rng(seed)
    n = patterns.size
    table = RegionTable(
        {
            "pattern": patterns,
            "area": np.array(special[:n], dtype=np.float64),
            "perimeter": rng.random(n) * 10.0 ** rng.integers(-300, 300, n),
            "sides": rng.integers(-(2**62), 2**62, n),
            "touches_border": rng.random(n) < 0.5,
            "own_ratio": np.round(rng.random(n)),
        }
    )
    path = tmp_path_factory.mktemp("tables") / f"regions{suffix}"
    table.write(path)
    back = RegionTable.read(path)
    assert back.columns == table.columns
    for name in table.columns:
        assert back[name].dtype == table[name].dtype
        np.testing.assert_array_equal(back[name], table[name])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_csv_shows_patterns_in_hexadecimal(tmp_path):
    RegionTable({"pattern": np.array([255], np.uint64), "area": [0.1], "touches_border": [True]}).write(
        tmp_path / "t.csv"
    )
    assert (tmp_path / "t.csv").read_text() == "pattern,area,touches_border\n0x00000000000000ff,0.1,true\n"


def test_parquet_carries_units(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    example_table().write(tmp_path / "regions.parquet")
    field = parquet.read_schema(tmp_path / "regions.parquet").field("perimeter")
    assert field.metadata[b"unit"] == b"input units"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"regions{suffix}"
    path.write_bytes(b"old")

    def fail(_, temporary):
        temporary.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(regions, "_write_csv", fail)
    monkeypatch.setattr(regions, "_write_parquet", fail)
    with pytest.raises(RegiongridError, match="no space left"):
        example_table().write(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"regiongrid\[parquet\]"):
        example_table().write(tmp_path / "regions.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["regions.txt", "regions", "nowhere/regions.csv"])
def test_paths_that_cannot_be_written(tmp_path, name):
    with pytest.raises(RegiongridError, match=name):
        example_table().write(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("regions.csv", b""),
        ("regions.csv", b"pattern,area\n0x1\n"),
        ("regions.csv", b"pattern,area\nxyz,1.0\n"),
        ("regions.csv", b"area\n1.0\n"),
        ("regions.csv", b"\xff\xfe\x00"),
        ("regions.parquet", b"no parquet"),
        ("regions.txt", b""),
    ],
    ids=["empty", "ragged", "no number", "no pattern", "binary", "not parquet", "suffix"],
)
def test_files_that_are_no_table(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        RegionTable.read(tmp_path / name)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv"):
        RegionTable.read(tmp_path / "nothing.csv")


def test_summary_of_known_values():
    table = RegionTable(
        {
            "pattern": np.arange(4, dtype=np.uint64),
            "area": [1.0, 2.0, 3.0, 10.0],
            "eccentricity": [0.9, 0.8, 0.4, 0.1],
            "sides": [3, 4, 5, 6],
        }
    )
    summary = summarise(table, domain_area=16.0, boundary_length=8.0)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["regions"] == summary["components"] == 4
    assert summary["boundary"] == {"length": 8.0, "density": 0.5}
    assert summary["area"] == {
        "mean": 4.0,
        "median": 2.5,
        "std": pytest.approx(math.sqrt(12.5)),
        "p5": pytest.approx(1.15),
        "p95": pytest.approx(8.95),
        "weighted_mean": pytest.approx(114 / 16),
        "weighted_median": 10.0,
        "total": 16.0,
    }
    assert summary["eccentricity"]["weighted_median"] == 0.1
    assert summary["sides"]["weighted_mean"] == pytest.approx((3 + 8 + 15 + 60) / 16)
    assert "perimeter" not in summary
    assert "warnings" not in summary


def test_summary_of_a_well_resolved_image():
    hashes = arrangement(random_lines(6, seed=4), 400)
    table, totals = measure_regions(hashes, 2 / 400)
    summary = summarise(table, totals)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["regions"] == np.unique(hashes).size
    assert summary["regions_half_resolution"] == np.unique(hashes[::2, ::2]).size
    assert summary["regions_extrapolated"] == 2 * summary["regions"] - summary["regions_half_resolution"]
    assert summary["boundary"]["pixels"] == table.boundary_pixels.sum()
    assert summary["boundary"]["density"] == pytest.approx(totals.boundary_length / 4)
    assert summary["area"]["total"] == pytest.approx(4.0)
    assert summary["extrapolation_trustworthy"] is True
    assert summary["subpixel_warning"] is False


def test_summary_of_a_saturated_image_warns():
    hashes = arrangement(random_lines(200, seed=4), 64)
    summary = summarise(*measure_regions(hashes, 2 / 64))
    assert summary["extrapolation_trustworthy"] is False
    assert summary["subpixel_warning"] is True
    text = "\n".join(summary["warnings"])
    for part in ("at most 4 pixels", "several pieces", "pixels a region", "Half the resolution", "brackets"):
        assert part in text


def test_summary_of_one_region_is_calm():
    summary = summarise(*measure_regions(np.zeros((40, 40), dtype=np.uint64), 1.0))
    assert summary["regions"] == summary["regions_extrapolated"] == 1
    assert summary["boundary"] == {"length": 0.0, "density": 0.0, "length_extrapolated": 0.0, "pixels": 0}
    assert summary["warnings"] == []
    assert summary["subpixel_warning"] is False


def test_extrapolated_count_of_a_line_arrangement():
    """Two resolutions of 60 lines: the extrapolation must be closer to the exact count than the count itself."""
    lines = random_lines(60, seed=6)
    exact = len(exact_cells(lines))
    summary = summarise(*measure_regions(arrangement(lines, 512), 2 / 512))
    assert summary["extrapolation_trustworthy"]
    assert abs(summary["regions_extrapolated"] / exact - 1) < 0.03
    assert abs(summary["regions_extrapolated"] - exact) < exact - summary["regions"]


def test_summary_refuses_what_it_cannot_use():
    empty = RegionTable({"pattern": np.empty(0, np.uint64), "area": []})
    with pytest.raises(InputError, match="empty table"):
        summarise(empty, domain_area=1.0, boundary_length=0.0)
    with pytest.raises(InputError, match="domain_area"):
        summarise(example_table(), boundary_length=1.0)


def test_every_grid_column_is_documented():
    assert set(GRID_COLUMNS) < set(COLUMNS)
    assert all(column.unit and column.meaning.endswith(".") for column in COLUMNS.values())


@pytest.mark.parametrize("module", [regions, components, moments], ids=lambda module: module.__name__)
def test_docstring_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_import_stays_light():
    heavy = ("numba", "skimage", "scipy", "pyarrow", "torch")
    code = f"import regiongrid.regions, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_extrapolated_length_corrects_crowded_boundaries():
    """The plain length misses boundaries that share a pair of pixels, the extrapolated one far fewer."""
    lines = random_lines(100, seed=6)
    exact = sum(chord(line) for line in lines)
    summary = summarise(*measure_regions(arrangement(lines, 768), 2 / 768))["boundary"]
    assert summary["length"] < 0.97 * exact
    assert summary["length_extrapolated"] == pytest.approx(exact, rel=0.01)
