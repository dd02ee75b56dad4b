"""`compare`: the grid against the exact polygons, resolution by resolution.

Both engines key a region by the same pattern hash, so a join of their two tables says which regions the grid sees
(*matched*), which it misses because no pixel centre falls into them (*missed*), and which of its patterns have no
polygon (*spurious*). A *relative error* is grid / exact - 1: negative where the grid finds too little.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regiongrid.arguments import check_whole
from regiongrid.backends import check_dtype, select, weights_device
from regiongrid.errors import InputError
from regiongrid.estimation import MAX_RES, Estimate, check_memory, estimate
from regiongrid.files import atomic_path
from regiongrid.kernels.pattern_hash import decision_keys
from regiongrid.network import Network, load_network
from regiongrid.network.on_slice import SliceProgram, restrict
from regiongrid.network.program import Maximum, Stage
from regiongrid.regions import RegionTable
from regiongrid.sampling.evaluate import PatternEvaluator
from regiongrid.sampling.guard import ARBITER_KAPPA, SAFETY
from regiongrid.slices import Slice
from regiongrid.subdivision import Exact
from regiongrid.subdivision import exact as find_polygons

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESOLUTIONS = (256, 512, 1024, 2048, 4096)
SIZE_CLASSES = ((1, 4), (5, 24), (25, 99), (100, 999), (1000, None))
"""Matched regions are sorted into these classes by their number of pixels, ends included; None: no end."""
QUANTITIES = {
    "regions": "count_error",
    "regions_extrapolated": "count_extrapolated_error",
    "boundary": "boundary_error",
    "boundary_extrapolated": "boundary_extrapolated_error",
    "missed_area": "missed_area_share",
}
"""What has an order of convergence, to the column of `Accuracy` that holds its error."""
BRACKET_TOLERANCE = 1e-9
"""Share of an end of the area bracket by which rounding may exceed it."""

_MOST_CHECKED = 24  # with so many free bits one of a million random hashes hits one of a million patterns
_BAND_PIXELS = 1 << 22
_EXACT_SHARE = 0.2  # of the work, for the progress


@dataclass(frozen=True)
class SizeClass:
    """Errors of the matched regions of ``least`` to ``most`` pixels; None where there are none.

    Areas: absolute relative error. Eccentricities: absolute error.
    """

    least: int
    most: int | None
    regions: int
    area_median: float | None = None
    area_p95: float | None = None
    area_max: float | None = None
    eccentricity_median: float | None = None
    eccentricity_p95: float | None = None
    eccentricity_max: float | None = None

    @property
    def label(self) -> str:
        """Like ``25-99`` or ``1000+``."""
        return f"{self.least}+" if self.most is None else f"{self.least}-{self.most}"


@dataclass(frozen=True)
class Accuracy:
    """How far the grid of one resolution is from the exact regions of the slice.

    Attributes
    ----------
    res, pixel_size
        Pixels along a side; side of a pixel, input units.
    regions_exact, regions_grid
        Number of polygons, number of patterns on the grid.
    matched, missed, spurious
        Regions in both tables; polygons in which no pixel centre lies; patterns of the grid without a polygon.
    spurious_rounding, spurious_unexplained
        Spurious patterns whose pixel lies on a boundary but for rounding (see `compare`), and the others, which would
        be an error of one of the engines.
    count_error, count_extrapolated_error, components_error
        Relative error of ``regions``, of ``regions_extrapolated``, and of the count of connected components.
    extrapolation_trustworthy
        As in the summary of the estimate.
    missed_area_share
        Area of the missed regions, as a share of the domain.
    missed_area_median, missed_area_max
        Area of a missed region in pixel areas; None where none is missed.
    boundary_error, boundary_extrapolated_error
        Relative error of the boundary length, and of ``2 L(R) - L(R/2)``.
    lower_violations, lower_excess
        Matched regions of less area than ``area_lower``, and by how many pixel areas at most. Must be 0.
    upper_violations, upper_excess
        Matched regions of more area than ``area_upper``, and by how many pixel areas at most.
    sizes
        Errors of area and eccentricity by number of pixels.
    evaluations
        Pixels at which the network was evaluated.
    seconds_grid, seconds_exact
        Wall time of the estimate (the first of a process loads the compiled kernels), and of the exact regions (the
        same in every row).
    """

    res: int
    pixel_size: float
    regions_exact: int
    regions_grid: int
    matched: int
    missed: int
    spurious: int
    spurious_rounding: int
    spurious_unexplained: int
    count_error: float
    count_extrapolated_error: float
    extrapolation_trustworthy: bool
    components_error: float
    missed_area_share: float
    missed_area_median: float | None
    missed_area_max: float | None
    boundary_error: float
    boundary_extrapolated_error: float
    lower_violations: int
    lower_excess: float
    upper_violations: int
    upper_excess: float
    evaluations: int
    seconds_grid: float
    seconds_exact: float
    sizes: tuple[SizeClass, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields in plain numbers; ``sizes`` is a list of dictionaries."""
        return {**dataclasses.asdict(self), "sizes": [dataclasses.asdict(one) for one in self.sizes]}

    def flat(self) -> dict[str, Any]:
        """All fields on one level: those of a size class as ``pixels_25_99_area_p95``."""
        plain = self.to_dict()
        for one in plain.pop("sizes"):
            least, most = one.pop("least"), one.pop("most")
            prefix = f"pixels_{least}_{'up' if most is None else most}"
            plain |= {f"{prefix}_{name}": value for name, value in one.items()}
        return plain


