"""Adaptive image == dense image == float64 image, to the last pixel, however the work is cut up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ConvNet, mlp, pixel_points, plain_hashes, random_slice
from torch import nn

import regiongrid as rg
from regiongrid.kernels.refinement import UNKNOWN, kernels
from regiongrid.network.lowering import lower
from regiongrid.network.on_slice import restrict
from regiongrid.sampling.evaluate import PatternEvaluator
from regiongrid.sampling.guard import GuardedEvaluator
from regiongrid.sampling.image import sample_image
from regiongrid.slices import Slice

ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.PReLU, nn.Hardtanh]


@st.composite
def nets(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["mlp"] * 7 + ["narrow", "conv"]))
    if kind == "conv":
        return ConvNet()
    if kind == "narrow":
        return mlp([36, 6, 2, 9, 1, 5], bias=draw(st.sampled_from([0.0, 1.0])))
    widths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    return mlp([36, *widths, 3], draw(st.sampled_from(ACTIVATIONS)), bias=draw(st.sampled_from([0.0, 0.1, 3.0])))


slices = st.builds(
    random_slice,
    d=st.just(36),
    half_width=st.floats(-4, 3).map(lambda exponent: 10.0**exponent),
    seed=st.integers(0, 2**32 - 1),
)


@settings(max_examples=60)
@given(nets(), st.lists(st.tuples(slices, st.integers(1, 90)), min_size=4, max_size=4))
def test_adaptive_dense_and_float64_images_are_equal(net: nn.Module, cases: list[tuple[Slice, int]]) -> None:
    program = lower(net, (1, 6, 6) if isinstance(net, ConvNet) else (36,))
    for slice_, res in cases:
        folded = restrict(program, slice_)
        expected = plain_hashes(program, pixel_points(slice_, res)).reshape(res, res)
        for options in ({}, {"sampling": "dense"}, {"dtype": "float64"}, {"sampling": "dense", "dtype": "float32"}):
            image = sample_image(folded, res, threads=2, **options)
            wrong = np.argwhere(image.hashes != expected)
            assert len(wrong) == 0, (
                f"{options} at {res}, half width {slice_.half_width}: {len(wrong)} pixels differ, {wrong[:3].tolist()}"
            )
            assert image.evaluations <= res * res


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_image_does_not_depend_on_chunks_and_threads(threads: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    folded = restrict(lower(mlp([36, 30, 30, 3]), (36,)), random_slice(36, 4.0, 1))
    expected = sample_image(folded, 61)
    monkeypatch.setattr("regiongrid.sampling.evaluate._CHUNK_ROWS", {"cpu": (chunk, chunk)})
    for sampling in ("adaptive", "dense"):
        image = sample_image(folded, 61, sampling=sampling, threads=threads)
        assert (image.hashes == expected.hashes).all()


def test_torch_threads_are_restored() -> None:
    before = torch.get_num_threads()
    folded = restrict(lower(mlp([2, 8, 2]), (2,)), Slice.square())
    sample_image(folded, 32)
    assert torch.get_num_threads() == before


def test_guard_decides_what_float32_cannot() -> None:
    """A slice so small that float32 alone gets pixels wrong: the guard is what makes the image right."""
    torch.manual_seed(2)
    program = lower(mlp([36, 100, 100, 100, 3]), (36,))
    slice_ = random_slice(36, 0.02, 2)
    folded = restrict(program, slice_)
    res = 256
    expected = plain_hashes(program, pixel_points(slice_, res)).reshape(res, res)
    unguarded = PatternEvaluator(folded, torch.float32, np.zeros(3))
    centres = slice_.pixel_centres(res)
    uv = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    parts = torch.from_numpy(uv).split(unguarded.chunk)
    hashes = torch.cat([unguarded(part)[0] for part in parts]).numpy().view(np.uint64).reshape(res, res)
    wrong = hashes != expected
    assert wrong.any()
    guarded = GuardedEvaluator(folded, "float32")
    assert (guarded(uv).reshape(res, res) == expected).all()
    assert sum(guarded.reevaluated) > wrong.sum()


def test_tiny_slices_go_to_float64_by_themselves() -> None:
    torch.manual_seed(3)
    program = lower(mlp([36, 60, 60, 3]), (36,))
    on, off = torch.randn(2, 36, dtype=torch.float64)

    def unit_of_second_layer(x: torch.Tensor) -> float:
        return float(program.run(x[None])[0][1][0, 0])

    assert unit_of_second_layer(on) > 0 > unit_of_second_layer(off)
    for _ in range(50):  # bisect to a point of the unit's boundary
        middle = (on + off) / 2
        on, off = (middle, off) if unit_of_second_layer(middle) > 0 else (on, middle)
    folded = restrict(program, Slice.around(on, half_width=1e-7))
    assert sample_image(folded, 16).calibration.dtype == "float64"
    assert sample_image(folded, 16, dtype="float32").calibration.dtype == "float32"


@pytest.mark.parametrize("res", [31, 64])
def test_units_that_cancel_are_off(res: int) -> None:
    """0.1 a + 0.2 a - 0.3 a is zero but for rounding, for every a: the unit must be off on the whole slice."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[0.7, 0.3]])
        net[0].bias[:] = 0.21
    net = net.double()
    with torch.no_grad():
        net[2].weight[:] = torch.tensor([[0.1, 0.2, -0.3]], dtype=torch.float64)
        net[2].bias[:] = 0
    program = lower(net, (2,))
    noisy = plain_hashes(program, pixel_points(Slice.square(), res))
    assert len(np.unique(noisy)) > 2  # what plain float64 makes of it
    for sampling in ("adaptive", "dense"):
        for dtype in ("float32", "float64"):
            image = sample_image(restrict(program, Slice.square()), res, sampling=sampling, dtype=dtype)
            assert len(np.unique(image.hashes)) == 2


