"""The grid against the exact polygons: joins, errors, orders, spurious patterns, files, figure and command."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from networks import ConvNet, mlp, random_slice
from torch import Tensor, nn
from typer.testing import CliRunner

import regiongrid as rg
from regiongrid import comparison, comparison_plot, estimation
from regiongrid.commands.app import app
from regiongrid.comparison import QUANTITIES, SIZE_CLASSES, Accuracy, Comparison, measure_accuracy
from regiongrid.kernels.pattern_hash import decision_keys
from regiongrid.network.on_slice import restrict
from regiongrid.regions import measure_regions

# Without the first line a test run started in the background, where SIGINT is ignored, could not be interrupted.
LAUNCH = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from regiongrid.commands import main; main()
"""


def lines(normals: list[list[float]], offsets: list[float]) -> rg.Network:
    """A network of one hidden layer whose units switch on the lines normal . (u, v) + offset = 0."""
    layer = nn.Linear(2, len(offsets))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(normals))
        layer.bias.copy_(torch.tensor(offsets))
    return rg.load_network(nn.Sequential(layer, nn.ReLU(), nn.Linear(len(offsets), 1)))


def bands() -> rg.Network:
    """Lines at u = -0.5, 0.125 and 0.15625 and at v = 0.25: eight rectangles, two of them narrow."""
    return lines([[1, 0], [1, 0], [1, 0], [0, 1]], [0.5, -0.125, -0.15625, -0.25])


@pytest.fixture(scope="module")
def random_comparison() -> Comparison:
    torch.manual_seed(1)
    return rg.compare(mlp([6, 24, 24, 3]), random_slice(6, 4.0, seed=1), (32, 64, 128, 256))


def with_errors(base: Comparison, name: str, errors: dict[int, float], untrusted: tuple[int, ...] = ()) -> Comparison:
    """A comparison of other resolutions with the given errors in one column."""
    rows = tuple(
        dataclasses.replace(
            base.rows[0],
            res=res,
            pixel_size=base.slice.pixel_size(res),
            extrapolation_trustworthy=res not in untrusted,
            **{name: error},
        )
        for res, error in errors.items()
    )
    return dataclasses.replace(base, rows=rows)


def test_a_hand_made_network_is_measured_as_computed_by_hand() -> None:
    found = rg.compare(bands(), rg.Slice.square(1.0), (32, 8))
    coarse, fine = found.rows
    assert (coarse.res, coarse.pixel_size, fine.res, fine.pixel_size) == (8, 0.25, 32, 0.0625)
    # Pixel centres at odd multiples of 1/8 (a centre on a line is not on its positive side), then of 1/32.
    assert (coarse.regions_exact, coarse.regions_grid, coarse.matched, coarse.missed) == (8, 6, 6, 2)
    assert coarse.count_error == pytest.approx(-0.25)
    assert coarse.components_error == pytest.approx(-0.25)
    assert coarse.missed_area_share == pytest.approx(0.03125 * 2 / 4)
    assert coarse.missed_area_median == pytest.approx(0.03125 * (0.75 + 1.25) / 2 / 0.0625)
    assert coarse.missed_area_max == pytest.approx(0.03125 * 1.25 / 0.0625)
    assert (fine.matched, fine.missed, fine.count_error) == (8, 0, 0.0)
    assert (fine.missed_area_share, fine.missed_area_median, fine.missed_area_max) == (0.0, None, None)
    assert found.missed(32).size == 0
    narrow = found.exact.regions.centroid_u[found.missed(8)]
    np.testing.assert_allclose(narrow, 0.140625, rtol=1e-12)
    # Three lines are seen, each by 8 edges, 14 diagonals and two rim edges; at both crossings two diagonals cross two.
    length = math.pi / 8 * 0.25 * (3 * 8 + (3 * 14 - 4) / math.sqrt(2) + 1.5 * 6)
    assert coarse.boundary_error == pytest.approx(length / 8 - 1, rel=1e-12)
    # The column of pixel centres on the line u = 0.125 belongs to its left: 3 columns where 2.5 would be right.
    sizes = {one.label: one for one in coarse.sizes}
    assert {label: one.regions for label, one in sizes.items()} == {
        "1-4": 0, "5-24": 6, "25-99": 0, "100-999": 0, "1000+": 0,
    }  # fmt: skip
    assert sizes["5-24"].area_max == pytest.approx(3 / 2.5 - 1)
    assert sizes["1-4"].area_max is None


