"""Figures: colours of regions, the reduced picture, the distributions, and the files."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from arrangements import arrangement, as_exact, jittered_grid, random_lines, uneven
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from networks import mlp
from PIL import Image

import regiongrid as rg
from regiongrid import plots
from regiongrid.estimation import Estimate
from regiongrid.regions import RegionTable, measure_regions
from regiongrid.sampling.guard import Calibration
from regiongrid.sampling.image import PatternImage
from regiongrid.subdivision.polygons import Polygons, Sides

PIXELS = np.array([[round(255 * part) for part in mpl.colors.to_rgb(colour)] for colour in plots.PALETTE])
INK = np.array([round(255 * part) for part in mpl.colors.to_rgb(plots.INK)])


@pytest.fixture(scope="module")
def network() -> rg.Network:
    torch.manual_seed(0)
    return rg.load_network(mlp([2, 24, 24, 2]))


@pytest.fixture(scope="module")
def toy(network: rg.Network) -> Estimate:
    return rg.estimate(network, rg.Slice.square(), res=256)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64, count, dtype=np.uint64)


def voronoi(res: int, cells: int, seed: int = 0) -> np.ndarray:
    """A pattern image whose regions are the cells of random points."""
    points = np.random.default_rng(seed).uniform(0, res, (cells, 2))
    pixels = np.stack(np.meshgrid(np.arange(res), np.arange(res), indexing="ij"), axis=-1)
    nearest = ((pixels[:, :, None] - points) ** 2).sum(axis=-1).argmin(axis=-1)
    return keys(cells, seed)[nearest]


def squares(res: int, side: int) -> np.ndarray:
    """A checkerboard of equal squares, every one a region."""
    cell = np.arange(res) // side
    count = int(cell[-1]) + 1
    return keys(count * count)[cell[:, None] * count + cell]


def as_estimate(
    network: rg.Network, hashes: np.ndarray, half_width: float = 1.0, anchors: list[list[float]] | None = None
) -> Estimate:
    """An estimate that has this image, whatever the network."""
    hashes = np.ascontiguousarray(hashes, np.uint64)
    plane = rg.Slice([0, 0], [1, 0], [0, 1], half_width, anchors)
    regions, totals = measure_regions(hashes, plane.pixel_size(len(hashes)))
    image = PatternImage(plane, hashes, "dense", hashes.size, 0, Calibration("float64", (8.0,), (), 0))
    return Estimate(network, image, regions, totals, (), {})


def meeting(pairs: Any) -> list[tuple[int, int]]:
    """Rows of regions with a common edge, from pixels or from polygons."""
    if isinstance(pairs, Sides):
        both = zip(pairs.left.tolist(), pairs.right.tolist())
        return [(left, right) for left, right in both if left >= 0 and right >= 0]
    meet = pairs.edges > 0
    return list(zip(pairs.first[meet].tolist(), pairs.second[meet].tolist()))


def colours_one_by_one(regions: RegionTable, pairs: Any) -> list[int]:
    neighbours: list[list[int]] = [[] for _ in range(len(regions))]
    for first, second in meeting(pairs):
        neighbours[first].append(second)
        neighbours[second].append(first)
    colours = [-1] * len(regions)
    for row in sorted(range(len(regions)), key=lambda row: (-regions.area[row], regions.pattern[row])):
        wanted = int(regions.pattern[row]) % len(plots.PALETTE)
        choices = [(wanted + ahead) % len(plots.PALETTE) for ahead in range(len(plots.PALETTE))]
        used = {colours[other] for other in neighbours[row]}
        colours[row] = next((choice for choice in choices if choice not in used), wanted)
    return colours


@pytest.mark.parametrize(("res", "cells"), [(1, 1), (2, 4), (63, 30), (120, 400)])
def test_colours_are_those_of_colouring_one_by_one_from_the_largest(res: int, cells: int) -> None:
    regions, totals = measure_regions(voronoi(res, cells), 1.0)
    colours = plots.region_colours(regions, totals.adjacency)
    assert colours.tolist() == colours_one_by_one(regions, totals.adjacency)


@pytest.mark.parametrize("polygons", [uneven(), jittered_grid(1), jittered_grid(9)], ids=["lines", "one", "grid"])
def test_polygons_are_coloured_by_the_same_rule(polygons: Polygons) -> None:
    regions = as_exact(polygons).regions
    colours = plots.region_colours(regions, polygons.sides)
    assert colours.tolist() == colours_one_by_one(regions, polygons.sides)
    assert all(colours[left] != colours[right] for left, right in meeting(polygons.sides))


def test_a_region_with_more_larger_neighbours_than_colours_takes_the_colour_of_its_hash() -> None:
    count = len(plots.PALETTE) + 3
    hashes = np.zeros((3 * count, 3), np.uint64)
    hashes[:, 1] = 1
    hashes[:, 0] = np.repeat(1000 + np.arange(count), 3)
    hashes[:, 2] = hashes[:, 0] + np.uint64(1000)
    table, totals = measure_regions(hashes, 1.0)
    table = table.with_columns(area=np.where(table.pattern == 1, 0.5, table.area))
    colours = plots.region_colours(table, totals.adjacency)
    assert colours.tolist() == colours_one_by_one(table, totals.adjacency)
    assert colours[table.pattern == 1] == 1


def test_neighbours_differ_and_regions_keep_their_colour_at_another_resolution(network: rg.Network) -> None:
    seen = []
    for res in (200, 500):
        estimate = rg.estimate(network, rg.Slice.square(), res=res)
        colours = plots.region_colours(estimate.regions, estimate.totals.adjacency)
        pairs = estimate.totals.adjacency
        meet = pairs.edges > 0
        assert (colours[pairs.first[meet]] != colours[pairs.second[meet]]).all()
        seen.append(dict(zip(estimate.regions.pattern.tolist(), colours.tolist())))
    shared = seen[0].keys() & seen[1].keys()
    assert len(shared) > 200
    assert np.mean([seen[0][pattern] == seen[1][pattern] for pattern in shared]) > 0.8


PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


def lab_colours(colours: Any, vision: np.ndarray) -> np.ndarray:
    """CIELAB coordinates of colours as seen with a matrix of Machado, Oliveira and Fernandes (2009) for linear RGB."""
    from skimage.color import rgb2lab

    srgb = np.array([mpl.colors.to_rgb(colour) for colour in colours])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ vision.T, 0, 1)
    return rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize(
    "vision", [np.eye(3), np.array(PROTANOPIA), np.array(DEUTERANOPIA)], ids=["usual", "protanopia", "deuteranopia"]
)
def test_any_two_colours_can_be_told_apart(vision: np.ndarray) -> None:
    lab = lab_colours(plots.PALETTE, vision)
    distances = [float(np.linalg.norm(lab[a] - lab[b])) for a, b in itertools.combinations(range(len(lab)), 2)]
    assert min(distances) > 7  # a difference of 2.3 is just noticeable


@pytest.mark.parametrize(
    "vision", [np.eye(3), np.array(PROTANOPIA), np.array(DEUTERANOPIA)], ids=["usual", "protanopia", "deuteranopia"]
)
def test_a_level_set_can_be_told_from_regions_and_boundaries(vision: np.ndarray) -> None:
    level, *others = lab_colours([plots.LEVEL, *plots.PALETTE, plots.INK, "white"], vision)
    assert min(float(np.linalg.norm(level - other)) for other in others) > 20


@pytest.mark.parametrize(("res", "block"), [(1, 1), (7, 1), (64, 4), (63, 4), (65, 4), (50, 7)])
def test_crossings_count_the_unequal_pairs_of_each_block(monkeypatch: pytest.MonkeyPatch, res: int, block: int) -> None:
    hashes = np.random.default_rng(0).integers(0, 3, (res, res)).astype(np.uint64)
    side = -(-res // block)
    counts, pixels = np.zeros((side, side)), np.zeros((side, side))
    for row, column in itertools.product(range(res), range(res)):
        place = row // block, column // block
        pixels[place] += 1
        counts[place] += column + 1 < res and hashes[row, column] != hashes[row, column + 1]
        counts[place] += row + 1 < res and hashes[row, column] != hashes[row + 1, column]
    expected = np.pi / 4 * counts / pixels * block
    np.testing.assert_allclose(plots._crossings(hashes, block), expected, rtol=1e-12)
    monkeypatch.setattr(plots, "_BAND_PIXELS", 1)  # one row of blocks at a time
    np.testing.assert_allclose(plots._crossings(hashes, block), expected, rtol=1e-12)


@pytest.mark.parametrize("res", [1, 2, 3, 63, 999, 1000, 2000, 2001, 4099])
def test_picture_shows_each_region_in_its_colour_with_a_dark_boundary(res: int) -> None:
    hashes = np.full((res, res), 7, np.uint64)
    hashes[:, res // 2 :] = 3
    picture, side = plots.grid_picture(hashes, np.array([7, 3], np.uint64), PIXELS[[5, 6]] / 255)
    assert 1000 <= len(picture) <= 2000
    assert side == pytest.approx(1, abs=3 / res if res > 2000 else 1e-12)
    line = round(len(picture) / side * (res // 2) / res)
    if res > 1:
        np.testing.assert_array_equal(picture[:, : line - 3], np.broadcast_to(PIXELS[5], (len(picture), line - 3, 3)))
        darkest = picture[:, line - 3 : line + 3].sum(axis=2).min(axis=1)
        assert (darkest < 0.75 * PIXELS[[5, 6]].sum(axis=1).min()).all()
    np.testing.assert_array_equal(picture[:, line + 3 :], np.broadcast_to(PIXELS[6], picture[:, line + 3 :].shape))


def test_crowded_places_are_darker_but_never_black() -> None:
    res = 2400
    column = np.arange(res)
    number = np.where(column < res // 2, column // 40, 1000 + column // 3)
    hashes = np.broadcast_to(keys(2000)[number], (res, res)).copy()
    regions, totals = measure_regions(hashes, 1.0)
    colours = PIXELS[plots.region_colours(regions, totals.adjacency)] / 255
    picture, _ = plots.grid_picture(hashes, regions.pattern, colours)
    light = picture.mean(axis=(0, 2))
    sparse, crowded = light[: len(light) // 2 - 2].mean(), light[len(light) // 2 + 2 :].mean()
    assert INK.mean() + 60 < crowded < sparse - 25


def test_a_large_image_is_reduced_in_little_memory() -> None:
    res = 8192
    hashes = np.broadcast_to(np.repeat(keys(64), res // 64), (res, res))  # takes no memory itself
    patterns = np.unique(hashes[0])
    tracemalloc.start()
    plots.grid_picture(hashes, patterns, np.zeros((64, 3)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * res * res, f"{peak / 1e6:.0f} MB; an RGB array of the image alone would be {3 * res**2 / 1e6:.0f}"


def test_the_picture_lies_where_the_pixels_are(network: rg.Network) -> None:
    hashes = np.full((8, 8), 1, np.uint64)
    hashes[0, -1] = 2  # smallest v, largest u
    estimate = as_estimate(network, hashes, half_width=4.0)
    ax = Figure().add_subplot()
    plots.draw_regions(ax, estimate)
    (image,) = ax.images
    assert image.origin == "lower"
    assert image.get_extent() == pytest.approx([-4, 4, -4, 4])
    shown = np.asarray(image.get_array())
    corner = plots.region_colours(estimate.regions, estimate.totals.adjacency)[estimate.regions.pattern == 2][0]
    assert (shown[0, -1] == PIXELS[corner]).all()
    assert not (shown[-1, -1] == PIXELS[corner]).all()
    assert ax.get_aspect() == 1
    assert (ax.get_xlim(), ax.get_ylim()) == ((-4, 4), (-4, 4))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("u (input units)", "v (input units)")


def test_a_reduced_picture_that_is_not_a_whole_number_of_blocks_reaches_beyond_the_window(network: rg.Network) -> None:
    res = 2003
    ax = Figure().add_subplot()
    plots.draw_regions(ax, as_estimate(network, np.ones((res, res))))
    assert ax.images[0].get_extent() == pytest.approx([-1, -1 + 2 * 2004 / res, -1, -1 + 2 * 2004 / res])
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-1, 1))


@pytest.mark.parametrize(("half_width", "unit"), [(3.7e-7, r"$10^{-7}$ "), (2.5e9, r"$10^{9}$ "), (9999.0, "")])
def test_small_and_large_windows_have_their_power_of_ten_in_the_label(
    network: rg.Network, half_width: float, unit: str
) -> None:
    figure = Figure()
    ax = figure.add_subplot()
    plots.draw_regions(ax, as_estimate(network, np.ones((4, 4)), half_width))
    figure.draw_without_rendering()
    assert ax.get_xlabel() == f"u ({unit}input units)"
    ticks = [text.get_text() for text in ax.get_xticklabels()]
    assert "0" in ticks
    assert all(re.fullmatch(r"\N{MINUS SIGN}?\d+(\.\d+)?", tick) for tick in ticks)


def test_anchors_are_dots_with_names_and_arrows_at_the_edge(network: rg.Network) -> None:
    anchors = [[0.5, -0.25], [6.0, 3.0], [-0.97, 0.98]]
    ax = Figure().add_subplot()
    plots.draw_regions(ax, as_estimate(network, np.ones((4, 4)), 1.0, anchors))
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0.5, -0.25]], [[-0.97, 0.98]]]
    assert [text.get_text() for text in ax.texts] == ["$x_{0}$", "$x_{1}$", "$x_{2}$"]
    arrows = [text for text in ax.texts if text.arrow_patch is not None]
    assert [tuple(arrow.xy) for arrow in arrows] == [(1.0, 0.5)]
    assert max(arrows[0].xyann) < 0, "the name of an anchor outside stands inside"
    near_corner = ax.texts[2].xyann
    assert near_corner[0] > 0 > near_corner[1], "a name near the edge is turned inwards"


def test_many_anchors_are_drawn_without_names(network: rg.Network) -> None:
    anchors = np.random.default_rng(0).uniform(-1, 1, (40, 2)).tolist()
    ax = Figure().add_subplot()
    plots.draw_regions(ax, as_estimate(network, np.ones((4, 4)), 1.0, anchors))
    assert len(ax.lines) == 40
    assert not any(text.get_text() for text in ax.texts)


def stairs_of(ax: mpl.axes.Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {patch.get_label(): (patch.get_data().values, patch.get_data().edges) for patch in ax.patches}


@settings(max_examples=20, deadline=None)
@given(
    pixels=st.lists(st.integers(1, 10**6), min_size=1, max_size=40),
    step=st.sampled_from([1.0, 0.1, 3.3e-9, 7e5]),
)
def test_areas_all_fall_into_bins_no_narrower_than_a_pixel(pixels: list[int], step: float) -> None:
    areas = np.array(pixels) * step
    ax = Figure().add_subplot()
    plots.draw_distribution(ax, areas, name="area", log=True, step=step, weights=areas)
    for density, edges in stairs_of(ax).values():
        assert (np.diff(edges) > 0.99 * step).all()
        assert edges[0] <= areas.min()
        assert edges[-1] >= areas.max()
        assert (density * np.diff(np.log10(edges))).sum() == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=40), st.booleans())
def test_no_value_is_lost_at_the_ends(values: list[float], log: bool) -> None:
    ax = Figure().add_subplot()
    plots.draw_distribution(ax, values, name="length", log=log)
    ((density, edges),) = stairs_of(ax).values()
    assert (density * np.diff(np.log10(edges) if log else edges)).sum() == pytest.approx(1)


def test_distribution_shows_shares_by_number_by_area_and_unresolved() -> None:
    values = np.array([0.1, 0.1, 0.1, 0.9])
    ax = Figure().add_subplot()
    plots.draw_distribution(
        ax, values, name="eccentricity", limits=(0, 1), weights=[1, 1, 1, 9], unresolved=[True, False, False, False]
    )
    shares = {name: density * np.diff(edges) for name, (density, edges) in stairs_of(ax).items()}
    assert {name: share[share > 0].tolist() for name, share in shares.items()} == {
        "by number": pytest.approx([0.75, 0.25]),
        "by area": pytest.approx([0.25, 0.75]),
        "of ≤ 4 pixels": pytest.approx([0.25]),
    }
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([0.1, 0.3])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["by number", "of ≤ 4 pixels", "by area", "median 0.100", "mean 0.300"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("eccentricity", "density")


@pytest.mark.parametrize(
    ("values", "log"), [([], False), ([1.0, np.nan], False), ([1.0, np.inf], True), ([1.0, 0.0], True)]
)
def test_values_that_cannot_be_drawn_are_an_error(values: list[float], log: bool) -> None:
    with pytest.raises(rg.InputError, match="distribution of inradius"):
        plots.draw_distribution(Figure().add_subplot(), values, name="inradius", log=log)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.9, "0.900"),
        (-0.5, "-0.500"),
        (0.001, "0.00100"),
        (123.4, "123"),
        (999.7, "1,000"),
        (54321.0, "54,321"),
        (1.234e-7, r"$1.23\times10^{-7}$"),
        (2.5e12, r"$2.50\times10^{12}$"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert plots._number(value) == text


DEGENERATE = {
    "one pixel": lambda net: as_estimate(net, [[5]]),
    "two by two": lambda net: as_estimate(net, [[5, 6], [7, 8]]),
    "one region": lambda net: as_estimate(net, np.ones((60, 60))),
    "equal areas": lambda net: as_estimate(net, squares(64, 8)),
    "every pixel a region": lambda net: as_estimate(net, keys(90 * 90).reshape(90, 90)),
    "anchors far away": lambda net: as_estimate(net, squares(9, 3), 1.0, [[1e9, 0], [0, -5], [2, 2]]),
    "equal anchors": lambda net: as_estimate(net, squares(9, 3), 1.0, [[0.1, 0.1], [0.1, 0.1]]),
    "tiny window": lambda net: as_estimate(net, squares(64, 8), 1e-120),
    "huge window": lambda net: as_estimate(net, squares(64, 8), 1e120, [[1e119, 0]]),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_estimates_can_be_drawn(network: rg.Network, tmp_path: Path, case: str) -> None:
    figure = plots.plot_estimate(DEGENERATE[case](network), tmp_path / "slice.png")
    assert isinstance(figure, Figure)
    with Image.open(tmp_path / "slice.png") as image:
        assert image.size == (1296, 810)


def test_a_million_regions_can_be_drawn(network: rg.Network, tmp_path: Path) -> None:
    estimate = as_estimate(network, squares(1024, 1))
    assert len(estimate.regions) == 1024 * 1024
    plots.plot_estimate(estimate, tmp_path / "slice.png")
    assert (tmp_path / "slice.png").stat().st_size < 600_000


def test_title_names_network_regions_window_and_resolution(network: rg.Network, toy: Estimate) -> None:
    heading, facts = (text.get_text() for text in plots.plot_estimate(toy).texts)
    assert heading == f"{len(toy.regions)} regions"
    assert facts == "Sequential · 24-24 units · half width 1 · 256 × 256 pixels"
    single = as_estimate(network, np.ones((4, 4)), half_width=3.7e-7)
    heading, facts = (text.get_text() for text in plots.plot_estimate(single).texts)
    assert heading == "1 region"
    assert r"half width $3.70\times10^{-7}$" in facts


@pytest.mark.parametrize(
    "source", ["price_$5.pt", r"a$\frac$b\$.pt", "模型.pt", "two\nlines\udcff.pt", "checkpoint-" * 20 + ".pt"]
)
def test_any_file_name_can_stand_in_the_title(toy: Estimate, source: str) -> None:
    named = dataclasses.replace(toy, network=dataclasses.replace(toy.network, source=source))
    figure = plots.plot_estimate(named)
    figure.draw_without_rendering()
    title = figure.texts[1]
    assert title.get_window_extent().x1 <= figure.bbox.x1
    assert "256 × 256 pixels" in title.get_text()


def figure_of_pixels(network: rg.Network, half_width: float) -> Figure:
    return plots.plot_estimate(as_estimate(network, voronoi(100, 300), half_width))


def figure_of_polygons(network: rg.Network, half_width: float) -> Figure:
    return plots.plot_exact(as_exact(jittered_grid(17, half_width), network), level_set=level_set(half_width))


@pytest.mark.parametrize("half_width", [1.0, 3.7e-7, 1.5e4, 2e-101])
@pytest.mark.parametrize("make", [figure_of_pixels, figure_of_polygons])
def test_no_text_overlaps_another_or_leaves_the_figure(make: Any, network: rg.Network, half_width: float) -> None:
    figure = make(network, half_width)
    figure.draw_without_rendering()
    texts = [*figure.texts]
    for ax in figure.axes:
        texts += [ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = axis.get_view_interval()
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += ax.get_legend().get_texts() if ax.get_legend() else []
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) > 30
    page = figure.bbox
    assert [name for name, box in boxes if not (page.contains(*box.min) and page.contains(*box.max))] == []
    assert [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)] == []


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_files_of_each_kind_are_the_same_each_time(toy: Estimate, tmp_path: Path, suffix: str, start: bytes) -> None:
    contents = []
    for name in ("first", "second"):
        file = tmp_path / (name + suffix)
        plots.plot_estimate(toy, file)
        contents.append(file.read_bytes())
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]
    assert b"/Type3" not in contents[0], "journals refuse Type 3 fonts"


def test_estimate_plot_writes_a_small_png_with_exact_flat_colours(toy: Estimate, tmp_path: Path) -> None:
    toy.plot(tmp_path / "slice.png")
    with Image.open(tmp_path / "slice.png") as image:
        assert image.mode == "P"
        assert image.info["dpi"] == pytest.approx((180, 180), abs=0.1)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (tmp_path / "slice.png").stat().st_size < 150_000
    assert (pixels[0] == 255).all()
    colours = {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}
    assert len(colours) <= 64
    assert {tuple(colour) for colour in PIXELS.tolist()} <= colours


def test_another_suffix_is_refused_before_any_drawing(toy: Estimate, tmp_path: Path) -> None:
    with pytest.raises(rg.InputError, match=r"\.png, \.svg, \.pdf file, got '.*slice\.jpg'"):
        plots.plot_estimate(toy, tmp_path / "slice.jpg")
    with pytest.raises(rg.InputError, match="slice'"):
        plots.save_figure(Figure(), "slice")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(toy: Estimate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "slice.svg"
    file.write_text("old")
    figure = plots.plot_estimate(toy)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(rg.RegiongridError, match="No space left"):
        plots.save_figure(figure, file)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["slice.svg"]


def test_plotting_needs_no_pyplot_and_leaves_the_settings_alone(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib as mpl, regiongrid as rg; from torch import nn\n"
        "settings = lambda: {name: mpl.rcParams[name] for name in mpl.rcParams if name != 'backend'}\n"
        "before = settings()\n"
        "estimate = rg.estimate(nn.Sequential(nn.Linear(2, 4), nn.ReLU()), rg.Slice.square(), res=16)\n"
        "estimate.plot(sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert settings() == before\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "slice.svg")]
    subprocess.run(command, check=True, timeout=120)


WAVE = np.linspace(-0.9, 0.9, 50)


def level_set(half_width: float = 1.0) -> Any:
    line = half_width * np.stack([WAVE, np.sin(3 * WAVE) / 2], axis=1)
    return SimpleNamespace(segments=np.stack([line[:-1], line[1:]], axis=1))


def shown(ax: mpl.axes.Axes) -> np.ndarray:
    """Pixels of the figure of some axes, [height, width, 3], row 0 at the top."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def polygon_axes(polygons: Polygons, colours: np.ndarray, pixels: int = 600) -> mpl.axes.Axes:
    """Polygons on axes that fill their figure, without ticks."""
    ax = Figure(figsize=(pixels / 100, pixels / 100), dpi=100).add_axes((0, 0, 1, 1))
    plots.draw_polygons(ax, polygons, float(np.abs(polygons.points).max()), colours)
    ax.set_axis_off()
    return ax


