"""What a report measures of kept encoders: further slices, grid against exact polygons, baselines of the images.

Each result is a file in the folder of its run, with what it depends on, and is not measured again while that holds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from regiongrid.arguments import check_whole
from regiongrid.comparison import Accuracy, compare
from regiongrid.errors import InputError, RegiongridError
from regiongrid.files import atomic_path
from regiongrid.network import Network, load_network
from regiongrid.network.live import LiveNetwork
from regiongrid.resources import one_torch_thread
from regiongrid.slices import Slice, slices_from_data
from regiongrid.study.config import SPLITS, StudyConfig
from regiongrid.study.images import Images, load_images
from regiongrid.study.many import _one_thread_each
from regiongrid.study.measuring import make_slices, probes
from regiongrid.study.report_runs import Cell, Place, Track, setting_name
from regiongrid.subdivision import Exact, exact

FURTHER, AGREEMENT, BASELINE = "further_slices.json", "grid_agreement.json", "baseline.json"
RESOLUTIONS = (1024, 2048, 4096)
AGREEMENT_SLICES = 2
CLASSES_NEEDED = {"three": 3, "nearest": 2}
"""Classes that the images of a split need for slices of a kind; kind ``one`` needs none."""
_FORMAT = 2
_WIDTH = StudyConfig().half_width
_ATTEMPTS = 100_000

Progress = Callable[[int, int], None]
"""Called with the files that are done, and how many there are."""


@dataclass(frozen=True)
class Setting:
    """A kind of slices, and what is measured on them; ``half_width`` 0 is the rule of `Slice.through`."""

    kind: str
    half_width: float
    split: str
    with_head: bool

    @property
    def name(self) -> str:
        return setting_name(self.kind, self.half_width, self.split)

    @property
    def place(self) -> Place:
        return Place.of(self.name, self.with_head)

    def split_of(self, images: Images) -> tuple[Tensor, Tensor]:
        """Images and classes of its split."""
        return (images.train_x, images.train_y) if self.split == "train" else (images.test_x, images.test_y)

    def is_possible(self, images: Images) -> bool:
        """Whether its split has enough classes; see `CLASSES_NEEDED`."""
        _, y = self.split_of(images)
        return len(np.unique(y.numpy())) >= CLASSES_NEEDED.get(self.kind, 0)


def settings_of(config: StudyConfig) -> tuple[Setting, ...]:
    """What kept encoders of a run are measured on besides its own slices.

    Slices around one image a quarter and twice as wide as the run's own, through three classes, and to the nearest
    image of another class, around training and around test images. And what the head makes of it, two kinds again: if
    the run measured the encoder, with the head, else without. Those that its images cannot give are not measured; see
    `Setting.is_possible`.

    >>> [(one.name, one.with_head) for one in settings_of(StudyConfig(half_width=2.0))][-2:]
    [('one anchor, half width 2, test', True), ('three classes, test', True)]
    """
    width = config.half_width if config.slice_kind == "one" else _WIDTH
    own, other = config.with_head, not config.with_head
    kinds = (("one", width / 4), ("one", 2 * width), ("three", 0.0), ("nearest", 0.0))
    settings = [Setting(kind, side, split, own) for kind, side in kinds for split in SPLITS]
    return *settings, Setting("one", width, SPLITS[-1], other), Setting("three", 0.0, SPLITS[-1], other)


@dataclass(frozen=True)
class Further:
    """Means over the slices of a setting, by epoch: names of columns as in `GEOMETRY`."""

    place: Place
    epoch: int
    values: dict[str, float]


def make_setting_slices(setting: Setting, images: Images, count: int, seed: int = 0) -> list[Slice]:
    """Slices of a setting; like those of runs, they depend on the data alone.

    Kind ``three`` lies through three random images of three different classes.

    Raises
    ------
    InputError
        The images have fewer than three classes, or too few images.
    """
    x, y = setting.split_of(images)
    rows = x.flatten(1).numpy()
    if setting.kind == "one":
        anchors = (rows[i % len(rows)].astype(np.float64) for i in range(count))
        return [Slice.around(anchor, setting.half_width, seed + i) for i, anchor in enumerate(anchors)]
    width = setting.half_width or None
    if setting.kind == "nearest":
        return slices_from_data(rows, y.numpy(), count=count, kind="nearest", half_width=width, seed=seed)
    generator = np.random.Generator(np.random.PCG64(seed))
    found: list[Slice] = []
    for _ in range(_ATTEMPTS):
        chosen = generator.choice(len(rows), 3, replace=False)
        if len({int(y[i]) for i in chosen}) == 3:
            first, second, third = (rows[i].astype(np.float64) for i in chosen)
            found.append(Slice.through(first, second, third, width))
        if len(found) == count:
            return found
    raise InputError(
        f"no {count} planes through three classes: the {setting.split} images have too few classes, or of one too few"
    )


def further_epochs(track: Track) -> list[int]:
    """Epochs whose encoders are measured on further slices: untrained, the first kept one, the last."""
    kept = list(track.encoder_files())
    return sorted({0, kept[0], kept[-1]})


def measure_further(cells: Sequence[Cell], slices: int, jobs: int, progress: Progress | None = None) -> None:
    """Measure all runs on ``slices`` slices of each of their settings, and agreement and baselines, as far as not done.

    Raises
    ------
    InputError
        ``slices`` or ``jobs`` is no whole number from 1 on, the data of a run are not to be had any more, its encoder
        cannot be made, or one of the files to write is a symbolic link.
    RegiongridError
        A file cannot be read or written.
    """
    check_whole("slices", slices, 1)
    check_whole("jobs", jobs, 1)
    tasks = [task for cell in cells for task in _tasks(cell, slices) if not _is_done(task)]
    if progress is not None:
        progress(0, len(tasks))
    if not tasks:
        return
    # Processes and not threads, because lines of Python between the kernels would have them wait for each other.
    with (
        _one_thread_each(),
        ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        futures = [pool.submit(_carry_out, task) for task in tasks]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress is not None:
                    progress(number, len(tasks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_further(track: Track, slices: int) -> list[Further]:
    """What `measure_further` has found of a run; empty if it has not been measured."""
    found = _read_cached(track, FURTHER, slices)
    return [Further(Place.of(row["setting"], row["with_head"]), row["epoch"], row["values"]) for row in found or []]


def read_agreement(track: Track, slices: int) -> list[dict[str, Any]]:
    """Grid against exact polygons on the first of the run's own slices; empty if it has not been measured."""
    return _read_cached(track, AGREEMENT, slices) or []