def test_joins_and_errors_agree_with_dictionaries(random_comparison: Comparison) -> None:
    exact = random_comparison.exact.regions
    areas, shapes = (dict(zip(exact.pattern.tolist(), exact[name].tolist())) for name in ("area", "eccentricity"))
    for row in random_comparison.rows:
        grid = rg.estimate(random_comparison.network, random_comparison.slice, row.res)
        patterns = grid.regions.pattern.tolist()
        both = set(patterns) & set(areas)
        assert (row.regions_exact, row.regions_grid) == (len(exact), len(patterns))
        assert (row.matched, row.missed, row.spurious) == (len(both), len(set(areas) - both), len(set(patterns) - both))
        missed = random_comparison.missed(row.res)
        assert set(exact.pattern[missed].tolist()) == set(areas) - both
        assert row.missed_area_share == pytest.approx(sum(areas[key] for key in set(areas) - both) / 64)
        summary = grid.summary()
        assert row.count_extrapolated_error == pytest.approx(summary["regions_extrapolated"] / len(exact) - 1)
        assert row.components_error == pytest.approx(summary["components"] / len(exact) - 1)
        length = random_comparison.exact.boundary_length
        extrapolated = summary["boundary"]["length_extrapolated"]
        assert row.boundary_extrapolated_error == pytest.approx(extrapolated / length - 1)
        assert row.evaluations == grid.image.evaluations
        pixels, found, ecc = (grid.regions[name].tolist() for name in ("pixels", "area", "eccentricity"))
        for one, (least, most) in zip(row.sizes, SIZE_CLASSES, strict=True):
            chosen = [k for k, n in enumerate(pixels) if n >= least and (most is None or n <= most)]
            assert one.regions == len(chosen)
            if chosen:
                errors = [abs(found[k] / areas[patterns[k]] - 1) for k in chosen]
                assert one.area_max == pytest.approx(max(errors))
                assert one.area_median == pytest.approx(np.median(errors))
                assert one.area_p95 == pytest.approx(np.percentile(errors, 95))
                errors = [abs(ecc[k] - shapes[patterns[k]]) for k in chosen]
                assert one.eccentricity_max == pytest.approx(max(errors))
        assert sum(one.regions for one in row.sizes) == row.matched


@pytest.mark.parametrize("seed", range(4))
def test_on_random_networks_nothing_is_invented_and_the_lower_bracket_holds(seed: int) -> None:
    torch.manual_seed(seed)
    net = rg.load_network(mlp([5, 20, 20, 20, 2], [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6][seed]))
    found = rg.compare(net, random_slice(5, 3.0, seed), (31, 64, 125), sampling="dense" if seed % 2 else "adaptive")
    for row in found.rows:
        assert row.matched + row.missed == row.regions_exact == len(found.exact.regions)
        assert row.matched + row.spurious == row.regions_grid
        assert row.spurious_unexplained == 0
        assert (row.lower_violations, row.lower_excess) == (0, 0.0)
    assert found.summary()["warnings"] == []


def test_convolutions_and_max_pooling_join_too() -> None:
    torch.manual_seed(0)
    net = rg.load_network(ConvNet().eval(), input_shape=(1, 6, 6))
    (row,) = rg.compare(net, random_slice(36, 3.0, seed=2), [96]).rows
    assert row.matched > 50
    assert row.spurious_unexplained == row.lower_violations == 0


