"""Guarded signs: the speed of one precision, the signs of float64.

The fast pass compares every pre-activation with a band of kappa units of rounding around its threshold. Points with a
unit inside its band are decided again by the float64 arbiter, so the image is the float64 image: it does not depend on
the order of points, the size of chunks, the number of threads or the device. kappa is calibrated per stage: on a sample
of points, evaluated in both precisions, the largest error in units of rounding, times a safety factor, never below a
floor.

The fast pass is one of three. "float16x3": all layers of a fully connected network at once on the matrix units of a
GPU, each product made of three float16 products that together are as good as one in float32
(`regiongrid.kernels.mlp_hash.gpu`). "float32" and "float64": stage by stage (`PatternEvaluator`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from regiongrid.errors import InputError, RegiongridError
from regiongrid.network.on_slice import SliceProgram
from regiongrid.sampling.evaluate import PatternEvaluator

if TYPE_CHECKING:
    from regiongrid.kernels.mlp_hash.gpu import Fused, Layered
    from regiongrid.kernels.mlp_hash.scaling import Scaled

Array = np.ndarray[Any, Any]

DTYPES = ("auto", "float16x3", "float32", "float64")
SAFETY = 2.0
KAPPA_FLOOR = 8.0
# Units of float64 rounding within which the arbiter takes a pre-activation for zero: wide enough for sums that cancel
# through several layers (measured: up to 33 units behind a max-pool), and 7e-15 of the size of what is added up.
ARBITER_KAPPA = 64.0
SAMPLE_POINTS = 1024
_SAMPLE_POINTS_OF_A_SLICE = 64
# Above this share of points to decide again, the next better precision throughout is the cheaper way.
SHARE_FOR_FLOAT64 = 0.2
_SPAN_POINTS = 1 << 15  # the close calls of so many points are decided together
_SINGLE_UNIT = 2.0**-24
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Calibration:
    """What the guard was set to, and the evidence.

    Attributes
    ----------
    dtype
        Precision of the fast pass, "float16x3", "float32" or "float64".
    kappa
        Width of the band per stage, in units of rounding of the fast pass (of float32 for "float16x3").
    largest_error
        Largest error seen per stage on the sample, in the same units (empty for a float64 fast pass).
    sample_points
        Number of points evaluated in both precisions.
    """

    dtype: str
    kappa: tuple[float, ...]
    largest_error: tuple[float, ...]
    sample_points: int


class GuardedEvaluator:
    """Pattern hashes with float64 signs at any number of points of one slice or of several.

    Parameters
    ----------
    folded
        The program on its slice, or one program on several slices.
    dtype
        One of `DTYPES`; "auto": the first of float16x3 (fully connected networks with Triton), float32 and float64
        with which at most 20% of a sample have to be decided again.
    backend, device
        Kernels, and where they run.

    Raises
    ------
    RegiongridError
        Pre-activations overflow the precision that was asked for.
    InputError
        "float16x3" without Triton, or for a network that is no chain of fully connected layers.
    """

    def __init__(
        self,
        folded: SliceProgram | Sequence[SliceProgram],
        dtype: str = "auto",
        *,
        backend: str = "cpu",
        device: torch.device = _CPU,
        seed: int = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        self._slices = [folded] if isinstance(folded, SliceProgram) else list(folded)
        self._device = device
        self._options: dict[str, Any] = {"backend": backend, "device": device, "seed": seed}
        self._chain: Fused | Layered | None = None
        zero = np.full(len(self._slices[0].stages), ARBITER_KAPPA)
        # The arbiter calls zero what is this close to it; a float64 fast pass has to flag more than that.
        self._arbiter = self._evaluator(torch.float64, zero, arbiter=True)
        self._single: PatternEvaluator | None = None
        self.calibration = Calibration("float64", _plain(SAFETY * zero), (), 0)
        sample = _Sample.of(self._slices, device)
        taken = dtype == "float64"
        if dtype == "float16x3" or (dtype == "auto" and backend == "triton"):
            taken = self._try_pairs(dtype != "auto", sample)
        if not taken:
            self._try_single(dtype != "auto", sample)
        self._counts = torch.zeros(2, len(self._slices), dtype=torch.int64, device=device)
        self._count_lock = threading.Lock()
        self._last_places: _PixelPlaces | None = None

    def _evaluator(self, dtype: torch.dtype, kappa: Array, *, arbiter: bool = False) -> PatternEvaluator:
        folded = self._slices if len(self._slices) > 1 else self._slices[0]
        return PatternEvaluator(folded, dtype, kappa, arbiter=arbiter, **self._options)

    def _try_single(self, asked: bool, sample: _Sample) -> None:
        """Take float32, stage by stage, for the fast pass, if it is asked for or good enough."""
        single, double = (self._evaluator(d, np.zeros(self._stages)) for d in (torch.float32, torch.float64))
        errors = _largest_errors(single, double, sample)
        if asked and not np.isfinite(errors).all():
            raise RegiongridError(
                "pre-activations overflow float32 on this slice; use --dtype auto or float64 (dtype='float64')"
            )
        kappa = np.maximum(KAPPA_FLOOR, SAFETY * errors)
        fast = self._evaluator(torch.float32, kappa)
        if asked or _flagged_share(fast, sample) <= SHARE_FOR_FLOAT64:
            self._single = fast
            self.calibration = Calibration("float32", _plain(kappa), _plain(errors), sample.size)

    def _try_pairs(self, asked: bool, sample: _Sample) -> bool:
        """Take the kernels for whole networks in pairs of float16 for the fast pass, if asked for or good enough."""
        made = self._chain_engine(asked, sample)
        if made is None:
            return False
        engine, scaled = made
        errors = _largest_errors_of_pairs(engine, scaled, sample)
        kappa = np.maximum(KAPPA_FLOOR, SAFETY * errors)
        engine.set_bands(scaled, kappa)
        flags = engine(sample.where(), torch.empty(sample.size, dtype=torch.int64, device=self._device)).flags
        if not asked and float((flags != 0).double().mean()) > SHARE_FOR_FLOAT64:
            return False
        self._chain = engine
        self.calibration = Calibration("float16x3", _plain(kappa), _plain(errors), sample.size)
        return True

    def _chain_engine(self, asked: bool, sample: _Sample) -> tuple[Fused | Layered, Scaled] | None:
        if self._options["backend"] != "triton":
            raise InputError("dtype 'float16x3' needs the Triton kernels; use dtype 'auto', 'float32' or 'float64'")
        from regiongrid.kernels.mlp_hash import gpu
        from regiongrid.kernels.mlp_hash.scaling import scale
        from regiongrid.sampling.chain import chain

        mlp = chain(self._slices, self._options["seed"], self._device)
        scaled = None if mlp is None else scale(mlp, sample.xy, sample.which)
        if scaled is None:
            if asked:
                why = "is no plain chain of fully connected layers" if mlp is None else "leaves the range of float16"
                raise InputError(f"dtype 'float16x3' cannot be used: the network {why}; use dtype 'auto' or 'float32'")
            return None
        chip = gpu.family(self._device)
        tiles = gpu.fused_tiles(scaled.mlp.widths, scaled.mlp.bends, chip)
        engine: Fused | Layered
        if tiles:
            engine = gpu.Fused(scaled, gpu.fastest_tile(scaled, tiles))
        else:
            engine = gpu.Layered(scaled, gpu.layered_tile(scaled.mlp.bends, chip))
        return engine, scaled

    @cached_property
    def _fast(self) -> PatternEvaluator:
        """The fast pass stage by stage; not needed, and not made, where whole networks are hashed at once."""
        kappa = np.full(self._stages, SAFETY * ARBITER_KAPPA)
        return self._evaluator(torch.float64, kappa) if self._single is None else self._single

    @property
    def span(self) -> int:
        """Points that are best hashed in one call."""
        return max(_SPAN_POINTS, self._fast.chunk)

    @property
    def _stages(self) -> int:
        return len(self._slices[0].stages)

    @property
    def evaluated(self) -> list[int]:
        """Points of each slice hashed so far."""
        return [int(count) for count in self._counts[0].tolist()]

    @property
    def reevaluated(self) -> list[int]:
        """Those of them that the arbiter decided."""
        return [int(count) for count in self._counts[1].tolist()]

    def __call__(self, uv: Array) -> Array:
        """Pattern hashes, uint64 [B], at coordinates uv, float64 [B, 2], of a single slice, stage by stage.

        May be called from several threads.
        """
        points = torch.from_numpy(uv).to(self._device)
        hashes = torch.empty(len(uv), dtype=torch.int64, device=self._device)
        close = self._fast_pass(points, hashes)
        self._decide(close, lambda rows: (points[rows], None), hashes)
        with self._count_lock:
            self._counts[0] += len(uv)
            self._counts[1] += len(close)
        return hashes.cpu().numpy().view(np.uint64)

    def write(self, images: Tensor, pixels: Tensor) -> None:
        """Write the hashes of ``pixels``, flat int64 numbers, into ``images``, int64 [slices, res, res], contiguous."""
        place = self._places(images.shape[1])
        if len(images) > 1:
            pixels = pixels.sort().values  # the kernels want the points of a slice together
        for part in torch.split(pixels, self._most_pixels):
            self._write_part(images, part, place)

    def write_all(self, images: Tensor, progress: Callable[[float], None]) -> None:
        """Write the hashes of all pixels into ``images``, int64 [slices, res, res], contiguous."""
        place = self._places(images.shape[1])
        for start in range(0, images.numel(), self._most_pixels):
            stop = min(start + self._most_pixels, images.numel())
            pixels = torch.arange(start, stop, device=self._device)
            self._write_part(images, pixels, place, all_pixels=len(pixels) == images.numel())
            progress(stop / images.numel())

    def _places(self, res: int) -> _PixelPlaces:
        """Kept from one level of an image to the next."""
        if self._last_places is None or self._last_places.res != res:
            self._last_places = _PixelPlaces(self._slices, res, self._device)
        return self._last_places

    @property
    def _most_pixels(self) -> int:
        return self._fast.chunk if self._chain is None else self._chain.most_points

    def _write_part(self, images: Tensor, pixels: Tensor, place: _PixelPlaces, *, all_pixels: bool = False) -> None:
        """``all_pixels``: they are 0, 1, 2, ... and need not be read."""
        flat = images.view(-1)
        if self._chain is None:
            flat[pixels], flags = self._fast(*place(pixels))
        else:
            from regiongrid.kernels.mlp_hash.gpu import Where

            shape = len(images), images.shape[1]
            where = Where.grid(*shape, self._device) if all_pixels else Where.pixels(pixels, *shape)
            flags = self._chain(where, flat).flags != 0
        close = pixels[flags]  # waits for the device: how many there are decides what is launched next
        self._decide(close, place, flat)
        for row, counted in enumerate((pixels, close)):
            self._counts[row] += place.count(counted)

    def _fast_pass(self, uv: Tensor, hashes: Tensor) -> Tensor:
        """Hash points of a single slice stage by stage; return the rows of those that are too close to call."""
        flags = torch.empty(len(uv), dtype=torch.bool, device=self._device)
        for start in range(0, len(uv), self._fast.chunk):
            part = slice(start, start + self._fast.chunk)
            hashes[part], flags[part] = self._fast(uv[part])
        return flags.nonzero().squeeze(1)

    def _decide(self, points: Tensor, place: Callable[[Tensor], tuple[Tensor, Tensor | None]], hashes: Tensor) -> None:
        """Write what the arbiter says of ``points``, indices into ``hashes``."""
        for part in torch.split(points, self._arbiter.chunk):
            if len(part):
                hashes[part], _ = self._arbiter(*place(part))

    def prefixes(self, uv: Array) -> Array:
        """Hashes of the decisions of the first 1, 2, ... stages in float64, uint64 [stages, B], at uv [B, 2]."""
        points = torch.from_numpy(uv).to(self._device)
        hashes = torch.empty(self._stages, len(uv), dtype=torch.int64, device=self._device)
        for start in range(0, len(uv), self._arbiter.chunk):
            part = slice(start, start + self._arbiter.chunk)
            self._arbiter(points[part], prefixes=hashes[:, part])
        return hashes.cpu().numpy().view(np.uint64)


class _PixelPlaces:
    """Slice coordinates of pixels of images [slices, res, res]."""

    def __init__(self, slices: Sequence[SliceProgram], res: int, device: torch.device) -> None:
        centres = np.stack([folded.slice.pixel_centres(res) for folded in slices])
        self._centres = torch.from_numpy(centres).to(device)
        self.res = res
        self._first = torch.arange(len(slices) + 1, device=device) * (res * res)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """uv float64 [B, 2], and the slice of each pixel where there are several."""
        rows = pixels // self.res
        which = rows // self.res
        columns = pixels - rows * self.res
        uv = torch.stack([self._centres[which, columns], self._centres[which, rows - which * self.res]], dim=1)
        return uv, which if len(self._centres) > 1 else None

    def count(self, pixels: Tensor) -> Tensor | int:
        """How many pixels lie in each slice; pixels of several slices are sorted."""
        return torch.searchsorted(pixels, self._first).diff() if len(self._centres) > 1 else len(pixels)


@dataclass(frozen=True)
class _Sample:
    """Random points of every slice, slice after slice."""

    uv: Tensor  # [B, 2] float64
    xy: Tensor  # [B, 2] float64, over the half-width
    which: Tensor  # [B] int64
    slices: int

    @classmethod
    def of(cls, slices: Sequence[SliceProgram], device: torch.device) -> _Sample:
        each = max(SAMPLE_POINTS // len(slices), _SAMPLE_POINTS_OF_A_SLICE)
        generator = np.random.Generator(np.random.PCG64(0))
        widths = [folded.slice.half_width for folded in slices]
        uv = [torch.from_numpy(generator.uniform(-width, width, (each, 2))) for width in widths]
        xy = [points / width for points, width in zip(uv, widths)]
        which = torch.arange(len(slices)).repeat_interleave(each)
        return cls(torch.cat(uv).to(device), torch.cat(xy).to(device), which.to(device), len(slices))

    @property
    def size(self) -> int:
        return len(self.uv)

    def where(self) -> Any:
        from regiongrid.kernels.mlp_hash.gpu import Where

        return Where.coordinates(self.xy, self.which, self.slices)


def _largest_errors(single: PatternEvaluator, double: PatternEvaluator, sample: _Sample) -> Array:
    """Largest |z in float32 - z in float64| per stage, in units of rounding of float32."""
    errors = np.zeros(len(single.kappa))
    chunk = min(single.chunk, double.chunk)
    for start in range(0, sample.size, chunk):
        seen: list[tuple[Tensor, Tensor]] = []
        points = sample.uv[start : start + chunk], sample.which[start : start + chunk]
        single(*points, observe=lambda k, z, size: seen.append((z, size)))  # noqa: B023 - called at once

        def compare(k: int, z: Tensor, size: Tensor) -> None:
            z_single, size_single = seen[k]  # noqa: B023
            unit = torch.maximum(size, size_single) * single.unit
            errors[k] = max(errors[k], _largest_ratio((z_single - z).abs(), unit))

        double(*points, observe=compare)
    return errors


def _largest_errors_of_pairs(engine: Fused | Layered, scaled: Scaled, sample: _Sample) -> Array:
    """Largest |z in float16 pairs - z in float64| per layer, in units of rounding of float32."""
    from regiongrid.kernels.mlp_hash.reference import preactivations

    hashes = torch.empty(sample.size, dtype=torch.int64, device=sample.uv.device)
    seen = engine(sample.where(), hashes, observe=True).seen
    before, after = preactivations(scaled.mlp, sample.xy, sample.which)
    errors = np.zeros(len(seen))
    for layer, (found, exact) in enumerate(zip(seen, before)):
        if layer == 0:
            unit = scaled.first[sample.which]
        else:
            unit = scaled.gain[layer] * after[layer - 1].norm(dim=1, keepdim=True) + scaled.offset[layer]
        errors[layer] = _largest_ratio((found - exact).abs(), unit.expand_as(exact) * _SINGLE_UNIT)
    return errors


def _largest_ratio(difference: Tensor, unit: Tensor) -> float:
    """Without any input both precisions are exact; an overflow counts as an infinite error."""
    ratio = torch.where(unit > 0, difference / unit, 0.0)
    return float(ratio.nan_to_num(nan=torch.inf).max())


def _flagged_share(fast: PatternEvaluator, sample: _Sample) -> float:
    parts = zip(torch.split(sample.uv, fast.chunk), torch.split(sample.which, fast.chunk))
    return sum(int(fast(uv, which)[1].sum()) for uv, which in parts) / sample.size


def _plain(numbers: Array) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers)
