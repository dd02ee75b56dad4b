"""Figures of a report on runs of the study. Lines are medians over seeds, bands go from the least to the largest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from regiongrid.plots import INK, draw_polygons, inch_axes, region_colours, save_figure, style_axes
from regiongrid.study.measuring import make_slices
from regiongrid.study.report_claims import EARLY, PATTERNS, UNTESTABLE, Finding, Onset, onsets
from regiongrid.study.report_runs import COUNTERPARTS, GEOMETRY, NAMES, QUALITY, Array, Cell, Track
from regiongrid.study.report_slices import further_epochs, images_of, network_of
from regiongrid.study.report_statistics import Interval
from regiongrid.subdivision import exact

LOOKS = {
    "supervised": (INK, "-", "o"),
    "simclr": ("#0072b2", "-", "s"),
    "moco": ("#56b4e9", "--", "D"),
    "byol": ("#d55e00", "-", "^"),
    "simsiam": ("#e69f00", "--", "v"),
    "dino": ("#a6517e", ":", "P"),
    "simsiam-no-stop-gradient": ("#7d7d7d", "-", "X"),
    "byol-no-predictor": ("#a9a9a9", "--", "x"),
}
"""Colour, line and mark of each method: those of a kind have colours of a kind, and differ in line and mark as well."""
ALL, GREY = "all runs", "#8c8c8c"
_WIDTH, _SMALL = 7.2, 7.5
_COLUMNS = 2  # cells side by side
_PNG_DPI = 180  # of `save_figure`; letters are rounded to pixels, so that text is not as wide at any resolution
_COLLAPSE = {
    "regions/count": "regions\nof a slice",
    PATTERNS: "rank of activation\npatterns",
    "quality/effective_rank": "effective rank\nof features",
    "quality/embedding_std": "std of\nembeddings",
}

_T = TypeVar("_T")
Correlations = Mapping[tuple[str, str, str, str], Interval]
"""Cell, quality, geometry and method (or `ALL`) to the rank correlation."""


def draw_training(cells: Sequence[Cell], out: Path) -> list[Path]:
    """Geometry against epoch, a column for each data set and encoder, a row for each measure."""
    written = []
    for number, some in enumerate(_pages(cells), 1):
        figure, axes = _grid(len(GEOMETRY), len(some), 1.42, above=_legend_height(some))
        for column, cell in enumerate(some):
            for row, (name, label) in enumerate(GEOMETRY.items()):
                ax = axes[row][column]
                for method, tracks in cell.methods.items():
                    _draw_course(ax, tracks, name, method)
                style_axes(ax)
                _epochs(ax, cell, last=row == len(GEOMETRY) - 1)
                if name != "regions/eccentricity_mean":
                    _log_values(ax)
                if column == 0:
                    ax.set_ylabel(label.replace(" (", "\n("), fontsize=_SMALL, color=INK)
                if row == 0:
                    ax.set_title(f"{cell.title}: {cell.own_place}", fontsize=_SMALL - 0.5, color=INK, loc="left", pad=3)
        _align_labels(axes)
        _legend(figure, _methods(some))
        written.append(_save(figure, out, "training", number))
    return written


def draw_quality(cells: Sequence[Cell], correlations: Correlations, out: Path) -> list[Path]:
    """Quality against the number of regions: the probed measurements behind the start of all runs."""
    written = []
    count = "regions/count"
    for number, some in enumerate(_pages(cells), 1):
        figure, axes = _grid(len(QUALITY), len(some), 1.75, above=_legend_height(some), between=0.44)
        for column, cell in enumerate(some):
            for row, (name, label) in enumerate(QUALITY.items()):
                ax = axes[row][column]
                for method, tracks in cell.methods.items():
                    _draw_points(ax, tracks, count, name, method)
                style_axes(ax)
                ax.set_xscale("log")
                _plain_ticks(ax.xaxis)
                rho = correlations[cell.name, name, count, ALL]
                text = f"Spearman, healthy runs ({rho.seeds}): {interval_text(rho)}"
                ax.set_title(text, fontsize=_SMALL, color=INK, loc="left", pad=3)
                if column == 0:
                    ax.set_ylabel(label, fontsize=_SMALL, color=INK)
                if row == len(QUALITY) - 1:
                    ax.set_xlabel(f"regions of a slice ({cell.title})", fontsize=_SMALL, color=INK)
        _align_labels(axes)
        _legend(figure, _methods(some))
        written.append(_save(figure, out, "quality", number))
    return written


def draw_correlations(cells: Sequence[Cell], correlations: Correlations, out: Path) -> list[Path]:
    """Rank correlation of quality and geometry by method, and of all healthy runs; intervals of three runs or more."""
    written = []
    marks = dict(zip(GEOMETRY, (("o", "#0072b2"), ("s", "#d55e00"), ("^", "#009e73"), ("D", INK))))
    for number, cell in enumerate(cells, 1):
        groups = [*cell.methods, ALL]
        figure, axes = _grid(1, len(QUALITY), 0.3 * len(groups) + 0.1, left=1.35, gap=0.12, above=0.48)
        for ax, (quality, label) in zip(axes[0], QUALITY.items()):
            for place, group in enumerate(groups):
                for shift, (geometry, (mark, colour)) in enumerate(marks.items()):
                    rho = correlations[cell.name, quality, geometry, group]
                    y = place + 0.18 * (shift - 1.5)
                    ax.plot([rho.low, rho.high], [y, y], color=colour, lw=0.9)
                    ax.plot([rho.mean], [y], mark, color=colour, ms=3, mew=0)
            style_axes(ax)
            ax.axvline(0, color=GREY, lw=0.6, zorder=0)
            ax.axhline(len(groups) - 1.5, color=GREY, lw=0.6, zorder=0)
            ax.set(xlim=(-1.05, 1.05), ylim=(len(groups) - 0.5, -0.5))
            ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["", "\N{MINUS SIGN}0.5", "0", "0.5", ""])
            ax.set_yticks(range(len(groups)), [NAMES.get(group, "all healthy runs") for group in groups])
            ax.tick_params(axis="y", labelsize=_SMALL, labelleft=ax is axes[0][0], length=0)
            ax.set_title(label, fontsize=_SMALL + 0.5, color=INK, pad=3)
        axes[0][1].set_xlabel(f"Spearman's correlation, 95% by resampling runs ({cell.title})", fontsize=_SMALL)
        handles = [
            Line2D([], [], color=colour, marker=mark, ms=4, lw=0.9, label=f"with {GEOMETRY[name].split(' (')[0]}")
            for name, (mark, colour) in marks.items()
        ]
        figure.legend(handles=handles, fontsize=_SMALL, frameon=False, ncols=4, loc="upper center",
                      bbox_to_anchor=(0.5, 1.0), handlelength=1.4, columnspacing=1.2)  # fmt: skip
        written.append(_save(figure, out, "correlations", number))
    return written


def draw_changes(cells: Sequence[Cell], findings: Sequence[Finding], claim: str, limits: Sequence[float], name: str,
                 label: str, out: Path) -> list[Path]:  # fmt: skip
    """Ratios of the findings of a claim (all that begin with ``claim``) by slices and method, with intervals."""
    written = []
    for number, cell in enumerate(cells, 1):
        own = [
            f
            for f in findings
            if f.claim.split()[0] == claim and (f.dataset, f.encoder) == (cell.dataset, cell.encoder)
        ]
        own = [f for f in own if math.isfinite(f.interval.mean)]
        if not own:
            continue
        panels, rows = _panels(own)
        methods = list(dict.fromkeys(f.method for f in own))
        names = [f"{place},\n{variant}" if variant else place.replace(", with", ",\nwith") for place, variant in rows]
        left = _text_width("\n".join(names)) + 0.15
        figure, axes = _grid(1, len(panels), 0.36 * len(rows) + 0.1, left=left, gap=0.15, above=0.62)
        reach = [x for f in own for x in f.interval[:3] if math.isfinite(x)]
        for ax, panel in zip(axes[0], panels):
            for f in own:
                row = rows.get((str(f.place), f.variant if f.variant not in panels else ""))
                if row is None or (f.variant in panels and f.variant != panel):
                    continue
                colour, _, mark = LOOKS[f.method]
                y = row + 0.8 * ((methods.index(f.method) + 0.5) / len(methods) - 0.5)
                ax.plot([f.interval.low, f.interval.high], [y, y], color=colour, lw=0.9)
                face = "white" if f.outcome == UNTESTABLE else colour
                ax.plot([f.interval.mean], [y], mark, color=colour, ms=3.4, mew=0.7, mfc=face)
            ax.set_xlim(min(reach) / 1.1, max(reach) * 1.1)
            style_axes(ax)
            ax.set_xscale("log")
            _plain_ticks(ax.xaxis)
            ax.axvline(1, color=INK, lw=0.6, zorder=0)
            for limit in limits:
                ax.axvline(limit, color=GREY, lw=0.7, ls=":", zorder=0)
            ax.set_ylim(len(rows) - 0.5, -0.5)
            for line in range(1, len(rows)):
                ax.axhline(line - 0.5, color="#dcdcdc", lw=0.5, zorder=0)
            ax.set_yticks(range(len(rows)), names)
            ax.tick_params(axis="y", labelsize=_SMALL, labelleft=ax is axes[0][0], length=0)
            ax.set_title(panel, fontsize=_SMALL + 0.5, color=INK, pad=3)
        x = (left + (_WIDTH - left) / 2) / _WIDTH
        figure.text(
            x,
            0.04 / figure.get_figheight(),
            f"{label} ({cell.title})",
            ha="center",
            va="bottom",
            fontsize=_SMALL,
            color=INK,
        )
        _legend(figure, methods)
        written.append(_save(figure, out, name, number))
    return written


def _panels(findings: Sequence[Finding]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Ways to compare with a panel of their own, and a row for each kind of slices.

    What was compared on one kind of slices alone is a row in the first panel, if another way has several.
    """
    slices = {
        f.variant: list(dict.fromkeys(str(g.place) for g in findings if g.variant == f.variant)) for f in findings
    }
    most = max(len(kinds) for kinds in slices.values())
    panels = [variant for variant, kinds in slices.items() if len(kinds) == most]
    rows = [(kind, "") for kind in slices[panels[0]]]
    rows += [(kind, variant) for variant, kinds in slices.items() if variant not in panels for kind in kinds]
    return panels, {row: place for place, row in enumerate(sorted(rows, key=lambda row: rows.index((row[0], ""))))}


