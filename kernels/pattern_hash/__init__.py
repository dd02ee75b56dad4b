"""Breakpoints as epilogues: decide every unit, hash the decisions, apply the activation, flag what is too close.

A point's *pattern hash* is the XOR of `START` and of one random 64-bit key for every decision that is on (Zobrist
hashing), so layers and blocks may be added in any order. Each decision compares a pre-activation z with a threshold t.
Rounding can only matter where |z - t| is inside the *band*

    band_j = gain_j * scale + offset_j,

with ``scale`` one number a point (the size of the incoming activations). A point with a unit inside its band is
*flagged*, to be decided again in float64. The second pass is the *arbiter*: there a unit is on only where z - t exceeds
the band, which is then the rounding error of float64, so that a pre-activation that is zero but for rounding counts as
zero, hence off, on every engine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regiongrid.kernels.pattern_hash import reference

Array = np.ndarray[Any, Any]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BACKENDS = ("cpu", "reference")
START = _GOLDEN
"""Hash of the pattern with every decision off: not zero, so that zero may stand for a hash not known yet."""


def decision_keys(first: int, count: int, seed: int = 0) -> Array:
    """Hash keys number ``first`` to ``first + count - 1``; uint64 [count].

    Key i is the SplitMix64 finaliser (Steele, Lea and Flood 2014) applied to seed + (i + 1) * 0x9E3779B97F4A7C15,
    so any key can be computed on any device without the ones before it.

    >>> [hex(key) for key in decision_keys(0, 2)]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def kernels(backend: str = "cpu") -> Any:
    """The module with ``relu``, ``piecewise`` and ``maximum`` of this backend ("cpu": numba, "reference": numpy).

    All three take z [B, n] (float32 or float64, C-contiguous), add ``bias`` [n] to it, and update in place
    ``hashes`` [B] uint64 (XOR), ``flags`` [B] bool (OR) and ``norms`` [B] (Euclidean norm of the values that go on).
    ``relu`` and ``piecewise`` leave the values in z, ``maximum`` writes them to ``out`` [B, units].
    """
    if backend == "reference":
        return reference
    if backend == "cpu":
        from regiongrid.kernels.pattern_hash import cpu

        return cpu
    raise ValueError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
