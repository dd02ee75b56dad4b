"""`regiongrid study report`: tables, figures and verdicts from finished runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regiongrid.commands import options, running

if TYPE_CHECKING:
    from regiongrid.study.report import Report

SCHEMA = "regiongrid.study_report/1"


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of runs, or folders that hold such folders.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where tables and figures go; those of an earlier report there are replaced, or deleted where this "
            "one has none of that name.",
        ),
    ] = Path("report"),
    slices: Annotated[
        int,
        typer.Option(
            "--slices",
            metavar="N",
            min=0,
            help="Further slices of each kind on which kept encoders are measured once; 0 for none, which also leaves "
            "out baselines, films and the comparison with the grid.",
        ),
    ] = 4,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Runs measured at a time.")] = 1,
    skip_unfinished: Annotated[bool, typer.Option("--skip-unfinished", help="Leave out unfinished runs.")] = False,
    trust_encoders: Annotated[
        bool,
        typer.Option("--trust-encoders", help="Import encoders that runs name as their own, which runs their code."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Write what finished runs say of four claims about regions in self-supervised learning: tables and figures.

    Kept encoders are measured on further slices first. The results stay in the runs' folders, so that is done once.
    """
    with running.exit_codes(debug):
        with running.results_on_stdout(quiet):
            from regiongrid.study.report import write_report

            with _progress(quiet) as progress:
                found = write_report(
                    runs,
                    out,
                    slices=slices,
                    jobs=jobs,
                    skip_unfinished=skip_unfinished,
                    trust_encoders=trust_encoders,
                    progress=progress,
                )
        if found.unfinished and not quiet:
            print(f"{len(found.unfinished)} unfinished runs were left out", file=sys.stderr)
        if as_json:
            from regiongrid.commands.output import strict_json

            print(strict_json(_facts(found)))
        else:
            _print_table(found, out)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """On stderr, a bar over the runs that are measured where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring runs", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _facts(found: Report) -> dict[str, Any]:
    from regiongrid.study.report import finding_rows

    return {
        "schema": SCHEMA,
        "runs": [str(track.folder) for cell in found.cells for track in cell.tracks],
        "unfinished": [str(folder) for folder in found.unfinished],
        "claims": found.rows,
        "findings": finding_rows(found.findings),
        "files": [str(file) for file in found.files],
    }


def _print_table(found: Report, out: Path) -> None:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from regiongrid.commands.report import print_out
    from regiongrid.study.report import NO_RUNS

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("", "Claim", "Effect (95% over seeds)", "Verdict", "For / against / open"):
        table.add_column(title)
    for row in found.rows:
        effect = Text(row["effect"].replace("; ", "\n") or NO_RUNS)
        counts = " / ".join(str(row[outcome]) for outcome in ("for", "against", "open"))
        table.add_row(row["claim"], row["statement"], effect, row["verdict"], counts)
    print_out(Group(table, Text(f"{len(found.files)} files in {out}; claims.md says how each claim was tested")))