def draw_films(cells: Sequence[Cell], out: Path) -> list[Path]:
    """The first of the runs' own slices: methods side by side, from the untrained network (top) to the end."""
    written = []
    for number, cell in enumerate(cells, 1):
        tracks = {method: tracks[0] for method, tracks in cell.methods.items()}
        epochs = further_epochs(cell.tracks[0])
        images = images_of(cell.tracks[0])
        plane = make_slices(cell.config, images)[0]
        side = min((_WIDTH - 0.3 - 0.06 * (len(tracks) - 1)) / len(tracks), 1.5)
        height = 0.52 + len(epochs) * (side + 0.2)
        figure = _figure(height)
        left = (_WIDTH + 0.24 - len(tracks) * (side + 0.06)) / 2
        for column, (method, track) in enumerate(tracks.items()):
            for row, epoch in enumerate(epochs):
                bottom = height - 0.42 - side - row * (side + 0.2)
                ax = inch_axes(figure, left + column * (side + 0.06), bottom, side, side)
                found = exact(network_of(track, epoch, images), plane, threads=1)
                draw_polygons(ax, found.polygons, plane.half_width, region_colours(found.regions, found.polygons.sides))
                ax.set(xticks=[], yticks=[], xlabel="", ylabel="")
                title = f"{len(found.regions):,}"
                ax.set_title(title, fontsize=_SMALL, color=INK, pad=2)
                if column == 0:
                    text = "untrained" if not epoch else f"epoch {epoch}"
                    ax.set_ylabel(text, fontsize=_SMALL, color=INK, labelpad=2)
            name = NAMES[method].replace(", ", ",\n")
            x = (left + column * (side + 0.06) + side / 2) / _WIDTH
            figure.text(x, 1 - 0.13 / height, name, ha="center", va="center", fontsize=6.3, color=INK, linespacing=0.95)
        text = (
            f"{cell.title}, seed {tracks[next(iter(tracks))].config.seed}: regions of one slice ({cell.own_place}; "
            f"side {2 * plane.half_width:g} input units); above each, their number"
        )
        figure.text(0.5, 0.04 / height, text, ha="center", va="bottom", fontsize=_SMALL, color=INK)
        written.append(_save(figure, out, "film", number))
    return written