def test_lines_through_pixel_centres_belong_to_the_off_side() -> None:
    """u = v passes through the centres of the diagonal, where z is exactly 0: off, in float32 and float64."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[1.0, -1.0]])
    folded = restrict(lower(net, (2,)), Slice.square())
    for res in (5, 8):
        image = sample_image(folded, res).hashes
        assert (image[np.diag_indices(res)] == image[-1, 0]).all()
        assert (image == sample_image(folded, res, sampling="dense").hashes).all()


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_lines_in_general_position(lines: int, seed: int) -> None:
    """One hidden layer of N lines makes 1 + N + N(N-1)/2 regions of the plane; no grid shows more."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, lines), nn.ReLU(), nn.Linear(lines, 1)).double()
    angles = (torch.arange(lines) + 0.8 * torch.rand(lines)) * torch.pi / lines
    with torch.no_grad():
        net[0].weight[:] = torch.stack([angles.cos(), angles.sin()], dim=1)
        net[0].bias[:] = torch.rand(lines)
    exact = 1 + lines + lines * (lines - 1) // 2
    folded = restrict(lower(net, (2,)), Slice.square(30.0))
    counts = [len(np.unique(sample_image(folded, res).hashes)) for res in (64, 512)]
    assert max(counts) <= exact
    if lines <= 2:
        assert counts[-1] == exact


def test_lines_in_general_position_are_all_found_with_enough_pixels() -> None:
    """Tangents to a circle: crossings and triangles are well apart, and the count is exact."""
    lines = 7
    angles = torch.arange(lines, dtype=torch.float64) * 2 * torch.pi / lines
    net = nn.Sequential(nn.Linear(2, lines), nn.ReLU(), nn.Linear(lines, 1)).double()
    with torch.no_grad():
        net[0].weight[:] = torch.stack([angles.cos(), angles.sin()], dim=1)
        net[0].bias[:] = -1 - 0.02 * torch.arange(lines)
    image = sample_image(restrict(lower(net, (2,)), Slice.square(12.0)), 2048)
    assert len(np.unique(image.hashes)) == 1 + lines + lines * (lines - 1) // 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_refinement_kernels_agree(height: int, width: int, seed: int) -> None:
    """Any labels, convex or not: both backends fill the same cells and ask for the same pixels."""
    random = np.random.default_rng(seed)
    spacing = 2 ** random.integers(0, 4)
    truth = np.kron(random.integers(1, 4, (10, 10)), np.ones((4, 4))).astype(np.uint64)[:height, :width]
    corners = [(i, j) for i in range(0, height - 1, spacing) for j in range(0, width - 1, spacing)]
    if not corners:
        return
    cells = np.array(corners)
    results = []
    for backend in ("cpu", "reference"):
        refine = kernels(backend)
        image = np.full((height, width), UNKNOWN)
        rows = np.unique(np.append(np.arange(0, height, spacing), height - 1))
        columns = np.unique(np.append(np.arange(0, width, spacing), width - 1))
        image[np.ix_(rows, columns)] = truth[np.ix_(rows, columns)]
        mixed = np.ones(len(cells), np.bool_)
        refine.fill(image, cells, spacing, mixed, 0, len(cells))
        filled = image.copy()
        children, points = np.full((4 * len(cells), 2), -1), np.full(5 * len(cells), -1)
        counts = refine.subdivide(image, cells[mixed], spacing, children, points) if spacing > 1 else (0, 0)
        results.append((mixed, filled, image, children[: counts[0]], points[: counts[1]]))
    for fast, plain in zip(*results):
        assert fast.shape == plain.shape
        assert (fast == plain).all()


def test_progress_ends_at_one() -> None:
    folded = restrict(lower(mlp([2, 8, 2]), (2,)), Slice.square())
    for sampling in ("adaptive", "dense"):
        seen: list[float] = []
        sample_image(folded, 100, sampling=sampling, progress=seen.append)
        assert seen[-1] == 1
        assert all(0 <= share <= 1 for share in seen)


def test_wrong_choices() -> None:
    folded = restrict(lower(mlp([2, 8, 2]), (2,)), Slice.square())
    with pytest.raises(ValueError, match="sampling is 'sparse'"):
        sample_image(folded, 8, sampling="sparse")
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        sample_image(folded, 8, dtype="float16")
    with pytest.raises(rg.InputError, match="space of dimension 2, but the network takes 36"):
        restrict(lower(mlp([36, 8, 2]), (36,)), Slice.square())
