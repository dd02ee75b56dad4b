"""Region sums: the numba band sweep against whole-image numpy, and against what is known in closed form."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label
from skimage.segmentation import find_boundaries

from regiongrid.errors import InputError
from regiongrid.kernels.components import cpu as components_cpu
from regiongrid.kernels.components import number_regions
from regiongrid.kernels.moments import RegionSums, region_sums

PATTERNS = np.array([0, 2**64 - 1, 1, 1 << 63, 1 << 32, 2, 0x0123456789ABCDEF, 3 << 62], dtype=np.uint64)

shapes = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 40)), st.sampled_from([(1, 1), (1, 17), (17, 1), (2, 2), (9, 63)])
)
labelled = shapes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(0, 7))).map(
    PATTERNS.__getitem__
)


def arrangement(height: int, width: int, lines: int, seed: int) -> np.ndarray:
    """Pattern image of a random line arrangement, whose regions are convex."""
    rng = np.random.default_rng(seed)
    angle, offset = rng.uniform(0, 2 * np.pi, lines), rng.uniform(-1, 1, lines)
    keys = rng.integers(0, 2**64 - 1, size=lines, dtype=np.uint64)
    u, v = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    hashes = np.zeros((height, width), dtype=np.uint64)
    for k in range(lines):
        hashes ^= np.where(np.cos(angle[k]) * u + np.sin(angle[k]) * v > offset[k], keys[k], np.uint64(0))
    return hashes


arrangements = st.builds(
    arrangement, st.integers(1, 50), st.integers(1, 50), st.integers(0, 25), st.integers(0, 2**32 - 1)
)
images = st.one_of(labelled, arrangements)


def assert_same(actual: RegionSums, expected: RegionSums) -> None:
    """Exact equality of every field; a failure shows the first places that differ."""
    for field in dataclasses.fields(RegionSums):
        got, wanted = getattr(actual, field.name), getattr(expected, field.name)
        assert got.dtype == wanted.dtype, f"{field.name}: {got.dtype}, expected {wanted.dtype}"
        assert got.shape == wanted.shape, f"{field.name}: shape {got.shape}, expected {wanted.shape}"
        places = np.argwhere(got != wanted)[:5]
        worst = [(tuple(at.tolist()), got[tuple(at)].item(), wanted[tuple(at)].item()) for at in places]
        assert not worst, f"{field.name}: (index, got, expected) {worst}"


@settings(deadline=None, max_examples=150)
@given(hashes=images, band_pixels=st.sampled_from([1, 30, 200, 1 << 20]), threads=st.integers(1, 3))
def test_cpu_matches_reference_for_any_bands_and_threads(hashes, band_pixels, threads):
    with mock.patch.object(components_cpu, "BAND_PIXELS", band_pixels):
        actual = region_sums(hashes, threads=threads)
    assert_same(actual, region_sums(hashes, backend="reference"))


@settings(deadline=None, max_examples=60)
@given(hashes=images)
def test_counts_match_skimage(hashes):
    sums = region_sums(hashes)
    numbers, patterns = number_regions(hashes, backend="reference")
    pieces = label(numbers + 1, connectivity=1)
    first = np.unique(pieces, return_index=True)[1]
    assert sums.components.tolist() == np.bincount(numbers.ravel()[first]).tolist()
    boundary = find_boundaries(numbers, connectivity=1, mode="thick")
    on_boundary = np.bincount(numbers[boundary], minlength=patterns.size)
    assert (sums.pixels - sums.interior_pixels).tolist() == on_boundary.tolist()


@settings(deadline=None, max_examples=60)
@given(hashes=images)
def test_totals_that_hold_for_every_image(hashes):
    sums = region_sums(hashes)
    height, width = hashes.shape
    assert sums.pixels.sum() == hashes.size
    assert sums.border_sides.sum() == 2 * (height + width)
    assert sums.coarse_pixels.sum() == hashes[::2, ::2].size
    assert np.count_nonzero(sums.coarse_pixels) == np.unique(hashes[::2, ::2]).size
    sides = 4 * sums.pixels.sum() - sums.border_sides.sum()
    joined = np.count_nonzero(hashes[:, 1:] == hashes[:, :-1]) + np.count_nonzero(hashes[1:] == hashes[:-1])
    assert sides == 2 * (sums.pair_edges.sum() + joined)
    # pure cells, cells with a share of a region, and the rim cover each region: its pixels lie in them
    assert (sums.pure_cells + sums.mixed_cells + sums.rim_quarters / 4 >= sums.pixels).all()
    assert (sums.pure_cells <= sums.pixels).all()


def test_known_small_image():
    """Region 5 is the left 2 x 2 block, region 8 a column of two pixels, region 0 the lowest row."""
    hashes = np.array([[5, 5, 8], [5, 5, 8], [0, 0, 0]], dtype=np.uint64)
    for backend in ("cpu", "reference"):
        sums = region_sums(hashes, backend=backend)
        assert sums.patterns.tolist() == [5, 8, 0]
        assert sums.pixels.tolist() == [4, 2, 3]
        assert sums.origin.tolist() == [[1, 1], [2, 1], [1, 2]]
        assert sums.first_moments.tolist() == [[-2, -2], [0, -1], [0, 0]]
        assert sums.second_moments.tolist() == [[2, 1, 2], [0, 0, 1], [2, 0, 0]]
        assert sums.interior_pixels.tolist() == [1, 0, 0]
        assert sums.pure_cells.tolist() == [1, 0, 0]
        assert sums.mixed_cells.tolist() == [3, 2, 2]
        # halves: 3 + 3 + 0 + ... along each border, corners one quarter each
        assert sums.rim_quarters.tolist() == [2 * 4 + 1, 2 * 3 + 1, 2 * 4 + 2]
        assert sums.border_sides.tolist() == [4, 3, 5]
        assert sums.coarse_pixels.tolist() == [1, 1, 2]
        pairs = np.stack([sums.pair_first, sums.pair_second, sums.pair_edges, sums.pair_diagonals, sums.pair_rim_edges])
        assert pairs.T.tolist() == [[0, 1, 2, 2, 1], [0, 2, 2, 3, 1], [1, 2, 1, 1, 1]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 7)], ids=str)
def test_single_region(shape):
    sums = region_sums(np.zeros(shape, dtype=np.uint64))
    height, width = shape
    assert sums.pixels.tolist() == sums.interior_pixels.tolist() == [height * width]
    assert sums.pure_cells.tolist() == [(height - 1) * (width - 1)]
    assert sums.rim_quarters.tolist() == [4 * (height + width - 1)]
    assert sums.mixed_cells.tolist() == [0]
    assert sums.components.tolist() == [1]
    assert sums.pair_first.size == 0


def test_every_pixel_its_own_region():
    side = 300
    hashes = np.arange(side * side, dtype=np.uint64).reshape(side, side) << np.uint64(40)
    with mock.patch.object(components_cpu, "BAND_PIXELS", 10_000):
        sums = region_sums(hashes, threads=2)
    assert sums.patterns.size == side * side
    assert sums.pixels.min() == sums.pixels.max() == 1
    assert sums.interior_pixels.max() == 0
    assert sums.pair_edges.sum() == 2 * side * (side - 1)
    assert sums.pair_diagonals.sum() == 2 * (side - 1) ** 2
    assert sums.pair_first.size == 2 * side * (side - 1) + 2 * (side - 1) ** 2
    order = sums.pair_first.astype(np.int64) * side**2 + sums.pair_second
    assert (np.diff(order) > 0).all()


def test_a_region_with_very_many_neighbours():
    """A frame around single pixels: one region meets all others, so its pairs fill a large bucket."""
    hashes = np.zeros((61, 61), dtype=np.uint64)
    hashes[1::2, 1::2] = np.random.default_rng(0).permutation(900).reshape(30, 30) + 1
    assert_same(region_sums(hashes), region_sums(hashes, backend="reference"))


@pytest.mark.parametrize("shape", [(2, 65536), (65536, 2)], ids=str)
def test_long_sides_keep_second_moments_exact(shape):
    sums = region_sums(np.full(shape, 7, dtype=np.uint64))
    # sum over 0..L-1 of (k - L/2)^2 = L (L^2 - 1) / 12 + L / 4, for both lines of pixels
    long = 65536
    along = 2 * (long * (long**2 - 1) // 12 + long // 4)
    axis = 0 if shape[1] == long else 2
    assert sums.second_moments[0, axis] == along
    assert sums.origin[0].tolist() == ([long // 2, 1] if axis == 0 else [1, long // 2])


def test_large_image_of_two_interleaved_regions():
    """Pair counts near their largest: a checkerboard separates every pixel from its four neighbours."""
    side = 1200
    row, column = np.ogrid[:side, :side]
    hashes = ((row + column) % 2).astype(np.uint64)
    sums = region_sums(hashes)
    assert sums.pair_edges.tolist() == [2 * side * (side - 1)]
    assert sums.pair_diagonals.tolist() == [0]
    assert sums.pair_rim_edges.tolist() == [4 * (side - 1)]
    assert sums.components.tolist() == [side * side // 2] * 2


def test_unusable_input_is_refused():
    with pytest.raises(InputError, match="float64"):
        region_sums(np.zeros((2, 2)))
    with pytest.raises(InputError, match="'gpu'"):
        region_sums(np.zeros((2, 2), dtype=np.uint64), backend="gpu")
