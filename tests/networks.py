"""Networks, slices and the plain evaluation that tests compare with."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from regiongrid.kernels.pattern_hash import START, decision_keys
from regiongrid.network.program import Maximum, Program
from regiongrid.slices import Slice


def mlp(widths: list[int], activation: Callable[[], nn.Module] = nn.ReLU, *, bias: float = 0.3) -> nn.Sequential:
    """He-initialised weights, normal biases of standard deviation ``bias``."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        linear = nn.Linear(before, after)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.normal_(linear.bias, std=bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


class ConvNet(nn.Module):
    """Convolution, batch-norm, max-pool, a residual, a skip from the input, clamp and maximum, softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.wide = nn.Linear(4 * 9 + 36, 12)
        self.head = nn.Linear(12, 3)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = self.pool(torch.relu(self.second(y) + y))
        y = nn.functional.hardtanh(self.wide(torch.cat([y.flatten(1), x.flatten(1)], 1)))
        return torch.softmax(self.head(torch.maximum(y, -0.3 * y.flip(1))), 1)


def plain_hashes(program: Program, x: np.ndarray) -> np.ndarray:
    """Pattern hashes from the program's own float64 evaluation, unit by unit."""
    preactivations, _ = program.run(torch.from_numpy(x))
    hashes = np.full(len(x), START)
    for stage, z in zip(program.stages, preactivations):
        bend = stage.breakpoint
        keys = decision_keys(stage.first_decision, bend.decisions)
        if isinstance(bend, Maximum):
            chosen = keys.reshape(bend.windows.shape)[np.arange(bend.units), bend.winners(z).numpy()]
        else:
            on = (z.unsqueeze(-2) > torch.as_tensor(bend.thresholds)).numpy()
            chosen = np.where(on, keys.reshape(bend.thresholds.shape), np.uint64(0)).reshape(len(x), -1)
        hashes ^= np.bitwise_xor.reduce(chosen, axis=1)
    return hashes


def pixel_points(slice_: Slice, res: int) -> np.ndarray:
    """Input points of all pixel centres, [res * res, d], row by row."""
    centres = slice_.pixel_centres(res)
    return slice_.points(np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2))


def random_slice(d: int, half_width: float, seed: int) -> Slice:
    return Slice.through(*np.random.default_rng(seed).standard_normal((3, d)), half_width=half_width)
