"""What a run of the study is: one flat set of keys, in Python a `StudyConfig`, on disk a TOML file.

>>> import tomllib
>>> config = StudyConfig(method="byol", dataset="digits", seed=3)
>>> StudyConfig.from_mapping(tomllib.loads(config.to_toml())) == config
True
>>> StudyConfig(lr=-1.0)
Traceback (most recent call last):
    ...
regiongrid.errors.InputError: lr is -1.0; it must be a number above 0
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from regiongrid.errors import InputError
from regiongrid.study.keys import FlatConfig, flag, not_negative, one_of, one_of_or, positive, real, whole

DATASETS = ("digits", "mnist", "mnist-5k", "fashion-mnist")
ENCODERS = ("mlp-32x3", "mlp-128x3", "cnn")
METHODS = ("supervised", "simclr", "moco", "byol", "simsiam", "dino")
COLLAPSES = ("simsiam-no-stop-gradient", "byol-no-predictor")
"""Methods that lack what keeps theirs from collapsing."""
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant")
MIRRORING = ("auto", "yes", "no")
SLICE_KINDS = ("one", "three", "nearest")
SPLITS = ("train", "test")
ENGINES = ("auto", "exact", "grid")


def _is_data_file(value: str) -> bool:
    return Path(value).suffix.lower() in (".npz", ".pt", ".pth")


def _is_factory(value: str) -> bool:
    place, _, name = value.rpartition(":")
    return bool(place and name)


@dataclass(frozen=True)
class StudyConfig(FlatConfig):
    """One training run: data, encoder, method, optimizer, and what is measured when.

    Attributes
    ----------
    dataset
        One of `DATASETS`, or a file of your own images and classes; see `regiongrid.study.images.load_images`.
    train_images, test_images
        At most so many images of each split, the first of a fixed order; all of them if there are fewer.
    encoder
        One of `ENCODERS` (see `regiongrid.study.encoders.make_encoder`), or your own as ``pkg.mod:factory`` or
        ``file.py:factory``: a class or function without arguments that makes a module from images [N, channels,
        height, width] to features [N, n]. The code there is run.
    linear_features
        Whether the last layer of the encoder is without its ReLU. Your own encoder decides that itself.
    method
        One of `METHODS` or `COLLAPSES`; see `regiongrid.study.methods`.
    augment
        Whether training sees random views (`regiongrid.study.augment`). Only ``supervised`` can do without.
    crop
        Least share of an image's area that a random view shows.
    mirror
        Whether half of the random views are mirrored left to right: ``yes``, ``no``, or ``auto`` for Fashion-MNIST
        alone, whose classes do not mind.
    epochs, batch_size
        Passes over the training images, and images a step (two views of each, but for ``supervised``). The last,
        incomplete batch of a pass is left out.
    optimizer, lr, weight_decay, schedule
        ``adamw`` (decoupled decay), ``adam``, or ``sgd`` (momentum 0.9). The decay acts on all parameters. ``cosine``
        takes the rate from ``lr`` to 0 over the run, step by step.
    head_width, head_out
        Hidden and output width of projection and prediction heads.
    temperature
        Of the contrastive losses (simclr, moco).
    ema_decay
        Share of its old weights that a slow copy keeps at a step (moco, byol, dino).
    queue
        Keys that moco remembers.
    seed
        Of the initial weights, the order of the images and the views.
    slices, slice_kind, half_width, slice_split, slice_seed
        Fixed slices at images of a split: kinds as in `regiongrid.slices.slices_from_data`. ``half_width`` is half the
        side, in input units (a pixel is between 0 and 1); 0 takes the rule of `Slice.through`, which kind ``one`` does
        not have. They depend on these keys and the data alone: runs of all methods and seeds share them.
    with_head
        Whether the network whose regions are measured is the encoder with its projection head, instead of the encoder
        alone. Kept copies hold both, so a report can compare them. (The classifier of ``supervised`` adds no regions.)
    engine
        Of the `RegionMonitor`.
    measure_every
        Epochs from one measurement to the next. Steps 0 and the last are always measured.
    measure_first
        So many more measurements inside the first epoch, at logarithmically spaced steps from step 1 on.
    measure_steps
        Steps from one further measurement to the next; 0 for none of these.
    probe_every
        Epochs from one kNN and linear probe to the next; 0 only probes at the start and at the end.
    keep_every
        Epochs from one kept copy of encoder and head to the next (``encoders/epoch-0005.pt``, ``heads/...``); 0 keeps
        the last alone.

    Raises
    ------
    InputError
        A value that its key cannot have, or two that do not go together.
    """

    dataset: str = one_of_or("fashion-mnist", DATASETS, "a file of images and classes (.npz, .pt)", _is_data_file)
    train_images: int = whole(10_000, 2)
    test_images: int = whole(2_000, 2)
    encoder: str = one_of_or("mlp-128x3", ENCODERS, "your own (pkg.mod:factory, file.py:factory)", _is_factory)
    linear_features: bool = flag(False)
    method: str = one_of("simclr", METHODS + COLLAPSES)
    augment: bool = flag(True)
    crop: float = real(0.6, "a number above 0 and up to 1", lambda value: 0 < value <= 1)
    mirror: str = one_of("auto", MIRRORING)
    epochs: int = whole(15, 1, 1_000_000)
    batch_size: int = whole(256, 2)
    optimizer: str = one_of("adamw", OPTIMIZERS)
    lr: float = positive(1e-3)
    weight_decay: float = not_negative(1e-4)
    schedule: str = one_of("cosine", SCHEDULES)
    head_width: int = whole(128, 1, 1_000_000)
    head_out: int = whole(64, 2, 1_000_000)
    temperature: float = positive(0.2)
    ema_decay: float = real(0.99, "a number from 0 to below 1", lambda value: 0 <= value < 1)
    queue: int = whole(2_048, 1, 10_000_000)
    seed: int = whole(0, 0)
    slices: int = whole(16, 1, 100_000)
    slice_kind: str = one_of("one", SLICE_KINDS)
    half_width: float = not_negative(4.0)
    slice_split: str = one_of("test", SPLITS)
    slice_seed: int = whole(0, 0)
    with_head: bool = flag(False)
    engine: str = one_of("auto", ENGINES)
    measure_every: int = whole(1, 1)
    measure_first: int = whole(6, 0, 1_000)
    measure_steps: int = whole(0, 0)
    probe_every: int = whole(5, 0)
    keep_every: int = whole(0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slice_kind == "one" and self.half_width == 0:
            raise InputError("half_width is 0; slices of kind 'one' have no rule for it, so it must be above 0")
        if self.linear_features and self.encoder not in ENCODERS:
            raise InputError(f"linear_features is true, and encoder {self.encoder!r} is your own; leave it to that")
        if not self.augment and self.method != "supervised":
            raise InputError(f"augment is false; method {self.method!r} compares random views, so it must be true")

    @property
    def name(self) -> str:
        """A name for the run's folder, the same wherever it is run; other configurations have other names.

        >>> StudyConfig(method="byol", seed=1).name
        'fashion-mnist-mlp-128x3-byol-s1'
        >>> StudyConfig(method="byol", seed=1, lr=0.01).name
        'fashion-mnist-mlp-128x3-byol-s1-de3423'
        """
        shown = [self.dataset, self.encoder, self.method]
        known = {"method", "seed"}
        if self.dataset in DATASETS:
            known.add("dataset")
        else:
            shown[0] = Path(self.dataset).stem
        if self.encoder in ENCODERS:
            known.add("encoder")
        else:
            shown[1] = self.encoder.rpartition("/")[2].replace(".py:", "-")
        text = "-".join([*(re.sub(r"[^A-Za-z0-9]+", "-", part) for part in shown), f"s{self.seed}"])
        others = {
            key.name: getattr(self, key.name)
            for key in fields(self)
            if key.name not in known and getattr(self, key.name) != key.default
        }
        if not others:
            return text
        digest = hashlib.blake2b(json.dumps(others, sort_keys=True).encode(), digest_size=3)
        return f"{text}-{digest.hexdigest()}"


def grid(values: Mapping[str, Any]) -> list[StudyConfig]:
    """All configurations of a mapping in which a value may be a list: every combination, the last key fastest.

    >>> [config.name for config in grid({"dataset": "digits", "method": ["byol", "dino"], "seed": [0, 1]})][1:3]
    ['digits-mlp-128x3-byol-s1', 'digits-mlp-128x3-dino-s0']

    Raises
    ------
    InputError
        As for `StudyConfig`, an empty list, or the same configuration twice.
    """
    StudyConfig.check_keys(values)
    axes = []
    for key, value in values.items():
        axes.append(value if isinstance(value, list) else [value])
        if not axes[-1]:
            raise InputError(f"{key} is an empty list; give at least one value, or leave the key out")
    configs = [StudyConfig(**dict(zip(values, combination))) for combination in itertools.product(*axes)]
    if len(set(configs)) < len(configs):
        twice = next(config for i, config in enumerate(configs) if config in configs[:i])
        raise InputError(f"the run {twice.name} is asked for twice; give every value of a list once")
    return configs
