"""Does the collapse alarm see collapse, how soon, and how often does it cry wolf?

Trains small encoders on Fashion-MNIST, healthy ones and ones that collapse, measures all of them every ten steps, and
lets detectors look at the same measurements: the rules of `regiongrid.monitoring.alarm.CollapseAlarm` on regions, and
rules of the same kind on two measures of the representation, RankMe of the features and the standard deviation of the
embeddings. The limits of all of them were chosen on the runs of the setting ``tuning``; the others are reported.

    python -m regiongrid.study.collapse --runs runs/collapse --out results/collapse --jobs 2

trains what the folder of runs does not have yet and writes ``runs.csv``, ``summary.csv`` and ``timelines.png`` to
results/collapse/testing; ``--setting other`` is about another encoder and other data.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import nn

from regiongrid.errors import RegiongridError
from regiongrid.files import atomic_path
from regiongrid.monitor import RegionMonitor
from regiongrid.monitoring.alarm import HEALTH, REGIONS, CollapseAlarm, CollapseWarning, Rule
from regiongrid.plots import BY_AREA, INK, LEVEL, MARKS, inch_axes, save_figure, style_axes
from regiongrid.study.config import StudyConfig
from regiongrid.study.images import Images
from regiongrid.study.many import Failure, run_many
from regiongrid.study.measuring import make_slices

EVERY = 10
"""Steps from one measurement to the next."""
_COMMON: dict[str, Any] = {
    "train_images": 10_000, "measure_steps": EVERY, "measure_every": 1000, "measure_first": 0,
    "probe_every": 0, "slices": 16, "half_width": 4.0, "crop": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """A way to train, and whether it is one that is known to collapse."""

    name: str
    collapses: bool
    keys: Mapping[str, Any]


CONDITIONS = (
    Condition("supervised", False, {"method": "supervised"}),
    Condition("SimCLR", False, {"method": "simclr"}),
    Condition("BYOL", False, {"method": "byol"}),
    Condition("SimSiam", False, {"method": "simsiam"}),
    Condition("SimSiam, no stop-gradient", True, {"method": "simsiam-no-stop-gradient"}),
    Condition("BYOL, no predictor", True, {"method": "byol-no-predictor"}),
    Condition("supervised, rate 0.1", True, {"method": "supervised", "lr": 0.1}),
    Condition("SimCLR, rate 0.1", True, {"method": "simclr", "lr": 0.1}),
    Condition("supervised, decay 30", True, {"method": "supervised", "weight_decay": 30.0}),
    Condition("SimCLR, decay 30", True, {"method": "simclr", "weight_decay": 30.0}),
)

SPREAD = "spread"
_FEATURES = {"mlp-128x3": 128, "mlp-32x3": 32}
DETECTORS: dict[str, tuple[Rule, ...]] = {
    "regions": REGIONS,
    "RankMe": HEALTH,
    "std of embeddings": (Rule(SPREAD, 0.3, 0.5, "start", patience=2),),
    "regions or RankMe": (*REGIONS, *HEALTH),
}

Row = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """What is trained on what; ``epochs`` make about 470 steps."""

    dataset: str
    encoder: str
    epochs: int
    seeds: range


SETTINGS = {
    "tuning": Setting("fashion-mnist", "mlp-128x3", 12, range(5)),
    "testing": Setting("fashion-mnist", "mlp-128x3", 12, range(5, 10)),
    "tuning-small": Setting("mnist-5k", "mlp-32x3", 31, range(5, 10)),
    "testing-small": Setting("mnist-5k", "mlp-32x3", 31, range(10, 15)),
}
"""Encoders of two sizes and two sets of data; limits were chosen on the ``tuning`` runs."""


def config(condition: Condition, setting: Setting, seed: int) -> StudyConfig:
    """The run of a condition with a seed."""
    where: dict[str, Any] = {"dataset": setting.dataset, "encoder": setting.encoder, "epochs": setting.epochs}
    return StudyConfig(**_COMMON, **where, **condition.keys, seed=seed)


def make_monitor(encoder: nn.Module, images: Images, config: StudyConfig) -> RegionMonitor:
    """What every run is watched by."""
    return RegionMonitor(
        encoder, images.test_x[:64], slices=make_slices(config, images), probe=images.test_x[:256], threads=1,
        metrics=("count", "area", "eccentricity", "boundary", "local_complexity", "distance", "units", "patterns"),
        on_error="raise",
    )  # fmt: skip


def run_all(setting: Setting, root: Path, jobs: int) -> None:
    """Train what has not been trained to the end, ``jobs`` at a time.

    Raises
    ------
    RegiongridError
        A run failed; the others are finished all the same.
    """
    configs = [config(condition, setting, seed) for seed in setting.seeds for condition in CONDITIONS]
    epochs = 0

    def progress(one: StudyConfig, done: int, total: int) -> None:
        nonlocal epochs
        epochs += 1
        print(f"\r{epochs} epochs of {total * len(configs)}", end="", file=sys.stderr, flush=True)

    ended = run_many(configs, root, jobs, resume=True, monitor=make_monitor, progress=progress)
    print(file=sys.stderr)
    failures = [one for one in ended if isinstance(one, Failure)]
    if failures:
        first = f"{failures[0].folder}: {failures[0].message}"
        raise RegiongridError(f"{len(failures)} of {len(configs)} runs failed; the first is {first}")


def read_run(root: Path, one: StudyConfig, every: int = EVERY) -> list[Row]:
    """The measurements of a run at every so many steps, step 0 first, and the last one.

    ``spread`` is the standard deviation that people watch, times sqrt(n) so that 1 is that of directions all alike:
    of the n-dimensional embeddings that the loss compares, or of the features for supervised training, which has none.
    Untrained heads give nearly the same embedding to all, so at step 0, which rules compare with, it is set to 1.
    """
    rows = []
    for line in (root / one.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = {name: math.nan if value is None else float(value) for name, value in json.loads(line).items()}
        embedded = "quality/embedding_std" in row
        size = one.head_out if embedded else _FEATURES[one.encoder]
        row[SPREAD] = math.sqrt(size) * row["quality/embedding_std" if embedded else "quality/feature_std"]
        row["regions/effective_rank"] = row["quality/effective_rank"]
        rows.append(row)
    rows[0][SPREAD] = 1.0
    return [row for row in rows if row["step"] % every == 0 or row is rows[-1]]


def alarm_step(rows: Sequence[Row], rules: Sequence[Rule]) -> float:
    """Step at which an alarm with these rules is first raised in a run, NaN if it never is."""
    alarm = CollapseAlarm(rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        for row in rows:
            if alarm.update(int(row["step"]), row) is not None:
                return row["step"]
    return math.nan


@dataclass(frozen=True)
class Outcome:
    """A run, and when each detector was alarmed."""

    condition: Condition
    seed: int
    rows: list[Row]
    alarms: dict[str, float]


def outcomes(setting: Setting, root: Path, every: int = EVERY) -> list[Outcome]:
    """All runs of a setting, as if measured at every so many steps."""
    found = []
    for condition in CONDITIONS:
        for seed in setting.seeds:
            rows = read_run(root, config(condition, setting, seed), every)
            alarms = {name: alarm_step(rows, rules) for name, rules in DETECTORS.items()}
            found.append(Outcome(condition, seed, rows, alarms))
    return found


def summary(runs: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A line a condition: how it ends, and how often and when each detector was alarmed."""
    lines = []
    for condition in CONDITIONS:
        own = [run for run in runs if run.condition is condition]
        last = [run.rows[-1] for run in own]
        line: dict[str, Any] = {"condition": condition.name, "collapses": condition.collapses, "runs": len(own)}
        for name, column in (("kNN", "quality/knn"), ("RankMe", "quality/effective_rank"), ("std", SPREAD)):
            line[name] = f"{np.mean([row[column] for row in last]):.3g}"
        for name in DETECTORS:
            steps = [run.alarms[name] for run in own if math.isfinite(run.alarms[name])]
            span = f", step {np.median(steps):g} ({min(steps):g} to {max(steps):g})" if steps else ""
            line[name if name != "RankMe" else "RankMe alarm"] = f"{len(steps)} of {len(own)}{span}"
        lines.append(line)
    return lines


