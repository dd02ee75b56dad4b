"""Networks and slices that every benchmark shares, and the exact count of their regions."""

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
    """A He-initialised MLP 784-width-width-width-10 and a plane through three standard-normal points."""

    name: str
    width: int
    half_width: float

    def module(self) -> nn.Sequential:
        return he_mlp(self.width)

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


@cache
def folded(case: Case) -> SliceProgram:
    return restrict(rg.load_network(case.module()).program, case.slice())


def folded_layers(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight [out, in], bias [out]) of every linear layer, the first one folded onto the slice; float64."""
    module, plane = case.module().double(), case.slice()
    linears = [layer for layer in module if isinstance(layer, nn.Linear)]
    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in linears]
    first, bias = weights[0]
    axes = np.stack([plane.u, plane.v], axis=1)
    return [(first @ axes, first @ plane.origin + bias), *weights[1:]]


@cache
def exact_count(case: Case) -> int:
    """Regions by regioncam (polygon subdivision, float32), not by anything written here."""
    import regioncam

    # Its square is given by a size; coordinates are scaled so that the slice is [-1, 1]^2.
    camera = regioncam.Regioncam(size=1.0)
    layers = folded_layers(case)
    for k, (weight, bias) in enumerate(layers[:-1]):
        scaled = weight * case.half_width if k == 0 else weight
        camera.linear(scaled.T.astype(np.float32), bias.astype(np.float32))
        camera.relu()
    return int(camera.num_faces)
