"""Region numbers and components in Triton, for all images of a batch at once, on horizontal runs of equal hashes.

A run goes by its index in raster order, image after image, so the smallest run of a set is its first in raster order.
Regions: the runs go into an open hash table that keeps the first run of each hash. Components: a forest over the runs,
each hanging from an earlier one, joined without locks by atomic minima. Both come out the same in whatever order the
programs run.

An image is read once; where it changes is kept in one byte a pixel. A *cell* is a pixel with its right, lower and
diagonal neighbours, as far as they exist; cells are listed where these differ, and along the last column, so that the
list has the last column of every overlap of a run with one below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from regiongrid.errors import MemoryLimitError, RegiongridError
from regiongrid.kernels.components import check_hash_tensor
from regiongrid.kernels.gpu import Build

MAX_RUNS = (1 << 30) - 1  # so that a slot of the table, of which there are two a run, has a number in 32 bits

# Marks of a pixel: its right neighbour differs, its lower neighbour differs, its cell is listed.
_RIGHT = tl.constexpr(1)
_DOWN = tl.constexpr(2)
_LISTED = tl.constexpr(4)

# Bits of a listed cell: the neighbours to the right differ in its upper row (as above), the upper and lower one differ
# (as above), the neighbours in the lower row differ, all four pixels exist; the right one, the lower one is on a
# boundary, but no other cell says so; the upper row, the left column lies on the domain's border.
RIGHT = tl.constexpr(1)
DOWN = tl.constexpr(2)
LOWER_RIGHT = tl.constexpr(4)
WHOLE = tl.constexpr(8)
RIGHT_ALONE = tl.constexpr(16)
LOWER_ALONE = tl.constexpr(32)
BORDER_ROW = tl.constexpr(64)
BORDER_COLUMN = tl.constexpr(128)

_FREE = tl.constexpr(0x7FFFFFFF)  # of a slot of the table: larger than any run

# Pixels of a row that a program takes, at most 512, as three counts of them share a word; and rows, of which all but
# the last find the one below in the cache. Four pixels a thread, as more would leave the chip too few threads.
_COLUMNS = 128
_ROWS = 4
_WARPS = 4
# Runs or cells a program takes: one warp, so that its loops wait for no other, with four independent chains a lane.
_BLOCK = 128
SPARES = tl.constexpr(64)  # blocks of spare words, see `spare`
_UNSPECIALISED = ["rows", "height", "width", "count", "limit"]  # no other code for sizes that happen to be 1 or 16 n


@dataclass(frozen=True)
class Runs:
    """The runs of a batch of pattern images [S, H, W] and the cells where these change.

    Attributes
    ----------
    shape
        ``(S, H, W)``.
    marks
        What changes at each pixel, uint8 [S * H, W].
    before
        Number of runs that end before each block of pixels of a row, and then, added to the number of all runs, the
        number of cells listed before each; int64 [2 * S * H * blocks + 1].
    places
        Row (of all S * H) times 2^16 plus last column of each run, int64 [n].
    hashes
        Hash of each run, int64 [n].
    parents
        The first run above that a run touches and whose hash it has, or the run itself, int32 [n].
    cell_runs
        Run of the upper left pixel of each listed cell, plus 2^32 times that of the lower left one (in the last row of
        an image the upper one again), int64 [m].
    cell_bits
        What is different in the cell, uint8 [m].
    """

    shape: tuple[int, int, int]
    marks: Tensor
    before: Tensor
    places: Tensor
    hashes: Tensor
    parents: Tensor
    cell_runs: Tensor
    cell_bits: Tensor

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def rows(self) -> int:
        """Rows of all images."""
        return self.shape[0] * self.shape[1]

    @property
    def blocks(self) -> int:
        """Blocks of pixels that a row is cut into."""
        return -(-self.shape[2] // _COLUMNS)

    @property
    def starts(self) -> Tensor:
        """First run of each image, and the number of runs: int64 [S + 1]."""
        return self.before[:: self.shape[1] * self.blocks][: self.shape[0] + 1]


def number_regions(hashes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number the regions of each image of a batch 0, 1, 2, ... in raster order of first appearance.

    Synchronises with the host three times.

    Parameters
    ----------
    hashes
        Pattern images, int64 [S, H, W], contiguous.

    Returns
    -------
    numbers
        Region number of each pixel in its image, int32 [S, H, W].
    patterns
        Hash of each region, image after image, int64 [n].
    offsets
        Where the regions of each image begin among all, int64 [S + 1]:
        ``patterns[offsets[s] + numbers[s]]`` is ``hashes[s]``.

    Raises
    ------
    InputError
        For an unusable tensor (see `check_hash_tensor`).
    MemoryLimitError
        If there are more than `MAX_RUNS` runs.
    """
    check_hash_tensor(hashes, batch=True)
    with torch.cuda.device(hashes.get_device()):
        runs = find_runs(hashes)
        firsts, lost = first_runs(runs)
        check_found(int(lost.item()))  # synchronises: a number that was not found must not be used
        leads, ranks, offsets = _ranks(runs, firsts)
        patterns = runs.hashes[leads]  # synchronises: as many as there are regions
        return _paint_runs(runs, ranks), patterns, offsets


