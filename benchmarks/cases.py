"""Networks and slices that the benchmarks share, and the exact count of their regions by regioncam."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

import regiongrid as rg
from regiongrid.network.on_slice import SliceProgram, restrict


@dataclass(frozen=True)
class Case:
    """A He-initialised network and a plane through three standard-normal points.

    ``width`` is that of the hidden layers of the MLP 784-width-width-width-10; 0 stands for the convolutional network.
    """

    name: str
    width: int
    half_width: float

    def module(self) -> nn.Sequential:
        return he_mlp(self.width) if self.width else he_cnn()

    def network(self) -> rg.Network:
        return rg.load_network(self.module(), input_shape=(784,) if self.width else (1, 28, 28))

    def slice(self) -> rg.Slice:
        first, second, third = np.random.default_rng(0).standard_normal((3, 784))
        return rg.Slice.through(first, second, third, half_width=self.half_width)


CASES = {
    case.name: case
    for case in (
        Case("128x3-1k", 128, 2.35),
        Case("128x3-11k", 128, 8.15),
        Case("128x3-28k", 128, 15.7),
        Case("512x3-10k", 512, 1.8),
    )
}

EXACT_CASES = {
    case.name: case
    for case in (
        CASES["128x3-1k"],
        CASES["128x3-11k"],
        Case("128x3-67k", 128, 100.0),
        Case("512x3-1k", 512, 0.62),
        CASES["512x3-10k"],
        Case("512x3-100k", 512, 6.2),
        Case("cnn-1k", 0, 0.37),
        Case("cnn-10k", 0, 1.25),
        Case("cnn-100k", 0, 3.95),
    )
}
"""For polygon subdivision. 384 lines make at most 74,305 regions, so 784-128x3 has no case of 100,000."""
MILLION = Case("cnn-1M", 0, 17.5)


def he_mlp(width: int, depth: int = 3) -> nn.Sequential:
    """Kaiming-normal weights and biases of standard deviation 0.1, always the same for a width."""
    generator = torch.Generator().manual_seed(width)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([784, *[width] * depth, 10]):
        linear = nn.Linear(before, after)
        with torch.no_grad():
            linear.weight.normal_(0, (2 / before) ** 0.5, generator=generator)
            linear.bias.normal_(0, 0.1, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def he_cnn() -> nn.Sequential:
    """Conv(1, 8, 3, stride 2)-ReLU-Conv(8, 16, 3, stride 2)-ReLU-Linear(784, 64)-ReLU-Linear(64, 10)."""
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            with torch.no_grad():
                layer.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                assert layer.bias is not None
                layer.bias.normal_(0, 0.1, generator=generator)
    return layers


@cache
def folded(case: Case) -> SliceProgram:
    return restrict(case.network().program, case.slice())


def folded_layers(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight [out, in], bias [out]) of every affine layer, the first one folded onto the slice; float64.

    Convolutions are unrolled by applying them to the basis: nothing of regiongrid's own folding is used.
    """
    plane = case.slice()
    shape: tuple[int, ...] = (784,) if case.width else (1, 28, 28)
    weights = []
    for layer in case.module().double():
        if isinstance(layer, nn.ReLU | nn.Flatten):
            shape = (int(np.prod(shape)),) if isinstance(layer, nn.Flatten) else shape
            continue
        with torch.no_grad():
            bias = layer(torch.zeros(1, *shape, dtype=torch.float64))
            basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
            weight = (layer(basis) - bias).reshape(len(basis), -1).T
        weights.append((weight.numpy(), bias.reshape(-1).numpy()))
        shape = tuple(bias.shape[1:])
    first, bias = weights[0]
    axes = np.stack([plane.u, plane.v], axis=1)
    return [(first @ axes, first @ plane.origin + bias), *weights[1:]]


def regioncam_inputs(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hidden layers as regioncam takes them: float32, [in, out], in coordinates in which the slice is [-1, 1]^2."""
    return [
        ((weight * case.half_width if k == 0 else weight).T.astype(np.float32), bias.astype(np.float32))
        for k, (weight, bias) in enumerate(folded_layers(case)[:-1])
    ]


def regioncam_count(layers: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """Regions by regioncam (polygon subdivision, float32), not by anything written here."""
    import regioncam

    camera = regioncam.Regioncam(size=1.0)
    for weight, bias in layers:
        camera.linear(weight, bias)
        camera.relu()
    return int(camera.num_faces)


@cache
def exact_count(case: Case) -> int:
    return regioncam_count(regioncam_inputs(case))
