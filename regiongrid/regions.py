"""From a pattern image to the table of its regions, the totals of the slice and their summary.

A pattern image ``hashes`` is a C-contiguous uint64 array ``[H, W]`` with one pattern hash a pixel. Rows follow
v, columns follow u; with pixel size p the centre of column j lies at ``u = (2 j + 1 - W) p / 2``, and the same for v.
So the domain is ``|u| <= W p / 2``, ``|v| <= H p / 2``, and row 0 lies at its lower edge. Equal hash means same region.

Lengths and areas are in input units (the slice's basis is orthonormal), never in pixels unless the name says so.

**Boundary length on the grid.** Cauchy and Crofton: the length of a curve is the mean over all directions of how often
it crosses a family of parallel lines, times their spacing, times pi/2. With the four directions of the pixel grid, of
spacing p (rows, columns) and p / sqrt(2) (diagonals), the length between two regions is

    (pi / 8) p (edges + diagonals / sqrt(2) + 3/2 rim_edges)

where ``edges`` counts the 4-neighbour pixel pairs that the boundary separates and ``diagonals`` the diagonal pairs.
Away from the domain's border this is ``skimage.measure.perimeter_crofton(mask, directions=4)``. A straight side is off
by at most 5.2% (along an axis or a diagonal it is too short, between them up to 2.6% too long); boundaries of all
directions together are right on average. Two boundaries between the same two pixel centres count as one, so the length
is too short where regions are thinner than a pixel.

The last term is for the *rim*, the half-pixel strip between the outermost pixel centres and the domain's border, which
no diagonal pair and only one of the two families of edges crosses. A boundary that reaches the border parts two pixels
along it (a rim edge). If boundaries meet the border in all directions alike, the stub in the rim crosses on average 1/2
edge of the other family and sqrt(2) diagonals: together 1/2 + sqrt(2)/sqrt(2) = 3/2. Without that term every boundary
that ends at the border loses 0.59 pixels on average (0.6% of the total length on 256 x 256 pixels).

**Area bracket.** A cell is a 2 x 2 block of pixels. Activation regions are convex, so a cell whose four pixels agree
lies in that region with the whole square between the four centres: the lower end of the bracket is certain. The upper
end adds all cells and rim cells that have a pixel in the region; only a part of the region that leaves its last pixel
through a gap narrower than one pixel can exceed it.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regiongrid.errors import InputError
from regiongrid.files import atomic_path, existing_file
from regiongrid.kernels.components import label_components, number_regions
from regiongrid.kernels.moments import RegionSums, batch_sums, region_sums
from regiongrid.kernels.threads import spans

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_ROWS = 1 << 16
_CHUNK_PAIRS = 1 << 22
_RIM_WEIGHT = 1.5

SUBPIXEL_PIXELS = 4
"""A region of at most this many pixels is called sub-pixel: its shape is not resolved."""
SUBPIXEL_SHARE = 0.05
"""A larger share of sub-pixel regions is worth a warning."""
BROKEN_SHARE = 0.01
"""A larger share of regions that show in several pieces is worth a warning."""
PIXELS_PER_REGION = 50
"""Fewer pixels a region, on average, mean that the count is ruled by the grid."""
TRUSTED_GAP = 0.15
"""Largest ``(N(R) - N(R/2)) / N(R)`` at which the extrapolated count is trusted.

