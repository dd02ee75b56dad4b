"""Pattern hashes of whole fully connected networks in Triton, on the matrix units of the chip.

**Three products in float16.** A float32 number is split into two float16 numbers, h = h1 + h2, which keep 22 bits of
it; so are the weights. h1 w1 + h1 w2 + h2 w1, added up in float32, is then as good as a product in float32: what is
left out is 2^-22 of a product, less than a float32 sum of a hundred of them loses. It needs three passes at the rate of
float16, which every chip here has at twice the rate of tf32 and at eight times that of float32 or more. Rows are scaled
by powers of two beforehand (exact), so that values stay in the range of float16; where one leaves it, the point is
flagged. (Splitting into two halves and three products: Markidis et al. 2018; Ootomo and Yokota 2022.)

**Hash by counting.** The XOR of the keys of all decisions that are on is a matrix product over GF(2): bit k of the hash
is the parity of the number of decisions that are on and whose key has bit k. So [points, units] (0 or 1) times
[units, 64] on the matrix units, float16 with float32 sums (exact), replaces two 64-bit operations a unit and point.

**Guard.** A point is flagged where a pre-activation is within the band of a threshold, where the values grow too large
for float16, or where something is not a number. It then has to be decided again in float64.

Layouts: a layer's units are padded to K chunks of C; matrices are stored tile by tile, so that the tile of chunk q of
the outputs and chunk k of the inputs is one run of memory, [C outputs, C inputs], first the large then the small
halves.
"""

# Tuples of tiles grow in the kernels, for which Python's types have no word.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from regiongrid.kernels.gpu import Build
from regiongrid.kernels.mlp_hash import Array, Bend
from regiongrid.kernels.mlp_hash.scaling import (
    HEAD_ROWS,
    Scaled,
    bend_rows,
    head_rows,
    key_bits,
    padded_bias,
    weight_pair,
)

_log = logging.getLogger("regiongrid")
_UNSPECIALISED = ["total", "slices", "res"]  # no other code for sizes that happen to be 1 or a multiple of 16

# Values below the smallest float16 are lost: a threshold that close to zero cannot be decided.
_TINY = tl.constexpr(2.0**-24)
# Below the square of the largest float16.
_LARGEST_SQUARE = tl.constexpr(4.29e9)


@triton.jit
def _split(x):  # type: ignore[no-untyped-def]
    """Two float16 numbers whose sum is x to 22 bits, or to 2^-25 where that is less."""
    large = x.to(tl.float16)
    return large, (x - large.to(tl.float32)).to(tl.float16)


@triton.jit
def _coordinates(x, y, part):  # type: ignore[no-untyped-def]
    """The 16 factors that the head's 16 rows belong to: three parts of x, of y, and ones; see `HEAD_ROWS`."""
    x1, x2 = _split(x)
    x3 = (x - x1.to(tl.float32) - x2.to(tl.float32)).to(tl.float16)
    y1, y2 = _split(y)
    y3 = (y - y1.to(tl.float32) - y2.to(tl.float32)).to(tl.float16)
    one = tl.full(x1.shape, 1, tl.float16)
    of_y = tl.where(part < 9, y1, tl.where(part < 11, y2, tl.where(part < 12, y3, tl.where(part < 15, one, 0))))
    return tl.where(part < 3, x1, tl.where(part < 5, x2, tl.where(part < 6, x3, of_y)))


