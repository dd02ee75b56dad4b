"""Region sums on horizontal runs of equal hashes (numba).

Each worker measures a band of rows alone, with region numbers of its own, reading one row above and one below the
band; it keeps two rows of runs and the sums of the band's regions, so the image is read once and little else is held.
The bands are then merged in image order. All sums are integers, so the result does not depend on the threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from regiongrid.kernels.components.cpu import (
    Hashes,
    Int32s,
    band_rows,
    find_root,
    find_runs,
    merge_numbers,
    mix,
    number_runs,
    reserve,
    unite,
)
from regiongrid.kernels.moments import RegionSums, centre_moments
from regiongrid.kernels.threads import cpu_count, run_spans

Int64s = NDArray[np.int64]

# rows of the array that holds the runs of an image row: first column (and the row's end after the last), region, piece
START, REGION, PIECE = range(3)
# columns of a span: first column, end, run in the upper row, run in the lower row
FROM, TO, UPPER, LOWER = range(4)
# columns of a band's counts
PIXELS, INTERIOR, PURE, MIXED, RIM, BORDER, COMPONENTS, COARSE = range(8)
# columns of the pairs
FIRST, SECOND, EDGES, DIAGONALS, RIM_EDGES = range(5)
# entries of a band's state: how many pairs and pieces there are so far
PAIRS, PIECES = range(2)
_FIRST_SLOTS = 1 << 12


class _Band(NamedTuple):
    patterns: Hashes  # [k] in raster order; those of the rows above and below the band included
    moments: Int64s  # [k, 5] sums of column, row, column^2, column * row, row^2, about pixel (0, 0)
    counts: Int32s  # [k, 8]
    pairs: Int32s  # [q, 5]
    top_pieces: Int32s  # piece of each run of the band's first row
    seam_pieces: Int32s  # piece of each run of the row below the band
    seam_regions: Int32s  # region of each run of the row below the band
    pieces: int  # how many pieces top_pieces and seam_pieces name


@njit(cache=True, nogil=True)
def _pair_slot(first: int, second: int, pairs: Int32s, slots: Int32s) -> np.int64:
    mask = slots.size - 1
    at = np.int64(mix((np.uint64(first) << np.uint64(32)) | np.uint64(second)) & np.uint64(mask))
    while slots[at] >= 0 and (pairs[slots[at], FIRST] != first or pairs[slots[at], SECOND] != second):
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def _find_pair(one: int, other: int, last: int, pairs: Int32s, slots: Int32s) -> int:
    """Row of an unordered pair in ``pairs``, -1 if it is new.

    ``last`` is tried first: a boundary meets its pair many times in a row. The function only reads, so that it is
    inlined; with the insertion inside it, each call would count references to five arrays (ten times slower).
    """
    first, second = min(one, other), max(one, other)
    if pairs[last, FIRST] == first and pairs[last, SECOND] == second:
        return last
    return int(slots[_pair_slot(first, second, pairs, slots)])


@njit(cache=True, nogil=True)
def _add_pair(one: int, other: int, state: Int64s, pairs: Int32s, slots: Int32s) -> int:
    """Append an unordered pair to ``pairs``; return its row."""
    first, second = min(one, other), max(one, other)
    new = int(state[PAIRS])
    slots[_pair_slot(first, second, pairs, slots)] = new
    pairs[new, FIRST] = first
    pairs[new, SECOND] = second
    for column in range(EDGES, 5):
        pairs[new, column] = 0
    state[PAIRS] = new + 1
    return new


@njit(cache=True, nogil=True)
def _reserve_pairs(extra: int, used: int, pairs: Int32s, slots: Int32s) -> Int32s:
    """A table with room for ``extra`` pairs beside the ``used`` ones: ``slots`` itself, or a larger one."""
    if 2 * (used + extra) <= slots.size:
        return slots
    size = slots.size
    while size < 4 * (used + extra):
        size *= 2
    larger = np.full(size, -1, np.int32)
    for k in range(used):
        larger[_pair_slot(pairs[k, FIRST], pairs[k, SECOND], pairs, larger)] = k
    return larger


@njit(cache=True, nogil=True)
def _add_row(row: int, height: int, count: int, runs: Int32s, moments: Int64s, counts: Int32s) -> None:
    """Add the runs of a row to the moments (closed sums over columns) and to the counts of single pixels."""
    width = runs[START, count]
    borders = (row == 0) + (row == height - 1)
    for k in range(count):
        region = runs[REGION, k]
        start, stop = np.int64(runs[START, k]), np.int64(runs[START, k + 1])
        length = stop - start
        columns = (stop * (stop - 1) - start * (start - 1)) // 2
        moments[region, 0] += columns
        moments[region, 1] += length * row
        moments[region, 2] += (stop * (stop - 1) * (2 * stop - 1) - start * (start - 1) * (2 * start - 1)) // 6
        moments[region, 3] += columns * row
        moments[region, 4] += length * row * row
        counts[region, PIXELS] += length
        if row % 2 == 0:
            counts[region, COARSE] += (stop + 1) // 2 - (start + 1) // 2
        if borders > 0:
            counts[region, BORDER] += borders * length
            counts[region, RIM] += 2 * borders * (length - 1 + (start > 0) + (stop < width))
    for k in (0, count - 1):
        counts[runs[REGION, k], BORDER] += 1
        counts[runs[REGION, k], RIM] += borders


@njit(cache=True, nogil=True)
def _add_row_edges(borders: int, count: int, runs: Int32s, state: Int64s, pairs: Int32s, slots: Int32s) -> None:
    """Count the unequal neighbours along a row that lies on ``borders`` borders of the domain."""
    last = 0
    for k in range(count - 1):
        left, right = runs[REGION, k], runs[REGION, k + 1]
        last = _find_pair(left, right, last, pairs, slots)
        if last < 0:
            last = _add_pair(left, right, state, pairs, slots)
        pairs[last, EDGES] += 1
        pairs[last, RIM_EDGES] += borders


@njit(cache=True, nogil=True)
def _equal_spans(upper: Int32s, lower: Int32s, width: int, spans: Int32s) -> int:
    """Write the column spans in which two rows show one region; a span lies in one run of each row."""
    a = b = count = column = 0
    while column < width:
        stop = min(upper[START, a + 1], lower[START, b + 1])
        if upper[REGION, a] == lower[REGION, b]:
            spans[count, FROM] = column
            spans[count, TO] = stop
            spans[count, UPPER] = a
            spans[count, LOWER] = b
            count += 1
        a += upper[START, a + 1] == stop
        b += lower[START, b + 1] == stop
        column = stop
    return count


@njit(cache=True, nogil=True)
def _whole_row(count: int, runs: Int32s, spans: Int32s) -> int:
    """Write the spans of a row towards the domain's border: nothing differs there."""
    for k in range(count):
        spans[k, FROM] = runs[START, k]
        spans[k, TO] = runs[START, k + 1]
    return count


