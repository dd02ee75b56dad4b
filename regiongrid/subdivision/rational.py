"""Exact arithmetic for what float64 leaves open: signs at vertices, and the order of points along a line.

The float64 coefficients of the folded program are taken as exact numbers. All of them are whole numbers times a power
of two, so on a polygon every pre-activation is c + a u + b v with whole numbers c, a, b over one power of two (its
*form*), and a vertex, the crossing of two lines, has homogeneous whole-number coordinates. No division, no rounding.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import RegiongridError
from regiongrid.network.on_slice import AffineInUV, SliceProgram, sparse_matrices
from regiongrid.network.program import Maximum, Piecewise
from regiongrid.subdivision.integers import Factors, Limbs, added, from_floats, lifted, scale_of, times, whole
from regiongrid.subdivision.levels import AliasLevel, CutLevel, Level, PickLevel
from regiongrid.subdivision.mesh import Functions, Mesh, Signs
from regiongrid.subdivision.tournament import Tournament

Form = tuple[int, int, int]
Point = tuple[int, int, int]  # (X, Y, W), W > 0: the point (X / W, Y / W)
_MOST_ENTRIES = 1 << 25
# A crossing that is likely off by more than this (times the width of the network, which exact arithmetic costs, and the
# half width of the slice) is placed exactly.
_DISTANCE = 2e-11


class Forms:
    """Exact affine maps of the entries of a value on one polygon: rows (c, a, b) over 2^scale, as limbs [n, 3, L]."""

    def __init__(self, limbs: Limbs, scale: int) -> None:
        self._limbs, self.scale = limbs, scale

    @property
    def limbs(self) -> Limbs:
        return self._limbs

    def __getitem__(self, j: int) -> Form:
        c, a, b = whole(self.limbs[j])
        return c, a, b


class _Made(Forms):
    """An output of a segment: products with the forms of its inputs, and what (u, v) add; made when it is asked for."""

    def __init__(self, factors: Sequence[Factors], inputs: Sequence[Forms], rest: Forms) -> None:
        self._factors, self._inputs, self._rest = factors, inputs, rest
        self.scale = max([rest.scale, *(factor.scale + forms.scale for factor, forms in zip(factors, inputs))])

    @functools.cached_property
    def limbs(self) -> Limbs:
        return self._rows(slice(None))

    def __getitem__(self, j: int) -> Form:
        rows = self.limbs[j : j + 1] if "limbs" in vars(self) else self._rows(slice(j, j + 1))
        c, a, b = whole(rows[0])
        return c, a, b

    def _rows(self, rows: slice) -> Limbs:
        parts = [lifted(self._rest.limbs[rows], self.scale - self._rest.scale)]
        for factor, forms in zip(self._factors, self._inputs):
            parts.append(lifted(factor.product(forms.limbs, rows), self.scale - factor.scale - forms.scale))
        return added(parts)


def border_forms(half_width: float) -> list[Form]:
    """The forms that are zero on the border's lines, as `mesh.square` numbers them."""
    scale = scale_of(np.array([half_width]))
    side, one = _whole(half_width, scale), 1 << scale
    return [(side, 0, one), (-side, one, 0), (-side, 0, one), (side, one, 0)]


def uv_forms(folded: SliceProgram) -> dict[str, Forms]:
    """Values in front of the first breakpoint."""
    return {name: _from_uv(affine) for name, affine in folded.uv_values.items()}


def _from_uv(affine: AffineInUV) -> Forms:
    table = np.concatenate([affine.constant.numpy()[:, None], affine.tangents.numpy()], axis=1)
    scale = scale_of(table)
    return Forms(from_floats(table, scale), scale)