@triton.jit
def _place(points, starts, blocks, slices, res, SLICES: tl.constexpr, SOURCE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which points a program has: their slice, row in the list, pixel, coordinates in [-1, 1], and which exist.

    ``points`` holds flat pixel numbers in increasing order ("list"), coordinates ("coordinates"), or nothing ("grid":
    all pixels). A program's points lie in one slice: slice s has the rows starts[s] to starts[s + 1] and the programs
    blocks[s] to blocks[s + 1].
    """
    program = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, SLICES)
    ends = tl.load(blocks + 1 + number, mask=number < slices, other=9223372036854775807)
    of = tl.minimum(tl.sum((ends <= program).to(tl.int64), axis=0), slices - 1)
    start = tl.load(starts + of)
    row = start + (program - tl.load(blocks + of)) * BLOCK + tl.arange(0, BLOCK)
    exists = row < tl.load(starts + of + 1)
    if SOURCE == "coordinates":
        pixel = row
        x = tl.load(points + 2 * row, mask=exists, other=0.0)
        y = tl.load(points + 2 * row + 1, mask=exists, other=0.0)
    else:
        pixel = row
        if SOURCE == "list":
            pixel = tl.load(points + row, mask=exists, other=0)
        local = (pixel - of * res * res).to(tl.int32)
        up = local // res
        side = res.to(tl.float32)
        x = tl.div_rn((2 * (local - up * res) + 1 - res).to(tl.float32), side)
        y = tl.div_rn((2 * up + 1 - res).to(tl.float32), side)
    return of, row, pixel, x, y, exists


@triton.jit
def _bend(z, params, stride, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """Value, distance to the nearest threshold, and number of thresholds below z.

    ``params`` points to this chunk's [T] thresholds, then [T + 1] slopes, then [T + 1] intercepts, ``stride`` apart.
    """
    value = z * tl.load(params + T * stride)[None, :] + tl.load(params + (2 * T + 1) * stride)[None, :]
    threshold = tl.load(params)[None, :]
    nearest = tl.abs(z - threshold)
    below = (z > threshold).to(tl.float16)
    for t in tl.static_range(T):
        threshold = tl.load(params + t * stride)[None, :]
        slope = tl.load(params + (T + t + 1) * stride)[None, :]
        intercept = tl.load(params + (2 * T + t + 2) * stride)[None, :]
        value = tl.where(z > threshold, slope * z + intercept, value)
        if t > 0:
            nearest = tl.minimum(nearest, tl.abs(z - threshold))
            below += (z > threshold).to(tl.float16)
    return value, nearest, below


@triton.jit
def _pack(counts):  # type: ignore[no-untyped-def]
    """The parities of 64 counts as one 64-bit number a row."""
    odd = (counts.to(tl.int32) & 1).to(tl.int64)
    return tl.sum(odd << tl.arange(0, 64)[None, :].to(tl.int64), axis=1)


@triton.jit
def _hash_layer(large, below, bits, K: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """Hash of one layer's decisions, [points] int64. A ReLU is on where its value is above zero."""
    C: tl.constexpr = large[0].shape[1]
    tile = tl.arange(0, C)[:, None] + tl.arange(0, 64)[None, :] * C
    counts = tl.zeros([large[0].shape[0], 64], tl.float32)
    for k in tl.static_range(K):
        if T == 0:
            counts = tl.dot((large[k] > 0).to(tl.float16), tl.load(bits + k * 64 * C + tile), counts)
        for t in tl.static_range(T):
            counts = tl.dot((below[k] > t).to(tl.float16), tl.load(bits + (t * K + k) * 64 * C + tile), counts)
    return _pack(counts)


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "layers", "start_hash"])
def fused(  # type: ignore[no-untyped-def]
    points,  # see _place
    hashes,  # [pixels] int64, written at the points' pixels
    flags,  # [rows] int8, written
    prefixes,  # [layers, rows] int64: hashes of the first layers; only with PREFIXES
    seen,  # [layers, rows, C K] float32: pre-activations; only with OBSERVE
    head,  # [slices, K, C, 16] float16
    first_band,  # [slices, C K] float32
    weights,  # [layers - 1, K, K, 2, C, C] float16
    bias,  # [layers - 1, C K] float32
    bands,  # [layers, 2] float32: band = bands[0] |h| + bands[1]
    bends,  # [layers, 3 T + 2, C K] float32
    bits,  # [layers, max(T, 1), K, 64, C] float16
    starts,  # [slices + 1] int64
    blocks,  # [slices + 1] int64
    total,  # number of rows
    slices,
    res,
    layers,
    start_hash,
    SLICES: tl.constexpr,
    SOURCE: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    PREFIXES: tl.constexpr,
    OBSERVE: tl.constexpr,
):
    P: tl.constexpr = C * K
    D: tl.constexpr = T if T > 0 else 1
    of, row, pixel, x, y, exists = _place(points, starts, blocks, slices, res, SLICES, SOURCE, BLOCK)
    unit = tl.arange(0, C)
    part = tl.arange(0, 16)
    tile = unit[:, None] + unit[None, :] * C
    factors = _coordinates(x[:, None], y[:, None], part[None, :])
    flag = tl.zeros([BLOCK], tl.int1)
    squares = tl.zeros([BLOCK], tl.float32)
    h1 = ()
    h2 = ()
    below = ()
    for k in tl.static_range(K):
        column = k * C + unit
        z = tl.dot(factors, tl.load(head + (of * K + k) * C * 16 + part[:, None] + unit[None, :] * 16))
        if OBSERVE:
            tl.store(seen + row[:, None] * P + column[None, :], z, mask=exists[:, None])
        margin = tl.maximum(tl.load(first_band + of * P + column), _TINY)
        if T == 0:
            h = tl.maximum(z, 0.0)
            nearest = tl.abs(z)
        else:
            h, nearest, p = _bend(z, bends + column, P, T)
            below = below + (p,)
        flag |= ~(tl.min(nearest - margin[None, :], axis=1) >= 0)
        squares += tl.sum(h * h, axis=1)
        large, small = _split(h)
        h1 = h1 + (large,)
        h2 = h2 + (small,)
    pattern = tl.zeros([BLOCK], tl.int64) + start_hash
    for layer in range(1, layers):
        # The hash of a layer is taken here, not where its values are made: chained products get a poorer layout.
        pattern ^= _hash_layer(h1, below, bits + (layer - 1) * D * 64 * P, K, T)
        if PREFIXES:
            tl.store(prefixes + (layer - 1) * total + row, pattern, mask=exists)
        flag |= ~(squares < _LARGEST_SQUARE)
        band = tl.load(bands + 2 * layer) * tl.sqrt(squares) + tl.load(bands + 2 * layer + 1)
        band = tl.maximum(band, _TINY)
        squares = tl.zeros([BLOCK], tl.float32)
        of_layer = weights + (layer - 1) * P * P * 2
        n1 = ()
        n2 = ()
        next_below = ()
        for q in tl.static_range(K):
            column = q * C + unit
            z = tl.zeros([BLOCK, C], tl.float32) + tl.load(bias + (layer - 1) * P + column)[None, :]
            for k in tl.static_range(K):
                w1 = tl.load(of_layer + (q * K + k) * 2 * C * C + tile)
                z = tl.dot(h2[k], w1, z)
                z = tl.dot(h1[k], w1, z)
                w2 = tl.load(of_layer + ((q * K + k) * 2 + 1) * C * C + tile)
                z = tl.dot(h1[k], w2, z)
            if OBSERVE:
                tl.store(seen + (layer * total + row[:, None]) * P + column[None, :], z, mask=exists[:, None])
            if T == 0:
                h = tl.maximum(z, 0.0)
                nearest = tl.abs(z)
            else:
                h, nearest, p = _bend(z, bends + layer * (3 * T + 2) * P + column, P, T)
                next_below = next_below + (p,)
            flag |= ~(tl.min(nearest, axis=1) >= band)
            squares += tl.sum(h * h, axis=1)
            large, small = _split(h)
            n1 = n1 + (large,)
            n2 = n2 + (small,)
        h1 = n1
        h2 = n2
        below = next_below
    pattern ^= _hash_layer(h1, below, bits + (layers - 1) * D * 64 * P, K, T)
    flag |= ~(squares < _LARGEST_SQUARE)
    if PREFIXES:
        tl.store(prefixes + (layers - 1) * total + row, pattern, mask=exists)
    tl.store(hashes + pixel, pattern, mask=exists)
    tl.store(flags + row, flag.to(tl.int8), mask=exists)


