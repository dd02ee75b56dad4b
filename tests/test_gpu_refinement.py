"""Adaptive sampling in Triton against the CPU's, on images whose every pixel is known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from regiongrid.errors import InputError
from regiongrid.kernels.refinement import COARSEST_CELLS, PENDING, UNKNOWN, first_spacing, gpu, kernels
from regiongrid.kernels.threads import Workers
from regiongrid.sampling.device import adaptive_images
from regiongrid.sampling.image import _Run

Array = np.ndarray[Any, Any]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARKS = [int(mark.view(np.int64)) for mark in (UNKNOWN, PENDING)]


@pytest.fixture(autouse=True)
def _poison_fresh_memory() -> Iterator[None]:
    """What torch.empty returns is full of the largest integer, so that nothing may count on what a kernel left out."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def convex_partition(res: int, lines: int, seed: int) -> Array:
    """Which side of random lines each pixel is on, in integers, as a hash: uint64 [res, res]."""
    random = np.random.default_rng(seed)
    i, j = np.indices((res, res))
    bits = np.zeros((res, res), np.uint64)
    for number in range(lines):
        a, b = random.integers(-50, 51, 2)
        row, column = random.integers(0, res, 2)
        bits |= (a * (i - row) + b * (j - column) > 0).astype(np.uint64) << np.uint64(number)
    with np.errstate(over="ignore"):
        return (bits + np.uint64(seed * 4096 + 1)) * np.uint64(0x9E3779B97F4A7C15)  # odd: distinct bits stay distinct


def partitions(slices: int, res: int, lines: int = 5) -> Array:
    return np.stack([convex_partition(res, lines, seed) for seed in range(slices)])


def as_tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int64)).to(DEVICE)


class Lookup:
    """Stands in for the evaluation of patterns on the device: looks them up and keeps what was asked for."""

    def __init__(self, truth: Array) -> None:
        self.truth = as_tensor(truth).reshape(-1)
        self.asked: list[Array] = []

    def __call__(self, image: torch.Tensor, points: torch.Tensor) -> None:
        assert len(points)
        image.view(-1)[points] = self.truth[points]
        self.asked.append(points.cpu().numpy())

    @property
    def points(self) -> Array:
        return np.concatenate(self.asked)


class CpuLookup:
    """Stands in for the guarded evaluator where pixel centres are the row and column numbers."""

    span = 1 << 20

    def __init__(self, truth: Array) -> None:
        self.truth = truth
        self.evaluated = 0

    def __call__(self, uv: Array) -> Array:
        self.evaluated += len(uv)
        columns, rows = uv.astype(np.int64).T
        hashes: Array = self.truth[rows, columns]
        return hashes


def cpu_adaptive(truth: Array) -> tuple[Array, int]:
    """The CPU's adaptive image and how many pixels it evaluated."""
    evaluator: Any = CpuLookup(truth)
    with Workers(1) as workers:
        run = _Run(evaluator, np.arange(len(truth), dtype=np.float64), workers, lambda share: None)
        return run.adaptive("reference"), evaluator.evaluated


def same(found: Array, expected: Array) -> None:
    """Equal to the last pixel; a failure names the first differences."""
    assert found.shape == expected.shape
    places = np.argwhere(found != expected)
    assert not len(places), [(tuple(p), hex(found[tuple(p)]), hex(expected[tuple(p)])) for p in places[:5]]


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("res", [1, 2, 3, 5, 16, 17, 33, 63])
def test_image_and_evaluations_are_those_of_the_cpu(res: int, slices: int) -> None:
    truth = partitions(slices, res)
    lookup = Lookup(truth)
    shares: list[float] = []
    found = adaptive_images(lookup, slices, res, DEVICE, shares.append)
    assert (found.shape, found.dtype, found.device.type) == ((slices, res, res), torch.int64, DEVICE)
    assert len(np.unique(lookup.points)) == len(lookup.points)
    asked = np.bincount(lookup.points // res**2, minlength=slices)
    images = found.cpu().numpy().view(np.uint64)
    same(images, truth)
    for image, evaluated, patterns in zip(images, asked, truth):
        expected, count = cpu_adaptive(patterns)
        same(image, expected)
        assert evaluated == count
    assert res <= COARSEST_CELLS or lookup.points.size < 0.9 * truth.size
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] == 1


