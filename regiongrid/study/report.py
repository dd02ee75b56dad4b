"""A report on finished runs: tables, figures, and what they say of four claims. The same runs give the same bytes."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regiongrid.errors import InputError, RegiongridError
from regiongrid.files import atomic_path
from regiongrid.study.config import ENCODERS
from regiongrid.study.report_claims import CLAIMS, EXPANDED, FACTORS, FEWER, MERGED, Finding, Verdict, find_all, judge
from regiongrid.study.report_runs import GEOMETRY, NAMES, QUALITY, Cell, Track, read_cells
from regiongrid.study.report_slices import (
    CLASSES_NEEDED,
    RESOLUTIONS,
    Further,
    Progress,
    measure_further,
    read_agreement,
    read_baseline,
    read_further,
    settings_of,
)
from regiongrid.study.report_statistics import Interval, clustered_spearman, t_interval

AGREES = {"count_extrapolated_error": 0.01, "boundary_extrapolated_error": 0.005, "area_error_max": 0.025}
"""Errors that the documentation of both engines leads to expect at 4096 x 4096: of the extrapolated count, where that
is trustworthy (or one region, if that is more), of the extrapolated boundary length, and of the area of any region of
1,000 pixels or more."""
NO_RUNS = "no runs"
"""In place of the effect on a claim that no run is about."""
_DIGITS = 5
_OWN_NAME = re.compile(
    r"(claims|findings|methods|correlations|further|agreement)\.csv|claims\.md"
    r"|(training|quality|correlations|ratios|changes|film|collapse)(-([2-9]|[1-9][0-9]+))?\.png"
)
"""What a report calls its files."""


@dataclass(frozen=True)
class Report:
    """What was written, and what it says.

    Attributes
    ----------
    files
        All files, in the order in which they were written.
    unfinished
        Folders of runs that were left out.
    rows
        The claims table as it stands in ``claims.csv``.
    """

    files: list[Path]
    cells: list[Cell]
    unfinished: list[Path]
    findings: list[Finding]
    verdicts: list[Verdict]
    rows: list[dict[str, Any]]


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    slices: int = 4,
    jobs: int = 1,
    skip_unfinished: bool = False,
    trust_encoders: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure what is still missing of the runs, and write tables and figures about them into ``out``.

    ``claims.md`` and ``claims.csv``: each claim, how it was tested, effect, verdict. ``findings.csv``: every single
    test. ``methods.csv``: each method at the end. ``correlations.csv``. ``further.csv``: regions on further slices.
    ``agreement.csv``: grid against exact polygons. Figures: ``training``, ``quality``, ``correlations``, ``ratios``,
    ``changes``, ``film``, ``collapse``, each with a number where there are several.

    Files of these names that an earlier report left in ``out`` and this one does not have are deleted. Nothing else
    there is touched.

    Parameters
    ----------
    runs
        Folders of runs, and folders that hold such folders.
    slices
        Further slices of each kind that kept encoders are measured on; results stay in the runs' folders. 0 for none,
        and then neither agreement, baselines nor films, which need the images.
    jobs
        Runs that are measured at a time.
    skip_unfinished
        Leave out unfinished runs, which are else an error.
    trust_encoders
        Import the encoders that runs name as their own (``file.py:factory``), which runs the code there. Without it
        such a run is an error, unless ``slices`` is 0.

    Raises
    ------
    InputError
        No runs, unfinished ones, runs that cannot be compared, or encoders that may not be imported.
    RegiongridError
        A file cannot be written, or one of an earlier report cannot be deleted.
    """
    from regiongrid.study import report_figures as figures

    cells, unfinished = read_cells([Path(run) for run in runs], skip_unfinished=skip_unfinished)
    if slices and not trust_encoders:
        _refuse_own_encoders(cells)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegiongridError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    if slices:
        measure_further(cells, slices, jobs, progress)
    further = {track.folder: read_further(track, slices) if slices else [] for cell in cells for track in cell.tracks}
    findings = find_all(cells, lambda track: further[track.folder])
    verdicts = [judge(claim, findings) for claim in CLAIMS]
    correlations = all_correlations(cells)
    rows = claim_rows(verdicts)
    ends, agreement = method_rows(cells, slices), agreement_rows(cells, slices) if slices else []
    files = [
        _write(folder / "claims.csv", rows),
        _text(folder / "claims.md", claims_text(cells, verdicts, ends, agreement, further)),
        _write(folder / "findings.csv", finding_rows(findings)),
        _write(folder / "methods.csv", ends),
        _write(folder / "correlations.csv", correlation_rows(correlations)),
    ]
    if slices:
        files += [
            _write(folder / "further.csv", further_rows(cells, further)),
            _write(folder / "agreement.csv", agreement),
        ]
    files += figures.draw_training(cells, folder)
    files += figures.draw_quality(cells, correlations, folder)
    files += figures.draw_correlations(cells, correlations, folder)
    label = "regions over those of the supervised network"
    files += figures.draw_changes(cells, findings, "ii", [FEWER], "ratios", label, folder)
    label = "regions at the end over those before"
    files += figures.draw_changes(cells, findings, "iii", [MERGED, EXPANDED], "changes", label, folder)
    files += figures.draw_films(cells, folder) if slices else []
    files += figures.draw_collapses(cells, folder)
    _delete_stale(folder, files)
    return Report(files, cells, unfinished, findings, verdicts, rows)