def test_every_polygon_is_drawn_in_its_place_and_colour() -> None:
    exact = as_exact(uneven())
    colours = plots.region_colours(exact.regions, exact.polygons.sides)
    pixels = shown(polygon_axes(exact.polygons, colours))
    wide = np.flatnonzero(exact.regions.inradius > 0.02)
    assert wide.size > 40
    columns = ((exact.regions.centroid_u[wide] + 1) * 300).astype(int)
    rows = ((1 - exact.regions.centroid_v[wide]) * 300).astype(int)
    np.testing.assert_array_equal(pixels[rows, columns], PIXELS[colours[wide]])


def test_sides_between_polygons_are_drawn_once_and_those_on_the_border_not() -> None:
    polygons = uneven()
    _, lines = polygon_axes(polygons, np.zeros(len(polygons), int)).collections
    ends = np.concatenate([path.vertices.reshape(-1, 4) for path in lines.get_paths()])
    inner = polygons.sides.stage >= 0
    first, second = polygons.points[polygons.sides.first[inner]], polygons.points[polygons.sides.second[inner]]
    assert sorted(map(tuple, ends)) == sorted(map(tuple, np.concatenate([first, second], axis=1)))
    assert 0 < inner.sum() < len(polygons.sides)


def test_nothing_shines_through_between_polygons() -> None:
    polygons = arrangement(random_lines(40))
    ax = polygon_axes(polygons, np.arange(len(polygons)) % len(plots.PALETTE))
    fills, boundaries = ax.collections
    boundaries.remove()

    def leak() -> int:
        pictures = []
        for background in ("black", "white"):
            ax.figure.set_facecolor(background)
            pictures.append(shown(ax)[2:-2, 2:-2])
        return int(np.abs(pictures[0] - pictures[1]).max())

    assert leak() <= 12
    fills.set_linewidth(0)
    assert leak() > 50