@triton.jit
def _commit(  # type: ignore[no-untyped-def]
    h, nearest_margin, below, rows, exists, chunk, hashes, flags, squares_out, large_out, small_out, total, P,
    bits, plane, C: tl.constexpr, T: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """What a tile of a layer leaves behind: shares of hash and norm, flags, values for the next layer."""
    unit = tl.arange(0, C)
    tile = unit[:, None] + tl.arange(0, 64)[None, :] * P
    counts = tl.zeros([h.shape[0], 64], tl.float32)
    if T == 0:
        counts = tl.dot((h > 0).to(tl.float16), tl.load(bits + tile), counts)
    for t in tl.static_range(T):
        counts = tl.dot((below > t).to(tl.float16), tl.load(bits + t * plane + tile), counts)
    tl.atomic_xor(hashes + rows, _pack(counts), mask=exists)
    squares = tl.sum(h * h, axis=1)
    close = ~(tl.min(nearest_margin, axis=1) >= 0) | ~(squares < _LARGEST_SQUARE)
    tl.atomic_or(flags + rows, 1, mask=exists & close)
    if not LAST:
        tl.store(squares_out + chunk * total + rows, squares, mask=exists)
        at = rows[:, None] * P + unit[None, :]
        large, small = _split(h)
        tl.store(large_out + at, large, mask=exists[:, None])
        tl.store(small_out + at, small, mask=exists[:, None])


@triton.jit(do_not_specialize=_UNSPECIALISED)
def first_layer(  # type: ignore[no-untyped-def]
    points,  # see _place
    hashes,  # [rows] int64, XOR
    flags,  # [rows] int32, OR
    squares_out,  # [chunks, rows] float32, written
    large_out,  # [rows, P] float16, written
    small_out,  # [rows, P] float16, written
    seen,  # [rows, P] float32, written with OBSERVE
    head,  # [slices, P, 16] float16
    first_band,  # [slices, P] float32
    bends,  # [3 T + 2, P] float32
    bits,  # [max(T, 1), 64, P] float16
    starts,  # [slices + 1] int64
    blocks,  # [slices + 1] int64
    total,
    P,
    slices,
    res,
    SLICES: tl.constexpr,
    SOURCE: tl.constexpr,
    C: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    OBSERVE: tl.constexpr,
):
    of, row, _, x, y, exists = _place(points, starts, blocks, slices, res, SLICES, SOURCE, BLOCK)
    chunk = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, 16)
    column = chunk * C + tl.arange(0, C)
    factors = _coordinates(x[:, None], y[:, None], part[None, :])
    z = tl.dot(factors, tl.load(head + (of * P + column[None, :]) * 16 + part[:, None]))
    if OBSERVE:
        tl.store(seen + row[:, None] * P + column[None, :], z, mask=exists[:, None])
    margin = tl.maximum(tl.load(first_band + of * P + column), _TINY)
    h = tl.maximum(z, 0.0)
    nearest = tl.abs(z)
    below = h
    if T > 0:
        h, nearest, below = _bend(z, bends + column, P, T)
    _commit(
        h, nearest - margin[None, :], below, row, exists, chunk, hashes, flags, squares_out,
        large_out + chunk * C, small_out + chunk * C, total, P, bits + chunk * C, 64 * P, C, T, LAST,
    )  # fmt: skip


