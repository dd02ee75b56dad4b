"""One level of adaptive sampling: fill the cells whose corners agree, list the others and the pixels they still need.

A cell (i, j) of spacing s has its corners at pixels i, min(i + s, H - 1) by j, min(j + s, W - 1) of the image [H, W].
Activation regions are convex, so a cell whose four corners share a hash lies in one region as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from regiongrid.errors import InputError

# Marks in the hash image; a real hash equals one of them with probability 2^-63 a region, like any hash collision.
UNKNOWN = np.uint64(0)  # what fresh memory holds, so that an image need not be written before it is filled
PENDING = np.uint64(0xFFFFFFFFFFFFFFFF)


COARSEST_CELLS = 16  # cells along a side to begin with; starting coarser only saves evaluations, to a point


def first_spacing(res: int) -> int:
    """Pixels from corner to corner of the first cells of an image [res, res]; halved each level, down to 1.

    >>> first_spacing(16), first_spacing(17), first_spacing(4096)
    (1, 2, 256)
    """
    spacing = 1
    while spacing * COARSEST_CELLS < res:
        spacing *= 2
    return spacing


def kernels(backend: str = "cpu") -> Any:
    """The module of this backend: "cpu" (numba), "reference" (numpy), "triton" (tensors on a GPU).

    The first two have ``fill`` and ``subdivide``, on one image in host memory. "triton" has ``coarsest`` and
    ``refine``, on a batch of images in device memory, where a level is one call.

    Raises
    ------
    InputError
        For another backend.
    """
    if backend == "reference":
        from regiongrid.kernels.refinement import reference

        return reference
    if backend == "cpu":
        from regiongrid.kernels.refinement import cpu

        return cpu
    if backend == "triton":
        from regiongrid.kernels.refinement import gpu

        return gpu
    raise InputError(f"unknown backend {backend!r}; known are cpu, reference, triton")