def test_errors_fall_with_the_pixel_size(random_comparison: Comparison) -> None:
    orders = random_comparison.orders
    assert set(orders) == set(QUANTITIES)
    for quantity in ("regions", "boundary", "missed_area"):
        fit = orders[quantity]
        assert fit is not None
        assert 0.5 < fit.order < 4
    assert orders["missed_area"].order > 2  # fewer regions are missed, and smaller ones in both directions


class Kinks(nn.Module):
    """Two units that choose the larger of u and -u, asked in opposite orders: at u = 0 both take the first."""

    def forward(self, x: Tensor) -> Tensor:
        u = x[:, :1]
        return torch.cat([torch.maximum(u, -u), torch.maximum(-u, u)], 1)


@pytest.mark.parametrize(
    ("net", "patterns"),
    [
        (lines([[1, 0], [-1, 0]], [0, 0]), 1),  # both off on a line
        (lines([[1, 0], [0, 1], [-1, -1]], [0, 0, 0]), 1),  # all off at a point
        (rg.load_network(Kinks(), input_shape=(2,)), 1),
        (lines([[1, 0]] * 40 + [[-1, 0]] * 40, [0] * 80), 1),  # more close decisions than bits of a hash
    ],
    ids=["line", "point", "maximum", "many"],
)
def test_patterns_of_pixels_on_a_boundary_are_explained(net: rg.Network, patterns: int) -> None:
    odd, even = rg.compare(net, rg.Slice.square(1.0), (16, 15)).rows  # 15 pixels have a centre at u = 0
    assert (odd.spurious, odd.spurious_rounding, odd.spurious_unexplained) == (patterns, patterns, 0)
    assert even.spurious == 0


def test_decisions_are_close_within_rounding_only() -> None:
    net = lines([[1, 0], [0, 1], [1, 0]], [-0.5, 0, -0.5])
    folded = restrict(net.program, rg.Slice.square(1.0))
    uv = np.array([[0.5 + 1e-15, 0.3], [0.5 + 1e-10, 0.3], [-0.2, 0.0], [0.5, -1e-16]])
    keys = [int(key) for key in decision_keys(0, 3)]
    close = [set(masks) for masks in comparison._close_decisions(folded, uv, 0)]
    assert close == [{keys[0], keys[2]}, set(), {keys[1]}, set(keys)]


def test_what_xors_reach() -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(1, 2**63, 6).tolist()
    basis = comparison._independent([*masks, masks[0] ^ masks[3], 0, masks[1] ^ masks[2] ^ masks[5]])
    assert len(basis) == 6
    others = rng.integers(1, 2**63, 1000).astype(np.uint64)
    assert not comparison._reaches(others, basis)
    for chosen in itertools.product((0, 1), repeat=6):
        target = np.uint64(0)
        for take, mask in zip(chosen, masks):
            target ^= np.uint64(take * mask)
        assert comparison._reaches(np.append(others, target), basis)


def tampered(random_comparison: Comparison, flips: np.ndarray) -> Accuracy:
    """The accuracy of a 32 x 32 grid some of whose pixels have another hash."""
    plane = random_comparison.slice
    found = rg.estimate(random_comparison.network, plane, 32)
    hashes = found.image.hashes ^ flips
    regions, totals = measure_regions(hashes, plane.pixel_size(32))
    image = dataclasses.replace(found.image, pixels=hashes)
    wrong = dataclasses.replace(found, image=image, regions=regions, totals=totals)
    folded = restrict(random_comparison.network.program, plane)
    return measure_accuracy(random_comparison.exact, wrong, folded)[0]


