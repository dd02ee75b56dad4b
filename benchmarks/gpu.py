"""Everything that wants a GPU, in one run: `python -m benchmarks.gpu [--out FOLDER] [--quick] [PART ...]`.

First whether the kernels are right on this device, on networks and images drawn afresh; then how long kernels and whole
jobs take, how far that is from what the device can do, and against what a user would write. Rows go to
results/gpu/DEVICE.csv, which is written anew after every step: what stops a run loses one step at most. A step that
fails becomes a row, and the run goes on. A run of some parts, or a quick one, gets a file name of its own.

The device is timed with events, whole jobs with the clock on the wall, from one synchronisation to the next. Values are
medians, p20 and p80 beside them, after a warm-up that compiles; inputs take turns, and the caches are emptied before
every timed run of a kernel. A ratio names its baseline, measured in the same run. A row with ``wanted`` 0 is a check:
if it is not 0, the exit status is 1.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.measure import label, regionprops_table
from torch import Tensor, nn

import regiongrid as rg
from benchmarks.cases import CASES, EXACT_CASES, Case, folded_layers
from benchmarks.harness import Row, machine, seconds
from benchmarks.static import CHIPS, Chip
from regiongrid.backends import select
from regiongrid.errors import InputError, MemoryLimitError, RegiongridError
from regiongrid.files import atomic_path
from regiongrid.kernels.moments import RegionSums, batch_sums, region_sums
from regiongrid.kernels.pattern_hash import START, decision_keys
from regiongrid.kernels.refinement import first_spacing
from regiongrid.network.on_slice import SliceProgram, restrict_all
from regiongrid.network.program import Maximum, Program
from regiongrid.resources import full_float32
from regiongrid.sampling import guard
from regiongrid.sampling.image import PatternImage, sample_images

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "gpu"
SAMPLINGS = ("dense", "adaptive")

Array = np.ndarray[Any, Any]
Job = Callable[[], object]


@dataclass(frozen=True)
class Figure(Row):
    """A row with the spread of its runs and a remark."""

    p20: float = math.nan
    p80: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Step:
    """What fails or succeeds as one."""

    case: str
    run: Callable[[], Iterable[Figure]]


@dataclass(frozen=True)
class Timing:
    """Seconds of the runs of one job."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.runs))

    def figure(self, case: str, quantity: str, **others: str) -> Figure:
        """The row, in milliseconds."""
        low, middle, high = (1e3 * float(np.quantile(self.runs, q)) for q in (0.2, 0.5, 0.8))
        return Figure(case, quantity, middle, "ms", p20=low, p80=high, **others)


@dataclass(frozen=True)
class Scale:
    """How large everything is and how long it may take.

    Attributes
    ----------
    res, large_res, wide_res, conv_res
        Pixels along a side of the images of one slice; of the networks in ``wide``; of convolutional networks.
    slices, slice_res
        Of a batch of slices.
    cases, usual, wide
        Networks of three hidden layers: at several numbers of regions, the one for what is done once, too wide for the
        kernel that keeps values on the chip.
    convolutional, resnet
        Convolutional networks that are timed; channels of the residual one by level.
    odd_res, odd_conv_res, points
        Of the comparisons with the CPU; random points of those with plain evaluation.
    trials, dtypes
        Networks that are compared, by name, all if None; of the precisions of each, so many.
    widths
        What to put in the place of a width of theirs.
    planes, together
        Slices that take turns; slices that are compared in one batch and one by one.
    matrix, copied, rows, units
        Side of the matrices and bytes of the copy that show the ceilings; shape of pre-activations.
    patience
        Seconds of one timing. What takes longer than that is run three times, or once.
    most, least
        Runs of one timing otherwise; no warm-up where ``most`` is 1.
    limit
        Seconds above which a baseline is measured at a quarter of the resolution.
    """

    res: int = 4096
    large_res: int = 16384
    wide_res: int = 4096
    slices: int = 64
    slice_res: int = 256
    conv_res: int = 512
    cases: tuple[Case, ...] = (CASES["128x3-1k"], CASES["128x3-11k"], CASES["128x3-28k"])
    usual: Case = CASES["128x3-11k"]
    wide: tuple[Case, ...] = (CASES["512x3-10k"], Case("1024x3", 1024, 1.3))
    convolutional: tuple[str, ...] = ("cnn-10k", "resnet-18")
    resnet: tuple[int, ...] = (64, 128, 256, 512)
    odd_res: int = 251
    odd_conv_res: int = 85
    points: int = 10_000
    trials: tuple[str, ...] | None = None
    dtypes: int = 3
    widths: Mapping[int, int] = field(default_factory=dict)
    planes: int = 3
    together: int = 3
    matrix: int = 8192
    copied: int = 1 << 30
    rows: int = 1 << 19
    units: int = 512
    patience: float = 0.6
    most: int = 100
    least: int = 5
    limit: float = 20.0

    def width(self, wanted: int) -> int:
        return self.widths.get(wanted, wanted)


FULL = Scale()
QUICK = replace(
    FULL,
    large_res=8192,
    wide=FULL.wide[:1],
    conv_res=256,
    trials=("784-200-100-63", "784-512x3", "leaky", "residual MLP", "CNN with max-pool"),
    patience=0.2,
    limit=8.0,
)
_TINY = Case("9x3", 9, 4.0)
REHEARSAL = Scale(
    res=17,
    large_res=18,
    wide_res=4,
    slices=2,
    slice_res=5,
    conv_res=3,
    cases=(_TINY,),
    usual=_TINY,
    wide=(Case("66x3", 66, 1.0),),
    convolutional=("resnet-18",),
    resnet=(1, 1),
    odd_res=17,
    odd_conv_res=3,
    points=20,
    trials=("clamp", "CNN with max-pool"),
    dtypes=1,
    widths={784: 15, 200: 13, 100: 10, 63: 7, 128: 9, 32: 8, 16: 2, 12: 6, 8: 1},
    planes=1,
    together=2,
    matrix=64,
    copied=1 << 12,
    rows=9,
    units=12,
    most=1,
    least=1,
)


