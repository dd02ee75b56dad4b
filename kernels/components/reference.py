"""Region numbers and components in plain numpy and scipy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def _raster_order(values: NDArray[np.generic]) -> tuple[NDArray[np.int32], NDArray[np.generic]]:
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(order.size, dtype=np.int32)
    rank[order] = np.arange(order.size, dtype=np.int32)
    return rank[inverse].reshape(values.shape), distinct[order]


def number_regions(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """See :func:`regiongrid.kernels.components.number_regions`."""
    numbers, patterns = _raster_order(hashes)
    return numbers, patterns.astype(np.uint64)


def label_components(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int32], int]:
    """Connected components of the graph that joins each pixel to its equal right and lower neighbours."""
    index = np.arange(hashes.size).reshape(hashes.shape)
    right = hashes[:, :-1] == hashes[:, 1:]
    down = hashes[:-1] == hashes[1:]
    source = np.concatenate([index[:, :-1][right], index[:-1][down]])
    target = np.concatenate([index[:, 1:][right], index[1:][down]])
    graph = coo_array((np.ones(source.size, dtype=np.int8), (source, target)), shape=(hashes.size, hashes.size))
    count, labels = connected_components(graph, directed=False)
    return _raster_order(labels.reshape(hashes.shape))[0], int(count)
