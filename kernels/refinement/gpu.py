"""One level of adaptive sampling in Triton, for all slices of a batch at once.

Pixels and cells are flat int64 indices into the images [S, H, W]; a cell goes by its top-left pixel. A level takes two
launches, because a filled pixel must not be asked for: `_fill` writes the pure cells, then `_subdivide` quarters the
others and lists what is still to be evaluated. The lists come in any order; the images do not depend on it.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from regiongrid.errors import InputError
from regiongrid.kernels.gpu import Build
from regiongrid.kernels.refinement import PENDING, UNKNOWN

_UNKNOWN = tl.constexpr(int(UNKNOWN.view(np.int64)))
_PENDING = tl.constexpr(int(PENDING.view(np.int64)))

_MAX_SPACING = 1 << 14  # the pixels of a cell are counted in 32 bits
_WARPS = 4
# Cells a program fills: a thread each while the corners are compared (fewer, and the compiler lets every thread compare
# all of its cells' corners instead of passing the results on).
_FILL_CELLS = 128
_FILL_LANES = 16  # pixels of a cell written together, a tile: 9 of them at spacing 2, a stretch of two lines of cache
_FILL_TILES = 8  # tiles of each of its cells that a program writes: up to spacing 8 a cell needs no second program
# Cells a program quarters: one addition to each of the two counters serves them all.
_SUBDIVIDE_CELLS = 256
_FILL_CONSTANTS = {"CELLS": _FILL_CELLS, "LANES": _FILL_LANES, "TILES": _FILL_TILES}
_UNSPECIALISED = ["count", "height", "width"]  # no other code for sizes that happen to be 1 or a multiple of 16


def coarsest(slices: int, res: int, spacing: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The first cells of images [slices, res, res], and the pixels to evaluate before the first `refine`.

    Corners lie at the multiples of ``spacing`` and in the last row and column.

    Returns
    -------
    cells, points
        Flat indices into the images, int64 [n] and [m].

    Examples
    --------
    >>> cells, points = coarsest(1, 4, 2, "cpu")
    >>> cells.tolist(), points.tolist()
    ([0, 2, 8, 10], [0, 2, 3, 8, 10, 11, 12, 14, 15])
    """
    corners = torch.arange(0, res - 1, spacing, device=device)
    last = torch.full((1,), res - 1, device=device)
    return _lattice(slices, res, corners), _lattice(slices, res, torch.cat([corners, last]))


def _lattice(slices: int, res: int, ticks: Tensor) -> Tensor:
    rows = torch.arange(slices, device=ticks.device)[:, None] * res + ticks
    return (rows[:, :, None] * res + ticks).reshape(-1)


def refine(image: Tensor, cells: Tensor, spacing: int) -> tuple[Tensor, Tensor]:
    """Fill the cells whose corners agree; quarter the others and list the pixels that their children need.

    Synchronises with the host once. Takes 73 bytes of device memory a cell, 72 of them until both lists are dropped.

    Parameters
    ----------
    image
        Pattern hashes, int64 [S, H, W], contiguous; changed in place. The corners of the cells are known, a pixel that
        is not holds 0; afterwards the pixels to evaluate hold -1.
    cells
        Cells of this level, flat indices of their top-left pixels, int64 [n], contiguous.
    spacing
        Pixels from corner to corner (less in the last row and column): a power of two from 2 to 2^14.

    Returns
    -------
    children, points
        Cells of half the spacing, and pixels to evaluate, each listed once: flat indices, int64, in any order.

    Raises
    ------
    InputError
        For a tensor of another type, shape, layout or device, or another spacing.
    """
    _check(image, cells, spacing)
    count = len(cells)
    if not count:
        return cells, cells
    _, height, width = image.shape
    mixed = torch.empty(count, dtype=torch.bool, device=image.device)
    children = torch.empty(4 * count, dtype=torch.int64, device=image.device)
    points = torch.empty(5 * count, dtype=torch.int64, device=image.device)
    found = torch.empty(2, dtype=torch.int64, device=image.device)
    parts = triton.cdiv((spacing + 1) ** 2, _FILL_LANES * _FILL_TILES)
    with torch.cuda.device(image.get_device()):  # -1, which changes nothing, for a CPU tensor in the interpreter
        _fill[(triton.cdiv(count, _FILL_CELLS) * parts,)](
            image, cells, mixed, found, count, height, width, spacing, parts, **_FILL_CONSTANTS, num_warps=_WARPS
        )
        _subdivide[(triton.cdiv(count, _SUBDIVIDE_CELLS),)](
            image, cells, mixed, children, points, found, count, height, width, spacing // 2,
            CELLS=_SUBDIVIDE_CELLS, num_warps=_WARPS,
        )  # fmt: skip
    n_children, n_points = found.tolist()  # the one synchronisation: the host sizes the next launches
    return children[:n_children], points[:n_points]