@njit(cache=True, nogil=True)
def _join_pieces(
    spans: Int32s,
    span_count: int,
    upper: Int32s,
    lower: Int32s,
    count: int,
    state: Int64s,
    parent: Int32s,
    counts: Int32s,
) -> None:
    """Give each run of the lower row its piece: one that it touches in the upper row, or a new one."""
    lower[PIECE, :count] = -1
    for k in range(span_count):
        above = find_root(parent, upper[PIECE, spans[k, UPPER]])
        run = spans[k, LOWER]
        if lower[PIECE, run] < 0:
            lower[PIECE, run] = above
        elif unite(parent, above, lower[PIECE, run]):
            counts[lower[REGION, run], COMPONENTS] -= 1
    for run in range(count):
        if lower[PIECE, run] < 0:
            new = state[PIECES]
            lower[PIECE, run] = new
            parent[new] = new
            state[PIECES] = new + 1
            counts[lower[REGION, run], COMPONENTS] += 1


@njit(cache=True, nogil=True)
def _add_interior(
    runs: Int32s, width: int, above: Int32s, above_count: int, below: Int32s, below_count: int, counts: Int32s
) -> None:
    """Count the pixels of a row that have no neighbour in another region."""
    p = q = run = 0
    while p < above_count and q < below_count:
        start = max(above[p, FROM], below[q, FROM])
        stop = min(above[p, TO], below[q, TO])
        if start < stop:
            while runs[START, run + 1] <= start:
                run += 1
            first = start + (start == runs[START, run] and start > 0)
            end = stop - (stop == runs[START, run + 1] and stop < width)
            counts[runs[REGION, run], INTERIOR] += max(end - first, 0)
        if above[p, TO] < below[q, TO]:
            p += 1
        else:
            q += 1