def plot_timelines(runs: Sequence[Outcome], path: Path) -> None:
    """A panel a condition: three measures, relative to their start, median and range over seeds, and the alarms."""
    shown = (
        ("rank of patterns", "regions/pattern_rank", MARKS, "regions"),
        ("RankMe", "quality/effective_rank", BY_AREA, "RankMe"),
        ("std of embeddings", SPREAD, LEVEL, "std of embeddings"),
    )
    width, height, columns = 7.2, 3.9, 5
    figure = Figure(figsize=(width, height), facecolor="white")
    panel_width, panel_height, gap, left, top = 1.14, 1.1, 0.2, 0.52, 0.6
    for number, condition in enumerate(CONDITIONS):
        row, column = divmod(number, columns)
        bottom = height - top - panel_height - row * (panel_height + 0.55)
        ax = inch_axes(figure, left + column * (panel_width + gap), bottom, panel_width, panel_height)
        own = [run for run in runs if run.condition is condition]
        for name, key, colour, detector in shown:
            _draw_measure(ax, own, key, colour, name)
            _draw_alarms(ax, own, detector, colour)
        style_axes(ax)
        ax.set_yscale("log")
        ax.set_ylim(0.01, 2)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_xlim(0, max(run.rows[-1]["step"] for run in runs))
        ax.set_title(condition.name.replace(", ", ",\n"), fontsize=7.5, color=INK, loc="left", pad=3)
        if column:
            ax.set_yticklabels([])
        if row:
            ax.set_xlabel("training step", fontsize=7.5, color=INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.06, 1.0), ncols=3, frameon=False, fontsize=7.5)
    figure.text(0.64, 0.965, "strokes at the bottom: alarms on it", va="center", fontsize=7.5, color=INK)
    figure.text(
        0.006, 0.47, "relative to the untrained network (std: to 1/√n)", rotation=90, va="center", fontsize=7.5,
        color=INK,
    )  # fmt: skip
    save_figure(figure, path)


