"""Sums over the pixels of each region, and counts over each pair of neighbouring regions.

Everything here is an integer: all backends must agree to the last digit. Lengths and areas in input units are made
of these counts in :mod:`regiongrid.regions`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.kernels.components import check_hash_tensor, check_hashes, choose_backend
from regiongrid.kernels.threads import spans

if TYPE_CHECKING:
    from torch import Tensor

# regions handled at once, so that temporary arrays stay small
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class RegionSums:
    """Integer sums of a pattern image ``[H, W]`` with ``n`` regions and ``m`` pairs of regions that meet.

    A *cell* is a 2 x 2 block of pixels: the square between four pixel centres. It is *pure* if the four hashes are
    equal, else *mixed*. The *rim* is the half-pixel strip between the outermost pixel centres and the domain's border;
    it consists of half cells between adjacent border pixels and of four quarter cells at the corners.

    Regions come in raster order of first appearance, pairs in ascending order of ``(pair_first, pair_second)``.
    """

    patterns: NDArray[np.uint64]  # [n] hash
    pixels: NDArray[np.int32]  # [n] pixel count
    origin: NDArray[np.int32]  # [n, 2] (column, row) of the pixel nearest the centroid, halves rounded up
    first_moments: NDArray[np.int64]  # [n, 2] sums of column and row, about origin
    second_moments: NDArray[np.int64]  # [n, 3] sums of column^2, column * row, row^2, about origin
    interior_pixels: NDArray[np.int32]  # [n] pixels without a 4-neighbour in another region
    pure_cells: NDArray[np.int32]  # [n] cells with all four pixels in the region
    mixed_cells: NDArray[np.int32]  # [n] cells with one to three pixels in the region
    rim_quarters: NDArray[np.int32]  # [n] area of the rim's cells that touch the region, in quarters of a pixel
    border_sides: NDArray[np.int32]  # [n] pixel sides on the domain's border
    components: NDArray[np.int32]  # [n] 4-connected pieces
    coarse_pixels: NDArray[np.int32]  # [n] pixels of the region in hashes[::2, ::2]
    pair_first: NDArray[np.int32]  # [m] the smaller region number
    pair_second: NDArray[np.int32]  # [m] the larger region number
    pair_edges: NDArray[np.int32]  # [m] 4-neighbour pixel pairs, one pixel in each region
    pair_diagonals: NDArray[np.int32]  # [m] diagonal-neighbour pixel pairs
    pair_rim_edges: NDArray[np.int32]  # [m] the 4-neighbour pairs along the domain's border, once for each border


@dataclass(frozen=True, eq=False)
class BatchSums:
    """Integer sums of a batch of pattern images ``[S, H, W]``, image after image.

    The regions of one image are not those of another, even if they have the same hash. ``of`` takes one image out.
    """

    sums: RegionSums  # n regions and m pairs in all; pair_first and pair_second are rows among the n
    region_offsets: NDArray[np.int64]  # [S + 1] the regions of image s are rows region_offsets[s] to [s + 1]
    pair_offsets: NDArray[np.int64]  # [S + 1] its pairs are rows pair_offsets[s] to [s + 1]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.region_offsets) - 1

    def of(self, image: int) -> RegionSums:
        """What `region_sums` gives for one image: views, but for the numbers of the regions in the pairs.

        Raises
        ------
        IndexError
            If ``image`` is not from 0 to S - 1.
        """
        if not 0 <= image < len(self):
            raise IndexError(f"the batch has images 0 to {len(self) - 1}, got {image}")
        regions = slice(*self.region_offsets[image : image + 2].tolist())
        pairs = slice(*self.pair_offsets[image : image + 2].tolist())
        columns = {
            field.name: getattr(self.sums, field.name)[pairs if field.name.startswith("pair_") else regions]
            for field in fields(RegionSums)
        }
        for name in ("pair_first", "pair_second"):
            columns[name] = columns[name] - np.int32(regions.start)
        return RegionSums(**columns)


def region_sums(
    hashes: NDArray[np.uint64] | Tensor,  # [H, W]
    *,
    backend: str | None = None,
    threads: int | None = None,
) -> RegionSums:
    """Integer sums of every region of a pattern image, and of every pair of regions that meet.

    Parameters
    ----------
    hashes
        Pattern image, C-contiguous, shape ``[H, W]``: a uint64 numpy array, for Triton an int64 tensor on the device.
    backend
        ``"cpu"`` (numba, one pass over the image), ``"reference"`` (numpy and scipy) or ``"triton"``; by default Triton
        for a tensor, else the cpu.
    threads
        Worker threads of the cpu backend; by default all cores this process may use. The result does not depend on it.

    Raises
    ------
    InputError
        For an unusable image, an unknown backend, or one that cannot run on it.

    Examples
    --------
    >>> sums = region_sums(np.array([[7, 7, 0], [7, 7, 0]], dtype=np.uint64), backend="reference")
    >>> sums.pixels.tolist(), sums.pure_cells.tolist(), sums.pair_edges.tolist(), sums.pair_diagonals.tolist()
    ([4, 2], [1, 0], [2], [2])
    """
    backend = choose_backend(backend, hashes)
    image: Any = hashes  # of the kind that the backend wants, or refused by its check
    if backend == "triton":
        check_hash_tensor(image)
        return batch_sums(image[None]).sums
    check_hashes(image)
    if backend == "cpu":
        from regiongrid.kernels.moments import cpu

        return cpu.region_sums(image, threads)
    from regiongrid.kernels.moments import reference

    return reference.region_sums(image)


def batch_sums(
    hashes: Tensor,  # [S, H, W]
) -> BatchSums:
    """Integer sums of every region and pair of each image of a batch, computed where the images are (Triton).

    The launches and transfers are those of one image. Each image is measured as by `region_sums`, to the integer.

    Parameters
    ----------
    hashes
        Pattern images, int64 (the bits of the uint64 hashes), contiguous, shape ``[S, H, W]``, on the device.

    Returns
    -------
    BatchSums
        In host memory.

    Raises
    ------
    InputError
        For an unusable tensor, or one on a device where Triton cannot run.
    MemoryLimitError
        If the rows of the images have 2^30 or more runs of equal pixels in all.
    """
    check_hash_tensor(hashes, batch=True)
    from regiongrid.kernels.moments import gpu

    return gpu.batch_sums(hashes)


def centre_moments(
    pixels: NDArray[np.int32],  # [n]
    moments: NDArray[np.int64],  # [n, 5] sums of column, row, column^2, column * row, row^2, about pixel (0, 0)
) -> NDArray[np.int32]:
    """Move moments to the pixel nearest each region's centroid, in place and in integers.

    Differences of raw second moments cancel in float64; about a nearby origin they do not.

    Returns
    -------
    origin
        (column, row) of that pixel, shape ``[n, 2]``.
    """
    origin = np.empty((pixels.size, 2), np.int32)
    for start, stop in spans(pixels.size, _CHUNK):
        count = pixels[start:stop].astype(np.int64)
        part = moments[start:stop]
        nearest = (2 * part[:, :2] + count[:, None]) // (2 * count[:, None])
        origin[start:stop] = nearest
        column, row = nearest.T
        first_column, first_row = part[:, 0] - count * column, part[:, 1] - count * row
        part[:, 2] -= column * (part[:, 0] + first_column)
        part[:, 3] -= column * part[:, 1] + row * first_column
        part[:, 4] -= row * (part[:, 1] + first_row)
        part[:, 0] = first_column
        part[:, 1] = first_row
    return origin