def label_components(hashes: Tensor) -> tuple[Tensor, Tensor]:
    """Number the 4-connected components of each image of a batch 0, 1, 2, ... in raster order of first appearance.

    Synchronises with the host once.

    Parameters
    ----------
    hashes
        Pattern images, int64 [S, H, W], contiguous.

    Returns
    -------
    labels
        Component number of each pixel in its image, int32 [S, H, W].
    counts
        Number of components of each image, int64 [S].

    Raises
    ------
    InputError, MemoryLimitError
        As `number_regions`.
    """
    check_hash_tensor(hashes, batch=True)
    with torch.cuda.device(hashes.get_device()):
        runs = find_runs(hashes)
        _, ranks, offsets = _ranks(runs, root_runs(runs))
        return _paint_runs(runs, ranks), offsets.diff()


def find_runs(hashes: Tensor) -> Runs:
    """The runs of a batch of images, and the cells where these change. Synchronises with the host once."""
    slices, height, width = hashes.shape
    rows, blocks = slices * height, triton.cdiv(width, _COLUMNS)
    marks = torch.empty((rows, width), dtype=torch.uint8, device=hashes.device)
    before = torch.empty(2 * rows * blocks + 1, dtype=torch.int64, device=hashes.device)
    _mark_changes[(triton.cdiv(rows, _ROWS), blocks)](
        hashes, marks, before, rows, height, width, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS
    )
    before.cumsum_(0)
    # synchronises: the lists are as long as the data say
    count, total = before[rows * blocks :: rows * blocks].tolist()
    if count > MAX_RUNS:
        raise MemoryLimitError(
            f"the images [{slices}, {height}, {width}] have {count} runs of equal pixels in all, more than {MAX_RUNS}; "
            "measure fewer images at once, or at a lower resolution"
        )
    places = torch.empty(count, dtype=torch.int64, device=hashes.device)
    of_run = torch.empty(count, dtype=torch.int64, device=hashes.device)
    parents = torch.arange(count, dtype=torch.int32, device=hashes.device)
    cell_runs = torch.empty(total - count, dtype=torch.int64, device=hashes.device)
    cell_bits = torch.empty(total - count, dtype=torch.uint8, device=hashes.device)
    _list_runs[(triton.cdiv(rows, _ROWS), blocks)](
        hashes, marks, before, places, of_run, parents, cell_runs, cell_bits, rows, height, width, count,
        ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS,
    )  # fmt: skip
    return Runs((slices, height, width), marks, before, places, of_run, parents, cell_runs, cell_bits)


