"""Polygon subdivision against regioncam: counts, time, memory, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import regiongrid as rg
from benchmarks.cases import EXACT_CASES, MILLION, Case, folded, regioncam_count, regioncam_inputs
from benchmarks.harness import Row, alternate, in_fresh_process, seconds
from regiongrid.kernels.pattern_hash import START, decision_keys
from regiongrid.kernels.threads import cpu_count
from regiongrid.network.on_slice import SliceProgram
from regiongrid.resources import one_torch_thread
from regiongrid.subdivision.subdivide import Subdivision

_WANTED = {"1k": ">= 3", "10k": ">= 5", "11k": ">= 5", "67k": ">= 5", "100k": ">= 5"}
_REPEATS = {"1k": 15, "10k": 5, "11k": 9, "67k": 1, "100k": 1}
_MEMORY = """
import json, re, sys
import torch, numba, regioncam
import regiongrid as rg
from benchmarks.cases import EXACT_CASES, MILLION, folded, regioncam_count, regioncam_inputs
from benchmarks.exact import subdivide

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

case = {**EXACT_CASES, MILLION.name: MILLION}[sys.argv[1]]
small = EXACT_CASES["128x3-1k"]
if sys.argv[2] == "regioncam":
    regioncam_count(regioncam_inputs(small))
    layers = regioncam_inputs(case)
    before = peak()
    regions = regioncam_count(layers)
else:
    subdivide(folded(small))
    if sys.argv[2] == "table":
        network, plane = case.network(), case.slice()
        before = peak()
        regions = len(rg.exact(network, plane).regions)
    else:
        program = folded(case)
        before = peak()
        regions = subdivide(program)
print(json.dumps({"regions": regions, "extra": peak() - before, "peak": peak()}))
"""


def subdivide(program: SliceProgram, threads: int | None = None) -> int:
    """The number of regions, and nothing else."""
    with one_torch_thread():
        part, _ = Subdivision(program, threads=threads or cpu_count()).run()
    return int(part.hashes.size)


def benchmark() -> Iterator[Row]:
    """Exact polygons against regioncam, the first layer folded onto the slice for both."""
    rate = _matrix_rate()
    yield Row("", "float64 matrix products, one thread", rate / 1e9, "Gflop/s")
    for name, case in EXACT_CASES.items():
        yield from _against_regioncam(name, case, rate)
    yield from _million()


def _against_regioncam(name: str, case: Case, rate: float) -> Iterator[Row]:
    program, layers = folded(case), regioncam_inputs(case)
    network, plane = case.network(), case.slice()
    size = name.split("-")[1]
    found, theirs = subdivide(program), regioncam_count(layers)
    yield Row(name, "regions", found, "regions")
    yield Row(name, "regions more than", found - theirs, "regions", "regioncam", "0")
    yield Row(name, "regions not found at their centroid", _unconfirmed(network, plane), "regions",
              "plain float64 evaluation in input space", "0")  # fmt: skip
    ours, table, them = alternate(
        [lambda: subdivide(program), lambda: rg.exact(network, plane), lambda: regioncam_count(layers)], _REPEATS[size]
    )
    yield Row(name, "subdivision", ours, "s")
    yield Row(name, "rg.exact with fold and table", table, "s")
    yield Row(name, "regioncam", them, "s")
    wanted = ">= 8" if name in ("cnn-10k", "cnn-100k") else _WANTED[size]
    yield Row(name, "subdivision, times faster than", them / ours, "", "regioncam", wanted)
    yield Row(name, "with fold and table, times faster than", them / table, "", "regioncam")
    yield from _shares(name, program, rate)
    if size == "1k":
        return  # too little to be told from the noise
    memory = {who: in_fresh_process(_MEMORY, name, who) for who in ("ours", "table", "regioncam")}
    for who, label in (("ours", "subdivision"), ("table", "rg.exact"), ("regioncam", "regioncam")):
        yield Row(name, f"extra memory, {label}", memory[who]["extra"] / 1e9, "GB")
    ratio = memory["ours"]["extra"] / memory["regioncam"]["extra"]
    yield Row(name, "extra memory, share of", ratio, "", "regioncam", "<= 0.2" if size == "100k" else "")


def _unconfirmed(network: rg.Network, plane: rg.Slice) -> int:
    """Regions whose pattern is not the one of the whole network, ReLU by ReLU, at the region's centroid."""
    regions = rg.exact(network, plane).regions
    points = np.stack([regions.centroid_u, regions.centroid_v], axis=1)
    wrong = 0
    for start in range(0, len(regions), 4096):
        some = slice(start, start + 4096)
        preactivations, _ = network.program.run(torch.from_numpy(plane.points(points[some])))
        hashes = np.full(len(points[some]), START)
        for stage, z in zip(network.program.stages, preactivations):
            keys = decision_keys(stage.first_decision, stage.breakpoint.decisions)
            hashes ^= np.bitwise_xor.reduce(np.where(z.numpy() > 0, keys, np.uint64(0)), axis=1)
        wrong += int((hashes != regions.pattern[some]).sum())
    return wrong


def _shares(name: str, program: SliceProgram, rate: float) -> Iterator[Row]:
    """Where one thread spends its time, and how far the evaluation is from its floor."""
    with one_torch_thread():
        total = seconds(lambda: subdivide(program, 1))
        run = Subdivision(program, threads=1)
        run.run()
    effort = run.effort
    yield Row(name, "one thread", total, "s")
    yield Row(name, "share evaluating vertices", 100 * effort.evaluate_seconds / total, "%")
    yield Row(name, "share carrying values to new vertices", 100 * effort.carry_seconds / total, "%")
    yield Row(name, "share splitting", 100 * (effort.split_seconds - effort.exact_seconds) / total, "%")
    yield Row(name, "share in exact arithmetic", 100 * effort.exact_seconds / total, "%")
    yield Row(name, "signs left undecided by float64", effort.undecided / effort.signs, "of all signs")
    yield Row(name, "crossings placed exactly", effort.exact_orders, "")
    if not any(segment.graph for segment in program.segments):
        flops = sum(rows * _flops(program, k) for k, rows in enumerate(effort.rows_of_stage))
        yield Row(name, "evaluation", flops / 1e9, "Gflop")
        yield Row(name, "evaluation against its floor", effort.evaluate_seconds * rate / flops, "",
                  "matrix products at full rate")  # fmt: skip


def _flops(program: SliceProgram, stage: int) -> int:
    """Products and sums to evaluate one vertex at a stage."""
    if stage == 0:
        return 0
    return sum(2 * matrix.numel() for matrix in program.segments[stage - 1].matrices.values())


def _million() -> Iterator[Row]:
    memory = in_fresh_process(_MEMORY, MILLION.name, "table")
    yield Row(MILLION.name, "regions", memory["regions"], "regions")
    yield Row(MILLION.name, "peak memory of the process, rg.exact", memory["peak"] / 1e9, "GB", "", "< 4")
    program = folded(MILLION)
    yield Row(MILLION.name, "subdivision", seconds(lambda: subdivide(program)), "s")


def _matrix_rate() -> float:
    """float64 flops a second of one thread in products of the size of a block's."""
    left, right = torch.rand(1024, 512, dtype=torch.float64), torch.rand(512, 512, dtype=torch.float64)
    with one_torch_thread():
        (best,) = alternate([lambda: torch.mm(left, right)], 30)
    return 2 * left.numel() * right.shape[1] / best
