"""Independent ways to the regions of a slice, for the tests of the exact engine.

`fraction_regions` subdivides in rational arithmetic: slow, without any rounding, for small networks. It defines the
truth: the float64 coefficients of a folded `SliceProgram` are taken as exact numbers. `regioncam_partition` asks the
package regioncam (float32), for generic networks only. `degenerate_networks` and `generic_network` make the cases.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
from networks import ConvNet, mlp, random_slice
from torch import Tensor, nn

import regiongrid as rg
from regiongrid.kernels.pattern_hash import START, decision_keys
from regiongrid.network.on_slice import AffineInUV, FoldedSegment, SliceProgram, restrict
from regiongrid.network.program import INPUT, Breakpoint, Maximum, Piecewise, Program

Array = np.ndarray[Any, Any]
Point = tuple[int, int, int]  # (U, V, W) with W > 0 and no common divisor: the point (U / W, V / W)
Line = tuple[int, int, int]  # (C, A, B): the function C + A u + B v, times a positive number


@dataclass(frozen=True)
class Dyadic:
    """An array of numbers ``integers / 2**shift``, closed under sums and products."""

    integers: Array  # object dtype, Python integers
    shift: int

    @classmethod
    def of(cls, values: Array | Tensor) -> Dyadic:
        """The exact value of every float64."""
        array = np.asarray(values, dtype=np.float64)
        if not np.isfinite(array).all():
            raise ValueError("only finite numbers have an exact value")
        mantissas, exponents = np.frexp(array)
        exponents = np.where(mantissas == 0, 0, exponents.astype(np.int64) - 53)
        shift = max(0, -int(exponents.min(initial=0)))
        integers = np.empty(array.shape, dtype=object)
        for index, mantissa in np.ndenumerate(mantissas):
            integers[index] = int(mantissa * 2.0**53) << (int(exponents[index]) + shift)
        return cls(integers, shift)

    def __add__(self, other: Dyadic) -> Dyadic:
        shift = max(self.shift, other.shift)
        return Dyadic(
            self.integers * (1 << (shift - self.shift)) + other.integers * (1 << (shift - other.shift)), shift
        )

    def __neg__(self) -> Dyadic:
        return Dyadic(-self.integers, self.shift)

    def __sub__(self, other: Dyadic) -> Dyadic:
        return self + -other

    def __mul__(self, other: Dyadic) -> Dyadic:
        return Dyadic(self.integers * other.integers, self.shift + other.shift)

    def __getitem__(self, index: Any) -> Dyadic:
        return Dyadic(self.integers[index], self.shift)

    @classmethod
    def stack(cls, parts: Sequence[Dyadic], axis: int = 0) -> Dyadic:
        shift = max(part.shift for part in parts)
        return cls(np.concatenate([p.integers * (1 << (shift - p.shift)) for p in parts], axis=axis), shift)

    def fractions(self) -> list[Any]:
        """The numbers as (nested lists of) fractions."""
        as_fraction = np.frompyfunc(lambda integer: Fraction(integer, 1 << self.shift), 1, 1)
        nested: list[Any] = as_fraction(self.integers).tolist()
        return nested


@dataclass(frozen=True)
class DyadicMatrix:
    """The entries of a matrix that are not zero, row by row."""

    rows: int
    filled: Array  # rows that have an entry
    starts: Array  # first entry of each of them
    columns: Array  # [entries]
    entries: Dyadic  # [entries]

    @classmethod
    def of(cls, matrix: Tensor) -> DyadicMatrix:
        array = matrix.numpy()
        at, columns = np.nonzero(array)
        filled, starts = np.unique(at, return_index=True)
        return cls(len(array), filled, starts, columns, Dyadic.of(array[at, columns]))

    def __matmul__(self, value: Dyadic) -> Dyadic:
        image = np.zeros((self.rows, value.integers.shape[1]), dtype=object)
        if len(self.filled):
            products = self.entries.integers[:, None] * value.integers[self.columns]
            image[self.filled] = np.add.reduceat(products, self.starts, axis=0)
        return Dyadic(image, self.entries.shift + value.shift)


def _point(u: int, v: int, w: int) -> Point:
    divisor = math.gcd(u, v, w)
    return u // divisor, v // divisor, w // divisor


def _at(line: Line, point: Point) -> int:
    """The line's function at a point, times a positive number."""
    return line[0] * point[2] + line[1] * point[0] + line[2] * point[1]


Corners = tuple[Point, ...]