def draw_collapses(cells: Sequence[Cell], out: Path) -> list[Path]:
    """Collapsing runs and their healthy counterparts, and when the former leave the range of the latter for good."""
    panels = [
        (cell, method) for cell in cells for method in cell.methods
        if method in COUNTERPARTS and COUNTERPARTS[method] in cell.methods
    ]  # fmt: skip
    written = []
    for number, some in enumerate(_pages(panels, 4), 1):
        figure, axes = _grid(len(_COLLAPSE), len(some), 1.05, gap=0.46, above=0.86, left=0.72)
        for column, (cell, method) in enumerate(some):
            found = {onset.column: onset for onset in onsets(cell, method, list(_COLLAPSE))}
            for row, (name, label) in enumerate(_COLLAPSE.items()):
                ax = axes[row][column]
                for one in (COUNTERPARTS[method], method):
                    tracks = [track for track in cell.methods[one] if name in track.history]
                    colour = "#d55e00" if one == method else "#0072b2"
                    if tracks:
                        _draw_course(ax, tracks, name, one, colour=colour, line="-" if one == method else "--")
                style_axes(ax)
                ax.tick_params(labelsize=_SMALL - 0.5)
                ax.set_yscale("log")
                bottom, top = ax.get_ylim()
                ax.set_ylim(bottom, top * (top / bottom) ** 0.22)  # room for the strokes
                _plain_ticks(ax.yaxis)
                _epochs(ax, cell, last=row == len(_COLLAPSE) - 1, few=True)
                if name in found:
                    _draw_onset(ax, found[name], cell)
                if column == 0:
                    ax.set_ylabel(label, fontsize=_SMALL, color=INK)
            axes[0][column].set_title(
                f"{cell.title.replace(', ', chr(10))}\n{NAMES[method].replace(', ', ',' + chr(10))}",
                fontsize=_SMALL - 0.5, color=INK, loc="left", pad=3,
            )  # fmt: skip
        _align_labels(axes, 0.42)
        handles = [
            Line2D([], [], color="#d55e00", lw=1.4, label="collapsing"),
            Line2D([], [], color="#0072b2", lw=1.4, ls="--", label="healthy counterpart"),
            Line2D([], [], color=INK, marker="|", lw=0, ms=7, label="so many runs leave the healthy range for good"),
        ]
        figure.legend(handles=handles, fontsize=_SMALL, frameon=False, ncols=3, loc="upper center",
                      bbox_to_anchor=(0.5, 1.0))  # fmt: skip
        written.append(_save(figure, out, "collapse", number))
    return written