In trials on arrangements of 60 to 300 random lines, even or crowded, the extrapolated count was within 1.5% of the
truth (3% if crowded) below this gap; at a gap of 0.3 it could be 90% too low.
"""
WIDE_BRACKET = 0.5
"""A larger share of the domain in mixed cells is worth a warning."""


class Column(NamedTuple):
    """Unit, numpy type and meaning of a column of the region table."""

    unit: str
    dtype: str
    meaning: str


COLUMNS: dict[str, Column] = {
    "pattern": Column("-", "uint64", "Hash of the activation pattern; the key of the region in both engines."),
    "pixels": Column("pixels", "int64", "Number of pixels whose centre lies in the region (grid)."),
    "area": Column("input units^2", "float64", "Area. Grid: pixels times pixel area. Exact: shoelace formula."),
    "area_lower": Column(
        "input units^2", "float64", "Certain lower end of the area: cells with all four corners in the region (grid)."
    ),
    "area_upper": Column(
        "input units^2",
        "float64",
        "Upper end of the area: all cells with a corner in the region, the half-pixel rim of the domain included; a "
        "part that leaves its last pixel through a gap narrower than one pixel can exceed it (grid).",
    ),
    "centroid_u": Column("input units", "float64", "Centroid along u. Grid: mean of the pixel centres."),
    "centroid_v": Column("input units", "float64", "Centroid along v. Grid: mean of the pixel centres."),
    "perimeter": Column(
        "input units",
        "float64",
        "Length of the region's outline, its sides on the domain's border included. Grid: four-direction Crofton "
        "estimate, plus the border's pixel sides. Exact: sum of the side lengths.",
    ),
    "eccentricity": Column(
        "-",
        "float64",
        "sqrt(1 - l2/l1), l1 >= l2 the eigenvalues of the second central moments: 0 for a disc, 1 for a line. Grid: of "
        "the pixel centres, as skimage.measure.regionprops; one pixel has 0, a straight line of pixels has 1.",
    ),
    "elongation": Column(
        "-", "float64", "Largest over smallest distance of all vertex pairs, max / (min + 1e-10) (exact)."
    ),
    "sides": Column("-", "int64", "Number of straight sides that are longer than rounding leaves of them (exact)."),
    "inradius": Column("input units", "float64", "Radius of the largest inscribed circle (exact)."),
    "boundary_pixels": Column(
        "pixels",
        "int64",
        "Pixels with a 4-neighbour in another region, as skimage.segmentation.find_boundaries (grid).",
    ),
    "components": Column(
        "-", "int64", "4-connected pieces on the grid; more than 1 if the region is thinner than a pixel somewhere."
    ),
    "neighbours": Column("-", "int64", "Number of regions that share an edge. Grid: that have a 4-neighbour pixel."),
    "touches_border": Column("-", "bool", "Whether the region reaches the border of the domain."),
    "depth": Column("-", "int64", "Number, from 1, of the last layer that cut the region; 0 if none did (exact)."),
}
"""Every column that the engines fill: unit, type and meaning. A table may hold further ones."""


class RegionTable:
    """One row a region, one named column a property (see :data:`COLUMNS`).

    The grid engine lists the regions in raster order of first appearance, so row k is region k of
    :func:`label_image`. Columns are read-only arrays of equal length, reached as ``table["area"]`` or ``table.area``.

    Parameters
    ----------
    columns
        Name to 1-D array; ``pattern`` is required. A column named in :data:`COLUMNS` gets the type given there.

    Raises
    ------
    InputError
        If a column is not 1-D, the lengths differ, a type does not fit, or ``pattern`` is missing.

    Examples
    --------
    >>> table = RegionTable({"pattern": np.array([7, 3], np.uint64), "area": [0.25, 0.75]})
    >>> len(table), table.columns, float(table.area.sum())
    (2, ('pattern', 'area'), 1.0)
    >>> table.sort_by("area", descending=True)["pattern"].tolist()
    [3, 7]
    """

    def __init__(self, columns: Mapping[str, ArrayLike]) -> None:
        if "pattern" not in columns:
            raise InputError(f"a region table needs the column 'pattern', got {sorted(columns)}")
        self._columns = {name: _column(name, values) for name, values in columns.items()}
        sizes = {name: values.size for name, values in self._columns.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"the columns of a region table must have equal lengths, got {sizes}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in the order of the file."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return int(self._columns["pattern"].size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            return self._columns[name]
        except KeyError:
            raise InputError(f"the region table has no column {name!r}; it has {', '.join(self._columns)}") from None

    def __getattr__(self, name: str) -> NDArray[Any]:
        # looked up in __dict__, because unpickling asks for attributes before there are columns
        columns = self.__dict__.get("_columns", {})
        if name not in columns:
            raise AttributeError(f"the region table has no column {name!r}; it has {', '.join(columns)}")
        values: NDArray[Any] = columns[name]
        return values

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._columns})

    def __repr__(self) -> str:
        lines = [f"RegionTable: {len(self)} regions, {len(self._columns)} columns"]
        lines += [f"  {name:<16} {_describe(name, values)}" for name, values in self._columns.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, NDArray[Any]]:
        """The columns by name, as ``pandas.DataFrame`` takes them."""
        return dict(self._columns)

    def with_columns(self, **columns: ArrayLike) -> RegionTable:
        """A table with further or replaced columns."""
        return RegionTable({**self._columns, **columns})

    def take(self, rows: ArrayLike) -> RegionTable:
        """A table of the given rows: indices in the wanted order, or a boolean mask."""
        chosen = np.asarray(rows)
        return RegionTable({name: values[chosen] for name, values in self._columns.items()})

    def sort_by(self, name: str, *, descending: bool = False) -> RegionTable:
        """A table with its rows ordered by a column; equal values keep their order."""
        values = self[name]
        if descending:
            return self.take(values.size - 1 - np.argsort(values[::-1], kind="stable")[::-1])
        return self.take(np.argsort(values, kind="stable"))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the table to ``path``: Parquet if it ends in ``.parquet``, CSV if it ends in ``.csv``.

        A CSV file holds every float64 with all its digits and patterns as ``0x`` and 16 hexadecimal digits. The file
        appears under its name only when it is complete; what stood there before stays if writing fails.

        Raises
        ------
        InputError
            If the suffix is neither, or Parquet is asked for and pyarrow is missing.
        RegiongridError
            If the file cannot be written: no such folder, no permission, a full disk.
        """
        write = {".parquet": _write_parquet, ".csv": _write_csv}.get(Path(path).suffix.lower())
        if write is None:
            raise InputError(f"a region table is written to a .parquet or .csv file, got {os.fspath(path)!r}")
        with atomic_path(path) as temporary:
            write(self._columns, temporary)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RegionTable:
        """Read a table that :meth:`write` has written.

        Raises
        ------
        InputError
            If the file does not exist or is no region table, or it is Parquet and pyarrow is missing.
        """
        read = {".parquet": _read_parquet, ".csv": _read_csv}.get(Path(path).suffix.lower())
        if read is None:
            raise InputError(f"a region table is read from a .parquet or .csv file, got {os.fspath(path)!r}")
        return cls(read(existing_file(path, "region table")))


