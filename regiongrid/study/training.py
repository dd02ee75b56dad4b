"""One training run in a folder of its own, which can be killed at any time and goes on where it was.

A run is a function of its configuration, the data and the machine's arithmetic: one thread, one generator for order and
views, its state in every checkpoint. A run that was killed and resumed has the weights and the ``metrics.jsonl`` of one
that was not, to the last bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regiongrid.errors import InputError, RegiongridError
from regiongrid.files import atomic_path
from regiongrid.monitor import RegionMonitor
from regiongrid.monitoring.line_files import read_jsonl
from regiongrid.monitoring.sinks import JsonLines, required
from regiongrid.resources import one_torch_thread, processor
from regiongrid.study.augment import Views
from regiongrid.study.config import StudyConfig
from regiongrid.study.encoders import check_fingerprint, fingerprint
from regiongrid.study.images import Images, load_images
from regiongrid.study.measuring import Schedule, make_monitor, make_slices, measure_quality, save_slices
from regiongrid.study.methods import Method, initial_method
from regiongrid.study.run_folder import locked, read_checkpoint, save_checkpoint

CONFIG, ENVIRONMENT, METRICS, CHECKPOINT, SLICES, ENCODER, HEAD = (
    "config.toml",
    "environment.json",
    "metrics.jsonl",
    "checkpoint.pt",
    "slices.npz",
    "encoder.pt",
    "head.pt",
)
KEPT = ("encoders", "heads")
"""Folders of what ``keep_every`` keeps."""
_FORMAT = 2

MakeMonitor = Callable[[nn.Module, Images, StudyConfig], RegionMonitor]
"""Called with the network that is measured: the encoder, with its head if the configuration says so."""
Progress = Callable[[int, int], None]
"""Called with the epochs done and the epochs in all, after each epoch."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    folder
    config
    record
        The last measurement, as it stands in ``metrics.jsonl``.
    seconds
        That training and measuring took, over all parts of the run.
    earlier
        Whether it had been finished before it was asked for.
    """

    folder: Path
    config: StudyConfig
    record: dict[str, float]
    seconds: float
    earlier: bool


def train(
    config: StudyConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    monitor: bool | MakeMonitor = True,
    progress: Progress | None = None,
) -> Run:
    """Train as ``config`` says, in ``folder``; a run that is finished there is not run again.

    The folder gets ``config.toml``; ``environment.json`` (versions, machine, data); ``slices.npz``; ``metrics.jsonl``,
    a line a measurement: ``step``, ``epoch``, ``train/loss`` (mean since the line before), ``regions/...`` (see
    `RegionMonitor`), ``quality/...`` (see `regiongrid.study.measuring.measure_quality`); ``checkpoint.pt``, replaced
    after each epoch; ``encoder.pt`` and ``head.pt``, the weights at the end; ``encoders/`` and ``heads/``, those that
    ``keep_every`` keeps.

    Parameters
    ----------
    resume
        Go on with an unfinished run of the same configuration.
    monitor
        True for the monitor of the configuration, False for none, or ``monitor(network, images, config)`` that makes
        one. Its records go into ``metrics.jsonl``, and all other numbers of the step into its history; give it no
        ``run`` folder or sink there of its own.
    progress
        Called after each epoch.

    Raises
    ------
    InputError
        The folder holds a run of another configuration, on other data, of an encoder with other code, with a monitor
        where none is asked for or the other way round, or an unfinished one without ``resume``; the batch is larger
        than the data.
    RegiongridError
        The folder cannot be written, another process is training in it, or the training has diverged.
    """
    place = Path(folder)
    with locked(place), _one_thread(), torch.random.fork_rng([]):
        torch.manual_seed(config.seed)  # for encoders that draw random numbers themselves, as dropout does
        begun = _check_folder(place, config)
        state = read_checkpoint(place / CHECKPOINT, _FORMAT) if begun else None
        done = 0 if state is None else state["epoch"]
        if state is not None:
            _check_monitored(place, state, monitor)
        if state is not None and done == config.epochs:
            _check_whole_run(place, config)
            return Run(place, config, state["record"], state["seconds"], earlier=True)
        if begun and not resume:
            raise InputError(
                f"{place} holds an unfinished run ({done} of {config.epochs} epochs); resume it (resume=True, "
                "--resume), or choose another folder"
            )
        images = load_images(config.dataset, config.train_images, config.test_images)
        training = _Training(config, images, place, monitor)
        training.begin(state)
        while training.epoch < config.epochs:
            training.one_epoch()
            if progress is not None:
                progress(training.epoch, config.epochs)
        return Run(place, config, training.record, training.seconds, earlier=False)


@dataclass
class _Loss:
    """The mean of the loss since the last line of metrics."""

    total: float = 0.0
    steps: int = 0

    def add(self, loss: Tensor) -> None:
        self.total += float(loss.detach())
        self.steps += 1

    def taken(self) -> dict[str, float]:
        mean = {"train/loss": self.total / self.steps} if self.steps else {}
        self.total, self.steps = 0.0, 0
        return mean


class _Training:
    """The state of a run between two epochs."""

    def __init__(self, config: StudyConfig, images: Images, folder: Path, monitor: bool | MakeMonitor) -> None:
        self.config, self.images, self.folder = config, images, folder
        self.steps_per_epoch = len(images.train_x) // config.batch_size
        if not self.steps_per_epoch:
            raise InputError(
                f"batch_size is {config.batch_size}, and there are {len(images.train_x)} training images; take a "
                "smaller batch, or more images"
            )
        self.method = initial_method(config, images)
        self.features = fingerprint(self.method.encoder, images)
        self.optimizer = make_optimizer(config, self.method)
        self.generator = torch.Generator().manual_seed(config.seed)
        mirror = images.mirrored if config.mirror == "auto" else config.mirror == "yes"
        self.views = Views((config.crop, 1.0), mirror=mirror)
        self.schedule = Schedule.of(config, self.steps_per_epoch)
        make = make_monitor if monitor is True else monitor
        self.monitor = make(self.method.network(config.with_head), images, config) if make else None
        self.metrics = JsonLines(folder / METRICS)
        self.loss = _Loss()
        self.epoch = self.step = 0
        self.seconds = 0.0
        self.record: dict[str, float] = {}

    def begin(self, state: dict[str, Any] | None) -> None:
        """Start, or go on where a checkpoint was made."""
        if state is not None:
            check_fingerprint(self.method.encoder, self.images, state["features"])
            self.load(state)
            self.metrics.rewind(self.step)
            return
        slices = self.monitor.slices if self.monitor is not None else make_slices(self.config, self.images)
        save_slices(list(slices), self.folder / SLICES)
        about = environment(self.images) | {"features": self.features}
        _write_text(self.folder / ENVIRONMENT, json.dumps(about, indent=2) + "\n")
        _write_text(self.folder / CONFIG, self.config.to_toml())
        self.metrics.rewind(None)
        started = time.perf_counter()
        self.measure()
        self.seconds += time.perf_counter() - started

    def one_epoch(self) -> None:
        started = time.perf_counter()
        size = self.config.batch_size
        order = torch.randperm(len(self.images.train_x), generator=self.generator)
        for rows in torch.split(order[: self.steps_per_epoch * size], size):
            self.one_step(rows)
            if self.step in self.schedule.measured:
                self.measure()
        self.epoch += 1
        self.seconds += time.perf_counter() - started
        self.save()

    def one_step(self, rows: Tensor) -> None:
        """One step of the optimizer on the images ``rows``."""
        _set_rate(self.optimizer, self.config, self.step / (self.config.epochs * self.steps_per_epoch))
        images = self.images.train_x[rows]
        if self.config.augment:
            images = self.views(torch.cat([images] * self.method.views), self.generator)
        self.method.train()
        loss = self.method.loss(images, self.images.train_y[rows])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.method.after_step()
        self.step += 1
        if not bool(torch.isfinite(loss)):
            raise RegiongridError(f"the loss is {float(loss)} at step {self.step}; take a smaller lr")
        self.loss.add(loss)

    def measure(self) -> None:
        numbers = {"epoch": self.step / self.steps_per_epoch, **self.loss.taken()}
        numbers |= measure_quality(self.method, self.images, self.step in self.schedule.probed, self.views)
        if self.monitor is not None:
            numbers = self.monitor.measure(self.step, also=numbers) or numbers
        self.record = numbers
        self.metrics(self.step, numbers)

    def save(self) -> None:
        keep = self.config.keep_every
        if keep and self.epoch % keep == 0:
            self.save_parts(*(f"{folder}/epoch-{self.epoch:04d}.pt" for folder in KEPT))
        if self.epoch == self.config.epochs:
            self.save_parts(ENCODER, HEAD)
        save_checkpoint(
            {
                "format": _FORMAT,
                "epoch": self.epoch,
                "step": self.step,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "global_generator": torch.get_rng_state(),
                "features": self.features,
                "monitor": None if self.monitor is None else self.monitor.state_dict(),
                "loss": [self.loss.total, self.loss.steps],
                "record": self.record,
                "seconds": self.seconds,
                "data": self.images.digest,
            },
            self.folder / CHECKPOINT,
        )

    def save_parts(self, encoder: str, head: str) -> None:
        for name, part in ((encoder, self.method.encoder), (head, self.method.projection)):
            (self.folder / name).parent.mkdir(exist_ok=True)
            save_checkpoint(part.state_dict(), self.folder / name)

    def load(self, state: dict[str, Any]) -> None:
        if state["data"] != self.images.digest:
            raise InputError(
                f"the run in {self.folder} was trained on other data than {self.images.source} as it is here; "
                "choose another folder, or bring its data back (environment.json says which)"
            )
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        self.loss = _Loss(*state["loss"])
        self.record = state["record"]
        if self.monitor is not None and state["monitor"] is not None:
            self.monitor.load_state_dict(state["monitor"])


def make_optimizer(config: StudyConfig, method: Method) -> Optimizer:
    """The optimizer of all parameters that are trained."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, config.lr, momentum=0.9, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(trained, config.lr, weight_decay=config.weight_decay)


