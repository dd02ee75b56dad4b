"""One level of adaptive sampling in numba."""

from __future__ import annotations

from numba import njit

from regiongrid.kernels.refinement import PENDING, UNKNOWN


@njit(cache=True, nogil=True)
def fill(image, cells, spacing, mixed, start, stop):  # type: ignore[no-untyped-def]
    """Fill the pure ones of ``cells[start:stop]`` in the image, and mark the others in ``mixed``."""
    height, width = image.shape
    for c in range(start, stop):
        top, left = cells[c, 0], cells[c, 1]
        bottom, right = min(top + spacing, height - 1), min(left + spacing, width - 1)
        value = image[top, left]
        pure = value == image[top, right] and value == image[bottom, left] and value == image[bottom, right]
        mixed[c] = not pure
        if pure:
            for i in range(top, bottom + 1):
                for j in range(left, right + 1):
                    image[i, j] = value


@njit(cache=True, nogil=True)
def subdivide(image, cells, spacing, children, points):  # type: ignore[no-untyped-def]
    """Quarter the cells; returns how many children and how many flat pixel indices to evaluate were written."""
    height, width = image.shape
    half = spacing // 2
    found = 0
    asked = 0
    for c in range(cells.shape[0]):
        for a in range(2):
            for b in range(2):
                i, j = cells[c, 0] + a * half, cells[c, 1] + b * half
                if i < height - 1 and j < width - 1:
                    children[found, 0], children[found, 1] = i, j
                    found += 1
        top, left = cells[c, 0], cells[c, 1]
        bottom, right = min(top + spacing, height - 1), min(left + spacing, width - 1)
        middle, centre = min(top + half, height - 1), min(left + half, width - 1)
        # Corners are known: what is left are the middles of the four sides and of the cell.
        for i, j in ((top, centre), (middle, left), (middle, centre), (middle, right), (bottom, centre)):
            if image[i, j] == UNKNOWN:
                image[i, j] = PENDING
                points[asked] = i * width + j
                asked += 1
    return found, asked