def test_non_convex_images_are_those_of_the_cpu_too() -> None:
    """Both miss a speck that no corner hits: the same cells are filled, whatever the truth is."""
    random = np.random.default_rng(1)
    truth = random.integers(1, 3, (2, 9, 9), dtype=np.uint64).repeat(5, 1).repeat(5, 2)
    truth[random.random(truth.shape) < 0.1] = 9
    lookup = Lookup(truth)
    images = adaptive_images(lookup, 2, 45, DEVICE).cpu().numpy().view(np.uint64)
    expected = [cpu_adaptive(patterns) for patterns in truth]
    same(images, np.stack([image for image, _ in expected]))
    assert np.bincount(lookup.points // 45**2).tolist() == [count for _, count in expected]
    assert (images != truth).any()


def test_one_pattern_needs_the_coarsest_lattice_only() -> None:
    lookup = Lookup(np.full((2, 40, 40), 5, np.uint64))
    assert (adaptive_images(lookup, 2, 40, DEVICE) == 5).all()
    assert len(lookup.asked) == 1
    assert len(lookup.points) == 2 * 11**2


def test_slices_do_not_leak_into_each_other() -> None:
    """A slice of one pattern between two busy ones, and the other way round."""
    busy, plain = convex_partition(33, 8, 3), np.full((33, 33), 9, np.uint64)
    for truth in (np.stack([busy, plain, busy]), np.stack([plain, busy, plain])):
        lookup = Lookup(truth)
        same(adaptive_images(lookup, 3, 33, DEVICE).cpu().numpy().view(np.uint64), truth)
        asked = np.bincount(lookup.points // 33**2)
        assert asked.tolist() == [cpu_adaptive(patterns)[1] for patterns in truth]


@pytest.mark.parametrize("res", [1, 2, 3, 16, 17, 18, 33, 40])
def test_the_first_cells_and_points(res: int) -> None:
    spacing = first_spacing(res)
    ticks = sorted({*range(0, res, spacing), res - 1})
    cells, points = gpu.coarsest(3, res, spacing, DEVICE)
    for found, lattice in ((cells, ticks[:-1]), (points, ticks)):
        assert (found.dtype, found.device.type, found.is_contiguous()) == (torch.int64, DEVICE, True)
        assert found.tolist() == [(s * res + i) * res + j for s in range(3) for i in lattice for j in lattice]


def plain_level(images: Array, cells: list[Array], spacing: int) -> tuple[Array, set[int], set[int]]:
    """One level with the reference kernels, slice by slice: the images, and flat indices of children and points."""
    refine = kernels("reference")
    images = images.copy()
    _, height, width = images.shape
    children: set[int] = set()
    points: set[int] = set()
    for number, (image, own) in enumerate(zip(images, cells)):
        start = number * height * width
        mixed = np.ones(len(own), np.bool_)
        refine.fill(image, own, spacing, mixed, 0, len(own))
        below, asked = np.full((4 * len(own), 2), -7), np.full(5 * len(own), -7)
        n_below, n_asked = refine.subdivide(image, own[mixed], spacing, below, asked)
        children |= {int(start + i * width + j) for i, j in below[:n_below]}
        points |= {int(start + p) for p in asked[:n_asked]}
    return images, children, points


def known_at_corners(truth: Array, spacing: int) -> Array:
    _, height, width = truth.shape
    rows, columns = ({*range(0, side, spacing), side - 1} for side in (height, width))
    corners = np.ix_(range(len(truth)), sorted(rows), sorted(columns))
    images = np.full_like(truth, UNKNOWN)
    images[corners] = truth[corners]
    return images


@pytest.mark.parametrize("spacing", [2, 4, 8, 16, 32])
@pytest.mark.parametrize(("height", "width"), [(29, 33), (34, 17), (2, 41)])
def test_a_level_is_that_of_the_reference(height: int, width: int, spacing: int) -> None:
    """Any hashes, some cells left out, cells of one pixel to several tiles: the images and both lists agree."""
    random = np.random.default_rng([height, width, spacing])
    shape = (3, -(-height // spacing), -(-width // spacing))
    blocks = random.integers(1, 3, shape).repeat(spacing, 1).repeat(spacing, 2)[:, :height, :width]
    truth = blocks.astype(np.uint64) << np.uint64(62)  # 2^62 and 2^63: the top bit counts too
    images = known_at_corners(truth, spacing)
    corners = np.array([(i, j) for i in range(0, height - 1, spacing) for j in range(0, width - 1, spacing)])
    cells = [corners[random.random(len(corners)) < 0.8] for _ in truth]
    expected, children, points = plain_level(images, cells, spacing)

    flat = np.concatenate([(s * height + own[:, 0]) * width + own[:, 1] for s, own in enumerate(cells)])
    image = as_tensor(images)
    found = gpu.refine(image, as_tensor(random.permutation(flat)), spacing)
    same(image.cpu().numpy().view(np.uint64), expected)
    for got, wanted in zip(found, (children, points)):
        assert len(set(got.tolist())) == len(got)
        assert set(got.tolist()) ^ wanted == set()


def test_a_level_of_more_cells_than_a_program_holds() -> None:
    """Several programs append to the same lists."""
    truth = partitions(2, 63, lines=12)
    images = known_at_corners(truth, 2)
    corners = np.indices((31, 31)).reshape(2, -1).T * 2
    expected, children, points = plain_level(images, [corners, corners], 2)
    cells = (np.arange(2)[:, None] * 63 + corners[:, 0]) * 63 + corners[:, 1]
    assert cells.size > 4 * gpu._SUBDIVIDE_CELLS
    image = as_tensor(images)
    found = gpu.refine(image, as_tensor(cells.reshape(-1)), 2)
    same(image.cpu().numpy().view(np.uint64), expected)
    assert [sorted(got.tolist()) for got in found] == [sorted(children), sorted(points)]


def test_a_pixel_that_several_cells_find_unknown_is_listed_once() -> None:
    """Cells listed twice look at their pixels at the same time, as neighbours do on a GPU."""
    images = known_at_corners(np.arange(1, 82, dtype=np.uint64).reshape(1, 9, 9), 4)
    cells = [0, 4, 36, 40]
    _, children, points = plain_level(images, [np.array([(0, 0), (0, 4), (4, 0), (4, 4)])], 4)
    found = gpu.refine(as_tensor(images), as_tensor(np.array(2 * cells)), 4)
    assert [sorted(got.tolist()) for got in found] == [sorted([*children, *children]), sorted(points)]


def test_children_may_need_no_pixel() -> None:
    """The one mixed cell is a pixel wide: all corners of its child are known."""
    truth = np.full((1, 18, 18), 7, np.uint64)
    truth[0, 17, 17] = 8
    lookup = Lookup(truth)
    same(adaptive_images(lookup, 1, 18, DEVICE).cpu().numpy().view(np.uint64), truth)
    assert len(lookup.points) == 10**2 == cpu_adaptive(truth[0])[1]


def test_no_cells_need_no_launch() -> None:
    image = torch.full((1, 5, 5), 3, device=DEVICE)
    children, points = gpu.refine(image, torch.empty(0, dtype=torch.int64, device=DEVICE), 4)
    assert (len(children), len(points)) == (0, 0)
    assert (image == 3).all()


def test_no_mark_is_left() -> None:
    found = adaptive_images(Lookup(partitions(2, 37, lines=9)), 2, 37, DEVICE)
    assert [int((found == mark).sum()) for mark in MARKS] == [0, 0]


def test_what_cannot_be_refined_is_refused() -> None:
    image = torch.zeros((1, 9, 9), dtype=torch.int64, device=DEVICE)
    cells = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    for spacing in (0, 1, 3, 1 << 15):
        with pytest.raises(InputError, match=f"power of two from 2 to 16384, got {spacing}"):
            gpu.refine(image, cells, spacing)
    with pytest.raises(InputError, match=r"image must be .* 3 dimension.*got torch.int32 of shape \(1, 9, 9\)"):
        gpu.refine(image.int(), cells, 2)
    with pytest.raises(InputError, match=r"image must be .*strides \(81, 1, 9\).*contiguous\(\)"):
        gpu.refine(image.mT, cells, 2)
    with pytest.raises(InputError, match=r"cells must be .* 1 dimension"):
        gpu.refine(image, cells[None], 2)
    with pytest.raises(InputError, match="cells are on meta"):
        gpu.refine(image, cells.to("meta"), 2)
    with pytest.raises(InputError, match="unknown backend 'metal'; known are cpu, reference, triton"):
        kernels("metal")