def environment(images: Images) -> dict[str, Any]:
    """What a run depends on besides its configuration."""
    from regiongrid.commands.output import installed_version, versions

    return {
        "versions": {**versions(), "scikit-learn": installed_version("scikit-learn")},
        "platform": platform.platform(),
        "processor": processor(),
        "threads": 1,
        "data": {
            "source": images.source,
            "train_images": len(images.train_x),
            "test_images": len(images.test_x),
            "blake2b": images.digest,
        },
    }


def _set_rate(optimizer: Optimizer, config: StudyConfig, done: float) -> None:
    """The learning rate at a share ``done`` of the run."""
    rate = config.lr * (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else config.lr
    for group in optimizer.param_groups:
        group["lr"] = rate


def _check_folder(folder: Path, config: StudyConfig) -> bool:
    """Whether a run has begun in ``folder``.

    Raises
    ------
    InputError
        It is one of another configuration.
    """
    file = folder / CONFIG
    if not file.exists():
        for name in (CHECKPOINT, METRICS, ENCODER, HEAD):
            if (folder / name).exists():
                raise InputError(f"{folder} holds a file {name} and no run's {CONFIG}; choose another folder")
        return False
    differences = config.differences(StudyConfig.read(file))
    if differences:
        raise InputError(f"{folder} holds another run: {'; '.join(differences)}; choose another folder")
    return True


def _check_monitored(folder: Path, state: dict[str, Any], monitor: bool | MakeMonitor) -> None:
    """Raise `InputError` if a run was begun with a monitor and is asked for without one, or the other way round."""
    had = state["monitor"] is not None
    if had != bool(monitor):
        began, asked = ("with", "without") if had else ("without", "with")
        raise InputError(
            f"the run in {folder} was begun {began} a monitor of regions, and is asked for {asked} one (monitor, "
            "--monitor/--no-monitor); choose another folder"
        )


def _check_whole_run(folder: Path, config: StudyConfig) -> None:
    """Raise `InputError` if files of a finished run have been lost."""
    lost = [name for name in (METRICS, ENCODER, HEAD, ENVIRONMENT) if not (folder / name).exists()]
    if not lost and read_jsonl(folder / METRICS)["epoch"][-1] < config.epochs:
        lost = [f"the end of {METRICS}"]
    if lost:
        raise InputError(f"the run in {folder} is finished, but has lost {', '.join(lost)}; delete it and run it again")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread in torch and in the libraries of NumPy and scikit-learn: sums of several come in no fixed order."""
    threadpoolctl = required("threadpoolctl", "study", "training for a study")
    with one_torch_thread(), threadpoolctl.threadpool_limits(1):
        yield
