"""Slices: orthonormal axes, anchors in their places, files, and errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regiongrid.errors import InputError, RegiongridError
from regiongrid.files import atomic_path
from regiongrid.slices import Slice, slices_from_data

seeds = st.integers(0, 2**32 - 1)
dimensions = st.integers(2, 60)


def three_points(seed: int, d: int, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((3, d))


def exact_dot(a: np.ndarray, b: np.ndarray) -> float:
    """Dot product without the rounding of the sum, so that the axes are tested and not the test."""
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def assert_orthonormal(plane: Slice, tolerance: float = 1e-15) -> None:
    assert abs(exact_dot(plane.u, plane.u) - 1.0) <= tolerance
    assert abs(exact_dot(plane.v, plane.v) - 1.0) <= tolerance
    assert abs(exact_dot(plane.u, plane.v)) <= tolerance


class TestThrough:
    @given(seeds, dimensions, st.floats(1e-6, 1e6))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_axes_orthonormal_and_anchors_reproduced(self, seed: int, d: int, scale: float) -> None:
        points = three_points(seed, d, scale)
        plane = Slice.through(*points)
        assert_orthonormal(plane)
        np.testing.assert_allclose(plane.points(plane.anchors), points, rtol=0, atol=1e-14 * np.abs(points).max() * d)
        np.testing.assert_allclose(plane.coordinates(points), plane.anchors, rtol=0, atol=1e-13 * scale * d)

    @given(seeds, dimensions, st.floats(1e-7, 1e-2))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_axes_orthonormal_for_nearly_collinear_anchors(self, seed: int, d: int, height: float) -> None:
        x0, x1, off = three_points(seed, d)
        plane = Slice.through(x0, x1, 0.3 * x0 + 0.7 * x1 + height * off)
        assert_orthonormal(plane)

    @pytest.mark.parametrize("d", [784, 150_528])
    def test_axes_orthonormal_in_many_dimensions(self, d: int) -> None:
        x0, x1, off = three_points(0, d)
        assert_orthonormal(Slice.through(x0, x1, off))
        assert_orthonormal(Slice.through(x0, x1, 0.5 * (x0 + x1) + 1e-6 * off))
        assert_orthonormal(Slice.around(x0, 1.0))

    def test_definition(self) -> None:
        x0, x1, x2 = three_points(3, 7)
        plane = Slice.through(x0, x1, x2)
        a = (x1 - x0) / np.linalg.norm(x1 - x0)
        b = (x2 - x0) - ((x2 - x0) @ a) * a
        np.testing.assert_allclose(plane.origin, (x0 + x1 + x2) / 3, atol=1e-15)
        np.testing.assert_allclose(plane.u, a, atol=1e-15)
        np.testing.assert_allclose(plane.v, b / np.linalg.norm(b), atol=1e-14)
        assert plane.half_width == 1.5 * np.abs(plane.anchors).max()
        np.testing.assert_allclose(plane.anchors.sum(axis=0), 0.0, atol=1e-14)

    def test_half_width_given(self) -> None:
        assert Slice.through(*three_points(0, 4), half_width=0.25).half_width == 0.25

    def test_images_and_tensors_are_flattened(self) -> None:
        images = torch.from_numpy(three_points(1, 12)).reshape(3, 1, 3, 4)
        plane = Slice.through(*images.to(torch.bfloat16))
        assert plane.dimension == 12
        expected = Slice.through(*images.to(torch.bfloat16).double().reshape(3, 12).numpy())
        np.testing.assert_array_equal(plane.u, expected.u)
        images.requires_grad_(True)
        np.testing.assert_array_equal(Slice.through(*images).origin, Slice.through(*three_points(1, 12)).origin)

    @pytest.mark.parametrize(
        ("points", "named"),
        [
            ([[1, 2, 3], [1, 2, 3], [0, 0, 1]], "x0 and x1 are equal"),
            ([[1, 2, 3], [0, 0, 1], [1, 2, 3]], "x0 and x2 are equal"),
            ([[0, 0, 1], [1, 2, 3], [1, 2, 3 + 1e-12]], "x1 and x2 are equal"),
            ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], "x0 and x1 are equal"),
            ([[0, 0, 0], [1, 1, 1], [2, 2, 2]], "x0, x1 and x2 lie on a line"),
            ([[0, 0, 0], [1, 1, 1], [3, 3, 3 + 1e-9]], "x0, x1 and x2 lie on a line"),
            ([[1e6, 1e6, 0.1], [1e6 + 0.01, 1e6, 0.1], [1e6 + 0.02, 1e6 + 1e-10, 0.1]], "x0, x1 and x2 lie on a line"),
        ],
        ids=["01", "02", "12", "zeros", "line", "nearly line", "line within rounding"],
    )
    def test_degenerate_anchors_are_named(self, points: list[list[float]], named: str) -> None:
        with pytest.raises(InputError, match=rf"anchors {named}") as caught:
            Slice.through(*points)
        assert "choose another anchor" in str(caught.value)

    def test_sizes_must_agree(self) -> None:
        with pytest.raises(InputError, match=r"same size, got \{'x0': 3, 'x1': 3, 'x2': 2\}"):
            Slice.through([0, 0, 1], [0, 1, 0], [1, 0])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
    def test_entries_must_be_finite(self, bad: float) -> None:
        with pytest.raises(InputError, match=r"anchor x1 must be finite.*1 of 3 entries"):
            Slice.through([0, 0, 1], [0, bad, 0], [1, 0, 0])

    def test_numbers_only(self) -> None:
        with pytest.raises(InputError, match=r"anchor x0 must be real numbers"):
            Slice.through(["1", "2"], [0, 1], [1, 0])
        with pytest.raises(InputError, match=r"anchor x0 must be real numbers"):
            Slice.through([1j, 2], [0, 1], [1, 0])
        with pytest.raises(InputError, match=r"anchor x0 must be numbers in a regular array"):
            Slice.through([[1, 2], [3]], [0, 1], [1, 0])


class TestOtherConstructors:
    @given(seeds, dimensions, seeds)
    @settings(max_examples=40, deadline=None, derandomize=True)
    def test_around(self, point_seed: int, d: int, seed: int) -> None:
        x0 = np.random.default_rng(point_seed).standard_normal(d)
        plane = Slice.around(x0, 0.5, seed)
        assert_orthonormal(plane)
        np.testing.assert_array_equal(plane.origin, x0)
        np.testing.assert_array_equal(plane.anchors, [[0.0, 0.0]])
        assert plane.half_width == 0.5
        np.testing.assert_array_equal(Slice.around(x0, 0.5, seed).u, plane.u)

    def test_around_spans_the_documented_gaussian_vectors(self) -> None:
        a, b = np.random.Generator(np.random.PCG64(11)).standard_normal((2, 9))
        plane = Slice.around(np.zeros(9), 1.0, seed=11)
        projector = np.outer(plane.u, plane.u) + np.outer(plane.v, plane.v)
        np.testing.assert_allclose(projector @ a, a, atol=1e-14)
        np.testing.assert_allclose(projector @ b, b, atol=1e-14)
        assert plane.u @ a == pytest.approx(np.linalg.norm(a))
        assert "seed 11" in plane.description

    def test_square(self) -> None:
        plane = Slice.square(2.0)
        uv = np.array([[0.5, -2.0], [1.0, 1.5]])
        np.testing.assert_array_equal(plane.points(uv), uv)
        assert plane.domain_area == 16.0
        assert plane.anchors.shape == (0, 2)

    def test_random_is_seeded(self) -> None:
        first, same, other = Slice.random(5, 7), Slice.random(5, 7), Slice.random(5, 8)
        np.testing.assert_array_equal(first.v, same.v)
        assert not np.array_equal(first.v, other.v)
        points = np.random.Generator(np.random.PCG64(7)).standard_normal((3, 5))
        np.testing.assert_allclose(first.points(first.anchors), points, atol=1e-14)

    def test_random_takes_seeds_of_any_size(self) -> None:
        points = np.random.Generator(np.random.PCG64(2**100)).standard_normal((3, 5))
        plane = Slice.random(5, 2**100)
        np.testing.assert_allclose(plane.points(plane.anchors), points, atol=1e-14)

    @pytest.mark.parametrize("d", [1, 0, True, 2.5])
    def test_at_least_two_dimensions(self, d: int) -> None:
        message = f"dimension of a slice's input space is {d}; it must be a whole number from 2 on"
        with pytest.raises(InputError, match=message):
            Slice.random(d, 0)

    @pytest.mark.parametrize("seed", [-1, 0.5, "0", True])
    def test_seed_must_be_a_whole_number(self, seed: int) -> None:
        with pytest.raises(InputError, match=rf"seed is {seed!r}; it must be a whole number from 0 on"):
            Slice.random(3, seed)

    def test_nearest_other_class(self) -> None:
        x = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0], [1.0, 1, 1]])
        y = np.array([0, 0, 1, 0, 0, 1])
        plane = Slice.nearest_other_class(x, y, 0)
        np.testing.assert_allclose(plane.points(plane.anchors), x[[0, 5, 4]], atol=1e-15)
        assert "data point 0 (class 0), its nearest of another class 5 (class 1)" in plane.description
        assert "nearest of the same class 4" in plane.description

    def test_nearest_other_class_agrees_with_brute_force(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("regiongrid.slices._CHUNK_ENTRIES", 7 * 12)
        rng = np.random.default_rng(5)
        x, y = rng.standard_normal((40, 3, 4)).astype(np.float32), rng.integers(0, 3, 40)
        for index in range(0, 40, 7):
            plane = Slice.nearest_other_class(torch.from_numpy(x), torch.from_numpy(y), index)
            distances = ((x - x[index]).astype(np.float64) ** 2).sum(axis=(1, 2))
            distances[index] = np.inf
            other = np.where(y != y[index], distances, np.inf).argmin()
            same = np.where(y == y[index], distances, np.inf).argmin()
            expected = x[[index, other, same]].reshape(3, -1)
            np.testing.assert_allclose(plane.points(plane.anchors), expected, atol=1e-12)

    def test_nearest_needs_both_classes(self) -> None:
        x = np.eye(3)
        with pytest.raises(InputError, match=r"data point 0 of class 4 has no different point of another class"):
            Slice.nearest_other_class(x, [4, 4, 4], 0)
        with pytest.raises(InputError, match=r"data point 1 of class 1 has no different point of its own class"):
            Slice.nearest_other_class(x, [0, 1, 0], 1)

    def test_nearest_checks_index_and_labels(self) -> None:
        with pytest.raises(InputError, match=r"index of a data point is 3; it must be a whole number from 0 to 2"):
            Slice.nearest_other_class(np.eye(3), [0, 1, 0], 3)
        with pytest.raises(InputError, match=r"labels must be 3 whole numbers, got shape \[2\]"):
            Slice.nearest_other_class(np.eye(3), [0, 1], 0)


class TestValidation:
    def test_gram_matrix_in_message(self) -> None:
        with pytest.raises(InputError, match=r"Gram matrix is \[\[1.0, 0.5\], \[0.5, 1.25\]\]"):
            Slice([0, 0], [1, 0], [0.5, 1], 1.0)

    @pytest.mark.parametrize(("error", "accepted"), [(5e-10, True), (2e-9, False)])
    def test_tolerance(self, error: float, accepted: bool) -> None:
        if accepted:
            assert Slice([0, 0], [1, 0], [error, 1], 1.0).dimension == 2
        else:
            with pytest.raises(InputError, match=r"orthonormal to 1e-09"):
                Slice([0, 0], [1, 0], [error, 1], 1.0)

    def test_lengths(self) -> None:
        with pytest.raises(InputError, match=r"one length, got 3, 2 and 2"):
            Slice([0, 0, 0], [1, 0], [0, 1], 1.0)

    def test_not_finite(self) -> None:
        with pytest.raises(InputError, match=r"slice axis u must be finite"):
            Slice([0, 0], [np.nan, 0], [0, 1], 1.0)

    @pytest.mark.parametrize("half_width", [0.0, -1.0, np.nan, np.inf, "wide", None])
    def test_half_width(self, half_width: float) -> None:
        with pytest.raises(InputError, match=r"half-width must be a positive finite number, got"):
            Slice.square(half_width)

    def test_anchor_shape(self) -> None:
        with pytest.raises(InputError, match=r"anchor coordinates must have shape \[k, 2\], got \[3\]"):
            Slice([0, 0], [1, 0], [0, 1], 1.0, anchors=[1.0, 2.0, 3.0])

    def test_frozen_and_read_only_copies(self) -> None:
        origin = np.zeros(2)
        plane = Slice(origin, [1, 0], [0, 1], 1.0)
        origin[0] = 5.0
        assert plane.origin[0] == 0.0
        for array in (plane.origin, plane.u, plane.v, plane.anchors):
            assert not array.flags.writeable
        with pytest.raises(dataclasses.FrozenInstanceError):
            plane.half_width = 2.0  # type: ignore[misc]


class TestCoordinates:
    @given(seeds, dimensions)
    @settings(max_examples=40, deadline=None, derandomize=True)
    def test_points_and_coordinates_are_inverse(self, seed: int, d: int) -> None:
        plane = Slice.random(d, seed)
        uv = np.random.default_rng(seed).uniform(-1, 1, (9, 2)) * plane.half_width
        np.testing.assert_allclose(plane.coordinates(plane.points(uv)), uv, rtol=0, atol=1e-13 * plane.half_width)

    def test_coordinates_project(self) -> None:
        plane = Slice([1, 0, 0], [1, 0, 0], [0, 1, 0], 1.0)
        np.testing.assert_array_equal(plane.coordinates(torch.tensor([[2.0, 3.0, 9.0]])), [[1.0, 3.0]])

    @pytest.mark.parametrize("uv", [[0.0, 0.0], [[0.0, 0.0, 0.0]]])
    def test_shape_of_uv(self, uv: list[float]) -> None:
        with pytest.raises(InputError, match=r"shape \[n, 2\], got"):
            Slice.square().points(uv)

    def test_shape_of_x(self) -> None:
        with pytest.raises(InputError, match=r"points have 3 entries each, the slice has d = 2"):
            Slice.square().coordinates(np.zeros((4, 3)))

    @pytest.mark.parametrize("res", [1, 2, 63, 64])
    def test_pixels(self, res: int) -> None:
        plane = Slice.square(3.0)
        centres = plane.pixel_centres(res)
        np.testing.assert_array_equal(centres, [(2 * j + 1 - res) * (3.0 / res) for j in range(res)])
        np.testing.assert_array_equal(centres, -centres[::-1])
        assert plane.pixel_size(res) == 6.0 / res
        assert centres[0] - plane.pixel_size(res) / 2 == pytest.approx(-3.0)

    @pytest.mark.parametrize("res", [0, -4, 2.5, True])
    def test_bad_resolution(self, res: int) -> None:
        with pytest.raises(InputError, match=rf"resolution is {res}; it must be a whole number of pixels from 1 on"):
            Slice.square().pixel_centres(res)


class TestFiles:
    @given(seeds, dimensions)
    @settings(max_examples=20, deadline=None, derandomize=True)
    def test_round_trip_to_the_bit(self, tmp_path_factory: pytest.TempPathFactory, seed: int, d: int) -> None:
        path = tmp_path_factory.mktemp("slice") / "plane.npz"
        plane = Slice.random(d, seed)
        plane.save(path)
        loaded = Slice.load(path)
        for name in ("origin", "u", "v", "anchors", "half_width"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(plane, name))
        assert loaded.description == plane.description

    def test_name_is_kept_as_given(self, tmp_path: Path) -> None:
        Slice.square().save(tmp_path / "plane")
        assert [file.name for file in tmp_path.iterdir()] == ["plane"]
        assert Slice.load(tmp_path / "plane").dimension == 2

    def test_only_needed_keys(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "s.npz", origin=[0, 0], u=[1, 0], v=[0, 1], half_width=2, colour=[1])
        plane = Slice.load(tmp_path / "s.npz")
        assert plane.half_width == 2.0
        assert plane.anchors.shape == (0, 2)
        assert plane.description == "slice file s.npz"

    def test_missing_keys(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "s.npz", origin=[0, 0], u=[1, 0], w=[0, 1])
        with pytest.raises(InputError, match=r"but v, half_width is missing; it holds origin, u, w"):
            Slice.load(tmp_path / "s.npz")

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"origin": [[0, 0]]}, r"origin must have 1 dimension\(s\), got shape \[1, 2\]"),
            ({"half_width": [1.0]}, r"half_width must have 0 dimension\(s\), got shape \[1\]"),
            ({"u": [2, 0]}, "Gram matrix"),
            ({"anchors": [[1, 2, 3]]}, r"anchor coordinates must have shape \[k, 2\]"),
            ({"v": ["0", "1"]}, "slice axis v must be real numbers"),
            ({"half_width": -1}, "half-width must be a positive"),
            ({"u": np.array([1, 0], dtype=object)}, "not a readable .npz archive: Object arrays"),
        ],
        ids=["origin 2-D", "half_width 1-D", "long axis", "anchors", "text", "negative", "pickled"],
    )
    def test_wrong_contents(self, tmp_path: Path, changed: dict[str, object], message: str) -> None:
        arrays = {"origin": [0, 0], "u": [1, 0], "v": [0, 1], "half_width": 1.0} | changed
        np.savez(tmp_path / "s.npz", **arrays)
        with pytest.raises(InputError, match=message) as caught:
            Slice.load(tmp_path / "s.npz")
        assert "s.npz" in str(caught.value)

    def test_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"absent.npz does not exist"):
            Slice.load(tmp_path / "absent.npz")
        with pytest.raises(InputError, match=r"is a folder"):
            Slice.load(tmp_path)
        (tmp_path / "text.npz").write_text("origin = 0")
        with pytest.raises(InputError, match=r"not a readable .npz archive: it is another kind of file"):
            Slice.load(tmp_path / "text.npz")

    def test_truncated_at_every_length(self, tmp_path: Path) -> None:
        Slice.random(3, 0).save(tmp_path / "s.npz")
        whole = (tmp_path / "s.npz").read_bytes()
        for length in range(0, len(whole), 37):
            (tmp_path / "cut.npz").write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"cut.npz is (empty|not a readable .npz archive)"):
                Slice.load(tmp_path / "cut.npz")

    def test_damaged_member(self, tmp_path: Path) -> None:
        Slice.random(3, 0).save(tmp_path / "s.npz")
        whole = bytearray((tmp_path / "s.npz").read_bytes())
        place = whole.index(b"\x93NUMPY") + 140
        whole[place] ^= 0xFF
        (tmp_path / "s.npz").write_bytes(whole)
        with pytest.raises(InputError, match=r"not a readable .npz archive: Bad CRC-32"):
            Slice.load(tmp_path / "s.npz")

    def test_save_into_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(RegiongridError, match=r"there is no folder .*nowhere; create it first"):
            Slice.square().save(tmp_path / "nowhere" / "s.npz")


class TestSlicesFromData:
    rng = np.random.default_rng(17)
    x = rng.standard_normal((30, 4, 2)).astype(np.float32)
    y = rng.integers(0, 3, 30)

    def test_given_three(self) -> None:
        (plane,) = slices_from_data(self.x, anchors=[3, 17, 20])
        np.testing.assert_allclose(plane.points(plane.anchors), self.x[[3, 17, 20]].reshape(3, 8), atol=1e-12)
        assert plane.description == "plane through data points 3, 17, 20"

    def test_given_one_with_several_directions(self) -> None:
        planes = slices_from_data(self.x, anchors=[4], kind="one", count=3, half_width=0.5, seed=9)
        assert [plane.description[-6:] for plane in planes] == ["seed 9", "eed 10", "eed 11"]
        for i, plane in enumerate(planes):
            np.testing.assert_array_equal(plane.u, Slice.around(self.x[4], 0.5, 9 + i).u)
            assert "data point 4" in plane.description

    def test_given_nearest(self) -> None:
        (plane,) = slices_from_data(self.x, self.y, anchors=[4], kind="nearest")
        np.testing.assert_array_equal(plane.v, Slice.nearest_other_class(self.x, self.y, 4).v)

    @pytest.mark.parametrize("kind", ["three", "one", "nearest"])
    def test_random_is_seeded_and_a_prefix(self, kind: str) -> None:
        def make(count: int, seed: int) -> list[Slice]:
            return slices_from_data(self.x, self.y, count=count, kind=kind, half_width=0.7, seed=seed)

        few, many, other = make(2, 1), make(6, 1), make(2, 2)
        assert len(many) == 6
        for a, b in zip(few, many, strict=False):
            np.testing.assert_array_equal(a.origin, b.origin)
            np.testing.assert_array_equal(a.v, b.v)
        assert not np.array_equal(few[0].origin, other[0].origin)
        assert len({plane.description for plane in many}) == 6

    def test_every_anchor_once(self) -> None:
        planes = slices_from_data(self.x[:5], kind="one", half_width=1.0, count=5)
        origins = {tuple(plane.origin) for plane in planes}
        assert origins == {tuple(row) for row in self.x[:5].reshape(5, 8).astype(np.float64)}

    def test_degenerate_draws_are_drawn_again(self) -> None:
        x = np.concatenate([np.zeros((6, 3)), np.eye(3)])
        for plane in slices_from_data(x, count=10, seed=3):
            anchors = plane.points(plane.anchors).round(9)
            assert len({tuple(row) for row in anchors + 0.0}) == 3

    def test_all_draws_degenerate(self) -> None:
        with pytest.raises(InputError, match=r"only 0 of 2 slices.*the last failure: anchors data point"):
            slices_from_data(np.zeros((6, 3)), count=2)

    def test_too_many(self) -> None:
        with pytest.raises(InputError, match=r"4 samples allow 4 choices of 3 anchors, 5 slices"):
            slices_from_data(np.eye(4), count=5)

    def test_degenerate_given_anchors_are_named(self) -> None:
        x = np.array([[0.0, 0], [1, 1], [2, 2], [0, 1]])
        with pytest.raises(InputError, match=r"anchors data point 0, data point 1 and data point 2 lie on a line"):
            slices_from_data(x, anchors=[0, 1, 2])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"anchors": [0, 1]}, r"kind 'three' takes 3 anchor\(s\), got 2: \[0, 1\]"),
            ({"anchors": [0, 1, 30]}, "index of a data point is 30; it must be a whole number from 0 to 29"),
            ({"anchors": [0, 1, -1]}, "index of a data point is -1; it must be a whole number from 0 to 29"),
            ({"anchors": [0, 1, 1]}, r"anchors must be different data points, got \[0, 1, 1\]"),
            ({"anchors": [0, 1, 2], "count": 2}, "given anchors make one slice, got number of slices 2"),
            ({"kind": "one"}, "needs a half-width: --half-width"),
            ({"kind": "nearest"}, "need class labels"),
            ({"kind": "two"}, "must be one of three, one, nearest, got 'two'"),
            ({"count": 0}, "number of slices is 0; it must be a whole number from 1 on"),
            ({"seed": -3}, "seed is -3; it must be a whole number from 0 on"),
        ],
    )
    def test_bad_options(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            slices_from_data(self.x, **options)

    def test_bad_data(self) -> None:
        with pytest.raises(InputError, match=r"data points must have shape \[n, ...\] with n >= 1, got \[4\]"):
            slices_from_data(np.zeros(4))


class TestAtomicPath:
    def test_replaces_at_the_end(self, tmp_path: Path) -> None:
        target = tmp_path / "table.csv"
        target.write_text("old")
        with atomic_path(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".csv"
            temporary.write_text("new")
            assert target.read_text() == "old"
        assert target.read_text() == "new"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_failure_leaves_the_old_file(self, tmp_path: Path, error: type[BaseException]) -> None:
        target = tmp_path / "table.csv"
        target.write_text("old")

        def write() -> None:
            with atomic_path(target) as temporary:
                temporary.write_text("half of the ne")
                raise error

        with pytest.raises(error):
            write()
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            Slice.square().save(tmp_path / "s.npz")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "s.npz").stat().st_mode) == 0o640

    def test_symbolic_link_is_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "file.txt")
        with atomic_path(tmp_path / "link.txt") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "real" / "file.txt").read_text() == "new"

    def test_disk_full(self, tmp_path: Path) -> None:
        def write() -> None:
            with atomic_path(tmp_path / "t.csv") as temporary:
                temporary.write_text("some")
                raise OSError(28, "No space left on device")

        with pytest.raises(RegiongridError, match=r"cannot write .*t.csv: No space left on device"):
            write()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [("", "it is a folder"), ("no/such.csv", "there is no folder"), ("pipe", "not a regular file")],
    )
    def test_no_place_to_write(self, tmp_path: Path, name: str, message: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(RegiongridError, match=rf"cannot write .*{message}"), atomic_path(tmp_path / name):
            pytest.fail("the block must not run")

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
    def test_folder_without_permission(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(RegiongridError, match=r"Permission denied"):
                Slice.square().save(tmp_path / "s.npz")
        finally:
            tmp_path.chmod(0o700)