@dataclass(frozen=True, eq=False)
class Adjacency:
    """The unordered pairs of regions that meet on the grid, ascending by ``(first, second)``; m pairs.

    ``first < second`` are rows of the region table.
    """

    first: NDArray[np.int32]  # [m]
    second: NDArray[np.int32]  # [m]
    edges: NDArray[np.int32]  # [m] 4-neighbour pixel pairs between the two regions
    diagonals: NDArray[np.int32]  # [m] diagonal-neighbour pixel pairs between them
    rim_edges: NDArray[np.int32]  # [m] the 4-neighbour pairs along the domain's border, once for each border
    pixel_size: float  # input units

    def __len__(self) -> int:
        return int(self.first.size)

    def lengths(self) -> NDArray[np.float64]:
        """Boundary length between the two regions of each pair, input units, shape ``[m]``.

        (pi / 8) p (edges + diagonals / sqrt(2) + 3/2 rim_edges), the module's Crofton estimate.
        """
        lengths: NDArray[np.float64] = _crofton(self.edges, self.diagonals, self.rim_edges, self.pixel_size)
        return lengths


@dataclass(frozen=True, eq=False)
class ImageTotals:
    """What is measured on the pattern image as a whole."""

    shape: tuple[int, int]  # (H, W)
    pixel_size: float  # input units
    regions: int  # distinct patterns
    regions_half_resolution: int  # distinct patterns among every second pixel of every second row
    components: int  # 4-connected pieces of all regions
    boundary_length: float  # input units; each shared boundary once, the domain's own border not counted
    boundary_length_half_resolution: float  # the same from every second pixel of every second row
    boundary_pixels: int  # pixels with a 4-neighbour in another region
    mixed_share: float  # share of the domain's area outside all pure cells (the rim is outside)
    adjacency: Adjacency

    @property
    def domain_area(self) -> float:
        """Area of the domain, input units squared."""
        return self.shape[0] * self.shape[1] * self.pixel_size**2