class Order(NamedTuple):
    """Fit of log |error| = order * log(pixel size) + constant by least squares."""

    order: float
    constant: float
    resolutions: tuple[int, ...]  # that went into it

    def error(self, pixel_size: float) -> float:
        """The error that the fit predicts."""
        return math.exp(self.constant + self.order * math.log(pixel_size))


class Recommendation(NamedTuple):
    """A resolution with the error that it has."""

    res: int
    error: float  # absolute
    extrapolated: bool  # the error is the fitted order's prediction, not measured


@dataclass(frozen=True, eq=False)
class Comparison:
    """The grid against the exact regions of one slice.

    Attributes
    ----------
    network, slice, exact
        What was compared, where, and the truth.
    rows
        One `Accuracy` a resolution, ascending.
    seconds
        Wall time of ``exact`` and of all estimates (``grid``).
    """

    network: Network
    slice: Slice
    exact: Exact = field(repr=False)
    rows: tuple[Accuracy, ...]
    seconds: dict[str, float]
    _missed: Mapping[int, NDArray[np.intp]] = field(repr=False)
    _sampling: Mapping[str, Any] = field(repr=False)

    @cached_property
    def orders(self) -> dict[str, Order | None]:
        """Order of convergence of each of `QUANTITIES`.

        Fitted to the resolutions whose extrapolated count is trustworthy, because coarser grids are not in the range
        where errors are powers of the pixel size; to all where fewer than two are. None where fewer than two errors
        differ from zero, or their sign changes: an error that passes through zero has no order.
        """
        return {quantity: self._order(name) for quantity, name in QUANTITIES.items()}

    def _order(self, name: str) -> Order | None:
        trusted = [row for row in self.rows if row.extrapolation_trustworthy and getattr(row, name)]
        rows = trusted if len(trusted) > 1 else [row for row in self.rows if getattr(row, name)]
        errors = np.array([getattr(row, name) for row in rows])
        if len(rows) < 2 or not np.isfinite(errors).all() or errors.min() < 0 < errors.max():
            return None
        slope, constant = np.polyfit(np.log([row.pixel_size for row in rows]), np.log(np.abs(errors)), 1)
        return Order(float(slope), float(constant), tuple(row.res for row in rows))

    def missed(self, res: int) -> NDArray[np.intp]:
        """Rows of the exact table whose regions the grid of this resolution misses.

        Raises
        ------
        InputError
            ``res`` is none of those compared.
        """
        if res not in self._missed:
            known = ", ".join(map(str, self._missed))
            raise InputError(f"res is {res!r}; the resolutions compared are {known}")
        return self._missed[res]

    def recommended(self, accuracy: float, quantity: str = "regions") -> Recommendation | None:
        """The smallest resolution at which an error is, and stays, within ``accuracy``.

        Of the resolutions tested, if one will do: the first from which on all errors are at most ``accuracy`` (that
        of an extrapolated number changes sign and can be small by chance). Otherwise the power of two that the fitted
        order predicts, marked as extrapolated; None where the errors do not shrink, or not before `MAX_RES` pixels.

        Parameters
        ----------
        accuracy
            Largest absolute error, such as 0.01 for one percent.
        quantity
            One of `QUANTITIES`.

        Raises
        ------
        InputError
            There is no such quantity, or ``accuracy`` is not a positive number.
        """
        if quantity not in QUANTITIES:
            raise InputError(f"quantity is {quantity!r}; it must be one of {', '.join(QUANTITIES)}")
        if not (math.isfinite(accuracy) and accuracy > 0):
            raise InputError(f"accuracy is {accuracy!r}; it must be a positive number, such as 0.01 for one percent")
        best = None
        for row in reversed(self.rows):
            error = abs(getattr(row, QUANTITIES[quantity]))
            if error > accuracy:
                break
            best = Recommendation(row.res, error, False)
        return best or self._predicted(accuracy, self.orders[quantity])

    def _predicted(self, accuracy: float, order: Order | None) -> Recommendation | None:
        if order is None or order.order <= 0:
            return None
        res = 1 << self.rows[-1].res.bit_length()  # beyond all that were tested
        while res <= MAX_RES:
            error = order.error(self.slice.pixel_size(res))
            if error <= accuracy:
                return Recommendation(res, error, True)
            res *= 2
        return None

    def summary(self) -> dict[str, Any]:
        """Everything that was measured, in plain numbers, as in the command's JSON (``slices[i]``)."""
        return {
            "slice": {
                "description": self.slice.description,
                "half_width": self.slice.half_width,
                "anchors": self.slice.anchors.tolist(),
            },
            "regions": len(self.exact.regions),
            "domain_area": self.slice.domain_area,
            "boundary": {"length": self.exact.boundary_length},
            "resolutions": [row.to_dict() for row in self.rows],
            "orders": {
                quantity: None if fit is None else {"order": fit.order, "resolutions": list(fit.resolutions)}
                for quantity, fit in self.orders.items()
            },
            "warnings": self._warnings(),
            "seconds": self.seconds,
        }

    def _warnings(self) -> list[str]:
        unexplained = [row for row in self.rows if row.spurious_unexplained]
        below = [row for row in self.rows if row.lower_violations]
        warnings = []
        if unexplained:
            count = max(row.spurious_unexplained for row in unexplained)
            warnings.append(
                f"The grid has patterns that no polygon has and that rounding does not explain (up to {count} at one "
                "resolution): one of the two engines is wrong here. Please report it with the network and the slice."
            )
        if below:
            count, excess = max((row.lower_violations, row.lower_excess) for row in below)
            warnings.append(
                f"Up to {count} regions are smaller than the lower end of their area bracket (by {excess:.3g} pixels): "
                "one of the two engines is wrong here. Please report it with the network and the slice."
            )
        return warnings

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one line a resolution to a ``.csv`` file, whole or not at all; see `Accuracy.flat` for the columns.

        Floats have all their digits, truth values are ``true`` or ``false``, and what does not exist (the errors of no
        regions) is an empty field.

        Raises
        ------
        InputError
            ``path`` has another suffix.
        RegiongridError
            The file cannot be written.
        """
        if Path(path).suffix.lower() != ".csv":
            raise InputError(f"a comparison is written to a .csv file, got {os.fspath(path)!r}")
        rows = [row.flat() for row in self.rows]
        with atomic_path(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _field(value) for name, value in row.items()} for row in rows)

    def plot(self, path: str | os.PathLike[str] | None = None, *, res: int | None = None) -> Figure:
        """What the grid misses, and errors against resolution; written to ``path`` if given.

        ``res``: the grid that is drawn; see `regiongrid.comparison_plot.plot_comparison`.
        """
        from regiongrid.comparison_plot import plot_comparison

        return plot_comparison(self, path, res=res)


def _field(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


class Options(TypedDict, total=False):
    """Keyword options of `compare`; their meaning and defaults stand there."""

    sampling: str
    dtype: str
    backend: str
    device: str | torch.device
    threads: int | None
    max_memory: int | None
    seed: int
    progress: Callable[[int, float], None] | None


@overload
def compare(
    network: Network | nn.Module | str | Path,
    slices: Slice,
    resolutions: Sequence[int] = ...,
    **options: Unpack[Options],
) -> Comparison: ...


@overload
def compare(
    network: Network | nn.Module | str | Path,
    slices: Sequence[Slice],
    resolutions: Sequence[int] = ...,
    **options: Unpack[Options],
) -> list[Comparison]: ...


def compare(
    network: Network | nn.Module | str | Path,
    slices: Slice | Sequence[Slice],
    resolutions: Sequence[int] = RESOLUTIONS,
    *,
    sampling: str = "adaptive",
    dtype: str = "auto",
    backend: str = "auto",
    device: str | torch.device = "auto",
    threads: int | None = None,
    max_memory: int | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Comparison | list[Comparison]:
    """Measure how accurate the grid is: the exact regions once, estimates at every resolution, joined by pattern.

    A spurious pattern (on the grid, but of no polygon) is explained by rounding if, at a pixel that has it, decisions
    lie within 128 units of float64 rounding of their threshold, and deciding some of them the other way gives the
    pattern of a polygon. That happens where a pixel centre lies on a boundary: there three lines that meet in a point,
    or a line on which two units switch, have patterns of their own that cover no area.

    Parameters
    ----------
    network
        A `Network`, a module or a checkpoint file; see `load_network` for what a module or a file needs.
    slices
        One `Slice` (the result is one `Comparison`) or a sequence (a list of them).
    resolutions
        Pixels along a side; order and repetitions do not matter.
    sampling, dtype, backend, device
        As in `estimate`.
    threads, max_memory, seed
        As in `estimate` and `exact`.
    progress
        Called with the slice's number and the share of the work that is done.

    Raises
    ------
    MemoryLimitError
        The largest image does not fit (before any work), or the polygons do not.
    UnsupportedOperatorError
        A breakpoint jumps at its threshold, which polygons cannot follow.
    InputError
        A choice that does not exist, or a slice that does not fit the network.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> comparison = compare(net, Slice.square(10.0), (16, 32, 64))
    >>> [(row.res, row.regions_grid, row.missed) for row in comparison.rows]
    [(16, 6, 1), (32, 7, 0), (64, 7, 0)]
    """
    chosen = select(backend, device, network_device=weights_device(network))
    check_dtype(dtype, chosen)
    net = load_network(network)
    wanted = [slices] if isinstance(slices, Slice) else list(slices)
    if not wanted:
        raise InputError("no slice was given; pass at least one")
    sides = _sides(resolutions)
    check_memory(sides[-1], sampling, "kernels", max_memory, chosen.device)
    shared: dict[str, Any] = {"threads": threads, "max_memory": max_memory, "seed": seed}
    grid: dict[str, Any] = {"sampling": sampling, "dtype": dtype, "backend": chosen.backend, **shared}
    grid["device"] = chosen.device
    done = [
        _one(net, slice_, sides, shared, grid, None if progress is None else partial(progress, number))
        for number, slice_ in enumerate(wanted)
    ]
    return done[0] if isinstance(slices, Slice) else done


def _sides(resolutions: Sequence[int]) -> list[int]:
    sides = list(resolutions)
    for res in sides:
        check_whole("a resolution", res, 1, MAX_RES, of="pixels")
    if not sides:
        raise InputError("no resolution was given; pass at least one, such as (256, 512, 1024)")
    return sorted({int(res) for res in sides})


def _one(
    net: Network,
    slice_: Slice,
    sides: list[int],
    shared: dict[str, Any],
    grid: dict[str, Any],
    progress: Callable[[float], None] | None,
) -> Comparison:
    tell = progress or (lambda share: None)
    coarsest = estimate(net, slice_, sides[0], **grid)  # first, because it checks every option in no time
    exact = find_polygons(net, slice_, **shared, progress=lambda _, share: tell(_EXACT_SHARE * share))
    folded = restrict(net.program, slice_)
    rows, missed, work = [], {}, sum(sides)
    done = 0.0

    def grid_share(start: float, size: float) -> Callable[[int, float], None]:
        return lambda _, share: tell(_EXACT_SHARE + (1 - _EXACT_SHARE) * (start + size * share) / work)

    for res in sides:
        found = coarsest if res == sides[0] else estimate(net, slice_, res, **grid, progress=grid_share(done, res))
        accuracy, rows_missed = measure_accuracy(exact, found, folded, seed=shared["seed"])
        rows.append(accuracy)
        missed[res] = rows_missed
        done += res
        del found  # its image would stay in memory beside the next one
    seconds = {"exact": sum(exact.seconds.values()), "grid": sum(row.seconds_grid for row in rows)}
    return Comparison(net, slice_, exact, tuple(rows), seconds, missed, grid)


def measure_accuracy(
    exact: Exact, found: Estimate, folded: SliceProgram, *, seed: int = 0
) -> tuple[Accuracy, NDArray[np.intp]]:
    """Join an estimate with the exact regions of its slice.

    Parameters
    ----------
    exact, found
        Of the same network and slice, with the hash keys of ``seed``.
    folded
        The network on the slice, to look into spurious patterns.

    Returns
    -------
    accuracy
        What the grid gets wrong.
    missed
        Rows of the exact table without a pixel, ascending.
    """
    truth, grid = exact.regions, found.regions
    _, in_grid, in_truth = np.intersect1d(grid.pattern, truth.pattern, assume_unique=True, return_indices=True)
    missed = np.setdiff1d(np.arange(len(truth)), in_truth, assume_unique=True)
    spurious = np.setdiff1d(grid.pattern, truth.pattern, assume_unique=True)
    rounding = _explained_by_rounding(found, spurious, truth.pattern, folded, seed) if spurious.size else 0
    pixel_area = found.slice.pixel_size(found.res) ** 2
    summary, left_out = found.summary(), truth.area[missed] / pixel_area
    matched_truth, matched_grid = truth.take(in_truth), grid.take(in_grid)
    lower = matched_grid.area_lower * (1 - BRACKET_TOLERANCE) - matched_truth.area
    upper = matched_truth.area - matched_grid.area_upper * (1 + BRACKET_TOLERANCE)
    accuracy = Accuracy(
        res=found.res,
        pixel_size=found.slice.pixel_size(found.res),
        regions_exact=len(truth),
        regions_grid=len(grid),
        matched=in_truth.size,
        missed=missed.size,
        spurious=spurious.size,
        spurious_rounding=rounding,
        spurious_unexplained=spurious.size - rounding,
        count_error=_relative(len(grid), len(truth)),
        count_extrapolated_error=_relative(summary["regions_extrapolated"], len(truth)),
        extrapolation_trustworthy=summary["extrapolation_trustworthy"],
        components_error=_relative(summary["components"], len(truth)),
        missed_area_share=float(truth.area[missed].sum()) / found.slice.domain_area,
        missed_area_median=float(np.median(left_out)) if missed.size else None,
        missed_area_max=float(left_out.max()) if missed.size else None,
        boundary_error=_relative(summary["boundary"]["length"], exact.boundary_length),
        boundary_extrapolated_error=_relative(summary["boundary"]["length_extrapolated"], exact.boundary_length),
        lower_violations=int(np.count_nonzero(lower > 0)),
        lower_excess=_excess(lower, pixel_area),
        upper_violations=int(np.count_nonzero(upper > 0)),
        upper_excess=_excess(upper, pixel_area),
        evaluations=found.image.evaluations,
        seconds_grid=sum(found.seconds.values()),
        seconds_exact=sum(exact.seconds.values()),
        sizes=tuple(_size_class(least, most, matched_truth, matched_grid) for least, most in SIZE_CLASSES),
    )
    return accuracy, missed


def _relative(value: float, truth: float) -> float:
    """value / truth - 1; both are zero where a slice has a single region and so no boundary."""
    return 0.0 if value == truth else math.inf if truth == 0 else value / truth - 1


def _excess(beyond: NDArray[np.float64], pixel_area: float) -> float:
    return max(0.0, float(beyond.max(initial=0.0)) / pixel_area)


def _size_class(least: int, most: int | None, truth: RegionTable, grid: RegionTable) -> SizeClass:
    # An area of zero (of a polygon that float64 cannot resolve) has no relative error.
    chosen = (grid.pixels >= least) & (grid.pixels <= (most or math.inf)) & (truth.area > 0)
    count = int(np.count_nonzero(chosen))
    if count == 0:
        return SizeClass(least, most, 0)
    area = np.abs(grid.area[chosen] / truth.area[chosen] - 1)
    eccentricity = np.abs(grid.eccentricity[chosen] - truth.eccentricity[chosen])
    numbers = [float(n) for errors in (area, eccentricity) for n in (*np.percentile(errors, (50, 95)), errors.max())]
    return SizeClass(least, most, count, *numbers)


def _explained_by_rounding(
    found: Estimate, spurious: NDArray[np.uint64], known: NDArray[np.uint64], folded: SliceProgram, seed: int
) -> int:
    """How many of these patterns turn into known ones when decisions too close to call are made the other way."""
    patterns, uv = _one_pixel_each(found, spurious)
    explained = 0
    for pattern, masks in zip(patterns, _close_decisions(folded, uv, seed)):
        basis = _independent(masks)
        # Too many free bits reach some known pattern anyway: then that the point lies on a boundary has to do.
        explained += len(basis) > _MOST_CHECKED or _reaches(known ^ pattern, basis)
    return explained


def _one_pixel_each(found: Estimate, patterns: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """The patterns in ascending order, and the centre (u, v) of a pixel of each; [n], [n, 2]."""
    hashes, centres = found.image.hashes, found.slice.pixel_centres(found.res)
    rows = max(1, _BAND_PIXELS // found.res)
    pixels = np.concatenate(
        [
            top * found.res + np.flatnonzero(np.isin(hashes[top : top + rows], patterns))
            for top in range(0, found.res, rows)
        ]
    )
    unique, first = np.unique(hashes.reshape(-1)[pixels], return_index=True)
    row, column = np.divmod(pixels[first], found.res)
    return unique, np.stack([centres[column], centres[row]], axis=1)


def _close_decisions(folded: SliceProgram, uv: NDArray[np.float64], seed: int) -> Iterator[list[int]]:
    """For every point, what the other outcome of each decision within rounding of its threshold does to the hash."""
    kappa = np.full(len(folded.stages), ARBITER_KAPPA)
    evaluator = PatternEvaluator(folded, torch.float64, kappa, arbiter=True, seed=seed)
    width = SAFETY * ARBITER_KAPPA * evaluator.unit
    for start in range(0, len(uv), evaluator.chunk):
        points = uv[start : start + evaluator.chunk]
        masks: list[list[int]] = [[] for _ in points]

        def observe(k: int, z: Tensor, size: Tensor) -> None:
            for point, mask in _close_in_stage(folded.stages[k], z.numpy(), (width * size).numpy(), seed):
                masks[point].append(mask)  # noqa: B023 - called at once

        evaluator(torch.from_numpy(points), observe=observe)
        yield from masks


def _close_in_stage(
    stage: Stage, z: NDArray[np.float64], band: NDArray[np.float64], seed: int
) -> Iterator[tuple[int, int]]:
    """(point, change of the hash) of the decisions of one stage whose outcome is within the band; z, band [B, n]."""
    bend = stage.breakpoint
    keys = decision_keys(stage.first_decision, bend.decisions, seed)
    if isinstance(bend, Maximum):
        yield from _close_winners(bend, z, band, keys.reshape(bend.windows.shape))
        return
    for threshold, key in zip(bend.thresholds, keys.reshape(bend.thresholds.shape)):
        for point, unit in zip(*np.nonzero(np.abs(z - threshold) <= band)):
            yield int(point), int(key[unit])


def _close_winners(
    bend: Maximum, z: NDArray[np.float64], band: NDArray[np.float64], keys: NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    winners = bend.winners(torch.from_numpy(z)).numpy()  # [B, units]
    units = np.arange(bend.units)
    best = bend.windows[units, winners]
    rows = np.arange(len(z))[:, None]
    for slot in range(bend.windows.shape[1]):
        entry = bend.windows[:, slot]
        gap = np.abs(z[rows, best] - z[:, entry])
        close = (gap <= band[rows, best] + band[:, entry]) & (entry >= 0)
        for point, unit in zip(*np.nonzero(close)):
            yield int(point), int(keys[unit, slot] ^ keys[unit, winners[point, unit]])


def _independent(masks: Sequence[int]) -> list[int]:
    """A basis of what XORs of the masks reach: leading bits differ, the highest first (elimination over GF(2))."""
    basis: list[int] = []
    for mask in masks:
        for vector in basis:
            mask = min(mask, mask ^ vector)
        if mask:
            basis = sorted([*basis, mask], reverse=True)
    return basis


def _reaches(hashes: NDArray[np.uint64], basis: Sequence[int]) -> bool:
    """Whether the XOR of some of the basis vectors equals one of the hashes."""
    rest = hashes
    for vector in basis:
        rest = np.minimum(rest, rest ^ np.uint64(vector))
    return bool((rest == 0).any())
