"""What a run measures, when, and on which slices."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from regiongrid.errors import RegiongridError
from regiongrid.files import atomic_path
from regiongrid.monitor import METRICS, RegionMonitor
from regiongrid.monitoring.points import effective_rank, feature_std
from regiongrid.monitoring.undisturbed import evaluating
from regiongrid.slices import Slice, slices_from_data
from regiongrid.study import quality
from regiongrid.study.augment import Views
from regiongrid.study.config import StudyConfig
from regiongrid.study.images import Images
from regiongrid.study.methods import Method, Supervised

QUALITY_IMAGES = 1_000
"""Test images, at most, for the measures of spread: effective rank, standard deviation, alignment, uniformity."""
PROBE_IMAGES = 5_000
"""Training images, at most, that the linear probe is fitted to."""
ANCHORS = 64
_CHUNK = 2_048
_VIEW_SEED = 20_260  # any number: the views for alignment are the same in all runs


@dataclass(frozen=True)
class Schedule:
    """The steps at which something is measured.

    Attributes
    ----------
    measured
        Steps of measurements of regions and of spread, 0 and the last among them.
    probed
        Those of them at which kNN and linear probe are fitted as well.
    """

    measured: frozenset[int]
    probed: frozenset[int]

    @classmethod
    def of(cls, config: StudyConfig, steps_per_epoch: int) -> Schedule:
        """Ends of epochs, logarithmically spaced steps in the first of them, and steps at a fixed distance.

        >>> sorted(Schedule.of(StudyConfig(epochs=2, measure_first=4), 100).measured)
        [0, 1, 3, 10, 32, 100, 200]
        """
        last = config.epochs * steps_per_epoch
        ends = (
            epoch * steps_per_epoch for epoch in range(config.measure_every, config.epochs + 1, config.measure_every)
        )
        early = (round(steps_per_epoch ** (i / config.measure_first)) for i in range(config.measure_first))
        fixed = range(config.measure_steps, last, config.measure_steps) if config.measure_steps else ()
        probes = range(config.probe_every, config.epochs + 1, config.probe_every) if config.probe_every else ()
        probed = {0, last, *(epoch * steps_per_epoch for epoch in probes)}
        return cls(frozenset({*probed, *ends, *early, *fixed}), frozenset(probed))


def make_slices(config: StudyConfig, images: Images) -> list[Slice]:
    """The slices of a run, in the space of flattened images; they depend on data and ``slice_...`` keys alone.

    Slice i of kind ``one`` lies around an image of its own, the i-th of the split in its fixed order, along random
    directions; see `regiongrid.slices.slices_from_data` for the other kinds.
    """
    x, y = (images.train_x, images.train_y) if config.slice_split == "train" else (images.test_x, images.test_y)
    rows = x.flatten(1).double().numpy()
    width = config.half_width or None
    if config.slice_kind == "one":
        seeds = range(config.slice_seed, config.slice_seed + config.slices)
        return [Slice.around(rows[i % len(rows)], config.half_width, seed) for i, seed in enumerate(seeds)]
    return slices_from_data(
        rows,
        y.numpy(),
        count=config.slices,
        kind="three" if config.slice_kind == "three" else "nearest",
        half_width=width,
        seed=config.slice_seed,
    )


def save_slices(slices: Sequence[Slice], path: str | os.PathLike[str]) -> None:
    """Write slices to one .npz file: origin, u, v [S, d], half_width [S], anchors [S, a, 2], description [S].

    Raises
    ------
    RegiongridError
        The file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        np.savez(
            file,
            origin=np.stack([plane.origin for plane in slices]),
            u=np.stack([plane.u for plane in slices]),
            v=np.stack([plane.v for plane in slices]),
            half_width=np.array([plane.half_width for plane in slices]),
            anchors=np.stack([plane.anchors for plane in slices]),
            description=np.array([plane.description for plane in slices]),
        )


def make_monitor(network: nn.Module, images: Images, config: StudyConfig) -> RegionMonitor:
    """The monitor of a run: all metrics but the representation's, which `measure_quality` has."""
    return RegionMonitor(
        network,
        images.test_x[:ANCHORS],
        slices=make_slices(config, images),
        engine=config.engine,
        metrics=_metrics(config),
        threads=1,
        on_error="raise",
    )


def measure_quality(method: Method, images: Images, probe: bool, views: Views) -> dict[str, float]:
    """Quality of the encoder's features, names with the prefix ``quality/``.

    Always: ``effective_rank``, ``feature_std``, ``alignment``, ``uniformity`` over the first `QUALITY_IMAGES` test
    images, and ``embedding_std``, `feature_std` of the embeddings that the loss sees (but for supervised). Alignment is
    that of two random ``views``, the same at each call. With ``probe``: ``knn`` and ``linear``, test accuracies.

    Raises
    ------
    RegiongridError
        Training has diverged: features are infinite or NaN.
    """
    with torch.no_grad(), evaluating(method):
        some = images.test_x[:QUALITY_IMAGES]
        generator = torch.Generator().manual_seed(_VIEW_SEED)
        pairs = views(torch.cat([some, some]), generator)
        features = method.encoder(some)
        if not bool(torch.isfinite(features).all()):
            raise RegiongridError("the encoder's features are no finite numbers any more; take a smaller lr")
        found = {
            "effective_rank": effective_rank(features),
            "feature_std": feature_std(features),
            "alignment": quality.alignment(*method.encoder(pairs).chunk(2)),
            "uniformity": quality.uniformity(features),
        }
        if not isinstance(method, Supervised):
            found["embedding_std"] = feature_std(method.head(features))
        if probe:
            found |= probes(method.encoder, images)
    return {f"quality/{name}": value for name, value in found.items()}


def probes(encoder: Callable[[Tensor], Tensor], images: Images) -> dict[str, float]:
    """Test accuracies ``knn`` (all training images) and ``linear`` (the first `PROBE_IMAGES`) of any encoder.

    >>> from regiongrid.study.images import load_images
    >>> digits = load_images("digits", 1000, 300)
    >>> {name: value > 0.9 for name, value in probes(torch.nn.Flatten(), digits).items()}
    {'knn': True, 'linear': True}
    """
    train, test = (
        torch.cat([encoder(part) for part in torch.split(x, _CHUNK)]).float() for x in (images.train_x, images.test_x)
    )
    few = slice(PROBE_IMAGES)
    return {
        "knn": quality.knn_accuracy(train, images.train_y, test, images.test_y),
        "linear": quality.linear_probe(train[few], images.train_y[few], test, images.test_y),
    }


def _metrics(config: StudyConfig) -> list[str]:
    without = {"representation"} | ({"elongation"} if config.engine == "grid" else set())
    return [name for name in METRICS if name not in without]