def _delete_stale(folder: Path, written: Iterable[Path]) -> None:
    """Delete what an earlier report has left: its files would look as if they were of this one."""
    new = {file.name for file in written}
    try:
        for file in folder.iterdir():
            if _OWN_NAME.fullmatch(file.name) and file.name not in new and file.is_file():
                file.unlink()
    except OSError as error:
        raise RegiongridError(
            f"cannot delete {error.filename} of an earlier report: {error.strerror or error}"
        ) from error


def _refuse_own_encoders(cells: Iterable[Cell]) -> None:
    for cell in cells:
        if cell.config.encoder not in ENCODERS:
            raise InputError(
                f"the run in {cell.tracks[0].folder} has an encoder of its own, {cell.config.encoder}, whose code has "
                "to run to measure it; allow that if you trust it (trust_encoders=True, --trust-encoders), or measure "
                "nothing further (slices=0, --slices 0)"
            )


def all_correlations(cells: Sequence[Cell]) -> dict[tuple[str, str, str, str], Interval]:
    """Spearman's correlation of each quality with each geometry, by cell and method, and of all healthy runs.

    Of the measurements with kNN and linear probe, without the untrained network, which is the same for all methods.
    """
    from regiongrid.study.report_figures import ALL, probed

    found = {}
    for cell in cells:
        groups = {**cell.methods, ALL: [track for method in cell.healthy() for track in cell.methods[method]]}
        for quality in QUALITY:
            for geometry in GEOMETRY:
                for group, tracks in groups.items():
                    pairs = [tuple(track[name][probed(track)] for name in (geometry, quality)) for track in tracks]
                    rho = clustered_spearman([x for x, _ in pairs], [y for _, y in pairs])
                    found[cell.name, quality, geometry, group] = rho
    return found