def test_boundaries_of_polygons_get_thinner_where_they_crowd_but_places_never_turn_black() -> None:
    widths, lightness = {}, {}
    for cells in (8, 60, 400):
        polygons = jittered_grid(cells)
        ax = polygon_axes(polygons, np.arange(cells * cells) % 10)
        widths[cells] = float(ax.collections[1].get_linewidth()[0])
        lightness[cells] = shown(ax).mean()
    assert widths[8] == widths[60] == pytest.approx(6 * 72 * 0.0015)
    assert widths[400] < widths[60] / 2
    assert INK.mean() + 60 < lightness[400] < lightness[8]


@pytest.mark.parametrize(("limit", "images"), [(10**6, 0), (5, 1)])
@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_polygons_are_vectors_up_to_a_number_and_an_image_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, limit: int, images: int
) -> None:
    monkeypatch.setattr(plots, "VECTOR_POLYGONS", limit)
    file = tmp_path / f"slice{suffix}"
    plots.plot_exact(as_exact(uneven(), rg.load_network(mlp([3, 4, 2]))), file)
    mark = b"<image " if suffix == ".svg" else b"/Subtype /Image"
    found = file.read_bytes().count(mark)
    assert (found > 0) == (images > 0), found


def test_files_of_many_polygons_stay_small(network: rg.Network, tmp_path: Path) -> None:
    most = as_exact(jittered_grid(int(plots.VECTOR_POLYGONS**0.5)), network)
    plots.plot_exact(most, tmp_path / "slice.svg")
    assert (tmp_path / "slice.svg").stat().st_size < 12_000_000
    many = as_exact(jittered_grid(316), network)
    started = time.perf_counter()
    plots.plot_exact(many, tmp_path / "slice.png")
    assert time.perf_counter() - started < 20  # 1 to 2 seconds on an idle machine
    assert (tmp_path / "slice.png").stat().st_size < 330_000
    plots.plot_exact(many, tmp_path / "many.svg")
    assert (tmp_path / "many.svg").stat().st_size < 6_000_000


