"""A mesh of convex polygons over shared edges and vertices, and one step of its subdivision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import RegiongridError
from regiongrid.kernels.pattern_hash import START
from regiongrid.kernels.split import cpu as split
from regiongrid.subdivision.rows import Rows

if TYPE_CHECKING:
    from regiongrid.subdivision.rational import Resolver

Array = NDArray[np.float64]
Ints = NDArray[np.int32]
Words = NDArray[np.uint64]

BORDER_LINES = 4
"""Lines 0 to 3 are the domain's border: v = -h, u = h, v = h, u = -h."""


@dataclass
class Mesh:
    """F polygons, E edges, V vertices.

    Polygon k lies left of its half-edges ``halves[starts[k] : starts[k + 1]]``, counterclockwise; half-edge 2 e runs
    from ``first[e]`` to ``second[e]``, 2 e + 1 back.
    """

    points: Array  # [V, 2]
    point_error: Array  # [V] distance to the true crossing of the two lines, at most
    point_lines: Ints  # [V, 2] the two lines that cross there
    first: Ints  # [E]
    second: Ints  # [E]
    line: Ints  # [E] the line that the edge lies on
    starts: NDArray[np.int64]  # [F + 1]
    halves: Ints  # [starts[F]]
    hashes: Words  # [F]
    depths: Ints  # [F] number, from 1, of the stage that last cut the polygon

    @property
    def faces(self) -> int:
        return self.hashes.size

    @property
    def vertices(self) -> int:
        return len(self.points)


def square(half_width: float) -> Mesh:
    """The domain itself, one polygon."""
    h = half_width
    corner = np.arange(4, dtype=np.int32)
    return Mesh(
        points=np.array([[-h, -h], [h, -h], [h, h], [-h, h]]),
        point_error=np.zeros(4),
        point_lines=np.stack([(corner + 3) % 4, corner], axis=1).astype(np.int32),
        first=corner,
        second=((corner + 1) % 4).astype(np.int32),
        line=corner.copy(),
        starts=np.array([0, 4]),
        halves=2 * corner,
        hashes=np.array([START]),
        depths=np.zeros(1, np.int32),
    )


@dataclass
class Functions:
    """What a mesh is split by: decision d is on where values[:, column[d]] > threshold[d].

    The error of that difference at vertex v is at most gain[d] * scale[v] + offset[d]; see `Bound` for the rounding.
    """

    values: Array  # [V, n]
    column: NDArray[np.int64]  # [D]
    threshold: Array  # [D]
    gain: Array  # [D]
    offset: Array  # [D]
    scale: Array  # [V]
    rounding: Array  # [V]
    keys: Words  # [D] hash key of the decision
    zero: NDArray[np.bool_] | None = None  # [V, D] where the difference is zero for certain

    def clear_known(self, unsure: Words) -> int:
        """Take the signs that are zero for certain out of ``unsure``; how many stay."""
        open_rows = np.flatnonzero(unsure.any(axis=1))
        if self.zero is not None:
            known = np.zeros((open_rows.size, 8 * unsure.shape[1]), np.uint8)
            packed = np.packbits(self.zero[open_rows], axis=1, bitorder="little")
            known[:, : packed.shape[1]] = packed
            unsure[open_rows] &= ~known.view(np.uint64)
        return int(np.unpackbits(unsure[open_rows].view(np.uint8)).sum())

    @property
    def band(self) -> tuple[Array, Array, Array]:
        return self.gain, self.offset, self.scale


@dataclass
class Signs:
    """Exact signs of every decision at every vertex, as bits; neither set: zero."""

    positive: Words  # [V, W]
    negative: Words  # [V, W]
    undecided: int  # how many of them float64 left open