def first_runs(runs: Runs) -> tuple[Tensor, Tensor]:
    """The first run of each run's region, int32 [n], and how many runs found no slot, int32 [1] (see `check_found`).

    An image has two slots of the table for each of its runs, so that the table is never more than half full.
    """
    count, device = len(runs), runs.hashes.device
    spare = triton.cdiv(count, _BLOCK) * _BLOCK
    table = torch.full((2 * count + min(spare, SPARES.value * _BLOCK),), _FREE.value, dtype=torch.int32, device=device)
    slots = torch.empty(count, dtype=torch.int32, device=device)
    lost = torch.zeros(1, dtype=torch.int32, device=device)
    _, height, _ = runs.shape
    _number_runs[(triton.cdiv(count, _BLOCK),)](
        runs.places, runs.hashes, runs.before, table, slots, lost, count, height, runs.blocks,
        longest_search(2 * count), BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
    return torch.index_select(table, 0, slots), lost


def root_runs(runs: Runs) -> Tensor:
    """The first run of the component of each run, int32 [n]; works in ``runs.parents``.

    The runs hang from the first equal one above already. Shortened, the chains end where a piece begins that grows
    downwards; what is left to join are the pieces that meet further down.
    """
    count, cells = len(runs), len(runs.cell_bits)
    grid = (triton.cdiv(count, _BLOCK),)
    _shorten_chains[grid](runs.parents, count, BLOCK=_BLOCK, num_warps=1)
    _join_chains[(triton.cdiv(cells, _BLOCK),)](
        runs.cell_runs, runs.cell_bits, runs.parents, cells, BLOCK=_BLOCK, num_warps=1
    )
    _shorten_chains[grid](runs.parents, count, BLOCK=_BLOCK, num_warps=1)
    return runs.parents


def longest_search(slots: int) -> int:
    """After how many slots of a table a search gives up: all of them, so that it finds what is there or a free one."""
    return slots


def check_found(lost: int) -> None:
    """Refuse a result for which searches gave up.

    Raises
    ------
    RegiongridError
        If ``lost`` is not zero.
    """
    if lost:
        raise RegiongridError(
            f"{lost} searches in a hash table on the GPU found neither their entry nor a free slot; the tables are "
            "made large enough for every image, so this is a bug: please report it, and use backend='cpu' meanwhile"
        )


def _ranks(runs: Runs, leads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number sets of runs, given by the first run of the set of each run, int32 [n].

    Returns which runs are first in their set, bool [n]; the number of each run's set in its image, int32 [n]; and
    where the sets of each image begin among all, int64 [S + 1].
    """
    _, height, _ = runs.shape
    is_lead = leads == torch.arange(len(leads), dtype=torch.int32, device=leads.device)
    upto = torch.zeros(len(leads) + 1, dtype=torch.int64, device=leads.device)
    torch.cumsum(is_lead, 0, out=upto[1:])
    offsets = upto.index_select(0, runs.starts)
    ranks = upto.index_select(0, leads) - offsets.index_select(0, (runs.places >> 16) // height)
    return is_lead, ranks.to(torch.int32), offsets


def _paint_runs(runs: Runs, values: Tensor) -> Tensor:
    image = torch.empty(runs.shape, dtype=torch.int32, device=values.device)
    _paint[(triton.cdiv(runs.rows, _ROWS), runs.blocks)](
        runs.marks, runs.before, values, image, runs.rows, runs.shape[2],
        ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_WARPS,
    )  # fmt: skip
    return image


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _mark_changes(  # type: ignore[no-untyped-def]
    image, marks, before, rows, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Mark the pixels of a tile; count the runs that end in each row of it, and the cells to list.

    The counts go where their running sums will stand, one place further on.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    has_right = inside & (column < width - 1)[None, :]
    has_below = inside & (row.to(tl.int32) % height != height - 1)[:, None]
    place = row[:, None] * width + column[None, :]
    here = tl.load(image + place, mask=inside, other=0)
    right = tl.load(image + place + 1, mask=has_right, other=0)
    below = tl.load(image + place + width, mask=has_below, other=0)
    opposite = tl.load(image + place + width + 1, mask=has_below & has_right, other=0)
    changes_right = has_right & (here != right)
    changes_down = has_below & (here != below)
    last = inside & (column == width - 1)[None, :]
    listed = changes_right | changes_down | (has_below & has_right & (below != opposite)) | last
    mark = changes_right * _RIGHT + changes_down * _DOWN + listed * _LISTED
    tl.store(marks + place, mark.to(tl.uint8), mask=inside)
    block = row * tl.num_programs(1) + tl.program_id(1)
    counts = before + 1 + block
    tl.store(counts, tl.sum((changes_right | last).to(tl.int32), axis=1), mask=row < rows)
    every = rows.to(tl.int64) * tl.num_programs(1)
    tl.store(counts + every, tl.sum(listed.to(tl.int32), axis=1), mask=row < rows)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(before, 0)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _list_runs(  # type: ignore[no-untyped-def]
    image, marks, before, places, hashes, parents, cell_runs, cell_bits, rows, height, width, count,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """List the runs that end in a tile and the cells whose upper left pixels are in it.

    Also hang each run below a row of the tile from the first equal one above that it touches.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    place = row * width + column
    mark = tl.load(marks + place, mask=inside, other=0).to(tl.int32)
    if tl.max(mark) > 0:
        in_image = row.to(tl.int32) % height
        has_below = (row < rows) & (in_image != height - 1)
        last = inside & (column == width - 1)
        below = tl.load(marks + place + width, mask=inside & has_below, other=0).to(tl.int32)
        ends = (mark & _RIGHT) | last
        ends_below = ((below & _RIGHT) | last) * has_below
        listed = (mark & _LISTED) != 0
        each = ends + (ends_below << 10) + (listed.to(tl.int32) << 20)
        earlier = tl.cumsum(each, axis=1) - each
        block = row * tl.num_programs(1) + tl.program_id(1)
        run = tl.load(before + block, mask=row < rows, other=0) + (earlier & 1023)
        first_below = tl.load(before + block + tl.num_programs(1), mask=has_below, other=0)
        run_below = tl.where(has_below, first_below + ((earlier >> 10) & 1023), run)

        tl.store(places + run, (row << 16) | column, mask=ends != 0)
        tl.store(hashes + run, tl.load(image + place, mask=ends != 0, other=0), mask=ends != 0)
        touch = listed & has_below & ((mark & _DOWN) == 0)
        tl.atomic_min(parents + run_below, run.to(tl.int32), mask=touch, sem="relaxed")

        # A pixel is on a boundary if one of its four neighbours differs. Its own cell sees those to the right and
        # below; otherwise the cell to its left says so, otherwise the one above.
        changes = _RIGHT | _DOWN
        right = tl.load(marks + place + 1, mask=listed & (column < width - 1), other=0).to(tl.int32)
        below_left = tl.load(marks + place + width - 1, mask=listed & has_below & (column > 0), other=0).to(tl.int32)
        bits = mark & changes
        bits += (below & _RIGHT) * LOWER_RIGHT
        bits += (has_below & (column < width - 1)) * WHOLE
        bits += (((mark & _RIGHT) != 0) & ((right & changes) == 0)) * RIGHT_ALONE
        bits += (((mark & _DOWN) != 0) & ((below & changes) == 0) & ((below_left & _RIGHT) == 0)) * LOWER_ALONE
        bits += ((in_image == 0) | (in_image == height - 1)) * BORDER_ROW
        bits += ((column == 0) | last) * BORDER_COLUMN
        cell = tl.load(before + rows.to(tl.int64) * tl.num_programs(1) + block, mask=row < rows, other=0) - count
        cell = cell + (earlier >> 20)
        tl.store(cell_runs + cell, run | (run_below << 32), mask=listed)
        tl.store(cell_bits + cell, bits.to(tl.uint8), mask=listed)


@triton.jit
def mix(key):  # type: ignore[no-untyped-def]
    """Spread keys over all 64 bits (splitmix64's finaliser), so that regular ones do not crowd a table."""
    key = key.to(tl.uint64, bitcast=True)
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB
    return key ^ (key >> 31)


@triton.jit
def spare(slots, lane, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A word behind a table for each lane that has nothing to claim: an exchange has no mask. Few programs share it."""
    return slots + (tl.program_id(0) % SPARES) * BLOCK + lane


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "blocks"])
def _number_runs(  # type: ignore[no-untyped-def]
    places, hashes, before, table, slots, lost, count, height, blocks, limit, BLOCK: tl.constexpr
):
    """Find the slot of each run's hash in the part of the table that belongs to its image; keep the first run there.

    A slot holds a run, so that every 64-bit value can be a hash. The run is replaced by earlier ones of the same hash
    only: whoever reads it, whenever, compares with the same hash.
    """
    lane = tl.arange(0, BLOCK)
    run = tl.program_id(0).to(tl.int64) * BLOCK + lane
    listed = run < count
    pattern = tl.load(hashes + run, mask=listed, other=0)
    image = (tl.load(places + run, mask=listed, other=0) >> 16).to(tl.int32) // height
    per_image = height.to(tl.int64) * blocks
    start = 2 * tl.load(before + image * per_image, mask=listed, other=0)
    end = 2 * tl.load(before + (image + 1) * per_image, mask=listed, other=1)
    at = start + tl.umulhi(mix(pattern), (end - start).to(tl.uint64)).to(tl.int64)
    unclaimed = spare(2 * count.to(tl.int64), lane, BLOCK)
    free = tl.full([BLOCK], _FREE, tl.int32)
    number = run.to(tl.int32)
    first = free
    searching = listed
    step = 0
    while (tl.max(searching.to(tl.int32), axis=0) > 0) & (step < limit):
        holder = tl.load(table + at, mask=searching, other=0, cache_modifier=".cg")
        claims = searching & (holder == _FREE)
        if tl.max(claims.to(tl.int32), axis=0) > 0:
            seen = tl.atomic_cas(
                table + tl.where(claims, at, unclaimed), free, tl.where(claims, number, free), sem="relaxed"
            )
            holder = tl.where(claims, tl.where(seen == _FREE, number, seen), holder)
        found = searching & (tl.load(hashes + holder.to(tl.int64), mask=searching, other=0) == pattern)
        first = tl.where(found, holder, first)
        searching = searching & ~found
        at = tl.where(searching, tl.where(at + 1 == end, start, at + 1), at)
        step += 1
    # also where nothing was found, so that the number there is that of a run until `check_found` refuses the result
    tl.atomic_min(table + at, number, mask=listed & (first > number), sem="relaxed")
    tl.store(slots + run, at.to(tl.int32), mask=listed)
    failed = tl.sum(searching.to(tl.int32), axis=0)
    if failed > 0:
        tl.atomic_add(lost, failed, sem="relaxed")


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _shorten_chains(parents, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Hang each run from the root of its tree.

    Every step is written down, so that those further down the chain skip what others have walked: all at once, a chain
    of n takes about log2(n) steps. The end is certain, as each step goes to an earlier run.
    """
    run = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    listed = run < count
    parent = tl.load(parents + run, mask=listed, other=0)
    climbing = 1
    while climbing > 0:
        above = tl.load(parents + parent.to(tl.int64), cache_modifier=".cg")
        tl.store(parents + run, above, mask=listed & (above != parent))
        climbing = tl.max((above != parent).to(tl.int32), axis=0)
        parent = above


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _join_chains(cell_runs, cell_bits, parents, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Join the trees of the runs that touch in each cell.

    The later of two is hung from the earlier. If it hung from a third one, that and the earlier one are still to be
    joined; the sum of the two sinks with every step, so there is an end.
    """
    cell = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    listed = cell < count
    touch = (tl.load(cell_bits + cell, mask=listed, other=DOWN).to(tl.int32) & DOWN) == 0
    both = tl.load(cell_runs + cell, mask=touch, other=0)
    one = tl.load(parents + (both & 0xFFFFFFFF), mask=touch, other=0, cache_modifier=".cg")
    other = tl.load(parents + (both >> 32), mask=touch, other=0, cache_modifier=".cg")
    while tl.max((one != other).to(tl.int32), axis=0) > 0:
        later = tl.maximum(one, other)
        earlier = tl.minimum(one, other)
        apart = later != earlier
        seen = tl.atomic_min(parents + later.to(tl.int64), earlier, mask=apart, sem="relaxed")
        one = tl.where(apart & (seen != later), seen, earlier)
        other = earlier


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _paint(  # type: ignore[no-untyped-def]
    marks, before, values, image, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Write the value of its run to each pixel of a tile."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    place = row * width + column
    ends = tl.load(marks + place, mask=inside, other=0).to(tl.int32) & _RIGHT
    first = tl.load(before + row * tl.num_programs(1) + tl.program_id(1), mask=row < rows, other=0)
    run = first + tl.cumsum(ends, axis=1) - ends
    tl.store(image + place, tl.load(values + run, mask=inside, other=0), mask=inside)


def builds() -> list[Build]:
    """The compilations for images of any size."""
    pixels = {"image": "*i64", "marks": "*u8"}
    sizes = {"rows": "i32", "height": "i32", "width": "i32"}
    tile = {"ROWS": _ROWS, "COLUMNS": _COLUMNS}
    lists = {"places": "*i64", "hashes": "*i64"}
    cells = {"cell_runs": "*i64", "cell_bits": "*u8"}
    block = {"BLOCK": _BLOCK}
    return [
        Build(
            "components mark changes",
            _mark_changes,
            {**pixels, "before": "*i64", **sizes},
            tile,
            _WARPS,
            bytes=8 + 1,
            item="pixel",
        ),
        Build(
            "components list runs",
            _list_runs,
            {**pixels, "before": "*i64", **lists, "parents": "*i32", **cells, **sizes, "count": "i32"},
            tile,
            _WARPS,
            bytes=1,  # where nothing changes
            item="pixel",
        ),
        Build(
            "components number runs",
            _number_runs,
            {**lists, "before": "*i64", "table": "*i32", "slots": "*i32", "lost": "*i32", "count": "i32",
             "height": "i32", "blocks": "i32", "limit": "i32"},
            block,
            1,
            bytes=2 * 8 + 4 + 8,  # a sector of the table and the hash of its holder are in the cache for most
            item="run",
        ),
        Build(
            "components shorten chains",
            _shorten_chains,
            {"parents": "*i32", "count": "i32"},
            block,
            1,
            bytes=4,  # of a chain that is short already
            item="run",
        ),
        Build(
            "components join chains",
            _join_chains,
            {**cells, "parents": "*i32", "count": "i32"},
            block,
            1,
            bytes=9,  # the parents of its runs are in the cache
            item="cell",
        ),
        Build(
            "components paint",
            _paint,
            {"marks": "*u8", "before": "*i64", "values": "*i32", "image": "*i32", "rows": "i32", "width": "i32"},
            tile,
            _WARPS,
            bytes=1 + 4,
            item="pixel",
        ),
    ]  # fmt: skip
