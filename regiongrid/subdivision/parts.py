"""Taking polygons out of a mesh, and putting finished meshes together along the edges that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import RegiongridError
from regiongrid.subdivision.mesh import Mesh

Array = NDArray[np.float64]
Ints = NDArray[np.int32]
_MORTON_BITS = 10


@dataclass
class Part:
    """The finished mesh of a block.

    The block's first vertices keep their numbers; the pieces of its first edge i are the edges ``roots[i]`` to
    ``roots[i + 1]``, in order.
    """

    points: Array  # [V, 2]
    first: Ints  # [E]
    second: Ints  # [E]
    owner: Ints  # [E, 2] stage and decision, -1 for the domain's border
    starts: NDArray[np.int64]  # [F + 1]
    halves: Ints  # [starts[F]]
    lines: Ints  # [starts[F]] the straight line of each side, a number within the polygon
    hashes: NDArray[np.uint64]  # [F]
    depths: Ints  # [F]
    roots: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values())


@dataclass(frozen=True)
class Piece:
    """Some polygons of a mesh as a mesh of their own."""

    mesh: Mesh
    faces: Ints  # rows of the larger mesh, as are the next two
    vertices: Ints
    edges: Ints


def spatial_order(mesh: Mesh, half_width: float) -> NDArray[np.int64]:
    """Polygons ordered so that those near in the list are near in the plane (Morton order of their first corners)."""
    half = mesh.halves[mesh.starts[:-1]]
    corner = np.where(half & 1 == 0, mesh.first[half >> 1], mesh.second[half >> 1])
    middle = (mesh.points[mesh.first[half >> 1]] + mesh.points[mesh.second[half >> 1]] + mesh.points[corner]) / 3
    scaled = np.clip((middle / half_width + 1) / 2 * (1 << _MORTON_BITS), 0, (1 << _MORTON_BITS) - 1).astype(np.int64)
    code = np.zeros(mesh.faces, np.int64)
    for bit in range(_MORTON_BITS):
        code |= (scaled[:, 0] >> bit & 1) << (2 * bit) | (scaled[:, 1] >> bit & 1) << (2 * bit + 1)
    return np.argsort(code, kind="stable")


def pick_faces(mesh: Mesh, faces: NDArray[Any]) -> Piece:
    """The mesh of some polygons; vertices and edges keep their order."""
    counts = mesh.starts[faces + 1] - mesh.starts[faces]
    starts = np.concatenate([[0], np.cumsum(counts)])
    halves = mesh.halves[np.repeat(mesh.starts[faces] - starts[:-1], counts) + np.arange(starts[-1])]
    edges, place = _renumbered(halves >> 1, mesh.first.size)
    ends, local = _renumbered(np.concatenate([mesh.first[edges], mesh.second[edges]]), mesh.vertices)
    taken = Mesh(
        points=mesh.points[ends],
        point_error=mesh.point_error[ends],
        point_lines=mesh.point_lines[ends],
        first=local[mesh.first[edges]],
        second=local[mesh.second[edges]],
        line=mesh.line[edges],
        starts=starts,
        halves=2 * place[halves >> 1] + (halves & 1),
        hashes=mesh.hashes[faces],
        depths=mesh.depths[faces],
    )
    return Piece(taken, faces.astype(np.int32), ends, edges)


def _renumbered(numbers: Ints, size: int) -> tuple[Ints, Ints]:
    """The distinct numbers in ascending order, and a table from number to place."""
    used = np.zeros(size, np.bool_)
    used[numbers] = True
    distinct = np.flatnonzero(used).astype(np.int32)
    place = np.empty(size, np.int32)
    place[distinct] = np.arange(distinct.size, dtype=np.int32)
    return distinct, place


def merge_parts(mesh: Mesh, roots: NDArray[np.int64], pieces: Sequence[Piece], parts: Sequence[Part]) -> Part:
    """Put the finished pieces of ``mesh`` together; ``roots`` are those of the block that ``mesh`` belongs to.

    Raises
    ------
    RegiongridError
        Two pieces cut an edge that they share differently, which exact decisions rule out.
    """
    edges = mesh.first.size
    counts = np.zeros(edges, np.int64)
    for piece, part in zip(pieces, parts):
        chain = np.diff(part.roots)
        known = counts[piece.edges]
        if ((known != 0) & (known != chain)).any():
            raise RegiongridError("internal error: two blocks cut a shared edge differently")
        counts[piece.edges] = chain
    chains = np.concatenate([[0], np.cumsum(counts)])
    vertices = mesh.vertices + int(chains[-1]) - edges
    total_vertices, total_edges = vertices, int(chains[-1])
    vertex_maps, edge_maps = [], []
    for piece, part in zip(pieces, parts):
        chain = np.diff(part.roots)
        on_chain = int(part.roots[-1])
        place = np.arange(on_chain) - np.repeat(part.roots[:-1], chain)
        edge_map = np.empty(part.first.size, np.int32)
        edge_map[:on_chain] = np.repeat(chains[piece.edges], chain) + place
        edge_map[on_chain:] = total_edges + np.arange(part.first.size - on_chain)
        total_edges += part.first.size - on_chain
        vertex_map = np.full(len(part.points), -1, np.int32)
        vertex_map[: piece.mesh.vertices] = piece.vertices
        inner = place + 1 < np.repeat(chain, chain)  # pieces that end inside their edge
        vertex_map[part.second[:on_chain][inner]] = (
            mesh.vertices + np.repeat(chains[piece.edges] - piece.edges, chain) + place
        )[inner]
        own = np.flatnonzero(vertex_map < 0)
        vertex_map[own] = total_vertices + np.arange(own.size)
        total_vertices += own.size
        vertex_maps.append(vertex_map)
        edge_maps.append(edge_map)
    points = np.empty((total_vertices, 2))
    first, second = np.empty(total_edges, np.int32), np.empty(total_edges, np.int32)
    owner = np.empty((total_edges, 2), np.int32)
    # Of a shared vertex the coordinates in the first block count: written last.
    for part, vertex_map, edge_map in reversed(list(zip(parts, vertex_maps, edge_maps))):
        points[vertex_map] = part.points
        first[edge_map], second[edge_map] = vertex_map[part.first], vertex_map[part.second]
        owner[edge_map] = part.owner
    sizes = np.concatenate([np.diff(part.starts) for part in parts])
    return Part(
        points=points,
        first=first,
        second=second,
        owner=owner,
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        halves=np.concatenate(
            [2 * edge_map[part.halves >> 1] + (part.halves & 1) for part, edge_map in zip(parts, edge_maps)]
        ),
        lines=np.concatenate([part.lines for part in parts]),
        hashes=np.concatenate([part.hashes for part in parts]),
        depths=np.concatenate([part.depths for part in parts]),
        roots=chains[roots],
    )
