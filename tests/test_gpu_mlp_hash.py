"""Whole networks in pairs of float16 numbers against float64: equal hashes wherever a point is not flagged."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from regiongrid.kernels.gpu import TARGETS
from regiongrid.kernels.mlp_hash import MAX_THRESHOLDS, Bend, Mlp, gpu, reference, scaling
from regiongrid.kernels.pattern_hash import START, decision_keys

Array = np.ndarray[Any, Any]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CHIP = gpu.family(DEVICE)
KAPPA = 8.0
UNIT = 2.0**-24
UNASKED = -7
LARGEST_FLOAT16 = 65504.0


@pytest.fixture(autouse=True, scope="module")
def _poison() -> Iterator[None]:
    """Fresh memory holds nonsense, so that whatever is read must have been written."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        fresh = empty(*args, **kwargs)
        return fresh.fill_(torch.nan if fresh.is_floating_point() else 77)

    with mock.patch.object(torch, "empty", poisoned):
        yield


def bend(kind: str, units: int, random: np.random.Generator) -> Bend | None:
    """A breakpoint: "shifted" and "steps" have another threshold and other jumps in every unit."""
    one, zero = np.ones(units), np.zeros(units)
    if kind == "relu":
        return None
    if kind == "leaky":
        return Bend(zero[None], np.stack([0.1 * one, one]), np.zeros((2, units)))
    if kind == "abs":
        return Bend(zero[None], np.stack([-one, one]), np.zeros((2, units)))
    if kind == "clamp":
        return Bend(np.stack([-one, one]), np.stack([zero, one, zero]), np.stack([-one, zero, one]))
    count = {"shifted": 1, "steps": 2}[kind]
    thresholds = np.sort(random.normal(size=(count, units)), axis=0)
    return Bend(thresholds, random.normal(size=(count + 1, units)), random.normal(size=(count + 1, units)))


def network(
    widths: Sequence[int], kinds: Sequence[str] = ("relu",), *, slices: int = 1, seed: int = 0, bias: float = 0.3
) -> Mlp:
    """Normal weights; layer l has the breakpoint ``kinds[l]``, and round again."""
    random = np.random.default_rng(seed)
    first, keys = 0, []
    bends = [bend(kinds[layer % len(kinds)], n, random) for layer, n in enumerate(widths)]
    for found, n in zip(bends, widths):
        count = n if found is None else found.thresholds.size
        keys.append(decision_keys(first, count).reshape(-1, n))
        first += count
    return Mlp(
        head=tensor(random.normal(size=(slices, 3, widths[0]))),
        weights=tuple(tensor(random.normal(size=(n, m)) * (2 / m) ** 0.5) for m, n in itertools.pairwise(widths)),
        biases=tuple(tensor(random.normal(size=n) * bias) for n in widths[1:]),
        bends=tuple(bends),
        keys=tuple(keys),
        start=int(START.view(np.int64)),
    )


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float64)).to(DEVICE)


@dataclass(frozen=True)
class Points:
    """Points that float32 holds exactly, slice after slice."""

    xy: Tensor  # [B, 2] float64
    which: Tensor  # [B] int64
    slices: int

    def __len__(self) -> int:
        return len(self.xy)

    def where(self) -> gpu.Where:
        return gpu.Where.coordinates(self.xy, self.which, self.slices)


def random_points(counts: Sequence[int], seed: int = 0, within: float = 1.0) -> Points:
    xy = np.random.default_rng(seed).uniform(-within, within, (sum(counts), 2)).astype(np.float32)
    which = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Points(tensor(xy), which.to(DEVICE), len(counts))


def pixel_centres(slices: int, res: int) -> Points:
    centres = (2 * np.arange(res) + 1 - res) / res
    xy = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    which = torch.arange(slices).repeat_interleave(res * res)
    return Points(tensor(np.tile(xy, (slices, 1))), which.to(DEVICE), slices)


def at_thresholds(mlp: Mlp, layer: int, which: int, count: int, seed: int = 0) -> Points:
    """Points where a random unit of ``layer`` meets a random one of its thresholds, to the last bit of float32."""
    random = np.random.default_rng(seed)
    tries, found = 60 * count, mlp.bends[layer]
    unit = torch.from_numpy(random.integers(mlp.widths[layer], size=tries)).to(DEVICE)
    thresholds = torch.zeros(1, mlp.widths[layer]) if found is None else torch.from_numpy(found.thresholds)
    pick = torch.from_numpy(random.integers(len(thresholds), size=tries)).to(DEVICE)
    threshold = thresholds.to(unit.device)[pick, unit]

    def above(xy: Tensor, rows: Tensor) -> Tensor:
        z = reference.preactivations(mlp, xy, torch.full((len(xy),), which, device=DEVICE))[0][layer]
        return z.gather(1, unit[rows, None])[:, 0] > threshold[rows]

    start, end = (tensor(random.uniform(-1, 1, (tries, 2))) for _ in range(2))
    rows = torch.arange(tries, device=DEVICE)
    rows = rows[above(start, rows) != above(end, rows)][:count]
    assert len(rows) == count, f"{len(rows)} of {count} pairs of points lie on two sides of a threshold"
    start, end = start[rows], end[rows]
    side = above(start, rows)
    for _ in range(60):
        middle = (start + end) / 2
        here = (above(middle, rows) == side)[:, None]
        start, end = torch.where(here, middle, start), torch.where(here, end, middle)
    return Points(start.float().double(), torch.full((count,), which, device=DEVICE), mlp.slices)


