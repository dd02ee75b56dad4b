"""The program: a network as affine maps and breakpoints, in the order in which they run.

A *value* is a tensor that depends on the input. Affine operators make new values; a *breakpoint* takes pre-activations,
decides for each of its units on which side of a threshold (or which entry of a window) it is, and makes a value that is
affine again once the decisions are known. Everything that regiongrid computes asks this object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiongrid.errors import InputError

INPUT = "input"

_OF_ROWS = (torch.nn.functional.linear, torch.ops.aten.linear.default)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Piecewise:
    """Elementwise breakpoint: unit j passes ``slopes[p, j] * z + intercepts[p, j]`` on piece p.

    Piece p is where exactly p of the thresholds lie strictly below z, so ``z == threshold`` belongs to the lower piece.
    Each threshold is one decision with one hash key: ReLU has one a unit, clamp has two.
    """

    thresholds: Array  # [K, n] float64, rows ascending
    slopes: Array  # [K + 1, n] float64
    intercepts: Array  # [K + 1, n] float64

    @property
    def inputs(self) -> int:
        return int(self.thresholds.shape[1])

    @property
    def units(self) -> int:
        return int(self.thresholds.shape[1])

    @property
    def decisions(self) -> int:
        return int(self.thresholds.size)

    @property
    def is_relu(self) -> bool:
        """One threshold at zero, slopes 0 and 1: the case with a kernel of its own."""
        return (
            self.thresholds.shape[0] == 1
            and not self.thresholds.any()
            and not self.intercepts.any()
            and not self.slopes[0].any()
            and bool((self.slopes[1] == 1).all())
        )

    def apply(self, z: Tensor) -> Tensor:
        """Values after the breakpoint; z is [..., n]."""
        piece = self.pieces(z)
        slopes, intercepts = (torch.as_tensor(a, dtype=z.dtype) for a in (self.slopes, self.intercepts))
        column = torch.arange(z.shape[-1])
        return slopes[piece, column] * z + intercepts[piece, column]

    def pieces(self, z: Tensor) -> Tensor:
        """Index of the piece of every unit; int64, the shape of z."""
        thresholds = torch.as_tensor(self.thresholds, dtype=z.dtype)
        return (z.unsqueeze(-2) > thresholds).sum(-2)


@dataclass(frozen=True)
class Maximum:
    """Window breakpoint: unit j passes the largest of its entries (the smallest where ``sign`` is -1).

    The decision of a unit is which entry wins; of equal entries the first. Each (unit, entry) has one hash key.
    """

    windows: Array  # [units, k] int64 indices into the pre-activations, -1 where a window has fewer entries
    inputs: int
    sign: int = 1

    @property
    def units(self) -> int:
        return int(self.windows.shape[0])

    @property
    def decisions(self) -> int:
        return int(self.windows.size)

    def winners(self, z: Tensor) -> Tensor:
        """Position of the winning entry in each window; z is [..., inputs], the result [..., units] int64."""
        windows = torch.as_tensor(self.windows)
        entries = self.sign * z[..., windows.clamp(min=0)]  # [..., units, k]
        entries = torch.where(windows >= 0, entries, torch.full_like(entries, -torch.inf))
        # argmax does not promise the first of equal entries: ask for the first that reaches the maximum.
        return (entries == entries.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)

    def apply(self, z: Tensor) -> Tensor:
        """Values after the breakpoint; z is [..., inputs], the result [..., units]."""
        windows = torch.as_tensor(self.windows).expand(*z.shape[:-1], *self.windows.shape)
        chosen = windows.gather(-1, self.winners(z).unsqueeze(-1)).squeeze(-1)
        return z.gather(-1, chosen)


Breakpoint = Piecewise | Maximum


@dataclass(frozen=True)
class AffineCall:
    """One affine operator on one sample: ``function(*args, **kwargs)`` with `Ref` in place of tensors."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, look_up: Callable[[str], Any]) -> Any:
        args, kwargs = (_fill(arguments, look_up) for arguments in (self.args, self.kwargs))
        return self.function(*args, **kwargs)

    def references(self) -> set[str]:
        """Names of all the tensors that the call takes."""
        names: set[str] = set()
        _fill([self.args, self.kwargs], names.add)
        return names


@dataclass(frozen=True)
class Ref:
    """A place in the arguments of an operator where the tensor of this name goes."""

    name: str