@njit(cache=True, nogil=True)
def _add_cells(
    upper: Int32s, lower: Int32s, width: int, counts: Int32s, state: Int64s, pairs: Int32s, slots: Int32s
) -> None:
    """Count the cells between two rows, and the unequal pairs down and across them.

    The run ends of both rows cut the columns into spans. Inside a span all cells look alike; one more cell straddles
    each cut.
    """
    a = b = column = last = 0
    while True:
        stop = min(upper[START, a + 1], lower[START, b + 1])
        above, below = upper[REGION, a], lower[REGION, b]
        cells = stop - column - 1
        borders = (column == 0) + (stop == width)
        counts[above, RIM] += 2 * borders
        if above == below:
            counts[above, PURE] += cells
        else:
            last = _find_pair(above, below, last, pairs, slots)
            if last < 0:
                last = _add_pair(above, below, state, pairs, slots)
            pairs[last, EDGES] += cells + 1
            pairs[last, DIAGONALS] += 2 * cells
            pairs[last, RIM_EDGES] += borders
            counts[above, MIXED] += cells
            counts[below, MIXED] += cells
            counts[below, RIM] += 2 * borders
        if stop == width:
            return
        a += upper[START, a + 1] == stop
        b += lower[START, b + 1] == stop
        next_above, next_below = upper[REGION, a], lower[REGION, b]
        if above != next_below:
            last = _find_pair(above, next_below, last, pairs, slots)
            if last < 0:
                last = _add_pair(above, next_below, state, pairs, slots)
            pairs[last, DIAGONALS] += 1
        if next_above != below:
            last = _find_pair(next_above, below, last, pairs, slots)
            if last < 0:
                last = _add_pair(next_above, below, state, pairs, slots)
            pairs[last, DIAGONALS] += 1
        counts[above, MIXED] += 1
        if next_above != above:
            counts[next_above, MIXED] += 1
        if below not in (above, next_above):
            counts[below, MIXED] += 1
        if next_below not in (above, next_above, below):
            counts[next_below, MIXED] += 1
        column = stop


@njit(cache=True, nogil=True)
def _number_pieces(runs: Int32s, count: int, parent: Int32s, numbers: Int32s, used: int) -> int:
    """Replace the pieces of a row by small consecutive numbers, the same for the same root."""
    for k in range(count):
        root = find_root(parent, runs[PIECE, k])
        if numbers[root] < 0:
            numbers[root] = used
            used += 1
        runs[PIECE, k] = numbers[root]
    return used


