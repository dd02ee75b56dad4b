"""Joining polygons of equal hash: what the early rounds of a maximum cut too much."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regiongrid.kernels.split import cpu as split
from regiongrid.subdivision.mesh import Mesh


def dissolve(mesh: Mesh, old_vertices: int) -> tuple[Mesh, NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Join polygons that share an edge and the hash, and edges in a straight line that nothing ends at any more.

    Regions are convex, so polygons of equal hash make up one convex polygon. Vertices below ``old_vertices`` stay.

    Returns
    -------
    mesh
        The joined mesh.
    faces : [F']
        One of the polygons that each new one is made of.
    vertices : [V']
        The old number of each vertex.
    places : [E + 1]
        Number of new edges before each old one.
    """
    _, face, group = np.unique(mesh.hashes, return_index=True, return_inverse=True)
    # New polygons in the order of their first old ones.
    order = np.argsort(face)
    rank = np.empty(face.size, np.int64)
    rank[order] = np.arange(face.size)
    group, face = rank[group], face[order]
    groups = np.repeat(group, np.diff(mesh.starts))
    edge, back = mesh.halves >> 1, mesh.halves & 1
    sides = np.full((mesh.first.size, 2), -1)
    sides[edge, back] = groups
    inner = sides[:, 0] == sides[:, 1]

    kept = ~inner
    degree = np.bincount(mesh.first[kept], minlength=mesh.vertices)
    degree += np.bincount(mesh.second[kept], minlength=mesh.vertices)
    straight = np.zeros(mesh.first.size, np.bool_)  # goes on from the edge before it
    straight[1:] = (
        kept[1:] & kept[:-1]
        & (mesh.line[1:] == mesh.line[:-1]) & (mesh.first[1:] == mesh.second[:-1])
        & (degree[mesh.first[1:]] == 2) & (mesh.first[1:] >= old_vertices)
    )  # fmt: skip
    leads = kept & ~straight
    places = np.concatenate([[0], np.cumsum(leads)])
    last = np.flatnonzero(kept & ~np.append(straight[1:], False))  # of each run of edges
    first, second = mesh.first[leads], mesh.second[last]
    used = np.zeros(mesh.vertices, np.bool_)
    used[:old_vertices] = True
    used[first], used[second] = True, True
    vertices = np.flatnonzero(used).astype(np.int32)
    place = np.empty(mesh.vertices, np.int32)
    place[vertices] = np.arange(vertices.size)

    stays = leads[edge]
    halves = (2 * places[edge[stays]] + back[stays]).astype(np.int32)
    by_group = np.argsort(groups[stays], kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups[stays], minlength=face.size))])
    halves = halves[by_group]
    first, second = place[first], place[second]
    split.order_loops(first, second, starts, halves)
    joined = Mesh(
        points=mesh.points[vertices],
        point_error=mesh.point_error[vertices],
        point_lines=mesh.point_lines[vertices],
        first=first,
        second=second,
        line=mesh.line[leads],
        starts=starts,
        halves=halves,
        hashes=mesh.hashes[face],
        depths=mesh.depths[face],
    )
    return joined, face.astype(np.int32), vertices, places
