"""Guarded signs: the speed of one precision, the signs of float64.

The fast pass compares every pre-activation with a band of kappa units of rounding around its threshold. Points with a
unit inside its band are decided again by the float64 arbiter, so the image is the float64 image: it does not depend on
the order of points, the size of chunks, the number of threads or the device. kappa is calibrated per stage: on a sample
of points, evaluated in both precisions, the largest error in units of rounding, times a safety factor, never below a
floor.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from regiongrid.errors import RegiongridError
from regiongrid.network.on_slice import SliceProgram
from regiongrid.sampling.evaluate import PatternEvaluator

Array = np.ndarray[Any, Any]

SAFETY = 2.0
KAPPA_FLOOR = 8.0
# Units of float64 rounding within which the arbiter takes a pre-activation for zero: wide enough for sums that cancel
# through several layers (measured: up to 33 units behind a max-pool), and 7e-15 of the size of what is added up.
ARBITER_KAPPA = 64.0
SAMPLE_POINTS = 1024
# Above this share of points to decide again, float64 throughout is the cheaper way.
SHARE_FOR_FLOAT64 = 0.2
_SPAN_POINTS = 1 << 15  # the close calls of so many points are decided together


@dataclass(frozen=True)
class Calibration:
    """What the guard was set to, and the evidence.

    Attributes
    ----------
    dtype
        Precision of the fast pass, "float32" or "float64".
    kappa
        Width of the band per stage, in units of rounding of the fast pass.
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
    """Pattern hashes with float64 signs at any number of points.

    Parameters
    ----------
    folded
        The program on its slice.
    dtype
        "float32", "float64" or "auto": float32 unless more than 20% of a sample would have to be decided again.

    Attributes
    ----------
    evaluated, reevaluated
        Points hashed so far, and those of them that the arbiter decided.
    """

    def __init__(self, folded: SliceProgram, dtype: str = "auto", *, backend: str = "cpu", seed: int = 0) -> None:
        if dtype not in {"auto", "float32", "float64"}:
            raise ValueError(f"dtype is {dtype!r}; it must be auto, float32 or float64")
        floor = np.full(len(folded.stages), KAPPA_FLOOR)
        options = {"backend": backend, "seed": seed}
        sample = _sample(folded.slice.half_width)
        zero = np.full_like(floor, ARBITER_KAPPA)
        self.calibration = Calibration("float64", _plain(SAFETY * zero), (), 0)
        if dtype != "float64":
            errors = _largest_errors(folded, sample)
            if dtype == "float32" and not np.isfinite(errors).all():
                raise RegiongridError(
                    "pre-activations overflow float32 on this slice; use --dtype auto or float64 (dtype='float64')"
                )
            kappa = np.maximum(floor, SAFETY * errors)
            fast = PatternEvaluator(folded, torch.float32, kappa, **options)  # type: ignore[arg-type]
            if dtype == "float32" or _flagged_share(fast, sample) <= SHARE_FOR_FLOAT64:
                self.calibration = Calibration("float32", _plain(kappa), _plain(errors), len(sample))
        # The arbiter calls zero what is this close to it; a float64 fast pass has to flag more than that.
        self._arbiter = PatternEvaluator(folded, torch.float64, zero, arbiter=True, **options)  # type: ignore[arg-type]
        self._fast = (
            fast
            if self.calibration.dtype == "float32"
            else PatternEvaluator(folded, torch.float64, SAFETY * zero, **options)  # type: ignore[arg-type]
        )
        self.span = max(_SPAN_POINTS, self._fast.chunk)
        self.evaluated = 0
        self.reevaluated = 0
        self._count = threading.Lock()

    def __call__(self, uv: Array) -> Array:
        """Pattern hashes, uint64 [B], at slice coordinates uv, float64 [B, 2]. May be called from several threads."""
        hashes = np.empty(len(uv), np.uint64)
        flags = np.empty(len(uv), np.bool_)
        for start in range(0, len(uv), self._fast.chunk):
            part = slice(start, start + self._fast.chunk)
            hashes[part], flags[part] = self._fast(uv[part])
        close = np.flatnonzero(flags)
        for start in range(0, len(close), self._arbiter.chunk):
            rows = close[start : start + self._arbiter.chunk]
            hashes[rows], _ = self._arbiter(uv[rows])
        with self._count:
            self.evaluated += len(uv)
            self.reevaluated += len(close)
        return hashes

    def prefixes(self, uv: Array) -> Array:
        """Hashes of the decisions of the first 1, 2, ... stages in float64, uint64 [stages, B], at uv [B, 2]."""
        hashes = np.empty((len(self.calibration.kappa), len(uv)), np.uint64)
        for start in range(0, len(uv), self._arbiter.chunk):
            part = slice(start, start + self._arbiter.chunk)
            self._arbiter(uv[part], prefixes=hashes[:, part])
        return hashes


def _sample(half_width: float) -> Array:
    return np.random.Generator(np.random.PCG64(0)).uniform(-half_width, half_width, (SAMPLE_POINTS, 2))


def _largest_errors(folded: SliceProgram, sample: Array) -> Array:
    """Largest |z in float32 - z in float64| per stage, in units of rounding of float32."""
    none = np.zeros(len(folded.stages))
    single = PatternEvaluator(folded, torch.float32, none)
    double = PatternEvaluator(folded, torch.float64, none)
    errors = np.zeros(len(folded.stages))
    chunk = min(single.chunk, double.chunk)
    for start in range(0, len(sample), chunk):
        seen: list[tuple[Array, Array]] = []
        uv = sample[start : start + chunk]
        single(uv, lambda k, z, size: seen.append((z, size)))  # noqa: B023 - called at once

        def compare(k: int, z: Array, size: Array) -> None:
            z_single, size_single = seen[k]  # noqa: B023
            with np.errstate(invalid="ignore"):
                difference = np.abs(z_single - z)
                unit = np.maximum(size, size_single) * single.unit
            # Without any input both are exact; an overflow counts as an infinite error.
            ratio = np.divide(difference, unit, out=np.zeros_like(z), where=unit > 0)
            errors[k] = max(errors[k], float(np.nan_to_num(ratio, nan=np.inf).max()))

        double(uv, compare)
    return errors


def _flagged_share(fast: PatternEvaluator, sample: Array) -> float:
    flagged = sum(int(fast(sample[s : s + fast.chunk])[1].sum()) for s in range(0, len(sample), fast.chunk))
    return flagged / len(sample)


def _plain(numbers: Array) -> tuple[float, ...]:
    return tuple(float(number) for number in numbers)
