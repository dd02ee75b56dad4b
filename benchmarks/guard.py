"""What the guarded signs cost and what they are worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numba import njit

from benchmarks.cases import CASES, folded
from benchmarks.harness import Row, alternate
from regiongrid.kernels.pattern_hash import take_tensors
from regiongrid.kernels.threads import Workers, cpu_count
from regiongrid.network.on_slice import SliceProgram
from regiongrid.resources import one_torch_thread
from regiongrid.sampling.evaluate import PatternEvaluator
from regiongrid.sampling.guard import GuardedEvaluator
from regiongrid.sampling.image import sample_image

_POINTS = 1 << 20


@njit(nogil=True, fastmath={"reassoc", "nsz", "contract"}, error_model="numpy")
def relu_without_guard(z, bias, keys, gain, offset, scale, arbiter, hashes, flags, norms):  # type: ignore[no-untyped-def]
    """What the epilogue would be if float32 signs were good enough: bias, ReLU and hash."""
    rows, units = z.shape
    zero = z.dtype.type(0)
    for i in range(rows):
        for j in range(units):
            value = z[i, j] + bias[j]
            z[i, j] = value if value > zero else zero
        pattern = np.uint64(0)
        for j in range(units):
            pattern ^= keys[j] if z[i, j] > zero else np.uint64(0)
        hashes[i] ^= pattern


def unguarded_and_guarded(program: SliceProgram) -> tuple[float, float]:
    """Median seconds for the same random points: signs as float32 has them, and guarded, calibration left out."""
    half_width = program.slice.half_width
    points = np.random.default_rng(1).uniform(-half_width, half_width, (_POINTS, 2))
    tensor = torch.from_numpy(points)
    guarded = GuardedEvaluator(program, "float32")
    bare = PatternEvaluator(program, torch.float32, np.zeros(len(program.stages)))
    bare._stages = tuple(replace(stage, kernel=take_tensors(relu_without_guard, keys=2)) for stage in bare._stages)

    def run_bare(start: int, stop: int) -> None:
        for first in range(start, stop, bare.chunk):
            bare(tensor[first : min(first + bare.chunk, stop)])

    def run_guarded(start: int, stop: int) -> None:
        guarded(points[start:stop])

    with one_torch_thread(), Workers(cpu_count()) as workers:
        one, other = alternate(
            [
                lambda: workers.run(run_bare, len(points), guarded.span),
                lambda: workers.run(run_guarded, len(points), guarded.span),
            ],
            7,
        )
    return one, other


def benchmark() -> Iterator[Row]:
    """Pixels that differ from a float64 run, share decided again, cost, and what float32 alone gets wrong."""
    for name, case in CASES.items():
        program = folded(case)
        adaptive, dense = sample_image(program, 4096), sample_image(program, 4096, sampling="dense")
        double = sample_image(program, 4096, sampling="dense", dtype="float64")
        wanted = "<= 0.5" if case.width == 128 else "<= 2"
        for image, what in ((adaptive, "adaptive"), (dense, "dense")):
            differ = int((image.hashes != double.hashes).sum())
            yield Row(name, f"pixels that differ from float64, {what}", differ, "pixels", "float64", "0")
            share = 100 * image.reevaluated / image.evaluations
            note = wanted if what == "dense" else ""
            yield Row(name, f"evaluations decided again, {what}", share, "%", "evaluations", note)
        yield Row(name, "pixels decided again, adaptive", 100 * adaptive.reevaluated / 4096**2, "%", "pixels", wanted)
        for k, error in enumerate(dense.calibration.largest_error):
            yield Row(name, f"largest error seen, layer {k + 1}", error, "units of rounding")
        bare, guarded = unguarded_and_guarded(program)
        yield Row(name, "cost of the guard", 100 * (guarded / bare - 1), "%", "no flags, nothing again", "<= 10")