def test_a_wrong_pattern_is_not_explained(random_comparison: Comparison) -> None:
    flips = np.zeros((32, 32), np.uint64)
    assert tampered(random_comparison, flips).spurious == 0
    flips[3, 7], flips[20, 11] = 1 << 17, 1 << 40
    row = tampered(random_comparison, flips)
    assert (row.spurious, row.spurious_rounding, row.spurious_unexplained) == (2, 0, 2)
    warned = dataclasses.replace(random_comparison, rows=(row,)).summary()["warnings"]
    assert len(warned) == 1
    assert "patterns that no polygon has" in warned[0]


def test_areas_outside_their_bracket_are_counted(random_comparison: Comparison) -> None:
    plane, exact = random_comparison.slice, random_comparison.exact
    found = rg.estimate(random_comparison.network, plane, 128)
    folded = restrict(random_comparison.network.program, plane)
    pixel = plane.pixel_size(128) ** 2
    chosen = np.flatnonzero(np.isin(exact.regions.pattern, found.regions.pattern[found.regions.pixels > 400]))[:2]
    areas = exact.regions.area.copy()
    rows = [np.flatnonzero(found.regions.pattern == exact.regions.pattern[row])[0] for row in chosen]
    areas[chosen[0]] = found.regions.area_lower[rows[0]] - 3 * pixel
    areas[chosen[1]] = found.regions.area_upper[rows[1]] + 5 * pixel
    wrong = dataclasses.replace(exact, regions=exact.regions.with_columns(area=areas))
    row, _ = measure_accuracy(wrong, found, folded)
    honest, _ = measure_accuracy(exact, found, folded)
    assert (row.lower_violations, row.upper_violations) == (1, honest.upper_violations + 1)
    assert row.lower_excess == pytest.approx(3, rel=1e-5)
    assert row.upper_excess == pytest.approx(5, rel=1e-5)
    assert "smaller than the lower end" in dataclasses.replace(random_comparison, rows=(row,)).summary()["warnings"][0]


def test_orders_are_those_of_power_laws(random_comparison: Comparison) -> None:
    pixel = random_comparison.slice.pixel_size
    found = with_errors(random_comparison, "count_error", {res: -0.3 * pixel(res) ** 1.5 for res in (32, 64, 100)})
    fit = found.orders["regions"]
    assert fit is not None
    assert (fit.order, fit.resolutions) == (pytest.approx(1.5), (32, 64, 100))
    assert fit.error(0.01) == pytest.approx(0.3 * 0.01**1.5)


@pytest.mark.parametrize(
    ("errors", "untrusted", "used"),
    [
        ({32: -0.4, 64: 0.0, 128: -0.1}, (), (32, 128)),
        ({32: -0.4, 64: -0.3, 128: -0.15, 256: -0.075}, (32, 64), (128, 256)),
        ({32: -0.4, 64: -0.3, 128: -0.15}, (32, 64), (32, 64, 128)),
        ({32: 0.4, 64: -0.1}, (), None),
        ({32: 0.0, 64: -0.1}, (), None),
    ],
    ids=["zero", "coarse", "one-trusted", "sign", "one"],
)
def test_what_an_order_is_fitted_to(
    random_comparison: Comparison, errors: dict[int, float], untrusted: tuple[int, ...], used: tuple[int, ...] | None
) -> None:
    fit = with_errors(random_comparison, "count_error", errors, untrusted).orders["regions"]
    assert (None if fit is None else fit.resolutions) == used


@pytest.mark.parametrize(
    ("accuracy", "res", "extrapolated"),
    [(0.5, 32, False), (0.2, 64, False), (0.1, 128, False), (0.051, 256, True), (0.01, 2048, True), (1e-9, None, None)],
)
def test_recommended_resolution(
    random_comparison: Comparison, accuracy: float, res: int | None, extrapolated: bool | None
) -> None:
    found = with_errors(random_comparison, "count_error", {32: -0.4, 64: -0.2, 128: -0.1})
    advice = found.recommended(accuracy)
    if res is None:
        assert advice is None
        return
    assert advice is not None
    assert (advice.res, advice.extrapolated) == (res, extrapolated)
    assert advice.error == pytest.approx(0.4 * 32 / res)
    assert advice.error <= accuracy


