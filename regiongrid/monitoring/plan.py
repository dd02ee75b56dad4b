"""Before the first measurement: where the slices lie, how large they are, which engine measures them, at what cost.

**Expected regions.** At the centre of a slice every decision is affine, so it is known which of them cross a square of
half-width h. If n of them do, as random lines would, two of them meet inside with probability
2 pi area / perimeter^2 = pi / 8 (Santalo, "Integral Geometry and Geometric Probability"), and the square has
1 + n + (pi / 8) n (n - 1) / 2 regions. Lines that bend are taken as straight, and every rival in a max-pool window for
a line, so there it is too many.

**Predicted seconds** of a measurement, with S slices, T threads, R_k regions of a slice behind stage k, and f_k
multiplications and additions for the affine maps behind stage k at one point (a matrix entry is two):

    exact  = copy P + keep W + [G stages step + S sum_k (R_k polygon + R_(k-1) f_k / rate)] / min(T, G)
    grid   = copy P + S [keep W + stages step + E sum_k f_k / rate],  E = min(res^2, 3 (pi / 4) n res + res^2 / 64)
    grid on a GPU = launch + S slice + S E sum_k f_k / gpu_rate

with P numbers in the parameters, W of them behind the first breakpoint, G = ceil(S / 16) groups of slices that share a
mesh, and E pixels at which adaptive sampling evaluates the network. The constants are those of one server core of 2023
(AVX-512) and are the same everywhere, so that a run takes the same engine wherever it is repeated; those of the GPU
are derived from its data sheet and not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from regiongrid.arguments import check_whole
from regiongrid.errors import InputError, UnsupportedOperatorError
from regiongrid.monitoring.partition import SLICES_TOGETHER
from regiongrid.monitoring.points import crossing_widths
from regiongrid.network.on_slice import SliceProgram
from regiongrid.network.program import Program
from regiongrid.slices import Slice, slices_from_data

Array = NDArray[np.float64]

ENGINES = ("auto", "exact", "grid")
KINDS = ("one", "three")
REGIONS_WANTED = 150.0
"""Regions that a slice of default size is expected to have at most when the monitor is made, on average."""
_SMALLEST_SHARE = 1e-4  # of the spread of the anchors: no default half-width is below it
_COPY_SECONDS = 6e-9  # a number: to float64, and once more through the products with the slices
_KEEP_SECONDS = 8e-9  # a number: transposed, with bounds on norms
_STEP_SECONDS = 1.5e-3
_POLYGON_SECONDS = 4e-6
_RATE = 5e10
_GPU_LAUNCH_SECONDS, _GPU_SLICE_SECONDS, _GPU_RATE = 0.1, 1e-3, 5e12


@dataclass(frozen=True)
class Work:
    """What the cost of a measurement depends on, but for the regions."""

    parameters: int
    kept: int  # of them behind the first breakpoint
    flops: tuple[float, ...]  # in front of stage 1, 2, ...: at one point
    slices: int

    @classmethod
    def of(cls, folded: SliceProgram, slices: int) -> Work:
        flops, kept = [], 0
        for segment in folded.segments[: len(folded.stages) - 1]:
            dense = sum(matrix.numel() for matrix in segment.matrices.values())
            touched = sum(segment.fan_in[name] * folded.sizes[name] for name in segment.inputs)
            outputs = sum(folded.sizes[name] for name in segment.outputs)
            flops.append(2.0 * (dense or touched * outputs))
            kept += dense
        return cls(sum(c.numel() for c in folded.program.constants.values()), kept, tuple(flops), slices)

    def exact_seconds(self, regions: Sequence[float], threads: int) -> float:
        """Predicted for ``regions`` a slice behind stage 0, 1, ..."""
        groups = -(-self.slices // SLICES_TOGETHER)
        points = sum(before * flops for before, flops in zip(regions, self.flops))
        work = groups * len(regions) * _STEP_SECONDS
        work += self.slices * (sum(regions) * _POLYGON_SECONDS + points / _RATE)
        return self.parameters * _COPY_SECONDS + self.kept * _KEEP_SECONDS + work / min(threads, groups)

    def grid_seconds(self, lines: float, res: int, gpu: bool) -> float:
        """Predicted for ``lines`` that cross a slice."""
        pixels = min(res**2, 3 * math.pi / 4 * lines * res + res**2 / 64)
        evaluation = pixels * sum(self.flops)
        if gpu:
            return _GPU_LAUNCH_SECONDS + self.slices * (_GPU_SLICE_SECONDS + evaluation / _GPU_RATE)
        fixed = self.kept * _KEEP_SECONDS + (len(self.flops) + 1) * _STEP_SECONDS
        return self.parameters * _COPY_SECONDS + self.slices * (fixed + evaluation / _RATE)


@dataclass(frozen=True)
class Plan:
    """Which engine measures the slices, and why.

    Attributes
    ----------
    engine
        ``"exact"`` or ``"grid"``.
    reason
        Why this one, one sentence.
    half_width : (float, float)
        The smallest and the largest half-width of the slices, input units.
    regions
        Regions expected in a slice when the monitor was made, on average.
    seconds
        Predicted seconds of a measurement of the slices by each engine that could be had, at that time. Measures at
        data points come on top.
    """

    engine: str
    reason: str
    half_width: tuple[float, float]
    regions: float
    seconds: dict[str, float]

    def __str__(self) -> str:
        low, high = (f"{width:.4g}" for width in self.half_width)
        widths = low if low == high else f"{low} to {high}"
        costs = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in self.seconds.items())
        return (
            f"engine {self.engine}: {self.reason}; half-width {widths}; at the start about {self.regions:.0f} regions "
            f"a slice; predicted for a measurement: {costs}"
        )


def make_slices(
    program: Program, anchors: Array, count: int, kind: str, half_width: float | None, seed: int
) -> list[Slice]:
    """``count`` slices at anchors, [N, d].

    Of kind "one": slice i is `Slice.around` anchor i (after the last comes the first again) along random directions of
    seed ``seed + i``; ``half_width`` is by default the largest of ..., 0.1, 0.2, 0.5, 1, ... at which the network is
    expected to have at most `REGIONS_WANTED` regions in a slice on average, but not more than the spread of the anchors
    (root mean square distance to their mean). Of kind "three": planes through random triples of anchors, with the
    half-width of `Slice.through` by default.

    Raises
    ------
    InputError
        A kind or number that does not exist, or anchors that span no plane.
    """
    if kind not in KINDS:
        raise InputError(f"kind of slice must be one of {', '.join(KINDS)}, got {kind!r}")
    check_whole("slices (if not a sequence of Slice)", count, 1)
    if kind == "three":
        return slices_from_data(anchors, count=int(count), kind="three", half_width=half_width, seed=seed)
    made = [Slice.around(anchors[i % len(anchors)], half_width or 1.0, seed + i) for i in range(count)]
    width = _default_half_width(program, anchors, made) if half_width is None else half_width
    return [
        replace(plane, half_width=width, description=f"square around anchor {i % len(anchors)}, seed {seed + i}")
        for i, plane in enumerate(made)
    ]


def make_plan(
    folded: Sequence[SliceProgram], engine: str, res: int, threads: int, gpu: bool, *, exact_needed: str, no_exact: str
) -> Plan:
    """Choose the engine.

    Parameters
    ----------
    engine
        One of `ENGINES`.
    gpu
        Whether the grid would be computed on a GPU.
    exact_needed
        A metric that only the exact engine has and that was asked for; empty if none.
    no_exact
        Why the exact engine cannot have this network; empty if it can.

    Raises
    ------
    InputError
        The engine does not exist, or cannot give what was asked for.
    """
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}")
    if no_exact and (engine == "exact" or exact_needed):
        raise InputError(no_exact)
    if engine == "grid" and exact_needed:
        raise InputError(f"metric {exact_needed!r} needs exact polygons; use engine 'exact' or 'auto', or leave it out")
    planes = [part.slice for part in folded]
    widths = _widths(folded[0].program, planes)
    half_widths = np.array([plane.half_width for plane in planes])
    lines = [_lines(widths[: k + 1], half_widths) for k in range(len(widths))]
    regions = [float(_regions(count).mean()) for count in lines]
    work = Work.of(folded[0], len(folded))
    grid = f"grid of {res} x {res}" + (" on the GPU" if gpu else "")
    of_grid = work.grid_seconds(float(lines[-1].mean()), res, gpu)
    seconds = {"exact": work.exact_seconds(regions, threads), grid: of_grid}
    if no_exact:
        chosen, reason = "grid", "the exact engine cannot have this network"
        del seconds["exact"]
    elif engine != "auto":
        chosen, reason = engine, "as asked"
    elif exact_needed:
        chosen, reason = "exact", f"metric {exact_needed!r} needs it"
    else:
        chosen = "exact" if seconds["exact"] <= seconds[grid] else "grid"
        reason = "predicted to be faster"
    return Plan(chosen, reason, (float(half_widths.min()), float(half_widths.max())), regions[-1], seconds)


def why_not_exact(folded: SliceProgram) -> str:
    """Why the exact engine cannot have this network; empty if it can."""
    from regiongrid.subdivision.values import VertexValues

    try:
        VertexValues(folded)
    except UnsupportedOperatorError as error:
        return str(error)
    return ""


def _default_half_width(program: Program, anchors: Array, planes: Sequence[Slice]) -> float:
    widths = _widths(program, planes)
    spread = float(np.sqrt(np.square(anchors - anchors.mean(axis=0)).sum(axis=1).mean()))
    most = spread or float(np.sqrt(np.square(anchors).sum(axis=1).max())) or 1.0
    exponents = range(math.floor(math.log10(most * _SMALLEST_SHARE)), math.ceil(math.log10(most)) + 1)
    series = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
    candidates = [width for width in series if most * _SMALLEST_SHARE <= width <= most]
    chosen = candidates[0]
    for width in candidates:
        if _regions(_lines(widths, np.full(len(planes), width))).mean() > REGIONS_WANTED:
            break
        chosen = width
    return chosen


def _widths(program: Program, planes: Sequence[Slice]) -> list[Array]:
    centres, axes = (np.stack(rows) for rows in ([p.origin for p in planes], [np.stack([p.u, p.v]) for p in planes]))
    return crossing_widths(program, torch.from_numpy(centres), torch.from_numpy(axes))


def _lines(widths: Sequence[Array], half_widths: Array) -> Array:
    """Decisions that cross each slice, [S]."""
    counts: Array = np.sum([(width < half_widths[:, None]).sum(axis=1) for width in widths], axis=0).astype(np.float64)
    return counts


def _regions(lines: Array) -> Array:
    return 1 + lines + math.pi / 16 * lines * (lines - 1)


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
