"""Where the output itself bends: the decision boundary (argmax), and where an output has a given value.

Both are one more breakpoint behind the network: the same subdivision draws them, and their sides are the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError
from regiongrid.kernels.pattern_hash import decision_keys
from regiongrid.network.on_slice import FoldedSegment, SliceProgram
from regiongrid.network.program import Breakpoint, Maximum, Piecewise, Stage
from regiongrid.resources import one_torch_thread
from regiongrid.subdivision.subdivide import Subdivision

_NEVER = 1e300  # a threshold that no output reaches


@dataclass(frozen=True, eq=False)
class LevelSet:
    """Segments in the slice, each inside one region (or on its border)."""

    segments: NDArray[np.float64]  # [n, 2, 2] end points (u, v), input units
    region: NDArray[np.int32]  # [n] row of the region table

    def __len__(self) -> int:
        return len(self.segments)

    @cached_property
    def length(self) -> float:
        """Total length, input units."""
        ends = self.segments[:, 1] - self.segments[:, 0]
        return float(np.hypot(ends[:, 0], ends[:, 1]).sum())


def decision_boundary(folded: SliceProgram, patterns: NDArray[np.uint64], **options: Any) -> LevelSet:
    """Where the largest output changes; ``patterns`` are the regions' hashes, in the order of the table."""
    outputs = _outputs(folded)
    if outputs < 2:
        raise InputError(
            "the network has a single output; a decision boundary needs two, use level_set(0) for its zero set"
        )
    windows = np.arange(outputs)[None, :]
    return _sides(folded, patterns, Maximum(windows, outputs), **options)


def level_set(
    folded: SliceProgram, patterns: NDArray[np.uint64], output: int, value: float, **options: Any
) -> LevelSet:
    """Where entry ``output`` of the flattened output equals ``value``."""
    outputs = _outputs(folded)
    if not -outputs <= output < outputs:
        raise InputError(f"output is {output}; the network has {outputs} outputs, counted from 0")
    if not np.isfinite(value) or abs(value) >= _NEVER:
        raise InputError(f"value is {value!r}; it must be a finite number")
    thresholds = np.full((1, outputs), _NEVER)
    thresholds[0, output] = value
    flat = np.zeros((2, outputs))
    return _sides(folded, patterns, Piecewise(thresholds, flat, flat), **options)


def _outputs(folded: SliceProgram) -> int:
    program = folded.program
    if program.output is None:
        raise InputError(
            f"the output of this network is not piecewise affine ({program.cut}); give the network without it"
        )
    return int(np.prod(program.shapes[program.output]))


def _sides(folded: SliceProgram, patterns: NDArray[np.uint64], breakpoint: Breakpoint, **options: Any) -> LevelSet:
    program = folded.program
    assert program.output is not None
    first_decision = program.decisions
    stage = Stage((program.output,), breakpoint, "level set", "level set", first_decision)
    behind = len(program.stages)
    nothing = FoldedSegment((), (), {}, {}, None, {}, {}, {})
    extended = replace(
        folded,
        program=replace(program, stages=(*program.stages, stage)),
        segments=(*folded.segments, nothing),
        sizes={**folded.sizes, stage.value: breakpoint.units},
        last_use={**folded.last_use, program.output: 2 * behind},
    )
    with one_torch_thread():
        part, _ = Subdivision(extended, **options).run()
    chosen = np.flatnonzero(part.owner[:, 0] == behind)
    face = np.zeros(part.first.size, np.int64)
    face[part.halves >> 1] = np.repeat(np.arange(part.hashes.size), np.diff(part.starts))
    region = _rows(
        part.hashes[face[chosen]], patterns, decision_keys(first_decision, breakpoint.decisions, options["seed"])
    )
    segments = np.stack([part.points[part.first[chosen]], part.points[part.second[chosen]]], axis=1)
    return LevelSet(segments, region)


def _rows(hashes: NDArray[np.uint64], patterns: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """The region of each hash: its pattern with at most one further key."""
    order = np.argsort(patterns)
    rows = np.full(hashes.size, -1, np.int32)
    for key in (np.uint64(0), *keys):
        wanted = hashes ^ key
        place = np.minimum(np.searchsorted(patterns, wanted, sorter=order), patterns.size - 1)
        row = order[place]
        found = (patterns[row] == wanted) & (rows < 0)
        rows[found] = row[found]
    return rows
