"""A network that is being trained: lowered once, and read again whenever its regions are wanted.

Tracing a module takes a second, copying its weights a millisecond. `LiveNetwork` traces once and remembers which
constant of the program is which parameter or buffer, so that `LiveNetwork.current` only copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regiongrid.errors import InputError
from regiongrid.network import Network, load_network
from regiongrid.network.checkpoint import check_finite
from regiongrid.network.lowering import Recipe, lower_with_recipe
from regiongrid.network.program import Piecewise, Program

_SHOWN = 3
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
# What every module has, and what training changes without changing the function.
_NOT_SETTINGS = {*vars(nn.Module()), "training", "_compiled_call_impl"}
_NONE: Any = object()


class LiveNetwork:
    """A module under training as a network, at any moment.

    The module is lowered once, here. It is left as it is: no hook, no attribute, no change of its training flags.

    Parameters
    ----------
    module
        Any module that `load_network` takes. What ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``
        put around it is looked through.
    input_shape
        Shape of one sample; see `load_network`.

    Raises
    ------
    InputError
        The module cannot be lowered (see `load_network`), or part of its function cannot follow its tensors: an
        operator takes a Python number that ``forward`` computes from a tensor (``x * self.scale.item()``).
    UnsupportedOperatorError
        An operator in front of a breakpoint is not piecewise affine.

    Notes
    -----
    Parametrised layers (``torch.nn.utils.parametrizations``) are followed: their weight is computed again from the
    tensors behind it. Of spectral norm that is the weight in eval mode, with the singular vectors as they are.

    Plain attributes of the module's parts (numbers, flags, texts) are part of the traced function. When one changes,
    the module is traced again by the next `current`, once if it makes no difference (a counter), and each time if it
    does (a slope that is annealed). Values that ``forward`` takes from elsewhere (globals, lists, other objects), and
    what forward hooks do, are as they were at the last tracing. Tracing runs ``forward`` and its hooks on a copy.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> live = LiveNetwork(net)
    >>> _ = nn.init.zeros_(net[0].bias)
    >>> bool(live.current().program.constants["0.bias"].any())
    False
    """

    def __init__(self, module: nn.Module, input_shape: Sequence[int] | None = None) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"a live network needs an nn.Module, got {type(module).__name__}")
        self.module = module
        first = load_network(unwrapped(module), input_shape=input_shape)
        self.source, self.notes = first.source, first.notes
        self.input_shape = first.input_shape
        self._structure = Structure.of(unwrapped(module))
        self._ignored: set[str] = set()
        self._program, self._recipe = self._lowered()

    @property
    def structure(self) -> tuple[str, ...]:
        """One line a part, tensor and tie of the module, and one for its input; two runs may go together if equal."""
        return (f"input: {_shape(self.input_shape)}", *self._structure.lines())

    def current(self) -> Network:
        """The network with the module's parameters and buffers of this moment, copied to the CPU as float64.

        It equals ``load_network(module)``, but for the time that it takes.

        Raises
        ------
        InputError
            The module has other parts, parameters, shapes or ties than at first; a value is NaN or infinite; or a
            parameter is sharded over several processes.
        """
        module = unwrapped(self.module)
        structure = Structure.of(module)
        changes = list(self._structure.changes(structure))
        if changes:
            more = f" (and {len(changes) - _SHOWN} more)" if len(changes) > _SHOWN else ""
            raise InputError(
                f"{self.source} has changed since it was lowered: {'; '.join(changes[:_SHOWN])}{more}. Regions of "
                "another network do not continue the same curves; make a new monitor for it"
            )
        settings = self._structure.changed_settings(structure) - self._ignored
        if settings:
            self._lower_again(settings, structure)
        return Network(self._refreshed(module), self.source, self.notes)

    def _refreshed(self, module: nn.Module) -> Program:
        tensors = {name: _tensor(module, name) for name in self._recipe.sources.values()}
        with torch.no_grad():
            copies = float64_on_cpu({name: t for name, t in tensors.items() if t is not None})
            if not all(math.isfinite(float(copy.sum())) for copy in copies.values() if copy.is_floating_point()):
                check_finite(module)
            return self._recipe.apply(self._program, copies)

    def _lowered(self) -> tuple[Program, Recipe]:
        program, recipe = lower_with_recipe(unwrapped(self.module), self.input_shape)
        if recipe.frozen:
            raise InputError(
                f"{recipe.frozen[0]} takes a Python number that is computed from a tensor, so it cannot be followed "
                "through training; keep it a tensor (leave out .item() or float())"
            )
        return program, recipe

    def _lower_again(self, settings: set[str], structure: Structure) -> None:
        """Trace the module with its changed settings; those that make no difference are never looked at again."""
        before = self._refreshed(unwrapped(self.module))
        program, recipe = self._lowered()
        if _same_function(before, program):
            self._ignored |= settings
            return
        if [(s.label, s.breakpoint.units) for s in before.stages] != [
            (s.label, s.breakpoint.units) for s in program.stages
        ]:
            changed = ", ".join(sorted(settings)[:_SHOWN])
            raise InputError(
                f"{self.source} has other breakpoints since {changed} changed; make a new monitor for what it is now"
            )
        self._program, self._recipe, self._structure = program, recipe, structure


@dataclass(frozen=True)
class Structure:
    """What of a module has to stay for its program to stay, but for the values of its tensors."""

    parts: Mapping[str, str]  # dotted name -> class
    tensors: Mapping[str, str]  # dotted name -> kind and shape
    ties: Mapping[str, str]  # name of a tensor -> another name of the same one
    settings: Mapping[str, Any]  # plain attributes, and a ``forward`` of an instance's own

    @classmethod
    def of(cls, module: nn.Module) -> Structure:
        parts, settings = {}, {}
        for path, part in module.named_modules(remove_duplicate=False):
            kind = type(part)
            parts[path] = f"{kind.__module__}.{kind.__qualname__}"
            settings.update({f"{path}.{key}".lstrip("."): value for key, value in _settings(part)})
        tensors: dict[str, str] = {}
        ties: dict[str, str] = {}
        names: dict[int, str] = {}
        for kind_, named in (
            ("parameter", module.named_parameters(remove_duplicate=False)),
            ("buffer", module.named_buffers(remove_duplicate=False)),
        ):
            for name, tensor in named:
                tensors[name] = f"{kind_} {_shape(tensor.shape)}"
                first = names.setdefault(id(tensor), name)
                if first != name:
                    ties[name] = first
        return cls(parts, tensors, ties, settings)

    def lines(self) -> Iterator[str]:
        """One line a part, tensor and tie."""
        yield from (f"{path or 'the module'}: {kind}" for path, kind in self.parts.items())
        yield from (f"{name}: {kind}" for name, kind in self.tensors.items())
        yield from (f"{name}: the same tensor as {first}" for name, first in self.ties.items())

    def changes(self, now: Structure) -> Iterator[str]:
        """What is not as before, one sentence each; settings apart."""
        for what, before, after in (
            ("module", self.parts, now.parts),
            ("", self.tensors, now.tensors),
            ("the tensor of the same name as", self.ties, now.ties),
        ):
            for name in {**before, **after}:
                old, new = before.get(name), after.get(name)
                if old != new:
                    label = f"{what} '{name}'".lstrip()
                    yield (
                        f"{label} is new ({new})"
                        if old is None
                        else f"{label} is gone ({old})"
                        if new is None
                        else f"{label} was {old} and is {new}"
                    )

    def changed_settings(self, now: Structure) -> set[str]:
        """Names of the settings that differ."""
        names = {**self.settings, **now.settings}
        return {name for name in names if not _equal(self.settings.get(name, _NONE), now.settings.get(name, _NONE))}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def float64_on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, float64 where they are floating-point; one transfer for all tensors of a device and type."""
    copies: dict[int, Tensor] = {}
    far: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):
            raise InputError(
                f"{name} is sharded over several processes (DTensor); gather the weights into a plain copy of the "
                "model and follow that"
            )
        if id(tensor) in copies:
            continue
        copies[id(tensor)] = tensor
        if tensor.device.type == "cpu":
            copies[id(tensor)] = tensor.detach().to(_wanted(tensor.dtype), copy=True)
        else:
            far.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for (_, dtype), group in far.items():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group]).cpu().to(_wanted(dtype))
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group])):
            copies[id(tensor)] = part.reshape(tensor.shape)
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def _wanted(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    """The tensor of a dotted name; None for what torch.export made up for a constant inside ``forward``."""
    value: Any = module
    for key in name.split("."):
        value = getattr(value, key, None)
    return value if isinstance(value, Tensor) else None


def _settings(part: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(part).items():
        plain = isinstance(value, _PLAIN) or (
            isinstance(value, list | tuple) and all(isinstance(item, _PLAIN) for item in value)
        )
        if key not in _NOT_SETTINGS and plain:
            yield key, tuple(value) if isinstance(value, list) else value
        elif key == "forward":
            yield key, value


def _equal(one: Any, two: Any) -> bool:
    return one is two or bool(one == two)


def _same_function(one: Program, two: Program) -> bool:
    """Whether two programs of one module have the same operators, breakpoints and constants."""

    def operators(program: Program) -> str:
        calls = [
            (call.name, str(call.function), call.args, call.kwargs)
            for segment in program.segments
            for call in segment.calls
        ]
        return repr((calls, [(stage.preactivations, stage.label) for stage in program.stages], program.output))

    def bends(program: Program) -> list[Tensor]:
        return [
            torch.from_numpy(array)
            for stage in program.stages
            for array in (
                (stage.breakpoint.thresholds, stage.breakpoint.slopes, stage.breakpoint.intercepts)
                if isinstance(stage.breakpoint, Piecewise)
                else (stage.breakpoint.windows,)
            )
        ]

    return (
        operators(one) == operators(two)
        and one.constants.keys() == two.constants.keys()
        and all(torch.equal(value, two.constants[name]) for name, value in one.constants.items())
        and all(torch.equal(a, b) for a, b in zip(bends(one), bends(two)))
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
