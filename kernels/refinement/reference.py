"""One level of adaptive sampling in plain Python: the oracle of the tests. Same signatures as cpu.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from regiongrid.kernels.refinement import PENDING, UNKNOWN

Array = np.ndarray[Any, Any]


def fill(image: Array, cells: Array, spacing: int, mixed: Array, start: int, stop: int) -> None:
    for c in range(start, stop):
        i, j = cells[c]
        block = image[i : i + spacing + 1, j : j + spacing + 1]
        corners = {int(block[a, b]) for a in (0, -1) for b in (0, -1)}
        mixed[c] = len(corners) > 1
        if not mixed[c]:
            block[:] = block[0, 0]


def subdivide(image: Array, cells: Array, spacing: int, children: Array, points: Array) -> tuple[int, int]:
    height, width = image.shape
    half = spacing // 2
    found: list[tuple[int, int]] = []
    asked: list[int] = []
    for i, j in cells:
        found += [(a, b) for a in (i, i + half) for b in (j, j + half) if a < height - 1 and b < width - 1]
        rows = [min(i + step, height - 1) for step in (0, half, spacing)]
        columns = [min(j + step, width - 1) for step in (0, half, spacing)]
        for a in rows:
            for b in columns:
                if image[a, b] == UNKNOWN:
                    image[a, b] = PENDING
                    asked.append(a * width + b)
    children[: len(found)] = np.array(found).reshape(-1, 2)
    points[: len(asked)] = asked
    return len(found), len(asked)
