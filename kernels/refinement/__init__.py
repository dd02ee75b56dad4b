"""One level of adaptive sampling: fill the cells whose corners agree, list the others and the pixels they still need.

A cell (i, j) of spacing s has its corners at pixels i, min(i + s, H - 1) by j, min(j + s, W - 1) of the image [H, W].
Activation regions are convex, so a cell whose four corners share a hash lies in one region as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Marks in the hash image; a real hash equals one of them with probability 2^-63 a region, like any hash collision.
UNKNOWN = np.uint64(0)  # what fresh memory holds, so that an image need not be written before it is filled
PENDING = np.uint64(0xFFFFFFFFFFFFFFFF)


def kernels(backend: str = "cpu") -> Any:
    """The module with ``fill``, ``subdivide`` of this backend ("cpu": numba, "reference": numpy)."""
    if backend == "reference":
        from regiongrid.kernels.refinement import reference

        return reference
    if backend == "cpu":
        from regiongrid.kernels.refinement import cpu

        return cpu
    raise ValueError(f"unknown backend {backend!r}; known are cpu, reference")