def test_an_error_that_is_small_by_chance_recommends_nothing(random_comparison: Comparison) -> None:
    found = with_errors(random_comparison, "count_extrapolated_error", {32: -0.001, 64: 0.04, 128: 0.005})
    assert found.recommended(0.01, "regions_extrapolated") == (128, 0.005, False)
    assert found.recommended(0.001, "regions_extrapolated") is None
    growing = with_errors(random_comparison, "count_error", {32: -0.1, 64: -0.2})
    assert growing.recommended(0.01) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.recommended(0), "accuracy is 0;"),
        (lambda c: c.recommended(math.nan), "accuracy is nan;"),
        (lambda c: c.recommended(0.1, "area"), "quantity is 'area'; it must be one of regions, "),
        (lambda c: c.missed(33), "res is 33; the resolutions compared are 32, 64, 128, 256"),
        (lambda c: c.plot(res=33), "res is 33;"),
        (lambda c: c.plot("figure.gif"), "'figure.gif'"),
        (lambda c: c.write("table.txt"), "'table.txt'"),
        (lambda c: rg.compare(c.network, [], (8,)), "no slice was given"),
        (lambda c: rg.compare(c.network, c.slice, ()), "no resolution was given"),
        (lambda c: rg.compare(c.network, c.slice, (8, 0)), "a resolution is 0;"),
        (lambda c: rg.compare(c.network, c.slice, (8, 8.5)), "a resolution is 8.5;"),
        (lambda c: rg.compare(c.network, c.slice, (8,), sampling="random"), "sampling is 'random'"),
    ],
)
def test_errors_name_what_was_wrong(random_comparison: Comparison, call: Any, message: str) -> None:
    with pytest.raises(rg.InputError) as raised:
        call(random_comparison)
    assert message in str(raised.value)


def test_memory_is_checked_before_any_work(random_comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "estimate", None)
    with pytest.raises(rg.MemoryLimitError, match="res 4096 needs"):
        rg.compare(random_comparison.network, random_comparison.slice, (8, 4096), max_memory=10**8)


def test_several_slices_and_progress() -> None:
    told: list[tuple[int, float]] = []
    planes = [rg.Slice.square(1.0), rg.Slice.square(0.05)]
    one, other = rg.compare(bands(), planes, (8, 8, 16), progress=lambda number, share: told.append((number, share)))
    assert [row.res for row in one.rows] == [8, 16]
    assert one.exact.slice is planes[0]
    for number in (0, 1):
        shares = [share for which, share in told if which == number]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)
    # Nothing switches near the origin but in the outer half of the larger square.
    assert [len(other.exact.regions), other.rows[0].count_error, other.rows[0].boundary_error] == [1, 0.0, 0.0]
    assert set(other.orders.values()) == {None}