@njit(cache=True, nogil=True)
def _measure_band(
    hashes: Hashes, top: int, bottom: int
) -> tuple[Hashes, Int64s, Int32s, Int32s, Int32s, Int32s, Int32s, int]:
    """Sums of the rows ``top`` to ``bottom`` and of the cells and pairs from each down to the next row: a `_Band`."""
    height, width = hashes.shape
    # room for the worst image, in which every pixel is a region: pages that are never touched cost nothing
    room = (bottom - top + 2) * width
    patterns = np.empty(room, np.uint64)
    moments = np.empty((room, 5), np.int64)
    counts = np.empty((room, 8), np.int32)
    parent = np.empty(room, np.int32)
    pairs = np.empty((4 * room, 5), np.int32)
    pairs[0] = -1  # the first look-up tries row 0, which must not match by chance
    slots = np.full(_FIRST_SLOTS, -1, np.int32)
    pair_slots = np.full(_FIRST_SLOTS, -1, np.int32)
    state = np.zeros(2, np.int64)
    upper, lower = np.empty((3, width + 1), np.int32), np.empty((3, width + 1), np.int32)
    above, below = np.empty((width, 4), np.int32), np.empty((width, 4), np.int32)
    top_runs = np.empty((3, 0), np.int32)
    regions = upper_count = above_count = 0
    for row in range(max(top - 1, 0), min(bottom + 1, height)):
        count = find_runs(hashes[row], lower[START])
        slots = reserve(count, regions, patterns, slots)
        known = regions
        regions = number_runs(hashes[row], lower[START], count, lower[REGION], patterns, regions, slots)
        moments[known:regions] = 0
        counts[known:regions] = 0
        pair_slots = _reserve_pairs(4 * (upper_count + count), state[PAIRS], pairs, pair_slots)
        below_count = 0
        if row == 0:
            below_count = _whole_row(count, lower, below)
        elif row >= top:
            below_count = _equal_spans(upper, lower, width, below)
        if row > top:
            _add_interior(upper, width, above, above_count, below, below_count, counts)
            _add_cells(upper, lower, width, counts, state, pairs, pair_slots)
        if row >= top:
            _join_pieces(below, below_count if row > top else 0, upper, lower, count, state, parent, counts)
        if row == top:
            top_runs = lower[:, :count].copy()
        if top <= row < bottom:
            _add_row(row, height, count, lower, moments, counts)
            _add_row_edges((row == 0) + (row == height - 1), count, lower, state, pairs, pair_slots)
        upper, lower = lower, upper
        above, below = below, above
        upper_count, above_count = count, below_count
    if bottom == height:
        below_count = _whole_row(upper_count, upper, below)
        _add_interior(upper, width, above, above_count, below, below_count, counts)
        upper_count = 0
    numbers = np.full(state[PIECES], -1, np.int32)
    pieces = _number_pieces(top_runs, top_runs.shape[1], parent, numbers, 0)
    pieces = _number_pieces(upper, upper_count, parent, numbers, pieces)
    return (
        patterns[:regions].copy(),
        moments[:regions].copy(),
        counts[:regions].copy(),
        pairs[: state[PAIRS]].copy(),
        top_runs[PIECE].copy(),
        upper[PIECE, :upper_count].copy(),
        upper[REGION, :upper_count].copy(),
        pieces,
    )


@njit(cache=True, nogil=True)
def _join_seam(
    seam_pieces: Int32s,
    seam_regions: Int32s,
    offset: int,
    next_pieces: Int32s,
    next_offset: int,
    parent: Int32s,
    numbers: Int32s,
    counts: Int32s,
) -> None:
    """The row below a band is the first row of the next: join the pieces that the two bands saw in it."""
    for k in range(seam_pieces.size):
        if unite(parent, offset + seam_pieces[k], next_offset + next_pieces[k]):
            counts[numbers[seam_regions[k]], COMPONENTS] -= 1


@njit(cache=True, nogil=True)
def _place_pairs(band: Int32s, numbers: Int32s, cursor: Int64s, pairs: Int32s) -> None:
    """Copy a band's pairs, with the image's region numbers, to where the bucket of their smaller region stands."""
    for k in range(band.shape[0]):
        one, other = numbers[band[k, FIRST]], numbers[band[k, SECOND]]
        first = min(one, other)
        at = cursor[first]
        cursor[first] = at + 1
        pairs[at, FIRST] = first
        pairs[at, SECOND] = max(one, other)
        for column in range(EDGES, 5):
            pairs[at, column] = band[k, column]


@njit(cache=True, nogil=True)
def _sort_bucket(pairs: Int32s, start: int, end: int) -> None:
    """Sort rows by the larger region, in place: Shell's sort, as most buckets hold few rows and some very many."""
    gap = (end - start) // 2
    while gap > 0:
        for k in range(start + gap, end):
            at = k
            while at >= start + gap and pairs[at - gap, SECOND] > pairs[at, SECOND]:
                for column in range(5):
                    pairs[at - gap, column], pairs[at, column] = pairs[at, column], pairs[at - gap, column]
                at -= gap
        gap = 1 if gap == 2 else gap * 5 // 11