@dataclass
class Cut:
    """The new vertices of a step: means of old ones, and the lines that meet there."""

    old: int  # vertices before the step
    sources: Ints  # [N, 4]
    weights: Array  # [N, 4]
    drift: Array  # [N, 3] how far they may be off; see `carry`
    edge_starts: Ints  # [E + 1] first piece of every old edge
    on: Words  # [F', W] decisions that are on in every new polygon
    parents: Ints  # [F'] old polygon
    chord_face: Ints  # [C] old polygon of each new line
    chord_decision: Ints  # [C]
    lines: tuple[Any, ...]  # what `put_on_lines` needs

    def places(self, vertices: Ints | None) -> Ints:
        """Row of every vertex among ``vertices`` (ascending; None: all of them), -1 for the others."""
        total = self.old + len(self.drift)
        if vertices is None:
            return np.arange(total, dtype=np.int32)
        place = np.full(total, -1, np.int32)
        place[vertices] = np.arange(vertices.size)
        return place

    def carry(self, rows: Rows, vertices: Ints | None) -> Rows:
        """A value at vertices of the new mesh from the one at the old vertices."""
        if vertices is None:
            old, chosen = np.arange(self.old), np.arange(len(self.drift))
        else:
            split_at = int(np.searchsorted(vertices, self.old))
            old, chosen = vertices[:split_at].astype(np.int64), vertices[split_at:].astype(np.int64) - self.old
        sources, weights, drift = self.sources[chosen], self.weights[chosen], self.drift[chosen]
        kept = rows.error[old]
        total = kept.size + len(drift)
        data, error = np.empty((total, rows.data.shape[1])), np.empty(total)
        np.take(rows.data, old, axis=0, out=data[: kept.size])
        error[: kept.size] = kept
        split.carry(rows.data, rows.error, sources, weights, drift, split.TINY, data[kept.size :], error[kept.size :])
        return Rows(data, error, fixed=self._carry_fixed(rows, old, sources, weights))

    @staticmethod
    def _carry_fixed(rows: Rows, old: Any, sources: Ints, weights: Array) -> NDArray[np.bool_] | None:
        """A mean of equal, exact entries is that entry."""
        if rows.fixed is None:
            return None
        lead = rows.data[sources[:, 0]]
        fixed = rows.fixed[sources[:, 0]]
        for k in range(1, 4):
            matters = weights[:, k, None] != 0
            fixed &= ~matters | (rows.fixed[sources[:, k]] & (rows.data[sources[:, k]] == lead))
        return np.concatenate([rows.fixed[old], fixed])


def survey(mesh: Mesh, signs: Signs) -> tuple[Ints, Words, Words, Ints]:
    """Crossings of every edge; decisions that are on all over a polygon, that cut it, and how many cut it."""
    words = signs.positive.shape[1]
    crossings, cuts = np.empty(mesh.first.size, np.int32), np.empty(mesh.faces, np.int32)
    on, cut = np.empty((mesh.faces, words), np.uint64), np.empty((mesh.faces, words), np.uint64)
    split.survey(
        mesh.first, mesh.second, mesh.starts, mesh.halves, signs.positive, signs.negative, crossings, on, cut, cuts
    )
    return crossings, on, cut, cuts


