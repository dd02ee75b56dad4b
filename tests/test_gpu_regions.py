"""Region numbers, components and region sums in Triton: batches of images against the reference, to the integer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("triton")

from regiongrid.errors import InputError, MemoryLimitError, RegiongridError
from regiongrid.kernels import components
from regiongrid.kernels.components import gpu as components_gpu
from regiongrid.kernels.moments import RegionSums, batch_sums, region_sums
from regiongrid.kernels.moments import gpu as moments_gpu

Array = np.ndarray[Any, Any]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Any 64-bit value may be a hash: zero, the largest, and values that differ in the high or the low bits only.
PATTERNS = np.array([0, 2**64 - 1, 1, 1 << 63, 1 << 32, 2, 0x0123456789ABCDEF, 3 << 62], dtype=np.uint64)
SHAPES = [(1, 1), (1, 17), (17, 1), (2, 2), (9, 33), (33, 29)]


@pytest.fixture(autouse=True, scope="module")
def _poison() -> Iterator[None]:
    """Fresh memory holds nonsense, so that whatever is read must have been written."""
    empty, empty_like = torch.empty, torch.empty_like
    with (
        mock.patch.object(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(77)),
        mock.patch.object(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(77)),
    ):
        yield


def tiles(rows: int, columns: int) -> Any:
    """Programs that take so many rows and columns of an image."""
    return mock.patch.multiple(components_gpu, _ROWS=rows, _COLUMNS=columns)


def as_tensor(images: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images).view(np.int64)).to(DEVICE)


def labelled(slices: int, height: int, width: int, labels: int, seed: int) -> Array:
    """Every pixel one of a few patterns at random; images of a batch share patterns."""
    return PATTERNS[np.random.default_rng(seed).integers(0, labels, (slices, height, width))]


def arrangements(slices: int, height: int, width: int, lines: int, seed: int) -> Array:
    """Which side of random lines each pixel is on, as a hash, another set of lines in each image."""
    random = np.random.default_rng(seed)
    normals, offsets = random.normal(size=(slices, lines, 2)), random.uniform(-1, 1, (slices, lines))
    keys = random.integers(0, 2**64 - 1, lines, dtype=np.uint64)
    v, u = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    on = np.einsum("sla,ahw->slhw", normals, np.stack([u, v])) > offsets[:, :, None, None]
    return np.bitwise_xor.reduce(np.where(on, keys[None, :, None, None], np.uint64(0)), axis=1)


def spiral(side: int) -> Array:
    """A path one pixel wide that winds to the middle, and the wall beside it."""
    image = np.zeros((side, side), np.uint64)
    row, column, step = 0, 0, (0, 1)
    image[0, 0] = 1
    for turn in range(2 * side):
        length = side - 1 if turn == 0 else side - 1 - 2 * ((turn - 1) // 2)
        for _ in range(max(length, 0)):
            row, column = row + step[0], column + step[1]
            image[row, column] = 1
        step = (step[1], -step[0])
    return image


def comb(teeth: int, length: int) -> Array:
    """Teeth that join in the last row only."""
    image = np.zeros((length, 2 * teeth + 1), np.uint64)
    image[:-1, 1::2] = 9
    return image


def peaks(height: int, width: int) -> Array:
    """Zigzag stripes: each comes to a point at the top many times over, and the pieces join below."""
    row, column = np.ogrid[:height, :width]
    return ((row + np.abs(column % 8 - 4)) // 2 % 3).astype(np.uint64)


def assert_equal(actual: Array, expected: Array, what: str) -> None:
    """Exact equality, of the type, too; a failure shows the first places that differ."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    places = np.argwhere(actual != expected)[:5]
    worst = [(tuple(at.tolist()), actual[tuple(at)].item(), expected[tuple(at)].item()) for at in places]
    assert not worst, f"{what}: (index, got, expected) {worst}"


def assert_same(actual: RegionSums, expected: RegionSums, what: str) -> None:
    for field in dataclasses.fields(RegionSums):
        assert_equal(getattr(actual, field.name), getattr(expected, field.name), f"{what}, {field.name}")


def check_sums(images: Array) -> None:
    batch = batch_sums(as_tensor(images))
    assert len(batch) == len(images)
    expected = [region_sums(image, backend="reference") for image in images]
    for s, sums in enumerate(expected):
        assert_same(batch.of(s), sums, f"image {s}")
    for offsets, name in ((batch.region_offsets, "pixels"), (batch.pair_offsets, "pair_edges")):
        assert_equal(offsets, np.cumsum([0, *(len(getattr(sums, name)) for sums in expected)]), f"offsets of {name}")
        assert len(getattr(batch.sums, name)) == offsets[-1]
    owner = np.repeat(np.arange(len(images)), np.diff(batch.pair_offsets))
    local = np.concatenate([sums.pair_second for sums in expected])
    assert_equal(batch.sums.pair_second, (local + batch.region_offsets[owner]).astype(np.int32), "pair_second")