def test_figure_of_polygons_is_laid_out_as_that_of_an_estimate(toy: Estimate) -> None:
    exact = as_exact(uneven(), toy.network, anchors=[[0.5, -0.25], [6.0, 3.0]])
    figure, estimated = plots.plot_exact(exact), plots.plot_estimate(toy)
    heading, facts = (text.get_text() for text in figure.texts)
    assert heading == f"{len(exact.regions)} regions"
    assert facts == "Sequential · 24-24 units · half width 1 · exact polygons"
    places = [[ax.get_position().bounds for ax in each.axes] for each in (figure, estimated)]
    assert places[0] == places[1]
    assert [ax.get_xlabel() for ax in figure.axes] == [ax.get_xlabel() for ax in estimated.axes]
    slice_axes, above, below = figure.axes
    assert [line.get_xydata().tolist() for line in slice_axes.lines] == [[[0.5, -0.25]]]
    legend = [text.get_text() for text in above.get_legend().get_texts()]
    assert legend[:2] == ["by number", "by area"]
    regions = exact.regions
    shares = {name: density * np.diff(edges) for name, (density, edges) in stairs_of(below).items()}
    assert shares["by number"][-1] == pytest.approx(np.mean(regions.eccentricity >= 0.96))
    assert shares["by area"][-1] == pytest.approx(regions.area[regions.eccentricity >= 0.96].sum() / 4)


