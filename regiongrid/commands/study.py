"""`regiongrid study`: training runs whose regions are measured on the way."""

from __future__ import annotations

import contextlib
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regiongrid.commands import options, running
from regiongrid.commands.study_report import report
from regiongrid.errors import InputError

if TYPE_CHECKING:
    from regiongrid.study import Failure, Run, StudyConfig

SCHEMA = "regiongrid.study/1"

study = typer.Typer(
    help="Train small encoders, supervised and self-supervised, and measure their regions on the way.",
    no_args_is_help=True,
)

_GRID = "Runs: every combination of the values given"
_COLUMNS = {
    "Regions": ("regions/count", ",.0f"),
    "kNN": ("quality/knn", ".3f"),
    "Linear": ("quality/linear", ".3f"),
    "Rank": ("quality/effective_rank", ".1f"),
}


@study.callback()
def _study() -> None:
    """Train small encoders, supervised and self-supervised, and measure their regions on the way."""


study.command()(report)


@study.command()
def run(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.toml",
            help="Keys of a run (regiongrid.study.StudyConfig, docs/study.md); a list stands for several runs.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="A,B",
            rich_help_panel=_GRID,
            help="digits, mnist, mnist-5k, fashion-mnist, or a file of your own images and classes (.npz, .pt).",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="A,B",
            rich_help_panel=_GRID,
            help="mlp-32x3, mlp-128x3, cnn, or your own: file.py:factory or pkg.mod:factory.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="A,B",
            rich_help_panel=_GRID,
            help="supervised, simclr, moco, byol, simsiam, dino, simsiam-no-stop-gradient, byol-no-predictor.",
        ),
    ] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="0,1,2", rich_help_panel=_GRID, help="Seeds of the runs.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            rich_help_panel=_GRID,
            help="Any other key, such as epochs=50 or lr=0.001,0.01. Can be repeated.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Each run gets a folder there.")] = Path("study"),
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Runs at a time, a core each.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with unfinished runs.")] = False,
    monitor: Annotated[bool, typer.Option(help="Whether regions are measured.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Train each combination of method, data, encoder and seed in a folder of its own.

    Flags take precedence over the file. Finished runs are not run again; one that fails does not end the others.
    """
    with running.exit_codes(debug):
        flags = {"dataset": dataset, "encoder": encoder, "method": method, "seed": seed}
        with running.results_on_stdout(quiet):
            from regiongrid.study import grid, run_many
            from regiongrid.study.keys import read_toml

            values = {} if config is None else read_toml(config)
            values |= {key: _several(text) for key, text in flags.items() if text is not None}
            values |= dict(map(_setting, settings or []))
            configs = grid(values)
            with _progress(configs, quiet) as progress:
                outcomes = run_many(configs, out, jobs, resume=resume, monitor=monitor, progress=progress)
        failed = _print(outcomes, as_json)
    if failed:
        raise typer.Exit(1)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set takes KEY=VALUE, got {text!r}")
    return key.strip(), _several(value)


def _several(text: str) -> Any:
    """A value, or the list of values that commas separate."""
    if text.lstrip().startswith("["):
        return _value(text)
    values = [_value(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def _value(text: str) -> Any:
    """A number, truth value, list or quoted text as TOML writes it, a number without its zero, or text as it is."""
    with contextlib.suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"value = {text.strip()}")["value"]
    with contextlib.suppress(ValueError):
        return float(text)  # .01 is no TOML
    return text.strip()


@contextmanager
def _progress(configs: Sequence[StudyConfig], quiet: bool) -> Iterator[Callable[[StudyConfig, int, int], None]]:
    """On stderr: a bar over the epochs of all runs where that is a terminal, else a line for each finished run."""
    if quiet or not sys.stderr.isatty():
        yield lambda config, done, total: None if quiet or done < total else print(f"{config.name}: done")
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=sum(config.epochs for config in configs))
        epochs: dict[str, int] = {}

        def show(config: StudyConfig, done: int, total: int) -> None:
            epochs[config.name] = done
            bar.update(task, completed=sum(epochs.values()), description=f"{config.name} epoch {done} of {total}")

        yield show


def _print(outcomes: Sequence[Run | Failure], as_json: bool) -> int:
    """Print what came of the runs; return how many failed."""
    from regiongrid.study import Failure, Run

    runs = [outcome for outcome in outcomes if isinstance(outcome, Run)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if as_json:
        from regiongrid.commands.output import strict_json

        print(strict_json(_facts(runs, failures)))
    elif runs:
        _print_table(runs)
    for failure in failures:
        print(f"Error: {failure.config.name}: {failure.message}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(outcomes)} runs failed", file=sys.stderr)
    return len(failures)


def _facts(runs: Sequence[Run], failures: Sequence[Failure]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "schema": SCHEMA,
        "runs": [
            {
                "name": done.config.name,
                "folder": str(done.folder),
                "config": asdict(done.config),
                "last": done.record,
                "seconds": done.seconds,
                "earlier": done.earlier,
            }
            for done in runs
        ],
        "failures": [
            {"name": failure.config.name, "folder": str(failure.folder), "message": failure.message}
            for failure in failures
        ],
    }


def _print_table(runs: Sequence[Run]) -> None:
    """A row a run: its method, its seed and what else tells it from the others, then the last measurement."""
    from dataclasses import fields

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from regiongrid.commands.report import print_out, seconds_text
    from regiongrid.study import StudyConfig

    keys = [key.name for key in fields(StudyConfig)]
    different = [key for key in keys if len({getattr(done.config, key) for done in runs}) > 1]
    shown = [key for key in keys if key in different or key in ("method", "seed")]
    table = Table(box=box.SIMPLE_HEAD)
    for key in shown:
        table.add_column(key.replace("_", " ").capitalize(), no_wrap=True)
    for title in (*_COLUMNS, "Seconds"):
        table.add_column(title, justify="right")
    for done in runs:
        own = (Text(str(getattr(done.config, key))) for key in shown)
        cells = (_number(done.record.get(key), form) for key, form in _COLUMNS.values())
        table.add_row(*own, *cells, "earlier" if done.earlier else seconds_text(done.seconds))
    print_out(table)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