class Lab:
    """The device, the scale, and what several parts ask for: timings, ceilings, images, whole jobs."""

    def __init__(self, device: torch.device, scale: Scale, seed: int) -> None:
        self.device = device
        self.scale = scale
        self.seed = seed
        self.on_gpu = device.type == "cuda"
        self._ceilings: dict[str, float] = {}
        self._images: dict[tuple[Any, ...], Tensor] = {}
        self._wholes: dict[tuple[Any, ...], Whole] = {}
        caches = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) if self.on_gpu else 0
        self._flush = torch.empty(max(4 * caches, 1 << 28) if self.on_gpu else 1, dtype=torch.int8, device=device)

    def generator(self, *numbers: int) -> np.random.Generator:
        """Random numbers of this run, the same for the same ``numbers`` wherever they are drawn."""
        return np.random.default_rng([self.seed, *numbers])

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device)

    def synchronise(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def device_time(self, *jobs: Job) -> Timing:
        """Seconds on the device, by events. The jobs, which do the same on different inputs, take turns."""
        if not self.on_gpu:
            return self.wall_time(*jobs)
        events = []
        for _, job in zip(range(self._warm_up(jobs)), itertools.cycle(jobs)):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()  # empties the caches, and keeps the device busy while the host launches what follows
            begin.record()
            job()
            end.record()
            events.append((begin, end))
        self.synchronise()
        return Timing(tuple(begin.elapsed_time(end) / 1e3 for begin, end in events))

    def wall_time(self, *jobs: Job) -> Timing:
        """Seconds from one synchronisation to the next. The jobs take turns."""
        turns = zip(range(self._warm_up(jobs)), itertools.cycle(jobs))
        return Timing(tuple(self._wall(job) for _, job in turns))

    def _wall(self, job: Job) -> float:
        self.synchronise()
        start = time.perf_counter()
        job()
        self.synchronise()
        return time.perf_counter() - start

    def _warm_up(self, jobs: Sequence[Job]) -> int:
        """Run the jobs so that everything is compiled; how often to run them for the timing."""
        scale = self.scale
        if scale.most == 1:
            return 1
        self._wall(jobs[0])
        once = self._wall(jobs[0])
        if once > scale.patience:
            return 3 if once < 5 * scale.patience else 1
        for job in jobs[1:]:
            job()
        return int(np.clip(scale.patience / once, scale.least, scale.most))

    def ceiling(self, name: str) -> float:
        """Measured bytes a second of a copy ("copy", "triad") or operations a second of a matrix product."""
        if name not in self._ceilings:
            made, jobs = _stream(self, name) if name in _STREAMS else _product(self, name)
            self._ceilings[name] = made / self.device_time(*jobs).median
        return self._ceilings[name]

    def paper(self) -> Chip | None:
        """What the maker says of this chip, if `benchmarks.static` has it."""
        if not self.on_gpu:
            return None
        properties = torch.cuda.get_device_properties(self.device)
        if torch.version.hip is not None:
            return CHIPS.get(properties.gcnArchName.partition(":")[0])
        return CHIPS.get(f"sm_{properties.major}{properties.minor}")

    def sample(self, subject: Subject, numbers: Iterable[int], res: int, **options: Any) -> list[PatternImage]:
        """Pattern images of some of a subject's planes, by Triton."""
        return sample_images(subject.folded(numbers), res, backend="triton", device=self.device, **options)

    def images(self, subject: Subject, numbers: Iterable[int], res: int) -> Tensor:
        """Pattern images of some of a subject's planes, int64 [S, res, res]; kept."""
        key = subject.name, *numbers, res
        if key not in self._images:
            pixels = [image.pixels for image in self.sample(subject, numbers, res)]
            self._images[key] = torch.stack([torch.as_tensor(image) for image in pixels])
        return self._images[key]

    def forget_images(self) -> None:
        self._images.clear()

    def whole(self, subject: Subject, sampling: str, res: int, slices: int) -> Whole:
        """`regiongrid.estimate` on one plane after the other, or on batches of planes; measured once."""
        key = subject.name, sampling, res, slices
        if key not in self._wholes:
            self._wholes[key] = _measure_whole(self, subject, sampling, res, slices)
        return self._wholes[key]


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and how to cut planes through it, all much alike, so that inputs can take turns."""

    name: str
    network: rg.Network
    half_width: float
    known: dict[int, SliceProgram] = field(default_factory=dict, repr=False)

    def plane(self, number: int) -> rg.Slice:
        """Plane 0 is that of the `Case`."""
        first, second, third = np.random.default_rng(number).standard_normal((3, self.network.program.input_size))
        return rg.Slice.through(first, second, third, half_width=self.half_width)

    def folded(self, numbers: Iterable[int]) -> list[SliceProgram]:
        wanted = list(numbers)
        new = [number for number in wanted if number not in self.known]
        self.known.update(zip(new, restrict_all(self.network.program, [self.plane(number) for number in new])))
        return [self.known[number] for number in wanted]


@cache
def subject_of(case: Case) -> Subject:
    return Subject(case.name, _network(case.width), case.half_width)


@cache
def _network(width: int) -> rg.Network:
    return Case("", width, 1.0).network()


_MATRICES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
_STREAMS = ("copy", "triad")


def _stream(lab: Lab, name: str) -> tuple[float, list[Job]]:
    """Bytes moved, and jobs that move them: b = a, or c = a + 3 b."""
    a, b, c = (lab.random(lab.scale.copied // 4) for _ in range(3))
    if name == "copy":
        return 2 * a.nbytes, [lambda: b.copy_(a), lambda: c.copy_(a)]
    return 3 * a.nbytes, [lambda: torch.add(a, b, alpha=3, out=c)]


def _product(lab: Lab, name: str) -> tuple[float, list[Job]]:
    """Operations, and jobs that do them: products of square matrices."""
    n = lab.scale.matrix
    pairs = [[lab.random(n, n, dtype=_MATRICES[name]) for _ in range(2)] for _ in range(2)]
    out = torch.empty_like(pairs[0][0])

    def multiply(a: Tensor, b: Tensor) -> None:
        with full_float32():
            if name == "tf32":
                torch.backends.cuda.matmul.allow_tf32 = True
            torch.mm(a, b, out=out)

    return 2.0 * n**3, [partial(multiply, *pair) for pair in pairs]


def device_part(lab: Lab) -> Iterator[Step]:
    """What the device is."""

    def facts() -> Iterator[Figure]:
        properties = torch.cuda.get_device_properties(lab.device)
        yield Figure("", "multiprocessors", properties.multi_processor_count, "")
        yield Figure("", "memory", properties.total_memory / 1e9, "GB")
        yield Figure("", "second-level cache", getattr(properties, "L2_cache_size", math.nan) / 1e6, "MB")
        with suppress(Exception):  # torch asks a library for it that need not be there
            yield Figure("", "clock before any work", torch.cuda.clock_rate(lab.device), "MHz")

    if lab.on_gpu:
        yield Step("", facts)


def ceilings_part(lab: Lab) -> Iterator[Step]:
    """What the device does at best: a copy, a sum of two streams, products of matrices."""

    def stream(name: str) -> Iterator[Figure]:
        chip = lab.paper()
        yield Figure("", f"bandwidth, {name}", lab.ceiling(name) / 1e9, "GB/s")
        if chip is not None:
            share = 100 * lab.ceiling(name) / chip.bandwidth
            yield Figure("", f"bandwidth, {name} / peak", share, "%", f"peak of {chip.product}")

    def rate(name: str) -> Iterator[Figure]:
        chip = lab.paper()
        yield Figure("", f"matrix rate, {name}", lab.ceiling(name) / 1e12, "Tflop/s")
        with suppress(Exception):
            if lab.on_gpu:
                yield Figure("", f"clock after {name}", torch.cuda.clock_rate(lab.device), "MHz")
        if chip is not None:
            share = 100 * lab.ceiling(name) / chip.peak(name, True)
            yield Figure("", f"matrix rate, {name} / peak", share, "%", f"peak of {chip.product}")

    for name in _STREAMS:
        yield Step(name, partial(stream, name))
    for name in _MATRICES:
        yield Step(name, partial(rate, name))


def of_copy(lab: Lab, case: str, what: str, timing: Timing, size: float) -> Iterator[Figure]:
    """What ``size`` bytes in that time are of a copy's bandwidth."""
    achieved = size / timing.median
    yield Figure(case, f"{what}, bytes that it cannot do without", achieved / 1e9, "GB/s")
    yield Figure(case, f"{what} / copy", 100 * achieved / lab.ceiling("copy"), "%", "bandwidth, copy")
    if (chip := lab.paper()) is not None:
        share = 100 * achieved / chip.bandwidth
        yield Figure(case, f"{what} / bandwidth on paper", share, "%", f"peak of {chip.product}")


def of_three_products(
    lab: Lab, case: str, what: str, timing: Timing, flops: float, wanted: str = ""
) -> Iterator[Figure]:
    """What ``flops`` in that time are of a third of the rates, as three products in float16 stand for one."""
    achieved = flops / timing.median
    yield Figure(case, f"{what}, each product counted once", achieved / 1e12, "Tflop/s")
    for name, note in (("fp16", wanted), ("tf32", wanted)):
        share = 100 * achieved / (lab.ceiling(name) / 3)
        yield Figure(case, f"{what} / three {name} products", share, "%", f"a third of matrix rate, {name}", note)
    if (chip := lab.paper()) is not None:
        share = 100 * achieved / (chip.peak("fp16", True) / 3)
        yield Figure(case, f"{what} / bound on paper", share, "%", f"a third of the fp16 peak of {chip.product}")


@dataclass(frozen=True)
class Trial:
    """A kind of network to compare on; ``module`` draws a new one."""

    name: str
    module: Callable[[Scale], nn.Module]
    shape: tuple[int, ...] | None = None  # of the input, 784 if None
    half_width: float = 3.0
    dtypes: tuple[str, ...] = ("auto",)


def _mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> Callable[[Scale], nn.Module]:
    def make(scale: Scale) -> nn.Module:
        sizes = [scale.width(width) for width in widths]
        pairs = [(nn.Linear(*pair), activation()) for pair in itertools.pairwise(sizes)]
        return nn.Sequential(*itertools.chain(*pairs), nn.Linear(sizes[-1], 10))

    return make


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class ResidualMlp(nn.Module):
    """Shortcuts around pairs of layers, and one from the input."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        inputs, width = scale.width(784), scale.width(128)
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.shortcut = nn.Linear(inputs, width)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        for block in self.blocks:
            h = torch.relu(h + block(h))
        return self.last(torch.relu(h + self.shortcut(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two convolutions with batch normalisation and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.straight = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.straight(x) + self.shortcut(x))


def residual_network(widths: Sequence[int], shape: tuple[int, int, int], blocks: int = 2) -> nn.Module:
    """A 7 x 7 convolution of stride 2, a max-pool, and so many blocks at each width: ResNet-18 with 64 to 512."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    for level, (before, after) in enumerate(zip([widths[0], *widths], widths)):
        layers.append(Block(before, after, 2 if level else 1))
        layers += [Block(after, after, 1) for _ in range(1, blocks)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as after training, not the identity
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2.0)
    return network.eval()


def _pooled(scale: Scale) -> nn.Module:
    few, more, side = scale.width(8), scale.width(16), scale.width(12)
    return nn.Sequential(
        nn.Conv2d(1, few, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(few, more, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1),
        nn.Flatten(), nn.Linear(more * (side // 2 - 2) ** 2, 20), nn.ReLU(), nn.Linear(20, 10),
    )  # fmt: skip


_EVERY_DTYPE = ("auto", "float32", "float64")
TRIALS = (
    Trial("784-128x3", _mlp(784, 128, 128, 128), dtypes=_EVERY_DTYPE),
    Trial("784-200-100-63", _mlp(784, 200, 100, 63), dtypes=_EVERY_DTYPE),
    Trial("784-256x3", _mlp(784, 256, 256, 256)),
    Trial("784-512x3", _mlp(784, 512, 512, 512)),
    Trial("784-1024x2", _mlp(784, 1024, 1024)),
    Trial("leaky", _mlp(784, 128, 100, activation=partial(nn.LeakyReLU, 0.1))),
    Trial("clamp", _mlp(784, 128, 100, activation=nn.Hardtanh), half_width=60.0),
    Trial("abs", _mlp(784, 128, 100, activation=Absolute)),
    Trial("residual MLP", ResidualMlp),
    Trial("CNN with max-pool", _pooled, (1, 12, 12), 6.0, ("auto", "float32")),
    Trial("small ResNet", lambda _: residual_network((6, 8), (2, 14, 14), 1), (2, 14, 14), 6.0),
)


def correctness_part(lab: Lab) -> Iterator[Step]:
    """Whether Triton gives the image and table of the CPU, to the pixel and the integer, on networks drawn afresh."""
    for kernel in ("relu", "piecewise", "maximum"):
        yield Step(kernel, partial(check_epilogue, lab, kernel))
    yield Step("refinement", partial(check_refinement, lab))
    yield Step("moments", partial(check_sums, lab))
    for case in (lab.scale.usual, lab.scale.wide[0]):
        yield Step(case.name, partial(check_chain, lab, case))
    for number, trial in enumerate(TRIALS):
        if lab.scale.trials is None or trial.name in lab.scale.trials:
            yield Step(trial.name, partial(check_network, lab, trial, number))


def unequal(one: Array, other: Array) -> int:
    """Entries that differ, NaN being equal to itself; all of them if the shapes differ."""
    if one.shape != other.shape:
        return max(one.size, other.size, 1)
    return int(np.count_nonzero((one != other) & ((one == one) | (other == other))))


def compare_images(case: str, what: str, found: Array, truth: Array) -> Figure:
    """Pixels that differ; the note says where."""
    wrong = np.argwhere(found != truth)
    note = f"of {truth.size}" + (f"; the first (row, column): {wrong[:5].tolist()}" if len(wrong) else "")
    return Figure(case, f"pixels that differ, {what}", len(wrong), "pixels", "backend cpu, dense", "0", note=note)


def compare_tables(case: str, what: str, found: rg.Estimate, truth: rg.Estimate) -> Figure:
    """Entries of the tables and totals that differ in a bit; the note says in which columns."""
    one, other = _columns(found), _columns(truth)
    nothing = np.empty(0)
    counts = {name: unequal(one.get(name, nothing), other.get(name, nothing)) for name in sorted({*one, *other})}
    wrong = [name for name, count in counts.items() if count]
    note = f"{len(truth.regions)} regions" + (f"; in {', '.join(wrong)}" if wrong else "")
    quantity = f"entries of the table that differ, {what}"
    return Figure(case, quantity, sum(counts.values()), "", "backend cpu", "0", note=note)


def _columns(estimate: rg.Estimate) -> dict[str, Array]:
    """Columns of the table, totals of the image, and its pairs of regions."""
    owners: tuple[Any, ...] = (estimate.totals, estimate.totals.adjacency)
    numbers = {
        f"{type(owner).__name__}.{item.name}": np.asarray(getattr(owner, item.name))
        for owner in owners
        for item in fields(owner)
        if item.name != "adjacency"
    }
    return {**estimate.regions.to_dict(), **numbers}


def check_network(lab: Lab, trial: Trial, number: int) -> Iterator[Figure]:
    """One network: images, tables, random pixels in plain float64, slices together and one by one."""
    scale, name = lab.scale, trial.name
    torch.manual_seed(int(lab.generator(number).integers(1 << 62)))
    shape = tuple(scale.width(size) for size in trial.shape or (784,))
    network = rg.load_network(trial.module(scale), input_shape=shape)
    subject = Subject(name, network, trial.half_width)
    res = scale.odd_res if trial.shape is None else scale.odd_conv_res
    first = int(lab.generator(number, 1).integers(1 << 30))  # of the planes
    truth = {
        sampling: rg.estimate(network, subject.plane(first), res, sampling=sampling, backend="cpu")
        for sampling in SAMPLINGS
    }
    hashes = truth["dense"].image.hashes
    for sampling, dtype in itertools.product(SAMPLINGS, trial.dtypes[: scale.dtypes]):
        found = rg.estimate(network, subject.plane(first), res, sampling=sampling, dtype=dtype, **on_device(lab))
        what = f"{sampling}, {dtype}"
        yield compare_images(name, what, found.image.hashes, hashes)
        yield compare_tables(name, what, found, truth[sampling])
        again = 100 * found.image.reevaluated / found.image.evaluations
        yield Figure(name, f"decided again in float64, {what}", again, "%", "evaluations",
                     note=f"fast pass in {found.image.calibration.dtype}")  # fmt: skip
        more = found.image.evaluations - truth[sampling].image.evaluations
        yield Figure(name, f"evaluations that differ, {what}", abs(more), "pixels", "backend cpu", "0")
    yield check_plain(lab, subject, first, hashes, number)
    yield check_together(lab, subject, range(first, first + scale.together), res // 3 + 1, name)


def on_device(lab: Lab) -> dict[str, Any]:
    return {"backend": "triton", "device": lab.device}


def check_plain(lab: Lab, subject: Subject, plane: int, hashes: Array, number: int) -> Figure:
    """Random pixels of an image against the program's own evaluation in float64 on the device."""
    res = len(hashes)
    chosen = lab.generator(number, 2).integers(0, res, (min(lab.scale.points, 1000), 2))
    slice_ = subject.plane(plane)
    points = slice_.points(slice_.pixel_centres(res)[chosen[:, ::-1]])
    plain = plain_hashes(subject.network.program, torch.from_numpy(points).to(lab.device))
    wrong = int(np.count_nonzero(plain != hashes[tuple(chosen.T)]))
    return Figure(subject.name, "random pixels that differ", wrong, "pixels", "plain float64 on the device", "0",
                  note=f"of {len(chosen)}")  # fmt: skip


def plain_hashes(program: Program, points: Tensor) -> Array:
    """Pattern hashes, uint64 [B], at points [B, d] from `Program.run`, unit by unit."""
    constants = {name: constant.to(points.device) for name, constant in program.constants.items()}
    with torch.device(points.device), torch.no_grad():
        preactivations, _ = replace(program, constants=constants).run(points)
        decided = [
            stage.breakpoint.winners(z) if isinstance(stage.breakpoint, Maximum)
            else z.unsqueeze(-2) > torch.as_tensor(stage.breakpoint.thresholds)
            for stage, z in zip(program.stages, preactivations)
        ]  # fmt: skip
    hashes = np.full(len(points), START)
    for stage, decision in zip(program.stages, decided):
        bend = stage.breakpoint
        keys = decision_keys(stage.first_decision, bend.decisions)
        if isinstance(bend, Maximum):
            chosen = keys.reshape(bend.windows.shape)[np.arange(bend.units), decision.cpu().numpy()]
        else:
            chosen = np.where(decision.cpu().numpy(), keys.reshape(bend.thresholds.shape), np.uint64(0))
        hashes ^= np.bitwise_xor.reduce(chosen.reshape(len(points), -1), axis=1)
    return hashes


def check_together(lab: Lab, subject: Subject, planes: Sequence[int], res: int, name: str) -> Figure:
    """Slices of one batch against each alone, both samplings."""
    wrong = 0
    for sampling in SAMPLINGS:
        together = lab.sample(subject, planes, res, sampling=sampling)
        for plane, image in zip(planes, together):
            (alone,) = lab.sample(subject, [plane], res, sampling=sampling)
            wrong += unequal(image.hashes, alone.hashes)
    return Figure(name, f"pixels that differ, {len(planes)} slices together", wrong, "pixels", "one by one", "0")


def check_chain(lab: Lab, case: Case) -> Iterator[Figure]:
    """The kernels for whole networks against float64, where they do not say that a point is too close to call."""
    from regiongrid.kernels.mlp_hash.gpu import Where
    from regiongrid.kernels.mlp_hash.reference import hash_points

    each = lab.scale.points
    xy = torch.from_numpy(lab.generator(3).uniform(-1, 1, (2 * each, 2)).astype(np.float32)).to(lab.device)
    which = torch.arange(2, device=lab.device).repeat_interleave(each)
    kappa = 8 * guard.KAPPA_FLOOR
    for engine in make_engines(lab, subject_of(case), range(2), kappa):
        hashes = torch.full((2 * each,), -1, dtype=torch.int64, device=lab.device)
        flags = engine(Where.coordinates(xy, which, 2), hashes).flags != 0
        truth = hash_points(engine.mlp, xy.double(), which)[-1]
        wrong, share = int(((hashes != truth) & ~flags).sum()), 100 * float(flags.double().mean())
        name = name_of(engine)
        yield Figure(case.name, f"points that differ, {name}", wrong, "points", "float64", "0", note=f"of {len(xy)}")
        note = f"within {kappa:g} units of rounding"
        yield Figure(case.name, f"points too close to call, {name}", share, "%", note=note)


def check_epilogue(lab: Lab, kernel: str) -> Iterator[Figure]:
    """The kernels of `regiongrid.kernels.pattern_hash`, outputs poisoned, against plain numpy in float64."""
    from regiongrid.kernels.pattern_hash import gpu, reference

    rows, units = lab.scale.odd_res, 61
    draw = lab.generator(4)
    z = np.where(draw.random((rows, units)) < 0.1, 0, draw.standard_normal((rows, units)))
    z = np.maximum(z, 0) if kernel == "maximum" else z
    bias, gain, offset = draw.standard_normal(units), 0.02 * draw.random(units), 0.01 * draw.random(units)
    bias *= kernel != "maximum"
    band = gain, offset, draw.random(rows)
    arguments, outputs = _epilogue_arguments(kernel, units, draw)
    for arbiter in (False, True):
        results = []
        for run, as_tensor in ((reference, False), (gpu, True)):
            hashes = np.full(rows, 0xABC, np.uint64)
            arrays = [z.copy(), bias, *arguments, *band, arbiter]
            arrays += [np.full((rows, outputs), np.nan)] if outputs else []
            arrays += [hashes.view(np.int64) if as_tensor else hashes, np.zeros(rows, np.bool_), np.full(rows, np.nan)]
            given = [_to_device(item, lab.device) if as_tensor else item for item in arrays]
            getattr(run, kernel)(*given)
            results.append([item.cpu().numpy() if isinstance(item, Tensor) else item for item in given])
        plain, fast = results
        wrong = unequal(plain[-3], fast[-3].view(np.uint64)) + (0 if arbiter else unequal(plain[-2], fast[-2]))
        values = -4 if outputs else 0
        error = max(float(np.abs(one - other).max()) for one, other in zip(
            (plain[values], plain[-1]), (fast[values], fast[-1])))  # fmt: skip
        what = "arbiter" if arbiter else "fast pass"
        yield Figure(kernel, f"hashes and flags that differ, {what}", wrong, "", "numpy", "0", note=f"of {rows}")
        yield Figure(kernel, f"values off by more than 1e-12, {what}", float(not error < 1e-12), "", "numpy", "0",
                     note=f"largest error {error:.3g}")  # fmt: skip


def _epilogue_arguments(kernel: str, units: int, draw: np.random.Generator) -> tuple[list[Any], int]:
    """What a kernel takes between bias and band, and how many units ``out`` has; 0 where it works in place."""
    if kernel == "relu":
        return [decision_keys(3, units)], 0
    if kernel == "piecewise":
        shapes = [np.sort(draw.standard_normal((2, units)), axis=0), *draw.standard_normal((2, 3, units))]
        return [*shapes, decision_keys(0, 2 * units).reshape(2, units)], 0
    windows = draw.integers(-1, units, (17, 4))
    windows[:, 0] = draw.integers(0, units, 17)
    return [windows, 1, decision_keys(0, windows.size).reshape(windows.shape)], 17


def _to_device(item: Any, device: torch.device) -> Any:
    if not isinstance(item, np.ndarray):
        return item
    signed = item.view(np.int64) if item.dtype == np.uint64 else item
    return torch.from_numpy(np.ascontiguousarray(signed).copy()).to(device)


def sides_of_lines(draw: np.random.Generator, shape: tuple[int, int, int], lines: int) -> Array:
    """Images uint64 [S, H, W]: a hash of the sides of random lines that each pixel is on. Its regions are convex."""
    slices, height, width = shape
    normals = draw.standard_normal((slices, lines, 2))
    shifts = draw.uniform(-0.7, 0.7, (slices, lines))
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[:, None]
    above = [n[:, 0] * x + n[:, 1] * y > shift for n, shift in zip(normals, shifts)]
    keys = decision_keys(0, lines)
    return np.stack([np.bitwise_xor.reduce(np.where(side, keys, np.uint64(0)), axis=-1) ^ START for side in above])


def check_refinement(lab: Lab) -> Iterator[Figure]:
    """Levels of adaptive sampling against plain Python: filled pixels, cells to go on with, pixels to evaluate."""
    from regiongrid.kernels.refinement import gpu, reference

    res = lab.scale.odd_res
    truth = sides_of_lines(lab.generator(5), (1, res, res), 9)[0]
    spacing = first_spacing(res)
    image = torch.zeros((1, res, res), dtype=torch.int64, device=lab.device)
    cells, points = gpu.coarsest(1, res, spacing, lab.device)
    plain = np.zeros((res, res), np.uint64)
    wrong = 0
    while True:
        asked = points.cpu().numpy()
        plain.reshape(-1)[asked] = truth.reshape(-1)[asked]
        image.view(-1)[points] = _to_device(truth.reshape(-1)[asked], lab.device)
        if spacing == 1 or not len(cells):
            break
        corners = np.stack(np.divmod(cells.cpu().numpy(), res), axis=1)
        mixed = np.empty(len(corners), np.bool_)
        reference.fill(plain, corners, spacing, mixed, 0, len(corners))
        children, wanted = np.empty((4 * len(corners), 2), np.int64), np.empty(5 * len(corners), np.int64)
        found = reference.subdivide(plain, corners[mixed], spacing, children, wanted)
        cells, points = gpu.refine(image, cells, spacing)
        expected = children[: found[0]] @ [res, 1]
        wrong += unequal(np.sort(cells.cpu().numpy()), np.sort(expected))
        wrong += unequal(np.sort(points.cpu().numpy()), np.sort(wanted[: found[1]]))
        wrong += unequal(image[0].cpu().numpy().view(np.uint64), plain)
        spacing //= 2
    yield Figure("refinement", "cells and pixels that differ", wrong, "", "plain Python", "0")
    yield compare_images("refinement", "in the end", image[0].cpu().numpy().view(np.uint64), truth)


def check_sums(lab: Lab) -> Iterator[Figure]:
    """Region sums of images of a batch, convex regions and noise, against plain numpy."""
    res = lab.scale.odd_res
    draw = lab.generator(6)
    shape = (2, res, res - 4)
    noise = decision_keys(7, 5)[draw.integers(0, 5, shape)]
    for what, images in (("lines", sides_of_lines(draw, shape, 12)), ("noise", noise)):
        sums = batch_sums(_to_device(images, lab.device))
        plain = [region_sums(image, backend="reference") for image in images]
        wrong = sum(unequal_sums(sums.of(number), one) for number, one in enumerate(plain))
        regions = sum(len(one.patterns) for one in plain)
        yield Figure("moments", f"integers that differ, {what}", wrong, "", "numpy", "0", note=f"{regions} regions")


def unequal_sums(one: RegionSums, other: RegionSums) -> int:
    return sum(unequal(getattr(one, item.name), getattr(other, item.name)) for item in fields(RegionSums))


def make_engines(lab: Lab, subject: Subject, planes: Iterable[int], kappa: float = guard.KAPPA_FLOOR) -> list[Any]:
    """The kernels for the whole network on these planes, in every configuration there is for this chip.

    `Fused` where the chip can hold the network's values, else `Layered`.

    Raises
    ------
    RegiongridError
        The network is no chain of layers, or leaves the range of float16.
    """
    from regiongrid.kernels.mlp_hash import gpu
    from regiongrid.kernels.mlp_hash.scaling import scale
    from regiongrid.sampling.chain import chain

    programs = subject.folded(planes)
    mlp = chain(programs, 0, lab.device)
    xy = torch.from_numpy(lab.generator(8).uniform(-1, 1, (64 * len(programs), 2))).to(lab.device)
    which = torch.arange(len(programs), device=lab.device).repeat_interleave(64)
    scaled = None if mlp is None else scale(mlp, xy, which)
    if scaled is None:
        raise RegiongridError(f"{subject.name} cannot be run by the kernels for whole networks")
    chip = gpu.family(lab.device)
    tiles = gpu.fused_tiles(scaled.mlp.widths, scaled.mlp.bends, chip)
    engines: list[Any] = [gpu.Fused(scaled, tile) for tile in tiles]
    engines += [] if tiles else [gpu.Layered(scaled, gpu.layered_tile(scaled.mlp.bends, chip))]
    for engine in engines:
        engine.set_bands(scaled, np.full(scaled.mlp.layers, kappa))
    return engines


def name_of(engine: Any) -> str:
    tile = engine.tile
    return f"{type(engine).__name__.lower()} kernel, {tile.block} points and {tile.warps} warps"


def kernels_part(lab: Lab) -> Iterator[Step]:
    """The kernels alone, and how far they are from the bound."""
    scale = lab.scale
    usual = scale.usual
    yield Step(usual.name, partial(time_chain, lab, usual, scale.res, 1, ">= 50"))
    yield Step(usual.name, partial(time_chain, lab, usual, scale.large_res))
    yield Step(usual.name, partial(time_chain, lab, usual, scale.slice_res, scale.slices))
    for case in scale.wide:
        yield Step(case.name, partial(time_chain, lab, case, scale.wide_res))
    for case in scale.cases:
        yield Step(case.name, partial(time_regions, lab, case, scale.res))
    yield Step(usual.name, partial(time_regions, lab, usual, scale.slice_res, scale.slices))
    for kernel in ("relu", "piecewise", "maximum"):
        yield Step(kernel, partial(time_epilogue, lab, kernel))


def _images_of(res: int, slices: int) -> str:
    return f"{res}^2" if slices == 1 else f"{slices} x {res}^2"


def time_chain(lab: Lab, case: Case, res: int, slices: int = 1, wanted: str = "") -> Iterator[Figure]:
    """All layers at all pixels, nothing else, in every configuration. What is wanted is wanted of one of them."""
    from regiongrid.kernels.mlp_hash.gpu import Fused, Where

    subject = subject_of(case)
    turns = lab.scale.planes if slices == 1 else 1
    engines = [make_engines(lab, subject, range(k * slices, (k + 1) * slices)) for k in range(turns)]
    total = slices * res * res
    out = torch.empty(total, dtype=torch.int64, device=lab.device)
    if isinstance(engines[0][0], Fused):
        places = [Where.grid(slices, res, lab.device)]
    else:
        pixels = torch.arange(total, device=lab.device)
        places = [Where.pixels(part, slices, res) for part in pixels.split(engines[0][0].most_points)]

    def run(engine: Any) -> None:
        for place in places:
            engine(place, out)

    timed = [(name_of(same[0]), lab.device_time(*(partial(run, engine) for engine in same))) for same in zip(*engines)]
    fastest = min(timing.median for _, timing in timed)
    flops = 2.0 * total * sum(weight.numel() for weight in engines[0][0].mlp.weights)
    for name, timing in timed:
        what = f"{name}, dense {_images_of(res, slices)}"
        yield timing.figure(case.name, what)
        only_the_best = wanted if timing.median == fastest else ""
        yield from of_three_products(lab, case.name, what, timing, flops, only_the_best)


def time_regions(lab: Lab, case: Case, res: int, slices: int = 1) -> Iterator[Figure]:
    """What turns hashes into images and images into sums, on images of real networks."""
    from regiongrid.kernels.components.gpu import label_components
    from regiongrid.sampling.device import adaptive_images

    subject = subject_of(case)
    turns = lab.scale.planes if slices == 1 else 1
    images = [lab.images(subject, range(k * slices, (k + 1) * slices), res) for k in range(turns)]
    regions = len(batch_sums(images[0]).sums.patterns)
    size = _images_of(res, slices)

    def look_up(truth: Tensor, image: Tensor, points: Tensor) -> None:
        image.view(-1)[points] = truth.view(-1)[points]

    def refine(truth: Tensor) -> None:
        adaptive_images(partial(look_up, truth), slices, res, lab.device)

    pixel_bytes = {"refinement, hashes looked up": 8, "components": 12, "moments": 8}
    jobs = {"refinement, hashes looked up": refine, "components": label_components, "moments": batch_sums}
    for name, job in jobs.items():
        what = f"{name}, {size}"
        timing = lab.device_time(*(partial(job, image) for image in images))
        yield timing.figure(case.name, what, note=f"{regions} regions")
        yield from of_copy(lab, case.name, what, timing, pixel_bytes[name] * images[0].numel())


def time_epilogue(lab: Lab, kernel: str) -> Iterator[Figure]:
    """A breakpoint at pre-activations in float32 that do not fit the caches."""
    from regiongrid.kernels.pattern_hash import gpu

    rows, units = lab.scale.rows, lab.scale.units
    draw = lab.generator(9)
    arguments, _ = _epilogue_arguments(kernel, units, draw)
    outputs = units // 4 if kernel == "maximum" else 0
    if kernel == "maximum":
        arguments = [np.arange(units).reshape(-1, 4), 1, decision_keys(0, units).reshape(-1, 4)]
    if kernel == "piecewise":
        arguments[1] %= 1.0  # slopes: values that are worked on again and again must not grow
    shared = [item.astype(np.float32) if getattr(item, "dtype", None) == np.float64 else item for item in arguments]
    shared = [_to_device(item, lab.device) for item in shared]
    bias, gain, offset = (lab.random(units) * size for size in (1.0, 0.0, 0.0))
    out = [torch.empty(rows, outputs, device=lab.device)] if outputs else []
    hashes = torch.zeros(rows, dtype=torch.int64, device=lab.device)
    flags, norms = torch.zeros(rows, dtype=torch.bool, device=lab.device), torch.empty(rows, device=lab.device)
    scale = torch.ones(rows, device=lab.device)

    def run(z: Tensor) -> None:
        getattr(gpu, kernel)(z, bias, *shared, gain, offset, scale, False, *out, hashes, flags, norms)

    timing = lab.device_time(*(partial(run, lab.random(rows, units)) for _ in range(2)))
    what = f"{kernel}, {rows} x {units}, float32"
    yield timing.figure("breakpoint", what)
    yield from of_copy(lab, "breakpoint", what, timing, 4.0 * rows * (units + (outputs or units)))


def sampling_part(lab: Lab) -> Iterator[Step]:
    """Pattern images that stay on the device, from a folded network: calibration, evaluation, close calls."""
    scale = lab.scale
    usual = subject_of(scale.usual)
    for case in scale.cases:
        yield Step(case.name, partial(time_sampling, lab, subject_of(case), "adaptive", scale.res))
    for sampling, res in (("dense", scale.res), ("dense", scale.large_res), ("adaptive", scale.large_res)):
        yield Step(usual.name, partial(time_sampling, lab, usual, sampling, res))
    for sampling in SAMPLINGS:
        yield Step(usual.name, partial(time_sampling, lab, usual, sampling, scale.slice_res, scale.slices))
        for case in scale.wide:
            yield Step(case.name, partial(time_sampling, lab, subject_of(case), sampling, scale.wide_res))
    for name in scale.convolutional:
        yield Step(name, partial(time_convolutional, lab, name))


def time_sampling(lab: Lab, subject: Subject, sampling: str, res: int, slices: int = 1) -> Iterator[Figure]:
    turns = lab.scale.planes if slices == 1 else 1
    last: list[PatternImage] = []

    def run(numbers: Iterable[int]) -> None:
        last[:] = lab.sample(subject, numbers, res, sampling=sampling)

    timing = lab.wall_time(*(partial(run, range(k * slices, (k + 1) * slices)) for k in range(turns)))
    evaluated = sum(image.evaluations for image in last)
    again = sum(image.reevaluated for image in last)
    note = (
        f"fast pass in {last[0].calibration.dtype}; {100 * evaluated / (slices * res * res):.3g}% of the pixels "
        f"evaluated, {100 * again / evaluated:.3g}% of those again"
    )
    yield timing.figure(subject.name, f"sampling, {sampling} {_images_of(res, slices)}", note=note)


def time_convolutional(lab: Lab, name: str) -> Iterator[Figure]:
    """Images of convolutional networks; the large one dense at a quarter of the resolution only."""
    res = lab.scale.conv_res
    if name in EXACT_CASES:
        case = EXACT_CASES[name]
        subject = Subject(name, case.network(), case.half_width)
    else:
        shape = (3, lab.scale.width(32), lab.scale.width(32))
        torch.manual_seed(0)
        subject = Subject(name, rg.load_network(residual_network(lab.scale.resnet, shape), input_shape=shape), 0.2)
    yield from time_sampling(lab, subject, "adaptive", res)
    yield from time_sampling(lab, subject, "dense", res if name in EXACT_CASES else max(res // 4, 2))


@dataclass(frozen=True)
class Whole:
    """Timing of whole estimates; medians of the seconds of their parts, and of the regions found."""

    timing: Timing
    parts: dict[str, float]
    regions: int


def _measure_whole(lab: Lab, subject: Subject, sampling: str, res: int, slices: int) -> Whole:
    turns = lab.scale.planes if slices == 1 else 2
    batches = [[subject.plane(k * slices + number) for number in range(slices)] for k in range(turns)]
    runs: list[dict[str, float]] = []

    def run(planes: list[rg.Slice]) -> None:
        done = rg.estimate(subject.network, planes, res, sampling=sampling, **on_device(lab))
        regions = float(sum(len(est.regions) for est in done))
        runs.append({name: sum(est.seconds[name] for est in done) for name in done[0].seconds} | {"regions": regions})

    timing = lab.wall_time(*(partial(run, batch) for batch in batches))
    counted = runs[-len(timing.runs) :]
    medians = {name: float(np.median([numbers[name] for numbers in counted])) for name in counted[0]}
    regions = int(medians.pop("regions"))
    return Whole(timing, medians, regions)


def estimate_part(lab: Lab) -> Iterator[Step]:
    """Whole estimates, network and slice in, table out."""
    scale = lab.scale
    yield Step(scale.usual.name, partial(time_whole, lab, scale.usual, "dense", scale.res, 1, "<= 40"))
    for case in scale.cases:
        yield Step(case.name, partial(time_whole, lab, case, "adaptive", scale.res, 1, "<= 10"))
    for sampling in ("adaptive", "dense"):
        wanted = "<= 5" if sampling == "adaptive" else ""
        run = partial(time_whole, lab, scale.usual, sampling, scale.slice_res, scale.slices, wanted)
        yield Step(scale.usual.name, run)
    for sampling in SAMPLINGS:
        yield Step(scale.usual.name, partial(time_whole, lab, scale.usual, sampling, scale.large_res))
    yield Step(scale.usual.name, partial(time_summary, lab))


def time_whole(lab: Lab, case: Case, sampling: str, res: int, slices: int = 1, wanted: str = "") -> Iterator[Figure]:
    whole = lab.whole(subject_of(case), sampling, res, slices)
    what = f"estimate, {sampling} {_images_of(res, slices)}"
    yield whole.timing.figure(case.name, what, wanted=wanted, note=f"{whole.regions} regions")
    for name, value in whole.parts.items():
        yield Figure(case.name, f"{what}: {name}", 1e3 * value, "ms")


def time_summary(lab: Lab) -> Iterator[Figure]:
    subject = subject_of(lab.scale.usual)
    estimates = rg.estimate(
        subject.network, [subject.plane(number) for number in range(lab.scale.planes)], lab.scale.res, **on_device(lab)
    )
    timing = Timing(tuple(seconds(estimate.summary) for estimate in estimates))
    yield timing.figure(subject.name, f"summary of an estimate at {lab.scale.res}^2")


@dataclass(frozen=True)
class Cost:
    """Seconds that grow with the pixels, seconds that grow with the regions, and how many regions there were."""

    by_pixel: float
    by_region: float
    regions: int

    @property
    def total(self) -> float:
        return self.by_pixel + self.by_region


def naive(module: nn.Module, axes: Tensor, origin: Tensor, plane: rg.Slice, res: int) -> Cost:
    """A dense grid through the module on the GPU, unique patterns there, label and regionprops_table on the host.

    Patterns come from hooks on every ReLU, as hashes (a sum of random numbers), since sorting hashes is many times
    faster than sorting rows of bits.
    """
    start = time.perf_counter()
    device = axes.device
    centres = torch.from_numpy(plane.pixel_centres(res)).float().to(device)
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).reshape(-1, 2)
    seen: list[Tensor] = []
    relus = [layer for layer in module.modules() if isinstance(layer, nn.ReLU)]
    hooks = [layer.register_forward_hook(lambda _module, _inputs, out: seen.append(out > 0)) for layer in relus]
    codes: list[Tensor] = []
    numbers = torch.empty(0)
    with torch.no_grad(), full_float32():
        for part in grid.split(1 << 16):
            seen.clear()
            module(part @ axes.T + origin)
            bits = torch.cat(seen, dim=1)
            if not codes:
                numbers = torch.randint(-(1 << 62), 1 << 62, bits.shape[1:], device=device)
            codes.append(torch.where(bits, numbers, 0).sum(1))
    for hook in hooks:
        hook.remove()
    patterns, inverse = torch.unique(torch.cat(codes), return_inverse=True)
    image = inverse.reshape(res, res).cpu().numpy()
    pieces = label(image + 1, connectivity=1)
    half = time.perf_counter()
    regionprops_table(pieces, properties=("area", "eccentricity", "perimeter", "centroid"))
    return Cost(half - start, time.perf_counter() - half, len(patterns))


def naive_pipelines(case: Case, device: torch.device) -> dict[str, Callable[[int], Cost]]:
    """As written, and by someone who noticed that the first layer is affine in (u, v); both at a resolution."""
    plane = case.slice()
    axes = torch.from_numpy(np.stack([plane.u, plane.v], axis=1)).float().to(device)
    origin = torch.from_numpy(np.array(plane.origin)).float().to(device)
    layers: list[nn.Module] = []
    for weight, bias in folded_layers(case)[:-1]:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        layers += [linear, nn.ReLU()]
    clever = nn.Sequential(*layers).to(device)
    plain = case.module().to(device)
    nothing = torch.eye(2, device=device), torch.zeros(2, device=device)
    return {
        "naive pipeline on this GPU": lambda res: naive(plain, axes, origin, plane, res),
        "naive pipeline on this GPU, slice folded": lambda res: naive(clever, *nothing, plane, res),
    }


def measured_or_scaled(pipeline: Callable[[int], Cost], res: int, limit: float) -> tuple[Cost, str]:
    """The cost at ``res``, or where that would take too long, from a quarter of it; and a note that says so.

    Scaled, the seconds that grow with the regions are left as they are, which is in favour of the baseline.
    """
    quarter = max(res // 4, 4)
    pipeline(quarter)
    small = pipeline(quarter)
    factor = (res / quarter) ** 2
    if factor * small.by_pixel + small.by_region <= limit:
        return pipeline(res), ""
    return (
        replace(small, by_pixel=factor * small.by_pixel),
        f"measured at {quarter}^2; what grows with the pixels is scaled by {factor:g}, regionprops is not",
    )


def baselines_part(lab: Lab) -> Iterator[Step]:
    """What a user would write, on this GPU, and regiongrid on this machine's CPU."""
    for case in lab.scale.cases[:2]:
        yield Step(case.name, partial(against_naive, lab, case))
        yield Step(case.name, partial(against_cpu, lab, case))


def against_naive(lab: Lab, case: Case) -> Iterator[Figure]:
    res = lab.scale.res
    ours = lab.whole(subject_of(case), "adaptive", res, 1).timing.median
    for (name, pipeline), wanted in zip(naive_pipelines(case, lab.device).items(), (">= 100", "")):
        cost, note = measured_or_scaled(pipeline, res, lab.scale.limit)
        remark = f"{cost.regions} regions; regionprops_table {cost.by_region:.3g} s" + (f"; {note}" if note else "")
        yield Figure(case.name, f"{name}, {res}^2", 1e3 * cost.total, "ms", note=remark)
        yield Figure(case.name, f"{name} / estimate, adaptive {res}^2", cost.total / ours, "x", name, wanted, note=note)


def against_cpu(lab: Lab, case: Case) -> Iterator[Figure]:
    subject, res = subject_of(case), lab.scale.res
    for sampling, repeats in (("adaptive", 3), ("dense", 1)):
        if sampling == "dense" and case != lab.scale.usual:
            continue
        ours = lab.whole(subject, sampling, res, 1).timing.median
        rg.estimate(subject.network, subject.plane(0), max(res // 8, 4), sampling=sampling, backend="cpu")

        def job(sampling: str = sampling) -> None:
            rg.estimate(subject.network, subject.plane(0), res, sampling=sampling, backend="cpu")

        timing = Timing(tuple(seconds(job) for _ in range(repeats)))
        what = f"backend cpu, {sampling} {res}^2"
        yield timing.figure(case.name, what, note=f"{machine()['cores']} cores")
        ratio = timing.median / ours
        yield Figure(case.name, f"{what} / estimate, {sampling}", ratio, "x", f"{what}", ">= 50")


_FRESH = "import sys; from benchmarks.gpu import print_peaks; print_peaks(*sys.argv[1:])"


def print_peaks(width: str, half_width: str, sampling: str, res: str, slices: str, device: str) -> None:
    """Run one whole estimate in this process; print its peaks in bytes as JSON."""
    if device == "cpu":
        prepare_rehearsal()
    subject = subject_of(Case("", int(width), float(half_width)))
    planes = [subject.plane(number) for number in range(int(slices))]
    rg.estimate(subject.network, planes, int(res), sampling=sampling, backend="triton", device=device)
    peaks = {"host": peak_of_host()}
    if device.startswith("cuda"):
        peaks["device"] = torch.cuda.max_memory_allocated()
        peaks["device, reserved"] = torch.cuda.max_memory_reserved()
    print(json.dumps(peaks))


def peak_of_host() -> int:
    """Largest resident memory of this process so far, bytes."""
    with suppress(OSError):  # ru_maxrss counts the process that started this one too, so it comes second
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return 1024 * int(found[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_part(lab: Lab) -> Iterator[Step]:
    """Peak memory of whole estimates, each in a process of its own."""
    scale = lab.scale
    jobs = [("adaptive", scale.res, 1), ("dense", scale.res, 1), ("adaptive", scale.slice_res, scale.slices)]
    jobs += [("dense", scale.large_res, 1)]
    for job in jobs if scale.trials is None else jobs[:1]:
        yield Step(scale.usual.name, partial(peaks_of, lab, *job))


def peaks_of(lab: Lab, sampling: str, res: int, slices: int) -> Iterator[Figure]:
    case = lab.scale.usual
    arguments = (case.width, case.half_width, sampling, res, slices, lab.device)
    command = [sys.executable, "-W", "ignore", "-c", _FRESH, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for what, size in json.loads(done.stdout.splitlines()[-1]).items():
        quantity = f"peak memory, estimate, {sampling} {_images_of(res, slices)}: {what}"
        yield Figure(case.name, quantity, size / 1e9, "GB", note="everything in the process" if what == "host" else "")


PARTS: dict[str, Callable[[Lab], Iterable[Step]]] = {
    "device": device_part,
    "ceilings": ceilings_part,
    "correctness": correctness_part,
    "kernels": kernels_part,
    "sampling": sampling_part,
    "estimate": estimate_part,
    "baselines": baselines_part,
    "memory": memory_part,
}


def met(figure: Row) -> bool:
    """Whether a figure is what was wanted; true where nothing was."""
    found = re.fullmatch(r"(>=|<=|)\s*([\d.]+)", figure.wanted)
    if found is None:
        return True
    bound = float(found[2])
    return {">=": figure.value >= bound, "<=": figure.value <= bound, "": figure.value == bound}[found[1]]


class Report:
    """The rows so far, on the screen and in the file."""

    def __init__(self, path: Path, header: Mapping[str, str]) -> None:
        self.path = path
        self.header = dict(header)
        self.rows: list[tuple[str, Figure]] = []
        self.failures: list[str] = []
        self.misses: list[str] = []

    def add(self, part: str, figure: Figure) -> None:
        against = f", against {figure.baseline}" if figure.baseline else ""
        wanted = f" (wanted {figure.wanted})" if figure.wanted else ""
        note = f" [{figure.note}]" if figure.note else ""
        line = f"{figure.case:<18} {figure.quantity:<58} {figure.value:>11.5g} {figure.unit}{against}{wanted}{note}"
        print(f"  {line}", flush=True)
        self.rows.append((part, figure))
        if not met(figure):
            (self.failures if figure.wanted == "0" else self.misses).append(f"{part}: {' '.join(line.split())}")

    def fail(self, part: str, case: str, error: Exception) -> None:
        """Note a step that could not be finished."""
        traceback.print_exception(error)
        sentence = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
        if isinstance(error, subprocess.CalledProcessError):  # what the other process said in the end, not its command
            print(error.stderr, file=sys.stderr)
            sentence = f"another process: {(error.stderr.splitlines() or ['no word'])[-1][:300]}"
        self.rows.append((part, Figure(case, "failed", math.nan, "", note=sentence)))
        self.failures.append(f"{part}: {case} failed with {sentence}")
        print(f"  {case:<18} FAILED {sentence}", flush=True)

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            file.writelines(f"# {key}: {value}\n" for key, value in self.header.items())
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["part", "case", "quantity", "value", "p20", "p80", "unit", "baseline", "wanted", "note"])
            for part, row in self.rows:
                numbers = ["" if math.isnan(value) else f"{value:.6g}" for value in (row.value, row.p20, row.p80)]
                writer.writerow([part, row.case, row.quantity, *numbers, row.unit, row.baseline, row.wanted, row.note])

    def close(self) -> None:
        """Say what was missed and what failed."""
        for title, sentences in (("not as wanted", self.misses), ("FAILED", self.failures)):
            if sentences:
                print(f"\n{title}:", *sentences, sep="\n  ")
        print(f"\n{len(self.rows)} rows in {self.path}", flush=True)


def run_part(lab: Lab, report: Report, name: str) -> None:
    """Do the steps of a part; one that fails is noted, and the next one begins."""
    part = PARTS[name]
    start = time.perf_counter()
    print(f"\n{name}: {(part.__doc__ or '').strip().splitlines()[0]}", flush=True)
    for step in part(lab):
        try:
            for figure in step.run():
                report.add(name, figure)
        except MemoryLimitError as error:  # a smaller device, which says so before any work
            report.add(name, Figure(step.case, "does not fit", math.nan, "", note=str(error)))
        except Exception as error:  # compilers, drivers and libraries raise what they like
            report.fail(name, step.case, error)
        report.write()
    lab.forget_images()
    report.add(name, Figure("", "wall time of this part", time.perf_counter() - start, "s"))
    report.write()


def header(device: torch.device, seed: int) -> dict[str, str]:
    """What the figures were measured on."""
    facts = {**machine(), "triton": _version("triton"), "seed": str(seed)}
    if device.type != "cuda":
        return {"gpu": "none: a rehearsal in Triton's interpreter", **facts}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "toolkit": f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
        **facts,
    }


def _version(package: str) -> str:
    """Of torch's Triton on ROCm too, which has another name there."""
    for name in (package, f"pytorch-{package}-rocm"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.split("\n")[0].strip()


def file_name(name: str, options: argparse.Namespace) -> str:
    """DEVICE.csv, with what makes the run a partial one behind the name."""
    parts = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")]
    parts += ["quick"] if options.quick else []
    return "-".join([*parts, *options.parts]) + ".csv"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Check the Triton kernels on this machine's GPU and measure them. "
        "Exit status 1 if something differs or fails, 2 if there is no GPU. Missing a wanted time is no failure.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these parts: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="folder of the results (default: results/gpu)")
    parser.add_argument("--quick", action="store_true", help="fewer networks, less patience: under three minutes")
    # The whole script on tiny inputs in Triton's interpreter, to know that it runs before it meets a GPU.
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    return parser


def prepare_rehearsal() -> None:
    """Triton's interpreter, which takes milliseconds a point, and few points for the calibration."""
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined, which is later
    guard.SAMPLE_POINTS = guard._SAMPLE_POINTS_OF_A_SLICE = 8


def choose_device(rehearse: bool) -> torch.device:
    """The GPU, or the CPU for a rehearsal.

    Raises
    ------
    InputError
        There is no GPU that Triton runs on.
    """
    if rehearse:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"there is nothing to measure: torch {torch.__version__} sees no CUDA or ROCm device; "
            "run this on a machine with a GPU, with a torch that is built for it"
        )
    return select("triton", "cuda").device


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.rehearse:
        prepare_rehearsal()
    try:
        device = choose_device(options.rehearse)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    seed = int.from_bytes(os.urandom(4), "little")
    facts = header(device, seed)
    folder = options.out or (Path(tempfile.mkdtemp()) if options.rehearse else RESULTS)
    report = Report(folder / file_name("rehearsal" if options.rehearse else facts["gpu"], options), facts)
    for key, value in facts.items():
        print(f"{key}: {value}")
    lab = Lab(device, REHEARSAL if options.rehearse else QUICK if options.quick else FULL, seed)
    for name in options.parts or PARTS:
        run_part(lab, report, name)
    report.close()
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
