"""Summaries as text: one slice, several slices, the environment. Rendered from the plain numbers of `summary()`."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from regiongrid.estimation import Estimate
    from regiongrid.subdivision import Exact

Facts = Mapping[str, Any]

_LABEL_WIDTH = 12
_RULED = box.SIMPLE_HEAD
_STATISTICS = ("mean", "median", "std", "p5", "p95")
_MEASURED = {
    "area": "Area [input units^2]",
    "perimeter": "Perimeter [input units]",
    "eccentricity": "Eccentricity",
    "elongation": "Elongation",
    "sides": "Sides",
    "inradius": "Inradius [input units]",
}
_SHOWN_WIDTHS = 8
_SHOWN_SLICES = 40


def as_text(result: Estimate | Exact) -> str:
    """The report of one slice as plain text, at most 80 columns wide."""
    return _plain_text(_one_slice(result.network.describe(), result.summary()), 80)


def print_summary(summary: Facts, out: Path | None = None) -> None:
    """Print the report of a run, an object of schema regiongrid.summary/1, on stdout."""
    slices: Sequence[Facts] = summary["slices"]
    if len(slices) == 1:
        body = _one_slice(summary["network"], slices[0], summary["notes"], data_line(summary["settings"]))
    else:
        body = _several_slices(summary["network"], slices, summary["notes"], data_line(summary["settings"]))
    print_out(Group(body, ending_lines(summary, out)))


def print_environment(facts: Facts, meanings: Mapping[str, str]) -> None:
    """Print what `regiongrid env` found; ``meanings`` says what each environment variable is for."""
    table = sections_table()
    for name, version in facts["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("", "")
    table.add_row("system", facts["platform"])
    table.add_row("CPU", f"{count_of(facts['cpu_cores'], 'core')} usable, torch runs {facts['torch_threads']} threads")
    memory = facts["memory_available"]
    table.add_row("memory", "unknown" if memory is None else f"{_bytes(memory)} available")
    devices = [f"cuda:{number} {_card(device)}" for number, device in enumerate(facts["cuda_devices"])]
    table.add_row("CUDA devices", "\n".join(devices) or "none that torch sees")
    table.add_row("backend", f"auto runs {facts['backend']['auto']}: {facts['backend']['reason']}")
    table.add_row("numba cache", facts["numba_cache"] or "none; set NUMBA_CACHE_DIR to a folder that can be written")
    for name, value in facts["variables"].items():
        table.add_row(name, f"{'not set' if value is None else value} ({meanings[name]})")
    print_out(Group(table, *_triton_kernels(facts)))


def _card(device: Facts) -> str:
    capability = device["compute_capability"]
    kind = device["architecture"] if capability is None else f"compute capability {capability}"
    return f"{device['name']}, {_bytes(device['memory'])}, {kind}"


def _triton_kernels(facts: Facts) -> list[RenderableType]:
    """How the kernels are compiled and started, where that was asked for."""
    if "triton_kernels" not in facts:
        return []
    rows = facts["triton_kernels"]
    if rows is None:
        return [Text("\nTriton kernels: none, because Triton is not installed")]
    table = Table(box=_RULED, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("Triton kernel", overflow="fold")
    table.add_column("Chips", overflow="fold")
    table.add_column("Constants (block sizes, precision)", overflow="fold")
    table.add_column("warps", justify="right", no_wrap=True)
    table.add_column("stages", justify="right", no_wrap=True)
    for row in rows:
        constants = ", ".join(f"{name}={value}" for name, value in row["constants"].items())
        table.add_row(row["kernel"], ", ".join(row["targets"]), constants, f"{row['warps']}", f"{row['stages']}")
    return [Text(), table]


def data_line(settings: Facts) -> str | None:
    split = settings["split"]
    return settings["data"] if split is None else f"{settings['data']}, split {split}"


def _one_slice(network: Facts, one: Facts, notes: Sequence[str] = (), data: str | None = None) -> RenderableType:
    head = sections_table()
    add_network(head, network)
    if data is not None:
        head.add_row("Data", Text(data))
    where = one["slice"]
    head.add_row("Slice", Text(where["description"]))
    head.add_row(
        "", f"half-width {number_text(where['half_width'])} input units, area {number_text(one['domain_area'])}"
    )
    for note in notes:
        head.add_row("", Text(note, style="yellow"))
    if _on_grid(one):
        _add_grid(head, one)
        head.add_row("", "")
        _add_counts(head, one)
    else:
        _add_polygons(head, one)
        head.add_row("", "")
        _add_exact_counts(head, one)
    parts: list[RenderableType] = [head, Text(), _statistics(one)]
    if "by_layer" in one:
        parts += [Text(), _layers(network, [one])]
    for warning in one["warnings"]:
        parts += [caution_line(warning)]
    return Group(*parts)


def _on_grid(one: Facts) -> bool:
    """Whether a slice was seen on a grid of pixels, and not as polygons."""
    return "res" in one


def sections_table() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=_LABEL_WIDTH, style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def add_network(table: Table, network: Facts) -> None:
    shape = " x ".join(map(str, network["input_shape"]))
    widths = [str(layer["units"]) for layer in network["layers"]]
    if len(widths) > _SHOWN_WIDTHS:
        widths = [*widths[: _SHOWN_WIDTHS - 2], "...", widths[-1]]
    layers = count_of(len(network["layers"]), "layer")
    table.add_row("Network", Text(network["source"]))
    table.add_row("", f"input {shape}, {count_of(network['units'], 'unit')} in {layers} ({', '.join(widths)})")
    for note in network["notes"]:
        table.add_row("", Text(note, style="dim"))


def _add_grid(table: Table, one: Facts) -> None:
    guard = one["guard"]
    table.add_row("Grid", f"{one['res']} x {one['res']} pixels, {number_text(one['pixel_size'])} input units each")
    table.add_row("", f"{_percent(one['evaluated_share'])} of the pixels evaluated ({one['sampling']} sampling)")
    share = f" ({_percent(guard['reevaluated_share'])} of the pixels)" if guard["reevaluated"] else ""
    again = count_of(guard["reevaluated"], "point") + share
    if guard["dtype"] == "float64":
        table.add_row("", f"in float64; {again} within rounding error of a boundary")
    else:
        table.add_row("", f"in {guard['dtype']}; {again} too close to call, decided in float64")


def _add_counts(table: Table, one: Facts) -> None:
    table.add_row("Regions", f"{one['regions']:,}")
    table.add_row("Extrapolated", _extrapolated(one))
    table.add_row("Components", f"{one['components']:,} connected pieces on the grid")
    table.add_row("Boundary", f"{_boundary(one)}, {count_of(one['boundary']['pixels'], 'pixel')}")
    table.add_row("Mixed cells", f"{_percent(one['mixed_share'])} of the area is in cells that a boundary crosses")


def _add_polygons(table: Table, one: Facts) -> None:
    polygons, sides = count_of(one["regions"], "polygon"), count_of(one["sides_total"], "side")
    table.add_row("Exact", f"{polygons}, {sides}, {count_of(one['points'], 'point')}")
    table.add_row("", _decided_exactly([one]))


def _decided_exactly(slices: Sequence[Facts]) -> str:
    undecided, signs = (sum(one["effort"][name] for one in slices) for name in ("undecided", "signs"))
    return f"{undecided:,} of {count_of(signs, 'sign')} too close to call, decided exactly"


def _add_exact_counts(table: Table, one: Facts) -> None:
    table.add_row("Regions", f"{one['regions']:,}")
    if "linear_regions" in one:
        table.add_row("Linear", f"{count_of(one['linear_regions'], 'linear region')} of the function itself")
    table.add_row("Boundary", _boundary(one))
    if "decision_boundary" in one:
        table.add_row("Decision", f"boundary of length {number_text(one['decision_boundary']['length'])} input units")


def _boundary(one: Facts) -> str:
    boundary = one["boundary"]
    return f"length {number_text(boundary['length'])} input units, {number_text(boundary['density'])} per unit area"


def _extrapolated(one: Facts) -> Text:
    text = (
        f"{one['regions_extrapolated']:,} = 2 x {one['regions']:,} - {one['regions_half_resolution']:,}, "
        "the count at half the resolution"
    )
    if one["extrapolation_trustworthy"]:
        return Text(text)
    return Text.assemble((f"! {text}; not to be trusted", "yellow"))


def _statistics(one: Facts) -> Table:
    table = numbers_text("Per region", *_STATISTICS)
    for name, label in _MEASURED.items():
        if name in one:
            table.add_row(label, *(_digits(one[name][statistic]) for statistic in _STATISTICS))
    return table


def _layers(network: Facts, slices: Sequence[Facts]) -> Table:
    """Regions and boundary of the first layers alone; with several slices, their means."""
    of = "" if len(slices) == 1 else "mean of "
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Layers", no_wrap=True)
    table.add_column("Last operator", overflow="fold")
    lengths = {"boundary_length": f"{of}boundary", "own_length": f"{of}added"}
    lengths = {name: header for name, header in lengths.items() if name in slices[0]["by_layer"][0]}
    for header in ("units", f"{of}regions", *lengths.values()):
        table.add_column(header, justify="right", overflow="fold")
    for k, layer in enumerate(network["layers"]):
        rows = [one["by_layer"][k] for one in slices]
        regions = mean(row["regions"] for row in rows)
        table.add_row(
            "1" if k == 0 else f"1 to {k + 1}",
            Text(rows[0]["operator"]),
            f"{layer['units']:,}",
            f"{rows[0]['regions']:,}" if len(rows) == 1 else number_text(regions),
            *(number_text(mean(row[name] for row in rows)) for name in lengths),
        )
    return table


def _several_slices(network: Facts, slices: Sequence[Facts], notes: Sequence[str], data: str | None) -> RenderableType:
    head = sections_table()
    add_network(head, network)
    if data is not None:
        head.add_row("Data", Text(data))
    head.add_row("Slices", Text("\n".join(_descriptions(slices))))
    for note in notes:
        head.add_row("", Text(note, style="yellow"))
    first = slices[0]
    if _on_grid(first):
        head.add_row("Grid", f"{first['res']} x {first['res']} pixels a slice, {first['sampling']} sampling")
    else:
        head.add_row("Exact", f"{count_of(sum(one['regions'] for one in slices), 'polygon')} in all")
        head.add_row("", _decided_exactly(slices))
    parts: list[RenderableType] = [head, Text(), _slice_rows(slices)]
    parts.append(Text("Lengths are in input units; mean and std (n - 1) are over the slices.", style="dim"))
    if "by_layer" in first:
        parts += [Text(), _layers(network, slices)]
    return Group(*parts, *_warnings_by_slice(slices))


def _descriptions(slices: Sequence[Facts]) -> list[str]:
    lines = [f"{number}: {one['slice']['description']}" for number, one in enumerate(slices[:_SHOWN_SLICES])]
    more = len(slices) - _SHOWN_SLICES
    return [*lines, f"and {more} more, see --json or --out"] if more > 0 else lines


def _slice_rows(slices: Sequence[Facts]) -> Table:
    numbers = [_slice_numbers(one) for one in slices]
    table = numbers_text("Slice", *numbers[0])
    for number, (one, row) in enumerate(zip(slices, numbers)):
        mark = Text(f"{number} !", style="yellow") if one["warnings"] else Text(f"{number}")
        cells = (number_text(value, 3) for value in row.values())
        table.add_row(mark, *cells, end_section=number == len(slices) - 1)
    columns = list(zip(*(row.values() for row in numbers)))
    table.add_row("mean", *(number_text(mean(column), 3) for column in columns))
    table.add_row("std", *(number_text(stdev(column), 3) for column in columns))
    return table


def _slice_numbers(one: Facts) -> dict[str, float]:
    """What a row says of one slice, by the heading of the column."""
    numbers = {"half-\nwidth": one["slice"]["half_width"], "\nregions": one["regions"]}
    if _on_grid(one):
        numbers |= {"extra-\npolated": one["regions_extrapolated"], "compo-\nnents": one["components"]}
    if "linear_regions" in one:
        numbers["linear\nregions"] = one["linear_regions"]
    numbers |= {"median\narea": one["area"]["median"], "median\neccentr.": one["eccentricity"]["median"]}
    if "elongation" in one:
        numbers["median\nelong."] = one["elongation"]["median"]
    numbers["boundary\nper area"] = one["boundary"]["density"]
    if "decision_boundary" in one:
        numbers["decision\nboundary"] = one["decision_boundary"]["length"]
    return numbers


def _warnings_by_slice(slices: Sequence[Facts]) -> list[RenderableType]:
    """The warnings of the first slice that has any, and how many others have."""
    warned = [number for number, one in enumerate(slices) if one["warnings"]]
    if not warned:
        return []
    parts: list[RenderableType] = [caution_line(f"Slice {warned[0]}: {text}") for text in slices[warned[0]]["warnings"]]
    if len(warned) > 1:
        parts.append(
            caution_line(f"{len(warned)} of {len(slices)} slices (marked !) have warnings; see --json or --out.")
        )
    return parts


def ending_lines(summary: Facts, out: Path | None) -> RenderableType:
    """Incompleteness, files and time."""
    table = sections_table()
    table.add_row("", "")
    if not summary["complete"]:
        finished = count_of(len(summary["slices"]), "slice")
        table.add_row("Incomplete", Text(f"only {finished} finished, the rest did not run", style="yellow"))
    if out is not None:
        table.add_row("Written", _written(summary["slices"], out))
    seconds = dict(summary["seconds"])
    total = seconds.pop("total")
    if "evaluate" in seconds:
        seconds["evaluate"] += seconds.pop("fold", 0.0)
    parts = ", ".join(f"{name} {seconds_text(value)}" for name, value in seconds.items())
    table.add_row("Time", f"{seconds_text(total)} s: {parts}")
    return table


def _written(slices: Sequence[Facts], out: Path) -> Text:
    first, last = slices[0]["files"], slices[-1]["files"]
    names = [first[kind] if first is last else f"{first[kind]} to {last[kind]}" for kind in first]
    text = f"{out}: {', '.join(['summary.json', *names])}"
    if first.get("regions", "").endswith(".csv"):
        text += " (Parquet needs pyarrow: pip install 'regiongrid[parquet]')"
    return Text(text)


def caution_line(sentence: str) -> RenderableType:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(Text("!", style="yellow"), Text(sentence, overflow="fold"))
    return Padding(table, (1, 0, 0, 0))


def numbers_text(label: str, *columns: str) -> Table:
    """A table of numbers: one column of labels, the rest to the right. A number is folded rather than cut off."""
    table = Table(box=_RULED, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(label, vertical="bottom", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def number_text(value: float, digits: int = 4) -> str:
    """Whole numbers in full, others to so many significant digits and at least to the point."""
    if isinstance(value, int) or 10**digits - 0.5 <= abs(value) < 1e12:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _digits(value: float) -> str:
    """Always four significant digits, so that a column of them is easy to compare."""
    return f"{value:#.4g}" if 1e-4 <= abs(value) < 9999.5 else number_text(value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def seconds_text(value: float) -> str:
    return f"{value:.2f}" if value < 0.95 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def count_of(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def print_out(content: RenderableType) -> None:
    if sys.stdout.isatty():
        Console(highlight=False, markup=False, emoji=False).print(content)
    else:
        print(_plain_text(content, Console().width))


def _plain_text(content: RenderableType, width: int) -> str:
    """Without colours, and without the spaces with which tables are filled."""
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
