"""The walk through the layers: split a block of polygons by a stage, go on with its pieces, put the blocks together.

A block holds the values of one stage at its vertices, so memory is bounded by the size of a block and the finished
mesh. Blocks are independent: what they share, the edges between them, is split alike in both, because every decision
about it is exact.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import MemoryLimitError
from regiongrid.kernels.pattern_hash import decision_keys
from regiongrid.kernels.split import cpu as split
from regiongrid.network.on_slice import SliceProgram
from regiongrid.network.program import Maximum
from regiongrid.subdivision.dissolve import dissolve
from regiongrid.subdivision.levels import AliasLevel, CutLevel, Level, PickLevel
from regiongrid.subdivision.mesh import Cut, Functions, Mesh, Signs, split_mesh, square
from regiongrid.subdivision.parts import Part, Piece, merge_parts, pick_faces, spatial_order
from regiongrid.subdivision.rational import Rationals, Resolver
from regiongrid.subdivision.rows import Rows
from regiongrid.subdivision.values import VertexValues

Array = NDArray[np.float64]
Carried = Callable[[NDArray[np.int32] | None], dict[str, Rows]]
"""The live values behind a stage at some vertices of the new mesh, or at all."""

_BLOCK_BYTES = 24 << 20
_FACES_A_BLOCK = 300
_BLOCKS = 8


@dataclass
class Block:
    """Some polygons of the partition by the stages so far, with the values that are alive there."""

    mesh: Mesh
    live: dict[str, Rows]
    levels: tuple[Level, ...]
    owners: NDArray[
        np.int32
    ]  # [lines, 3] stage and decision of each line (-1: the domain's border), and its first name
    roots: NDArray[np.int64]  # the pieces of the block's first edge i are edges roots[i] to roots[i + 1]
    share: float  # of the whole work, for the progress


@dataclass
class Effort:
    """What a subdivision took."""

    rows_of_stage: list[int] = field(default_factory=list)  # vertices at which each stage was evaluated
    signs: int = 0  # signs of decisions at vertices
    undecided: int = 0  # of them left open by float64
    exact_signs: int = 0  # of them settled by exact arithmetic; the others are zero because nothing comes in
    exact_orders: int = 0  # crossings whose place along a line was settled by exact arithmetic
    blocks: int = 0
    evaluate_seconds: float = 0.0  # these four are sums over the threads
    carry_seconds: float = 0.0
    split_seconds: float = 0.0  # exact arithmetic included
    exact_seconds: float = 0.0

    def add(self, **more: float) -> None:
        for name, value in more.items():
            setattr(self, name, getattr(self, name) + value)


class Subdivision:
    """Subdivides the domain of a slice by all stages of a program.

    Parameters
    ----------
    leaf
        Called with every finished block and the values behind the last stage at its vertices; what it returns is in
        ``leaves`` after the run, in the order of the polygons.
    max_bytes
        Of the finished mesh.
    values, rationals
        What evaluates the network at vertices, in float64 and exactly; made of ``folded`` if not given.
    """

    def __init__(
        self,
        folded: SliceProgram,
        *,
        threads: int = 1,
        seed: int = 0,
        block_bytes: int = _BLOCK_BYTES,
        max_bytes: int | None = None,
        progress: Callable[[float], None] | None = None,
        leaf: Callable[[Subdivision, Block], Any] | None = None,
        values: VertexValues | None = None,
        rationals: Rationals | None = None,
    ) -> None:
        self.folded = folded
        self.values = VertexValues(folded, keep_output=leaf is not None) if values is None else values
        self.rationals = Rationals(folded) if rationals is None else rationals
        self.effort = Effort([0] * len(folded.stages))
        self.faces = [0] * len(folded.stages)  # polygons behind each stage
        self._threads = threads
        self._seed = seed
        self._block_bytes = block_bytes
        self._max_bytes = max_bytes
        self._progress = progress
        self._leaf = leaf
        self._lock = threading.Lock()
        self._done = 0.0
        self._bytes = 0
        self._faces = 0
        self._pool: ThreadPoolExecutor | None = None

    def run(self) -> tuple[Part, list[Any]]:
        """The finished mesh, and what ``leaf`` returned for its blocks."""
        start = self._start()
        border = np.full((start.first.size, 3), -1, np.int32)
        border[:, 2] = np.arange(start.first.size)
        block = Block(start, {}, (), border, np.arange(start.first.size + 1), 1.0)
        if self._threads == 1:
            return self._from_stage(block, 0)
        with ThreadPoolExecutor(self._threads) as self._pool:
            try:
                return self._from_stage(block, 0, outermost=True)
            except BaseException:
                self._pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _start(self) -> Mesh:
        """The domain. Its edges are the first lines."""
        return square(self.folded.slice.half_width)

    def _from_stage(self, block: Block, k: int, outermost: bool = False) -> tuple[Part, list[Any]]:
        """Subdivide a block by stage k and all behind it."""
        for stage in range(k, len(self.folded.stages)):
            last = stage + 1 == len(self.folded.stages)
            carried = self._split(block, stage)
            if last and self._leaf is None:
                break
            pieces = [] if last else self._pieces(block, stage + 1)
            if pieces:
                return self._in_pieces(block, stage, carried, pieces, outermost)
            block.live = carried(None)
            self._advance(block, stage)
        return self._finished(block), [] if self._leaf is None else [self._leaf(self, block)]

    def _pieces(self, block: Block, stage: int) -> list[NDArray[np.int64]]:
        """The polygons of the blocks that go on; none where this block does. Threads do not matter."""
        mesh = block.mesh
        by_memory = -(-mesh.vertices * self.values.row_bytes(stage) // self._block_bytes)
        for_threads = min(mesh.faces // _FACES_A_BLOCK, _BLOCKS) if block.share == 1 else 1
        count = min(max(by_memory, for_threads), mesh.faces)
        if count <= 1:
            return []
        return np.array_split(spatial_order(mesh, self.folded.slice.half_width), count)

    def _in_pieces(
        self, block: Block, stage: int, carried: Carried, pieces: list[NDArray[np.int64]], outermost: bool
    ) -> tuple[Part, list[Any]]:
        mesh = block.mesh

        def work(faces: NDArray[np.int64]) -> tuple[Piece, tuple[Part, list[Any]]]:
            piece = pick_faces(mesh, faces)
            own = Block(
                piece.mesh, carried(piece.vertices), (*block.levels, PickLevel(piece.faces)), block.owners,
                np.arange(piece.mesh.first.size + 1), block.share * len(faces) / mesh.faces,
            )  # fmt: skip
            self._advance(own, stage)
            return piece, self._from_stage(own, stage + 1)

        if outermost and self._pool is not None:
            futures = [self._pool.submit(work, faces) for faces in pieces]
            done = [future.result() for future in futures]
        else:
            done = [work(faces) for faces in pieces]
        part = merge_parts(mesh, block.roots, [piece for piece, _ in done], [part for _, (part, _) in done])
        return part, [leaf for _, (_, leaves) in done for leaf in leaves]

    def _advance(self, block: Block, k: int) -> None:
        started = time.perf_counter()
        self.values.advance(k, block.mesh.points, block.mesh.point_error, block.live)
        with self._lock:
            self.effort.add(evaluate_seconds=time.perf_counter() - started)

    def _finished(self, block: Block) -> Part:
        mesh = block.mesh
        part = Part(
            mesh.points, mesh.first, mesh.second, block.owners[mesh.line, :2], mesh.starts, mesh.halves,
            block.owners[mesh.line[mesh.halves >> 1], 2], mesh.hashes, mesh.depths, block.roots,
        )  # fmt: skip
        with self._lock:
            self._done += block.share
            self._bytes += part.nbytes
            self._faces += mesh.faces
            self.effort.blocks += 1
            if self._max_bytes is not None and self._bytes > self._max_bytes:
                raise MemoryLimitError(
                    f"the polygons take more than the {self._max_bytes / 1e9:.3g} GB that may be used: {self._faces} "
                    f"regions after {self._done:.0%} of the work; take a smaller --half-width, or raise --max-memory "
                    "(max_memory)"
                )
            if self._progress is not None:
                self._progress(min(self._done, 1.0))
        return part

    def _split(self, block: Block, k: int) -> Carried:
        """Split a block by stage k, in place."""
        breakpoint = self.folded.stages[k].breakpoint
        if isinstance(breakpoint, Maximum):
            return self._split_by_maximum(block, k)
        rows = self._preactivations(block, k)
        bound = rows.bounds()
        column = np.tile(np.arange(breakpoint.units), len(breakpoint.thresholds))
        keys = decision_keys(self.folded.stages[k].first_decision, breakpoint.decisions, self._seed)
        thresholds = breakpoint.thresholds.reshape(-1)
        fixed = rows.fixed
        zero = None if fixed is None else fixed[:, column] & (rows.data[:, column] == thresholds)
        functions = Functions(
            rows.data,
            column,
            thresholds,
            bound.gain[column],
            bound.offset[column],
            bound.scale,
            bound.rounding,
            keys,
            zero,
        )
        others = self._outliving(block, k)
        cut = self._cut(block, functions, k)
        self._count(block, k)
        return lambda vertices: self._carried(k, cut, functions, rows, others, vertices)

    def _preactivations(self, block: Block, k: int) -> Rows:
        with self._lock:
            self.effort.rows_of_stage[k] += block.mesh.vertices
        return self.values.preactivations(k, block.mesh.points, block.mesh.point_error, block.live)

    def _outliving(self, block: Block, k: int) -> dict[str, Rows]:
        """The values that are read behind the breakpoint of stage k."""
        return {name: rows for name, rows in block.live.items() if self.values.last_use.get(name, -1) > 2 * k}

    def _count(self, block: Block, k: int) -> None:
        with self._lock:
            self.faces[k] += block.mesh.faces

    def _cut(self, block: Block, functions: Functions, k: int, a_unit: int = 1) -> Cut:
        """One step of subdivision of a block, in place; ``a_unit``: decisions of one unit, where they come together."""
        mesh, started = block.mesh, time.perf_counter()
        resolver = Resolver(self.rationals, block.levels, mesh, k)
        signs = self._signs(functions, resolver)
        line_base = len(block.owners)
        new, cut = split_mesh(mesh, functions, signs, k + 1, line_base, resolver)
        level = CutLevel(k, cut.on, cut.parents, line_base, cut.chord_face, cut.chord_decision)
        numbers = np.arange(line_base, line_base + cut.chord_decision.size, dtype=np.int32)
        owners = np.stack([np.full_like(numbers, k), cut.chord_decision // a_unit, numbers], axis=1)
        block.mesh, block.levels = new, (*block.levels, level)
        block.owners = np.concatenate([block.owners, owners])
        block.roots = cut.edge_starts[block.roots].astype(np.int64)
        with self._lock:
            self.effort.add(
                signs=mesh.vertices * functions.column.size, undecided=signs.undecided, exact_signs=resolver.signs,
                exact_orders=resolver.orders, exact_seconds=resolver.seconds,
                split_seconds=time.perf_counter() - started,
            )  # fmt: skip
        return cut

    def _signs(self, functions: Functions, resolver: Resolver) -> Signs:
        """Exact signs of all decisions at all vertices; the values get them too."""
        f = functions
        words = -(-f.column.size // 64)
        positive, negative, unsure = (np.empty((len(f.values), words), np.uint64) for _ in range(3))
        undecided = split.signs(f.values, f.column, f.threshold, *f.band, positive, negative, unsure)
        signs = Signs(positive, negative, int(undecided))
        if undecided and f.clear_known(unsure):
            resolver.settle(f, signs, unsure)
        return signs

    def _carried(
        self,
        k: int,
        cut: Cut,
        functions: Functions,
        rows: Rows,
        others: dict[str, Rows],
        vertices: NDArray[np.int32] | None,
    ) -> dict[str, Rows]:
        """Values behind a piecewise stage."""
        started = time.perf_counter()
        place = cut.places(vertices)
        z = cut.carry(rows, vertices)
        split.put_on_lines(z.data, functions.column, functions.threshold, place, cut.old, *cut.lines)
        live = {name: cut.carry(value, vertices) for name, value in others.items()}
        certain = cut.old if vertices is None else int(np.searchsorted(vertices, cut.old))
        live[self.folded.stages[k].value] = self.values.apply(k, z, certain)
        with self._lock:
            self.effort.add(carry_seconds=time.perf_counter() - started)
        return live

    def _split_by_maximum(self, block: Block, k: int) -> Carried:
        stage, tournament = self.folded.stages[k], self.rationals.tournaments[k]
        breakpoint = tournament.breakpoint
        rows = self._preactivations(block, k)
        others = self._outliving(block, k)
        old_vertices, old_depths, levels = block.mesh.vertices, block.mesh.depths, len(block.levels)
        slots = tournament.seat(rows)
        parents = np.arange(block.mesh.faces, dtype=np.int32)
        first_line = len(block.owners)
        lines = []
        for r in range(tournament.rounds):
            before = block.levels
            cut = self._cut(block, tournament.functions(r, slots), k, tournament.pairs(r))
            opponents = tournament.opponents(cut.chord_decision, _decided(before[levels:], cut.chord_face))
            lines.append(np.concatenate([parents[cut.chord_face][:, None], np.sort(opponents, axis=1)], axis=1))
            parents = parents[cut.parents]
            slots = tournament.play(r, cut.carry(slots, None))
            others = {name: cut.carry(value, None) for name, value in others.items()}
        block.mesh.depths = old_depths[parents]
        on = _decided(block.levels[levels:], np.arange(block.mesh.faces))
        winners = tournament.winners(on, block.mesh.faces)
        keys = decision_keys(stage.first_decision, breakpoint.decisions, self._seed).reshape(breakpoint.windows.shape)
        block.mesh.hashes ^= np.bitwise_xor.reduce(keys[np.arange(breakpoint.units), winners], axis=1)
        if lines:
            self._name_straight(block.mesh, first_line, np.concatenate(lines))
        mesh, faces, vertices, places = dissolve(block.mesh, old_vertices)
        was_cut = np.bincount(parents[faces])[parents[faces]] > 1
        mesh.depths[was_cut] = k + 1
        block.mesh, block.levels = mesh, (*block.levels, PickLevel(faces))
        block.roots = places[block.roots].astype(np.int64)
        self._name_lines(block, k, winners[faces])
        self._count(block, k)
        live = {name: value.take(vertices) for name, value in others.items()}
        live[stage.value] = tournament.result(slots).take(vertices)
        return lambda some: live if some is None else {name: value.take(some) for name, value in live.items()}

    @staticmethod
    def _name_straight(mesh: Mesh, first_line: int, meaning: NDArray[np.int64]) -> None:
        """One number for lines that mean the same: lines of two rounds, or on two sides of a line to be dissolved.

        ``meaning`` [lines, 3]: the polygon before the stage, and the two entries that are equal there.
        """
        _, lead, name = np.unique(meaning, axis=0, return_index=True, return_inverse=True)
        own = mesh.line >= first_line
        mesh.line[own] = first_line + lead[name.reshape(-1)[mesh.line[own] - first_line]]

    @staticmethod
    def _name_lines(block: Block, k: int, winners: NDArray[np.int64]) -> None:
        """Where lines of several windows coincide, an edge goes to one whose winner changes there."""
        mesh = block.mesh
        beside = np.full((mesh.first.size, 2), -1)
        beside[mesh.halves >> 1, mesh.halves & 1] = np.repeat(np.arange(mesh.faces), np.diff(mesh.starts))
        own = np.flatnonzero(block.owners[mesh.line, 0] == k)
        changes = winners[beside[own, 0]] != winners[beside[own, 1]]
        right = changes[np.arange(own.size), block.owners[mesh.line[own], 1]]
        own, unit = own[~right], changes[~right].argmax(axis=1).astype(np.int32)
        if own.size == 0:
            return
        base, lines = len(block.owners), mesh.line[own]
        names = np.stack([np.full_like(unit, k), unit, block.owners[lines, 2]], axis=1)
        block.owners = np.concatenate([block.owners, names])
        block.levels = (*block.levels, AliasLevel(base, lines))
        mesh.line[own] = np.arange(base, base + own.size)


def _decided(levels: Sequence[Level], face: NDArray[Any]) -> list[NDArray[np.uint64]]:
    """The decisions of each of these levels, all of them cuts, for polygons behind the last one."""
    on = []
    for level in reversed(levels):
        assert isinstance(level, CutLevel)
        on.append(level.on[face])
        face = level.parents[face]
    return on[::-1]
