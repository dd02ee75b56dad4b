"""Region numbers and components on horizontal runs of equal hashes (numba).

An image row is cut into maximal runs of one hash. Region numbers are given band by band (a band is a stack of rows
that one worker handles alone), and the bands' numbers are then merged in image order; so the numbering is the raster
order of first appearance, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from regiongrid.kernels.threads import cpu_count, run_spans

Hashes = NDArray[np.uint64]
Int32s = NDArray[np.int32]

# Pixels in a band: its runs, its share of the image and its tables should stay in the cache of one core.
BAND_PIXELS = 1 << 20
_BLOCK = 8
_FIRST_SLOTS = 1 << 10


@njit(cache=True, nogil=True)
def find_runs(pixels: Hashes, starts: Int32s) -> int:
    """Write the first column of each run of ``pixels`` to ``starts``, then the row's end; return the number of runs."""
    width = pixels.size
    starts[0] = 0
    count = 1
    column = 1
    while column + _BLOCK <= width:
        # most blocks lie inside one run: one vectorised comparison passes over them
        difference = np.uint64(0)
        for k in range(column, column + _BLOCK):
            difference |= pixels[k] ^ pixels[k - 1]
        if difference != 0:
            for k in range(column, column + _BLOCK):
                if pixels[k] != pixels[k - 1]:
                    starts[count] = k
                    count += 1
        column += _BLOCK
    for k in range(column, width):
        if pixels[k] != pixels[k - 1]:
            starts[count] = k
            count += 1
    starts[count] = width
    return count


