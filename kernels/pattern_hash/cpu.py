"""The breakpoint epilogues in numba: one read and one write of the pre-activations each."""

from __future__ import annotations

import numpy as np
from numba import njit

# Sums may be reordered (they only size the band); NaN and infinity keep their meaning, so an overflow gets flagged.
_FAST = {"reassoc", "nsz", "contract"}


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def relu(z, bias, keys, gain, offset, scale, arbiter, hashes, flags, norms):  # type: ignore[no-untyped-def]
    rows, units = z.shape
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for i in range(rows):
        size = scale[i]
        close = zero  # a count in the type of z: it vectorises a third better than a flag
        squares = zero
        if arbiter:
            for j in range(units):
                value = z[i, j] + bias[j]
                value = value if value > gain[j] * size + offset[j] else zero
                squares += value * value
                z[i, j] = value
        else:
            for j in range(units):
                value = z[i, j] + bias[j]
                close += zero if abs(value) >= gain[j] * size + offset[j] else one
                value = value if value > zero else zero
                squares += value * value
                z[i, j] = value
        pattern = np.uint64(0)
        for j in range(units):
            pattern ^= keys[j] if z[i, j] > zero else np.uint64(0)
        hashes[i] ^= pattern
        flags[i] |= close != zero or not np.isfinite(size)
        norms[i] = np.sqrt(squares)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def piecewise(  # type: ignore[no-untyped-def]
    z, bias, thresholds, slopes, intercepts, keys, gain, offset, scale, arbiter, hashes, flags, norms
):
    rows, units = z.shape
    zero = z.dtype.type(0)
    for i in range(rows):
        close = not np.isfinite(scale[i])
        squares = zero
        pattern = np.uint64(0)
        for j in range(units):
            value = z[i, j] + bias[j]
            band = gain[j] * scale[i] + offset[j]
            margin = band if arbiter else zero
            piece = 0
            for k in range(thresholds.shape[0]):
                distance = value - thresholds[k, j]
                close |= not (abs(distance) >= band)
                if distance > margin:
                    piece += 1
                    pattern ^= keys[k, j]
            value = slopes[piece, j] * value + intercepts[piece, j]
            squares += value * value
            z[i, j] = value
        hashes[i] ^= pattern
        flags[i] |= close
        norms[i] = np.sqrt(squares)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def maximum(  # type: ignore[no-untyped-def]
    z, bias, windows, sign, keys, gain, offset, scale, arbiter, out, hashes, flags, norms
):
    rows = z.shape[0]
    units, entries = windows.shape
    zero = z.dtype.type(0)
    direction = z.dtype.type(sign)
    for i in range(rows):
        close = not np.isfinite(scale[i])
        squares = zero
        pattern = np.uint64(0)
        for unit in range(units):
            winner = -1
            best = zero
            best_band = zero
            for k in range(entries):
                j = windows[unit, k]
                if j < 0:
                    continue
                value = direction * (z[i, j] + bias[j])
                band = gain[j] * scale[i] + offset[j]
                margin = band + best_band if arbiter else zero
                if winner < 0 or value - best > margin:
                    best, best_band, winner = value, band, k
            for k in range(entries):
                j = windows[unit, k]
                if j < 0 or k == winner:
                    continue
                value = direction * (z[i, j] + bias[j])
                band = gain[j] * scale[i] + offset[j]
                # Two entries that are exactly zero were clipped by a ReLU: a tie that rounding cannot break.
                tied = best == zero and value == zero
                close |= not (tied or best - value >= band + best_band)
            out[i, unit] = direction * best
            squares += best * best
            pattern ^= keys[unit, winner]
        hashes[i] ^= pattern
        flags[i] |= close
        norms[i] = np.sqrt(squares)
