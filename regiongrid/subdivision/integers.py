"""Whole numbers of any length in arrays, multiplied by matrices at the speed of float64 matrix products.

A number is the sum of limb[i] * 2^(LIMB i); limbs are small enough that products of matrices of limbs, summed over up
to 2^17 terms, are exact in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

LIMB = 18  # bits: limbs lie within +-2^17 once they are normalised, and within +-2^18 before
Limbs = NDArray[np.int64]
_HALF = 1 << (LIMB - 1)
_MOST_TERMS = 1 << 17  # of 2^18 * 2^17 each: their sum stays below 2^53


def scale_of(numbers: NDArray[np.float64]) -> int:
    """The least multiple of `LIMB` such that all numbers times two to its power are whole."""
    nonzero = numbers[numbers != 0]
    if nonzero.size == 0:
        return 0
    mantissas, exponents = np.frexp(nonzero)
    whole = (mantissas * 2.0**53).astype(np.int64)
    trailing = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    bits = int((53 - exponents - trailing).max())
    return max(0, -(-bits // LIMB) * LIMB)


def from_floats(numbers: NDArray[np.float64], scale: int) -> Limbs:
    """numbers * 2^scale, exactly, [..., L]; ``scale`` as `scale_of` has it or more."""
    return normalised(_cut(numbers, scale))


def _cut(numbers: NDArray[np.float64], scale: int) -> Limbs:
    """Limbs within +-2^LIMB, all of a number's of its own sign."""
    largest = float(np.abs(numbers).max(initial=0.0))
    if largest == 0:
        return np.zeros((*numbers.shape, 1), np.int64)
    count = (int(np.frexp(largest)[1]) + scale) // LIMB + 1
    limbs = np.empty((*numbers.shape, count), np.int64)
    rest = numbers.copy()
    for i in range(count - 1, -1, -1):
        shift = LIMB * i - scale
        part = np.trunc(np.ldexp(rest, -shift))
        limbs[..., i] = part.astype(np.int64)
        rest -= np.ldexp(part, shift)
    return limbs


def normalised(limbs: Limbs) -> Limbs:
    """The same numbers with limbs within +-2^(LIMB - 1), and no limb that is zero in all of them at the end."""
    limbs = np.concatenate([limbs, np.zeros((*limbs.shape[:-1], 4), np.int64)], axis=-1)
    for i in range(limbs.shape[-1] - 1):
        carry = (limbs[..., i] + _HALF) >> LIMB
        limbs[..., i] -= carry << LIMB
        limbs[..., i + 1] += carry
    used = np.flatnonzero(limbs.reshape(-1, limbs.shape[-1]).any(axis=0))
    return limbs[..., : int(used[-1]) + 1 if used.size else 1]


def lifted(limbs: Limbs, bits: int) -> Limbs:
    """The numbers times 2^bits, a multiple of `LIMB`."""
    if bits == 0:
        return limbs
    return np.concatenate([np.zeros((*limbs.shape[:-1], bits // LIMB), np.int64), limbs], axis=-1)


def added(parts: list[Limbs]) -> Limbs:
    """Sum of arrays of one shape, whatever their numbers of limbs."""
    total = np.zeros((*parts[0].shape[:-1], max(part.shape[-1] for part in parts)), np.int64)
    for part in parts:
        total[..., : part.shape[-1]] += part
    return normalised(total)


class Factors:
    """A float64 matrix times 2^scale as whole numbers: matrices of limbs, ready to be multiplied by."""

    def __init__(self, matrix: NDArray[np.float64] | csr_array) -> None:
        self._limbs: list[Any]  # one [m, k] matrix a limb
        if isinstance(matrix, csr_array):
            self.scale = scale_of(matrix.data)
            limbs = _cut(matrix.data, self.scale).astype(np.float64)
            structure = matrix.indices, matrix.indptr
            self._limbs = [csr_array((limbs[:, i], *structure), matrix.shape) for i in range(limbs.shape[1])]
        else:
            self.scale = scale_of(matrix)
            self._limbs = list(np.moveaxis(_cut(matrix, self.scale), -1, 0).astype(np.float64))

    def product(self, numbers: Limbs, rows: slice = slice(None)) -> Limbs:
        """Rows of the matrix times numbers [k, c, L]; limbs [m, c, L']."""
        terms, columns, count = numbers.shape
        factors = [limb[rows] for limb in self._limbs]
        total = np.zeros((factors[0].shape[0], columns, len(factors) + count), np.int64)
        right = numbers.reshape(terms, columns * count).astype(np.float64)
        for start in range(0, terms, _MOST_TERMS):
            some = slice(start, start + _MOST_TERMS)
            for i, factor in enumerate(factors):
                product = factor @ right if terms <= _MOST_TERMS else factor[:, some] @ right[some]
                part = product.astype(np.int64).reshape(-1, columns, count)
                # Spread over two limbs at once, so that sums of many parts stay far from overflow.
                total[..., i : i + count] += part & ((1 << LIMB) - 1)
                total[..., i + 1 : i + 1 + count] += part >> LIMB
        return normalised(total)


def times(limbs: Limbs, factors: NDArray[np.float64], scale: int) -> Limbs:
    """Row j of the numbers [n, c] times factors[j] * 2^scale."""
    rows = from_floats(factors, scale)
    total = np.zeros((*limbs.shape[:-1], limbs.shape[-1] + rows.shape[-1]), np.int64)
    for i in range(rows.shape[-1]):
        total[..., i : i + limbs.shape[-1]] += limbs * rows[:, None, i, None]
    return normalised(total)


def whole(limbs: Limbs) -> Any:
    """One number, or a nested list of them, as Python integers."""
    if limbs.ndim == 1:
        return sum(int(limb) << (LIMB * i) for i, limb in enumerate(limbs.tolist()))
    return [whole(row) for row in limbs]
