"""Figure of a comparison: what the grid misses among the exact polygons, and how its errors fall with resolution."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from regiongrid.comparison import QUANTITIES
from regiongrid.estimation import estimate
from regiongrid.plots import (
    BY_AREA,
    INK,
    LEVEL,
    MARKS,
    PALETTE,
    draw_title,
    figure_suffix,
    frame_slice,
    grid_picture,
    inch_axes,
    new_page,
    polygon_outlines,
    region_colours,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from regiongrid.comparison import Comparison
    from regiongrid.estimation import Estimate

MISSED = LEVEL
"""Fill of the regions that the grid misses."""

_WINDOWS = (40, 32, 24, 16, 12, 8)  # pixels along a side of the part that is drawn
_MOST_REGIONS = 300  # in it
_SERIES = {
    "regions": ("regions", MARKS, MARKS, "o"),
    "regions_extrapolated": ("regions, extrapolated", MARKS, "white", "o"),
    "boundary": ("boundary length", BY_AREA, BY_AREA, "s"),
    "boundary_extrapolated": ("length, extrapolated", BY_AREA, "white", "s"),
}
_SMALL, _NORMAL = 7.5, 8.5  # points
_LEAST_FACTOR = 10.0  # from the lower to the upper end of the axis of errors

Window = tuple[float, float, float]
"""Lower ends in u and v, and the side; input units."""


def plot_comparison(
    comparison: Comparison, path: str | os.PathLike[str] | None = None, *, res: int | None = None
) -> Figure:
    """Figure of one comparison, 7.2 inches wide, for the full width of a page.

    On the left the sides of the exact polygons over the pixels of one grid, with the missed regions filled: the whole
    slice if that is small enough to be read, else the part of it with the most missed regions, which is marked in the
    slice on the upper right. On the lower right, absolute errors against resolution with their fitted orders; an error
    of zero has no place on the logarithmic axis and is left out.

    Parameters
    ----------
    comparison
        The grid against the exact regions of one slice.
    path
        Where to write the figure, as ``.png``, ``.svg`` or ``.pdf``; it is not written if not given.
    res
        The grid that is drawn, one of those compared. If not given, the coarsest whose extrapolated count is
        trustworthy (on coarser ones most of a crowded part is missed), or the finest.

    Raises
    ------
    InputError
        ``path`` has another suffix, or ``res`` was not compared.
    RegiongridError
        The file cannot be written.
    """
    if path is not None:
        figure_suffix(path)
    if res is None:
        res = next((row.res for row in comparison.rows if row.extrapolation_trustworthy), comparison.rows[-1].res)
    missed = comparison.missed(res)
    found = estimate(comparison.network, comparison.slice, res, **comparison._sampling)
    window = _window(comparison, res)
    figure = new_page()
    facts = f"{res}² pixels miss {missed.size:,}"
    draw_title(figure, comparison.network, comparison.slice, len(comparison.exact.regions), facts)
    _draw_window(inch_axes(figure, 0.62, 0.5, 3.62, 3.62), comparison, found, window)
    _draw_overview(inch_axes(figure, 4.93, 2.84, 1.28, 1.28), comparison, found, window)
    _draw_errors(inch_axes(figure, 4.93, 0.5, 2.1, 1.4), comparison)
    if path is not None:
        save_figure(figure, path)
    return figure


def _window(comparison: Comparison, res: int) -> Window:
    """The part of the slice to be drawn: all of it, or so many pixels that what is in them can be told apart."""
    regions, missed = comparison.exact.regions, comparison.missed(res)
    half_width = comparison.slice.half_width
    if res <= max(_WINDOWS) or (missed.size == 0 and len(regions) <= _MOST_REGIONS):
        return -half_width, -half_width, 2 * half_width
    pixel = comparison.slice.pixel_size(res)
    shown = regions.take(missed) if missed.size else regions
    for side in _WINDOWS:
        column, row = _most_crowded(_counts(shown, half_width, res, side // 4), 4)
        all_counts = _counts(regions, half_width, res, side // 4)
        if all_counts[row : row + 4, column : column + 4].sum() <= _MOST_REGIONS:
            break
    step = side // 4 * pixel
    most = half_width - side * pixel
    return min(column * step - half_width, most), min(row * step - half_width, most), side * pixel


def _counts(regions: Any, half_width: float, res: int, step: int) -> NDArray[np.float64]:
    """Number of centroids in squares of ``step`` pixels, rows along v."""
    edges = np.arange(-(-res // step) + 1) * (2 * half_width * step / res) - half_width
    counts: NDArray[np.float64] = np.histogram2d(regions.centroid_v, regions.centroid_u, bins=(edges, edges))[0]
    return counts


def _most_crowded(counts: NDArray[np.float64], width: int) -> tuple[int, int]:
    """Column and row of the first of the ``width`` x ``width`` squares that hold the most."""
    sums = np.pad(counts, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    size = len(counts) - width + 1
    boxes = sums[width:, width:] - sums[:size, width:] - sums[width:, :size] + sums[:size, :size]
    row, column = np.unravel_index(boxes.argmax(), boxes.shape)
    return int(column), int(row)


def _draw_window(ax: Axes, comparison: Comparison, found: Estimate, window: Window) -> None:
    plane, polygons = comparison.slice, comparison.exact.polygons
    u, v, side = window
    colours = np.array([mpl.colors.to_rgb(colour) for colour in PALETTE])
    colours = colours[region_colours(found.regions, found.totals.adjacency)]
    pixel = plane.pixel_size(found.res)
    left, low = (int(np.floor((end + plane.half_width) / pixel + 1e-6)) for end in (u, v))
    count = min(int(np.ceil(side / pixel - 1e-6)) + 1, found.res)
    hashes = found.image.hashes[low : low + count, left : left + count]
    order = np.argsort(found.regions.pattern)
    rows = order[np.searchsorted(found.regions.pattern[order], hashes)]
    height, width = hashes.shape
    begin_u, begin_v = left * pixel - plane.half_width, low * pixel - plane.half_width
    extent = (begin_u, begin_u + width * pixel, begin_v, begin_v + height * pixel)
    ax.imshow(colours[rows], origin="lower", extent=extent, interpolation="nearest")
    missed = _inside(comparison, comparison.missed(found.res), window)
    if missed.size:
        path = polygon_outlines(polygons, missed)
        ax.add_collection(
            PathCollection([path], facecolors=MISSED, edgecolors=MISSED, linewidths=0.9, zorder=2), autolim=False
        )
    ends = polygons.points[np.stack([polygons.sides.first, polygons.sides.second], axis=1)]  # [m, 2, 2]
    near = (ends.max(axis=1) >= (u, v)).all(axis=1) & (ends.min(axis=1) <= (u + side, v + side)).all(axis=1)
    ax.add_collection(LineCollection(ends[near], colors=INK, linewidths=0.5, capstyle="round", zorder=3), autolim=False)
    if _shows_pixels(window, found):
        centres = plane.pixel_centres(found.res)
        grid = np.meshgrid(centres[left : left + width], centres[low : low + height])
        ax.plot(*(axis.reshape(-1) for axis in grid), ".", markersize=1.4, color=INK, markeredgewidth=0, zorder=4)
    whole = side >= 2 * plane.half_width
    frame_slice(ax, plane.half_width, plane.anchors if whole else np.empty((0, 2)))
    ax.set(xlim=(u, u + side), ylim=(v, v + side))
    if not whole:  # numbers with many digits, for which there is no room otherwise
        ax.tick_params(axis="y", labelrotation=90)


def _shows_pixels(window: Window, found: Estimate) -> bool:
    """Whether pixels are drawn large enough for a dot at their centres."""
    return window[2] <= (max(_WINDOWS) + 0.5) * found.slice.pixel_size(found.res)


def _inside(comparison: Comparison, rows: NDArray[np.intp], window: Window) -> NDArray[np.intp]:
    """Those of these polygons that reach into the window, as far as their bounding boxes tell."""
    u, v, side = window
    polygons = comparison.exact.polygons
    corners = polygons.points[polygons.corners]
    low = np.minimum.reduceat(corners, polygons.starts[:-1], axis=0)[rows]
    high = np.maximum.reduceat(corners, polygons.starts[:-1], axis=0)[rows]
    return rows[((high >= (u, v)) & (low <= (u + side, v + side))).all(axis=1)]


def _draw_overview(ax: Axes, comparison: Comparison, found: Estimate, window: Window) -> None:
    """The whole slice with the window marked, and what the colours and marks on the left mean."""
    half_width, (u, v, side) = comparison.slice.half_width, window
    colours = np.array([mpl.colors.to_rgb(colour) for colour in PALETTE])
    colours = colours[region_colours(found.regions, found.totals.adjacency)]
    picture, reach = grid_picture(found.image.hashes, found.regions.pattern, colours)
    far = -half_width + 2 * half_width * reach
    ax.imshow(picture, origin="lower", extent=(-half_width, far, -half_width, far), interpolation="antialiased")
    ax.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width))
    style_axes(ax)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(NullLocator())
    handles: list[Any] = []
    if comparison.missed(found.res).size:
        handles.append(Patch(facecolor=MISSED, edgecolor=INK, linewidth=0.5, label="missed"))
    handles.append(Line2D([], [], color=INK, linewidth=0.8, label="exact side"))
    if _shows_pixels(window, found):
        handles.append(Line2D([], [], linestyle="none", marker=".", markersize=3.0, markeredgewidth=0, color=INK,
                              label="pixel centre"))  # fmt: skip
    if side < 2 * half_width:
        ax.add_patch(
            Rectangle((u, v), side, side, fill=False, edgecolor=MISSED, linewidth=1.4, zorder=3,
                      path_effects=[withStroke(linewidth=3.0, foreground="white")])
        )  # fmt: skip
        handles.append(Patch(facecolor="none", edgecolor=MISSED, linewidth=1.4, label="part on the\nleft"))
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.06, 1.0), frameon=False, fontsize=_SMALL, labelcolor=INK,
        handlelength=1.0, handleheight=1.0, handletextpad=0.5, borderaxespad=0.0, borderpad=0.0, labelspacing=0.7,
    )  # fmt: skip


def _draw_errors(ax: Axes, comparison: Comparison) -> None:
    """Absolute relative errors against resolution, both on logarithmic axes, with their fits."""
    rows = comparison.rows
    res = np.array([row.res for row in rows])
    drawn = []
    for quantity, (name, colour, fill, marker) in _SERIES.items():
        errors = np.abs([getattr(row, QUANTITIES[quantity]) for row in rows])
        seen = np.isfinite(errors) & (errors > 0)
        drawn.append(errors[seen])
        fit = comparison.orders[quantity]
        label = f"{name}: no error" if not seen.any() else name if fit is None else f"{name}: order {fit.order:.1f}"
        ax.plot(res[seen], errors[seen], marker, color=colour, markerfacecolor=fill, markersize=4.0,
                markeredgewidth=0.9, label=label.replace("-", "\N{MINUS SIGN}"), zorder=3)  # fmt: skip
        if fit is not None:
            ends = np.array([fit.resolutions[0], fit.resolutions[-1]])
            style: Any = "solid" if fill == colour else (0, (2.5, 1.5))
            values = [fit.error(comparison.slice.pixel_size(int(end))) for end in ends]
            ax.plot(ends, values, linestyle=style, color=colour, linewidth=0.9, zorder=2)
    ax.set(xscale="log", yscale="log", xlim=(res[0] / 1.3, res[-1] * 1.3))
    _limit_errors(ax, np.concatenate(drawn))
    named = _named(res)
    ax.xaxis.set_major_locator(FixedLocator(res.tolist()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if round(value) in named else ""))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("pixels along a side", fontsize=_NORMAL, color=INK)
    ax.set_ylabel("relative error", fontsize=_NORMAL, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    style_axes(ax)
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.03), frameon=False, fontsize=_SMALL, labelcolor=INK,
        handlelength=1.0, handletextpad=0.5, borderaxespad=0.0, borderpad=0.0, labelspacing=0.25,
    )  # fmt: skip


def _limit_errors(ax: Axes, errors: NDArray[np.float64]) -> None:
    """Ends of the axis of errors, in percent, for at least one tick to lie between them."""
    least, most = (float(errors.min()), float(errors.max())) if errors.size else (0.001, 0.1)
    widen = max(1.4, (_LEAST_FACTOR * least / most) ** 0.5)
    ax.set_ylim(least / widen, most * widen)
    few_decades = most * widen**2 / least < 30
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,), numticks=6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _named(res: NDArray[np.int64]) -> list[int]:
    """Resolutions to be named, at most four: every one, or every second, ... from the last."""
    step = -(-res.size // 4)
    return [int(value) for value in res[::-1][::step]]
