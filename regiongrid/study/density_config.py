"""What a training run of the study of local complexity is, and the runs that it is made of.

>>> import tomllib
>>> config = DensityConfig(data="mnist-5k", weight_decay=0.01, seed=1)
>>> config.name
'mnist-5k-cross-entropy-wd0.01-s1'
>>> DensityConfig.from_mapping(tomllib.loads(config.to_toml())) == config
True
>>> DensityConfig(lr=0.0)
Traceback (most recent call last):
    ...
regiongrid.errors.InputError: lr is 0.0; it must be a number above 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from regiongrid.study.keys import FlatConfig, not_negative, one_of, positive, whole

DATA = ("mnist-5k", "fashion-mnist", "digits", "gaussians")
LOSSES = ("cross-entropy", "softmax-cross-entropy")


@dataclass(frozen=True)
class DensityConfig(FlatConfig):
    """One training run of a ReLU network with four hidden layers, say, and what is measured on the way.

    Attributes
    ----------
    data
        One of `DATA`; see `regiongrid.study.density_data.load_points`.
    train_points, test_points
        At most so many of each.
    width, depth
        Units of each hidden layer, and their number.
    loss
        Of the logits: ``cross-entropy``; or ``softmax-cross-entropy``, the cross-entropy of the softmax of the logits
        taken as logits once more, which the script that the authors published minimises.
    lr, weight_decay, batch_size
        AdamW, constant rate; the decay acts on weights, not on biases. A pass over the data ends with a smaller batch.
    steps
        Optimizer steps. A run can be made longer later on.
    seed
        Of the initial weights and of the order of the points.
    per_decade
        Measurements for each factor of 10 in steps; steps 0, 1 and the last are measured as well.
    measured_points
        At so many points of a split, at most, local complexity, total variation and accuracy under attack are taken.
    few_points
        The same for what costs more: local rank, distance to the boundary, total variation of the last hidden layer.
    sigma
        Of the local complexity, in units of pre-activations.
    epsilon
        Of the attack: largest change of an entry, as a share of the range that pixels have (1 for ``gaussians``).
    slices, half_width
        Slices around the first test points along random directions, the same in all runs, and half their side, in units
        of the (standardised) input.
    """

    data: str = one_of("mnist-5k", DATA)
    train_points: int = whole(1_000, 1)
    test_points: int = whole(2_000, 1)
    width: int = whole(200, 1)
    depth: int = whole(4, 1)
    loss: str = one_of("cross-entropy", LOSSES)
    lr: float = positive(1e-3)
    weight_decay: float = not_negative(0.0)
    batch_size: int = whole(64, 1)
    steps: int = whole(31_623, 1)
    seed: int = whole(0, 0)
    per_decade: int = whole(4, 1)
    measured_points: int = whole(500, 1)
    few_points: int = whole(50, 1)
    sigma: float = positive(0.01)
    epsilon: float = positive(0.1)
    slices: int = whole(8, 1)
    half_width: float = positive(1.5)

    @property
    def name(self) -> str:
        """Name of the run's folder: what differs among the runs of the study."""
        return f"{self.data}-{self.loss}-wd{self.weight_decay:g}-s{self.seed}"

    @property
    def measured_steps(self) -> list[int]:
        """When something is measured, in order.

        >>> DensityConfig(steps=30, per_decade=2).measured_steps
        [0, 1, 3, 10, 30]
        """
        exponents = range(math.floor(self.per_decade * math.log10(self.steps)) + 1)
        return sorted({0, self.steps, *(round(10 ** (k / self.per_decade)) for k in exponents)})

    def differences(self, other: Self) -> list[str]:
        """One text for each key but ``steps`` that differs: ``lr is 0.1 here and 0.2 there``."""
        return super().differences(other.replace(steps=self.steps))


_FASHION = {"data": "fashion-mnist", "epsilon": 8 / 255}
_GAUSSIANS = {"data": "gaussians", "sigma": 0.05, "epsilon": 0.25, "half_width": 0.5, "steps": 56_234}


def image_runs(seeds: int = 2, **changes: Any) -> list[DensityConfig]:
    """Digits and clothes without and with weight decay for several seeds; with more of it, and with the authors' loss,
    for the first seed alone.

    >>> [config.name for config in image_runs(2)[6:8]]
    ['mnist-5k-softmax-cross-entropy-wd0.01-s0', 'mnist-5k-cross-entropy-wd0-s1']
    """
    digits, clothes = DensityConfig(epsilon=25 / 255), DensityConfig.from_mapping(_FASHION)
    runs = [
        base.replace(weight_decay=decay, seed=seed)
        for seed in range(seeds)
        for decay in ((0.0, 0.01) if seed else (0.0, 0.01, 0.1))
        for base in (digits, clothes)
    ]
    runs.insert(6, digits.replace(loss="softmax-cross-entropy", weight_decay=0.01))
    return [run.replace(**changes) for run in runs]


def toy_runs(**changes: Any) -> list[DensityConfig]:
    """The mixture of Gaussians, without weight decay and with two kinds of it."""
    base = DensityConfig.from_mapping(_GAUSSIANS)
    return [base.replace(weight_decay=decay, **changes) for decay in (0.0, 0.01, 0.1)]