def read_baseline(cell: Cell, slices: int) -> dict[str, float]:
    """Accuracies ``knn`` and ``linear`` of the raw pixels; empty if they have not been measured."""
    rows = _read_cached(cell.tracks[0], BASELINE, slices)
    return dict(rows[0]) if rows else {}


@dataclass(frozen=True)
class _Task:
    """Files that a run is to have."""

    track: Track
    slices: int
    files: tuple[str, ...]


def _tasks(cell: Cell, slices: int) -> list[_Task]:
    """Further slices of all runs, agreement of the first of each method, the baseline beside the first of all."""
    tasks = []
    for tracks in cell.methods.values():
        for track in tracks:
            files = [FURTHER, *([AGREEMENT] if track is tracks[0] else [])]
            tasks.append(_Task(track, slices, tuple([*files, BASELINE] if track is cell.tracks[0] else files)))
    return tasks


def _is_done(task: _Task) -> bool:
    return all(_read_cached(task.track, name, task.slices) is not None for name in task.files)


def _carry_out(task: _Task) -> None:
    from threadpoolctl import threadpool_limits

    track = task.track
    # An encoder of the run's own may print, and stdout is for results.
    with one_torch_thread(), threadpool_limits(1), redirect_stdout(sys.stderr), _named(track):
        images = images_of(track)
        makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
            FURTHER: lambda: _further(track, images, task.slices),
            AGREEMENT: lambda: _agreement(track, images),
            BASELINE: lambda: [probes(nn.Flatten(), images)],
        }
        for name in task.files:
            if _read_cached(track, name, task.slices) is None:
                content = {"stamp": _stamp(track, name, task.slices), "rows": makers[name]()}
                with atomic_path(_file_of(track, name)) as temporary:
                    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


@contextmanager
def _named(track: Track) -> Iterator[None]:
    """Have errors begin with the folder of the run."""
    beginning = f"the run in {track.folder}: "
    try:
        yield
    except InputError as error:
        if str(error).startswith(beginning):
            raise
        raise InputError(f"{beginning}{error}") from error


def images_of(track: Track) -> Images:
    """The images that a run was trained on.

    Raises
    ------
    InputError
        They are not to be had any more.
    """
    config = track.config
    with _named(track):
        images = _loaded(config.dataset, config.train_images, config.test_images)
        if images.digest != track.data:
            raise InputError(f"it was trained on other data than {images.source} as it is here")
        return images


