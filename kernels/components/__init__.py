"""Region numbers and connected components of a pattern image.

A pattern image holds one 64-bit pattern hash a pixel. All pixels with one hash form ONE region, however far apart
they lie (activation regions are convex; a grid may still show a thin one in several pieces). A component is a
4-connected piece of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SIDE = 1 << 16
MAX_PIXELS = 1 << 30
MAX_ROWS = (1 << 31) - 1  # of all images of a batch: a row has a number in 32 bits

BACKENDS = ("cpu", "reference", "triton")


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
        raise InputError(
            f"the pattern image must be a numpy array, got {type(hashes).__name__}; a torch tensor needs "
            "backend='triton', or hashes.cpu().numpy().view(np.uint64)"
        )
    if hashes.ndim != 2 or hashes.dtype != np.uint64 or hashes.size == 0:
        raise InputError(
            f"the pattern image must be a non-empty uint64 array [H, W], got {hashes.dtype} of shape {hashes.shape}"
        )
    if not hashes.flags.c_contiguous:
        raise InputError(
            "the pattern image must be C-contiguous (rows of adjacent pixels), got strides "
            f"{hashes.strides}; pass np.ascontiguousarray(hashes)"
        )
    _check_sides(*hashes.shape)


def check_hash_tensor(hashes: Tensor, *, batch: bool = False) -> None:
    """Refuse what the Triton kernels cannot read.

    Raises
    ------
    InputError
        If ``hashes`` is not a contiguous, non-empty int64 tensor ``[H, W]`` (``[S, H, W]`` if ``batch``) with at most
        2^16 pixels a side and 2^30 pixels an image, and less than 2^31 rows in all; or if Triton cannot run there.
    """
    import torch

    from regiongrid.kernels.gpu import why_not

    what, axes = ("batch of pattern images", "[S, H, W]") if batch else ("pattern image", "[H, W]")
    if not isinstance(hashes, torch.Tensor):
        raise InputError(
            f"backend 'triton' wants the {what} as an int64 torch tensor {axes} on the device, got "
            f"{type(hashes).__name__}; pass torch.from_numpy(hashes.view(np.int64)).to(device), or backend='cpu'"
        )
    if hashes.ndim != 2 + batch or hashes.dtype != torch.int64 or hashes.numel() == 0:
        raise InputError(
            f"the {what} must be a non-empty int64 tensor {axes} (the bits of the uint64 hashes), "
            f"got {hashes.dtype} of shape {tuple(hashes.shape)}"
        )
    if not hashes.is_contiguous():
        raise InputError(
            f"the {what} must be contiguous (rows of adjacent pixels), got strides {hashes.stride()}; "
            "pass hashes.contiguous()"
        )
    _check_sides(*hashes.shape[-2:])
    if hashes.shape[:-1].numel() > MAX_ROWS:
        raise InputError(
            f"the {what} may have at most {MAX_ROWS} rows in all, got {hashes.shape[0]} x {hashes.shape[1]}; "
            "measure fewer images at once"
        )
    if (reason := why_not(hashes.device)) is not None:
        raise InputError(
            f"backend 'triton' cannot run on the {what} on {hashes.device}: {reason}; "
            "move it to such a device, or pass hashes.cpu().numpy().view(np.uint64)"
        )


def _check_sides(height: int, width: int) -> None:
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise InputError(
            f"the pattern image may have at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all, "
            f"got {height} x {width}; use a lower resolution or measure it in tiles"
        )


def choose_backend(backend: str | None, hashes: NDArray[np.uint64] | Tensor) -> str:
    """The backend asked for by name; if none is, "cpu" for a numpy array and "triton" for a torch tensor.

    Raises
    ------
    InputError
        If the backend is unknown.
    """
    if backend is None:
        return "triton" if _is_tensor(hashes) else "cpu"
    if backend not in BACKENDS:
        raise unknown_backend(backend, BACKENDS)
    return backend


def _is_tensor(hashes: object) -> bool:
    if isinstance(hashes, np.ndarray):  # asked first, as it does not import torch
        return False
    import torch

    return isinstance(hashes, torch.Tensor)


@overload
def number_regions(
    hashes: NDArray[np.uint64], *, backend: str | None = None, threads: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]: ...
@overload
def number_regions(
    hashes: Tensor, *, backend: str | None = None, threads: int | None = None
) -> tuple[Tensor, Tensor]: ...
def number_regions(
    hashes: Any,  # [H, W]
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[Any, Any]:
    """Number the regions of a pattern image 0, 1, 2, ... in raster order of first appearance.

    Parameters
    ----------
    hashes
        Pattern image, C-contiguous, shape ``[H, W]``: a uint64 numpy array, for Triton an int64 tensor on the device.
    backend
        ``"cpu"`` (numba), ``"reference"`` (numpy) or ``"triton"``; by default Triton for a tensor, else the cpu.
    threads
        Worker threads of the cpu backend; by default all cores this process may use. The result does not depend on it.

    Returns
    -------
    numbers
        Region number of each pixel, int32, shape ``[H, W]``.
    patterns
        Hash of each region, uint64, shape ``[n]``: ``patterns[numbers]`` is ``hashes``.
        Both are tensors on the device for Triton, ``patterns`` then int64.

    Raises
    ------
    InputError
        For an unusable image, an unknown backend, or one that cannot run on it.

    Examples
    --------
    >>> numbers, patterns = number_regions(np.array([[7, 7, 0], [7, 3, 0]], dtype=np.uint64), backend="reference")
    >>> numbers.tolist(), patterns.tolist()
    ([[0, 0, 1], [0, 2, 1]], [7, 0, 3])
    """
    backend = choose_backend(backend, hashes)
    if backend == "triton":
        check_hash_tensor(hashes)
        from regiongrid.kernels.components import gpu

        numbers, patterns, _ = gpu.number_regions(hashes[None])
        return numbers[0], patterns
    check_hashes(hashes)
    if backend == "cpu":
        from regiongrid.kernels.components import cpu

        return cpu.number_regions(hashes, threads)
    from regiongrid.kernels.components import reference

    return reference.number_regions(hashes)


@overload
def label_components(hashes: NDArray[np.uint64], *, backend: str | None = None) -> tuple[NDArray[np.int32], int]: ...
@overload
def label_components(hashes: Tensor, *, backend: str | None = None) -> tuple[Tensor, int]: ...
def label_components(
    hashes: Any,  # [H, W]
    *,
    backend: str | None = None,
) -> tuple[Any, int]:
    """Number the 4-connected components of a pattern image 0, 1, 2, ... in raster order of first appearance.

    Parameters
    ----------
    hashes
        Pattern image, C-contiguous, shape ``[H, W]``: a uint64 numpy array, for Triton an int64 tensor on the device.
    backend
        ``"cpu"`` (numba), ``"reference"`` (scipy) or ``"triton"``; by default Triton for a tensor, else the cpu.

    Returns
    -------
    labels
        Component number of each pixel, int32, shape ``[H, W]``; for Triton a tensor on the device.
    count
        Number of components.

    Raises
    ------
    InputError
        For an unusable image, an unknown backend, or one that cannot run on it.

    Examples
    --------
    >>> labels, count = label_components(np.array([[7, 1, 7], [7, 1, 7]], dtype=np.uint64), backend="reference")
    >>> labels.tolist(), count
    ([[0, 1, 2], [0, 1, 2]], 3)
    """
    backend = choose_backend(backend, hashes)
    if backend == "triton":
        check_hash_tensor(hashes)
        from regiongrid.kernels.components import gpu

        labels, counts = gpu.label_components(hashes[None])
        return labels[0], int(counts.item())
    check_hashes(hashes)
    if backend == "cpu":
        from regiongrid.kernels.components import cpu

        return cpu.label_components(hashes)
    from regiongrid.kernels.components import reference

    return reference.label_components(hashes)


def unknown_backend(backend: str, known: Sequence[str] = ("cpu", "reference")) -> InputError:
    """The error for a backend that does not exist."""
    names = ", ".join(map(repr, known[:-1]))
    return InputError(f"backend must be {names} or {known[-1]!r}, got {backend!r}")