def _joined(parts: Sequence[Forms]) -> Forms:
    """Entries of several values, one after the other."""
    if len(parts) == 1:
        return parts[0]
    scale = max(part.scale for part in parts)
    limbs = [lifted(part.limbs, scale - part.scale) for part in parts]
    joined = np.zeros((sum(map(len, limbs)), 3, max(part.shape[-1] for part in limbs)), np.int64)
    start = 0
    for part in limbs:
        joined[start : start + len(part), :, : part.shape[-1]] = part
        start += len(part)
    return Forms(joined, scale)


def _activated(z: Forms, breakpoint: Piecewise, level: CutLevel, face: int) -> Forms:
    """A piecewise breakpoint behind its decisions."""
    thresholds, units = breakpoint.thresholds.shape
    on = np.unpackbits(level.on[face].view(np.uint8), bitorder="little", count=thresholds * units)
    piece = on.reshape(thresholds, units).sum(axis=0)
    slopes, intercepts = (a[piece, np.arange(units)] for a in (breakpoint.slopes, breakpoint.intercepts))
    if not intercepts.any() and np.isin(slopes, (0.0, 1.0)).all():
        return Forms(np.where(slopes[:, None, None] == 0, 0, z.limbs), z.scale)
    slope_scale, intercept_scale = scale_of(slopes), scale_of(intercepts)
    scale = max(z.scale + slope_scale, intercept_scale)
    constants = np.stack([intercepts, np.zeros(units), np.zeros(units)], axis=1)
    bent = lifted(times(z.limbs, slopes, slope_scale), scale - z.scale - slope_scale)
    return Forms(added([bent, lifted(from_floats(constants, intercept_scale), scale - intercept_scale)]), scale)


