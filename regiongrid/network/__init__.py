"""Networks: checkpoint files or modules in, piecewise-affine programs out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from regiongrid.errors import InputError
from regiongrid.network.checkpoint import Factory, check_finite, load_checkpoint
from regiongrid.network.lowering import lower
from regiongrid.network.program import Piecewise, Program

__all__ = ["Network", "load_network"]


@dataclass(frozen=True)
class Network:
    """A piecewise-linear network, ready to be cut into regions.

    Attributes
    ----------
    program
        Affine steps and breakpoints in the order in which they run.
    source
        Where it came from: the file, or the class of the module.
    notes
        Choices made while loading, one sentence each.
    """

    program: Program = field(repr=False)
    source: str
    notes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.program.input_shape

    @property
    def units(self) -> int:
        return self.program.units

    def describe(self) -> dict[str, Any]:
        """Plain facts for reports: source, input shape, units, and every breakpoint with its units."""
        return {
            "source": self.source,
            "input_shape": list(self.input_shape),
            "units": self.units,
            "layers": [{"operator": stage.label, "units": stage.breakpoint.units} for stage in self.program.stages],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        widths = "-".join(str(stage.breakpoint.units) for stage in self.program.stages)
        return f"{self.source}: input {shape}, {self.units} units ({widths})"


def load_network(
    path_or_module: str | os.PathLike[str] | nn.Module | Network,
    *,
    input_shape: Sequence[int] | None = None,
    model: Factory | None = None,
    model_args: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    trust_pickle: bool = False,
) -> Network:
    """Load a network from a checkpoint file or take a module, and lower it to a piecewise-affine program.

    Parameters
    ----------
    path_or_module
        A checkpoint file (see `regiongrid.network.checkpoint.load_checkpoint`) or an ``nn.Module``, which is left as it
        is: weights, training flags and device.
    input_shape
        Shape of one sample without the batch dimension. If not given, it is read off the first layer where that is a
        linear one.
    model, model_args, weights_key, trust_pickle
        For files only; see `load_checkpoint`.

    Raises
    ------
    InputError
        The file cannot be used, the input shape is missing or does not fit, or a parameter is NaN or infinite.
    UnsupportedOperatorError
        An operator in front of a breakpoint is not piecewise affine (GELU, softmax, LayerNorm).
    UnsafeCheckpointError
        The file holds pickled code and ``trust_pickle`` is off.

    Examples
    --------
    >>> from torch import nn
    >>> net = load_network(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)))
    >>> net.input_shape, net.units
    ((2,), 8)
    """
    if isinstance(path_or_module, Network):
        return path_or_module
    if isinstance(path_or_module, nn.Module):
        if model is not None or model_args or weights_key is not None:
            raise InputError("model, model_args and weights_key are for checkpoint files; a module needs none of them")
        module, source = path_or_module, type(path_or_module).__name__
        notes: tuple[str, ...] = ()
        check_finite(module)
    else:
        loaded = load_checkpoint(
            path_or_module, model=model, model_args=model_args, weights_key=weights_key, trust_pickle=trust_pickle
        )
        module, source, notes = loaded.module, Path(path_or_module).name, loaded.notes
    program = lower(module, input_shape if input_shape is not None else _inferred_input_shape(module))
    notes += (f"cut behind the last breakpoint: {program.cut}",) if program.cut else ()
    notes += tuple(_jumps(program))
    return Network(program, source, notes)


def _inferred_input_shape(module: nn.Module) -> tuple[int, ...]:
    """The input shape of a network whose first layer with weights is linear."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if next(layer.parameters(recurse=False), None) is not None:
            raise InputError(
                f"the shape of the input cannot be read off a {type(layer).__name__} layer; "
                "give it, for example --input-shape 1,28,28 (input_shape=(1, 28, 28))"
            )
    raise InputError("the network has no layer to read the input's shape off; give it, for example --input-shape 784")


def _jumps(program: Program) -> list[str]:
    """Breakpoints at which the function is not continuous (Threshold with a value other than the threshold)."""
    notes = []
    for stage in program.stages:
        bend = stage.breakpoint
        if isinstance(bend, Piecewise):
            below = bend.slopes[:-1] * bend.thresholds + bend.intercepts[:-1]
            above = bend.slopes[1:] * bend.thresholds + bend.intercepts[1:]
            if abs(below - above).max() > 1e-9 * (1 + abs(bend.thresholds).max()):
                notes.append(
                    f"{stage.label} jumps at its threshold: activation regions exist, the function is not continuous"
                )
    return notes