def interval_text(interval: Interval, digits: int = 2) -> str:
    """Like ``0.51 [0.32, 0.70]``."""
    if not math.isfinite(interval.mean):
        return "not defined"
    text = f"{interval.mean:.{digits}f}"
    if not math.isfinite(interval.low):
        return text
    return f"{text} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _draw_course(
    ax: Axes, tracks: Sequence[Track], name: str, method: str, colour: str | None = None, line: str | None = None
) -> None:
    values = np.stack([track[name] for track in tracks])
    x = _places(tracks[0].epoch)
    own, own_line, _ = LOOKS[method]
    if len(tracks) > 1:
        ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour or own, alpha=0.16, lw=0)
    ax.plot(x, np.median(values, axis=0), line or own_line, color=colour or own, lw=1.2)


def _draw_onset(ax: Axes, onset: Onset, cell: Cell) -> None:
    """A stroke at the top where runs leave the range, with how many they are."""
    epochs, runs = np.unique([epoch for epoch in onset.epochs.values() if math.isfinite(epoch)], return_counts=True)
    places = _places(np.concatenate([cell.tracks[0].epoch[:2], epochs]))[2:]
    top = ax.get_xaxis_transform()
    ax.plot(places, np.full(len(places), 0.95), "|", color=INK, ms=5, mew=0.9, transform=top)
    for place, count in zip(places, runs):
        ax.text(place, 0.89, str(count), transform=top, fontsize=6, color=INK, ha="center", va="top")
    ax.axvline(EARLY * cell.config.epochs, color=GREY, lw=0.7, ls=":", zorder=0)