def check_labels(images: Array) -> None:
    numbers, patterns, offsets = (part.cpu().numpy() for part in components_gpu.number_regions(as_tensor(images)))
    labels, counts = (part.cpu().numpy() for part in components_gpu.label_components(as_tensor(images)))
    assert offsets[0] == 0
    assert len(patterns) == offsets[-1]
    for s, image in enumerate(images):
        expected_numbers, expected_patterns = components.number_regions(image, backend="reference")
        assert_equal(patterns[offsets[s] : offsets[s + 1]].view(np.uint64), expected_patterns, f"image {s}, patterns")
        assert_equal(numbers[s], expected_numbers, f"image {s}, numbers")
        expected_labels, expected_count = components.label_components(image, backend="reference")
        assert_equal(labels[s], expected_labels, f"image {s}, labels")
        assert counts[s] == expected_count


def batches(limit: int) -> st.SearchStrategy[Array]:
    sizes = st.tuples(st.integers(1, 3), st.integers(1, limit), st.integers(1, limit))
    few = sizes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(0, 7))).map(PATTERNS.__getitem__)
    seeds = st.integers(0, 2**32 - 1)
    lines = st.tuples(sizes, st.integers(0, 8), seeds).map(lambda drawn: arrangements(*drawn[0], *drawn[1:]))
    return st.one_of(few, lines)


@settings(max_examples=12)
@given(images=batches(12), tile=st.sampled_from([(4, 128), (2, 4), (16, 8)]))
def test_sums_match_reference(images: Array, tile: tuple[int, int]) -> None:
    with tiles(*tile):
        check_sums(images)


@settings(max_examples=8)
@given(images=batches(12), tile=st.sampled_from([(4, 128), (2, 4), (16, 8)]))
def test_labels_match_reference(images: Array, tile: tuple[int, int]) -> None:
    with tiles(*tile):
        check_labels(images)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int]) -> None:
    images = np.concatenate([labelled(1, *shape, 3, seed=1), arrangements(1, *shape, 8, seed=2)])
    check_sums(images)
    check_labels(images)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 7)], ids=str)
def test_single_region(shape: tuple[int, int]) -> None:
    check_sums(np.full((2, *shape), 2**64 - 1, np.uint64))


@pytest.mark.parametrize("tile", [(4, 128), (4, 8)], ids=str)
def test_images_that_join_late(tile: tuple[int, int]) -> None:
    """Pieces that meet far below where they began, in chains as long as the image."""
    shape = (21, 21)
    images = np.stack([spiral(21), comb(10, 21), comb(10, 21)[::-1], spiral(21).T, peaks(*shape)])
    assert components.label_components(images[0], backend="reference")[1] == 2
    with tiles(*tile):
        check_labels(images)
        check_sums(images)


def test_every_pixel_its_own_region() -> None:
    """As many regions and pairs as there can be: the tables are as full as they get."""
    side = 14
    images = np.arange(2 * side * side, dtype=np.uint64).reshape(2, side, side) << np.uint64(40)
    check_sums(images)
    check_labels(images)
    most = 2 * side * (side - 1) + 2 * (side - 1) ** 2
    assert batch_sums(as_tensor(images)).pair_offsets.tolist() == [0, most, 2 * most]


def test_region_with_very_many_neighbours() -> None:
    image = np.zeros((25, 25), np.uint64)
    image[1::2, 1::2] = np.random.default_rng(0).permutation(144).reshape(12, 12) + 1
    check_sums(image[None])


def test_checkerboard() -> None:
    """Every edge is a change, and both of a cell's diagonals join equal pixels that are no neighbours."""
    row, column = np.indices((16, 19))
    check_sums(((row + column) % 2).astype(np.uint64)[None])


@pytest.mark.parametrize("shape", [(2, 65536), (65536, 2)], ids=str)
def test_long_sides_keep_second_moments_exact(shape: tuple[int, int]) -> None:
    image = np.full(shape, 7, np.uint64)
    with contextlib.ExitStack() as stack:
        if DEVICE == "cpu":  # the interpreter is slow by the program, not by the pixel
            stack.enter_context(tiles(*shape))
            for module in (components_gpu, moments_gpu):
                stack.enter_context(mock.patch.object(module, "_BLOCK", 1 << 16))
            stack.enter_context(mock.patch.object(moments_gpu, "_CELLS", 1 << 16))
        assert_same(region_sums(as_tensor(image)), region_sums(image), str(shape))


