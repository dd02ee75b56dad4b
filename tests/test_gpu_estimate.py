"""The whole way on a GPU against the CPU: images pixel for pixel, tables to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import mlp
from torch import nn
from typer.testing import CliRunner

import regiongrid as rg
from regiongrid.commands.app import app
from regiongrid.network.on_slice import restrict_all
from regiongrid.sampling import guard
from regiongrid.sampling.chain import chain
from regiongrid.sampling.image import sample_images
from regiongrid.slices import Slice

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Shortcut(nn.Module):
    """Two paths, one of them straight from the input, and a window breakpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.aside = nn.Linear(5, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        z = self.second(h) + self.aside(x)
        pairs = torch.maximum(z[:, :6], z[:, 6:])
        return self.third(torch.cat([pairs, h[:, :6]], dim=1).clamp(-0.5, 2.0))


def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


NETWORKS = {
    "fused": (lambda: mlp([5, 20, 33, 3]), (5,), "float16x3"),
    "layered": (lambda: mlp([5, 70, 9, 3]), (5,), "float16x3"),
    "bends": (lambda: nn.Sequential(nn.Linear(5, 18), nn.Hardtanh(), nn.Linear(18, 9), nn.LeakyReLU(), nn.Linear(9, 2)),
              (5,), "float16x3"),
    "shortcut": (Shortcut, (5,), "float32"),
    "convolutions": (convolutions, (1, 8, 8), "float32"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(guard, "SAMPLE_POINTS", 48)
        monkeypatch.setattr(guard, "_SAMPLE_POINTS_OF_A_SLICE", 16)


def slices(shape: tuple[int, ...], half_widths: tuple[float, ...]) -> list[Slice]:
    size = int(np.prod(shape))
    points = np.random.default_rng(0).standard_normal((len(half_widths), 3, size))
    return [Slice.through(*three, half_width=width) for three, width in zip(points, half_widths)]


def assert_equal(ours: rg.Estimate, wanted: rg.Estimate) -> None:
    wrong = np.argwhere(ours.image.hashes != wanted.image.hashes)
    assert not len(wrong), f"{len(wrong)} pixels differ, first (row, column) {wrong[:5].tolist()}"
    for name in wanted.regions.columns:
        np.testing.assert_array_equal(ours.regions[name], wanted.regions[name], err_msg=name)
    mine, theirs = ours.summary(), wanted.summary()
    for key in set(theirs) - {"guard", "seconds"}:
        assert mine[key] == theirs[key], key


@pytest.mark.parametrize(
    ("name", "sampling"), [*((name, "adaptive") for name in NETWORKS), ("fused", "dense"), ("convolutions", "dense")]
)
def test_images_and_tables_are_those_of_the_cpu(name: str, sampling: str) -> None:
    make, shape, fast = NETWORKS[name]
    torch.manual_seed(0)
    net = rg.load_network(make().eval(), input_shape=shape)
    planes = slices(shape, (2.0, 5.0) if name != "convolutions" else (3.0,))
    res = {"convolutions": 9, "shortcut": 13}.get(name, 21)
    on_gpu = rg.estimate(net, planes, res, backend="triton", device=DEVICE, sampling=sampling, by_layer=True)
    on_cpu = rg.estimate(net, planes, res, backend="cpu", sampling=sampling, by_layer=True)
    for ours, wanted in zip(on_gpu, on_cpu):
        assert ours.image.calibration.dtype == fast
        assert_equal(ours, wanted)


@pytest.mark.parametrize("dtype", ["float16x3", "float32", "float64"])
def test_close_calls_are_decided_in_float64(dtype: str) -> None:
    """A slice so small, on the boundary of a unit of the second layer, that the fast pass cannot decide it."""
    torch.manual_seed(2)
    net = rg.load_network(mlp([36, 40, 40, 3]))
    on, off = torch.randn(2, 36, dtype=torch.float64)
    z_on, z_off = (net.program.run(x[None])[0][1][0] for x in (on, off))
    unit = int(((z_on > 0) & (z_off < 0)).nonzero()[0])
    for _ in range(50):
        middle = (on + off) / 2
        inside = float(net.program.run(middle[None])[0][1][0, unit]) > 0
        on, off = (middle, off) if inside else (on, middle)
    tiny = Slice.around(on, half_width=2e-5)
    images = [
        rg.estimate(net, tiny, 15, backend=backend, device=device, dtype=precision, sampling="dense").image
        for backend, device, precision in (("triton", DEVICE, dtype), ("cpu", "cpu", "float64"))
    ]
    assert (images[0].hashes == images[1].hashes).all()
    assert dtype == "float64" or images[0].reevaluated > 0


def test_slices_are_the_same_alone_and_together() -> None:
    torch.manual_seed(4)
    program = rg.load_network(mlp([4, 15, 15, 2])).program
    planes = slices((4,), (1.0, 0.1, 8.0))
    folded = restrict_all(program, planes)
    together = sample_images(folded, 17, backend="triton", device=DEVICE)
    for one, image in zip(folded, together):
        (alone,) = sample_images([one], 17, backend="triton", device=DEVICE)
        assert torch.equal(alone.pixels, image.pixels)
        assert alone.evaluations == image.evaluations
        assert (sample_images([one], 17)[0].hashes == image.hashes).all()


def test_float16_pairs_are_for_chains_with_triton() -> None:
    net = rg.load_network(Shortcut(), input_shape=(5,))
    plane = slices((5,), (1.0,))[0]
    with pytest.raises(rg.InputError, match="no plain chain of fully connected layers"):
        rg.estimate(net, plane, 8, backend="triton", device=DEVICE, dtype="float16x3")
    with pytest.raises(rg.InputError, match="float16x3"):
        rg.estimate(net, plane, 8, backend="cpu", dtype="float16x3")


def test_weights_out_of_range_go_to_float32() -> None:
    torch.manual_seed(5)
    module = mlp([3, 10, 10, 2])
    with torch.no_grad():
        module[2].weight[0] *= 1e-9
        module[2].weight[1] *= 1e9
        module[4].weight[:, 0] *= 1e9
    net = rg.load_network(module)
    plane = Slice.through(*np.eye(3), half_width=2.0)
    ours = rg.estimate(net, plane, 15, backend="triton", device=DEVICE)
    assert_equal(ours, rg.estimate(net, plane, 15, backend="cpu"))


@pytest.mark.parametrize("name", NETWORKS)
def test_which_networks_are_chains(name: str) -> None:
    make, shape, fast = NETWORKS[name]
    folded = restrict_all(rg.load_network(make().eval(), input_shape=shape).program, slices(shape, (1.0, 2.0)))
    assert (chain(folded, 0, DEVICE) is not None) == (fast == "float16x3")


def test_command_line(tmp_path: Path) -> None:
    torch.manual_seed(6)
    torch.save(mlp([2, 9, 9, 2]).state_dict(), tmp_path / "state.pt")
    command = ["estimate", "--ckpt", str(tmp_path / "state.pt"), "--res", "15", "--json", "--backend"]
    found = {}
    for backend in ("triton", "cpu"):
        result = CliRunner().invoke(app, [*command, backend])
        assert result.exit_code == 0, result.stderr
        found[backend] = json.loads(result.stdout)
    assert found["triton"]["settings"]["backend_used"] == "triton"
    assert found["triton"]["slices"][0]["regions"] == found["cpu"]["slices"][0]["regions"]
    assert found["triton"]["slices"][0]["guard"]["dtype"] == "float16x3"
