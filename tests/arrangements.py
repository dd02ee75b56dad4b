"""Partitions of a square made by hand, for tests of what is done with the polygons of the exact engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import regiongrid as rg
from regiongrid.kernels.polygons import measure_polygons
from regiongrid.subdivision import Exact
from regiongrid.subdivision.polygons import Polygons, Sides


class Line(NamedTuple):
    """The line a u + b v + c = 0, which cuts only the positive side of line number ``within``, if one is given."""

    a: float
    b: float
    c: float
    within: int | None = None


Point = frozenset[int]  # the two lines that meet there
Corner = tuple[Point, int]  # with the line of the side to the next corner


def arrangement(lines: Sequence[Line], half_width: float = 1.0) -> Polygons:
    """Cut the square by lines in general position, one after the other. The border's lines are numbered -4 to -1."""
    h = half_width
    edges = {-4: (0.0, 1.0, h), -3: (-1.0, 0.0, h), -2: (0.0, -1.0, h), -1: (1.0, 0.0, h)}
    equations = {**edges, **{number: line[:3] for number, line in enumerate(lines)}}
    places = _Places(equations)
    polygons: list[list[Corner]] = [[(frozenset((before, edge)), edge) for before, edge in
                                     zip((-1, -4, -3, -2), (-4, -3, -2, -1))]]  # fmt: skip
    for number, line in enumerate(lines):
        cut = []
        for polygon in polygons:
            centre = np.mean([places[key] for key, _ in polygon], axis=0)
            if line.within is not None and _value(equations[line.within], centre) <= 0:
                cut.append(polygon)
            else:
                cut += _split(polygon, number, equations[number], places)
        polygons = cut
    return _as_polygons(polygons, lines, places)


def random_lines(count: int, seed: int = 0) -> list[Line]:
    """Lines of all directions, evenly spread over the square [-1, 1]^2."""
    generator = np.random.default_rng(seed)
    angles, offsets = generator.uniform(0, 2 * np.pi, count), generator.uniform(-1, 1, count)
    return [Line(float(np.cos(t)), float(np.sin(t)), float(c)) for t, c in zip(angles, offsets)]


def jittered_grid(cells: int, half_width: float = 1.0, seed: int = 0) -> Polygons:
    """``cells ** 2`` quadrilaterals, whose inner points are moved at random by up to a fifth of a cell."""
    n = cells + 1
    step = 2 * half_width / cells
    v, u = np.meshgrid(np.arange(n) * step - half_width, np.arange(n) * step - half_width, indexing="ij")
    moved = np.random.default_rng(seed).uniform(-0.2 * step, 0.2 * step, (2, n, n))
    moved[:, [0, -1]] = moved[:, :, [0, -1]] = 0
    points = np.stack([u + moved[0], v + moved[1]], axis=-1).reshape(-1, 2)
    corner = np.arange(n * n, dtype=np.int32).reshape(n, n)
    region = np.full((n + 1, n + 1), -1, np.int32)
    region[1:-1, 1:-1] = np.arange(cells * cells).reshape(cells, cells)
    flat = np.arange(n * cells, dtype=np.int32).reshape(n, cells)  # sides along u come first, then those along v
    upright = n * cells + np.arange(cells * n, dtype=np.int32).reshape(cells, n)
    left = np.concatenate([region[1:, 1:-1].ravel(), region[1:-1, :-1].ravel()])
    right = np.concatenate([region[:-1, 1:-1].ravel(), region[1:-1, 1:].ravel()])
    inner = (left >= 0) & (right >= 0)
    owner = np.where(inner, 0, -1).astype(np.int32)
    first = np.concatenate([corner[:, :-1].ravel(), corner[:-1].ravel()])
    second = np.concatenate([corner[:, 1:].ravel(), corner[1:].ravel()])
    sides = Sides(first, second, left, right, owner, owner, owner)
    corners = np.stack([corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]], axis=-1)
    around = np.stack([flat[:-1], upright[:, 1:], flat[1:], upright[:, :-1]], axis=-1)
    lines = np.tile(np.arange(4, dtype=np.int32), cells * cells)
    return Polygons(points, 4 * np.arange(cells * cells + 1), corners.ravel(), around.ravel(), lines, sides)


def uneven(seed: int = 0) -> Polygons:
    """Lines across the square and lines that end at another one, with corners on the sides of neighbours."""
    lines = random_lines(16, seed)
    return arrangement([*lines[:6], *(line._replace(within=0) for line in lines[6:11]),
                        *(line._replace(within=3) for line in lines[11:])])  # fmt: skip