def _draw_measure(ax: Axes, runs: Sequence[Outcome], key: str, colour: str, name: str) -> None:
    steps = [row["step"] for row in runs[0].rows]
    ratios = np.array([[row[key] / run.rows[0][key] for row in run.rows] for run in runs]).clip(1e-3)
    ax.plot(steps, np.median(ratios, axis=0), color=colour, linewidth=1.1, label=name)
    ax.fill_between(steps, ratios.min(axis=0), ratios.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _draw_alarms(ax: Axes, runs: Sequence[Outcome], detector: str, colour: str) -> None:
    steps = [run.alarms[detector] for run in runs if math.isfinite(run.alarms[detector])]
    place = {MARKS: 0.0125, BY_AREA: 0.018, LEVEL: 0.026}[colour]
    ax.plot(steps, [place] * len(steps), "|", color=colour, markersize=4, markeredgewidth=1.0)


def write_results(runs: Sequence[Outcome], folder: Path) -> list[dict[str, Any]]:
    """The tables and the figure; the summary is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = summary(runs)
    singles = [
        {
            "condition": run.condition.name, "collapses": run.condition.collapses, "seed": run.seed,
            **{name: f"{run.rows[-1][name]:.4g}" for name in ("quality/knn", "quality/linear", SPREAD)},
            **{name: f"{run.rows[-1][name]:.4g}" for name in ("quality/effective_rank", "regions/pattern_rank")},
            **{f"alarm: {name}": "" if math.isnan(step) else f"{step:g}" for name, step in run.alarms.items()},
        }
        for run in runs
    ]  # fmt: skip
    for name, table in (("summary.csv", lines), ("runs.csv", singles)):
        with atomic_path(folder / name) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    plot_timelines(runs, folder / "timelines.png")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the training runs, kept between calls")
    parser.add_argument("--out", type=Path, default=Path("results/collapse"), help="folder of tables and figure")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--setting", choices=SETTINGS, default="testing", help="which runs")
    parser.add_argument("--every", type=int, default=EVERY, help="look at measurements at multiples of so many steps")
    given = parser.parse_args()
    if given.every % EVERY:
        parser.error(f"--every is {given.every}; runs are measured every {EVERY} steps, so give a multiple of that")
    setting = SETTINGS[given.setting]
    run_all(setting, given.runs, given.jobs)
    name = given.setting if given.every == EVERY else f"{given.setting}-every-{given.every}"
    for line in write_results(outcomes(setting, given.runs, given.every), given.out / name):
        print(" | ".join(str(value) for value in line.values()))


if __name__ == "__main__":
    main()
