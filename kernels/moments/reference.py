"""Region sums in plain numpy: whole-image arrays, one question at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regiongrid.kernels.components import reference as components
from regiongrid.kernels.moments import RegionSums

Numbers = NDArray[np.int64]


def region_sums(hashes: NDArray[np.uint64]) -> RegionSums:
    """See :func:`regiongrid.kernels.moments.region_sums`."""
    numbers, patterns = components.number_regions(hashes)
    ids = numbers.astype(np.int64)
    n = patterns.size
    pixels = np.bincount(ids.ravel(), minlength=n)
    origin, first, second = _moments(ids, pixels)
    cells = np.stack([ids[:-1, :-1], ids[:-1, 1:], ids[1:, :-1], ids[1:, 1:]], axis=-1).reshape(-1, 4)
    pure = (cells == cells[:, :1]).all(axis=1)
    pairs = _pairs(ids, n)
    border = np.concatenate(_sides(ids))
    return RegionSums(
        patterns=patterns,
        pixels=pixels.astype(np.int32),
        origin=origin.astype(np.int32),
        first_moments=first,
        second_moments=second,
        interior_pixels=_count(ids[~_on_boundary(ids)], n),
        pure_cells=_count(cells[pure, 0], n),
        mixed_cells=_touched(cells[~pure], n),
        rim_quarters=_rim_quarters(ids, n),
        border_sides=_count(border, n),
        components=_components(hashes, ids, n),
        coarse_pixels=_count(ids[::2, ::2].ravel(), n),
        pair_first=pairs[:, 0],
        pair_second=pairs[:, 1],
        pair_edges=pairs[:, 2],
        pair_diagonals=pairs[:, 3],
        pair_rim_edges=pairs[:, 4],
    )


def _count(ids: Numbers, n: int) -> NDArray[np.int32]:
    return np.bincount(ids, minlength=n).astype(np.int32)


def _moments(ids: Numbers, pixels: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    grid = np.indices(ids.shape)[::-1].reshape(2, -1)  # column, row
    of_pixel = ids.ravel()
    n = pixels.size
    sums = np.stack([_add(of_pixel, axis, n) for axis in grid], axis=1)
    origin = (2 * sums + pixels[:, None]) // (2 * pixels[:, None])
    column, row = grid - origin[of_pixel].T
    first = np.stack([_add(of_pixel, column, n), _add(of_pixel, row, n)], axis=1)
    products = (column * column, column * row, row * row)
    return origin, first, np.stack([_add(of_pixel, product, n) for product in products], axis=1)


def _add(ids: Numbers, values: Numbers, n: int) -> Numbers:
    total = np.zeros(n, np.int64)
    np.add.at(total, ids, values)
    return total


def _on_boundary(ids: Numbers) -> NDArray[np.bool_]:
    mark = np.zeros(ids.shape, bool)
    right = ids[:, :-1] != ids[:, 1:]
    down = ids[:-1] != ids[1:]
    mark[:, :-1] |= right
    mark[:, 1:] |= right
    mark[:-1] |= down
    mark[1:] |= down
    return mark


def _touched(cells: Numbers, n: int) -> NDArray[np.int32]:
    """Count for each region the rows of ``cells`` that name it at least once."""
    ordered = np.sort(cells, axis=1)
    fresh = np.ones(ordered.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return _count(ordered[fresh], n)


def _sides(ids: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    return ids[0], ids[-1], ids[:, 0], ids[:, -1]


def _rim_quarters(ids: Numbers, n: int) -> NDArray[np.int32]:
    halves = np.concatenate([np.stack([side[:-1], side[1:]], axis=1) for side in _sides(ids)])
    corners = ids[[0, 0, -1, -1], [0, -1, 0, -1]]
    return 2 * _touched(halves, n) + _count(corners, n)


def _components(hashes: NDArray[np.uint64], ids: Numbers, n: int) -> NDArray[np.int32]:
    labels, _ = components.label_components(hashes)
    _, first = np.unique(labels, return_index=True)
    return _count(ids.ravel()[first], n)


def _pairs(ids: Numbers, n: int) -> NDArray[np.int32]:
    """Rows (first, second, edges, diagonals, rim edges) of the unordered pairs of unequal neighbours."""
    edges = [(ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])]
    diagonals = [(ids[:-1, :-1], ids[1:, 1:]), (ids[:-1, 1:], ids[1:, :-1])]
    rim = [(side[:-1], side[1:]) for side in _sides(ids)]
    keys = [_unequal(group, n) for group in (edges, diagonals, rim)]
    distinct = np.unique(np.concatenate(keys))
    counts = [np.bincount(np.searchsorted(distinct, key), minlength=distinct.size) for key in keys]
    return np.stack([distinct // n, distinct % n, *counts], axis=1).astype(np.int32)


def _unequal(neighbours: list[tuple[Numbers, Numbers]], n: int) -> Numbers:
    one = np.concatenate([first.ravel() for first, _ in neighbours])
    other = np.concatenate([second.ravel() for _, second in neighbours])
    unequal = one != other
    keys: Numbers = (np.minimum(one, other) * n + np.maximum(one, other))[unequal]
    return keys
