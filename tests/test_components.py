"""Region numbers and components: numba runs against numpy, scipy and scikit-image."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label

from regiongrid.errors import InputError
from regiongrid.kernels.components import check_hashes, cpu, label_components, number_regions

# Any 64-bit value may be a hash: zero, the largest, and values that differ in the high or the low bits only.
PATTERNS = np.array([0, 2**64 - 1, 1, 1 << 63, 1 << 32, 2, 0x0123456789ABCDEF, 3 << 62], dtype=np.uint64)

shapes = st.one_of(
    st.tuples(st.integers(1, 12), st.integers(1, 40)), st.sampled_from([(1, 1), (1, 17), (17, 1), (2, 2), (9, 63)])
)
images = shapes.flatmap(lambda shape: hnp.arrays(np.int64, shape, elements=st.integers(0, 7))).map(PATTERNS.__getitem__)


def assert_equal(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Exact equality; a failure shows the first places that differ."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    places = np.argwhere(actual != expected)[:5]
    worst = [(tuple(at.tolist()), actual[tuple(at)].item(), expected[tuple(at)].item()) for at in places]
    assert not worst, f"{what}: (index, got, expected) {worst}"


@settings(deadline=None, max_examples=80)
@given(hashes=images, band_pixels=st.sampled_from([1, 30, 200]), threads=st.integers(1, 3))
def test_region_numbers_match_reference_for_any_bands_and_threads(hashes, band_pixels, threads):
    with mock.patch.object(cpu, "BAND_PIXELS", band_pixels):
        numbers, patterns = number_regions(hashes, threads=threads)
    expected_numbers, expected_patterns = number_regions(hashes, backend="reference")
    assert_equal(patterns, expected_patterns, "patterns")
    assert_equal(numbers, expected_numbers, "numbers")
    assert_equal(patterns[numbers], hashes, "patterns[numbers]")


@settings(deadline=None, max_examples=80)
@given(hashes=images)
def test_components_match_reference_and_skimage(hashes):
    labels, count = label_components(hashes)
    expected, expected_count = label_components(hashes, backend="reference")
    assert_equal(labels, expected, "labels")
    numbers, _ = number_regions(hashes, backend="reference")
    pieces = label(numbers + 1, connectivity=1)
    assert count == expected_count == pieces.max()
    assert_equal(labels, pieces - 1, "skimage labels")  # scikit-image numbers in raster order, too


def test_numbers_follow_raster_order():
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 2**64 - 1, size=(70, 90), dtype=np.uint64)
    numbers, patterns = number_regions(hashes)
    assert_equal(numbers, np.arange(70 * 90, dtype=np.int32).reshape(70, 90), "numbers")
    assert_equal(patterns, hashes.ravel(), "patterns")


def test_spiral_is_one_component():
    """A path that turns back on itself joins labels late, many times over."""
    size = 41
    wall = np.zeros((size, size), dtype=np.uint64)
    wall[1::2] = 1
    wall[1::4, -1] = 0
    wall[3::4, 0] = 0
    labels, count = label_components(wall)
    assert np.unique(labels[wall == 0]).tolist() == [0]
    assert count == 1 + size // 2


def test_comb_joins_its_teeth_in_the_last_row():
    comb = np.zeros((6, 21), dtype=np.uint64)
    comb[:-1, 1::2] = 9
    labels, count = label_components(comb)
    assert count == 11
    assert np.unique(labels[comb == 0]).tolist() == [0]


@pytest.mark.parametrize(
    ("hashes", "message"),
    [
        (np.zeros((2, 2), dtype=np.int64), "int64"),
        (np.zeros(4, dtype=np.uint64), r"\(4,\)"),
        (np.zeros((0, 3), dtype=np.uint64), r"\(0, 3\)"),
        (np.zeros((4, 4), dtype=np.uint64)[::2, ::2], "ascontiguousarray"),
        (np.zeros((1, 65537), dtype=np.uint64), "65537"),
        ([[1, 2]], "list"),
    ],
    ids=["signed", "one-dimensional", "empty", "strided", "too wide", "no array"],
)
def test_unusable_images_are_refused(hashes, message):
    with pytest.raises(InputError, match=message):
        check_hashes(hashes)
    with pytest.raises(InputError, match=message):
        number_regions(hashes)
    with pytest.raises(InputError, match=message):
        label_components(hashes)


def test_unknown_backend_is_refused():
    hashes = np.zeros((2, 2), dtype=np.uint64)
    with pytest.raises(InputError, match="'cuda'"):
        number_regions(hashes, backend="cuda")
    with pytest.raises(InputError, match="'cuda'"):
        label_components(hashes, backend="cuda")
