"""Finished runs of the study, read back and put in order for a report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regiongrid.errors import InputError
from regiongrid.monitoring.history import History
from regiongrid.monitoring.line_files import read_jsonl
from regiongrid.study.config import COLLAPSES, METHODS, StudyConfig
from regiongrid.study.encoders import check_fingerprint
from regiongrid.study.images import Images
from regiongrid.study.methods import initial_method
from regiongrid.study.training import CONFIG, ENCODER, ENVIRONMENT, HEAD, KEPT, METRICS

Array = NDArray[np.float64]

SUPERVISED = "supervised"
CONTRASTIVE = ("simclr", "moco")
DISTILLATION = ("byol", "simsiam", "dino")
COUNTERPARTS = {"simsiam-no-stop-gradient": "simsiam", "byol-no-predictor": "byol"}
"""Conditions that collapse, to the method that they differ from in one part."""
ORDER = (*METHODS, *COLLAPSES)
NAMES = {
    "supervised": "supervised", "simclr": "SimCLR", "moco": "MoCo", "byol": "BYOL", "simsiam": "SimSiam",
    "dino": "DINO", "simsiam-no-stop-gradient": "SimSiam, no stop-grad.", "byol-no-predictor": "BYOL, no predictor",
}  # fmt: skip
DATA_NAMES = {"digits": "digits 8x8", "mnist": "MNIST", "mnist-5k": "MNIST (5k)", "fashion-mnist": "Fashion-MNIST"}
GEOMETRY = {
    "regions/count": "regions of a slice",
    "regions/area_median": "median area (input units²)",
    "regions/eccentricity_mean": "mean eccentricity",
    "regions/boundary_density": "boundary per area (1 / input unit)",
}
"""Columns of the geometry that a report is about, with their names."""
QUALITY = {"quality/knn": "kNN accuracy", "quality/linear": "linear probe", "quality/effective_rank": "effective rank"}
"""Columns of the quality of a representation, with their names."""

_OF_A_METHOD = frozenset(
    {
        "method", "seed", "augment", "optimizer", "lr", "weight_decay", "schedule", "head_width", "head_out",
        "temperature", "ema_decay", "queue",
    }
)  # fmt: skip
"""Keys in which methods may differ. All others, what is measured on what for how long, are common to a cell."""


@dataclass(frozen=True, eq=False)
class Track:
    """A finished run.

    Attributes
    ----------
    data
        Digest of its images.
    source
        The data set that they are really from.
    features
        What the encoder made of an image before training (`regiongrid.study.encoders.fingerprint`), if that is known.
    """

    folder: Path
    config: StudyConfig
    history: History
    data: str
    source: str
    features: Sequence[float] | None = None

    def __getitem__(self, name: str) -> Array:
        """A column, NaN where a measurement did not give it; [n]."""
        return self.history[name].astype(np.float64)

    @cached_property
    def epoch(self) -> Array:
        return self["epoch"]

    def encoder_files(self) -> dict[int, Path]:
        """Kept encoders by epoch, the one at the end among them."""
        names = (re.fullmatch(r"epoch-(\d+)\.pt", file.name) for file in self.folder.glob(f"{KEPT[0]}/*"))
        found = {int(name[1]): self.folder / KEPT[0] / name[0] for name in names if name}
        return dict(sorted({**found, self.config.epochs: self.folder / ENCODER}.items()))

    def network(self, epoch: int, images: Images, with_head: bool = False) -> nn.Module:
        """Encoder or encoder with head as they were after an epoch, kept ones, or as they were drawn (epoch 0)."""
        try:
            method = initial_method(self.config, images)
            check_fingerprint(method.encoder, images, self.features)
        except InputError as error:
            raise InputError(f"the run in {self.folder}: {error}") from error
        if epoch:
            file = self.encoder_files()[epoch]
            _load(method.encoder, file)
            if with_head:
                kept = file.parent.name == KEPT[0]
                _load(method.projection, self.folder / KEPT[1] / file.name if kept else self.folder / HEAD)
        return method.network(with_head).eval()


class Place(NamedTuple):
    """Where regions are counted: on what slices, and of what network."""

    slices: str
    network: str

    @classmethod
    def of(cls, slices: str, with_head: bool) -> Place:
        return cls(slices, "with head" if with_head else "encoder")

    def __str__(self) -> str:
        return self.slices if self.network == "encoder" else f"{self.slices}, {self.network}"


@dataclass(frozen=True, eq=False)
class Cell:
    """All runs of one encoder on one data set.

    Attributes
    ----------
    dataset, encoder
        As the runs name them; without the folder if they are files.
    methods
        Runs of each method in the order of their seeds; methods in the order of `ORDER`.
    """

    dataset: str
    encoder: str
    methods: dict[str, list[Track]]

    @property
    def tracks(self) -> list[Track]:
        return [track for tracks in self.methods.values() for track in tracks]

    @property
    def config(self) -> StudyConfig:
        """That of the first run; what is measured is the same in all."""
        return self.tracks[0].config

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.encoder}"

    @property
    def title(self) -> str:
        return cell_title(self.dataset, self.encoder)

    @property
    def own_place(self) -> Place:
        """What the runs themselves measured."""
        config = self.config
        name = setting_name(config.slice_kind, config.half_width, config.slice_split)
        return Place.of(name, config.with_head)

    def healthy(self) -> list[str]:
        """Methods that are not meant to collapse."""
        return [method for method in self.methods if method not in COUNTERPARTS]

    def self_supervised(self) -> list[str]:
        return [method for method in self.healthy() if method != SUPERVISED]


def _load(part: nn.Module, file: Path) -> None:
    try:
        part.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"weights {file} cannot be read: {type(error).__name__}; run it again") from error


def cell_title(dataset: str, encoder: str) -> str:
    """What figures and tables call the runs of an encoder on a data set."""
    return f"{DATA_NAMES.get(dataset, dataset)}, {encoder}"


def setting_name(kind: str, half_width: float, split: str) -> str:
    """Like ``one anchor, half width 4, test``."""
    names = {"one": "one anchor", "three": "three classes", "nearest": "nearest other class"}
    return ", ".join([names[kind], *([f"half width {half_width:g}"] if half_width else []), split])


def read_cells(paths: Sequence[Path], *, skip_unfinished: bool = False) -> tuple[list[Cell], list[Path]]:
    """Runs by data set and encoder, and the unfinished ones that were left out.

    Parameters
    ----------
    paths
        Folders of runs, and folders that hold such folders.
    skip_unfinished
        Leave out runs that are not finished.

    Raises
    ------
    InputError
        No runs, an unfinished one without ``skip_unfinished``, a file that cannot be read, or runs that cannot be
        compared: of one data set and encoder, but other images, slices or lengths.
    """
    tracks, unfinished = [], []
    for folder in _run_folders(paths):
        track = _read(folder)
        if track is None:
            unfinished.append(folder)
        else:
            tracks.append(track)
    if unfinished and not skip_unfinished:
        more = f" and {len(unfinished) - 1} more" if len(unfinished) > 1 else ""
        raise InputError(
            f"{unfinished[0]}{more} is not finished; finish it (regiongrid study run ... --resume), or leave out what "
            "is not finished (--skip-unfinished)"
        )
    if not tracks:
        raise InputError(f"there is no finished run in {', '.join(map(str, paths))}")
    return _cells(tracks), unfinished


def _run_folders(paths: Sequence[Path]) -> list[Path]:
    if not paths:
        raise InputError("no runs were given; give folders that regiongrid study run has made")
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is no folder; give a run's folder, or one that holds runs")
        inside = [path] if (path / CONFIG).exists() else sorted(file.parent for file in path.glob(f"*/{CONFIG}"))
        if not inside:
            raise InputError(f"{path} holds no run (no {CONFIG} in it or in a folder of it)")
        found |= {folder.resolve(): folder for folder in inside}
    return list(found.values())


def _read(folder: Path) -> Track | None:
    """The run in a folder, None if it is not finished."""
    config = StudyConfig.read(folder / CONFIG)
    if not (folder / METRICS).exists() or not (folder / ENCODER).exists():
        return None
    history = read_jsonl(folder / METRICS)
    if "epoch" not in history or history["epoch"][-1] < config.epochs:
        return None
    missing = [name for name in (*GEOMETRY, *QUALITY) if name not in history]
    if missing:
        raise InputError(
            f"the run in {folder} has no {missing[0]}; a report needs runs with a monitor of all metrics: leave it out "
            "(give the folders of the other runs), or run it again with one"
        )
    try:
        about = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        data = about["data"]
        features = [float(value) for value in about["features"]] if "features" in about else None
        return Track(folder, config, history, str(data["blake2b"]), str(data["source"]), features)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / ENVIRONMENT} cannot be read ({type(error).__name__}): {error}") from error


def _cells(tracks: Iterable[Track]) -> list[Cell]:
    groups: dict[tuple[str, str], list[Track]] = {}
    for track in tracks:
        groups.setdefault((track.config.dataset, track.config.encoder), []).append(track)
    cells: list[Cell] = []
    for (dataset, encoder), some in sorted(groups.items()):
        methods = {}
        for method in ORDER:
            own = sorted((t for t in some if t.config.method == method), key=lambda t: t.config.seed)
            if own:
                methods[method] = own
        cell = Cell(Path(dataset).name, Path(encoder).name, methods)
        _check(cell)
        same = next((other for other in cells if other.title == cell.title), None)
        if same is not None:
            first, second = same.tracks[0].folder, cell.tracks[0].folder
            raise InputError(f"{first} and {second} would both be called {cell.title}; report them apart")
        cells.append(cell)
    return cells


def _check(cell: Cell) -> None:
    """Raise `InputError` unless the runs can be compared."""
    first = cell.tracks[0]
    for track in cell.tracks:
        _compare(first, track, _OF_A_METHOD)
        if track.data != first.data:
            raise InputError(f"{first.folder} and {track.folder} were trained on other images; report them apart")
    for tracks in cell.methods.values():
        for before, track in pairwise(tracks):
            _compare(before, track, frozenset({"seed"}))
            if before.config.seed == track.config.seed:
                raise InputError(f"{before.folder} and {track.folder} are the same run; give each once")


def _compare(first: Track, second: Track, free: frozenset[str]) -> None:
    for key in fields(StudyConfig):
        one, other = (getattr(track.config, key.name) for track in (first, second))
        if key.name not in free and one != other:
            raise InputError(
                f"{first.folder} and {second.folder} cannot be compared: {key.name} is {one!r} in the first and "
                f"{other!r} in the second; report them apart"
            )