def network_of(track: Track, epoch: int, images: Images) -> Network:
    """The network that a run measured as it was after an epoch, ready for both engines."""
    with _named(track):
        return load_network(track.network(epoch, images, track.config.with_head), input_shape=images.shape)


@lru_cache(maxsize=2)
def _loaded(dataset: str, train_images: int, test_images: int) -> Images:
    return load_images(dataset, train_images, test_images)


def _further(track: Track, images: Images, count: int) -> list[dict[str, Any]]:
    settings = [setting for setting in settings_of(track.config) if setting.is_possible(images)]
    planes = {setting: make_setting_slices(setting, images, count) for setting in settings}
    rows = []
    for with_head in (False, True):
        live = LiveNetwork(track.network(0, images, with_head), images.shape)
        for epoch in further_epochs(track):
            live.module.load_state_dict(track.network(epoch, images, with_head).state_dict())
            network = live.current()
            for setting in (one for one in planes if one.with_head == with_head):
                found = [_geometry(one) for one in exact(network, planes[setting], threads=1)]
                values = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
                rows.append({"setting": setting.name, "with_head": with_head, "epoch": epoch, "values": values})
    return rows


def _geometry(one: Exact) -> dict[str, float]:
    return {
        "regions/count": float(len(one.regions)),
        "regions/area_median": float(np.median(one.regions.area)),
        "regions/eccentricity_mean": float(one.regions.eccentricity.mean()),
        "regions/boundary_density": one.boundary_length / one.slice.domain_area,
    }


def _agreement(track: Track, images: Images) -> list[dict[str, Any]]:
    network = network_of(track, track.config.epochs, images)
    slices = make_slices(track.config, images)[:AGREEMENT_SLICES]
    comparisons = compare(network, slices, RESOLUTIONS, threads=1)
    return [_accuracy(i, row) for i, comparison in enumerate(comparisons) for row in comparison.rows]


def _accuracy(number: int, row: Accuracy) -> dict[str, Any]:
    return {
        "slice": number,
        "res": row.res,
        "regions_exact": row.regions_exact,
        "regions_grid": row.regions_grid,
        "count_error": row.count_error,
        "count_extrapolated_error": row.count_extrapolated_error,
        "boundary_error": row.boundary_error,
        "boundary_extrapolated_error": row.boundary_extrapolated_error,
        "missed_area_share": row.missed_area_share,
        "area_error_max": row.sizes[-1].area_max or 0.0,  # of regions of 1,000 pixels and more
        "spurious_unexplained": row.spurious_unexplained,
        "area_lower_violations": row.lower_violations,
        "trustworthy": row.extrapolation_trustworthy,
    }


def _stamp(track: Track, name: str, slices: int) -> dict[str, Any]:
    """All that a file depends on, but for the code."""
    encoders = {
        str(epoch): hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
        for epoch, file in track.encoder_files().items()
    }  # heads are written beside them
    stamp: dict[str, Any] = {"resolutions": list(RESOLUTIONS)} if name == AGREEMENT else {}
    return stamp | {
        "format": _FORMAT,
        "data": track.data,
        "encoders": encoders,
        "slices": slices,
        "settings": [[setting.name, setting.with_head] for setting in settings_of(track.config)],
    }


def _file_of(track: Track, name: str) -> Path:
    """A file in the folder of a run; a link there could have a report overwrite any file of its user's."""
    path = track.folder / name
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link, and results are written into the run's folder alone; delete it")
    return path


def _read_cached(track: Track, name: str, slices: int) -> list[dict[str, Any]] | None:
    """The rows of a file, None if it is not there or depends on something else."""
    path = _file_of(track, name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RegiongridError(f"{path} cannot be read ({type(error).__name__}); delete it") from error
    if not isinstance(content, dict) or content.get("stamp") != _stamp(track, name, slices):
        return None
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() == _KEYS[name] for row in rows):
        raise RegiongridError(f"{path} cannot be read (its rows are not those of a report); delete it")
    return rows


_KEYS = {
    FURTHER: {"setting", "with_head", "epoch", "values"},
    AGREEMENT: {
        "slice", "res", "regions_exact", "regions_grid", "count_error", "count_extrapolated_error", "boundary_error",
        "boundary_extrapolated_error", "missed_area_share", "area_error_max", "spurious_unexplained",
        "area_lower_violations", "trustworthy",
    },
    BASELINE: {"knn", "linear"},
}  # fmt: skip
"""Of a row of each file."""
