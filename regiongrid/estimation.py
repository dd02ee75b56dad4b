"""`estimate`: network and slices in, regions, summary and picture out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import nn

from regiongrid.arguments import check_whole
from regiongrid.backends import check_dtype, select, weights_device
from regiongrid.errors import InputError, MemoryLimitError
from regiongrid.kernels.threads import spans
from regiongrid.network import Network, load_network
from regiongrid.network.on_slice import SliceProgram, restrict_all
from regiongrid.regions import (
    ImageTotals,
    RegionTable,
    boundary_by_layer,
    measure_images,
    measure_regions,
    summarise,
)
from regiongrid.resources import available_memory
from regiongrid.sampling.guard import DTYPES, GuardedEvaluator
from regiongrid.sampling.image import SAMPLINGS, PatternImage, current_device, sample_images
from regiongrid.slices import Slice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("kernels", "skimage")
MAX_RES = 32768  # the region kernels count pixels in 32 bits
# What a run holds beside the image: 8 bytes a pixel for the hashes, lists of cells, runs and regions.
_BYTES_PER_PIXEL = 8
_BYTES_PER_PIXEL_ADAPTIVE = 11
_BYTES_PER_PIXEL_SKIMAGE = 64
_BYTES_PER_PIXEL_GPU = 48  # numbers, runs and hash tables of the measurement included
_FIXED_BYTES = 64 << 20
_FIXED_BYTES_GPU = 3 << 30  # values of the layers of one chunk of points
_MOST_INTERPRETED = 64  # slices together in Triton's interpreter, which has the memory of the CPU


@dataclass(frozen=True)
class Estimate:
    """The regions of one slice, estimated on a grid.

    Attributes
    ----------
    network, slice
        What was estimated, and where.
    image
        The pattern image, one hash a pixel.
    regions
        One row a region; see `regiongrid.regions.COLUMNS` for columns and units.
    totals
        What is measured on the image as a whole, with the pairs of regions that meet.
    layers
        Regions and boundary length when only the first 1, 2, ... layers count; empty unless asked for.
    seconds
        Wall time of ``fold``, ``evaluate`` and ``measure`` (labelling included).
    """

    network: Network
    image: PatternImage
    regions: RegionTable = field(repr=False)
    totals: ImageTotals = field(repr=False)
    layers: tuple[dict[str, Any], ...]
    seconds: dict[str, float]

    @property
    def slice(self) -> Slice:
        return self.image.slice

    @property
    def res(self) -> int:
        return self.image.res

    @cached_property
    def _summary(self) -> dict[str, Any]:
        image = self.image
        return {
            "slice": {
                "description": self.slice.description,
                "half_width": self.slice.half_width,
                "anchors": self.slice.anchors.tolist(),
            },
            "res": image.res,
            "pixel_size": self.slice.pixel_size(image.res),
            **summarise(self.regions, self.totals),
            **({"by_layer": list(self.layers)} if self.layers else {}),
            "sampling": image.sampling,
            "evaluations": image.evaluations,
            "evaluated_share": image.evaluations / image.res**2,
            "guard": {
                "dtype": image.calibration.dtype,
                "kappa": list(image.calibration.kappa),
                "largest_error": list(image.calibration.largest_error),
                "sample_points": image.calibration.sample_points,
                "reevaluated": image.reevaluated,
                "reevaluated_share": image.reevaluated / image.res**2,
            },
            "seconds": self.seconds,
        }

    def summary(self) -> dict[str, Any]:
        """Statistics of the slice in plain numbers, as in the command's JSON (``slices[i]``).

        See `regiongrid.regions.summarise` for the keys; beside them the settings, the number of evaluations and the
        state of the guard.
        """
        return dict(self._summary)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Regions, anchors and the distributions of area and eccentricity; written to ``path`` if given."""
        from regiongrid.plots import plot_estimate

        return plot_estimate(self, path)

    def __str__(self) -> str:
        from regiongrid.commands.report import as_text

        return as_text(self)