def merged(parts: Sequence[Points]) -> Points:
    which = torch.cat([part.which for part in parts])
    order = which.argsort(stable=True)
    return Points(torch.cat([part.xy for part in parts])[order], which[order], parts[0].slices)


def scaled_by(mlp: Mlp, sample: Points | None = None) -> scaling.Scaled:
    sample = random_points([64] * mlp.slices, seed=1) if sample is None else sample
    scaled = scaling.scale(mlp, sample.xy, sample.which)
    assert scaled is not None
    return scaled


def engine(kind: str, scaled: scaling.Scaled) -> gpu.Fused | gpu.Layered:
    """An engine with tiles of this device, and the bands set.

    In the interpreter time goes by operations, not by numbers: larger tiles than its own.
    """
    widths, bends = scaled.mlp.widths, scaled.mlp.bends
    if kind == "layered":
        layered = gpu.layered_tile(bends, CHIP)
        if CHIP == "interpreter":
            layered = dataclasses.replace(layered, first_chunk=32, chunk=64, depth=32, block=64)
        return with_bands(gpu.Layered(scaled, layered), scaled)
    tiles = gpu.fused_tiles(widths, bends, CHIP)
    if not tiles:
        pytest.skip(f"{max(widths)} units are too many for the fused kernel on this device")
    tile = tiles[0]
    if CHIP == "interpreter":
        tile = dataclasses.replace(tile, chunk=32, chunks=-(-max(widths) // 32), block=64)
    return with_bands(gpu.Fused(scaled, tile), scaled)


def with_bands(run: gpu.Fused | gpu.Layered, scaled: scaling.Scaled) -> gpu.Fused | gpu.Layered:
    run.set_bands(scaled, np.full(scaled.mlp.layers, KAPPA))
    return run


@dataclass(frozen=True)
class Found:
    hashes: Tensor  # [layers, B] of the first 1, 2, ... layers
    flags: Tensor  # [B] bool


def launch(run: gpu.Fused | gpu.Layered, where: gpu.Where, pixels: int) -> Found:
    """Hashes at the points of ``where``, of an image of ``pixels`` pixels; checks what must not be written."""
    image = torch.full((pixels,), UNASKED, dtype=torch.int64, device=DEVICE)
    prefixes = torch.full((run.mlp.layers, where.total), UNASKED, dtype=torch.int64, device=DEVICE)
    flags = run(where, image, prefixes=prefixes).flags
    assert flags.shape == (where.total,)
    assert set(flags.tolist()) <= {0, 1}
    places = where.points if where.source == "list" else torch.arange(pixels, device=DEVICE)
    assert torch.equal(image[places], prefixes[-1]), "hashes and the hashes of all layers differ"
    asked = torch.zeros(pixels, dtype=torch.bool, device=DEVICE)
    asked[places] = True
    assert bool((image[~asked] == UNASKED).all()), "wrote pixels that were not asked for"
    return Found(prefixes, flags != 0)


def assert_right(found: Found, mlp: Mlp, points: Points, what: str, most_flagged: float = 1.0) -> None:
    """Prefix hashes equal those of float64 where not flagged; a failure shows the first places that differ."""
    expected = reference.hash_points(mlp, points.xy, points.which)
    wrong = ((found.hashes != expected) & ~found.flags).nonzero()
    worst = [
        f"layer {layer}, point {b} at {points.xy[b].tolist()} of slice {int(points.which[b])}: "
        f"{int(found.hashes[layer, b])}, expected {int(expected[layer, b])}"
        for layer, b in wrong[:5].tolist()
    ]
    assert not worst, f"{what}: {len(wrong)} wrong and not flagged: {worst}"
    share = float(found.flags.double().mean()) if len(points) else 0.0
    assert share <= most_flagged, f"{what}: {share:.1%} of the points flagged"


def units_of_rounding(scaled: scaling.Scaled, points: Points) -> list[Tensor]:
    """What the errors of each layer are measured with, [B, n_0] for the first and [B, 1] for the others."""
    values = reference.preactivations(scaled.mlp, points.xy, points.which)[1]
    later = [
        gain * h.norm(dim=1, keepdim=True) + offset
        for gain, offset, h in zip(scaled.gain[1:], scaled.offset[1:], values)
    ]
    return [UNIT * unit for unit in (scaled.first[points.which], *later)]


def distances(scaled: scaling.Scaled, points: Points) -> tuple[Tensor, Tensor]:
    """Distance [B] from the closest threshold of any unit, in units of rounding and as it is (scaled)."""
    relative, plain = [], []
    before = reference.preactivations(scaled.mlp, points.xy, points.which)[0]
    for z, unit, found in zip(before, units_of_rounding(scaled, points), scaled.mlp.bends):
        thresholds = [torch.zeros_like(z[0])] if found is None else torch.from_numpy(found.thresholds).to(z)
        for threshold in thresholds:
            relative.append(((z - threshold).abs() / unit).amin(dim=1))
            plain.append((z - threshold).abs().amin(dim=1))
    return torch.stack(relative).amin(dim=0), torch.stack(plain).amin(dim=0)


@dataclass(frozen=True)
class Case:
    widths: tuple[int, ...]
    kinds: tuple[str, ...]
    counts: tuple[int, ...]  # points of each slice
    res: int

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))}-{'-'.join(self.kinds)}-{len(self.counts)}"