class Rationals:
    """The program in exact numbers, made as it is asked for."""

    def __init__(self, folded: SliceProgram) -> None:
        self.folded = folded
        self.tournaments = {
            k: Tournament(stage.breakpoint)
            for k, stage in enumerate(folded.stages)
            if isinstance(stage.breakpoint, Maximum)
        }
        widest = max(stage.breakpoint.inputs for stage in folded.stages)
        self.distance = _DISTANCE * (widest + 4) * folded.slice.half_width
        self._border = border_forms(folded.slice.half_width)

    def _first_values(self, face: int) -> dict[str, Forms]:
        """Values in front of the first breakpoint, on a polygon of the mesh that the subdivision starts from."""
        return self._uv

    @functools.cached_property
    def _uv(self) -> dict[str, Forms]:
        return uv_forms(self.folded)

    @functools.cached_property
    def _matrices(self) -> list[dict[tuple[str, str], Factors]]:
        made = []
        for segment in self.folded.segments:
            if segment.graph is None:
                made.append({names: Factors(matrix.numpy()) for names, matrix in segment.matrices.items()})
                continue
            sparse = sparse_matrices(self.folded.program, segment, _MOST_ENTRIES)
            if not sparse:
                raise RegiongridError(
                    "a sign at a vertex is too close to zero for float64, and a layer of this network is too large for "
                    "exact arithmetic; move the slice a little, or use `regiongrid estimate`"
                )
            made.append({names: Factors(matrix) for names, matrix in sparse.items()})
        return made

    @functools.cached_property
    def _rests(self) -> list[dict[str, Forms]]:
        # A graph's own biases are in the offsets, not in from_uv.
        return [
            {
                output: _from_uv(AffineInUV(segment.offsets[output], segment.from_uv[output].tangents))
                for output in segment.outputs
            }
            for segment in self.folded.segments
        ]

    def line(self, levels: Sequence[Level], number: int) -> Form:
        """The form that is zero on a line."""
        if number < len(self._border):
            return self._border[number]
        for i in range(len(levels) - 1, -1, -1):
            level = levels[i]
            if isinstance(level, PickLevel) or level.line_base > number:
                continue
            if isinstance(level, AliasLevel):
                number = int(level.lines[number - level.line_base])
            else:
                chord = number - level.line_base
                face, decision = int(level.chord_face[chord]), int(level.chord_decision[chord])
                return self.decision(levels[:i], face, level.stage, decision)
        raise AssertionError(f"line {number} was never drawn")

    def decision(self, levels: Sequence[Level], face: int, stage: int, decision: int) -> Form:
        """The form of a decision of ``stage`` on a polygon behind ``levels``: positive where it is on."""
        before, rounds = self._before(levels, face, stage)
        z, breakpoint = self._preactivations(before, stage), self.folded.stages[stage].breakpoint
        if isinstance(breakpoint, Piecewise):
            units = breakpoint.units
            threshold = float(breakpoint.thresholds[decision // units, decision % units])
            c, a, b = z[decision % units]
            if threshold == 0:
                return c, a, b
            scale = max(z.scale, scale_of(np.array([threshold])))
            lift = scale - z.scale
            return (c << lift) - _whole(threshold, scale), a << lift, b << lift
        one, two = (z[int(j)] for j in self.tournaments[stage].opponents(np.array([decision]), rounds)[0])
        sign = breakpoint.sign
        return tuple(sign * (y - x) for x, y in zip(one, two))  # type: ignore[return-value]

    def _before(
        self, levels: Sequence[Level], face: int, stage: int
    ) -> tuple[dict[str, Forms], list[NDArray[np.uint64]]]:
        """Values in front of ``stage`` on a polygon, and its decisions in the stage's rounds so far, [1, W] each."""
        rounds: list[NDArray[np.uint64]] = []
        i = len(levels) - 1
        while i >= 0:
            level = levels[i]
            if isinstance(level, PickLevel):
                face = int(level.faces[face])
            elif isinstance(level, AliasLevel):
                pass
            elif level.stage == stage:
                rounds.append(level.on[face : face + 1])
                face = int(level.parents[face])
            else:
                break
            i -= 1
        return self._after(levels[: i + 1], face), rounds[::-1]

    def _preactivations(self, forms: dict[str, Forms], stage: int) -> Forms:
        return _joined([forms[name] for name in self.folded.stages[stage].preactivations])

    def _after(self, levels: Sequence[Level], face: int) -> dict[str, Forms]:
        """All values behind the stage of the last level, a `CutLevel`, on one of its polygons."""
        if not levels:
            return dict(self._first_values(face))
        level = levels[-1]
        assert isinstance(level, CutLevel)
        forms: dict[str, Forms] | None = level.forms.get(face)
        if forms is None:
            forms = level.forms[face] = self._step(levels, level, face)
        return forms

    def _step(self, levels: Sequence[Level], level: CutLevel, face: int) -> dict[str, Forms]:
        stage = self.folded.stages[level.stage]
        before, rounds = self._before(levels, face, level.stage)
        z = self._preactivations(before, level.stage)
        forms = dict(before)
        if isinstance(stage.breakpoint, Piecewise):
            forms[stage.value] = _activated(z, stage.breakpoint, level, face)
        else:
            (winners,) = self.tournaments[level.stage].winners(rounds, 1)
            entries = stage.breakpoint.windows[np.arange(winners.size), winners]
            forms[stage.value] = Forms(z.limbs[entries], z.scale)
        if level.stage < len(self.folded.segments):
            segment = self.folded.segments[level.stage]
            if segment.outputs:
                matrices, rests = self._matrices[level.stage], self._rests[level.stage]
                inputs = [forms[name] for name in segment.inputs]
                for output in segment.outputs:
                    rows = [matrices[output, name] for name in segment.inputs]
                    forms[output] = _Made(rows, inputs, rests[output])
        return forms


class Resolver:
    """Settles what float64 leaves open in one step of one block."""

    def __init__(self, rationals: Rationals, levels: Sequence[Level], mesh: Mesh, stage: int) -> None:
        self._rationals, self._levels, self._mesh, self._stage = rationals, levels, mesh, stage
        self._points: dict[int, Point] = {}
        self._forms: dict[tuple[int, int], Form] = {}
        self.distance = rationals.distance
        self.signs = 0
        self.orders = 0
        self.seconds = 0.0

    @functools.cached_property
    def _faces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A polygon at every vertex, and one at every edge."""
        mesh = self._mesh
        face = np.repeat(np.arange(mesh.faces), np.diff(mesh.starts))
        edge = mesh.halves >> 1
        at_vertex, at_edge = np.zeros(mesh.vertices, np.int64), np.zeros(mesh.first.size, np.int64)
        at_edge[edge] = face
        at_vertex[np.where(mesh.halves & 1 == 0, mesh.first[edge], mesh.second[edge])] = face
        return at_vertex, at_edge

    def _form(self, face: int, decision: int) -> Form:
        key = face, decision
        if key not in self._forms:
            self._forms[key] = self._rationals.decision(self._levels, face, self._stage, decision)
        return self._forms[key]

    def _line(self, number: int) -> Form:
        key = -1, number
        if key not in self._forms:
            self._forms[key] = self._rationals.line(self._levels, number)
        return self._forms[key]

    def _point(self, vertex: int) -> Point:
        if vertex not in self._points:
            one, two = (self._line(int(number)) for number in self._mesh.point_lines[vertex])
            self._points[vertex] = _crossing(one, two)
        return self._points[vertex]

    def settle(self, functions: Functions, signs: Signs, unsure: NDArray[np.uint64]) -> None:
        """Settle the signs marked in ``unsure``, in ``signs`` and in the values, where zero comes to mean zero."""
        f = functions
        started = time.perf_counter()
        for v in np.flatnonzero(unsure.any(axis=1)):
            bits = np.unpackbits(unsure[v].view(np.uint8), bitorder="little")
            for d in np.flatnonzero(bits).tolist():
                sign = self._sign(int(v), d)
                word, mark = d >> 6, np.uint64(1 << (d & 63))
                if sign > 0:
                    signs.positive[v, word] |= mark
                elif sign < 0:
                    signs.negative[v, word] |= mark
                difference = f.values[v, f.column[d]] - f.threshold[d]
                if sign == 0:
                    f.values[v, f.column[d]] = f.threshold[d]
                elif (difference > 0) != (sign > 0) or difference == 0:
                    f.values[v, f.column[d]] = np.nextafter(f.threshold[d], sign * np.inf)
        self.seconds += time.perf_counter() - started

    def _sign(self, vertex: int, decision: int) -> int:
        """Sign of a decision's function at a vertex."""
        self.signs += 1
        c, a, b = self._form(int(self._faces[0][vertex]), decision)
        x, y, w = self._point(vertex)
        value = c * w + a * x + b * y
        return (value > 0) - (value < 0)

    def on_edges(
        self,
        offsets: NDArray[np.int64],
        decision: NDArray[np.int32],
        t: NDArray[np.float64],
        spread: NDArray[np.float64],
        tied: NDArray[np.bool_],
        loose: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Put tied crossings of edges in their true order, and place the loose ones; which equal the one before."""
        started = time.perf_counter()
        equal = np.zeros(t.size, np.bool_)
        edge_of = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
        for low, high in _clusters(tied, loose):
            e = int(edge_of[low])
            line = self._line(int(self._mesh.line[e]))
            face = int(self._faces[1][e])
            ends = [_along(self._point(int(end[e])), line) for end in (self._mesh.first, self._mesh.second)]
            places = [_along(_crossing(line, self._form(face, int(d))), line) for d in decision[low:high]]
            order = self._sort(places, ends, t, spread, low)
            decision[low:high] = decision[low:high][order]
            for i in range(1, len(order)):
                equal[low + i] = places[order[i]] == places[order[i - 1]]
        self.seconds += time.perf_counter() - started
        return equal

    def on_chords(
        self,
        point_lines: NDArray[np.int32],
        ring: NDArray[np.int32],
        ring_starts: NDArray[np.int64],
        chord_face: NDArray[np.int32],
        chord_decision: NDArray[np.int32],
        chord_from: NDArray[np.int32],
        chord_to: NDArray[np.int32],
        entry_starts: NDArray[np.int64],
        other: NDArray[np.int32],
        pair: NDArray[np.int32],
        t: NDArray[np.float64],
        spread: NDArray[np.float64],
        tied: NDArray[np.bool_],
        loose: NDArray[np.bool_],
    ) -> NDArray[np.int32]:
        """The same for crossings of chords; numbers of the points, concurrent pairs sharing one."""
        started = time.perf_counter()
        leader = np.arange(pair.size // 2)

        def lead(k: int) -> int:
            while leader[k] != k:
                leader[k] = leader[leader[k]]
                k = int(leader[k])
            return k

        chord_of = np.repeat(np.arange(entry_starts.size - 1), np.diff(entry_starts))
        old = self._mesh.vertices
        for low, high in _clusters(tied, loose):
            c = int(chord_of[low])
            face = int(chord_face[c])
            line = self._form(face, int(chord_decision[c]))
            ends = []
            for position in (chord_from[c], chord_to[c]):
                vertex = int(ring[ring_starts[face] + position])
                crossing = self._line(int(point_lines[vertex - old, 0])) if vertex >= old else None
                ends.append(_along(self._point(vertex) if crossing is None else _crossing(line, crossing), line))
            places = [_along(_crossing(line, self._form(face, int(chord_decision[o]))), line) for o in other[low:high]]
            order = self._sort(places, ends, t, spread, low)
            other[low:high], pair[low:high] = other[low:high][order], pair[low:high][order]
            for i in range(1, len(order)):
                if places[order[i]] == places[order[i - 1]]:
                    one, two = lead(int(pair[low + i])), lead(int(pair[low + i - 1]))
                    leader[max(one, two)] = min(one, two)
        roots = np.array([lead(k) for k in range(leader.size)])
        _, node = np.unique(roots, return_inverse=True)
        self.seconds += time.perf_counter() - started
        return node.astype(np.int32)

    def _sort(
        self,
        places: list[Fraction],
        ends: list[Fraction],
        t: NDArray[np.float64],
        spread: NDArray[np.float64],
        low: int,
    ) -> list[int]:
        """The true order of a cluster; its parameters become exact but for the last rounding."""
        self.orders += len(places)
        start, length = ends[0], ends[1] - ends[0]
        shares = [(place - start) / length for place in places]
        order = sorted(range(len(places)), key=shares.__getitem__)
        for i, k in enumerate(order):
            t[low + i], spread[low + i] = float(shares[k]), 2.0**-50
        return order


def _clusters(tied: NDArray[np.bool_], loose: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Ranges of entries that are tied one to the next, and single ones that are too uncertain."""
    bounded = np.concatenate([[False], tied, [False]])
    marks = np.flatnonzero(np.diff(bounded.astype(np.int8)))
    alone = np.flatnonzero(loose & ~(bounded[1:-1] | bounded[2:]))
    return [(int(low) - 1, int(high)) for low, high in marks.reshape(-1, 2)] + [(int(i), int(i) + 1) for i in alone]


def _crossing(one: Form, two: Form) -> Point:
    (c, a, b), (f, d, e) = one, two
    x, y, w = b * f - e * c, c * d - f * a, a * e - d * b
    if w == 0:
        raise RegiongridError("internal error: two parallel lines were taken to cross")
    return (x, y, w) if w > 0 else (-x, -y, -w)


def _along(point: Point, line: Form) -> Fraction:
    """Position of a point along a line, in units of its own direction."""
    x, y, w = point
    return Fraction(line[1] * y - line[2] * x, w)


def _whole(number: float, scale: int) -> int:
    numerator, denominator = number.as_integer_ratio()
    return (numerator << scale) // denominator