def measure_regions(
    hashes: NDArray[np.uint64],  # [H, W]
    pixel_size: float,
    *,
    method: str = "kernels",
    threads: int | None = None,
) -> tuple[RegionTable, ImageTotals]:
    """Measure every region of a pattern image.

    Parameters
    ----------
    hashes
        Pattern image, C-contiguous uint64, shape ``[H, W]``.
    pixel_size
        Distance of adjacent pixel centres, input units.
    method
        ``"kernels"`` (one pass in compiled code) or ``"skimage"``: area, centroid, eccentricity, perimeter, boundary
        pixels and components come from scikit-image, a fraction of a millisecond a region, and the rest from plain
        numpy. The two agree, but for the perimeter of regions at the border of the domain, where scikit-image estimates
        the sides on the border too, which are known exactly.
    threads
        Worker threads of the kernels; by default all cores this process may use. No result depends on it.

    Returns
    -------
    table
        One row a region in raster order of first appearance.
    totals
        The image as a whole, with the pairs of regions that meet.

    Raises
    ------
    InputError
        For an unusable image, a pixel size that is not a positive number, or an unknown method.

    Examples
    --------
    >>> hashes = np.array([[7, 7, 3], [7, 7, 3]], dtype=np.uint64)
    >>> table, totals = measure_regions(hashes, 0.5, method="skimage")
    >>> table.area.tolist(), table.centroid_u.tolist(), totals.regions
    ([1.0, 0.5], [-0.25, 0.5], 2)
    """
    if method not in ("kernels", "skimage"):
        raise InputError(f"method must be 'kernels' or 'skimage', got {method!r}")
    backend = "cpu" if method == "kernels" else "reference"
    sums = region_sums(hashes, backend=backend, threads=threads)
    coarse = region_sums(np.ascontiguousarray(hashes[::2, ::2]), backend=backend, threads=threads)
    columns = _skimage_columns(hashes, pixel_size) if method == "skimage" else {}
    return _table_and_totals(sums, coarse, hashes.shape, pixel_size, columns)


def measure_images(
    images: Tensor,  # [S, H, W] int64
    pixel_sizes: Sequence[float],  # [S]
) -> list[tuple[RegionTable, ImageTotals]]:
    """Measure every region of pattern images that lie on a GPU, with the Triton kernels, all images together.

    The sums are made on the device and come to the host once; what is not an integer is computed there, so the tables
    are those of `measure_regions` to the last bit.

    Parameters
    ----------
    images
        Pattern hashes, the bits of the uint64 ones, contiguous.
    pixel_sizes
        Distance of adjacent pixel centres of each image, input units.

    Raises
    ------
    InputError
        For unusable images, or a pixel size that is not a positive number.
    """
    sums, coarse = batch_sums(images), batch_sums(images[:, ::2, ::2].contiguous())
    shape = (images.shape[1], images.shape[2])
    return [_table_and_totals(sums.of(k), coarse.of(k), shape, size, {}) for k, size in enumerate(pixel_sizes)]


def _table_and_totals(
    sums: RegionSums,
    coarse: RegionSums,  # of every second pixel of every second row
    shape: tuple[int, int],
    pixel_size: float,
    columns: Mapping[str, NDArray[Any]],  # in place of those made of the sums
) -> tuple[RegionTable, ImageTotals]:
    if not (math.isfinite(pixel_size) and pixel_size > 0):
        raise InputError(f"pixel_size must be a positive number, got {pixel_size!r}")
    adjacency = _adjacency(sums, pixel_size)
    table = RegionTable(_table_columns(sums, adjacency, shape) | dict(columns))
    totals = ImageTotals(
        shape=shape,
        pixel_size=pixel_size,
        regions=len(table),
        regions_half_resolution=int(np.count_nonzero(sums.coarse_pixels)),
        components=int(table["components"].sum()),
        boundary_length=_total_length(adjacency),
        boundary_length_half_resolution=_total_length(_adjacency(coarse, 2 * pixel_size)),
        boundary_pixels=int(table["boundary_pixels"].sum()),
        mixed_share=1.0 - int(sums.pure_cells.sum(dtype=np.int64)) / (shape[0] * shape[1]),
        adjacency=adjacency,
    )
    return table, totals


def _adjacency(sums: RegionSums, pixel_size: float) -> Adjacency:
    pairs = (sums.pair_first, sums.pair_second, sums.pair_edges, sums.pair_diagonals, sums.pair_rim_edges)
    return Adjacency(*pairs, pixel_size)


def label_image(hashes: NDArray[np.uint64], *, threads: int | None = None) -> NDArray[np.int32]:
    """Table row of each pixel's region, int32, shape ``[H, W]``; ``table.pattern[label_image(hashes)]`` is ``hashes``.

    Raises
    ------
    InputError
        For an unusable image.
    """
    return number_regions(hashes, threads=threads)[0]


