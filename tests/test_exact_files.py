"""Polygons in files: every bit back, arrays for anyone, GeoJSON, and clear errors for damaged files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrangements import as_exact, jittered_grid, uneven

import regiongrid as rg
from regiongrid.subdivision import Exact, export
from regiongrid.subdivision.export import load_polygons, save_polygons


@pytest.fixture(scope="module")
def exact() -> Exact:
    return as_exact(uneven(), anchors=[[0.25, -0.5]])


@pytest.fixture
def arrays(exact: Exact, tmp_path: Path) -> dict[str, np.ndarray]:
    save_polygons(exact, tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz", allow_pickle=False) as archive:
        return dict(archive)


def columns_of(polygons: Any) -> dict[str, np.ndarray]:
    own = {name: value for name, value in vars(polygons).items() if isinstance(value, np.ndarray)}
    return {**own, **{f"side_{name}": value for name, value in vars(polygons.sides).items()}}


def shoelace(ring: np.ndarray) -> float:
    (u, v), (following_u, following_v) = ring[:-1].T, ring[1:].T
    return float((u * following_v - following_u * v).sum() / 2)


def test_npz_gives_every_bit_back(exact: Exact, tmp_path: Path) -> None:
    file = tmp_path / "polygons.npz"
    save_polygons(exact, file)
    polygons, pattern = load_polygons(file)
    expected, found = columns_of(exact.polygons), columns_of(polygons)
    assert found.keys() >= expected.keys() - {"side_lengths"}
    for name in expected.keys() - {"side_lengths"}:
        assert found[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    np.testing.assert_array_equal(pattern, exact.regions.pattern)
    assert pattern.dtype == np.uint64
    np.testing.assert_array_equal(polygons.outline(3), exact.polygons.outline(3))


def test_npz_holds_plain_arrays_of_the_documented_names(exact: Exact, arrays: dict[str, np.ndarray]) -> None:
    assert arrays.keys() == {
        "points", "starts", "corners", "corner_sides", "corner_lines", "side_first", "side_second", "side_left",
        "side_right", "side_stage", "side_unit", "side_threshold", "pattern", "area", "origin", "u", "v", "half_width",
        "anchors", "description",
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["area"], exact.regions.area)


def test_npz_is_a_slice_file_too(exact: Exact, tmp_path: Path) -> None:
    save_polygons(exact, tmp_path / "polygons.npz")
    plane = rg.Slice.load(tmp_path / "polygons.npz")
    assert (plane.half_width, plane.description) == (exact.slice.half_width, "by hand")
    for name in ("origin", "u", "v", "anchors"):
        np.testing.assert_array_equal(getattr(plane, name), getattr(exact.slice, name))


def test_json_has_a_closed_ring_and_the_properties_of_every_region(exact: Exact, tmp_path: Path) -> None:
    save_polygons(exact, tmp_path / "polygons.json")
    collection = json.loads((tmp_path / "polygons.json").read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    assert collection["slice"] == {"half_width": 1.0, "anchors": [[0.25, -0.5]], "description": "by hand"}
    assert len(collection["features"]) == len(exact.regions)
    for row, feature in enumerate(collection["features"]):
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        np.testing.assert_array_equal(ring[:-1], exact.polygons.outline(row))
        properties = feature["properties"]
        assert properties.keys() == {"pattern", "area", "depth", "eccentricity"}
        assert properties["pattern"] == f"0x{int(exact.regions.pattern[row]):016x}"
        assert shoelace(np.array(ring)) == pytest.approx(properties["area"], rel=1e-9)
        assert properties["eccentricity"] == exact.regions.eccentricity[row]
        assert type(properties["depth"]) is int


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_files_are_the_same_each_time_and_for_any_chunk(
    exact: Exact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, chunk: int
) -> None:
    save_polygons(exact, tmp_path / f"first.{suffix}")
    monkeypatch.setattr(export, "_CHUNK_REGIONS", chunk)
    save_polygons(exact, tmp_path / f"second.{suffix}")
    assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()


def test_a_single_region_can_be_written_and_read(tmp_path: Path) -> None:
    square = as_exact(jittered_grid(1, half_width=3.0))
    for suffix in export.FORMATS:
        save_polygons(square, tmp_path / f"polygons.{suffix}")
    assert len(load_polygons(tmp_path / "polygons.npz").polygons) == 1
    (feature,) = json.loads((tmp_path / "polygons.json").read_text())["features"]
    assert feature["properties"]["area"] == 36


def test_json_has_null_where_a_number_is_not_finite(exact: Exact, tmp_path: Path) -> None:
    regions = exact.regions.with_columns(eccentricity=np.full(len(exact.regions), np.nan))
    save_polygons(dataclasses.replace(exact, regions=regions), tmp_path / "polygons.json")
    features = json.loads((tmp_path / "polygons.json").read_text(), parse_constant=pytest.fail)["features"]
    assert {feature["properties"]["eccentricity"] for feature in features} == {None}


def test_other_suffixes_are_refused(exact: Exact, tmp_path: Path) -> None:
    with pytest.raises(rg.InputError, match=r"\.npz or \.json file, got '.*polygons\.svg'"):
        save_polygons(exact, tmp_path / "polygons.svg")
    with pytest.raises(rg.InputError, match=r"read from a \.npz file, got '.*polygons\.json'"):
        load_polygons(tmp_path / "polygons.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_a_failed_write_leaves_the_old_file(
    exact: Exact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    file = tmp_path / f"polygons.{suffix}"
    file.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    monkeypatch.setattr(export, "_features", fail)
    with pytest.raises(rg.RegiongridError, match="No space left"):
        save_polygons(exact, file)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def changed(arrays: dict[str, np.ndarray], name: str, index: Any, value: float) -> dict[str, np.ndarray]:
    array = arrays[name].copy()
    array[index] = value
    return {**arrays, name: array}


DAMAGED = {
    "no points": (lambda a: {k: v for k, v in a.items() if k != "points"}, "lacks points; it holds starts, "),
    "other type": (lambda a: {**a, "corners": a["corners"].astype(float)}, "corners must be int32 .* got float64"),
    "other shape": (lambda a: {**a, "starts": a["starts"][:, None]}, r"starts must be int64 with 1 dimension"),
    "objects": (lambda a: {**a, "starts": np.array([None, 1])}, "is not a readable .npz archive"),
    "nan": (lambda a: changed(a, "points", (0, 1), np.nan), "points must have shape .* finite"),
    "three columns": (lambda a: {**a, "points": np.c_[a["points"], a["points"][:, :1]]}, "points must have shape"),
    "no polygon": (lambda a: {**a, "starts": a["starts"][:0]}, "starts must rise"),
    "a digon": (lambda a: changed(a, "starts", 1, 2), "starts must rise"),
    "corners left over": (lambda a: {**a, "corners": np.r_[a["corners"], a["corners"][:1]]}, "starts must rise"),
    "lines missing": (lambda a: {**a, "corner_lines": a["corner_lines"][1:]}, "columns of corners have different len"),
    "units missing": (lambda a: {**a, "side_unit": a["side_unit"][1:]}, "columns of sides have different lengths"),
    "pattern missing": (lambda a: {**a, "pattern": a["pattern"][1:]}, "patterns for"),
    "corner beyond": (lambda a: changed(a, "corners", 0, 10**6), "corners must lie from 0 to"),
    "negative side": (lambda a: changed(a, "corner_sides", 0, -1), "corner_sides must lie from 0 to .* got -1"),
    "region beyond": (lambda a: changed(a, "side_left", 0, 10**6), "side_left must lie from -1 to"),
    "another corner": (lambda a: {**a, "corners": np.roll(a["corners"], 1)}, "do not run from corner to corner"),
    "another region": (lambda a: {**a, "side_left": a["side_right"]}, "with their polygon beside them"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_an_error_that_says_what_is_wrong(
    name: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    damage, message = DAMAGED[name]
    np.savez(tmp_path / "bad.npz", **damage(arrays))
    with pytest.raises(rg.InputError, match=f"polygon file .*bad.npz.*{message}"):
        load_polygons(tmp_path / "bad.npz")


def test_files_of_another_kind_are_an_error(exact: Exact, tmp_path: Path) -> None:
    exact.slice.save(tmp_path / "slice.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(rg.InputError, match=r"lacks points, starts, pattern, .*it holds origin, u, v"):
        load_polygons(tmp_path / "slice.npz")
    for name in ("text.npz", "missing.npz"):
        with pytest.raises(rg.InputError, match=name):
            load_polygons(tmp_path / name)
