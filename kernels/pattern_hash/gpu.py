"""The breakpoint epilogues in Triton: one read and one write of the pre-activations each.

The work is cut into tiles: a few rows, and at most 2048 of their columns, which a program goes through block by block.
Hashes and flags of the parts of a long row commute, and its sums of squares are added in a fixed order. What becomes of
a row depends on its own numbers and on n alone, so a batch may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regiongrid.errors import InputError
from regiongrid.kernels.gpu import Build, why_not

_SPAN = tl.constexpr(2048)  # columns of a tile: enough to make small what happens once a row of it

# A program is one warp, so that it waits for no other. Each of its threads has one column of a block: the warp reads
# adjacent memory, and what belongs to a column is loaded by the thread that needs it, once for all rows. A thread has
# four numbers at a time: with eight, so many registers are taken that fewer programs run at once, and some spill.
_WARPS = 1
_MOST_COLUMNS = 32
_LEAST_COLUMNS = 4
_BLOCK = 128
# Programs, which take the tiles in turn: several times what a GPU holds at once, and so few that starting them does not
# take the time where rows are short.
_MOST_PROGRAMS = 1 << 14
# Rows, and parts of them, whose sums of squares are added at a time.
_SUM_ROWS = 4
_SUM_PARTS = 32

_POINTERS = [
    "z", "bias", "gain", "offset", "scale", "which", "hashes", "flags", "norms", "thresholds", "slopes", "intercepts",
    "keys", "windows", "out",
]  # fmt: skip
_SIZES = ["rows", "units", "pitch", "parts", "tiles", "bias_pitch", "gain_pitch", "offset_pitch"]
# No other code for sizes that are 1 or multiples of 16, or for a batch that begins in the middle of others. Thresholds
# and entries of windows are counted at run time too: loops over a known number of them are unrolled until they spill.
_UNSPECIALISED: dict[str, Any] = {
    "do_not_specialize": [*_SIZES, "bends", "z_pitch", "entries"],
    "do_not_specialize_on_alignment": _POINTERS,
}

_Wanted = tuple[Tensor, torch.dtype, Sequence[int]]  # a tensor, and the type and shape it must have


class _Shared(NamedTuple):
    """What all kernels take next to the values, in their order."""

    bias: Tensor
    gain: Tensor
    offset: Tensor
    scale: Tensor
    which: Tensor | None
    hashes: Tensor
    flags: Tensor
    norms: Tensor


def relu(
    z: Tensor,  # [B, n], in: products, out: values
    bias: Tensor,  # [n] or [S, n]
    keys: Tensor,  # [n] int64
    gain: Tensor,  # [n] or [S, n]
    offset: Tensor,  # [n] or [S, n]
    scale: Tensor,  # [B]
    arbiter: bool,
    hashes: Tensor,  # [B] int64, updated
    flags: Tensor,  # [B] bool, updated
    norms: Tensor,  # [B], written
    *,
    which: Tensor | None = None,  # [B] int32 or int64
) -> None:
    """See :func:`regiongrid.kernels.pattern_hash.kernels`. Does not wait for the device."""
    shared = _Shared(bias, gain, offset, scale, which, hashes, flags, norms)
    _check(z, shared, keys=(keys, torch.int64, z.shape[1:]))
    _run(_relu, z, shared, keys, ARBITER=bool(arbiter))


def piecewise(
    z: Tensor,  # [B, n], in: products, out: values
    bias: Tensor,  # [n] or [S, n]
    thresholds: Tensor,  # [K, n], rows ascending
    slopes: Tensor,  # [K + 1, n]
    intercepts: Tensor,  # [K + 1, n]
    keys: Tensor,  # [K, n] int64
    gain: Tensor,  # [n] or [S, n]
    offset: Tensor,  # [n] or [S, n]
    scale: Tensor,  # [B]
    arbiter: bool,
    hashes: Tensor,  # [B] int64, updated
    flags: Tensor,  # [B] bool, updated
    norms: Tensor,  # [B], written
    *,
    which: Tensor | None = None,  # [B] int32 or int64
) -> None:
    """See :func:`regiongrid.kernels.pattern_hash.kernels`. Does not wait for the device."""
    shared = _Shared(bias, gain, offset, scale, which, hashes, flags, norms)
    bends, n = len(thresholds), z.shape[-1]
    _check(
        z,
        shared,
        thresholds=(thresholds, z.dtype, (bends, n)),
        slopes=(slopes, z.dtype, (bends + 1, n)),
        intercepts=(intercepts, z.dtype, (bends + 1, n)),
        keys=(keys, torch.int64, (bends, n)),
    )
    _run(_piecewise, z, shared, thresholds, slopes, intercepts, keys, bends, ARBITER=bool(arbiter))


def maximum(
    z: Tensor,  # [B, n]
    bias: Tensor,  # [n] or [S, n]
    windows: Tensor,  # [units, k] int64, -1 for none
    sign: int,
    keys: Tensor,  # [units, k] int64
    gain: Tensor,  # [n] or [S, n]
    offset: Tensor,  # [n] or [S, n]
    scale: Tensor,  # [B]
    arbiter: bool,
    out: Tensor,  # [B, units], written
    hashes: Tensor,  # [B] int64, updated
    flags: Tensor,  # [B] bool, updated
    norms: Tensor,  # [B], written
    *,
    which: Tensor | None = None,  # [B] int32 or int64
) -> None:
    """See :func:`regiongrid.kernels.pattern_hash.kernels`. Does not wait for the device."""
    shared = _Shared(bias, gain, offset, scale, which, hashes, flags, norms)
    units, entries = len(windows), windows.shape[-1]
    _check(z, shared, windows=(windows, torch.int64, (units, entries)), keys=(keys, torch.int64, (units, entries)))
    _check_matrix("out", out)
    _check_tensor("out", out, z.dtype, (len(z), units), z.device)
    constants = {"SIGN": int(sign), "ARBITER": bool(arbiter)}
    _run(_maximum, out, shared, z, z.stride(0), windows, keys, entries, **constants)


def _check(z: Tensor, shared: _Shared, **others: _Wanted) -> None:
    """Refuse what the kernels cannot read.

    Raises
    ------
    InputError
        A tensor is of another type, shape, layout or device, or Triton cannot run on it.
    """
    _check_matrix("z", z)
    if not z.is_cuda and (reason := why_not(z.device)) is not None:
        raise InputError(f"backend 'triton' cannot run on z on {z.device}: {reason}; move it to such a device")
    rows, n = z.shape
    wanted: dict[str, _Wanted] = {
        "scale": (shared.scale, z.dtype, (rows,)),
        "hashes": (shared.hashes, torch.int64, (rows,)),
        "flags": (shared.flags, torch.bool, (rows,)),
        "norms": (shared.norms, z.dtype, (rows,)),
        **others,
    }
    tables = {"bias": shared.bias, "gain": shared.gain, "offset": shared.offset}
    slices = max((len(table) for table in tables.values() if table.dim() == 2), default=1)
    for name, table in tables.items():
        wanted[name] = (table, z.dtype, (slices, n) if table.dim() == 2 else (n,))
    if shared.which is not None:
        wanted["which"] = (shared.which, torch.int32 if shared.which.dtype == torch.int32 else torch.int64, (rows,))
    for name, (tensor, dtype, shape) in wanted.items():
        _check_tensor(name, tensor, dtype, shape, z.device)
        if not tensor.is_contiguous():
            raise InputError(f"{name} must be contiguous, got strides {tensor.stride()}; pass {name}.contiguous()")


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int], device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.shape != tuple(shape) or tensor.device != device:
        raise InputError(
            f"{name} must be of {dtype}, of shape {tuple(shape)} and on {device} to go with z, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; convert it with .to()"
        )


def _check_matrix(name: str, matrix: Tensor) -> None:
    if matrix.dim() != 2 or matrix.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{name} must be a float32 or float64 tensor with a row a point, "
            f"got {matrix.dtype} of shape {tuple(matrix.shape)}; reshape or convert it"
        )
    rows, columns = matrix.shape
    if (columns > 1 and matrix.stride(1) != 1) or (rows > 1 and matrix.stride(0) < columns):
        raise InputError(
            f"{name} must have rows of adjacent numbers that do not overlap, got strides {matrix.stride()} "
            f"of shape {tuple(matrix.shape)}; pass {name}.contiguous()"
        )


def _run(kernel: Any, values: Tensor, shared: _Shared, *others: Tensor | int, **constants: int) -> None:
    """Launch a kernel that writes ``values`` [B, units]."""
    rows, units = values.shape
    if not rows:
        return
    columns = _columns(units)
    parts = max(1, triton.cdiv(units, _SPAN.value))
    tiles = triton.cdiv(rows, _BLOCK // columns) * parts
    sums = shared.norms if parts == 1 else values.new_empty(rows, parts)
    pitches = (table.stride(0) if table.dim() == 2 else 0 for table in (shared.bias, shared.gain, shared.offset))
    with torch.cuda.device(values.get_device()):  # -1, which changes nothing, for a CPU tensor in the interpreter
        kernel[(min(tiles, _MOST_PROGRAMS),)](
            values, *shared._replace(norms=sums), rows, units, values.stride(0), parts, tiles, *pitches, *others,
            **constants, ROWS=_BLOCK // columns, COLUMNS=columns, num_warps=_WARPS,
        )  # fmt: skip
        if parts > 1:
            _add_parts[(triton.cdiv(rows, _SUM_ROWS),)](
                sums, shared.norms, rows, parts, ROWS=_SUM_ROWS, PARTS=_SUM_PARTS, num_warps=_WARPS
            )


def _columns(units: int) -> int:
    """Columns of a block; a power of two."""
    power: int = triton.next_power_of_2(units)
    return min(max(power, _LEAST_COLUMNS), _MOST_COLUMNS)


@triton.jit
def _tile(tile, rows, parts, scale, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a tile, [ROWS]; which of them exist, and their scale; the tile's part of the columns."""
    row = (tile // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    return row, here, tl.load(scale + row, mask=here, other=0), tile % parts


@triton.jit
def _table_rows(which, row, here):  # type: ignore[no-untyped-def]
    """The row of the tables that each row uses, [ROWS]; None if all use the first."""
    if which is not None:
        which = tl.load(which + row, mask=here, other=0).to(tl.int64)
    return which


@triton.jit
def _of_columns(table, pitch, table_row, column, inside):  # type: ignore[no-untyped-def]
    """Entries of a table: those of its first row, [1, COLUMNS], or each row's own, [ROWS, COLUMNS]."""
    if table_row is None:
        entries = tl.load(table + column, mask=inside, other=0)[None, :]
    else:
        entries = tl.load(table + table_row[:, None] * pitch + column[None, :], mask=inside[None, :], other=0)
    return entries


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    z, pitch, row, here, column, inside, size, table_row, bias, gain, offset, bias_pitch, gain_pitch, offset_pitch
):
    """Pre-activations and their bands, [ROWS, COLUMNS]; 0 and, for a finite size, 0 where there are none."""
    product = tl.load(z + row[:, None] * pitch + column[None, :], mask=here[:, None] & inside[None, :], other=0)
    gains = _of_columns(gain, gain_pitch, table_row, column, inside)
    band = gains * size[:, None] + _of_columns(offset, offset_pitch, table_row, column, inside)
    return product + _of_columns(bias, bias_pitch, table_row, column, inside), band