def split(corners: Corners, line: Line) -> tuple[Corners | None, Corners | None]:
    """The parts of a convex polygon where the line's function is > 0 and where it is <= 0; None if it has no area."""
    values = [_at(line, corner) for corner in corners]
    if max(values) <= 0:
        return None, corners
    if min(values) >= 0:
        return corners, None
    on, off = [], []
    for (p, f), (q, g) in itertools.pairwise([*zip(corners, values), (corners[0], values[0])]):
        if f >= 0:
            on.append(p)
        if f <= 0:
            off.append(p)
        if f * g < 0:
            f, g = abs(f), abs(g)
            cut = _point(p[0] * g + q[0] * f, p[1] * g + q[1] * f, p[2] * g + q[2] * f)
            on.append(cut)
            off.append(cut)
    return tuple(on), tuple(off)


def double_area(corners: Corners) -> Fraction:
    """Twice the signed area (shoelace formula), positive counterclockwise."""
    return sum(
        (Fraction(p[0] * q[1] - q[0] * p[1], p[2] * q[2]) for p, q in itertools.pairwise([*corners, corners[0]])),
        Fraction(0),
    )


@dataclass(frozen=True)
class Region:
    """An activation region on the slice, known exactly."""

    corners: Corners  # counterclockwise, no three on a line
    decisions: tuple[tuple[int, ...], ...]  # one tuple a stage: the piece of every unit, or the winner of every window
    hash: int  # pattern hash
    prefixes: tuple[int, ...]  # pattern hash when only stages 0..k count
    depth: int  # number, from 1, of the last stage that cut a polygon this region came from; 0: none
    values: Mapping[str, Dyadic] = field(repr=False)  # live values as affine maps, [n, 3] (constant, u, v)

    @property
    def polygon(self) -> list[tuple[Fraction, Fraction]]:
        return [(Fraction(u, w), Fraction(v, w)) for u, v, w in self.corners]

    @property
    def area(self) -> Fraction:
        return double_area(self.corners) / 2

    @property
    def perimeter(self) -> float:
        return sum(distance(p, q) for p, q in itertools.pairwise([*self.corners, self.corners[0]]))

    def on_border(self, half_width: float) -> tuple[bool, bool]:
        """Whether a corner, and whether a whole side, lies on the border of the domain."""
        h = Fraction(half_width)
        sides = [[abs(c) == h and (i, c) for i, c in enumerate(corner)] for corner in self.polygon]
        corner = any(any(s) for s in sides)
        side = any(a and a in q for p, q in itertools.pairwise([*sides, sides[0]]) for a in p)
        return corner, side

    @property
    def middle(self) -> tuple[Fraction, Fraction]:
        """Mean of the corners, an interior point."""
        polygon = self.polygon
        return tuple(sum(c, Fraction(0)) / len(polygon) for c in zip(*polygon))  # type: ignore[return-value]

    def affine_map(self, name: str) -> list[list[Fraction]]:
        """(constant, u, v) of every entry of a value on this region, [n, 3]."""
        return self.values[name].fractions()


