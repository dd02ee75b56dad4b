"""Adaptive sampling of a batch of pattern images that stay on the GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regiongrid.kernels.refinement import first_spacing, kernels


def adaptive_images(
    hash_points: Callable[[Tensor, Tensor], None],
    slices: int,
    res: int,
    device: torch.device | str,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Pattern images of ``slices`` slices, refined together, so that a level has the launches of one slice.

    Each is the image that `regiongrid.sampling.image.sample_image` finds adaptively on the CPU, from as many
    evaluations. The host waits for the device once a level, besides what ``hash_points`` waits for.

    Parameters
    ----------
    hash_points
        ``hash_points(image, points)`` writes the pattern hashes at ``points`` into ``image``, int64 [slices, res, res],
        contiguous. ``points``, int64 [m], are flat indices, (slice * res + row) * res + column; m > 0, and no pixel is
        asked for twice.
    device
        Where the images are made: CUDA or ROCm, or the CPU under TRITON_INTERPRET=1.
    progress
        Called with the share of the pixels that is known, 0 to 1.

    Returns
    -------
    Tensor
        int64 [slices, res, res], the bits of the uint64 hashes.
    """
    refinement = kernels("triton")
    image = torch.zeros((slices, res, res), dtype=torch.int64, device=device)  # of UNKNOWN
    spacing = first_spacing(res)
    cells, points = refinement.coarsest(slices, res, spacing, device)
    while True:
        if len(points):  # a cell one pixel wide at the far border has children, but no new corners
            hash_points(image, points)
        if spacing > 1:
            cells, points = refinement.refine(image, cells, spacing)
            spacing //= 2
        else:  # all pixels are corners by now
            cells = cells[:0]
        if progress is not None:
            progress(max(0.0, 1 - len(cells) * spacing**2 / image.numel()))
        if not len(cells):
            return image