def test_csv_gives_every_number_back(random_comparison: Comparison, tmp_path: Path) -> None:
    random_comparison.write(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(random_comparison.rows)
    for text, row in zip(table, random_comparison.rows):
        expected = row.flat()
        assert list(text) == list(expected)
        assert expected["pixels_25_99_regions"] == row.sizes[2].regions
        for name, value in expected.items():
            read = {"": None, "true": True, "false": False}.get(text[name], text[name])
            assert (float(read) if isinstance(read, str) else read) == value, name
    assert not list(tmp_path.glob(".*"))


def test_summary_is_plain_json(random_comparison: Comparison) -> None:
    summary = random_comparison.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert [row["res"] for row in summary["resolutions"]] == [32, 64, 128, 256]
    assert summary["resolutions"][2] == random_comparison.rows[2].to_dict()
    assert summary["regions"] == len(random_comparison.exact.regions)


def test_the_window_holds_the_most_missed_regions_and_lies_in_the_slice(
    random_comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_plot, "_MOST_REGIONS", 10**6)
    u, v, side = comparison_plot._window(random_comparison, 64)
    pixel = random_comparison.slice.pixel_size(64)
    assert side == pytest.approx(40 * pixel)
    assert min(u, v) >= -4 - 1e-12
    assert max(u, v) + side <= 4 + 1e-12
    missed = random_comparison.exact.regions.take(random_comparison.missed(64))

    def inside(low_u: float, low_v: float) -> int:
        offset_u, offset_v = missed.centroid_u - low_u, missed.centroid_v - low_v
        return int(((offset_u >= 0) & (offset_u < side) & (offset_v >= 0) & (offset_v < side)).sum())

    places = -4 + 10 * pixel * np.arange(3)
    assert inside(u, v) == max(inside(*place) for place in itertools.product(places, places)) > 0
    assert comparison_plot._window(random_comparison, 32) == (-4, -4, 8)  # few enough pixels to be drawn whole


def test_crowded_windows_are_smaller(random_comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    pixel = random_comparison.slice.pixel_size(128)
    sides = []
    for most in (10**6, 200, 100):
        monkeypatch.setattr(comparison_plot, "_MOST_REGIONS", most)
        u, v, side = comparison_plot._window(random_comparison, 128)
        offset = np.stack([random_comparison.exact.regions[f"centroid_{name}"] for name in "uv"], axis=1) - (u, v)
        assert np.count_nonzero(((offset > 0) & (offset < side)).all(axis=1)) <= most
        sides.append(round(side / pixel))
    assert sides[0] == 40
    assert sides == sorted(set(sides), reverse=True)


def test_missed_regions_are_filled_in_their_place(random_comparison: Comparison) -> None:
    figure = random_comparison.plot(res=32)
    (fill,) = [c for c in figure.axes[0].collections if isinstance(c, mpl.collections.PathCollection)]
    assert mpl.colors.to_hex(fill.get_facecolor()[0]) == comparison_plot.MISSED
    drawn = fill.get_paths()[0].vertices
    polygons = random_comparison.exact.polygons
    expected = [polygons.outline(int(row)) for row in random_comparison.missed(32)]
    corners = np.concatenate([[*outline, outline[0]] for outline in expected])
    np.testing.assert_array_equal(drawn, corners)


@pytest.mark.parametrize("half_width", [1.0, 3.7e-7, 1.5e4])
@pytest.mark.parametrize("resolutions", [(16,), (64, 128, 200), (64, 128, 256, 512, 1024)], ids=len)
def test_no_text_overlaps_another_or_leaves_the_figure(half_width: float, resolutions: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    net = lines(rng.standard_normal((60, 2)).tolist(), (half_width * rng.uniform(-1, 1, 60)).tolist())
    figure = rg.compare(net, rg.Slice.square(half_width), resolutions).plot()
    figure.draw_without_rendering()
    texts = [*figure.texts]
    for ax in figure.axes:
        texts += [ax.xaxis.label, ax.yaxis.label, *ax.get_legend().get_texts()] if ax.get_legend() else []
        for axis in (ax.xaxis, ax.yaxis):
            low, high = axis.get_view_interval()
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    assert len(boxes) >= 18
    page = figure.bbox
    assert [name for name, box in boxes if not (page.contains(*box.min) and page.contains(*box.max))] == []
    assert [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)] == []


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figure_files_are_small_and_the_same_each_time(
    random_comparison: Comparison, tmp_path: Path, suffix: str
) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    random_comparison.plot(first, res=64)
    random_comparison.plot(second, res=64)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 300_000


def test_a_slice_of_one_region_can_be_drawn(tmp_path: Path) -> None:
    found = rg.compare(bands(), rg.Slice.square(0.05), (8, 64))
    found.plot(tmp_path / "one.png")
    labels = [text.get_text() for text in found.plot().axes[2].get_legend().get_texts()]
    assert "regions: no error" in labels


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "net.pt"
    torch.manual_seed(0)
    torch.save(mlp([2, 16, 16, 2]).state_dict(), path)
    return path


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "80", "REGIONGRID_DEBUG": None})


