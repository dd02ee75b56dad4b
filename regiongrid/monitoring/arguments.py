"""What a monitor is given, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from regiongrid.arguments import check_whole
from regiongrid.errors import InputError
from regiongrid.estimation import MAX_RES
from regiongrid.network.program import Program
from regiongrid.slices import Slice

ON_ERROR = ("warn", "raise")
MAX_FRAME_RES = 2048


def check_arguments(
    known: Sequence[str],
    *,
    res: Any,
    every: Any,
    sigma: Any,
    threads: Any,
    on_error: Any,
    metrics: Sequence[str] | None,
    probe: Any,
    features: Any,
    frames: Any,
    frame_res: Any,
) -> None:
    """Raise `InputError` for an argument of `RegionMonitor` that cannot be used; ``known`` are the metrics."""
    check_whole("res", res, 1, MAX_RES, of="pixels")
    check_whole("every", every, 1)
    check_whole("frames", frames, 0)
    check_whole("frame_res", frame_res, 16, MAX_FRAME_RES, of="pixels")
    if threads is not None:
        check_whole("threads", threads, 1)
    if not 0 < sigma < float("inf"):
        raise InputError(f"sigma is {sigma!r}; it must be a positive number, in units of pre-activations")
    if on_error not in ON_ERROR:
        raise InputError(f"on_error is {on_error!r}; it must be one of {', '.join(ON_ERROR)}")
    if features is not None and not callable(features):
        raise InputError(f"features must be a function of the probe batch, got {type(features).__name__}")
    if features is not None and probe is None:
        raise InputError("features needs a probe batch to be called with: probe=...")
    if metrics is not None:
        _check_metrics(metrics, known, probe)


def own_numbers(also: Mapping[str, float] | None, prefix: str) -> dict[str, float]:
    """The numbers that the user adds to a record, as floats.

    Raises
    ------
    InputError
        A name that is no text or begins with the monitor's own prefix, or a value that is not one number.
    """
    numbers = {}
    for name, value in (also or {}).items():
        if not isinstance(name, str) or name.startswith(prefix) or name == "step":
            raise InputError(f"also has the name {name!r}; it must be a text other than 'step' and {prefix}...")
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"also[{name!r}] must be one number, got {value!r}") from error
    return numbers


def _check_metrics(metrics: Sequence[str], known: Sequence[str], probe: Any) -> None:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in known]
    if unknown or isinstance(metrics, str) or not names:
        raise InputError(f"metrics must be some of {', '.join(known)}, got {metrics!r}")
    if "representation" in names and probe is None:
        raise InputError("metric 'representation' needs a probe batch: probe=...")


def sample_shape(samples: ArrayLike | Tensor) -> tuple[int, ...]:
    """Shape of one sample of a batch."""
    shape = tuple(samples.shape) if isinstance(samples, Tensor) else np.shape(samples)
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"anchors must have shape [N, ...] with N >= 1 data points, got {list(shape)}")
    return tuple(int(size) for size in shape[1:])


def sample_rows(samples: ArrayLike | Tensor, program: Program, what: str) -> NDArray[np.float64]:
    """A float64 copy of a batch of samples, [N, d].

    Raises
    ------
    InputError
        The samples do not fit the network's input, or an entry is not finite.
    """
    if isinstance(samples, Tensor):
        array = samples.detach().to("cpu", torch.float64).numpy()
    else:
        array = np.asarray(samples)
        if array.dtype.kind not in "fiub":
            raise InputError(f"{what} must be real numbers, got an array of {array.dtype}")
    if array.ndim < 2 or len(array) == 0 or array[0].size != program.input_size:
        raise InputError(
            f"{what} must have shape [N, {', '.join(map(str, program.input_shape))}], N >= 1, as the network takes it; "
            f"got {list(array.shape)}"
        )
    rows: NDArray[np.float64] = np.array(array.reshape(len(array), -1), np.float64)
    if not np.isfinite(rows).all():
        raise InputError(f"{what} have {int((~np.isfinite(rows)).sum())} NaN or infinite entries")
    return rows


def given_slices(slices: Sequence[Slice], half_width: float | None, program: Program) -> list[Slice]:
    """The slices that the user made.

    Raises
    ------
    InputError
        There is none, one is no `Slice` or lies in another space, or ``half_width`` was given as well.
    """
    made = list(slices)
    if not made or not all(isinstance(plane, Slice) for plane in made):
        raise InputError(f"slices must be a whole number or a sequence of Slice, got {slices!r}")
    if half_width is not None:
        raise InputError("given slices have half-widths of their own; leave out half_width, or give a number of slices")
    for plane in made:
        if plane.dimension != program.input_size:
            raise InputError(
                f"a slice lies in a space of dimension {plane.dimension}, but the network takes {program.input_size} "
                f"numbers (input shape {program.input_shape})"
            )
    return made