@njit(cache=True, nogil=True)
def _combine_pairs(ends: Int64s, pairs: Int32s) -> int:
    """Sort each bucket and add up equal pairs, in place; return the number of distinct pairs."""
    used = start = 0
    for end in ends:
        _sort_bucket(pairs, start, end)
        fresh = used
        for k in range(start, end):
            if used == fresh or pairs[used - 1, SECOND] != pairs[k, SECOND]:
                for column in range(5):
                    pairs[used, column] = pairs[k, column]
                used += 1
            else:
                for column in range(EDGES, 5):
                    pairs[used - 1, column] += pairs[k, column]
        start = end
    return used


def region_sums(hashes: Hashes, threads: int | None = None) -> RegionSums:
    """See :func:`regiongrid.kernels.moments.region_sums`."""
    height, width = hashes.shape
    size = band_rows(width)
    measured: dict[int, _Band] = {}

    def measure(top: int, bottom: int) -> None:
        measured[top] = _Band(*_measure_band(hashes, top, bottom))

    run_spans(measure, height, size, threads if threads is not None else cpu_count())
    return _merge([measured.pop(top) for top in sorted(measured)])


def _merge(bands: list[_Band]) -> RegionSums:
    patterns, numbers = merge_numbers([band.patterns for band in bands])
    moments = np.zeros((patterns.size, 5), np.int64)
    counts = np.zeros((patterns.size, 8), np.int32)
    for k, (band, of_band) in enumerate(zip(bands, numbers)):
        # a band names a region once, so plain fancy indexing adds every row
        moments[of_band] += band.moments
        counts[of_band] += band.counts
        # a large image with tiny regions fills gigabytes: let go of each part once it is added
        bands[k] = band._replace(moments=moments[:0], counts=counts[:0], patterns=patterns[:0])
    _join_seams(bands, numbers, counts)
    pairs = _merge_pairs(bands, numbers, patterns.size)
    origin = centre_moments(counts[:, PIXELS], moments)
    return RegionSums(
        patterns=patterns,
        pixels=counts[:, PIXELS],
        origin=origin,
        first_moments=moments[:, :2],
        second_moments=moments[:, 2:],
        interior_pixels=counts[:, INTERIOR],
        pure_cells=counts[:, PURE],
        mixed_cells=counts[:, MIXED],
        rim_quarters=counts[:, RIM],
        border_sides=counts[:, BORDER],
        components=counts[:, COMPONENTS],
        coarse_pixels=counts[:, COARSE],
        pair_first=pairs[:, FIRST],
        pair_second=pairs[:, SECOND],
        pair_edges=pairs[:, EDGES],
        pair_diagonals=pairs[:, DIAGONALS],
        pair_rim_edges=pairs[:, RIM_EDGES],
    )


def _join_seams(bands: list[_Band], numbers: list[Int32s], counts: Int32s) -> None:
    offsets = np.cumsum([0] + [band.pieces for band in bands])
    parent = np.arange(offsets[-1], dtype=np.int32)
    for k in range(len(bands) - 1):
        band, following = bands[k], bands[k + 1]
        _join_seam(
            band.seam_pieces,
            band.seam_regions,
            offsets[k],
            following.top_pieces,
            offsets[k + 1],
            parent,
            numbers[k],
            counts,
        )


def _merge_pairs(bands: list[_Band], numbers: list[Int32s], regions: int) -> Int32s:
    sizes = np.zeros(regions, np.int64)
    for band, of_band in zip(bands, numbers):
        ends = of_band[band.pairs[:, :EDGES]].min(axis=1)
        sizes += np.bincount(ends, minlength=regions)
    cursor = np.cumsum(sizes) - sizes
    pairs = np.empty((int(sizes.sum()), 5), np.int32)
    for k, of_band in enumerate(numbers):
        _place_pairs(bands[k].pairs, of_band, cursor, pairs)
        bands[k] = bands[k]._replace(pairs=pairs[:0])
    return pairs[: _combine_pairs(cursor, pairs)]