def test_results_are_the_same_again() -> None:
    images = as_tensor(labelled(2, 12, 20, 5, seed=3))
    first, second = batch_sums(images), batch_sums(images)
    assert_same(first.sums, second.sums, "again")


def test_one_image_by_tensor_or_by_name() -> None:
    image = arrangements(1, 11, 13, 6, seed=4)[0]
    tensor = as_tensor(image)
    for named in ({}, {"backend": "triton"}):
        assert_same(region_sums(tensor, **named), region_sums(image), "sums")
        numbers, patterns = components.number_regions(tensor, **named)
        assert (numbers.device, patterns.dtype) == (tensor.device, torch.int64)
        assert torch.equal(patterns[numbers.long()], tensor)
        labels, count = components.label_components(tensor, **named)
        expected, expected_count = components.label_components(image)
        assert_equal(labels.cpu().numpy(), expected, "labels")
        assert count == expected_count


def test_sums_of_an_image_that_is_not_there() -> None:
    batch = batch_sums(as_tensor(labelled(2, 3, 3, 2, seed=5)))
    for image in (-1, 2):
        with pytest.raises(IndexError, match=f"images 0 to 1, got {image}"):
            batch.of(image)


@pytest.mark.parametrize("module", [components_gpu, moments_gpu], ids=["runs", "pairs"])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_search_that_gives_up_is_an_error(module: Any, steps: int) -> None:
    """No image can bring it about, so the searches are told to stop early."""
    images = as_tensor(np.arange(144, dtype=np.uint64).reshape(1, 12, 12))
    with mock.patch.object(module, "longest_search", return_value=steps):
        with pytest.raises(RegiongridError, match=r"^[1-9]\d* searches .* backend='cpu'"):
            batch_sums(images)
        if module is components_gpu:
            with pytest.raises(RegiongridError, match="searches"):
                components_gpu.number_regions(images)


def test_too_many_runs_are_refused() -> None:
    images = as_tensor(labelled(2, 4, 5, 8, seed=6))
    with mock.patch.object(components_gpu, "MAX_RUNS", 12), pytest.raises(MemoryLimitError, match=r"\[2, 4, 5\].* 12;"):
        batch_sums(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 2, 2), np.uint64), "got ndarray; pass torch.from_numpy"),
        (torch.zeros((1, 2, 2)), r"float32 of shape \(1, 2, 2\)"),
        (torch.zeros((2, 2), dtype=torch.int64), r"int64 of shape \(2, 2\)"),
        (torch.zeros((0, 2, 2), dtype=torch.int64), r"\(0, 2, 2\)"),
        (torch.zeros((1, 4, 4), dtype=torch.int64)[:, ::2, ::2], r"hashes.contiguous\(\)"),
        (torch.zeros((1, 1, 65537), dtype=torch.int64), "1 x 65537"),
        (torch.zeros((1, 32769, 32768), dtype=torch.int64, device="meta"), "32769 x 32768"),
        (torch.zeros((1 << 16, 1 << 16, 1), dtype=torch.int64, device="meta"), "65536 x 65536.*fewer images"),
        (torch.zeros((1, 2, 2), dtype=torch.int64, device="meta"), "not for 'meta'"),
    ],
    ids=["numpy", "float", "no batch", "empty", "strided", "too wide", "too many pixels", "too many rows", "device"],
)
def test_unusable_batches_are_refused(images: Any, message: str) -> None:
    for measure in (batch_sums, components_gpu.number_regions, components_gpu.label_components):
        with pytest.raises(InputError, match=message):
            measure(images)


def test_backends_want_their_own_kind_of_image() -> None:
    array = np.zeros((2, 2), np.uint64)
    for measure in (region_sums, components.number_regions, components.label_components):
        with pytest.raises(InputError, match=r"int64 torch tensor \[H, W\] on the device, got ndarray"):
            measure(array, backend="triton")
        with pytest.raises(InputError, match="got Tensor; a torch tensor needs backend='triton'"):
            measure(as_tensor(array), backend="cpu")
        with pytest.raises(InputError, match="'cpu', 'reference' or 'triton', got 'cuda'"):
            measure(as_tensor(array), backend="cuda")


def test_a_cpu_tensor_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    image = torch.zeros((2, 2), dtype=torch.int64)
    for measure in (region_sums, components.number_regions, components.label_components):
        with pytest.raises(InputError, match="on cpu: Triton compiles for CUDA and ROCm devices"):
            measure(image)


@pytest.mark.parametrize("module", [components_gpu, moments_gpu], ids=["components", "moments"])
def test_builds_name_every_argument(module: Any) -> None:
    for build in module.builds():
        assert {*build.types, *build.constants} == set(build.kernel.arg_names), build.name