def _check(image: Tensor, cells: Tensor, spacing: int) -> None:
    for name, tensor, dimensions in (("image", image, 3), ("cells", cells, 1)):
        if tensor.dtype != torch.int64 or tensor.dim() != dimensions or not tensor.is_contiguous():
            raise InputError(
                f"{name} must be a contiguous int64 tensor of {dimensions} dimension(s), got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} and strides {tensor.stride()}; convert it with .to(torch.int64).contiguous()"
            )
    if cells.device != image.device:
        raise InputError(f"cells are on {cells.device}, the image is on {image.device}; move one with .to(device)")
    if not 2 <= spacing <= _MAX_SPACING or spacing & (spacing - 1):
        raise InputError(
            f"spacing must be a power of two from 2 to {_MAX_SPACING}, got {spacing}; "
            "start from first_spacing(res) and halve it, and stop at 1, where every pixel is a corner"
        )


@triton.jit
def _size(cell, height, width, spacing):  # type: ignore[no-untyped-def]
    """Rows and columns from the top-left corner of a cell to its other corners; spacing, or less at the far border."""
    row = cell // width
    return tl.minimum(height - 1 - row % height, spacing), tl.minimum(width - 1 - (cell - row * width), spacing)


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "spacing", "parts"])
def _fill(  # type: ignore[no-untyped-def]
    image, cells, mixed, found, count, height, width, spacing, parts,
    CELLS: tl.constexpr, LANES: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Fill part number ``program % parts`` of CELLS cells where they are pure; the programs of part 0 mark the others.

    Programs may write a pixel that others read or write: a pixel two cells share, or a corner. All write what is there
    or the same hash, since cells that share a side share the corners at its ends, so the order does not matter.
    """
    program = tl.program_id(0).to(tl.int64)
    part = (program % parts).to(tl.int32)
    which = program // parts * CELLS + tl.arange(0, CELLS)
    listed = which < count
    cell = tl.load(cells + which, mask=listed, other=0)
    down, across = _size(cell, height, width, spacing)
    hashes = tl.load(image + cell, mask=listed, other=0)
    right = tl.load(image + cell + across, mask=listed, other=0)
    below = tl.load(image + cell + down * width, mask=listed, other=0)
    opposite = tl.load(image + cell + down * width + across, mask=listed, other=0)
    pure = (hashes == right) & (hashes == below) & (hashes == opposite)
    if part == 0:
        tl.store(mixed + which, ~pure, mask=listed)
    if program == 0:  # here rather than in a launch of its own: _subdivide counts only after this launch
        tl.store(found + tl.arange(0, 2), tl.zeros([2], tl.int64))
    last_row = tl.where(listed & pure, down, -1).to(tl.int32)[:, None]
    last_column = across.to(tl.int32)[:, None]
    side = spacing + 1
    for tile in range(part * TILES, tl.minimum(part * TILES + TILES, tl.cdiv(side * side, LANES))):
        pixel = tile * LANES + tl.arange(0, LANES)
        i = pixel // side
        j = pixel - i * side
        inside = (i[None, :] <= last_row) & (j[None, :] <= last_column)
        tl.store(image + cell[:, None] + (i.to(tl.int64) * width + j)[None, :], hashes[:, None], mask=inside)


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "half"])
def _subdivide(  # type: ignore[no-untyped-def]
    image, cells, mixed, children, points, found, count, height, width, half, CELLS: tl.constexpr
):
    """Append the children of the mixed ones of CELLS cells and the unknown pixels among their corners."""
    which = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    split = tl.load(mixed + which, mask=which < count, other=0).to(tl.int1)
    cell = tl.load(cells + which, mask=split, other=0)
    down, across = _size(cell, height, width, 2 * half)
    two_down, two_across = split & (down > half), split & (across > half)
    both = two_down & two_across
    place = _places(found, split.to(tl.int32) + two_down + two_across + both)
    below = cell + half * width.to(tl.int64)
    tl.store(children + place, cell, mask=split)
    place += split
    tl.store(children + place, cell + half, mask=two_across)
    place += two_across
    tl.store(children + place, below, mask=two_down)
    place += two_down
    tl.store(children + place, below + half, mask=both)

    claims = tl.zeros([CELLS], tl.int32)  # bit k: this cell lists corner k
    number = tl.zeros([CELLS], tl.int32)
    for k in tl.static_range(9):
        if k % 2 == 1 or k == 4:  # the four others are corners of the cell, which are known
            corner = image + _child_corner(cell, down, across, half, width, k)
            unknown = tl.load(corner, mask=split, other=_PENDING) == _UNKNOWN
            # Cells that share the pixel may all find it unknown; the first to exchange it lists it.
            before = tl.atomic_xchg(corner, tl.full([CELLS], _PENDING, tl.int64), mask=unknown, sem="relaxed")
            claimed = (unknown & (before == _UNKNOWN)).to(tl.int32)
            claims |= claimed << k
            number += claimed
    place = _places(found + 1, number)
    for k in tl.static_range(9):
        if k % 2 == 1 or k == 4:
            claimed = (claims >> k) & 1
            tl.store(points + place, _child_corner(cell, down, across, half, width, k), mask=claimed == 1)
            place += claimed


@triton.jit
def _child_corner(cell, down, across, half, width, k: tl.constexpr):  # type: ignore[no-untyped-def]
    """Corner number k, in raster order, of the nine that the children have; at the far border some coincide."""
    return cell + tl.minimum(k // 3 * half, down) * width + tl.minimum(k % 3 * half, across)


@triton.jit
def _places(counter, number):  # type: ignore[no-untyped-def]
    """Reserve ``number`` entries a lane in the list that ``counter`` counts; the index of each lane's first."""
    upto = tl.cumsum(number, axis=0)
    start = tl.atomic_add(counter, tl.sum(number, axis=0).to(tl.int64), sem="relaxed")
    return start + upto - number


def builds() -> list[Build]:
    """The compilations for squares of any size."""
    level = {"image": "*i64", "cells": "*i64", "mixed": "*i1"}
    sizes = {"count": "i32", "height": "i32", "width": "i32"}
    fill = Build(
        "refinement fill",
        _fill,
        {**level, "found": "*i64", **sizes, "spacing": "i32", "parts": "i32"},
        _FILL_CONSTANTS,
        _WARPS,
        bytes=8,  # one write; the numbers and corners of the cells are few beside it
        item="pixel",
    )
    subdivide = Build(
        "refinement subdivide",
        _subdivide,
        {**level, "children": "*i64", "points": "*i64", "found": "*i64", **sizes, "half": "i32"},
        {"CELLS": _SUBDIVIDE_CELLS},
        _WARPS,
        # A mixed cell among mixed cells: its mark and number, three pixels of its own to read and exchange (the middles
        # of its sides are shared with a neighbour), three points and four children to list.
        bytes=1 + 8 + 3 * 16 + 3 * 8 + 4 * 8,
        item="cell",
    )
    return [fill, subdivide]