def split_mesh(
    mesh: Mesh, functions: Functions, signs: Signs, depth: int, line_base: int, resolve: Resolver
) -> tuple[Mesh, Cut]:
    """Split every polygon along the zero lines of all functions that change sign in it.

    ``resolve`` (a `regiongrid.subdivision.rational.Resolver`) places the crossings that float64 cannot.
    """
    f, old = functions, mesh.vertices
    crossings, on, cut, cuts = survey(mesh, signs)
    offsets = _starts(crossings)
    total = int(offsets[-1])
    decision, t, spread = np.empty(total, np.int32), np.empty(total), np.empty(total)
    tied, loose = np.zeros(total, np.bool_), np.zeros(total, np.bool_)
    close = split.edge_crossings(
        mesh.points, mesh.first, mesh.second, signs.positive, signs.negative, f.values, f.column, f.threshold, *f.band,
        f.rounding, resolve.distance, offsets, decision, t, spread, tied, loose,
    )  # fmt: skip
    chord_starts = _starts(cuts)
    equal = np.zeros(total, np.bool_)
    if close:
        equal = resolve.on_edges(offsets, decision, t, spread, tied, loose)
    edge_vertices = total - int(np.count_nonzero(equal))

    chord_face = np.repeat(np.arange(mesh.faces, dtype=np.int32), cuts)
    edges, chords = mesh.first.size, int(chord_starts[-1])
    pieces = edges + edge_vertices
    edge_starts = np.empty(edges + 1, np.int32)
    ranks = np.empty(total, np.int32)
    # Points where chords cross are not counted yet: their rows are appended below.
    sources, weights = np.empty((edge_vertices, 4), np.int32), np.empty((edge_vertices, 4))
    drift, point_lines = np.empty((edge_vertices, 3)), np.empty((edge_vertices, 2), np.int32)
    first, second, line = (np.empty(pieces, np.int32) for _ in range(3))
    split.cut_edges(
        mesh.first, mesh.second, mesh.line, offsets, t, spread, equal, old,
        sources, weights, drift, first, second, line, point_lines, edge_starts, ranks,
    )  # fmt: skip

    corners = np.diff(mesh.starts)
    ring_sizes = np.zeros(mesh.faces, np.int64)
    is_cut = cuts > 0
    extra = np.diff(edge_starts) - 1  # new vertices on each edge
    along = np.concatenate([[0], np.cumsum(extra[mesh.halves >> 1])])
    ring_sizes[is_cut] = (corners + np.diff(along[mesh.starts]))[is_cut]
    ring_starts = _starts(ring_sizes)
    ring, ring_halves = np.empty(ring_starts[-1], np.int32), np.empty(ring_starts[-1], np.int32)
    chord_decision, chord_from, chord_to, chord_twin, chord_crossings = (np.empty(chords, np.int32) for _ in range(5))
    failed = split.chords(
        mesh.first, mesh.second, mesh.starts, mesh.halves, signs.positive, signs.negative, cut, cuts, offsets, decision,
        ranks, edge_starts, old, line_base, chord_starts, ring_starts, point_lines,
        ring, ring_halves, chord_decision, chord_from, chord_to, chord_twin, chord_crossings,
    )  # fmt: skip
    if failed >= 0:
        raise RegiongridError(f"internal error: a line does not cross polygon {failed} at two points")

    entry_starts = _starts(chord_crossings)
    entries = int(entry_starts[-1])
    pair_starts = entry_starts[chord_starts] // 2
    other, pair = np.empty(entries, np.int32), np.empty(entries, np.int32)
    t2, spread2, tied2, loose2 = (np.zeros(entries, dtype) for dtype in (float, float, bool, bool))
    close = split.cross(
        mesh.faces, mesh.points, f.values, f.column, f.threshold, *f.band, f.rounding, resolve.distance,
        sources, weights, drift,
        ring, ring_starts, chord_starts, chord_decision, chord_from, chord_to, chord_twin,
        entry_starts, pair_starts, other, t2, spread2, np.empty(chords + 1, np.int64), pair, tied2, loose2,
    )  # fmt: skip
    node = np.arange(entries // 2, dtype=np.int32)
    if close:
        node = resolve.on_chords(
            point_lines, ring, ring_starts, chord_face, chord_decision, chord_from, chord_to,
            entry_starts, other, pair, t2, spread2, tied2, loose2,
        )  # fmt: skip
    segments = entry_starts[1:] - entry_starts[:-1] + 1
    if close:
        same = node[pair[1:]] == node[pair[:-1]]
        same &= np.repeat(np.arange(chords), chord_crossings)[1:] == np.repeat(np.arange(chords), chord_crossings)[:-1]
        merged = np.concatenate([[0, 0], np.cumsum(same)])
        segments -= merged[entry_starts[1:]] - merged[np.minimum(entry_starts[:-1] + 1, entry_starts[1:])]
    segments[chord_twin >= 0] = 0
    segment_starts = _starts(segments)
    nodes = int(node.max()) + 1 if entries else 0

    per_face = np.diff(segment_starts[chord_starts])
    face_nodes = np.diff(pair_starts)
    if close:
        face_of_pair = np.repeat(np.arange(mesh.faces), face_nodes)
        face_nodes = np.bincount(face_of_pair[np.unique(node, return_index=True)[1]], minlength=mesh.faces)
    face_starts = _starts(1 + per_face - face_nodes)
    half_starts = _starts(np.where(is_cut, ring_sizes + 2 * per_face, corners))
    faces, new_edges, new = int(face_starts[-1]), pieces + int(segment_starts[-1]), edge_vertices + nodes
    first, second, line = (_grown(column, new_edges) for column in (first, second, line))
    sources, weights, drift, point_lines = (_grown(column, new) for column in (sources, weights, drift, point_lines))
    sources[edge_vertices:] = -1
    starts = np.zeros(faces + 1, np.int64)
    halves = np.empty(int(half_starts[-1]), np.int32)
    hashes, depths = np.empty(faces, np.uint64), np.empty(faces, np.int32)
    new_on, parents = np.empty((faces, on.shape[1]), np.uint64), np.empty(faces, np.int32)
    failed = split.trace(
        mesh.first, mesh.second, mesh.starts, mesh.halves, signs.positive, signs.negative, on, cuts, edge_starts, old,
        f.keys, depth, line_base, ring, ring_halves, ring_starts, chord_starts, chord_decision, chord_from, chord_to,
        chord_twin, entry_starts, pair_starts, other, pair, t2, spread2, node, sources, weights, drift, edge_vertices,
        segment_starts, face_starts, half_starts, mesh.hashes, mesh.depths,
        first, second, line, point_lines, starts, halves, hashes, depths, new_on, parents,
    )  # fmt: skip
    if failed >= 0:
        raise RegiongridError(f"internal error: the pieces of polygon {failed} do not add up")

    points, error = np.empty((new, 2)), np.empty(new)
    split.carry(mesh.points, mesh.point_error, sources, weights, drift, 0.0, points, error)
    cut_ = Cut(
        old, sources, weights, drift, edge_starts, new_on, parents,
        chord_face, chord_decision,
        (offsets, decision, ranks, edge_starts, chord_starts, chord_decision, chord_twin, entry_starts, pair, node,
         edge_vertices),
    )  # fmt: skip
    split_ = Mesh(
        np.concatenate([mesh.points, points]), np.concatenate([mesh.point_error, error]),
        np.concatenate([mesh.point_lines, point_lines]), first, second, line, starts, halves, hashes, depths,
    )  # fmt: skip
    return split_, cut_


def _starts(counts: NDArray[Any]) -> NDArray[np.int64]:
    starts = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    out = np.empty((size, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