@triton.jit(do_not_specialize=["total", "chunks", "chunks_in"])
def next_layer(  # type: ignore[no-untyped-def]
    large_in,  # [rows, Q] float16
    small_in,  # [rows, Q] float16
    squares_in,  # [chunks_in, rows] float32
    chunks_in,
    hashes,  # [rows] int64, XOR
    flags,  # [rows] int32, OR
    squares_out,  # [chunks, rows] float32, written
    large_out,  # [rows, P] float16, written
    small_out,  # [rows, P] float16, written
    seen,  # [rows, P] float32, written with OBSERVE
    weights,  # [2, P, Q] float16
    bias,  # [P] float32
    band,  # [2] float32
    bends,  # [3 T + 2, P] float32
    bits,  # [max(T, 1), 64, P] float16
    total,
    P,
    Q,
    chunks,
    C: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    LAST: tl.constexpr,
    OBSERVE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks  # neighbours share their rows' values, which stay in the second-level cache
    row = program // chunks * BLOCK + tl.arange(0, BLOCK)
    exists = row < total
    column = chunk * C + tl.arange(0, C)
    inner = tl.arange(0, DEPTH)
    of_row = row[:, None] * Q + inner[None, :]
    of_unit = column[None, :] * Q + inner[:, None]
    z = tl.zeros([BLOCK, C], tl.float32)
    for k in range(0, Q, DEPTH):
        h1 = tl.load(large_in + of_row + k, mask=exists[:, None], other=0.0)
        h2 = tl.load(small_in + of_row + k, mask=exists[:, None], other=0.0)
        w1 = tl.load(weights + of_unit + k)
        w2 = tl.load(weights + P * Q + of_unit + k)
        z = tl.dot(h2, w1, z)
        z = tl.dot(h1, w2, z)
        z = tl.dot(h1, w1, z)
    z += tl.load(bias + column)[None, :]
    if OBSERVE:
        tl.store(seen + row[:, None] * P + column[None, :], z, mask=exists[:, None])
    squares = tl.zeros([BLOCK], tl.float32)
    for k in range(chunks_in):
        squares += tl.load(squares_in + k * total + row, mask=exists, other=0.0)
    margin = tl.maximum(tl.load(band) * tl.sqrt(squares) + tl.load(band + 1), _TINY)
    h = tl.maximum(z, 0.0)
    nearest = tl.abs(z)
    below = h
    if T > 0:
        h, nearest, below = _bend(z, bends + column, P, T)
    _commit(
        h, nearest - margin[:, None], below, row, exists, chunk, hashes, flags, squares_out,
        large_out + chunk * C, small_out + chunk * C, total, P, bits + chunk * C, 64 * P, C, T, LAST,
    )  # fmt: skip


@dataclass(frozen=True)
class Where:
    """The points of one launch; all of a slice stand together.

    Attributes
    ----------
    source
        "grid": all pixels of all slices. "list": the flat pixel numbers ``points``, increasing across slices.
        "coordinates": ``points`` are [total, 2] float32 in [-1, 1].
    starts
        [slices + 1] int64: the rows of slice s are starts[s] to starts[s + 1].
    """

    source: str
    points: Tensor
    starts: Tensor
    total: int
    slices: int
    res: int

    @classmethod
    def grid(cls, slices: int, res: int, device: torch.device) -> Where:
        starts = torch.arange(slices + 1, device=device) * (res * res)
        return cls("grid", starts, starts, slices * res * res, slices, res)

    @classmethod
    def pixels(cls, points: Tensor, slices: int, res: int) -> Where:
        """``points``: flat int64 pixel numbers of images [slices, res, res]; increasing if there are several slices."""
        if slices == 1:  # in any order
            starts = torch.arange(2, device=points.device) * len(points)
        else:
            starts = torch.searchsorted(points, torch.arange(slices + 1, device=points.device) * (res * res))
        return cls("list", points, starts, len(points), slices, res)

    @classmethod
    def coordinates(cls, xy: Tensor, which: Tensor, slices: int) -> Where:
        """``xy`` [B, 2] in [-1, 1]; ``which`` [B] the slice of each point, increasing."""
        starts = torch.searchsorted(which, torch.arange(slices + 1, device=which.device, dtype=which.dtype))
        return cls("coordinates", xy.float().contiguous(), starts, len(xy), slices, 1)

    def programs(self, block: int) -> int:
        """Programs that are enough, without asking the device how the points are spread over the slices."""
        return -(-self.total // block) + self.slices - 1

    def blocks(self, block: int) -> Tensor:
        """[slices + 1] int64: the programs of slice s are blocks[s] to blocks[s + 1]."""
        counts = (self.starts.diff() + block - 1) // block
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def write(self, patterns: Tensor, hashes: Tensor) -> None:
        """Put one hash a row to its place."""
        if self.source == "list":
            hashes[self.points] = patterns
        else:
            hashes[:] = patterns


@dataclass(frozen=True)
class Run:
    """What a launch says of its points: whether they are too close to call, and their pre-activations if asked."""

    flags: Tensor  # [total] not zero: decide again
    seen: list[Tensor]  # by layer, [total, n_l] float32, scaled


@dataclass(frozen=True)
class FusedTile:
    """Launch configuration of `fused`: the layers have ``chunks`` x ``chunk`` units, a program has ``block`` points."""

    chunk: int
    chunks: int
    thresholds: int
    block: int
    warps: int


@dataclass(frozen=True)
class LayeredTile:
    """Launch configuration of `first_layer` and `next_layer`: tiles of ``block`` points and ``chunk`` units."""

    first_chunk: int
    chunk: int
    block: int
    depth: int
    warps: int
    stages: int


# (number of chunks of 64, thresholds) -> (points, warps) of a program: tiles without spills, the largest first.
# On Hopper values wait in shared memory for the next product (128 x 128 x two float16: 64 kB). Elsewhere they are
# operands in registers, which bounds points x width; the A100 has room for 128 units only, wider layers run layered.
# A smaller tile reads the weights more often, but two of them share a processor and hide each other's waits: where
# there is a choice, the first call times it (see `fastest_tile`).
_FUSED = {
    "sm_90": {(1, 0): [(128, 4), (64, 4)], (2, 0): [(128, 8), (64, 4)], (3, 0): [(64, 8)], (4, 0): [(64, 8)],
              (1, 1): [(128, 4)], (2, 1): [(128, 8)], (1, 2): [(64, 4)], (2, 2): [(64, 8)]},
    "sm_80": {(1, 0): [(64, 4)], (2, 0): [(32, 4)], (1, 1): [(64, 4)], (2, 1): [(32, 8)], (1, 2): [(32, 4)],
              (2, 2): [(32, 8)]},
    "gfx942": {(1, 0): [(64, 4)], (2, 0): [(64, 4)], (3, 0): [(32, 4)], (4, 0): [(32, 4)],
               (1, 1): [(32, 4)], (2, 1): [(16, 4)], (1, 2): [(32, 4)], (2, 2): [(16, 4)]},
}  # fmt: skip
# Thresholds -> tiles, likewise.
_LAYERED = {
    "sm_90": [
        LayeredTile(first_chunk=64, chunk=128, block=128, depth=64, warps=8, stages=3),
        LayeredTile(first_chunk=64, chunk=64, block=128, depth=64, warps=8, stages=3),
        LayeredTile(first_chunk=64, chunk=64, block=128, depth=64, warps=8, stages=3),
    ],
    "sm_80": [
        LayeredTile(first_chunk=32, chunk=64, block=128, depth=32, warps=4, stages=3),
        LayeredTile(first_chunk=32, chunk=64, block=128, depth=32, warps=4, stages=3),
        LayeredTile(first_chunk=32, chunk=64, block=64, depth=32, warps=4, stages=3),
    ],
    "gfx942": [
        LayeredTile(first_chunk=64, chunk=64, block=128, depth=32, warps=4, stages=1),
        LayeredTile(first_chunk=64, chunk=64, block=128, depth=32, warps=4, stages=1),
        LayeredTile(first_chunk=32, chunk=64, block=64, depth=32, warps=4, stages=1),
    ],
    "interpreter": [LayeredTile(first_chunk=16, chunk=32, block=16, depth=16, warps=4, stages=1)] * 3,
}
_CHUNK = 64
_VALUE_BYTES = 1 << 30
_TRIAL_RES = 512


def family(device: torch.device) -> str:
    """Which launch configurations a device gets."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    return "sm_90" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "sm_80"


def fused_tiles(widths: Sequence[int], bends: Sequence[Bend | None], chip: str) -> list[FusedTile]:
    """Configurations of the fused kernel for a network; none if it is too wide for it."""
    thresholds = _thresholds(bends)
    if chip == "interpreter":
        chunks = -(-max(widths) // 16)
        return [FusedTile(16, chunks, thresholds, 16, 4)] if chunks <= 4 else []
    if max(widths) <= 16:
        return [FusedTile(16, 1, thresholds, *found) for found in _FUSED[chip].get((1, thresholds), [])[:1]]
    chunks = -(-max(widths) // _CHUNK)
    return [FusedTile(_CHUNK, chunks, thresholds, *found) for found in _FUSED[chip].get((chunks, thresholds), [])]


_fastest: dict[tuple[torch.device, FusedTile], FusedTile] = {}


def fastest_tile(scaled: Scaled, tiles: Sequence[FusedTile]) -> FusedTile:
    """The configuration that runs a network fastest on its device, timed once for every shape, device and process."""
    device = scaled.mlp.head.device
    if len(tiles) == 1 or device.type != "cuda":
        return tiles[0]
    if (device, tiles[0]) not in _fastest:
        seconds = [_seconds(Fused(scaled, tile)) for tile in tiles]
        _fastest[device, tiles[0]] = tiles[int(np.argmin(seconds))]
        _log.info("fused kernel on %s: %s of %s", device, _fastest[device, tiles[0]], dict(zip(tiles, seconds)))
    return _fastest[device, tiles[0]]


def _seconds(engine: Fused) -> float:
    """Least of three timings of a grid, after one that compiles."""
    mlp = engine.mlp
    where = Where.grid(mlp.slices, _TRIAL_RES, mlp.head.device)
    hashes = torch.empty(where.total, dtype=torch.int64, device=mlp.head.device)
    event: Any = torch.cuda.Event
    times = []
    for _ in range(4):
        start, stop = event(enable_timing=True), event(enable_timing=True)
        start.record()
        engine(where, hashes)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return float(min(times[1:]))


def layered_tile(bends: Sequence[Bend | None], chip: str) -> LayeredTile:
    """Configuration of the layered kernels for a network."""
    return _LAYERED[chip][_thresholds(bends)]


def _thresholds(bends: Sequence[Bend | None]) -> int:
    """0 if all are ReLU, else the largest number of thresholds."""
    return max(0 if bend is None else int(bend.thresholds.shape[0]) for bend in bends)


def _bands(scaled: Scaled, kappa: Array, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The bands of layer 0, [slices, size], and gain and offset of every layer's, [layers, 2]; float32."""
    width = torch.from_numpy(np.asarray(kappa, np.float64) * 2.0**-24)
    first = torch.nn.functional.pad(scaled.first * float(width[0]), (0, size - scaled.first.shape[1]))
    later = torch.tensor([scaled.gain, scaled.offset], dtype=torch.float64).T * width[:, None]
    return first.float().contiguous(), later.float().contiguous().to(device)


def _stack(tensors: list[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Stacked, or something to point to where a network has a single layer."""
    return torch.stack(tensors) if tensors else torch.zeros(1, dtype=dtype, device=device)


def _tiles(pair: Tensor, chunk: int) -> Tensor:
    """[2, rows, columns] -> [rows / chunk, columns / chunk, 2, chunk, chunk]."""
    _, rows, columns = pair.shape
    tiles = pair.reshape(2, rows // chunk, chunk, columns // chunk, chunk)
    return tiles.permute(1, 3, 0, 2, 4).contiguous()


def _room(total: int, size: int, chunk: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Room for the squares [chunks, total] and the values of a layer, twice [total, size] float16."""
    squares = torch.empty(size // chunk, total, device=device)
    large, small = torch.empty(2, total, size, dtype=torch.float16, device=device)
    return squares, (large, small)


class Fused:
    """The network in one launch; values never leave the chip. For what `fused_tiles` knows."""

    most_points = 1 << 26  # of one call: keeps lists of pixels and flags small

    def __init__(self, scaled: Scaled, tile: FusedTile) -> None:
        mlp = scaled.mlp
        self.tile = tile
        self.mlp = mlp
        device = mlp.head.device
        chunk, chunks, thresholds = tile.chunk, tile.chunks, tile.thresholds
        size = chunk * chunks
        heads = head_rows(mlp.head, size)
        self._weights = _stack([_tiles(weight_pair(w, size, size), chunk) for w in mlp.weights], device, torch.float16)
        self._bias = _stack([padded_bias(bias, size) for bias in mlp.biases], device, torch.float32)
        self._bends = torch.stack([bend_rows(bend, thresholds, size, device) for bend in mlp.bends])
        bits = torch.stack([key_bits(keys, max(thresholds, 1), size, device) for keys in mlp.keys])
        # [layers, T, 64, K, C] -> [layers, T, K, 64, C]
        self._bits = bits.reshape(*bits.shape[:3], chunks, chunk).transpose(2, 3).contiguous()
        self._heads = heads
        self.set_bands(scaled, np.zeros(mlp.layers))

    def set_bands(self, scaled: Scaled, kappa: Array) -> None:
        """Flag what is within ``kappa`` [layers] units of float32 rounding of a threshold."""
        device = self.mlp.head.device
        self._first_band, self._bands = _bands(scaled, kappa, self.tile.chunk * self.tile.chunks, device)

    def __call__(self, where: Where, hashes: Tensor, *, observe: bool = False, prefixes: Tensor | None = None) -> Run:
        """Write the hashes of the points to ``hashes`` (flat int64, at their pixels)."""
        mlp, tile = self.mlp, self.tile
        size, device = tile.chunk * tile.chunks, mlp.head.device
        flags = torch.empty(where.total, dtype=torch.int8, device=device)
        seen = torch.empty(mlp.layers, where.total, size, device=device) if observe else flags
        if where.total:
            fused[(where.programs(tile.block),)](
                where.points, hashes, flags, flags if prefixes is None else prefixes, seen, self._heads,
                self._first_band, self._weights, self._bias, self._bands, self._bends, self._bits, where.starts,
                where.blocks(tile.block), where.total, mlp.slices, where.res, mlp.layers, mlp.start,
                SLICES=triton.next_power_of_2(mlp.slices), SOURCE=where.source, C=tile.chunk, K=tile.chunks,
                T=tile.thresholds, BLOCK=tile.block, PREFIXES=prefixes is not None, OBSERVE=observe,
                num_warps=tile.warps, num_stages=1,
            )  # fmt: skip
        return Run(flags, [seen[layer, :, :width] for layer, width in enumerate(mlp.widths)] if observe else [])


class Layered:
    """The network layer by layer, values in float16 pairs in device memory; for any width.

    Attributes
    ----------
    most_points
        Points of one call: what keeps the values of two layers within `_VALUE_BYTES`.
    """

    def __init__(self, scaled: Scaled, tile: LayeredTile) -> None:
        mlp = scaled.mlp
        self.tile = tile
        self.mlp = mlp
        device = mlp.head.device
        step = max(tile.chunk, tile.first_chunk, tile.depth)
        self._sizes = [-(-width // step) * step for width in mlp.widths]
        self.most_points = max(_VALUE_BYTES // (8 * max(self._sizes)), tile.block)
        self._thresholds = [_thresholds([bend]) for bend in mlp.bends]
        self._head = head_rows(mlp.head, self._sizes[0])
        self._weights = [
            weight_pair(weight, rows, columns)
            for weight, columns, rows in zip(mlp.weights, self._sizes, self._sizes[1:])
        ]
        self._bias = [padded_bias(bias, size) for bias, size in zip(mlp.biases, self._sizes[1:])]
        shapes = list(zip(self._thresholds, self._sizes))
        self._bends = [bend_rows(bend, t, size, device) for bend, (t, size) in zip(mlp.bends, shapes)]
        self._bits = [key_bits(keys, max(t, 1), size, device) for keys, (t, size) in zip(mlp.keys, shapes)]
        self.set_bands(scaled, np.zeros(mlp.layers))

    def set_bands(self, scaled: Scaled, kappa: Array) -> None:
        """Flag what is within ``kappa`` [layers] units of float32 rounding of a threshold."""
        self._first_band, self._bands = _bands(scaled, kappa, self._sizes[0], self.mlp.head.device)

    def __call__(self, where: Where, hashes: Tensor, *, observe: bool = False, prefixes: Tensor | None = None) -> Run:
        """Write the hashes of the points to ``hashes`` (flat int64, at their pixels)."""
        mlp, tile, total = self.mlp, self.tile, where.total
        device = mlp.head.device
        flags = torch.zeros(total, dtype=torch.int32, device=device)
        patterns = torch.full((total,), mlp.start, dtype=torch.int64, device=device)
        seen = [torch.empty(total, size if observe else 0, device=device) for size in self._sizes]
        if not total:
            return Run(flags, [z[:, :width] for z, width in zip(seen, mlp.widths)] if observe else [])
        squares, values = _room(total, self._sizes[0], tile.first_chunk, device)
        common: dict[str, Any] = {"BLOCK": tile.block, "OBSERVE": observe, "num_warps": tile.warps}
        first_layer[(where.programs(tile.block), self._sizes[0] // tile.first_chunk)](
            where.points, patterns, flags, squares, *values, seen[0], self._head, self._first_band, self._bends[0],
            self._bits[0], where.starts, where.blocks(tile.block), total, self._sizes[0], mlp.slices, where.res,
            SLICES=triton.next_power_of_2(mlp.slices), SOURCE=where.source, C=tile.first_chunk, T=self._thresholds[0],
            LAST=mlp.layers == 1, num_stages=1, **common,
        )  # fmt: skip
        if prefixes is not None:
            prefixes[0] = patterns
        for layer in range(1, mlp.layers):
            size = self._sizes[layer]
            chunks = size // tile.chunk
            next_squares, next_values = _room(total, size, tile.chunk, device)
            next_layer[(-(-total // tile.block) * chunks,)](
                *values, squares, squares.shape[0], patterns, flags, next_squares, *next_values, seen[layer],
                self._weights[layer - 1], self._bias[layer - 1], self._bands[layer], self._bends[layer],
                self._bits[layer], total, size, self._sizes[layer - 1], chunks, C=tile.chunk,
                T=self._thresholds[layer], DEPTH=tile.depth, LAST=layer + 1 == mlp.layers, num_stages=tile.stages,
                **common,
            )  # fmt: skip
            squares, values = next_squares, next_values
            if prefixes is not None:
                prefixes[layer] = patterns
        where.write(patterns, hashes)
        return Run(flags, [z[:, :width] for z, width in zip(seen, mlp.widths)] if observe else [])


def builds() -> list[Build]:
    """What `fused_tiles` and `layered_tile` choose from, for networks of three layers."""
    labels = ("", " leaky", " clamp")  # by number of thresholds
    cases = [(width, bend) for width in (16, 64, 128, 192, 256) for bend in range(3)]
    found = []
    for chip in ("sm_90", "sm_80", "gfx942"):
        for width, bend in cases:
            shape = np.zeros((bend, width))
            tiles = fused_tiles([width] * 3, [Bend(shape, shape, shape) if bend else None], chip)
            name = f"{width}x3{labels[bend]}"
            found += [_fused_build(tile, width, f"{name}, {tile.block} points", chip) for tile in tiles]
        for bend, label in enumerate(labels):
            found += _layered_builds(_LAYERED[chip][bend], bend, label, chip)
    return found


def _fused_build(tile: FusedTile, width: int, label: str, chip: str) -> Build:
    return Build(
        name=f"fused {label}",
        kernel=fused,
        types={"points": "*i64", "hashes": "*i64", "flags": "*i8", "prefixes": "*i64", "seen": "*fp32", "head": "*fp16",
               "first_band": "*fp32", "weights": "*fp16", "bias": "*fp32", "bands": "*fp32", "bends": "*fp32",
               "bits": "*fp16", "starts": "*i64", "blocks": "*i64", "total": "i64", "slices": "i32", "res": "i32",
               "layers": "i32", "start_hash": "i64"},
        constants={"SLICES": 1, "SOURCE": "grid", "C": tile.chunk, "K": tile.chunks, "T": tile.thresholds,
                   "BLOCK": tile.block, "PREFIXES": False, "OBSERVE": False},
        warps=tile.warps,
        targets=(chip,),
        matrix=True,
        flops=2.0 * 2 * width * width,
        bytes=9,
        rate="fp16x3",
    )  # fmt: skip


def _layered_builds(tile: LayeredTile, thresholds: int, label: str, chip: str) -> list[Build]:
    out = {"hashes": "*i64", "flags": "*i32", "squares_out": "*fp32", "large_out": "*fp16", "small_out": "*fp16",
           "seen": "*fp32"}  # fmt: skip
    shared = {"bends": "*fp32", "bits": "*fp16", "total": "i64", "P": "i32:16"}
    constants = {"T": thresholds, "BLOCK": tile.block, "LAST": False, "OBSERVE": False}
    width = 512
    return [
        Build(
            name=f"layered 512{label}, layer 1",
            kernel=first_layer,
            types={"points": "*i64", **out, "head": "*fp16", "first_band": "*fp32", "starts": "*i64", "blocks": "*i64",
                   "slices": "i32", "res": "i32", **shared},
            constants={**constants, "SLICES": 1, "SOURCE": "list", "C": tile.first_chunk},
            warps=tile.warps,
            targets=(chip,),
            matrix=True,
            flops=2.0 * HEAD_ROWS * width,
            bytes=4.0 * width + 21,
            rate="fp16",
        ),
        Build(
            name=f"layered 512{label}, layer 2",
            kernel=next_layer,
            types={"large_in": "*fp16", "small_in": "*fp16", "squares_in": "*fp32", "chunks_in": "i32", **out,
                   "weights": "*fp16", "bias": "*fp32", "band": "*fp32", "chunks": "i32", "Q": "i32:16", **shared},
            constants={**constants, "C": tile.chunk, "DEPTH": tile.depth},
            warps=tile.warps,
            stages=tile.stages,
            targets=(chip,),
            matrix=True,
            flops=2.0 * width * width,
            bytes=8.0 * width + 12,
            rate="fp16x3",
        ),
    ]  # fmt: skip