def test_level_set_is_a_thick_line_with_a_name(network: rg.Network) -> None:
    exact = as_exact(uneven(), network)
    assert plots.plot_exact(exact).axes[0].get_legend() is None
    ax = plots.plot_exact(exact, level_set=level_set(), level_name="output 1 is 0").axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["output 1 is 0"]
    white, line = (entry for entry in ax.collections if isinstance(entry, LineCollection))
    assert mpl.colors.to_hex(line.get_color()[0]) == plots.LEVEL
    np.testing.assert_array_equal(np.array(line.get_segments()), level_set().segments)
    assert white.get_linewidth()[0] > line.get_linewidth()[0] > 2 * ax.collections[1].get_linewidth()[0]


def test_a_short_level_set_among_many_polygons_keeps_its_colour(network: rg.Network, tmp_path: Path) -> None:
    corner = SimpleNamespace(segments=np.array([[[0.95, 1.0], [1.0, 0.9]]]))
    plots.plot_exact(as_exact(arrangement(random_lines(40)), network), tmp_path / "slice.png", level_set=corner)
    with Image.open(tmp_path / "slice.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    own = np.array([round(255 * part) for part in mpl.colors.to_rgb(plots.LEVEL)])
    inside = (pixels[70:120, 720:760] == own).all(axis=-1)
    assert inside.sum() > 10


def test_an_empty_level_set_can_be_drawn(network: rg.Network, tmp_path: Path) -> None:
    nowhere = SimpleNamespace(segments=np.empty((0, 2, 2)))
    plots.plot_exact(as_exact(uneven(), network), tmp_path / "slice.svg", level_set=nowhere)
    assert (tmp_path / "slice.svg").exists()


POLYGONS = {
    "one polygon": lambda: jittered_grid(1),
    "tiny window": lambda: jittered_grid(4, 1e-120),
    "huge window": lambda: jittered_grid(4, 1e120),
    "no area left by rounding": lambda: without_area(jittered_grid(4)),
}


def without_area(polygons: Polygons) -> Polygons:
    """The corners of the first polygon of a grid all fall together."""
    points = polygons.points.copy()
    points[polygons.corners[:4]] = -1.0
    return dataclasses.replace(polygons, points=points)


@pytest.mark.parametrize("case", POLYGONS)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_degenerate_polygons_can_be_drawn(network: rg.Network, tmp_path: Path, case: str, suffix: str) -> None:
    polygons = POLYGONS[case]()
    file = tmp_path / f"slice{suffix}"
    plots.plot_exact(as_exact(polygons, network), file, level_set=level_set(float(np.abs(polygons.points).max())))
    assert file.stat().st_size > 10_000


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_files_of_polygons_are_the_same_each_time(network: rg.Network, tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for file in files:
        plots.plot_exact(as_exact(uneven(), network), file, level_set=level_set())
    assert files[0].read_bytes() == files[1].read_bytes()


def test_polygons_in_a_file_of_another_suffix_are_refused(network: rg.Network, tmp_path: Path) -> None:
    with pytest.raises(rg.InputError, match=r"got '.*slice\.gif'"):
        plots.plot_exact(as_exact(uneven(), network), tmp_path / "slice.gif")
    assert not list(tmp_path.iterdir())