def _fill(argument: Any, look_up: Callable[[str], Any]) -> Any:
    """The argument with every `Ref` replaced by what ``look_up`` returns for its name."""
    if isinstance(argument, Ref):
        return look_up(argument.name)
    if isinstance(argument, list | tuple):
        return type(argument)([_fill(item, look_up) for item in argument])
    if isinstance(argument, dict):
        return {key: _fill(item, look_up) for key, item in argument.items()}
    return argument


@dataclass(frozen=True)
class Segment:
    """Affine operators between two breakpoints: they turn the values ``inputs`` into the values ``outputs``."""

    calls: tuple[AffineCall, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def takes_batches(self) -> bool:
        """Whether `run` does the same for [B, 1, n] as for B samples: plain linear layers need no torch.vmap."""
        return all(call.function in _OF_ROWS for call in self.calls)

    def run(self, constants: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run on ONE sample. Tensors carry the exported leading dimension of 1."""
        known: dict[str, Any] = dict(zip(self.inputs, inputs))

        def look_up(name: str) -> Any:
            return known[name] if name in known else constants[name]

        for call in self.calls:
            known[call.name] = call.run(look_up)
        return tuple(known[name] for name in self.outputs)


@dataclass(frozen=True)
class Stage:
    """One breakpoint of the program and what surrounds it."""

    preactivations: tuple[str, ...]  # values whose flattened entries, one after the other, are z
    breakpoint: Breakpoint
    value: str  # name of the value it makes
    label: str  # operator and module path, for people
    first_decision: int  # number of the first hash key


@dataclass(frozen=True)
class Program:
    """A piecewise-affine network: ``segments[0]``, then for every k ``stages[k]`` and ``segments[k + 1]``.

    Attributes
    ----------
    shapes
        Shape of every value that crosses a segment's border, with the exported leading dimension of 1.
    constants
        Parameters, buffers and constant tensors by name, float64.
    output
        Name of the output value, or None where operators that are not affine come after the last breakpoint.
    cut
        What was cut off behind the last breakpoint (operator and module path), empty if nothing.
    """

    input_shape: tuple[int, ...]
    stages: tuple[Stage, ...]
    segments: tuple[Segment, ...]
    shapes: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Tensor] = field(repr=False)
    output: str | None
    cut: str = ""

    @property
    def input_size(self) -> int:
        return int(np.prod(self.input_shape))

    @property
    def decisions(self) -> int:
        """Number of hash keys: one a threshold of a unit, one an entry of a window."""
        return sum(stage.breakpoint.decisions for stage in self.stages)

    @property
    def units(self) -> int:
        return sum(stage.breakpoint.units for stage in self.stages)

    def run(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Plain evaluation at a batch of points, the reference for every faster engine.

        Parameters
        ----------
        x
            [B, *input_shape] or [B, d], float32 or float64; computed in that precision.

        Returns
        -------
        preactivations
            One [B, n] tensor a stage.
        output
            [B, ...] with the module's own output shape, or None where the output was cut.
        """
        if x[0].numel() != self.input_size:
            raise InputError(
                f"the points have {x[0].numel()} entries each (shape {tuple(x.shape)}), "
                f"but the network takes {self.input_size} (shape {self.input_shape})"
            )
        batch = x.shape[0]
        constants = cast_constants(self.constants, x.dtype)
        values = {INPUT: x.reshape(batch, *self.shapes[INPUT])}
        preactivations: list[Tensor] = []
        for k, segment in enumerate(self.segments):
            run_segment(segment, constants, values)
            if k < len(self.stages):
                stage = self.stages[k]
                z = torch.cat([values[name].reshape(batch, -1) for name in stage.preactivations], dim=1)
                preactivations.append(z)
                values[stage.value] = stage.breakpoint.apply(z).reshape(batch, *self.shapes[stage.value])
        return preactivations, None if self.output is None else values[self.output].squeeze(1)


def run_segment(segment: Segment, constants: Mapping[str, Tensor], values: dict[str, Tensor]) -> None:
    """Run a segment on batched values [B, 1, ...] and store its outputs among them."""
    if not segment.outputs:
        return
    batched = [values[name] for name in segment.inputs]
    if segment.takes_batches:
        outputs = segment.run(constants, batched)
    else:
        outputs = torch.vmap(lambda *sample: segment.run(constants, sample))(*batched)
    values.update(zip(segment.outputs, outputs))


def cast_constants(constants: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point constants in the precision asked for; integer ones (indices) as they are."""
    return {name: c.to(dtype) if c.is_floating_point() else c for name, c in constants.items()}