def test_command_prints_and_writes_what_the_library_finds(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(
        "--ckpt", checkpoint, "--half-width", "3", "--res", "64,16,64,32", "--accuracy", "0.05", "--out", out
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    expected = rg.compare(checkpoint, rg.Slice.square(3.0), (16, 32, 64))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["schema"], summary["engine"], summary["complete"]) == ("regiongrid.comparison/1", "compare", True)
    (one,) = summary["slices"]
    timed = {"seconds_grid", "seconds_exact"}
    for found, row in zip(one["resolutions"], expected.rows, strict=True):
        assert {k: v for k, v in found.items() if k not in timed} == {
            k: v for k, v in row.to_dict().items() if k not in timed
        }
    advice = expected.recommended(0.05)
    assert one["recommended"]["regions"] == (None if advice is None else advice._asdict())
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.csv", "comparison.png", "slice.npz", "summary.json",
    ]  # fmt: skip
    table = [line.split() for line in result.stdout.splitlines()]
    for row in expected.rows:
        (cells,) = [cells for cells in table if cells[:1] == [str(row.res)]]
        assert cells[1] == f"{row.regions_grid:,}"
        assert cells[2] == f"{100 * row.count_error:+.3g}%"
    assert ["exact", f"{len(expected.exact.regions):,}"] in [cells[:2] for cells in table]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Within 5%" in result.stdout


def test_json_is_all_of_stdout(checkpoint: Path) -> None:
    result = invoke("--ckpt", checkpoint, "--res", "16", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["slices"][0]["resolutions"][0]["res"] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--res", "16,x"], "--res must be whole numbers"),
        (["--res", "0"], "--res must be whole numbers of at least 1"),
        (["--res", "40000,16"], "--res must be numbers of pixels from 1 to"),
        (["--accuracy", "0"], "--accuracy must be a positive number"),
        (["--res", "4096", "--max-memory", "10M"], "res 4096 needs"),
        (["--figure", "pdf"], "add --out DIR"),
        (["--device", "gpu"], "device is 'gpu'; it must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_bad_options_end_with_code_2(checkpoint: Path, arguments: list[str], message: str) -> None:
    result = invoke("--ckpt", checkpoint, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_several_slices_are_reported_one_by_one(checkpoint: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((9, 2))
    np.save(tmp_path / "x.npy", x)
    arguments = ["--data", tmp_path / "x.npy", "--slices", "2", "--res", "8,16", "--figure", "svg"]
    result = invoke("--ckpt", checkpoint, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "Slice 0" in result.stdout
    assert "Slice 1" in result.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"comparison-000.csv", "comparison-001.csv", "comparison-001.svg", "summary.json"} <= names


def test_interrupt_keeps_the_finished_slices(checkpoint: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((30, 2)))
    out = tmp_path / "out"
    command = [sys.executable, "-c", LAUNCH, "compare", "--ckpt", checkpoint, "--data", tmp_path / "x.npy"]
    process = subprocess.Popen(
        [*map(os.fspath, command), "--slices", "200", "--res", "64,128", "--out", out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not (out / "summary.json").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stderr) == (130, b"interrupted\n")
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["complete"]
    assert f"only {len(summary['slices'])} slice" in stdout.decode()
    for one in summary["slices"]:
        assert len((out / one["files"]["comparison"]).read_text().splitlines()) == 3
    assert not list(out.glob(".*"))


def test_the_first_estimate_checks_the_options_before_the_polygons_are_found(
    random_comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "find_polygons", None)
    with pytest.raises(rg.InputError, match="dtype is 'half'; it must be one of auto"):
        rg.compare(random_comparison.network, random_comparison.slice, (8,), dtype="half")
    assert "half" not in estimation.DTYPES