@njit(cache=True, nogil=True)
def mix(key: np.uint64) -> np.uint64:
    """Spread a key over all 64 bits (splitmix64's finaliser), so that regular keys do not crowd an open table."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


@njit(cache=True, nogil=True)
def find_slot(pattern: np.uint64, patterns: Hashes, slots: Int32s) -> np.int64:
    """Slot of a pattern in the open table ``slots`` (positions in ``patterns``, -1: free), or the free slot for it."""
    mask = slots.size - 1
    at = np.int64(mix(pattern) & np.uint64(mask))
    while slots[at] >= 0 and patterns[slots[at]] != pattern:
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def reserve(extra: int, used: int, patterns: Hashes, slots: Int32s) -> Int32s:
    """A table with room for ``extra`` patterns beside the ``used`` ones: ``slots`` itself, or a larger one."""
    if 2 * (used + extra) <= slots.size:
        return slots
    size = slots.size
    while size < 4 * (used + extra):
        size *= 2
    larger = np.full(size, -1, np.int32)
    for k in range(used):
        larger[find_slot(patterns[k], patterns, larger)] = k
    return larger


@njit(cache=True, nogil=True)
def number_runs(
    pixels: Hashes, starts: Int32s, count: int, numbers: Int32s, patterns: Hashes, used: int, slots: Int32s
) -> int:
    """Write the region number of each run of a row; new patterns join ``patterns``; return how many there are now."""
    for k in range(count):
        pattern = pixels[starts[k]]
        at = find_slot(pattern, patterns, slots)
        if slots[at] < 0:
            slots[at] = used
            patterns[used] = pattern
            used += 1
        numbers[k] = slots[at]
    return used


@njit(cache=True, nogil=True)
def find_root(parent: Int32s, label: int) -> int:
    """Root of a label in the union-find forest; halves the path on the way."""
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


@njit(cache=True, nogil=True)
def unite(parent: Int32s, first: int, second: int) -> bool:
    """Join two trees under the smaller root; False if they were one already."""
    first = find_root(parent, first)
    second = find_root(parent, second)
    if first == second:
        return False
    parent[max(first, second)] = min(first, second)
    return True


@njit(cache=True, nogil=True)
def _number_band(hashes: Hashes, numbers: Int32s) -> Hashes:
    height, width = hashes.shape
    patterns = np.empty(height * width, np.uint64)
    slots = np.full(_FIRST_SLOTS, -1, np.int32)
    starts = np.empty(width + 1, np.int32)
    of_run = np.empty(width, np.int32)
    used = 0
    for row in range(height):
        count = find_runs(hashes[row], starts)
        slots = reserve(count, used, patterns, slots)
        used = number_runs(hashes[row], starts, count, of_run, patterns, used, slots)
        for k in range(count):
            numbers[row, starts[k] : starts[k + 1]] = of_run[k]
    return patterns[:used].copy()


@njit(cache=True, nogil=True)
def _merge_band(band: Hashes, patterns: Hashes, used: int, slots: Int32s, numbers: Int32s) -> int:
    for k in range(band.size):
        at = find_slot(band[k], patterns, slots)
        if slots[at] < 0:
            slots[at] = used
            patterns[used] = band[k]
            used += 1
        numbers[k] = slots[at]
    return used


@njit(cache=True, nogil=True)
def _renumber(labels: Int32s, numbers: Int32s) -> None:
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1]):
            labels[row, column] = numbers[labels[row, column]]


@njit(cache=True, nogil=True)
def _label_runs(hashes: Hashes, labels: Int32s) -> Int32s:
    height, width = hashes.shape
    parent = np.empty(height * width, np.int32)
    starts = np.empty(width + 1, np.int32)
    used = 0
    for row in range(height):
        count = find_runs(hashes[row], starts)
        for k in range(count):
            start, stop = starts[k], starts[k + 1]
            label = -1
            column = start
            while row > 0 and column < stop:
                if hashes[row - 1, column] == hashes[row, column]:
                    above = labels[row - 1, column]
                    if label < 0:
                        label = find_root(parent, above)
                    elif above != label:
                        unite(parent, above, label)
                column += 1
            if label < 0:
                label = used
                parent[used] = used
                used += 1
            labels[row, start:stop] = label
    return parent[:used].copy()


@njit(cache=True, nogil=True)
def _number_roots(parent: Int32s) -> int:
    # a parent is never larger than its child, so one ascending pass sees every root before its tree
    count = 0
    for label in range(parent.size):
        if parent[label] == label:
            parent[label] = count
            count += 1
        else:
            parent[label] = parent[parent[label]]
    return count


def band_rows(width: int) -> int:
    """Rows in a band of an image of this width. It must not depend on the number of threads."""
    return max(1, BAND_PIXELS // width)


def merge_numbers(bands: Sequence[Hashes]) -> tuple[Hashes, list[Int32s]]:
    """Merge the bands' pattern lists, each in raster order, into one list in raster order.

    Returns
    -------
    patterns
        The distinct patterns, uint64, shape ``[n]``.
    numbers
        For each band the position of each of its patterns in ``patterns``, int32.
    """
    total = sum(band.size for band in bands)
    patterns = np.empty(total, np.uint64)
    slots = np.full(1 << max(4, (total + total // 2).bit_length()), -1, np.int32)
    used = 0
    numbers = []
    for band in bands:
        of_band = np.empty(band.size, np.int32)
        used = _merge_band(band, patterns, used, slots, of_band)
        numbers.append(of_band)
    return patterns[:used].copy(), numbers


def number_regions(hashes: Hashes, threads: int | None = None) -> tuple[Int32s, Hashes]:
    """See :func:`regiongrid.kernels.components.number_regions`."""
    height, width = hashes.shape
    size = band_rows(width)
    workers = threads if threads is not None else cpu_count()
    labels = np.empty((height, width), np.int32)
    bands: list[Hashes] = [np.empty(0, np.uint64)] * -(-height // size)

    def number(top: int, bottom: int) -> None:
        bands[top // size] = _number_band(hashes[top:bottom], labels[top:bottom])

    run_spans(number, height, size, workers)
    patterns, numbers = merge_numbers(bands)
    run_spans(lambda top, bottom: _renumber(labels[top:bottom], numbers[top // size]), height, size, workers)
    return labels, patterns


def label_components(hashes: Hashes) -> tuple[Int32s, int]:
    """See :func:`regiongrid.kernels.components.label_components`."""
    labels = np.empty(hashes.shape, np.int32)
    parent = _label_runs(hashes, labels)
    count = int(_number_roots(parent))
    _renumber(labels, parent)
    return labels, count
