"""Region sums in Triton, for all images of a batch at once, from the runs and cells that the components are made of.

Sums over pixels are sums over runs, in closed form. Everything else happens where an image changes: boundary pixels,
mixed cells and pairs come from the listed cells, and what has no change in it is the rest. All sums are integers added
by atomics, so the result does not depend on the order in which programs run.

The bound on paper: 10 bytes a pixel (its hash, its mark twice), about 140 a run and 45 a cell, six atomics a run and
three a cell. A line arrangement of 14,000 regions on 4096 x 4096 pixels has 0.6 million runs and 1.1 million cells:
0.3 GB and 7 million atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from regiongrid.kernels.components import check_hash_tensor
from regiongrid.kernels.components.gpu import (
    BORDER_COLUMN,
    BORDER_ROW,
    DOWN,
    LOWER_ALONE,
    LOWER_RIGHT,
    RIGHT,
    RIGHT_ALONE,
    SPARES,
    WHOLE,
    Runs,
    check_found,
    find_runs,
    first_runs,
    longest_search,
    mix,
    root_runs,
    spare,
)
from regiongrid.kernels.gpu import Build
from regiongrid.kernels.moments import BatchSums, RegionSums

# Words of a region's sums, int64. PIXELS: pixels, plus 2^32 times those in even rows and columns. COLUMN to ROW_ROW:
# moments about pixel (0, 0). UPPER_LEFT: boundary pixels that their own cell counts, plus 2^32 times the mixed cells
# whose upper left pixel is in the region; OTHER: those that another cell counts, plus 2^32 times the other mixed cells
# that touch the region. BORDER: rim quarters, plus 2^21 times sides on the border, plus 2^42 times pixels that are the
# upper left one of no cell: each less than 2^21, as an image has at most 2^16 pixels a side.
PIXELS = tl.constexpr(0)
COLUMN = tl.constexpr(1)
ROW = tl.constexpr(2)
COLUMN_COLUMN = tl.constexpr(3)
COLUMN_ROW = tl.constexpr(4)
ROW_ROW = tl.constexpr(5)
UPPER_LEFT = tl.constexpr(6)
OTHER = tl.constexpr(7)
BORDER = tl.constexpr(8)
COMPONENTS = tl.constexpr(9)
PATTERN = tl.constexpr(10)
_WORDS = tl.constexpr(12)  # with one left over: three sectors of memory

_LOW = tl.constexpr(0xFFFFFFFF)
_ONE_HIGH = tl.constexpr(1 << 32)
_FREE = tl.constexpr(-1)  # of a slot of the pairs' table

# A plane map of c faces has at most 3 c pairs of faces that share an edge, and at most c corners where four edges meet,
# each with two pairs that share no more than it: 5 c pairs. The table is at most 5/8 full.
_SLOTS_PER_COMPONENT = 8

# Runs, regions or pairs, and cells a program takes: one warp, so that its loops wait for no other. A cell has up to
# four pairs.
_BLOCK = 128
_CELLS = 64
# Results of up to this many bytes are brought to page-locked memory, at several times the speed, and stay there.
_MAX_PINNED = 1 << 26

_LONGS = 6  # int64 a region in the results: pattern, two first and three second moments
_INTS = 10  # int32 a region in the results
_PAIR_INTS = 5  # int32 a pair in the results
_UNSPECIALISED = ["count", "height", "width", "blocks", "limit", "slots", "regions"]


class _Pairs(NamedTuple):
    slots: Tensor  # [m] slots that are taken, int64
    keys: Tensor  # [m] smaller region times 2^32 plus larger one, ascending, int64
    order: Tensor  # [m] position in slots of each key
    counts: Tensor  # of each slot: edges plus 2^32 times diagonals, int64
    rims: Tensor  # of each slot: edges along the domain's border, int32


def batch_sums(hashes: Tensor) -> BatchSums:
    """See :func:`regiongrid.kernels.moments.batch_sums`.

    Synchronises with the host four times: for the numbers of runs and cells, of regions and components, of pairs, and
    for the results.
    """
    check_hash_tensor(hashes, batch=True)
    with torch.cuda.device(hashes.get_device()):
        runs = find_runs(hashes)
        firsts, lost = first_runs(runs)
        roots = root_runs(runs)
        ranks = _rank(firsts, roots)
        # synchronises: the sums and the table of pairs are as large as the data say
        components, regions = divmod(int(ranks[-1].item()), _ONE_HIGH.value)
        of_run, sums, offsets = _sum_runs(runs, firsts, roots, ranks, regions)
        pairs = _sum_cells(runs, of_run, sums, components, lost)
        return _to_host(sums, offsets, pairs, lost)


def _rank(firsts: Tensor, roots: Tensor) -> Tensor:
    """How many regions have begun up to each run, plus 2^32 times how many components, int64 [n]."""
    leads = torch.empty(len(firsts), dtype=torch.int64, device=firsts.device)
    _mark_leads[(triton.cdiv(len(firsts), _BLOCK),)](firsts, roots, leads, len(firsts), BLOCK=_BLOCK, num_warps=1)
    return leads.cumsum_(0)


def _sum_runs(runs: Runs, firsts: Tensor, roots: Tensor, ranks: Tensor, regions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Region of each run, int32 [n]; sums of each, int64 [regions, words]; first of each image, int64 [S + 1]."""
    slices, height, width = runs.shape
    device = firsts.device
    of_run = torch.empty_like(firsts)
    sums = torch.zeros((regions, _WORDS.value), dtype=torch.int64, device=device)
    offsets = torch.full((slices + 1,), regions, dtype=torch.int64, device=device)
    _add_runs[(triton.cdiv(len(runs), _BLOCK),)](
        runs.places, runs.hashes, runs.before, firsts, roots, ranks, of_run, sums, offsets,
        len(runs), height, width, runs.blocks, BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
    return of_run, sums, offsets


def _sum_cells(runs: Runs, of_run: Tensor, sums: Tensor, components: int, lost: Tensor) -> _Pairs:
    """Add the listed cells to ``sums``; find the pairs."""
    _, height, width = runs.shape
    device, cells = sums.device, len(runs.cell_bits)
    slots, programs = _SLOTS_PER_COMPONENT * components, triton.cdiv(cells, _CELLS)
    spares = min(programs, SPARES.value) * 4 * _CELLS
    table = torch.full((slots + spares,), _FREE.value, dtype=torch.int64, device=device)
    counts = torch.zeros(slots, dtype=torch.int64, device=device)
    rims = torch.zeros(slots, dtype=torch.int32, device=device)
    _add_cells[(programs,)](
        runs.cell_runs, runs.cell_bits, of_run, sums, table, counts, rims, lost, cells, height, width, slots,
        longest_search(slots), CELLS=_CELLS, num_warps=1,
    )  # fmt: skip
    taken = torch.nonzero(table[:slots] != _FREE.value).view(-1)  # synchronises: the results are that long
    keys, order = torch.sort(table[taken])
    return _Pairs(taken, keys, order, counts, rims)


def _to_host(sums: Tensor, offsets: Tensor, pairs: _Pairs, lost: Tensor) -> BatchSums:
    """Everything in one buffer and one transfer: what was lost, both offsets, then the regions, then the pairs."""
    n, m, marks = len(sums), len(pairs.keys), len(offsets)
    head = 1 + 2 * marks
    longs = head + _LONGS * n
    buffer = torch.empty(longs + (_INTS * n + _PAIR_INTS * m + 1) // 2, dtype=torch.int64, device=sums.device)
    ints = buffer[longs:].view(torch.int32)
    buffer[0:1].copy_(lost)
    buffer[1 : 1 + marks].copy_(offsets)
    torch.searchsorted(pairs.keys, offsets << 32, out=buffer[1 + marks : head])
    _finish_regions[(triton.cdiv(n, _BLOCK),)](sums, buffer[head:], ints, n, BLOCK=_BLOCK, num_warps=1)
    if m:
        _finish_pairs[(triton.cdiv(m, _BLOCK),)](
            pairs.keys, pairs.order, pairs.slots, pairs.counts, pairs.rims, ints[_INTS * n :], m,
            BLOCK=_BLOCK, num_warps=1,
        )  # fmt: skip
    host = _fetch(buffer)
    check_found(int(host[0]))
    return BatchSums(
        sums=_region_sums(host[head:longs], host[longs:].view(np.int32), n, m),
        region_offsets=host[1 : 1 + marks],
        pair_offsets=host[1 + marks : head],
    )


def _fetch(buffer: Tensor) -> NDArray[np.int64]:
    if not buffer.is_cuda:
        return buffer.numpy()
    host = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=buffer.nbytes <= _MAX_PINNED)
    return host.copy_(buffer).numpy()  # synchronises: the results


def _region_sums(longs: NDArray[np.int64], ints: NDArray[np.int32], n: int, m: int) -> RegionSums:
    columns = ints[2 * n : _INTS * n].reshape(_INTS - 2, n)
    pairs = ints[_INTS * n : _INTS * n + _PAIR_INTS * m].reshape(_PAIR_INTS, m)
    return RegionSums(
        patterns=longs[:n].view(np.uint64),
        origin=ints[: 2 * n].reshape(n, 2),
        first_moments=longs[n : 3 * n].reshape(n, 2),
        second_moments=longs[3 * n :].reshape(n, 3),
        pixels=columns[0],
        interior_pixels=columns[1],
        pure_cells=columns[2],
        mixed_cells=columns[3],
        rim_quarters=columns[4],
        border_sides=columns[5],
        components=columns[6],
        coarse_pixels=columns[7],
        pair_first=pairs[0],
        pair_second=pairs[1],
        pair_edges=pairs[2],
        pair_diagonals=pairs[3],
        pair_rim_edges=pairs[4],
    )


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _mark_leads(firsts, roots, leads, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 where a region begins, plus 2^32 where a component does."""
    run = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    listed = run < count
    region = (tl.load(firsts + run, mask=listed, other=0) == run).to(tl.int64)
    component = (tl.load(roots + run, mask=listed, other=0) == run).to(tl.int64)
    tl.store(leads + run, region + (component << 32), mask=listed)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _add_runs(  # type: ignore[no-untyped-def]
    places, hashes, before, firsts, roots, ranks, of_run, sums, offsets, count, height, width, blocks,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the pixels of each run to the sums of its region; write down which region that is, and its pattern."""
    run = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    listed = run < count
    place = tl.load(places + run, mask=listed, other=0)
    previous = tl.load(places + run - 1, mask=listed & (run > 0), other=-1)
    first = tl.load(firsts + run, mask=listed, other=0)
    region = (tl.load(ranks + first.to(tl.int64), mask=listed, other=1) & _LOW) - 1
    tl.store(of_run + run, region.to(tl.int32), mask=listed)
    line = place >> 16
    start = tl.where(previous >> 16 == line, (previous & 0xFFFF) + 1, 0)
    stop = (place & 0xFFFF) + 1
    image = line.to(tl.int32) // height
    row = (line.to(tl.int32) - image * height).to(tl.int64)

    word = sums + region * _WORDS
    length = stop - start
    coarse = tl.where(row % 2 == 0, (stop + 1) // 2 - (start + 1) // 2, 0)
    columns = (stop * (stop - 1) - start * (start - 1)) // 2
    squares = (stop * (stop - 1) * (2 * stop - 1) - start * (start - 1) * (2 * start - 1)) // 6
    tl.atomic_add(word + PIXELS, length + (coarse << 32), mask=listed, sem="relaxed")
    tl.atomic_add(word + COLUMN, columns, mask=listed, sem="relaxed")
    tl.atomic_add(word + ROW, length * row, mask=listed, sem="relaxed")
    tl.atomic_add(word + COLUMN_COLUMN, squares, mask=listed, sem="relaxed")
    tl.atomic_add(word + COLUMN_ROW, columns * row, mask=listed, sem="relaxed")
    tl.atomic_add(word + ROW_ROW, length * row * row, mask=listed, sem="relaxed")
    begins = listed & (tl.load(roots + run, mask=listed, other=0) == run)
    tl.atomic_add(word + COMPONENTS, tl.full([BLOCK], 1, tl.int64), mask=begins, sem="relaxed")

    at_left = listed & (start == 0)
    at_right = listed & (stop == width)
    borders = (row == 0).to(tl.int64) + (row == height - 1)
    leads = listed & (first == run)
    on_border = at_left | at_right | (listed & (borders > 0))
    pattern = tl.load(hashes + run, mask=leads | on_border, other=0)
    tl.store(word + PATTERN, pattern, mask=leads)
    tl.store(offsets + image, region, mask=at_left & (row == 0))
    if tl.max(on_border.to(tl.int32), axis=0) > 0:
        # A half cell of the rim counts for each region that it touches: along the border rows for the pixels and the
        # one before and after them, along the border columns for the pixel above and, if it differs, the one below.
        ends = at_left.to(tl.int64) + at_right
        rim = 2 * borders * (length + 1 - ends) + borders * ends + 2 * ends * (row < height - 1)
        line_block = line * blocks
        left_above = tl.load(before + line_block - blocks, mask=at_left & (row > 0), other=0)
        right_above = tl.load(before + line_block, mask=at_right & (row > 0), other=1) - 1
        left_pattern = tl.load(hashes + left_above, mask=at_left & (row > 0), other=0)
        right_pattern = tl.load(hashes + right_above, mask=at_right & (row > 0), other=0)
        rim += 2 * (at_left & (row > 0) & (left_pattern != pattern))
        rim += 2 * (at_right & (row > 0) & (right_pattern != pattern))
        sides = borders * length + ends
        without_cell = tl.where(row == height - 1, length, at_right.to(tl.int64))
        tl.atomic_add(word + BORDER, rim + (sides << 21) + (without_cell << 42), mask=on_border, sem="relaxed")


@triton.jit
def _pair(one, other):  # type: ignore[no-untyped-def]
    """Key of an unordered pair of regions."""
    return (tl.minimum(one, other) << 32) | tl.maximum(one, other)


@triton.jit
def _four(a, b, c, d):  # type: ignore[no-untyped-def]
    return tl.join(tl.join(a, b), tl.join(c, d))


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _add_cells(  # type: ignore[no-untyped-def]
    cell_runs, cell_bits, of_run, sums, table, counts, rims, lost, count, height, width, slots, limit,
    CELLS: tl.constexpr,
):  # fmt: skip
    """Add the listed cells to the sums of the regions in them and to the counts of the pairs of regions in them.

    A cell has the edges from its upper left pixel to the right and down, and both diagonals.
    """
    lane = tl.arange(0, CELLS)
    cell = tl.program_id(0).to(tl.int64) * CELLS + lane
    listed = cell < count
    bits = tl.load(cell_bits + cell, mask=listed, other=0).to(tl.int32)
    both = tl.load(cell_runs + cell, mask=listed, other=0)
    upper = both & _LOW
    lower = both >> 32
    right = (bits & RIGHT) != 0
    down = (bits & DOWN) != 0
    whole = (bits & WHOLE) != 0
    here = tl.load(of_run + upper, mask=listed, other=0).to(tl.int64)
    beside = tl.load(of_run + upper + 1, mask=right, other=0).to(tl.int64)
    beside = tl.where(right, beside, here)
    below = tl.load(of_run + lower, mask=down, other=0).to(tl.int64)
    below = tl.where(down, below, here)
    lower_right = (bits & LOWER_RIGHT) != 0
    opposite = tl.load(of_run + lower + 1, mask=lower_right, other=0).to(tl.int64)
    opposite = tl.where(lower_right, opposite, below)

    # Each region in the cell once: a later pixel counts if its region is none of the earlier ones'.
    mixed = whole.to(tl.int64) << 32
    below_again = down & (below == beside)
    below_alone = ((bits & LOWER_ALONE) != 0).to(tl.int64)
    of_beside = mixed + ((bits & RIGHT_ALONE) != 0) + tl.where(below_again, below_alone, 0)
    of_below = mixed + below_alone
    new_opposite = whole & (opposite != here) & (opposite != beside) & (opposite != below)
    tl.atomic_add(
        sums + here * _WORDS + UPPER_LEFT, mixed + (right | down), mask=listed & (whole | right | down), sem="relaxed"
    )
    tl.atomic_add(sums + beside * _WORDS + OTHER, of_beside, mask=right & (of_beside > 0), sem="relaxed")
    tl.atomic_add(
        sums + below * _WORDS + OTHER, of_below, mask=down & (below != beside) & (of_below > 0), sem="relaxed"
    )
    tl.atomic_add(sums + opposite * _WORDS + OTHER, mixed, mask=new_opposite, sem="relaxed")

    # Equal pairs of the cell go to the first of them: where two regions meet, one pair is left of four.
    edge_right = right.to(tl.int64)
    edge_down = down.to(tl.int64)
    falling = (whole & (here != opposite)).to(tl.int64) << 32
    rising = (whole & (beside != below)).to(tl.int64) << 32
    rim_right = right * ((bits & BORDER_ROW) != 0).to(tl.int32) * (1 + (height == 1))
    rim_down = down * ((bits & BORDER_COLUMN) != 0).to(tl.int32) * (1 + (width == 1))
    key_right = _pair(here, beside)
    key_down = _pair(here, below)
    key_falling = _pair(here, opposite)
    key_rising = _pair(beside, below)
    same = right & (key_down == key_right)
    edge_right += tl.where(same, edge_down, 0)
    rim_right += tl.where(same, rim_down, 0)
    edge_down = tl.where(same, 0, edge_down)
    rim_down = tl.where(same, 0, rim_down)
    same = right & (key_falling == key_right)
    edge_right += tl.where(same, falling, 0)
    falling = tl.where(same, 0, falling)
    same = (edge_down > 0) & (key_falling == key_down)
    edge_down += tl.where(same, falling, 0)
    falling = tl.where(same, 0, falling)
    same = right & (key_rising == key_right)
    edge_right += tl.where(same, rising, 0)
    rising = tl.where(same, 0, rising)
    same = (edge_down > 0) & (key_rising == key_down)
    edge_down += tl.where(same, rising, 0)
    rising = tl.where(same, 0, rising)
    same = (falling > 0) & (key_rising == key_falling)
    falling += tl.where(same, rising, 0)
    rising = tl.where(same, 0, rising)

    key = _four(key_right, key_down, key_falling, key_rising)
    value = _four(edge_right, edge_down, falling, rising)
    none = tl.zeros([CELLS], tl.int32)
    rim = _four(rim_right, rim_down, none, none)
    number = tl.arange(0, 2)
    lanes = (lane[:, None, None] * 2 + number[None, :, None]) * 2 + number[None, None, :]
    _add_pairs(table, counts, rims, lost, key, value, rim, slots, limit, spare(slots.to(tl.int64), lanes, 4 * CELLS))


@triton.jit
def _add_pairs(table, counts, rims, lost, key, value, rim, slots, limit, unclaimed):  # type: ignore[no-untyped-def]
    """Find the slot of each key with a value, or claim one; add the value and the rim edges there."""
    end = slots.to(tl.int64)
    at = tl.umulhi(mix(key), end.to(tl.uint64)).to(tl.int64)
    free = tl.full(key.shape, _FREE, tl.int64)
    searching = value > 0
    step = 0
    while (tl.max(searching.to(tl.int32)) > 0) & (step < limit):
        holder = tl.load(table + at, mask=searching, other=0, cache_modifier=".cg")
        claims = searching & (holder == _FREE)
        if tl.max(claims.to(tl.int32)) > 0:
            seen = tl.atomic_cas(
                table + tl.where(claims, at, unclaimed), free, tl.where(claims, key, free), sem="relaxed"
            )
            holder = tl.where(claims, tl.where(seen == _FREE, key, seen), holder)
        found = searching & (holder == key)
        searching = searching & ~found
        at = tl.where(searching, tl.where(at + 1 == end, 0, at + 1), at)
        step += 1
    found = (value > 0) & ~searching
    tl.atomic_add(counts + at, value, mask=found, sem="relaxed")
    tl.atomic_add(rims + at, rim, mask=found & (rim > 0), sem="relaxed")
    failed = tl.sum(searching.to(tl.int32))
    if failed > 0:
        tl.atomic_add(lost, failed, sem="relaxed")


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "longs", "ints"])
def _finish_regions(sums, longs, ints, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Unpack the sums of each region and move its moments to the pixel nearest its centroid."""
    region = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    listed = region < count
    total = count.to(tl.int64)
    word = sums + region * _WORDS
    both = tl.load(word + PIXELS, mask=listed, other=1)
    pixels = both & _LOW
    columns = tl.load(word + COLUMN, mask=listed, other=0)
    rows = tl.load(word + ROW, mask=listed, other=0)
    # sums of columns and rows are not negative, so that truncating division rounds down
    column = (2 * columns + pixels) // (2 * pixels)
    row = (2 * rows + pixels) // (2 * pixels)
    first_column = columns - pixels * column
    first_row = rows - pixels * row
    tl.store(longs + region, tl.load(word + PATTERN, mask=listed, other=0), mask=listed)
    tl.store(longs + total + 2 * region, first_column, mask=listed)
    tl.store(longs + total + 2 * region + 1, first_row, mask=listed)
    second = longs + 3 * total + 3 * region
    column_column = tl.load(word + COLUMN_COLUMN, mask=listed, other=0) - column * (columns + first_column)
    column_row = tl.load(word + COLUMN_ROW, mask=listed, other=0) - (column * rows + row * first_column)
    row_row = tl.load(word + ROW_ROW, mask=listed, other=0) - row * (rows + first_row)
    tl.store(second, column_column, mask=listed)
    tl.store(second + 1, column_row, mask=listed)
    tl.store(second + 2, row_row, mask=listed)

    upper_left = tl.load(word + UPPER_LEFT, mask=listed, other=0)
    other = tl.load(word + OTHER, mask=listed, other=0)
    border = tl.load(word + BORDER, mask=listed, other=0)
    tl.store(ints + 2 * region, column.to(tl.int32), mask=listed)
    tl.store(ints + 2 * region + 1, row.to(tl.int32), mask=listed)
    out = ints + 2 * total + region
    tl.store(out, pixels.to(tl.int32), mask=listed)
    interior = pixels - (upper_left & _LOW) - (other & _LOW)
    tl.store(out + total, interior.to(tl.int32), mask=listed)
    pure = pixels - (border >> 42) - (upper_left >> 32)
    tl.store(out + 2 * total, pure.to(tl.int32), mask=listed)
    tl.store(out + 3 * total, ((upper_left >> 32) + (other >> 32)).to(tl.int32), mask=listed)
    tl.store(out + 4 * total, (border & 0x1FFFFF).to(tl.int32), mask=listed)
    tl.store(out + 5 * total, ((border >> 21) & 0x1FFFFF).to(tl.int32), mask=listed)
    tl.store(out + 6 * total, tl.load(word + COMPONENTS, mask=listed, other=0).to(tl.int32), mask=listed)
    tl.store(out + 7 * total, (both >> 32).to(tl.int32), mask=listed)


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "out"])
def _finish_pairs(keys, order, slots, counts, rims, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the regions and the counts of each pair."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    listed = pair < count
    total = count.to(tl.int64)
    key = tl.load(keys + pair, mask=listed, other=0)
    slot = tl.load(slots + tl.load(order + pair, mask=listed, other=0), mask=listed, other=0)
    both = tl.load(counts + slot, mask=listed, other=0)
    tl.store(out + pair, (key >> 32).to(tl.int32), mask=listed)
    tl.store(out + total + pair, (key & _LOW).to(tl.int32), mask=listed)
    tl.store(out + 2 * total + pair, (both & _LOW).to(tl.int32), mask=listed)
    tl.store(out + 3 * total + pair, ((both >> 32) & _LOW).to(tl.int32), mask=listed)
    tl.store(out + 4 * total + pair, tl.load(rims + slot, mask=listed, other=0), mask=listed)


def builds() -> list[Build]:
    """The compilations for images of any size."""
    block = {"BLOCK": _BLOCK}
    of_runs = {"firsts": "*i32", "roots": "*i32"}
    lists = {"places": "*i64", "hashes": "*i64", "before": "*i64"}
    cells = {"cell_runs": "*i64", "cell_bits": "*u8", "of_run": "*i32", "sums": "*i64"}
    table = {"table": "*i64", "counts": "*i64", "rims": "*i32", "lost": "*i32"}
    sizes = {"count": "i32", "height": "i32", "width": "i32"}
    return [
        Build(
            "moments mark leads",
            _mark_leads,
            {**of_runs, "leads": "*i64", "count": "i32"},
            block,
            1,
            bytes=2 * 4 + 8,
            item="run",
        ),
        Build(
            "moments add runs",
            _add_runs,
            {**lists, **of_runs, "ranks": "*i64", "of_run": "*i32", "sums": "*i64", "offsets": "*i64", **sizes,
             "blocks": "i32"},
            block,
            1,
            bytes=8 + 3 * 4 + 6 * 8,  # place, first, root, region; six words of its region's sums
            item="run",
        ),
        Build(
            "moments add cells",
            _add_cells,
            {**cells, **table, **sizes, "slots": "i32", "limit": "i32"},
            {"CELLS": _CELLS},
            1,
            bytes=9 + 2 * 4 + 3 * 8,  # cell, two regions; a word of each one's sums and one of their pair's counts
            item="cell",
        ),
        Build(
            "moments finish regions",
            _finish_regions,
            {"sums": "*i64", "longs": "*i64", "ints": "*i32", "count": "i32"},
            block,
            1,
            bytes=11 * 8 + _LONGS * 8 + _INTS * 4,
            item="region",
        ),
        Build(
            "moments finish pairs",
            _finish_pairs,
            {"keys": "*i64", "order": "*i64", "slots": "*i64", "counts": "*i64", "rims": "*i32", "out": "*i32",
             "count": "i32"},
            block,
            1,
            bytes=4 * 8 + 4 + _PAIR_INTS * 4,
            item="pair",
        ),
    ]  # fmt: skip