class Options(TypedDict, total=False):
    """Keyword options of `estimate`; their meaning and defaults stand there."""

    sampling: str
    dtype: str
    backend: str
    device: str | torch.device
    measure: str
    by_layer: bool
    threads: int | None
    max_memory: int | None
    seed: int
    progress: Callable[[int, float], None] | None


@overload
def estimate(
    network: Network | nn.Module | str | Path, slices: Slice, res: int = ..., **options: Unpack[Options]
) -> Estimate: ...


@overload
def estimate(
    network: Network | nn.Module | str | Path, slices: Sequence[Slice], res: int = ..., **options: Unpack[Options]
) -> list[Estimate]: ...


def estimate(
    network: Network | nn.Module | str | Path,
    slices: Slice | Sequence[Slice],
    res: int = 1024,
    *,
    sampling: str = "adaptive",
    dtype: str = "auto",
    backend: str = "auto",
    device: str | torch.device = "auto",
    measure: str = "kernels",
    by_layer: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Estimate | list[Estimate]:
    """Estimate the regions of a network on one slice or on several.

    Parameters
    ----------
    network
        A `Network`, a module or a checkpoint file; see `load_network` for what a module or a file needs.
    slices
        One `Slice` (the result is one `Estimate`) or a sequence (a list of them).
    res
        Pixels along a side.
    sampling
        ``"adaptive"``: evaluate where patterns change, fill the rest by convexity. ``"dense"``: evaluate every pixel.
        Both give the same image.
    dtype
        Precision of the fast pass: ``"float32"``, ``"float64"``, ``"float16x3"`` (fully connected networks with Triton:
        products of float16 pairs on the matrix units of the GPU) or ``"auto"``. Signs are those of float64 in any case.
    backend, device
        ``"triton"`` (GPU), ``"cpu"`` (numba), ``"reference"`` (plain numpy, slow) or ``"auto"``, and where it runs; see
        `regiongrid.backends.select`. All give the same image and the same table.
    measure
        ``"kernels"``, or ``"skimage"`` for the same table from scikit-image.
    by_layer
        Also count regions and boundary when only the first 1, 2, ... layers count.
    threads
        Worker threads; all cores that the process may use if not given. No result depends on it.
    max_memory
        Bytes that the run may use; four fifths of what is available if not given.
    seed
        Seed of the hash keys.
    progress
        Called with the slice's number and the share of its image that is known. With Triton slices are computed
        together, and the number is that of the first of them.

    Raises
    ------
    MemoryLimitError
        Before any work, if the image does not fit.
    InputError
        A choice that does not exist or cannot be had here, or a slice that does not fit the network.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> est = estimate(net, Slice.square(10.0), res=256)
    >>> len(est.regions)
    7
    """
    where = weights_device(network)
    net = load_network(network)
    wanted = [slices] if isinstance(slices, Slice) else list(slices)
    _check(res, {"sampling": (sampling, SAMPLINGS), "dtype": (dtype, DTYPES), "measure": (measure, MEASURES)}, threads)
    chosen = select(backend, device, network_device=where)
    check_dtype(dtype, chosen)
    if not wanted:
        raise InputError("no slice was given; pass at least one")
    together = check_memory(res, sampling, measure, max_memory, chosen.device)
    sample = partial(
        sample_images,
        res=res,
        sampling=sampling,
        dtype=dtype,
        threads=threads,
        backend=chosen.backend,
        device=chosen.device,
        seed=seed,
    )
    done = []
    for first, last in spans(len(wanted), together if chosen.backend == "triton" else 1):
        start = time.perf_counter()
        folded = restrict_all(net.program, wanted[first:last])
        fold = time.perf_counter()
        images = sample(folded, progress=None if progress is None else partial(progress, first))
        evaluated = time.perf_counter()
        measured = _measure(images, measure, threads)
        layers = [
            _by_layer(on_slice, image, *table, seed) if by_layer else ()
            for on_slice, image, table in zip(folded, images, measured)
        ]
        seconds = {"fold": fold - start, "evaluate": evaluated - fold, "measure": time.perf_counter() - evaluated}
        each = {name: value / len(images) for name, value in seconds.items()}
        done += [
            Estimate(net, image, *table, of_layers, dict(each))
            for image, table, of_layers in zip(images, measured, layers)
        ]
    return done[0] if isinstance(slices, Slice) else done


def _measure(images: Sequence[PatternImage], method: str, threads: int | None) -> list[tuple[RegionTable, ImageTotals]]:
    """Tables of the images: together where they are on a GPU, else one by one."""
    sizes = [image.slice.pixel_size(image.res) for image in images]
    on_device = [image.pixels for image in images if isinstance(image.pixels, torch.Tensor)]
    if on_device and method == "kernels":
        with current_device(on_device[0].device):
            return measure_images(torch.stack(on_device) if len(on_device) > 1 else on_device[0][None], sizes)
    return [measure_regions(image.hashes, size, method=method, threads=threads) for image, size in zip(images, sizes)]


def _by_layer(
    folded: SliceProgram, image: PatternImage, regions: RegionTable, totals: ImageTotals, seed: int
) -> tuple[dict[str, Any], ...]:
    """Regions and boundary by layer. A pattern decides all its layers, so one point a region is enough."""
    evaluator = GuardedEvaluator(folded, "float64", seed=seed)
    # Regions are convex: the centroid of a region's pixels lies in the region.
    uv = np.stack([regions.centroid_u, regions.centroid_v], axis=1)
    prefixes = evaluator.prefixes(uv)
    centres = image.slice.pixel_centres(image.res)
    for row in np.flatnonzero(prefixes[-1] != regions.pattern):  # but for rounding, or a region on a single line
        i, j = np.argwhere(image.hashes == regions.pattern[row])[0]
        prefixes[:, row] = evaluator.prefixes(np.array([[centres[j], centres[i]]]))[:, 0]
    rows = boundary_by_layer(totals.adjacency, prefixes)
    return tuple({**row, "operator": stage.label} for row, stage in zip(rows, folded.stages))


def _check(res: int, choices: dict[str, tuple[str, Sequence[str]]], threads: int | None) -> None:
    check_whole("res", res, 1, MAX_RES, of="pixels")
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")


def needed_memory(res: int, sampling: str = "adaptive", measure: str = "kernels") -> int:
    """Bytes that an estimate needs beside what the process holds already, for a generic network."""
    per_pixel = _BYTES_PER_PIXEL_ADAPTIVE if sampling == "adaptive" else _BYTES_PER_PIXEL
    per_pixel += _BYTES_PER_PIXEL_SKIMAGE if measure == "skimage" else 2
    return res * res * per_pixel + _FIXED_BYTES


def check_memory(
    res: int, sampling: str, measure: str, max_memory: int | None, device: torch.device | None = None
) -> int:
    """How many slices fit at once at this resolution: 1 on the CPU, which takes one after the other.

    Raises
    ------
    MemoryLimitError
        Not even one fits.
    """
    on_gpu = device is not None and device.type == "cuda"
    fixed = _FIXED_BYTES_GPU if on_gpu else _FIXED_BYTES
    needed = res * res * _BYTES_PER_PIXEL_GPU + fixed if on_gpu else needed_memory(res, sampling, measure)
    available = _available_on(device) if device is not None and on_gpu else available_memory()
    limit = max_memory if max_memory is not None else None if available is None else available * 4 // 5
    if limit is not None and needed > limit:
        fitting = int((max(limit - fixed, 0) / ((needed - fixed) / res**2)) ** 0.5)
        raise MemoryLimitError(
            f"res {res} needs about {_gigabytes(needed)} of {'GPU memory' if on_gpu else 'memory'}, "
            f"{_gigabytes(limit)} may be used; res {fitting} would fit, or raise --max-memory (max_memory)"
        )
    return 1 if limit is None else max(1, (limit - fixed) // (needed - fixed)) if on_gpu else _MOST_INTERPRETED


def _available_on(device: torch.device) -> int:
    """Bytes free on a GPU, what torch holds there without using it included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
