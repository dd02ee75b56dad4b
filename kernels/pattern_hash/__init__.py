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

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from regiongrid.errors import InputError
from regiongrid.kernels.pattern_hash import reference

Array = np.ndarray[Any, Any]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BACKENDS = ("cpu", "reference", "triton")
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


@dataclass(frozen=True)
class Epilogues:
    """The epilogues of a backend on the host. They take numpy arrays and CPU tensors, by position."""

    relu: Callable[..., None]
    piecewise: Callable[..., None]
    maximum: Callable[..., None]


@functools.cache
def kernels(backend: str = "cpu") -> Any:
    """The ``relu``, ``piecewise`` and ``maximum`` of a backend: "cpu" (numba), "reference" (numpy), "triton".

    All three take z [B, n] (float32 or float64, and so all other numbers), add ``bias`` [n] to it, and update in place
    ``hashes`` [B] (XOR), ``flags`` [B] bool (OR) and ``norms`` [B] (Euclidean norm of the values that go on). ``relu``
    and ``piecewise`` leave the values in z, ``maximum`` writes them to ``out`` [B, units]; each of its windows has at
    least one entry. Arguments go by position, in the order and with the shapes that reference.py lists.

    "cpu" and "reference" take C-contiguous numpy arrays or CPU tensors, also mixed. Hashes and keys are uint64 arrays,
    or int64 tensors with the same bits.

    "triton" takes tensors on one CUDA or ROCm device, hashes and keys as int64. Rows of z and ``out`` may lie further
    apart than they are long; all else is contiguous. ``bias``, ``gain`` and ``offset`` may have a row a slice, [S, n]:
    the keyword ``which``, int32 or int64 [B], then says which row a point uses (without a check, for which the host
    would have to wait); None: the first. Multiplications and additions may be fused, and sums have another order, so
    that values and norms can differ from those of the other backends in the last bits.

    Raises
    ------
    InputError
        For another backend; when called, for ``which`` on the host, and for tensors that the device cannot take.
    """
    if backend == "reference":
        return _on_host(reference)
    if backend == "cpu":
        from regiongrid.kernels.pattern_hash import cpu

        return _on_host(cpu)
    if backend == "triton":
        from regiongrid.kernels.pattern_hash import gpu

        return gpu
    raise InputError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")


def _on_host(module: Any) -> Epilogues:
    return Epilogues(
        relu=take_tensors(module.relu, keys=2),
        piecewise=take_tensors(module.piecewise, keys=5),
        maximum=take_tensors(module.maximum, keys=4),
    )


def take_tensors(kernel: Callable[..., None], keys: int) -> Callable[..., None]:
    """The kernel with arrays in the place of tensors, on the same memory; ``keys`` is where it takes the hash keys."""
    bits = (keys, -3)  # the hashes are the last but two

    def run(*arguments: Any, which: None = None) -> None:
        if which is not None:
            raise InputError(
                f"which is for backend 'triton' alone, got {which!r}; pass the bias, gain and offset of one slice"
            )
        arrays = [item.numpy() if hasattr(item, "numpy") else item for item in arguments]
        for place in bits:
            if arrays[place].dtype == np.int64:
                arrays[place] = arrays[place].view(np.uint64)
        kernel(*arrays)

    return run