def component_image(hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Number of each pixel's 4-connected component, in raster order of first appearance, int32, shape ``[H, W]``.

    Raises
    ------
    InputError
        For an unusable image.
    """
    return label_components(hashes)[0]


def boundary_by_layer(
    adjacency: Adjacency,
    prefix: NDArray[np.uint64],  # [L, n]
) -> list[dict[str, int | float]]:
    """Regions and boundary length when only the decisions of the first 1, 2, ..., L layers count.

    Merging all regions with equal first decisions keeps exactly those boundaries across which they differ. So the
    length is that of the coarser pattern image itself.

    Parameters
    ----------
    adjacency
        The pairs of regions that meet.
    prefix
        ``prefix[l, k]``: hash of the decisions of the layers 1 to l + 1 in region k (row k of the table).

    Returns
    -------
    list of dict
        For each layer ``layer`` (1-based), ``regions`` (distinct prefixes) and ``boundary_length`` (input units).

    Raises
    ------
    InputError
        If ``prefix`` is not 2-D or has fewer regions than the pairs name.
    """
    regions = int(adjacency.second.max()) + 1 if len(adjacency) else 1
    if prefix.ndim != 2 or prefix.shape[1] < regions:
        raise InputError(
            f"prefix must have shape [layers, regions] with at least {regions} regions, got {prefix.shape}"
        )
    rows: list[dict[str, int | float]] = []
    for layer, values in enumerate(prefix, start=1):
        counts = np.zeros(3, np.int64)
        for start, stop in spans(len(adjacency), _CHUNK_PAIRS):
            part = slice(start, stop)
            apart = values[adjacency.first[part]] != values[adjacency.second[part]]
            counts += [column[part].sum(where=apart, dtype=np.int64) for column in _pair_counts(adjacency)]
        length = float(_crofton(counts[0], counts[1], counts[2], adjacency.pixel_size))
        rows.append({"layer": layer, "regions": int(np.unique(values).size), "boundary_length": length})
    return rows


def summarise(
    table: RegionTable,
    totals: ImageTotals | None = None,
    *,
    domain_area: float | None = None,
    boundary_length: float | None = None,
) -> dict[str, Any]:
    """Statistics of a slice, in plain Python numbers that JSON can hold.

    Parameters
    ----------
    table
        The regions of the slice, from either engine.
    totals
        The totals of the grid engine; None for the exact engine.
    domain_area, boundary_length
        Input units squared, input units. Taken from ``totals`` where not given.

    Returns
    -------
    dict
        ``regions``, ``components``, ``domain_area``; for area, eccentricity, perimeter, elongation, sides and inradius,
        as far as the table has them, a dict of ``mean``, ``median``, ``std`` (population), ``p5``, ``p95``, and,
        weighted by area, ``weighted_mean`` and ``weighted_median`` (for area also ``total``);
        ``boundary`` with ``length``,
        ``density`` (length / domain area) and, on the grid, ``pixels`` and ``length_extrapolated`` = 2 L(R) - L(R/2).

        On the grid also ``mixed_share``; ``regions_half_resolution``, the count N(R/2) from every second pixel;
        ``regions_extrapolated`` = 2 N(R) - N(R/2), and ``extrapolation_trustworthy``; ``subpixel_share`` (regions of at
        most 4 pixels), ``broken_share`` (regions in several pieces), ``subpixel_warning`` (many sub-pixel regions, or
        few pixels a region) and ``warnings``, a list of sentences.

    Raises
    ------
    InputError
        If the table is empty, or neither ``totals`` nor ``domain_area`` and ``boundary_length`` are given.

    Notes
    -----
    Misses about halve with each doubling of the resolution, hence 2 N(R) - N(R/2). It is marked trustworthy if N(R/2)
    is at most 15% below N(R) (see :data:`TRUSTED_GAP`). No grid can see regions that crowd inside a single pixel.

    Two boundaries between the same two pixel centres count once, so the length is too short by a share that also about
    halves with each doubling, hence ``length_extrapolated``.
    """
    if totals is not None:
        domain_area = totals.domain_area if domain_area is None else domain_area
        boundary_length = totals.boundary_length if boundary_length is None else boundary_length
    if domain_area is None or boundary_length is None:
        raise InputError("summarise needs the totals of a pattern image, or both domain_area and boundary_length")
    if len(table) == 0:
        raise InputError("summarise needs at least one region, got an empty table")
    weights = table["area"]
    summary: dict[str, Any] = {
        "regions": len(table),
        "components": int(table["components"].sum()) if "components" in table else len(table),
        "domain_area": float(domain_area),
    }
    for name in ("area", "eccentricity", "perimeter", "elongation", "sides", "inradius"):
        if name in table:
            summary[name] = _statistics(table[name], weights)
    summary["area"]["total"] = float(weights.sum())
    summary["boundary"] = {"length": float(boundary_length), "density": float(boundary_length / domain_area)}
    if totals is not None:
        summary["boundary"]["length_extrapolated"] = 2 * boundary_length - totals.boundary_length_half_resolution
        summary["boundary"]["pixels"] = totals.boundary_pixels
        summary |= _grid_quality(table, totals)
    return summary


def _column(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"column {name!r} of a region table must be 1-D, got shape {array.shape}")
    if name in COLUMNS:
        wanted = COLUMNS[name].dtype
        if array.size and not np.can_cast(array.dtype, wanted, "same_kind"):
            raise InputError(f"column {name!r} of a region table must be {wanted}, got {array.dtype}")
        array = array.astype(wanted, copy=False)
    view = array.view()
    view.flags.writeable = False
    return view


def _describe(name: str, values: NDArray[Any]) -> str:
    unit = COLUMNS[name].unit if name in COLUMNS else "-"
    if values.size == 0:
        return f"[{unit}]"
    if name == "pattern":
        return f"0x{values[0]:016x}" + (", ..." if values.size > 1 else "")
    if values.dtype == np.bool_:
        return f"true in {int(values.sum())}"
    low, middle, high = (f"{x:.6g}" for x in (values.min(), np.median(values), values.max()))
    return f"min {low}, median {middle}, max {high}" + ("" if unit == "-" else f"  [{unit}]")


def _write_csv(columns: Mapping[str, NDArray[Any]], path: Path) -> None:
    size = next(iter(columns.values())).size
    with path.open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for start, stop in spans(size, _CHUNK_ROWS):
            writer.writerows(zip(*(_to_text(name, values[start:stop]) for name, values in columns.items())))


def _to_text(name: str, values: NDArray[Any]) -> list[str]:
    if name == "pattern":
        return [f"0x{value:016x}" for value in values.tolist()]
    if values.dtype == np.bool_:
        return ["true" if value else "false" for value in values.tolist()]
    return [repr(value) for value in values.tolist()]


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if any(len(row) != len(header) for row in rows):
            raise ValueError("its lines have different numbers of fields")
        texts = zip(*rows) if rows else [()] * len(header)
        return {name: _from_text(name, text) for name, text in zip(header, texts)}
    except (ValueError, csv.Error) as error:
        raise InputError(f"{str(path)!r} is no region table: {error}") from error


def _from_text(name: str, texts: Sequence[str]) -> NDArray[Any]:
    """Values of a CSV column. The type is that of :data:`COLUMNS`, or shows in the text: a float has a point, exponent,
    inf or nan, an integer only digits."""
    if not texts:
        return np.empty(0, COLUMNS[name].dtype if name in COLUMNS else "float64")
    if name == "pattern":
        return np.array([int(text, 16) for text in texts], dtype=np.uint64)
    if set(texts) <= {"true", "false"}:
        return np.array([text == "true" for text in texts])
    if all(text.lstrip("-").isdigit() for text in texts):
        return np.array([int(text) for text in texts])
    return np.array([float(text) for text in texts])


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "Parquet files need pyarrow; install the extra with pip install 'regiongrid[parquet]', or use a .csv file"
        ) from error
    return pyarrow


def _write_parquet(columns: Mapping[str, NDArray[Any]], path: Path) -> None:
    arrow = _pyarrow()
    arrays = [arrow.array(values) for values in columns.values()]
    fields = [
        arrow.field(name, array.type, metadata={"unit": COLUMNS[name].unit, "meaning": COLUMNS[name].meaning})
        if name in COLUMNS
        else arrow.field(name, array.type)
        for name, array in zip(columns, arrays)
    ]
    arrow.parquet.write_table(arrow.Table.from_arrays(arrays, schema=arrow.schema(fields)), path)


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    arrow = _pyarrow()
    try:
        # the file's own schema, so that a folder named like "area=1" adds no column
        table = arrow.parquet.ParquetFile(path).read()
    except arrow.ArrowException as error:
        raise InputError(f"{str(path)!r} is no region table: {error}") from error
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _crofton(edges: Any, diagonals: Any, rim_edges: Any, pixel_size: float) -> Any:
    return math.pi / 8 * pixel_size * (edges + diagonals / math.sqrt(2) + _RIM_WEIGHT * rim_edges)


def _pair_counts(adjacency: Adjacency) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    return adjacency.edges, adjacency.diagonals, adjacency.rim_edges


def _total_length(adjacency: Adjacency) -> float:
    edges, diagonals, rim_edges = (int(column.sum(dtype=np.int64)) for column in _pair_counts(adjacency))
    return float(_crofton(edges, diagonals, rim_edges, adjacency.pixel_size))


def _per_region(adjacency: Adjacency, values: NDArray[Any], regions: int) -> NDArray[np.float64]:
    """Sum of the pairs' values over each region's pairs. Sums of integers are exact in float64."""
    total = np.zeros(regions)
    for start, stop in spans(len(adjacency), _CHUNK_PAIRS):
        for end in (adjacency.first, adjacency.second):
            total += np.bincount(end[start:stop], weights=values[start:stop], minlength=regions)
    return total


def _table_columns(sums: RegionSums, adjacency: Adjacency, shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    pixel_size = adjacency.pixel_size
    pixel_area = pixel_size**2
    regions = sums.patterns.size
    half = pixel_size / 2
    return {
        "pattern": sums.patterns,
        "pixels": sums.pixels,
        "area": sums.pixels * pixel_area,
        "area_lower": sums.pure_cells * pixel_area,
        "area_upper": (sums.pure_cells + sums.mixed_cells + sums.rim_quarters / 4) * pixel_area,
        "centroid_u": half * (2 * _mean_position(sums, 0) + 1 - shape[1]),
        "centroid_v": half * (2 * _mean_position(sums, 1) + 1 - shape[0]),
        "perimeter": _perimeter(sums, adjacency),
        "eccentricity": _eccentricity(sums),
        "boundary_pixels": sums.pixels - sums.interior_pixels,
        "components": sums.components,
        "neighbours": _per_region(adjacency, adjacency.edges > 0, regions).astype(np.int64),
        "touches_border": sums.border_sides > 0,
    }


def _mean_position(sums: RegionSums, axis: int) -> NDArray[np.float64]:
    position: NDArray[np.float64] = sums.origin[:, axis] + sums.first_moments[:, axis] / sums.pixels
    return position


def _perimeter(sums: RegionSums, adjacency: Adjacency) -> NDArray[np.float64]:
    edges, diagonals, rim_edges = (
        _per_region(adjacency, column, sums.patterns.size) for column in _pair_counts(adjacency)
    )
    perimeter: NDArray[np.float64] = _crofton(edges, diagonals, rim_edges, adjacency.pixel_size)
    perimeter += sums.border_sides * adjacency.pixel_size
    return perimeter


def _eccentricity(sums: RegionSums) -> NDArray[np.float64]:
    """sqrt(1 - l2/l1) as sqrt((l1 - l2) / l1), which does not cancel for round regions; 0 for a single pixel."""
    eccentricity = np.empty(sums.patterns.size)
    for start, stop in spans(eccentricity.size, _CHUNK_ROWS):
        pixels = sums.pixels[start:stop]
        column, row = sums.first_moments[start:stop].T
        square_u, mixed, square_v = sums.second_moments[start:stop].T
        spread_u = square_u - column * column / pixels
        spread_uv = mixed - column * row / pixels
        spread_v = square_v - row * row / pixels
        difference = np.hypot((spread_u - spread_v) / 2, spread_uv)
        largest = (spread_u + spread_v) / 2 + difference
        ratio = np.divide(2 * difference, largest, out=np.zeros(pixels.size), where=pixels > 1)
        eccentricity[start:stop] = np.sqrt(np.minimum(ratio, 1.0))
    return eccentricity


def _skimage_columns(hashes: NDArray[np.uint64], pixel_size: float) -> dict[str, NDArray[Any]]:
    from skimage.measure import label, regionprops_table
    from skimage.segmentation import find_boundaries

    numbers, patterns = number_regions(hashes, backend="reference")
    labels = numbers + 1  # scikit-image takes label 0 for background
    wanted = ("area", "centroid", "eccentricity", "perimeter_crofton")
    properties = regionprops_table(labels, properties=wanted)  # type: ignore[no-untyped-call]
    pieces = label(labels, connectivity=1)  # type: ignore[no-untyped-call]
    _, first = np.unique(pieces, return_index=True)
    boundary = find_boundaries(labels, connectivity=1, mode="thick")  # type: ignore[no-untyped-call]
    height, width = hashes.shape
    half = pixel_size / 2
    return {
        "pixels": properties["area"].astype(np.int64),
        "area": properties["area"] * pixel_size**2,
        "centroid_u": half * (2 * properties["centroid-1"] + 1 - width),
        "centroid_v": half * (2 * properties["centroid-0"] + 1 - height),
        "perimeter": properties["perimeter_crofton"] * pixel_size,
        "eccentricity": properties["eccentricity"],
        "boundary_pixels": np.bincount(numbers[boundary], minlength=patterns.size),
        "components": np.bincount(numbers.ravel()[first], minlength=patterns.size),
    }


def _statistics(values: NDArray[Any], weights: NDArray[np.float64]) -> dict[str, float]:
    p5, median, p95 = np.percentile(values, (5, 50, 95))
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "std": float(values.std()),
        "p5": float(p5),
        "p95": float(p95),
        "weighted_mean": float(np.average(values, weights=weights)),
        "weighted_median": _weighted_median(values, weights),
    }


def _weighted_median(values: NDArray[Any], weights: NDArray[np.float64]) -> float:
    """Smallest value at which the regions up to it hold half of the weight."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(reached, reached[-1] / 2)]])


def _grid_quality(table: RegionTable, totals: ImageTotals) -> dict[str, Any]:
    regions = len(table)
    coarse = totals.regions_half_resolution
    subpixel = int(np.count_nonzero(table["pixels"] <= SUBPIXEL_PIXELS))
    broken = int(np.count_nonzero(table["components"] > 1))
    saturated = totals.shape[0] * totals.shape[1] < PIXELS_PER_REGION * regions and regions > 1
    trusted = regions - coarse <= TRUSTED_GAP * regions
    warnings = []
    if subpixel > SUBPIXEL_SHARE * regions:
        warnings.append(_subpixel_sentence(table, subpixel))
    if broken > BROKEN_SHARE * regions:
        warnings.append(
            f"{broken} regions ({broken / regions:.1%}) are thinner than a pixel somewhere and show in several pieces: "
            f"{totals.components} components overcount the {regions} regions."
        )
    if saturated:
        warnings.append(
            f"There are only {totals.shape[0] * totals.shape[1] / regions:.1f} pixels a region: the grid limits the "
            "count, which is a lower bound. Use a higher resolution or the exact engine."
        )
    if not trusted:
        warnings.append(
            f"Half the resolution finds {1 - coarse / regions:.0%} fewer regions: the extrapolated count is not to be "
            "trusted, the true one may be far higher. Use a higher resolution, a smaller domain or the exact engine."
        )
    if totals.mixed_share > WIDE_BRACKET:
        warnings.append(
            f"{totals.mixed_share:.0%} of the domain lies in cells that a boundary crosses, or at its rim: the "
            "brackets of the areas are wide."
        )
    return {
        "mixed_share": float(totals.mixed_share),
        "regions_half_resolution": coarse,
        "regions_extrapolated": 2 * regions - coarse,
        "extrapolation_trustworthy": bool(trusted),
        "subpixel_share": subpixel / regions,
        "broken_share": broken / regions,
        "subpixel_warning": bool(subpixel > SUBPIXEL_SHARE * regions or saturated),
        "warnings": warnings,
    }


def _subpixel_sentence(table: RegionTable, subpixel: int) -> str:
    single = int(np.count_nonzero(table["pixels"] == 1))
    line = int(np.count_nonzero(table["eccentricity"] == 1))
    return (
        f"{subpixel} regions ({subpixel / len(table):.1%}) have at most {SUBPIXEL_PIXELS} pixels: their area, "
        f"perimeter and eccentricity are not resolved ({single} are one pixel, eccentricity 0; {line} are one pixel "
        "wide, eccentricity 1)."
    )