def _draw_points(ax: Axes, tracks: Sequence[Track], x: str, y: str, method: str) -> None:
    colour, _, mark = LOOKS[method]
    for track in tracks:
        used = probed(track)
        ax.plot(track[x][used], track[y][used], mark, color=colour, ms=2.6, mew=0.6 if mark == "x" else 0, alpha=0.75)


def probed(track: Track) -> NDArray[np.bool_]:
    """Mask of the measurements with kNN and linear probe behind the start, [n]."""
    mask: NDArray[np.bool_] = np.isfinite(track["quality/knn"]) & (track.epoch > 0)
    return mask


def _places(epoch: Array) -> Array:
    """Where epochs stand on the logarithmic axis: the start half a decade before the first step."""
    first = epoch[epoch > 0].min()
    places: Array = np.where(epoch > 0, epoch, first / 3)
    return places


def _epochs(ax: Axes, cell: Cell, last: bool, few: bool = False) -> None:
    epoch = cell.tracks[0].epoch
    places = _places(epoch)
    ax.set_xscale("log")
    ax.set_xlim(places[0] * 0.8, epoch[-1] * 1.15)
    close = 0.25 if few else 0.5  # of the last tick, where its number would run into that before it
    decades = [10.0**k for k in range(-3, 5) if places[1] <= 10.0**k <= epoch[-1] * close]
    ticks = [places[0], *(decades[-1:] if few else decades), epoch[-1]]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value <= places[0] else f"{value:g}"))
    if last:
        ax.set_xlabel("epoch", fontsize=_SMALL, color=INK)
    else:
        ax.tick_params(labelbottom=False)


def _log_values(ax: Axes) -> None:
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis)


def _plain_ticks(axis: Axis) -> None:
    """Numbers as they are at 1, 2 and 5 times powers of ten; powers alone over many decades."""
    low, high = axis.get_view_interval()
    wide = high / low > 60
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _pages(items: Sequence[_T], size: int = _COLUMNS) -> Iterator[list[_T]]:
    rest = iter(items)
    while page := list(islice(rest, size)):
        yield page


def _methods(cells: Sequence[Cell]) -> list[str]:
    return [method for method in LOOKS if any(method in cell.methods for cell in cells)]


def _legend_height(cells: Sequence[Cell]) -> float:
    return 0.62 if len(_methods(cells)) > 4 else 0.45


def _legend(figure: Figure, methods: Sequence[str]) -> None:
    handles = [
        Line2D([], [], color=LOOKS[m][0], ls=LOOKS[m][1], marker=LOOKS[m][2], ms=3.5, lw=1.2, label=NAMES[m])
        for m in methods
    ]
    figure.legend(
        handles=handles, fontsize=_SMALL, frameon=False, ncols=min(4, len(handles)), loc="upper center",
        bbox_to_anchor=(0.5, 1.0), handlelength=2.2, columnspacing=1.4, labelspacing=0.25,
    )  # fmt: skip


def _text_width(text: str) -> float:
    """Of its longest line as a label, in inches."""
    figure = _figure(1)
    figure.set_dpi(_PNG_DPI)
    return figure.text(0, 0, text, fontsize=_SMALL).get_window_extent().width / _PNG_DPI


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _grid(
    rows: int, columns: int, height: float, *, left: float = 0.78, gap: float = 0.5, between: float = 0.14,
    above: float = 0.5,
) -> tuple[Figure, list[list[Axes]]]:  # fmt: skip
    """Axes in rows; lengths in inches, ``height`` of one of the axes."""
    right, below = 0.12, 0.42
    figure = _figure(above + below + rows * height + (rows - 1) * between)
    width = (_WIDTH - left - right - (columns - 1) * gap) / columns
    return figure, [
        [
            inch_axes(figure, left + j * (width + gap), below + (rows - 1 - i) * (height + between), width, height)
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def _align_labels(axes: Sequence[Sequence[Axes]], inches: float = 0.48) -> None:
    for row in axes:
        width = row[0].get_position().width * _WIDTH
        row[0].yaxis.set_label_coords(-inches / width, 0.5)


def _save(figure: Figure, out: Path, name: str, number: int) -> Path:
    path = out / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
    save_figure(figure, path, keep=sorted({colour for colour, _, _ in LOOKS.values()}))
    return path