def distance(p: Point, q: Point) -> float:
    """Distance of two points, rounded once."""
    du, dv = (Fraction(p[i], p[2]) - Fraction(q[i], q[2]) for i in (0, 1))
    square = du * du + dv * dv
    # A square root of integers keeps its digits where the float of the square would underflow.
    shift = max(0, square.denominator.bit_length() - square.numerator.bit_length() + 128) // 2 * 2
    return math.ldexp(math.isqrt((square.numerator << shift) // square.denominator), -shift // 2)


def fraction_regions(program: SliceProgram, half_width: float | None = None, seed: int = 0) -> list[Region]:
    """All activation regions on |u|, |v| <= half_width, in rational arithmetic.

    Parameters
    ----------
    program
        The folded program; its float64 numbers are taken as exact.
    half_width
        Half the side of the square, the slice's own if not given.
    seed
        Seed of the hash keys.
    """
    h = Fraction(program.slice.half_width if half_width is None else half_width)
    size, w = h.numerator, h.denominator
    corners = tuple(_point(u * size, v * size, w) for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    from_uv = {name: _map_of(value) for name, value in program.uv_values.items()}
    regions = [Region(corners, (), int(START), (), 0, from_uv)]
    for k, stage in enumerate(program.stages):
        keys = decision_keys(stage.first_decision, stage.breakpoint.decisions, seed)
        folded = _ExactSegment.of(program, k)
        done = []
        for region in regions:
            z = Dyadic.stack([region.values[name] for name in stage.preactivations])
            pieces = list(_cut(region.corners, stage.breakpoint, z, keys))
            for piece in pieces:
                key = region.hash ^ piece.key
                done.append(
                    Region(
                        piece.corners,
                        (*region.decisions, piece.decisions),
                        key,
                        (*region.prefixes, key),
                        k + 1 if len(pieces) > 1 else region.depth,
                        folded.extend({**region.values, stage.value: piece.value}),
                    )
                )
        regions = done
    return regions


def fraction_pattern(program: SliceProgram, u: Fraction, v: Fraction) -> tuple[tuple[int, ...], ...]:
    """Decisions at one point, as in `Region.decisions`, from the plain values of the units there."""
    values = {name: _value_at(value, u, v) for name, value in program.uv_values.items()}
    decisions = []
    for k, stage in enumerate(program.stages):
        z = [entry for name in stage.preactivations for entry in values[name]]
        bend = stage.breakpoint
        if isinstance(bend, Piecewise):
            chosen = [sum(entry > Fraction(t) for t in thresholds) for entry, thresholds in zip(z, bend.thresholds.T)]
            values[stage.value] = [
                Fraction(bend.slopes[p, j]) * z[j] + Fraction(bend.intercepts[p, j]) for j, p in enumerate(chosen)
            ]
        else:
            windows = [[bend.sign * z[i] if i >= 0 else None for i in window] for window in bend.windows.tolist()]
            chosen = [w.index(max(entry for entry in w if entry is not None)) for w in windows]
            values[stage.value] = [z[bend.windows[j, e]] for j, e in enumerate(chosen)]
        decisions.append(tuple(int(c) for c in chosen))
        matrices, from_uv = dense_segment(program, k)
        for output in program.segments[k].outputs:
            total = _value_at(from_uv[output], u, v)
            for name in program.segments[k].inputs:
                for i, j in np.argwhere(matrices[output, name].numpy()).tolist():
                    total[i] += Fraction(matrices[output, name][i, j].item()) * values[name][j]
            values[output] = total
    return tuple(decisions)


def _value_at(value: AffineInUV, u: Fraction, v: Fraction) -> list[Fraction]:
    return [
        Fraction(c) + Fraction(a) * u + Fraction(b) * v
        for c, (a, b) in zip(value.constant.tolist(), value.tangents.tolist())
    ]


def cut_by_output(regions: Sequence[Region], output: str, bend: Breakpoint) -> list[Region]:
    """The regions cut once more, by a breakpoint on the output: a maximum of all entries for the decision boundary."""
    keys = np.zeros(bend.decisions, dtype=np.uint64)
    return [
        dataclasses.replace(region, corners=piece.corners, decisions=(*region.decisions, piece.decisions))
        for region in regions
        for piece in _cut(region.corners, bend, region.values[output], keys)
    ]


@dataclass(frozen=True)
class _Piece:
    """Part of a polygon on which all units of a stage are decided."""

    corners: Corners
    decisions: tuple[int, ...]
    key: int
    value: Dyadic


def _lines(z: Dyadic) -> list[Line]:
    return [(int(c), int(a), int(b)) for c, a, b in z.integers]


def _cut(corners: Corners, bend: Breakpoint, z: Dyadic, keys: Array) -> Iterator[_Piece]:
    if isinstance(bend, Piecewise):
        return _cut_piecewise(corners, bend, z, keys)
    return _cut_maximum(corners, bend, z, keys)


def _cut_piecewise(corners: Corners, bend: Piecewise, z: Dyadic, keys: Array) -> Iterator[_Piece]:
    n = bend.units
    keys = keys.reshape(bend.thresholds.shape)
    lines = []
    for thresholds in bend.thresholds:
        offset = np.zeros((n, 3))
        offset[:, 0] = thresholds
        lines.append(_lines(z - Dyadic.of(offset)))
    pieces: list[tuple[Corners, tuple[int, ...], int]] = [(corners, (), 0)]
    for j in range(n):
        for k in range(len(lines)):
            parts = []
            for polygon, decisions, key in pieces:
                on, off = split(polygon, lines[k][j])
                if on is not None:
                    parts.append((on, (*decisions, 1), key ^ int(keys[k, j])))
                if off is not None:
                    parts.append((off, (*decisions, 0), key))
            pieces = parts
    slopes, intercepts = Dyadic.of(bend.slopes), Dyadic.of(bend.intercepts)
    for polygon, decisions, key in pieces:
        piece = np.array(decisions).reshape(n, -1).sum(axis=1)
        column = np.arange(n)
        scaled = z * slopes[piece, column][:, None]
        offset = np.zeros((n, 3), dtype=object)
        offset[:, 0] = intercepts.integers[piece, column]
        yield _Piece(polygon, tuple(piece.tolist()), key, scaled + Dyadic(offset, intercepts.shift))


def _cut_maximum(corners: Corners, bend: Maximum, z: Dyadic, keys: Array) -> Iterator[_Piece]:
    keys = keys.reshape(bend.windows.shape)
    signed = _lines(z if bend.sign == 1 else -z)
    pieces: list[tuple[Corners, tuple[int, ...], int]] = [(corners, (), 0)]
    for j, window in enumerate(bend.windows.tolist()):
        pieces = [
            (part, (*decisions, e), key ^ int(keys[j, e]))
            for polygon, decisions, key in pieces
            for e, part in _upper_envelope(polygon, window, signed)
        ]
    for polygon, decisions, key in pieces:
        chosen = bend.windows[np.arange(bend.units), decisions]
        yield _Piece(polygon, decisions, key, z[chosen])


def _upper_envelope(corners: Corners, window: list[int], lines: list[Line]) -> Iterator[tuple[int, Corners]]:
    """The parts of a polygon where entry e is larger than every earlier entry and at least as large as every later."""
    for e, index in enumerate(window):
        part: Corners | None = corners if index >= 0 else None
        for f, other in enumerate(window):
            if part is None or f == e or other < 0:
                continue
            earlier = f < e
            here, there = lines[index], lines[other]
            sign = 1 if earlier else -1
            difference = tuple(sign * (a - b) for a, b in zip(here, there))
            part = split(part, difference)[0 if earlier else 1]  # type: ignore[arg-type]
        if part is not None:
            yield e, part


@dataclass(frozen=True)
class _ExactSegment:
    """The affine maps behind a stage with exact coefficients, and what is read after them."""

    folded: FoldedSegment
    matrices: Mapping[tuple[str, str], DyadicMatrix]
    from_uv: Mapping[str, Dyadic]
    kept: frozenset[str]

    @classmethod
    def of(cls, program: SliceProgram, stage: int) -> _ExactSegment:
        folded = program.segments[stage]
        matrices, from_uv = dense_segment(program, stage)
        kept = {name for name, last in program.last_use.items() if last > 2 * stage + 1}
        return cls(
            folded,
            {key: DyadicMatrix.of(matrix) for key, matrix in matrices.items()},
            {name: _map_of(value) for name, value in from_uv.items()},
            frozenset(kept | {program.program.output or ""}),
        )

    def extend(self, values: Mapping[str, Dyadic]) -> dict[str, Dyadic]:
        """The values after this segment, without those that nothing reads any more."""
        made = {}
        for output in self.folded.outputs:
            made[output] = self.from_uv[output]
            for name in self.folded.inputs:
                made[output] = made[output] + self.matrices[output, name] @ values[name]
        return {name: value for name, value in {**values, **made}.items() if name in self.kept}


def _map_of(value: AffineInUV) -> Dyadic:
    return Dyadic.of(torch.cat([value.constant[:, None], value.tangents], dim=1))


def dense_segment(
    program: SliceProgram, stage: int
) -> tuple[Mapping[tuple[str, str], Tensor], Mapping[str, AffineInUV]]:
    """Matrices and (u, v) parts behind a stage, by images of basis vectors where the program keeps its operators."""
    folded = program.segments[stage]
    if folded.graph is None:
        return folded.matrices, folded.from_uv
    graph, constants = folded.graph, program.program.constants
    zeros = [torch.zeros(program.program.shapes[name], dtype=torch.float64) for name in graph.inputs]
    bias = graph.run(constants, zeros)
    matrices = {}
    for position, name in enumerate(folded.inputs):
        columns = []
        for i in range(program.sizes[name]):
            basis = list(zeros)
            basis[position] = torch.zeros_like(zeros[position])
            basis[position].view(-1)[i] = 1
            columns.append([out - b for out, b in zip(graph.run(constants, basis), bias)])
        for output, images in zip(folded.outputs, zip(*columns)):
            matrices[output, name] = torch.stack([image.reshape(-1) for image in images], dim=1)
    from_uv = {
        output: AffineInUV(folded.from_uv[output].constant + b.reshape(-1), folded.from_uv[output].tangents)
        for output, b in zip(folded.outputs, bias)
    }
    return matrices, from_uv


@dataclass(frozen=True)
class Side:
    """A piece of a line between two corners of the partition, with nothing but its two regions beside it."""

    ends: tuple[Point, Point]
    regions: tuple[int, ...]  # one region on the border of the domain, two inside

    @property
    def length(self) -> float:
        return distance(*self.ends)


def partition_sides(regions: Sequence[Region]) -> list[Side]:
    """All sides of the partition: the lines of all polygon sides, cut at all corners on them."""
    on_line: dict[Line, list[tuple[Point, Point, int]]] = defaultdict(list)
    for number, region in enumerate(regions):
        for p, q in itertools.pairwise([*region.corners, region.corners[0]]):
            on_line[_line_through(p, q)].append((p, q, number))
    sides = []
    for line, parts in on_line.items():
        axis = 0 if line[2] else 1

        def along(point: Point, axis: int = axis) -> Fraction:
            return Fraction(point[axis], point[2])

        ordered = sorted({end for p, q, _ in parts for end in (p, q)}, key=along)
        rank = {point: i for i, point in enumerate(ordered)}
        beside: dict[int, list[int]] = defaultdict(list)
        for p, q, number in parts:
            for i in range(min(rank[p], rank[q]), max(rank[p], rank[q])):
                beside[i].append(number)
        sides += [Side((ordered[i], ordered[i + 1]), tuple(sorted(numbers))) for i, numbers in beside.items()]
    return sides


def _line_through(p: Point, q: Point) -> Line:
    """The line through two points, the same numbers for any two points of it."""
    a, b, c = p[1] * q[2] - q[1] * p[2], q[0] * p[2] - p[0] * q[2], p[0] * q[1] - q[0] * p[1]
    divisor = math.gcd(a, b, c) * (1 if (a, b) > (0, 0) else -1)
    return c // divisor, a // divisor, b // divisor


def boundary_length(regions: Sequence[Region], sides: Sequence[Side], stages: int) -> float:
    """Length of the sides between regions that differ in the first ``stages`` stages."""

    def prefix(number: int) -> tuple[tuple[int, ...], ...]:
        return regions[number].decisions[:stages]

    return math.fsum(s.length for s in sides if len(s.regions) == 2 and prefix(s.regions[0]) != prefix(s.regions[1]))


def linear_region_count(regions: Sequence[Region], sides: Sequence[Side], output: str) -> int:
    """Sets of regions with one exact affine map of the output, connected through sides."""
    maps = [tuple(map(tuple, region.affine_map(output))) for region in regions]
    root = list(range(len(regions)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for side in sides:
        if len(side.regions) == 2 and maps[side.regions[0]] == maps[side.regions[1]]:
            root[find(side.regions[0])] = find(side.regions[1])
    return len({find(i) for i in range(len(regions))})


@dataclass(frozen=True)
class Partition:
    """What regioncam finds on a slice, areas and lengths in input units."""

    faces: int
    areas: Array  # [faces]
    vertices: int
    edges: int


def regioncam_count(program: SliceProgram) -> int:
    """Number of regions that regioncam finds; see `regioncam_partition`."""
    return regioncam_partition(program).faces


def regioncam_partition(program: SliceProgram) -> Partition:
    """The partition of a slice by regioncam, in float32.

    A piecewise unit becomes one ReLU a threshold, a maximum of two entries one ReLU of their difference. What later
    stages still need rides along: it gets a constant that makes it positive on the whole square, so that the ReLU lets
    it pass without a cut.

    Raises
    ------
    ValueError
        A window has more than two entries, or a unit jumps at a threshold: regioncam has no such layers.
    """
    import regioncam

    h = program.slice.half_width
    camera = regioncam.Regioncam(size=1.0)
    known = {"uv": (np.eye(2) * h, np.zeros(2))}  # value -> (matrix, constant) from the current layer
    for name, value in program.uv_values.items():
        known[name] = (value.tangents.numpy() * h, value.constant.numpy())
    for k, stage in enumerate(program.stages):
        z = _stack([known[name] for name in stage.preactivations])
        tests, rebuild = _as_relus(stage.breakpoint, z)
        later = [name for name in known if name == "uv" or program.last_use.get(name, -1) > 2 * k]
        carried = _stack([known[name] for name in later] + ([z] if rebuild.needs_z else []))
        at_vertices = np.asarray(camera.vertex_outputs, dtype=np.float64) @ carried[0].T + carried[1]
        shift = 1.0 - at_vertices.min(axis=0, initial=0.0)
        matrix, constant = _stack([tests, (carried[0], carried[1] + shift)])
        camera.linear(matrix.T.astype(np.float32), constant.astype(np.float32))
        camera.relu()
        identity = np.eye(len(constant))
        count = len(tests[1])
        back = (identity[count:], -shift)
        known, start = {}, 0
        for name in later:
            size = 2 if name == "uv" else program.sizes[name]
            known[name] = (back[0][start : start + size], back[1][start : start + size])
            start += size
        known[stage.value] = rebuild(identity[:count], (back[0][start:], back[1][start:]))
        matrices, from_uv = dense_segment(program, k)
        for output in program.segments[k].outputs:
            u, c = known["uv"]
            total = from_uv[output].tangents.numpy() @ u, from_uv[output].tangents.numpy() @ c
            total = total[0], total[1] + from_uv[output].constant.numpy()
            for name in program.segments[k].inputs:
                weight = matrices[output, name].numpy()
                total = total[0] + weight @ known[name][0], total[1] + weight @ known[name][1]
            known[output] = total
    areas = np.array([face.area for face in camera.faces]) * h * h
    return Partition(int(camera.num_faces), areas, int(camera.num_vertices), int(camera.num_edges))


Affine = tuple[Array, Array]  # matrix [n, m] and constant [n]


def _stack(parts: Sequence[Affine]) -> Affine:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


@dataclass(frozen=True)
class _Rebuild:
    """The value of a breakpoint as base + sum of jumps * relu(tests)."""

    jumps: Array  # [units, tests]
    base_slopes: Array  # [units, n], of z
    base: Array  # [units]

    @property
    def needs_z(self) -> bool:
        return bool(self.base_slopes.any())

    def __call__(self, relus: Array, z: Affine) -> Affine:
        matrix, constant = self.jumps @ relus, self.base
        if self.needs_z:
            matrix, constant = matrix + self.base_slopes @ z[0], constant + self.base_slopes @ z[1]
        return matrix, constant


def _as_relus(bend: Breakpoint, z: Affine) -> tuple[Affine, _Rebuild]:
    """The affine maps whose signs are the decisions of a breakpoint, and how their ReLUs make its value."""
    if isinstance(bend, Maximum):
        return _maximum_as_relus(bend, z)
    count = len(bend.thresholds)
    below = bend.slopes[:-1] * bend.thresholds + bend.intercepts[:-1]
    above = bend.slopes[1:] * bend.thresholds + bend.intercepts[1:]
    if not np.allclose(below, above, rtol=0, atol=1e-9):
        raise ValueError("the breakpoint jumps")
    tests = np.tile(z[0], (count, 1)), np.tile(z[1], count) - bend.thresholds.reshape(-1)
    steps = np.diff(bend.slopes, axis=0)
    jumps = np.concatenate([np.diag(step) for step in steps], axis=1)
    return tests, _Rebuild(jumps, np.diag(bend.slopes[0]), bend.intercepts[0])


def _maximum_as_relus(bend: Maximum, z: Affine) -> tuple[Affine, _Rebuild]:
    if bend.windows.shape[1] != 2 or (bend.windows < 0).any():
        raise ValueError("regioncam takes a maximum of two entries only")
    first, second = bend.windows.T
    tests = bend.sign * (z[0][first] - z[0][second]), bend.sign * (z[1][first] - z[1][second])
    slopes = np.zeros((bend.units, bend.inputs))
    slopes[np.arange(bend.units), second] = 1
    return tests, _Rebuild(bend.sign * np.eye(bend.units), slopes, np.zeros(bend.units))


@dataclass(frozen=True)
class Case:
    """A network on a slice."""

    name: str
    network: rg.Network
    slice: rg.Slice

    @property
    def program(self) -> SliceProgram:
        return restrict(self.network.program, self.slice)


Rows = tuple[Array, Array]  # weights [n, inputs] and biases [n] of a layer


def chain(layers: Sequence[Rows], bends: Sequence[Breakpoint | None]) -> rg.Network:
    """A chain of linear layers; bend k, ReLU if None, stands behind layer k (the last layer has none)."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        modules += [linear, nn.ReLU()]
    network = rg.load_network(nn.Sequential(*modules[:-1]))
    return dataclasses.replace(network, program=with_bends(network.program, bends))


def with_bends(program: Program, bends: Sequence[Breakpoint | None]) -> Program:
    """The program with other breakpoints of the same number of inputs and units; None keeps one."""
    stages, first = [], 0
    for stage, bend in zip(program.stages, bends, strict=True):
        chosen = stage.breakpoint if bend is None else bend
        assert (chosen.inputs, chosen.units) == (stage.breakpoint.inputs, stage.breakpoint.units)
        stages.append(dataclasses.replace(stage, breakpoint=chosen, first_decision=first))
        first += chosen.decisions
    return dataclasses.replace(program, stages=tuple(stages))


def relu(n: int) -> Piecewise:
    return slopes(n, [0.0], [0.0, 1.0])


def slopes(n: int, thresholds: Sequence[float], pieces: Sequence[float], start: float = 0.0) -> Piecewise:
    """One continuous bend for n units: slope ``pieces[k]`` on piece k, value ``start`` at the first threshold."""
    intercepts = [start - pieces[0] * thresholds[0]]
    for threshold, before, after in zip(thresholds, pieces, pieces[1:]):
        intercepts.append(intercepts[-1] + (before - after) * threshold)
    return Piecewise(*(np.repeat(np.array(a)[:, None], n, axis=1) for a in (thresholds, pieces, intercepts)))


BENDS: dict[str, Callable[[int], Breakpoint]] = {
    "relu": relu,
    "leaky": lambda n: slopes(n, [0.0], [0.25, 1.0]),
    "abs": lambda n: slopes(n, [0.0], [-1.0, 1.0]),
    "hardtanh": lambda n: slopes(n, [-1.0, 1.0], [0.0, 1.0, 0.0], -1.0),
    "maximum": lambda n: Maximum(np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1), n, 1),
    "minimum": lambda n: Maximum(np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1), n, -1),
    "mirror": lambda n: Maximum(np.stack([np.arange(n), np.arange(n)[::-1]], axis=1), n, 1),
    "pool": lambda n: Maximum(
        np.where((w := np.arange(n)[:, None] + np.arange(-1, 2)) < n, np.where(w >= 0, w, -1), -1), n, 1
    ),
}
_MOSTLY_RELU = ["relu"] * 8 + ["leaky", "abs", "hardtanh", "maximum", "minimum", "mirror", "pool"]


def _integers(rng: np.random.Generator, n: int, m: int) -> Rows:
    """Integers of -2..2, no row of zeros."""
    weight = rng.integers(-2, 3, (n, m)).astype(float)
    weight[~weight.any(axis=1), rng.integers(m)] = 1.0
    return weight, rng.integers(-2, 3, n).astype(float)


def _eighths(rng: np.random.Generator, n: int, m: int) -> Rows:
    return rng.integers(-12, 13, (n, m)) / 8, rng.integers(-8, 9, n) / 8


def _zero_bias(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    return _eighths(rng, n, m)[0], np.zeros(n)


def _duplicated(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    """Half of the rows repeat others, some of them times a power of two."""
    weight, bias = _eighths(rng, n, m)
    source, factor = rng.integers(0, n, n // 2), 2.0 ** rng.integers(-1, 2, n // 2)
    weight[-(n // 2) :], bias[-(n // 2) :] = weight[source] * factor[:, None], bias[source] * factor
    return weight, bias


def _mirrored(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    weight, bias = _eighths(rng, n - n // 2, m)
    return np.concatenate([weight, -weight])[:n], np.concatenate([bias, -bias])[:n]


def _small_integers(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    return _integers(rng, n, m)


_BORDER = np.array(
    [(1, 0, -1), (-1, 0, 1), (1, 0, 1), (0, 1, -1), (0, 1, 1), (0, -1, -1), (1, 1, -2), (-1, 1, 2), (1, 1, 0)], float
)


def _border(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    """Lines along the sides of [-1, 1]^2, through its corners and along its diagonal; deeper layers of integers."""
    weight, bias = _integers(rng, n, m)
    if depth == 0:
        chosen = _BORDER[rng.integers(0, len(_BORDER), n - n // 3)] * 2.0 ** rng.integers(-1, 2, (n - n // 3, 1))
        weight[: len(chosen)], bias[: len(chosen)] = chosen[:, :2], chosen[:, 2]
    return weight, bias


def _concurrent(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    """Most units are zero at one point that is not the origin (first layer); then no biases."""
    weight, bias = _eighths(rng, n, m)
    if depth == 0:
        many = n - n // 4
        bias[:many] = -(weight @ (rng.integers(-7, 8, 2) / 8))[:many]
        return weight, bias
    return weight, np.where(rng.random(n) < 0.7, 0.0, bias)


def _through_vertices(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    """Rows are combinations of the first rows, so their zero lines go through the crossings of the first lines."""
    weight, bias = _integers(rng, n, m)
    if depth == 0:
        for j in range(3, n):
            mixture = np.zeros(3)
            mixture[rng.choice(3, 2, replace=False)] = rng.integers(1, 4, 2) * rng.choice([-1, 1], 2)
            weight[j], bias[j] = mixture @ weight[:3], mixture @ bias[:3]
        return weight, bias
    return weight, np.where(rng.random(n) < 0.5, 0.0, bias)


def _nearly(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    """Lines that meet in a point, or in one line, but for rounding: real regions far below float64 resolution."""
    weight = rng.standard_normal((n, m))
    bias = -(weight @ rng.uniform(-0.9, 0.9, m)) if depth == 0 else rng.normal(0, 0.3, n)
    twin = n // 2 + np.arange(n // 4)
    weight[twin], bias[twin] = weight[: len(twin)], bias[: len(twin)]
    nudge = 1 + 2.0**-52 * rng.integers(0, 3, (len(twin), m))
    weight[twin] *= nudge
    return weight, bias


FAMILIES: dict[str, Callable[[np.random.Generator, int, int, int], Rows]] = {
    "zero-bias": _zero_bias,
    "duplicated": _duplicated,
    "mirrored": _mirrored,
    "integers": _small_integers,
    "border": _border,
    "concurrent": _concurrent,
    "through-vertices": _through_vertices,
    "nearly": _nearly,
}


def _mixture(rng: np.random.Generator, n: int, m: int, depth: int) -> Rows:
    """Every row from a family of its own, those whose numbers are short."""
    rows = [family(rng, n, m, depth) for family in FAMILIES.values() if family not in (_nearly, _mixture)]
    chosen = rng.integers(0, len(rows), n)
    return np.stack([rows[f][0][j] for j, f in enumerate(chosen)]), np.array(
        [rows[f][1][j] for j, f in enumerate(chosen)]
    )


FAMILIES["mixture"] = _mixture
# Factor of all weights and biases, factor of the half-width and of all biases (which leaves the picture as it is).
SCALES = {
    "": (1.0, 1.0),
    "weights*2^20": (2.0**20, 1.0),
    "weights/2^20": (2.0**-20, 1.0),
    "weights*1e6": (1e6, 1.0),
    "weights*1e-6": (1e-6, 1.0),
    "half-width 2^-20": (1.0, 2.0**-20),
    "half-width 1e-6": (1.0, 1e-6),
    "half-width 1e6": (1.0, 1e6),
}


def degenerate_network(family: str, seed: int, scale: str = "") -> Case:
    """A small network on [-h, h]^2 whose lines coincide, meet in points or run along the border."""
    rng = np.random.default_rng([seed, list(FAMILIES).index(family), list(SCALES).index(scale)])
    depth = int(rng.integers(1, 4))
    widths = [2, *rng.integers(3, 9 if depth < 3 else 7, depth).tolist()]
    factor, half_width = SCALES[scale]
    layers = [FAMILIES[family](rng, n, m, k) for k, (m, n) in enumerate(itertools.pairwise(widths))]
    layers.append(_integers(rng, 2, widths[-1]))
    layers = [(weight * factor, bias * factor * half_width) for weight, bias in layers]
    names = rng.choice(_MOSTLY_RELU, depth).tolist()
    bends = [None if name == "relu" else BENDS[name](n) for name, n in zip(names, widths[1:])]
    title = f"{family} seed {seed} {'-'.join(map(str, widths))} {' '.join(names)} {scale}".strip()
    return Case(title, chain(layers, bends), rg.Slice.square(half_width))


def degenerate_networks(seed: int) -> Iterator[Case]:
    """One network of every family, and one of every scale with the family drawn by the seed."""
    for family in FAMILIES:
        yield degenerate_network(family, seed)
    for number, scale in enumerate(list(SCALES)[1:]):
        yield degenerate_network(list(FAMILIES)[(seed + number) % len(FAMILIES)], seed, scale)


class Residual(nn.Module):
    """Two residual blocks, a skip from the input, and a block that adds before its activation."""

    def __init__(self, d: int = 8, width: int = 10) -> None:
        super().__init__()
        self.enter = nn.Linear(d, width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.skip, self.head = nn.Linear(d, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.enter(x))
        y = y + torch.relu(self.first(y))
        y = torch.relu(self.second(y) + y + self.skip(x))
        out: Tensor = self.head(y)
        return out


class SmallConv(nn.Module):
    """Two convolutions with batch-norm and average pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(3, 4, 2), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


class WideConv(nn.Module):
    """A convolution so large that the folded program keeps it as an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.second(y) + y)
        out: Tensor = self.head(y.flatten(1))
        return out


_TRACED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (8,)),
    "conv": (SmallConv, (1, 6, 6)),
    "wide-conv": (WideConv, (1, 8, 8)),
    "conv-net": (ConvNet, (1, 6, 6)),
}


@cache
def _traced(kind: str) -> rg.Network:
    build, shape = _TRACED[kind]
    return rg.load_network(build().eval(), input_shape=shape)


def redrawn(kind: str, seed: int) -> rg.Network:
    """A traced network with new random weights: tracing one takes longer than all that is tested with it."""
    network = _traced(kind)
    rng = np.random.default_rng(seed)
    constants = {}
    for name, old in network.program.constants.items():
        if old.ndim >= 2:
            new = rng.standard_normal(tuple(old.shape)) * math.sqrt(2 / old[0].numel())
        elif old.ndim == 1 and old.is_floating_point():
            new = rng.uniform(0.5, 2.0, len(old)) if "var" in name else rng.normal(0, 0.3, len(old))
        else:
            constants[name] = old
            continue
        constants[name] = torch.from_numpy(new)
    return dataclasses.replace(network, program=dataclasses.replace(network.program, constants=constants))


GENERIC = ("relu", "leaky", "bends", "residual", "conv", "wide-conv")


def generic_network(kind: str, seed: int) -> Case:
    """A network with continuous random weights and a random slice: lines in general position."""
    rng = np.random.default_rng([seed, GENERIC.index(kind)])
    half_width = float(rng.choice([0.3, 1.0, 2.5, 8.0]))
    if kind in _TRACED:
        network = redrawn(kind, seed)
        half_width = min(half_width, 2.5 if kind == "residual" else 0.1 if kind == "wide-conv" else 1.0)
    else:
        d, depth = int(rng.choice([2, 3, 5, 10, 20, 50])), int(rng.integers(1, 5))
        widths = [d, *rng.integers(4, 18, depth).tolist(), 3]
        torch.manual_seed(seed)
        network = rg.load_network(mlp(widths, bias=0.3).double())
        names = {"relu": ["relu"], "leaky": ["leaky"]}.get(kind, ["leaky", "abs", "hardtanh", "maximum", "minimum"])
        bends = [BENDS[str(rng.choice(names))](n) for n in widths[1:-1]]
        network = dataclasses.replace(network, program=with_bends(network.program, bends))
    d = math.prod(network.program.shapes[INPUT])
    return Case(f"{kind} seed {seed} half-width {half_width}", network, random_slice(d, half_width, seed))