@triton.jit
def _xor_columns(pattern):  # type: ignore[no-untyped-def]
    """XOR of each row, in two halves: NVIDIA combines 32 bits of a whole warp in one instruction."""
    low = tl.xor_sum(pattern.to(tl.int32), axis=1).to(tl.int64) & 0xFFFFFFFF
    high = tl.xor_sum((pattern >> 32).to(tl.int32), axis=1).to(tl.int64) << 32
    return high | low


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    row, here, part, parts, size, pattern, close, squares, hashes, flags, norms
):
    """Add what a tile has found to what is known of its rows; of several parts, ``norms`` takes the sums [B, parts]."""
    tl.atomic_xor(hashes + row, _xor_columns(pattern), mask=here, sem="relaxed")
    unsure = (tl.max(close.to(tl.int32), axis=1) > 0) | ~(tl.abs(size) < float("inf"))
    tl.store(flags + row, unsure, mask=here & unsure)  # all that is ever written is True, so the order does not matter
    total = tl.sum(squares, axis=1)
    tl.store(norms + row * parts + part, tl.where(parts == 1, tl.sqrt(total), total), mask=here)


@triton.jit(**_UNSPECIALISED)
def _relu(  # type: ignore[no-untyped-def]
    z, bias, gain, offset, scale, which, hashes, flags, norms, rows, units, pitch, parts, tiles,
    bias_pitch, gain_pitch, offset_pitch, keys,
    ARBITER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, here, size, part = _tile(tile, rows, parts, scale, ROWS)
        table_row = _table_rows(which, row, here)
        pattern = tl.zeros([ROWS, COLUMNS], tl.int64)
        close = tl.zeros([ROWS, COLUMNS], tl.int1)
        squares = tl.zeros([ROWS, COLUMNS], z.dtype.element_ty)
        for start in range(part * _SPAN, tl.minimum(part * _SPAN + _SPAN, units), COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < units
            value, band = _read(
                z, pitch, row, here, column, inside, size, table_row,
                bias, gain, offset, bias_pitch, gain_pitch, offset_pitch,
            )  # fmt: skip
            if ARBITER:
                on = value > band
            else:
                close |= ~(tl.abs(value) >= band)  # NaN is close
                on = value > 0
            value = tl.where(on, value, 0)
            pattern ^= tl.where(on, tl.load(keys + column, mask=inside, other=0)[None, :], 0)
            squares += value * value
            place = z + row[:, None] * pitch + column[None, :]
            tl.store(place, value, mask=here[:, None] & inside[None, :])
        _finish(row, here, part, parts, size, pattern, close, squares, hashes, flags, norms)


@triton.jit(**_UNSPECIALISED)
def _piecewise(  # type: ignore[no-untyped-def]
    z, bias, gain, offset, scale, which, hashes, flags, norms, rows, units, pitch, parts, tiles,
    bias_pitch, gain_pitch, offset_pitch, thresholds, slopes, intercepts, keys, bends,
    ARBITER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, here, size, part = _tile(tile, rows, parts, scale, ROWS)
        table_row = _table_rows(which, row, here)
        pattern = tl.zeros([ROWS, COLUMNS], tl.int64)
        close = tl.zeros([ROWS, COLUMNS], tl.int1)
        squares = tl.zeros([ROWS, COLUMNS], z.dtype.element_ty)
        for start in range(part * _SPAN, tl.minimum(part * _SPAN + _SPAN, units), COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < units
            value, band = _read(
                z, pitch, row, here, column, inside, size, table_row,
                bias, gain, offset, bias_pitch, gain_pitch, offset_pitch,
            )  # fmt: skip
            entry = column.to(tl.int64)
            slope = tl.broadcast_to(tl.load(slopes + entry, mask=inside, other=0)[None, :], [ROWS, COLUMNS])
            intercept = tl.broadcast_to(tl.load(intercepts + entry, mask=inside, other=0)[None, :], [ROWS, COLUMNS])
            for _ in range(bends):
                distance = value - tl.load(thresholds + entry, mask=inside, other=0)[None, :]
                close |= ~(tl.abs(distance) >= band)  # NaN is close
                on = distance > (band if ARBITER else 0)
                pattern ^= tl.where(on, tl.load(keys + entry, mask=inside, other=0)[None, :], 0)
                # Thresholds ascend: where this one is exceeded, so are those before it.
                entry += units
                slope = tl.where(on, tl.load(slopes + entry, mask=inside, other=0)[None, :], slope)
                intercept = tl.where(on, tl.load(intercepts + entry, mask=inside, other=0)[None, :], intercept)
            value = slope * value + intercept
            squares += value * value
            place = z + row[:, None] * pitch + column[None, :]
            tl.store(place, value, mask=here[:, None] & inside[None, :])
        _finish(row, here, part, parts, size, pattern, close, squares, hashes, flags, norms)


@triton.jit(**_UNSPECIALISED)
def _maximum(  # type: ignore[no-untyped-def]
    out, bias, gain, offset, scale, which, hashes, flags, norms, rows, units, pitch, parts, tiles,
    bias_pitch, gain_pitch, offset_pitch, z, z_pitch, windows, keys, entries,
    SIGN: tl.constexpr, ARBITER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Here the columns are units; the second look at the entries of their windows finds them in the cache."""
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, here, size, part = _tile(tile, rows, parts, scale, ROWS)
        table_row = _table_rows(which, row, here)
        pattern = tl.zeros([ROWS, COLUMNS], tl.int64)
        close = tl.zeros([ROWS, COLUMNS], tl.int1)
        squares = tl.zeros([ROWS, COLUMNS], out.dtype.element_ty)
        for start in range(part * _SPAN, tl.minimum(part * _SPAN + _SPAN, units), COLUMNS):
            unit = start + tl.arange(0, COLUMNS)
            inside = unit < units
            window = unit.to(tl.int64) * entries
            best = tl.zeros([ROWS, COLUMNS], out.dtype.element_ty)
            best_band = tl.zeros([ROWS, COLUMNS], out.dtype.element_ty)
            winner = tl.full([ROWS, COLUMNS], -1, tl.int32)
            for k in range(entries):
                column = tl.load(windows + window + k, mask=inside, other=-1)
                there = column >= 0
                value, band = _read(
                    z, z_pitch, row, here, column, there, size, table_row,
                    bias, gain, offset, bias_pitch, gain_pitch, offset_pitch,
                )  # fmt: skip
                value *= SIGN
                margin = band + best_band if ARBITER else 0
                larger = there[None, :] & ((value - best > margin) | (winner < 0))
                best = tl.where(larger, value, best)
                best_band = tl.where(larger, band, best_band)
                winner = tl.where(larger, k, winner)
            for k in range(entries):
                column = tl.load(windows + window + k, mask=inside, other=-1)
                there = column >= 0
                value, band = _read(
                    z, z_pitch, row, here, column, there, size, table_row,
                    bias, gain, offset, bias_pitch, gain_pitch, offset_pitch,
                )  # fmt: skip
                value *= SIGN
                # Two entries that are exactly zero were clipped by a ReLU: a tie that rounding cannot break.
                tied = (best == 0) & (value == 0)
                lost = there[None, :] & (winner != k)
                close |= lost & ~(tied | (best - value >= band + best_band))  # NaN is close
                pattern ^= tl.where(winner == k, tl.load(keys + window + k, mask=inside, other=0)[None, :], 0)
            squares += best * best
            place = out + row[:, None] * pitch + unit[None, :]
            tl.store(place, SIGN * best, mask=here[:, None] & inside[None, :])
        _finish(row, here, part, parts, size, pattern, close, squares, hashes, flags, norms)


@triton.jit(do_not_specialize=["rows", "parts"])
def _add_parts(sums, norms, rows, parts, ROWS: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Roots of the sums of squares [B, parts] along the parts, in an order that ``parts`` alone decides."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    total = tl.zeros([ROWS, PARTS], norms.dtype.element_ty)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        place = sums + row[:, None] * parts + part[None, :]
        total += tl.load(place, mask=here[:, None] & (part < parts)[None, :], other=0)
    tl.store(norms + row, tl.sqrt(tl.sum(total, axis=1)), mask=here)


def _build(
    name: str, kernel: Any, number: str, others: dict[str, str], size: int, units: int = 512, **sign: int
) -> Build:
    tables = dict.fromkeys(("bias", "gain", "offset", "scale", "norms"), f"*{number}")
    types = {**tables, "hashes": "*i64", "flags": "*i1", "keys": "*i64", **dict.fromkeys(_SIZES, "i32"), **others}
    columns = _columns(units)
    constants: dict[str, Any] = {"ARBITER": False, "ROWS": _BLOCK // columns, "COLUMNS": columns, **sign}
    if "which" not in others:
        constants["which"] = None
    return Build(f"pattern hash {name}", kernel, types, constants, _WARPS, bytes=size, item="element")


def builds() -> list[Build]:
    """Each kernel in its common case, and ReLU in the others: float64, a table row a slice, very short rows.

    Rows of more than 16 numbers run the same code however long they are; those longer than a tile also `_add_parts`.
    The bytes are those of z, and of a fourth of ``out`` where windows have four entries.
    """
    bends = {**dict.fromkeys(("z", "thresholds", "slopes", "intercepts"), "*fp32"), "bends": "i32"}
    windows = {"out": "*fp32", "z": "*fp32", "z_pitch": "i32", "windows": "*i64", "entries": "i32"}
    return [
        _build("relu float32", _relu, "fp32", {"z": "*fp32"}, 8),
        _build("relu float64", _relu, "fp64", {"z": "*fp64"}, 16),
        _build("relu float32, slices", _relu, "fp32", {"z": "*fp32", "which": "*i64"}, 8),
        _build("relu float32, 3 units", _relu, "fp32", {"z": "*fp32"}, 8, units=3),
        _build("piecewise float32", _piecewise, "fp32", bends, 8),
        _build("maximum float32", _maximum, "fp32", windows, 5, SIGN=1),
        Build(
            "pattern hash sums of parts",
            _add_parts,
            {"sums": "*fp32", "norms": "*fp32", "rows": "i32", "parts": "i32"},
            {"ROWS": _SUM_ROWS, "PARTS": _SUM_PARTS},
            _WARPS,
            bytes=4,
            item="part",
        ),
    ]
