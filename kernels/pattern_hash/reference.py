"""The breakpoint epilogues in plain numpy: the oracle of the tests. Same signatures as cpu.py."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def relu(
    z: Array,  # [B, n], in: products, out: values
    bias: Array,  # [n]
    keys: Array,  # [n] uint64
    gain: Array,  # [n]
    offset: Array,  # [n]
    scale: Array,  # [B]
    arbiter: bool,
    hashes: Array,  # [B] uint64, updated
    flags: Array,  # [B] bool, updated
    norms: Array,  # [B], written
) -> None:
    one, zero = np.ones((1, z.shape[1]), z.dtype), np.zeros((1, z.shape[1]), z.dtype)
    piecewise(z, bias, zero, np.vstack([zero, one]), np.vstack([zero, zero]), keys[None], gain, offset, scale, arbiter,
              hashes, flags, norms)  # fmt: skip


def piecewise(
    z: Array,  # [B, n], in: products, out: values
    bias: Array,  # [n]
    thresholds: Array,  # [K, n], rows ascending
    slopes: Array,  # [K + 1, n]
    intercepts: Array,  # [K + 1, n]
    keys: Array,  # [K, n] uint64
    gain: Array,  # [n]
    offset: Array,  # [n]
    scale: Array,  # [B]
    arbiter: bool,
    hashes: Array,  # [B] uint64, updated
    flags: Array,  # [B] bool, updated
    norms: Array,  # [B], written
) -> None:
    z += bias
    distance = z[:, None, :] - thresholds  # [B, K, n]
    band = (scale[:, None] * gain + offset)[:, None, :]  # [B, 1, n]
    on = distance > (band if arbiter else 0)
    flags |= ~np.all(np.abs(distance) >= band, axis=(1, 2))
    hashes ^= np.bitwise_xor.reduce(np.where(on, keys, np.uint64(0)), axis=(1, 2))
    piece = on.sum(axis=1)  # [B, n]
    column = np.arange(z.shape[1])
    z[:] = slopes[piece, column] * z + intercepts[piece, column]
    norms[:] = np.sqrt((z * z).sum(axis=1))


def maximum(
    z: Array,  # [B, n]
    bias: Array,  # [n]
    windows: Array,  # [units, k] int64, -1 for none
    sign: int,
    keys: Array,  # [units, k] uint64
    gain: Array,  # [n]
    offset: Array,  # [n]
    scale: Array,  # [B]
    arbiter: bool,
    out: Array,  # [B, units], written
    hashes: Array,  # [B] uint64, updated
    flags: Array,  # [B] bool, updated
    norms: Array,  # [B], written
) -> None:
    z += bias
    band = scale[:, None] * gain + offset  # [B, n]
    for unit, window in enumerate(windows):
        for row in range(z.shape[0]):
            entries = [(z.dtype.type(sign) * z[row, j], band[row, j], k) for k, j in enumerate(window) if j >= 0]
            best, best_band, winner = entries[0]
            for value, width, k in entries[1:]:
                if value - best > (width + best_band if arbiter else 0):
                    best, best_band, winner = value, width, k
            for value, width, k in entries:
                # Two entries that are exactly zero were clipped by a ReLU: a tie that rounding cannot break.
                if k != winner and not (best - value >= width + best_band or best == value == 0):
                    flags[row] = True
            out[row, unit] = sign * best
            hashes[row] ^= keys[unit, winner]
    norms[:] = np.sqrt((out * out).sum(axis=1))
