"""Region numbers and connected components of a pattern image.

A pattern image holds one 64-bit pattern hash a pixel. All pixels with one hash form ONE region, however far apart
they lie (activation regions are convex; a grid may still show a thin one in several pieces). A component is a
4-connected piece of a region.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError

MAX_SIDE = 1 << 16
MAX_PIXELS = 1 << 30


def check_hashes(hashes: NDArray[np.uint64]) -> None:
    """Refuse what the kernels cannot read.

    The two size limits keep every integer exact: pair counts in 32 bits, second moments in 64 bits.

    Raises
    ------
    InputError
        If ``hashes`` is not a C-contiguous, non-empty uint64 array ``[H, W]`` with at most 2^16 pixels a side and
        2^30 pixels in all.
    """
    if not isinstance(hashes, np.ndarray):
        raise InputError(f"the pattern image must be a numpy array, got {type(hashes).__name__}")
    if hashes.ndim != 2 or hashes.dtype != np.uint64 or hashes.size == 0:
        raise InputError(
            f"the pattern image must be a non-empty uint64 array [H, W], got {hashes.dtype} of shape {hashes.shape}"
        )
    if not hashes.flags.c_contiguous:
        raise InputError(
            "the pattern image must be C-contiguous (rows of adjacent pixels), got strides "
            f"{hashes.strides}; pass np.ascontiguousarray(hashes)"
        )
    if max(hashes.shape) > MAX_SIDE or hashes.size > MAX_PIXELS:
        raise InputError(
            f"the pattern image may have at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all, "
            f"got {hashes.shape[0]} x {hashes.shape[1]}; use a lower resolution or measure it in tiles"
        )


def number_regions(
    hashes: NDArray[np.uint64],  # [H, W]
    *,
    backend: str = "cpu",
    threads: int | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Number the regions of a pattern image 0, 1, 2, ... in raster order of first appearance.

    Parameters
    ----------
    hashes
        Pattern image, C-contiguous, shape ``[H, W]``.
    backend
        ``"cpu"`` (numba) or ``"reference"`` (numpy).
    threads
        Worker threads of the cpu backend; by default all cores this process may use. The result does not depend on it.

    Returns
    -------
    numbers
        Region number of each pixel, int32, shape ``[H, W]``.
    patterns
        Hash of each region, shape ``[n]``: ``patterns[numbers]`` is ``hashes``.

    Raises
    ------
    InputError
        For an unusable image or an unknown backend.

    Examples
    --------
    >>> numbers, patterns = number_regions(np.array([[7, 7, 0], [7, 3, 0]], dtype=np.uint64), backend="reference")
    >>> numbers.tolist(), patterns.tolist()
    ([[0, 0, 1], [0, 2, 1]], [7, 0, 3])
    """
    check_hashes(hashes)
    if backend == "cpu":
        from regiongrid.kernels.components import cpu

        return cpu.number_regions(hashes, threads)
    if backend == "reference":
        from regiongrid.kernels.components import reference

        return reference.number_regions(hashes)
    raise unknown_backend(backend)


def label_components(
    hashes: NDArray[np.uint64],  # [H, W]
    *,
    backend: str = "cpu",
) -> tuple[NDArray[np.int32], int]:
    """Number the 4-connected components of a pattern image 0, 1, 2, ... in raster order of first appearance.

    Parameters
    ----------
    hashes
        Pattern image, C-contiguous, shape ``[H, W]``.
    backend
        ``"cpu"`` (numba) or ``"reference"`` (scipy).

    Returns
    -------
    labels
        Component number of each pixel, int32, shape ``[H, W]``.
    count
        Number of components.

    Raises
    ------
    InputError
        For an unusable image or an unknown backend.

    Examples
    --------
    >>> labels, count = label_components(np.array([[7, 1, 7], [7, 1, 7]], dtype=np.uint64), backend="reference")
    >>> labels.tolist(), count
    ([[0, 1, 2], [0, 1, 2]], 3)
    """
    check_hashes(hashes)
    if backend == "cpu":
        from regiongrid.kernels.components import cpu

        return cpu.label_components(hashes)
    if backend == "reference":
        from regiongrid.kernels.components import reference

        return reference.label_components(hashes)
    raise unknown_backend(backend)


def unknown_backend(backend: str) -> InputError:
    """The error for a backend that does not exist."""
    return InputError(f"backend must be 'cpu' or 'reference', got {backend!r}")