def as_exact(
    polygons: Polygons, network: rg.Network | None = None, anchors: list[list[float]] | None = None, seed: int = 0
) -> Exact:
    """A result of the exact engine that has these polygons, whatever the network."""
    outlines = (polygons.points, polygons.starts, polygons.corners, polygons.corner_lines)
    measures = measure_polygons(*outlines, backend="reference" if len(polygons) < 1000 else "cpu")
    patterns = np.random.default_rng(seed).integers(1, 2**64, len(polygons), dtype=np.uint64)
    table = rg.RegionTable({"pattern": patterns, **vars(measures), "depth": np.ones(len(polygons), np.int64)})
    half_width = float(np.abs(polygons.points).max())
    plane = rg.Slice([0.5, 0.25, 0], [1, 0, 0], [0, 1, 0], half_width, anchors, "by hand")
    unknown: Any = None
    return Exact(network or unknown, plane, polygons, table, (), {}, {}, unknown, {})


class _Places(dict[Point, np.ndarray]):
    """The point where two lines meet, computed once."""

    def __init__(self, equations: dict[int, tuple[float, float, float]]) -> None:
        super().__init__()
        self._equations = equations

    def __missing__(self, key: Point) -> np.ndarray:
        (a, b, c), (d, e, f) = (self._equations[number] for number in sorted(key))
        self[key] = np.array([b * f - c * e, c * d - a * f]) / (a * e - b * d)
        return self[key]


def _value(equation: tuple[float, float, float], point: np.ndarray) -> float:
    return float(equation[0] * point[0] + equation[1] * point[1] + equation[2])


def _split(
    polygon: list[Corner], number: int, equation: tuple[float, float, float], places: _Places
) -> list[list[Corner]]:
    on = [_value(equation, places[key]) > 0 for key, _ in polygon]
    if all(on) or not any(on):
        return [polygon]
    parts: dict[bool, list[Corner]] = {True: [], False: []}
    for i, (key, line) in enumerate(polygon):
        side, after = on[i], on[(i + 1) % len(polygon)]
        parts[side].append((key, line))
        if side != after:
            crossing = frozenset((number, line))
            parts[side].append((crossing, number))
            parts[after].append((crossing, line))
    return list(parts.values())


def _as_polygons(polygons: list[list[Corner]], lines: Sequence[Line], places: _Places) -> Polygons:
    rows = {key: row for row, key in enumerate(dict.fromkeys(key for polygon in polygons for key, _ in polygon))}
    on_line: dict[int, list[Point]] = defaultdict(list)
    for key in rows:
        for number in key:
            on_line[number].append(key)
    outlines = [_outline(polygon, on_line, places) for polygon in polygons]
    sides: dict[tuple[int, int], list[int]] = {}  # ends: regions on the left and right, line
    corner_sides = []
    for region, outline in enumerate(outlines):
        for (key, line), (following, _) in zip(outline, [*outline[1:], outline[0]]):
            ends = rows[key], rows[following]
            if ends[::-1] in sides:
                sides[ends[::-1]][1] = region
                corner_sides.append(ends[::-1])
            else:
                sides[ends] = [region, -1, line]
                corner_sides.append(ends)
    numbers = {ends: number for number, ends in enumerate(sides)}
    corners = [corner for outline in outlines for corner in outline]
    return Polygons(
        points=np.array([places[key] for key in rows]),
        starts=np.cumsum([0, *map(len, outlines)]),
        corners=np.array([rows[key] for key, _ in corners], np.int32),
        corner_sides=np.array([numbers[ends] for ends in corner_sides], np.int32),
        corner_lines=np.array([line for _, line in corners], np.int32),
        sides=_as_sides(sides, lines),
    )


def _as_sides(sides: dict[tuple[int, int], list[int]], lines: Sequence[Line]) -> Sides:
    """Lines within a part of the square are units of the second breakpoint, the others of the first."""
    first, second = np.array(list(sides), np.int32).T
    left, right, line = np.array(list(sides.values()), np.int32).T
    stages = {number: 0 if entry.within is None else 1 for number, entry in enumerate(lines)}
    stage = np.array([stages.get(number, -1) for number in line.tolist()], np.int32)
    return Sides(first, second, left, right, stage, np.maximum(line, -1), np.minimum(stage, 0))


def _outline(polygon: list[Corner], on_line: dict[int, list[Point]], places: _Places) -> list[Corner]:
    """The corners of a polygon with those of its neighbours that lie on its sides."""
    outline: list[Corner] = []
    for (key, line), (following, _) in zip(polygon, [*polygon[1:], polygon[0]]):
        start, way = places[key], places[following] - places[key]
        along = {other: float((places[other] - start) @ way / (way @ way)) for other in on_line[line]}
        between = [other for other in along if 0 < along[other] < 1 and other not in (key, following)]
        outline += [(key, line), *((other, line) for other in sorted(between, key=along.__getitem__))]
    return outline