CASES = [
    Case((1,), ("relu",), (3,), 1),
    Case((3, 1, 7), ("leaky",), (1, 0, 20), 3),
    Case((17, 33, 31), ("relu",), (0, 5, 1, 33, 0), 5),
    Case((63, 16), ("clamp",), (40,), 7),
    Case((7, 31, 16), ("relu", "clamp", "leaky"), (1, 1), 5),
    Case((16, 17, 7, 33, 3), ("abs", "relu", "shifted"), (0, 0, 17), 3),
    Case((31, 63, 33), ("steps", "relu"), (30, 2), 7),
    Case((33, 63, 31, 17), ("relu", "shifted"), (65,), 9),
]
if CHIP != "interpreter":
    CASES += [
        Case((63, 100, 200), ("relu",), (1000, 0, 1, 333), 33),
        Case((100, 63, 128, 100, 17), ("steps", "relu", "leaky"), (500, 501), 33),
        Case((257, 200), ("relu",), (777, 3), 29),
        Case((512, 63, 257), ("relu", "clamp"), (777, 0, 129), 29),
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", ["fused", "layered"])
def test_hashes_are_those_of_float64(kind: str, case: Case) -> None:
    slices, pixels = len(case.counts), len(case.counts) * case.res**2
    mlp = network(case.widths, case.kinds, slices=slices, seed=len(case.widths))
    run = engine(kind, scaled_by(mlp))
    points = random_points(case.counts)
    assert_right(launch(run, points.where(), len(points)), mlp, points, "coordinates", 0.02)

    centres = pixel_centres(slices, case.res)
    grid = launch(run, gpu.Where.grid(slices, case.res, DEVICE), pixels)
    assert_right(grid, mlp, centres, "grid", 0.02)

    chosen = np.random.default_rng(5).permutation(pixels)[: max(pixels // 3, 1)]
    chosen = chosen if slices == 1 else np.sort(chosen)
    some = torch.from_numpy(chosen).to(DEVICE)
    listed = launch(run, gpu.Where.pixels(some, slices, case.res), pixels)
    assert_right(listed, mlp, Points(centres.xy[some], centres.which[some], slices), "list", 0.02)
    assert torch.equal(listed.flags, grid.flags[some]), "flags depend on who else is asked for"
    assert torch.equal(listed.hashes, grid.hashes[:, some]), "hashes depend on who else is asked for"


@pytest.mark.parametrize("kinds", [("relu",), ("leaky", "relu"), ("relu", "clamp")], ids="-".join)
@pytest.mark.parametrize("width", [33] if CHIP == "interpreter" else [5, 63, 100, 190, 255])
def test_tiles_of_this_device(width: int, kinds: tuple[str, ...]) -> None:
    mlp = network((width, width - 2), kinds, slices=3)
    scaled = scaled_by(mlp)
    points = random_points((17, 0, 16) if CHIP == "interpreter" else (777, 0, 129))
    runs: list[gpu.Fused | gpu.Layered] = [gpu.Layered(scaled, gpu.layered_tile(mlp.bends, CHIP))]
    runs += [gpu.Fused(scaled, tile) for tile in gpu.fused_tiles(mlp.widths, mlp.bends, CHIP)]
    for run in runs:
        found = launch(with_bands(run, scaled), points.where(), len(points))
        assert_right(found, mlp, points, str(run.tile), 0.02)


@pytest.mark.skipif(CHIP != "interpreter", reason="on a GPU test_tiles_of_this_device has the widths")
@pytest.mark.parametrize("width", [63, 100, 200, 257])
def test_tiles_of_a_chip_in_the_interpreter(width: int) -> None:
    mlp = network((width, width - 1), ("relu",), slices=2)
    scaled = scaled_by(mlp)
    points = random_points((130, 70))
    runs: list[gpu.Fused | gpu.Layered] = [gpu.Layered(scaled, gpu.layered_tile(mlp.bends, "sm_90"))]
    runs += [gpu.Fused(scaled, tile) for tile in gpu.fused_tiles(mlp.widths, mlp.bends, "sm_90")]
    assert (len(runs) == 1) == (width > 256)
    for run in runs:
        found = launch(with_bands(run, scaled), points.where(), len(points))
        assert_right(found, mlp, points, str(run.tile), 0.03)


@settings(max_examples=8, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink would take minutes
@given(data=st.data())
def test_random_networks(data: st.DataObject) -> None:
    """Units that are off, without weights, without bias, or a million times as large as others."""
    widths = data.draw(st.lists(st.sampled_from([1, 2, 3, 7, 16, 17, 31, 33]), min_size=1, max_size=5))
    kinds = data.draw(st.lists(st.sampled_from(["relu", "leaky", "abs", "clamp", "shifted", "steps"]), min_size=1))
    counts = data.draw(st.lists(st.integers(0, 25), min_size=1, max_size=3).filter(any))
    seed = data.draw(st.integers(0, 2**32 - 1))
    spread = data.draw(st.sampled_from([0.0, 3.0, 6.0]))
    mlp = spoilt(network(widths, kinds, slices=len(counts), seed=seed), spread, seed)
    points = random_points(counts, seed)
    scaled = scaling.scale(mlp, points.xy, points.which)
    if scaled is None:
        return
    for kind in ("fused", "layered"):
        assert_right(launch(engine(kind, scaled), points.where(), len(points)), mlp, points, kind)


def spoilt(mlp: Mlp, spread: float, seed: int) -> Mlp:
    """Units scaled by up to 10^spread either way, and some without weights, without bias, or far below zero."""
    random = np.random.default_rng(seed)
    weights, biases = [], []
    for weight, bias in zip(mlp.weights, mlp.biases):
        units = len(bias)
        size = 10.0 ** random.uniform(-spread, spread, units)
        weights.append(weight * tensor(size * (random.random(units) > 0.1))[:, None])
        dead = np.where(random.random(units) < 0.1, 50.0, 0.0)
        biases.append((bias - tensor(dead)) * tensor(size * (random.random(units) > 0.3)))
    return dataclasses.replace(mlp, weights=tuple(weights), biases=tuple(biases))


@pytest.mark.parametrize("kind", ["fused", "layered"])
def test_nothing_on(kind: str) -> None:
    """Behind a layer that is off everywhere the pre-activations are the biases, and no point is close to anything."""
    mlp = network((7, 17, 3))
    mlp.head[:, 2] = -20.0
    points = random_points((20,))
    found = launch(engine(kind, scaled_by(mlp)), points.where(), len(points))
    assert_right(found, mlp, points, kind, most_flagged=0.0)
    assert len(set(found.hashes[-1].tolist())) == 1


@pytest.mark.parametrize("kind", ["fused", "layered"])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_layer_of_zeros(zero: int, kind: str) -> None:
    """Pre-activations that are zero everywhere are off in float64, and here at least not taken to be on."""
    mlp = network((7, 17, 3), bias=0.0 if zero else 0.3)
    numbers = mlp.head if zero == 0 else mlp.weights[zero - 1]
    numbers[:] = 0
    points = random_points((20,))
    assert_right(launch(engine(kind, scaled_by(mlp)), points.where(), len(points)), mlp, points, kind)


@pytest.mark.parametrize("kind", ["fused", "layered"])
def test_no_points(kind: str) -> None:
    mlp = network((3, 5), slices=2)
    run = engine(kind, scaled_by(mlp))
    image = torch.full((8,), UNASKED, dtype=torch.int64, device=DEVICE)
    nowhere = gpu.Where.pixels(torch.zeros(0, dtype=torch.int64, device=DEVICE), 2, 2)
    for observe, shapes in ((False, []), (True, [(0, 3), (0, 5)])):
        found = run(nowhere, image, observe=observe)
        assert found.flags.shape == (0,)
        assert [tuple(z.shape) for z in found.seen] == shapes
    assert bool((image == UNASKED).all())


@pytest.mark.parametrize("kind", ["fused", "layered"])
@pytest.mark.parametrize(
    ("widths", "kinds"),
    [((17, 31, 16), ("relu",)), ((33, 17), ("steps",)), ((16, 31, 17), ("clamp", "relu", "shifted"))],
    ids=["relu", "steps", "mixture"],
)
def test_flags_what_is_close_and_nothing_else(widths: tuple[int, ...], kinds: tuple[str, ...], kind: str) -> None:
    mlp = network(widths, kinds, slices=2)
    scaled = scaled_by(mlp)
    built = [at_thresholds(mlp, layer, which, 12, seed=layer) for layer in range(len(widths)) for which in range(2)]
    points = merged([*built, random_points((60, 60), seed=9)])
    found = launch(engine(kind, scaled), points.where(), len(points))
    assert_right(found, mlp, points, kind)
    relative, plain = distances(scaled, points)
    close = relative <= KAPPA / 2
    assert int(close.sum()) >= 0.9 * sum(map(len, built)), "few of the points built at thresholds lie there"
    missed = (close & ~found.flags).nonzero().squeeze(1)[:5].tolist()
    assert not missed, f"close and not flagged: {[(b, float(relative[b])) for b in missed]}"
    far = (relative >= 2 * KAPPA) & (plain >= 4 * UNIT)
    assert int(far.sum()) >= 100
    alarms = (far & found.flags).nonzero().squeeze(1)[:5].tolist()
    assert not alarms, f"far and flagged: {[(b, float(relative[b])) for b in alarms]}"


@pytest.mark.parametrize("kind", ["fused", "layered"])
@pytest.mark.parametrize("ratio", [1e-3, 1e-4, 1e-5])
def test_small_slice_beside_a_large_one(kind: str, ratio: float) -> None:
    """Without biases all values of a slice are as small as its head: float16 holds fewer bits of them."""
    mlp = network((20, 20, 20), slices=2, bias=0.0)
    mlp.head[1] *= ratio
    points = merged([at_thresholds(mlp, layer, 1, 40, seed=layer) for layer in range(3)])
    found = launch(engine(kind, scaled_by(mlp)), points.where(), len(points))
    assert_right(found, mlp, points, kind)


@pytest.mark.parametrize("kind", ["fused", "layered"])
def test_values_far_smaller_than_preactivations(kind: str) -> None:
    """A breakpoint that shrinks: its values are small where the pre-activations fill the range of float16."""
    mlp = network((31, 31), ("abs", "relu"), bias=0.0)
    assert mlp.bends[0] is not None
    mlp.bends[0].slopes[:] *= 3e-5
    points = merged([at_thresholds(mlp, 1, 0, 60), random_points((60,))])
    assert_right(launch(engine(kind, scaled_by(mlp)), points.where(), len(points)), mlp, points, kind)


@pytest.mark.parametrize("kind", ["fused", "layered"])
def test_values_far_larger_than_preactivations(kind: str) -> None:
    """Half of the units have thresholds and jumps a million times their pre-activations."""
    mlp = network((16, 17), ("relu", "shifted"))
    mlp.weights[0][:8] *= 1e-6
    mlp.biases[0][:8] *= 1e-6
    points = merged([at_thresholds(mlp, 1, 0, 60), random_points((40,))])
    assert_right(launch(engine(kind, scaled_by(mlp)), points.where(), len(points)), mlp, points, kind)


@pytest.mark.parametrize("kind", ["fused", "layered"])
@pytest.mark.parametrize("kinds", [("relu",), ("relu", "leaky", "steps")], ids=["relu", "piecewise"])
def test_values_beyond_float16_are_flagged(kinds: tuple[str, ...], kind: str) -> None:
    """Differences of x and y, scaled where the two are nearly equal: elsewhere they are a million times as large."""
    mlp = network((2, 2, 17, 3), kinds, slices=2)
    mlp.head[0] = tensor([[1, 0], [0, 1], [0, 0]])
    mlp.head[1] = tensor([[1, 0], [0, -1], [0, 0]])
    mlp.weights[0][:] = tensor([[1, -1], [1, -0.9998]])
    for bias in mlp.biases:
        bias *= 1e-6
    along = np.random.default_rng(0).uniform(0.005, 0.04, (64, 1))
    near = Points(tensor((along * [1, 0.9999]).astype(np.float32)), torch.zeros(64, dtype=torch.int64).to(DEVICE), 2)
    scaled = scaled_by(mlp, near)
    points = merged([near, random_points((60, 60), seed=4)])
    run = engine(kind, scaled)
    run.set_bands(scaled, np.maximum(KAPPA, 2 * np.array(largest_errors(run, scaled, near))))  # differences lose bits
    with overflows():
        check_range(run, mlp, scaled, points)


@contextlib.contextmanager
def overflows() -> Iterator[None]:
    """The interpreter computes in numpy, which warns of infinities and of what is made of them."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def check_range(run: gpu.Fused | gpu.Layered, mlp: Mlp, scaled: scaling.Scaled, points: Points) -> None:
    found = launch(run, points.where(), len(points))
    assert_right(found, mlp, points, "range")
    values = reference.preactivations(scaled.mlp, points.xy, points.which)[1]
    beyond = torch.stack([h.abs().amax(dim=1) for h in values]).amax(dim=0) > LARGEST_FLOAT16
    share, missed = float(beyond.double().mean()), int((beyond & ~found.flags).sum())
    assert 0.1 <= share <= 0.9, "the points do not show what happens at the end of the range"
    assert missed == 0, f"{missed} points with values that float16 cannot hold are not flagged"
    held = int((~found.flags).sum())
    assert held >= 40, "what float16 can hold is flagged"
    image = torch.empty(len(points), dtype=torch.int64, device=DEVICE)
    for z in run(points.where(), image, observe=True).seen:
        strange = int(((~z.isfinite()).any(dim=1) & ~found.flags).sum())
        assert strange == 0, f"{strange} points with infinite pre-activations are not flagged"


@pytest.mark.parametrize("kind", ["fused", "layered"])
@pytest.mark.parametrize("kinds", [("relu",), ("clamp",)], ids=str)
def test_coordinates_that_are_no_numbers_are_flagged(kinds: tuple[str, ...], kind: str) -> None:
    mlp = network((7, 20), kinds)
    bad = [torch.nan, torch.inf, -torch.inf, 1e30]
    xy = tensor([*([value, 0.3] for value in bad), *([0.3, value] for value in bad), [0.3, 0.3]])
    points = Points(xy, torch.zeros(len(xy), dtype=torch.int64, device=DEVICE), 1)
    with overflows():
        flags = launch(engine(kind, scaled_by(mlp)), points.where(), len(points)).flags
    assert flags.tolist() == [True] * 8 + [False]


WIDE = [(63, 33, 17, 63)] if CHIP == "interpreter" else [(63, 33, 17, 63), (200, 100, 200), (257, 512, 257)]


@pytest.mark.parametrize("widths", WIDE, ids=lambda widths: "-".join(map(str, widths)))
@pytest.mark.parametrize("kinds", [("relu",), ("leaky", "steps")], ids=["relu", "piecewise"])
@pytest.mark.parametrize("kind", ["fused", "layered"])
def test_observed_preactivations(kind: str, kinds: tuple[str, ...], widths: tuple[int, ...]) -> None:
    mlp = network(widths, kinds, slices=2)
    scaled = scaled_by(mlp)
    points = random_points((120, 7), seed=2)
    errors = largest_errors(engine(kind, scaled), scaled, points)
    print(f"largest errors of {kind} {widths} by layer, in units: {[round(error, 2) for error in errors]}")
    assert max(errors) <= KAPPA
    assert min(errors) > 0.01, "no error at all: float64 compared with itself"


def largest_errors(run: gpu.Fused | gpu.Layered, scaled: scaling.Scaled, points: Points) -> list[float]:
    """Largest difference between the pre-activations that ``run`` shows and those of float64, by layer, in units."""
    image = torch.full((len(points),), UNASKED, dtype=torch.int64, device=DEVICE)
    seen = run(points.where(), image, observe=True).seen
    assert torch.equal(image, launch(run, points.where(), len(points)).hashes[-1]), "other hashes when observed"
    assert [tuple(z.shape) for z in seen] == [(len(points), n) for n in scaled.mlp.widths]
    exact = reference.preactivations(scaled.mlp, points.xy, points.which)[0]
    units = units_of_rounding(scaled, points)
    return [float(((found - z).abs() / unit).max()) for found, z, unit in zip(seen, exact, units, strict=True)]


@settings(max_examples=25)
@given(
    widths=st.lists(st.sampled_from([1, 3, 16, 33]), min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from(["relu", "leaky", "clamp", "steps"]), min_size=1, max_size=3),
    spread=st.sampled_from([0.0, 2.0, 6.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_scaling_changes_no_decision(widths: list[int], kinds: list[str], spread: float, seed: int) -> None:
    mlp = spoilt(network(widths, kinds, slices=2, seed=seed), spread, seed)
    sample, points = random_points((30, 30), seed), random_points((25, 25), seed + 1)
    scaled = scaling.scale(mlp, sample.xy, sample.which)
    if scaled is None:
        return
    for unit in scaled.units:
        assert bool((unit.frexp().mantissa == 0.5).all()), "not a power of two"
    before, after = reference.preactivations(mlp, points.xy, points.which)
    scaled_before, scaled_after = reference.preactivations(scaled.mlp, points.xy, points.which)
    for unit, plain, moved in zip([*scaled.units] * 2, [*before, *after], [*scaled_before, *scaled_after], strict=True):
        off = (plain == 0) & (moved == scaling.PADDING)  # a ReLU unit without weights and bias, moved away from zero
        assert bool(((plain * unit == moved) | off).all()), "more than a power of two"
    hashes = reference.hash_points(mlp, points.xy, points.which)
    assert torch.equal(hashes, reference.hash_points(scaled.mlp, points.xy, points.which))
    sizes = [scaled.first[points.which]]
    sizes += [
        gain * h.norm(dim=1, keepdim=True) + offset
        for gain, offset, h in zip(scaled.gain[1:], scaled.offset[1:], scaled_after)
    ]
    for z, size in zip(scaled_before, sizes, strict=True):
        assert bool(((z.abs() <= size * (1 + 1e-12)) | (z == scaling.PADDING)).all()), (
            "a pre-activation is larger than the sum of what goes into it"
        )


@pytest.mark.parametrize("kinds", [("relu",), ("clamp", "abs")], ids=["relu", "piecewise"])
def test_scaling_keeps_the_range(kinds: tuple[str, ...]) -> None:
    mlp = network((17, 33, 7), kinds, slices=2, bias=3.0)
    mlp.head[:] *= 1e-12
    mlp.weights[0][:] *= 1e9
    sample = random_points((40, 40))
    scaled = scaling.scale(mlp, sample.xy, sample.which)
    assert scaled is not None
    before, after = reference.preactivations(scaled.mlp, sample.xy, sample.which)
    for z, h in zip(before, after):
        largest = max(float(z.abs().max()), float(h.abs().max()))
        assert 2**7 <= largest <= 2**9, "far from 2^8"
    assert max(float(numbers.abs().max()) for numbers in (scaled.mlp.head, *scaled.mlp.weights)) < 2**15


def test_networks_that_float16_cannot_hold() -> None:
    sample = random_points((30, 0))

    def held(mlp: Mlp) -> bool:
        return scaling.scale(mlp, sample.xy, sample.which) is not None

    mlp = network((3, 4), slices=2)
    assert held(mlp)
    for slice_, value in ((1, torch.nan), (1, torch.inf), (0, torch.nan), (1, 1e40), (0, 1e308)):
        head = mlp.head.clone()
        head[slice_] = value
        assert not held(dataclasses.replace(mlp, head=head)), (slice_, value)
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not held(dataclasses.replace(mlp, biases=(torch.full_like(mlp.biases[0], value),)))
        assert not held(dataclasses.replace(mlp, weights=(torch.full_like(mlp.weights[0], value),)))
    cancelling = network((2, 1), slices=2)
    cancelling.head[:] = tensor([[1, 1 + 1e-9], [1, 1], [3, 3]])
    cancelling.weights[0][:] = tensor([[1e40, -1e40]])
    cancelling.biases[0][:] = 0
    assert not held(cancelling)


def test_split_keeps_22_bits() -> None:
    random = np.random.default_rng(0)
    whole = tensor(random.integers(-(2**22) + 1, 2**22, 20000) * 2.0**-8)
    large, small = scaling.split(whole)
    assert large.dtype == small.dtype == torch.float16
    assert torch.equal(large.double() + small.double(), whole)
    numbers = tensor(random.normal(size=20000) * 2.0 ** random.uniform(-30, 13, 20000))
    error = (sum(half.double() for half in scaling.split(numbers)) - numbers).abs()
    assert bool((error <= (2.0**-22 * numbers.abs()).clamp(min=2.0**-25)).all())


def test_head_rows_keep_30_bits() -> None:
    random = np.random.default_rng(0)
    signs = random.choice([-1.0, 1.0], (2, 3, 33))
    head = signs * 2.0 ** random.uniform(6, 15, (2, 3, 33))
    rows = scaling.head_rows(tensor(head), 48).cpu().numpy()
    assert rows.shape == (2, 48, scaling.HEAD_ROWS)
    xy = (random.integers(-(2**24), 2**24 + 1, (200, 2)) * 2.0**-24).astype(np.float32)  # what three parts hold exactly
    xy[:20, 0] = xy[10:30, 1] = 0
    factors = np.concatenate(
        [*(_parts(xy[:, axis]) for axis in range(2)), np.ones((200, 3)), np.zeros((200, 1))], axis=1
    )
    z = np.einsum("bf,snf->sbn", factors, rows.astype(np.float64))
    full = np.column_stack([xy.astype(np.float64), np.ones(200)])
    exact = np.einsum("bi,sin->sbn", full, head)
    size = np.einsum("bi,sin->sbn", np.abs(full), np.abs(head))
    assert np.max(np.abs(z[:, :, :33] - exact) / size) <= 2.0**-30
    assert (z[:, :, 33:] <= -(2.0**14)).all(), "units that only fill up a tile must stay off"


def _parts(x: Array) -> Array:
    """The six factors that go with the head's rows for one coordinate, as the kernels make them: [B, 6]."""
    first = x.astype(np.float16)
    second = (x - first.astype(np.float32)).astype(np.float16)
    third = (x - first.astype(np.float32) - second.astype(np.float32)).astype(np.float16)
    return np.stack([first, first, first, second, second, third], axis=1).astype(np.float64)


@triton.jit  # type: ignore[untyped-decorator]
def _visit(points, starts, blocks, slices, res, visits, owners, pixels, xy, SLICES: tl.constexpr, SOURCE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    """Write down what `gpu._place` says of every row, and count how often it is asked."""
    of, row, pixel, x, y, exists = gpu._place(points, starts, blocks, slices, res, SLICES, SOURCE, BLOCK)
    tl.atomic_add(visits + row, 1, mask=exists)
    tl.store(owners + row, tl.zeros([BLOCK], tl.int64) + of, mask=exists)
    tl.store(pixels + row, pixel, mask=exists)
    tl.store(xy + 2 * row, x, mask=exists)
    tl.store(xy + 2 * row + 1, y, mask=exists)


def check_places(where: gpu.Where, block: int, owners: Tensor, pixels: Tensor, xy: Tensor) -> None:
    """Every row belongs to one program, which knows its slice, pixel and coordinates."""
    total, options = where.total, {"device": DEVICE, "dtype": torch.int64}
    visits = torch.zeros(total, device=DEVICE, dtype=torch.int32)
    found_owners, found_pixels = (torch.full((total,), UNASKED, **options) for _ in range(2))  # type: ignore[call-overload]
    found_xy = torch.full((total, 2), torch.nan, device=DEVICE)
    assert where.starts.tolist() == [0, *np.cumsum(np.bincount(owners.cpu(), minlength=where.slices)).tolist()]
    blocks, programs = where.blocks(block), where.programs(block)
    sizes = where.starts.diff().tolist()
    assert blocks.diff().tolist() == [math.ceil(size / block) for size in sizes]
    assert blocks[0] == 0
    assert blocks[-1] <= programs <= max(int(blocks[-1]) + where.slices, 1)
    if total:
        _visit[(programs,)](
            where.points, where.starts, blocks, where.slices, where.res, visits, found_owners, found_pixels, found_xy,
            SLICES=triton.next_power_of_2(where.slices), SOURCE=where.source, BLOCK=block,
        )  # fmt: skip
    assert visits.tolist() == [1] * total
    assert torch.equal(found_owners, owners)
    assert torch.equal(found_pixels, pixels)
    assert bool(((found_xy - xy).abs() <= 2.0**-23).all())


SLICE_SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=6)
BLOCKS = st.sampled_from([1, 2, 4, 16, 32])


@settings(max_examples=15)
@given(sizes=SLICE_SIZES, block=BLOCKS)
def test_places_of_points(sizes: list[int], block: int) -> None:
    points = random_points(sizes)
    check_places(points.where(), block, points.which, torch.arange(len(points), device=DEVICE), points.xy)


@settings(max_examples=15)
@given(sizes=SLICE_SIZES, res=st.integers(4, 9), block=BLOCKS, data=st.data())
def test_places_of_pixels(sizes: list[int], res: int, block: int, data: st.DataObject) -> None:
    """Any pixels of any slices; of a single slice in any order."""
    slices = len(sizes)
    chosen = [data.draw(st.lists(st.integers(0, res**2 - 1), min_size=n, max_size=n, unique=True)) for n in sizes]
    numbers = chosen[0] if slices == 1 else [s * res**2 + i for s in range(slices) for i in sorted(chosen[s])]
    pixels, centres = torch.tensor(numbers, dtype=torch.int64, device=DEVICE), pixel_centres(slices, res)
    where = gpu.Where.pixels(pixels, slices, res)
    check_places(where, block, centres.which[pixels], pixels, centres.xy[pixels])


@pytest.mark.parametrize(("slices", "res", "block"), [(1, 1, 16), (3, 5, 16), (5, 4, 16), (4, 7, 32)])
def test_places_of_all_pixels(slices: int, res: int, block: int) -> None:
    centres = pixel_centres(slices, res)
    where = gpu.Where.grid(slices, res, DEVICE)
    check_places(where, block, centres.which, torch.arange(len(centres), device=DEVICE), centres.xy)


def a_bend(thresholds: int) -> Bend | None:
    """Something with so many thresholds."""
    return (
        Bend(*(np.zeros((count, 1)) for count in (thresholds, thresholds + 1, thresholds + 1))) if thresholds else None
    )


def tiles_by_width(chip: str, thresholds: int) -> dict[int, list[gpu.FusedTile]]:
    return {width: gpu.fused_tiles([3, width, 1], [None, a_bend(thresholds)], chip) for width in range(1, 301)}


@pytest.mark.parametrize("thresholds", range(MAX_THRESHOLDS + 1))
@pytest.mark.parametrize("chip", [*TARGETS, "interpreter"])
def test_tiles_hold_the_network(chip: str, thresholds: int) -> None:
    by_width = tiles_by_width(chip, thresholds)
    widest = max(width for width, tiles in by_width.items() if tiles)
    assert widest == {"interpreter": 64, "sm_80": 128}.get(chip, 128 if thresholds else 256)
    for width, tiles in by_width.items():
        assert bool(tiles) == (width <= widest), width
        assert len(set(tiles)) == len(tiles), "a configuration twice"
        for tile in tiles:
            assert tile.thresholds == thresholds
            assert tile.chunk * (tile.chunks - 1) < width <= tile.chunk * tile.chunks
            assert tile.chunk == 16 or width > 16, "a narrow network in a wide tile"
            assert min(tile.chunk, tile.block) >= 16, "too small for matrix instructions"
    layered = gpu.layered_tile([None, a_bend(thresholds)], chip)
    step = max(layered.first_chunk, layered.chunk, layered.depth)
    assert [step % part for part in (layered.first_chunk, layered.chunk, layered.depth)] == [0, 0, 0]


@pytest.mark.parametrize("chip", TARGETS)
def test_fused_tiles_are_compiled_ahead(chip: str) -> None:
    compiled = {
        (*(build.constants[name] for name in ("C", "K", "T", "BLOCK")), build.warps)
        for build in gpu.builds()
        if build.kernel is gpu.fused and chip in build.targets
    }
    launched = {
        (tile.chunk, tile.chunks, tile.thresholds, tile.block, tile.warps)
        for thresholds in range(MAX_THRESHOLDS + 1)
        for tiles in tiles_by_width(chip, thresholds).values()
        for tile in tiles
    }
    missing = sorted(launched - compiled)
    assert not missing, f"(C, K, T, BLOCK, warps) that are launched and not among the builds: {missing}"


@pytest.mark.parametrize("chip", TARGETS)
def test_layered_tiles_are_compiled_ahead(chip: str) -> None:
    tiles = {t: gpu.layered_tile([None, a_bend(t)], chip) for t in range(MAX_THRESHOLDS + 1)}
    builds = [build for build in gpu.builds() if chip in build.targets]
    first = {
        (b.constants["T"], b.constants["C"], b.constants["BLOCK"], b.warps)
        for b in builds
        if b.kernel is gpu.first_layer
    }
    later = {
        (b.constants["T"], b.constants["C"], b.constants["BLOCK"], b.constants["DEPTH"], b.warps, b.stages)
        for b in builds
        if b.kernel is gpu.next_layer
    }
    assert first == {(t, tile.first_chunk, tile.block, tile.warps) for t, tile in tiles.items()}
    assert later == {(t, tile.chunk, tile.block, tile.depth, tile.warps, tile.stages) for t, tile in tiles.items()}


def test_fastest_tile_is_one_of_them() -> None:
    mlp = network((33, 63))
    tiles = gpu.fused_tiles(mlp.widths, mlp.bends, CHIP)
    fastest = gpu.fastest_tile(scaled_by(mlp), tiles)
    assert fastest in tiles
    assert gpu.fastest_tile(scaled_by(mlp), tiles) == fastest, "timed again"


def test_family() -> None:
    assert gpu.family(torch.device("cpu")) == "interpreter"
    cuda = torch.device("cuda")
    with mock.patch.object(torch.version, "hip", "6.4"):
        assert gpu.family(cuda) == "gfx942"
    families = {(8, 0): "sm_80", (8, 6): "sm_80", (9, 0): "sm_90", (10, 0): "sm_90", (12, 0): "sm_80"}
    with mock.patch.object(torch.version, "hip", None):
        for capability, name in families.items():
            with mock.patch.object(torch.cuda, "get_device_capability", return_value=capability):
                assert gpu.family(cuda) == name, capability