def claim_rows(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """One row a claim."""
    return [
        {
            "claim": verdict.claim.key,
            "statement": verdict.claim.statement,
            "test": verdict.claim.test,
            "effect": effect_text(verdict),
            "verdict": verdict.verdict,
            **verdict.counts,
        }
        for verdict in verdicts
    ]


def effect_text(verdict: Verdict) -> str:
    """The effect on the runs' own slices in each cell, like ``MNIST, mlp-128x3: 0.51 [0.32, 0.70]``."""
    from regiongrid.study.report_figures import interval_text

    return "; ".join(f"{cell}: {interval_text(effect)}" for cell, effect in verdict.effects.items())


def finding_rows(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """One row a finding."""
    return [
        {
            "claim": f.claim, "dataset": f.dataset, "encoder": f.encoder, "method": f.method, "slices": f.slices,
            "network": f.network, "comparison": f.variant, "quantity": f.quantity, "effect": f.interval.mean,
            "low": f.interval.low, "high": f.interval.high, "seeds": f.interval.seeds,
            "outcome": f.outcome, "note": f.note,
        }
        for f in findings
    ]  # fmt: skip


def method_rows(cells: Iterable[Cell], slices: int) -> list[dict[str, Any]]:
    """One row a method and cell: mean and interval over seeds of all measures at the end; baselines first."""
    rows = []
    names = {**QUALITY, "quality/embedding_std": "", **GEOMETRY}
    for cell in cells:
        about = {"dataset": cell.dataset, "encoder": cell.encoder}
        raw = read_baseline(cell, slices) if slices else {}
        if raw:
            pixels = {"quality/knn": [raw["knn"]], "quality/linear": [raw["linear"]]}
            rows.append(about | {"method": "raw pixels"} | _measures(pixels, names))
        seeds = {track.config.seed: track for track in cell.tracks}  # untrained encoders of a seed are the same
        untrained = {name: [_at(track, name, 0) for track in seeds.values()] for name in names}
        rows.append(about | {"method": "untrained"} | _measures(untrained, names))
        for method, tracks in cell.methods.items():
            ends = {name: [_at(track, name, -1) for track in tracks] for name in names}
            rows.append(about | {"method": method} | _measures(ends, names))
    return rows


def _measures(values: Mapping[str, Sequence[float]], names: Iterable[str]) -> dict[str, float]:
    found: dict[str, float] = {"seeds": max((len(some) for some in values.values()), default=0)}
    for name in names:
        interval = t_interval(np.asarray(values.get(name, []), np.float64))
        short = name.partition("/")[2]
        found |= {short: interval.mean, f"{short}_low": interval.low, f"{short}_high": interval.high}
    return found


def _at(track: Track, name: str, row: int) -> float:
    return float(track[name][row]) if name in track.history else math.nan


def correlation_rows(correlations: Mapping[tuple[str, str, str, str], Interval]) -> list[dict[str, Any]]:
    """One row a correlation."""
    return [
        {"cell": cell, "quality": quality.partition("/")[2], "geometry": geometry.partition("/")[2], "runs_of": group,
         "spearman": rho.mean, "low": rho.low, "high": rho.high, "runs": rho.seeds}
        for (cell, quality, geometry, group), rho in correlations.items()
    ]  # fmt: skip


def further_rows(cells: Iterable[Cell], further: Mapping[Path, Sequence[Further]]) -> list[dict[str, Any]]:
    """One row a run, setting and epoch."""
    return [
        {"dataset": cell.dataset, "encoder": cell.encoder, "method": track.config.method, "seed": track.config.seed,
         "slices": row.place.slices, "network": row.place.network, "epoch": row.epoch,
         **{name.partition("/")[2]: value for name, value in row.values.items()}}
        for cell in cells for track in cell.tracks for row in further[track.folder]
    ]  # fmt: skip


def agreement_rows(cells: Iterable[Cell], slices: int) -> list[dict[str, Any]]:
    """One row a slice and resolution of the first run of each method."""
    return [
        {"dataset": cell.dataset, "encoder": cell.encoder, "method": method, "seed": tracks[0].config.seed,
         **row, "agrees": agrees(row)}
        for cell in cells for method, tracks in cell.methods.items() for row in read_agreement(tracks[0], slices)
    ]  # fmt: skip


def agrees(row: Mapping[str, Any]) -> bool:
    """Whether grid and exact polygons agree within what `regiongrid compare` states: `AGREES`, and no impossibility."""
    if row["spurious_unexplained"] or row["area_lower_violations"]:
        return False
    limits = AGREES | {"count_extrapolated_error": max(AGREES["count_extrapolated_error"], 1 / row["regions_exact"])}
    return all(
        abs(row[name]) <= limit or (name == "count_extrapolated_error" and not row["trustworthy"])
        for name, limit in limits.items()
    )


def claims_text(
    cells: Sequence[Cell],
    verdicts: Sequence[Verdict],
    ends: Sequence[Mapping[str, Any]],
    agreement: Sequence[Mapping[str, Any]],
    further: Mapping[Path, Sequence[Further]],
) -> str:
    """The report as Markdown: the claims table, what each verdict rests on, the methods at the end, agreement."""
    from regiongrid.study.report_figures import interval_text

    parts = ["# What the runs say of four claims\n", _protocol(cells, further)]
    header = ("", "claim", "how tested", "effect on the runs' own slices (95% over seeds)", "verdict")
    table = [
        (v.claim.key, v.claim.statement, v.claim.test,
         f"{v.claim.scale}, {v.claim.main[0]}: {effect_text(v) or NO_RUNS}",
         f"**{v.verdict}**: for {v.counts['for']}, against {v.counts['against']}, open {v.counts['open']}, "
         f"untestable {v.counts['untestable']}")
        for v in verdicts
    ]  # fmt: skip
    parts.append(_table(header, table))
    parts.append(f"The rule: {_RULE}\n")
    for verdict in verdicts:
        parts.append(f"## Claim {verdict.claim.key}\n")
        rows = [
            (cell, ", ".join(f"{NAMES[method]} {interval_text(i)}" for method, i in by_method.items()))
            for cell, by_method in verdict.methods.items()
        ]
        if not rows:
            parts.append(f"{NO_RUNS.capitalize()}.\n")
            continue
        parts.append(_table(("own slices", f"{verdict.claim.scale}, {', '.join(verdict.claim.main)}"), rows))
        shown = {factor: levels for factor, levels in verdict.shares.items() if len(levels) > 1}
        listed = [
            (FACTORS[factor], ", ".join(f"{level} {some} of {all_}" for level, (some, all_) in levels.items()))
            for factor, levels in shown.items()
        ]
        if listed:
            parts.append(_table(("by", "findings for the claim, of those that could be tested"), listed))
    parts.append("## At the end\n")
    parts.append(_end_table(ends))
    if agreement:
        parts.append("## Grid against exact polygons\n")
        parts.append(_agreement_text(agreement))
    return "\n".join(parts)


_RULE = (
    "a finding is one data set, encoder, method, kind of slices, network (encoder, or with head) and way to "
    "compare. It is for or against the claim if its whole 95% interval over seeds lies on that side of the threshold, "
    "else open; untestable ones do not count. Supported: at least 9 in 10 are for the claim and none is against it. "
    "Not supported: at most 1 in 10 is for it, and at least half are against it; undecided: at most 1 in 10 is for it, "
    "and fewer than half are against it. Else it depends on the factors between whose levels the share of "
    "findings for it differs by a third or more (or the factor with the largest difference)."
)


def _protocol(cells: Sequence[Cell], further: Mapping[Path, Sequence[Further]]) -> str:
    lines = []
    for cell in cells:
        config = cell.config
        methods = ", ".join(f"{NAMES[method]} ({len(tracks)})" for method, tracks in cell.methods.items())
        lines.append(
            f"- {cell.title} (images from {cell.tracks[0].source}, at most {config.train_images:,} for training), "
            f"{config.epochs} epochs, measured on {config.slices} slices: {cell.own_place}. Runs: {methods}."
            f"{_left_out(cell, further[cell.tracks[0].folder])}"
        )
    return "\n".join(lines) + "\n"


def _left_out(cell: Cell, measured: Sequence[Further]) -> str:
    """A sentence for each kind of further slices that the images could not give; none where nothing was measured."""
    known = {row.place for row in measured}
    text = ""
    for kind, classes in CLASSES_NEEDED.items():
        settings = [setting for setting in settings_of(cell.config) if setting.kind == kind]
        missing = [str(setting.place) for setting in settings if setting.place not in known]
        if known and missing:
            text += (
                f" Left out of the further slices, because the images there have fewer than {classes} classes: "
                f"{'; '.join(missing)}."
            )
    return text


def _end_table(ends: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        "knn": "kNN", "linear": "linear probe", "effective_rank": "effective rank", "count": "regions",
        "area_median": "median area", "eccentricity_mean": "eccentricity", "boundary_density": "boundary per area",
    }  # fmt: skip
    rows = [
        (f"{row['dataset']}, {row['encoder']}", NAMES.get(row["method"], row["method"]),
         *(_with_half_width(row, name) for name in columns))
        for row in ends
    ]  # fmt: skip
    return _table(("", "method", *columns.values()), rows)


def _with_half_width(row: Mapping[str, Any], name: str) -> str:
    """Mean and half the width of the interval, like ``0.812 ± 0.004``; from 10 on, a half width is a whole number."""
    mean, half = row[name], (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    if not math.isfinite(mean):
        return ""
    wide = half >= 9.5  # one digit of which would be written as 1e+01
    text = f"{mean:,.0f}" if wide or abs(mean) >= 100 else f"{mean:.3g}"
    return text + (f" ± {half:{',.0f' if wide else '.1g'}}" if math.isfinite(half) else "")


def _agreement_text(agreement: Sequence[Mapping[str, Any]]) -> str:
    finest = [row for row in agreement if row["res"] == RESOLUTIONS[-1]]
    columns = ("count_error", "count_extrapolated_error", "boundary_error", "boundary_extrapolated_error",
               "area_error_max", "missed_area_share")  # fmt: skip
    rows = []
    for res in RESOLUTIONS:
        some = [row for row in agreement if row["res"] == res]
        worst = (f"{100 * max(abs(row[name]) for row in some):.2g}%" for name in columns)
        rows.append((str(res), *worst, f"{sum(bool(row['agrees']) for row in some)} of {len(some)}"))
    text = (
        f"{len(finest)} of the runs' own slices of final encoders ({min(r['regions_exact'] for r in finest):,} to "
        f"{max(r['regions_exact'] for r in finest):,} regions). Impossible patterns: "
        f"{sum(r['spurious_unexplained'] for r in agreement)}; regions below their area bracket: "
        f"{sum(r['area_lower_violations'] for r in agreement)}. Largest errors by resolution (areas: of regions of "
        "1,000 pixels or more); agreement: extrapolated count, where it is to be trusted, within "
        f"{100 * AGREES['count_extrapolated_error']:g}% or one region, extrapolated boundary within "
        f"{100 * AGREES['boundary_extrapolated_error']:g}%, area within {100 * AGREES['area_error_max']:g}%.\n"
    )
    header = ("pixels a side", "count", "count, extrapolated", "boundary", "boundary, extrapolated", "area",
              "missed area", "agree")  # fmt: skip
    return text + "\n" + _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _write(path: Path, table: Sequence[Mapping[str, Any]]) -> Path:
    with atomic_path(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if table:
            writer.writerow(table[0])
            writer.writerows([_field(value) for value in row.values()] for row in table)
    return path


def _field(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.{_DIGITS}g}"
    return str(value)


def _text(path: Path, text: str) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
