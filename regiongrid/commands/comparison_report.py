"""The report of `regiongrid compare` as text, rendered from the plain numbers of `Comparison.summary`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from regiongrid.commands.report import (
    Facts,
    add_network,
    caution_line,
    count_of,
    data_line,
    ending_lines,
    number_text,
    numbers_text,
    print_out,
    seconds_text,
    sections_table,
)

_RESOLVED = 100  # pixels from which on the area of a region is reported
_NAMES = {
    "regions": "number of regions",
    "regions_extrapolated": "the same, extrapolated",
    "boundary": "boundary length",
    "boundary_extrapolated": "the same, extrapolated",
}


def print_comparison(summary: Facts, out: Path | None = None) -> None:
    """Print the report of a run, an object of schema regiongrid.comparison/1, on stdout."""
    slices = summary["slices"]
    head = sections_table()
    add_network(head, summary["network"])
    data = data_line(summary["settings"])
    if data is not None:
        head.add_row("Data", Text(data))
    for note in summary["notes"]:
        head.add_row("", Text(note, style="yellow"))
    parts: list[RenderableType] = [head]
    for number, one in enumerate(slices):
        parts.append(_one_comparison("Slice" if len(slices) == 1 else f"Slice {number}", one))
    note = (
        f"Errors are grid / exact - 1. Area: at least 95 of 100 regions of {_RESOLVED} or more pixels are within it. "
        "Order: error as a power of the pixel size; none where the sign of the error changes."
    )
    print_out(Group(*parts, Text(), Text(note, style="dim"), ending_lines(summary, out)))


def _one_comparison(name: str, one: Facts) -> RenderableType:
    head, tail = sections_table(), sections_table()
    head.add_row(name, Text(one["slice"]["description"]))
    half_width, area = number_text(one["slice"]["half_width"]), number_text(one["domain_area"])
    head.add_row("", f"half-width {half_width} input units, area {area}")
    length = number_text(one["boundary"]["length"])
    head.add_row("Exact", f"{count_of(one['regions'], 'region')}, boundary length {length} input units")
    rows = one["resolutions"]
    tail.add_row("Spurious", _spurious(rows))
    tail.add_row("Area bracket", _bracket(rows))
    for number, (quantity, label) in enumerate(_NAMES.items()):
        text = f"{label}: {_recommended(one['recommended'][quantity])}"
        tail.add_row(f"Within {_share(one['accuracy'])}" if number == 0 else "", text)
    return Group(Text(), head, Text(), _table(one), Text(), tail, *(caution_line(text) for text in one["warnings"]))


def _table(one: Facts) -> Table:
    table = numbers_text(
        "Grid", "\nregions", "count\nerror", "extra-\npolated", "missed\narea", "length\nerror", "extra-\npolated",
        "area\nerror", "\nseconds",
    )  # fmt: skip
    rows, orders = one["resolutions"], one["orders"]
    for number, row in enumerate(rows):
        table.add_row(
            f"{row['res']}",
            f"{row['regions_grid']:,}",
            _signed(row["count_error"]),
            _signed(row["count_extrapolated_error"]),
            _share(row["missed_area_share"]),
            _signed(row["boundary_error"]),
            _signed(row["boundary_extrapolated_error"]),
            _area_error(row),
            seconds_text(row["seconds_grid"]),
            end_section=number == len(rows) - 1,
        )
    table.add_row("exact", f"{one['regions']:,}", "", "", "", "", "", "", seconds_text(one["seconds"]["exact"]))
    fits = [
        orders[name] for name in ("regions", "regions_extrapolated", "missed_area", "boundary", "boundary_extrapolated")
    ]
    table.add_row("order", "", *("-" if fit is None else f"{fit['order']:.2f}" for fit in fits), "", "")
    return table


def _area_error(row: Facts) -> str:
    errors = [one["area_p95"] for one in row["sizes"] if one["least"] >= _RESOLVED and one["regions"]]
    return _share(max(errors)) if errors else "-"


def _spurious(rows: list[Facts]) -> str:
    most = max(rows, key=lambda row: int(row["spurious"]))
    if most["spurious"] == 0:
        return "none: every pattern on the grids is that of a polygon"
    patterns = f"up to {count_of(most['spurious'], 'pattern')} of no polygon (at {most['res']} pixels)"
    unexplained = max(row["spurious_unexplained"] for row in rows)
    return f"{patterns}, {unexplained or 'none'} unexplained by pixel centres on a boundary"


def _bracket(rows: list[Facts]) -> str:
    below, above = (max(rows, key=lambda row: int(row[f"{end}_violations"])) for end in ("lower", "upper"))
    texts = []
    for row, end, side in ((below, "lower", "below the lower"), (above, "upper", "above the upper")):
        count = row[f"{end}_violations"]
        if count:
            excess = max(float(each[f"{end}_excess"]) for each in rows)
            regions = f"up to {count_of(count, 'region')} at one resolution"
            texts.append(f"{regions} {side} end, by at most {excess:.3g} pixel areas")
    return "; ".join(texts) or "holds for every region at every resolution"


def _recommended(advice: Facts | None) -> str:
    if advice is None:
        return "at none of these resolutions, none predicted"
    if advice["extrapolated"]:
        return f"{advice['res']} pixels (predicted {_share(advice['error'])})"
    return f"from {advice['res']} pixels on (measured {_share(advice['error'])})"


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:+.3g}%" if abs(value) < 9.995 else f"{100 * value:+,.0f}%"


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"
