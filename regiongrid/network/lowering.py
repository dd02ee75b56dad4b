"""torch.export graph -> program. An operator that is not piecewise affine is an error that names it and its place."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from regiongrid.errors import InputError, UnsupportedOperatorError
from regiongrid.network.operators import BREAKPOINTS, PASS_THROUGH, SUBSTITUTES, is_affine, output_shape
from regiongrid.network.program import INPUT, AffineCall, Breakpoint, Piecewise, Program, Ref, Segment, Stage


def lower(module: nn.Module, input_shape: Sequence[int]) -> Program:
    """Lower a module to a piecewise-affine program.

    Parameters
    ----------
    module
        Traced in eval mode on a float64 copy; the caller's module is left as it is, its training flags included.
    input_shape
        Shape of one sample, without the batch dimension.

    Raises
    ------
    UnsupportedOperatorError
        An operator that is neither affine nor a known breakpoint feeds a breakpoint.
    InputError
        The module cannot be exported at this input shape, or has no breakpoint.
    """
    return lower_with_recipe(module, input_shape)[0]


@dataclass
class Recipe:
    """How the constants of a program follow from the tensors of its module, to make them again when those change.

    Attributes
    ----------
    sources
        Constant -> dotted name of the parameter, buffer or tensor attribute that it is.
    derived
        Constants that are computed of others (the weight of a parametrised layer), in the order in which they are.
    breakpoints
        Number of a stage -> function of the constants that makes its breakpoint, where they set it (PReLU).
    frozen
        Operators that take a Python number which was computed from tensors (``scale.item()``): it cannot follow them.
    """

    sources: dict[str, str] = field(default_factory=dict)
    derived: list[AffineCall] = field(default_factory=list)
    breakpoints: dict[int, Callable[[Mapping[str, Any]], Breakpoint]] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)

    def apply(self, program: Program, tensors: Mapping[str, Tensor]) -> Program:
        """The program with ``tensors``, by dotted name, float64 where they are floating-point, as its constants."""
        constants: dict[str, Any] = dict(program.constants)
        constants.update((constant, tensors[name]) for constant, name in self.sources.items() if name in tensors)
        for call in self.derived:
            constants[call.name] = _as_float64(call.run(constants.__getitem__))
        stages = list(program.stages)
        for k, make in self.breakpoints.items():
            stages[k] = replace(stages[k], breakpoint=make(constants))
        kept = {name: constants[name] for name in program.constants}
        return replace(program, stages=tuple(stages), constants=kept)


def lower_with_recipe(module: nn.Module, input_shape: Sequence[int]) -> tuple[Program, Recipe]:
    """As `lower`, and with the program how its constants follow from the module's tensors."""
    shape = tuple(int(size) for size in input_shape)
    chain = _lower_chain(module, shape)
    if chain is not None:
        return chain, Recipe({name: name for name in chain.constants})
    lowering = _Lowering(_export(module, shape), shape)
    return lowering.program(), lowering.recipe


class _Draft:
    """A program in the making: affine calls by phase, and the stages between them.

    The phase of a value is the number of breakpoints that must have run before it exists.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.input_shape = input_shape
        self.constants: dict[str, Any] = {}
        self.phase: dict[str, int] = {INPUT: 0}
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: (1, *input_shape)}
        self.calls: list[list[AffineCall]] = [[]]
        self.stages: list[Stage] = []

    def add_affine(self, call: AffineCall, shape: tuple[int, ...] | None) -> None:
        """``shape`` is None for a call that returns several tensors."""
        phase = max(self.phase[name] for name in call.references() & set(self.phase))
        self.calls[phase].append(call)
        self.phase[call.name] = phase
        if shape is not None:
            self.shapes[call.name] = shape

    def add_breakpoint(
        self, name: str, sources: Sequence[str], breakpoint: Breakpoint, shape: tuple[int, ...], label: str
    ) -> str:
        """Returns the name of the value that the breakpoint makes."""
        value = f"{name}.value"
        first = sum(stage.breakpoint.decisions for stage in self.stages)
        self.stages.append(Stage(tuple(sources), breakpoint, value, label, first))
        self.calls.append([])
        self.phase[value] = len(self.stages)
        self.shapes[value] = shape
        return value

    def program(self, output: str, cut: str = "") -> Program:
        return Program(
            input_shape=self.input_shape,
            stages=tuple(self.stages),
            segments=self._segments(output),
            shapes=self.shapes,
            constants={name: value for name, value in self.constants.items() if isinstance(value, Tensor)},
            output=output if output in self.phase else None,
            cut=cut,
        )

    def _segments(self, output: str) -> tuple[Segment, ...]:
        """The affine calls by phase, without those that no breakpoint and no output needs."""
        needed = {output}.union(*(stage.preactivations for stage in self.stages))
        segments: list[Segment] = []
        for calls in reversed(self.calls):
            wanted = set(needed)
            kept: list[AffineCall] = []
            for call in reversed(calls):
                if call.name in wanted:
                    kept.append(call)
                    wanted |= call.references()
            made = {call.name for call in kept}
            inputs = (set().union(*(call.references() for call in kept)) & set(self.phase)) - made
            segments.append(Segment(tuple(reversed(kept)), tuple(sorted(inputs)), tuple(sorted(needed & made))))
            needed = (needed - made) | inputs
        return tuple(reversed(segments))


def _lower_chain(module: nn.Module, shape: tuple[int, ...]) -> Program | None:
    """The program of a plain chain of Linear and ReLU layers, None for anything else.

    It is what tracing gives for such a module, without the second that it takes to import torch.export.
    """
    draft, name, size = _Draft(shape), INPUT, shape[-1]
    for path, layer in module.named_modules(remove_duplicate=False):  # one ReLU may stand in several places
        kind = type(layer)  # subclasses and parametrised layers may do something else
        if layer._forward_hooks or layer._forward_pre_hooks or (kind is not nn.Sequential and len(shape) != 1):
            return None
        if isinstance(layer, nn.Linear) and kind is nn.Linear and layer.in_features == size:
            size = layer.out_features
            references = []
            for parameter, value in (("weight", layer.weight), ("bias", layer.bias)):
                if value is not None:
                    draft.constants[f"{path}.{parameter}"] = _as_float64(value).cpu()
                    references.append(Ref(f"{path}.{parameter}"))
            call = AffineCall(f"linear {path}", nn.functional.linear, (Ref(name), *references), {})
            draft.add_affine(call, (1, size))
            name = call.name
        elif kind is nn.ReLU:
            zeros, ones = np.zeros((1, size)), np.ones((1, size))
            bend = Piecewise(zeros, np.vstack([zeros, ones]), np.vstack([zeros, zeros]))
            name = draft.add_breakpoint(path, [name], bend, (1, size), f"relu in module '{path}' (ReLU)")
        elif kind not in (nn.Sequential, nn.Identity, nn.Dropout):
            return None
    return draft.program(name) if draft.stages else None


def _export(module: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    try:
        twin = copy.deepcopy(module).to("cpu", torch.float64)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied ({error}); pass a module that copy.deepcopy accepts"
        ) from error
    twin.requires_grad_(False)
    for part in twin.modules():
        part.training = False  # not .eval(): exported modules refuse the call
    default = torch.get_default_dtype()
    tracer = logging.getLogger("torch._subclasses.fake_tensor")  # logs a traceback before it raises
    was_disabled, tracer.disabled = tracer.disabled, True
    exported: torch.export.ExportedProgram
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation notices of torch.export's own internals
        torch.set_default_dtype(torch.float64)  # constants that forward() makes are to be float64 too
        try:
            exported = torch.export.export(twin, (torch.zeros(1, *shape),), strict=False)
            # No decompositions: the graph becomes free of in-place writes, and keeps relu, conv2d, max_pool2d by name.
            exported = exported.run_decompositions({})
        except Exception as error:
            reason = str(error).strip().rstrip(".").splitlines()
            raise InputError(
                f"{type(module).__name__} could not be traced with an input of shape {(1, *shape)}: "
                f"{reason[0] if reason else type(error).__name__}. Check the input shape (--input-shape); control flow "
                "that depends on the input's values cannot be traced"
            ) from error
        finally:
            torch.set_default_dtype(default)
            tracer.disabled = was_disabled
    return exported


class _Lowering:
    """One pass over the exported graph. Each node is a constant, a value, or opaque.

    Opaque is what depends on an operator that is not piecewise affine: harmless behind the last breakpoint, an error in
    front of one.
    """

    def __init__(self, exported: torch.export.ExportedProgram, input_shape: tuple[int, ...]) -> None:
        self.graph = exported.graph
        self.draft = _Draft(input_shape)
        self.constants, self.phase = self.draft.constants, self.draft.phase
        self.opaque: dict[str, str] = {}  # node -> the operator to blame
        self.alias: dict[str, str] = {}  # graph name -> value name, where they differ
        signature = exported.graph_signature
        if len(signature.user_inputs) != 1 or not isinstance(signature.user_inputs[0], str):
            raise InputError(
                f"the network takes {len(signature.user_inputs)} inputs; regiongrid follows exactly one tensor"
            )
        state = {**exported.state_dict, **exported.constants}
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for placeholder, name in names.items():
            self.constants[placeholder] = _as_float64(state[name])
        self.recipe = Recipe(dict(names))
        self._varying = set(names)  # constants that change with the module's tensors
        self.alias[signature.user_inputs[0]] = INPUT

    def program(self) -> Program:
        for node in self.graph.nodes:
            if node.op == "call_function":
                self._visit(node)
        if not self.draft.stages:
            blame = next(iter(self.opaque.values()), None)
            found = f"; the first operator that is not piecewise affine is {blame}" if blame else ""
            raise InputError(f"the network has no piecewise-linear breakpoint (ReLU, max-pool, ...){found}")
        result = next(iter(self.graph.output_node().args[0]))
        output = self._name(result) if isinstance(result, Node) else ""
        return self.draft.program(output, self.opaque.get(output, ""))

    def _name(self, node: Node) -> str:
        return self.alias.get(node.name, node.name)

    def _visit(self, node: Node) -> None:
        operator = _operator(node)
        inputs = [self._name(n) for n in node.all_input_nodes]
        live = [name for name in inputs if name in self.phase]
        blame = next((self.opaque[name] for name in inputs if name in self.opaque), None)
        if blame is not None and operator in BREAKPOINTS:
            raise UnsupportedOperatorError(
                f"{blame} is not piecewise affine and feeds {_describe(node)}. Linear regions exist only where every "
                "operator before the last breakpoint is piecewise affine; replace it (GELU by ReLU, LayerNorm by "
                "BatchNorm) or estimate the part of the network in front of it"
            )
        if blame is not None:
            self.opaque[node.name] = blame
        elif not live:
            self.constants[node.name] = self._evaluate(node)
        elif operator in PASS_THROUGH and len(live) == 1:
            self.alias[node.name] = live[0]
        elif operator == "getitem" and live[0] in self._breakpoint_values():
            self._take_from_breakpoint(node, live[0])
        elif operator in BREAKPOINTS:
            self._add_breakpoint(node, operator)
        elif is_affine(operator, [self._name(n) in self.phase for n in _tensor_arguments(node)]):
            self._add_affine(node)
        else:
            self.opaque[node.name] = _describe(node)

    def _evaluate(self, node: Node) -> Any:
        """The value of a node that depends on no input."""
        args, kwargs = _map_arguments(node, lambda n: self.constants[n.name])
        if any(n.name in self._varying for n in node.all_input_nodes):
            self._varying.add(node.name)
            step = _map_arguments(node, lambda n: Ref(n.name) if n.name in self._varying else self.constants[n.name])
            self.recipe.derived.append(AffineCall(node.name, node.target, *step))  # type: ignore[arg-type]
        return _as_float64(node.target(*args, **kwargs))  # type: ignore[operator]

    def _add_affine(self, node: Node) -> None:
        varying = [self.constants[n.name] for n in _tensor_arguments(node) if n.name in self._varying]
        if not all(isinstance(value, Tensor) for value in varying):
            self.recipe.frozen.append(_describe(node))
        args, kwargs = _map_arguments(node, self._reference)
        kept = {key: value for key, value in kwargs.items() if key not in {"dtype", "memory_format"}}
        function: Any = SUBSTITUTES.get(_operator(node), node.target)
        value = node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        self.draft.add_affine(AffineCall(node.name, function, args, kept), shape)

    def _reference(self, node: Node) -> Any:
        name = self._name(node)
        constant = self.constants.get(name)
        return Ref(name) if constant is None or isinstance(constant, Tensor) else constant

    def _add_breakpoint(self, node: Node, operator: str) -> None:
        made = BREAKPOINTS[operator](node, self._constant)
        if made is None:
            self.opaque[node.name] = _describe(node)
            return
        sources, breakpoint = made
        fixed = {n.name: self.constants[n.name] for n in node.all_input_nodes if n.name in self.constants}
        if self._varying & set(fixed):
            make = functools.partial(_breakpoint, operator, node, fixed)
            self.recipe.breakpoints[len(self.draft.stages)] = make
        names = [self._name(source) for source in sources]
        value = self.draft.add_breakpoint(node.name, names, breakpoint, output_shape(node), _describe(node))
        self.alias[node.name] = value

    def _breakpoint_values(self) -> set[str]:
        return {stage.value for stage in self.draft.stages}

    def _take_from_breakpoint(self, node: Node, value: str) -> None:
        """Pooling operators may return (values, indices): the values go on, the indices are not affine."""
        if node.args[1] == 0:
            self.alias[node.name] = value
        else:
            self.opaque[node.name] = _describe(node)

    def _constant(self, argument: Any) -> Any:
        """The value of an argument that does not depend on the input, None for one that does."""
        return self.constants.get(argument.name) if isinstance(argument, Node) else argument


def _breakpoint(operator: str, node: Node, fixed: Mapping[str, Any], constants: Mapping[str, Any]) -> Breakpoint:
    """The breakpoint that a node makes with these constants, and with ``fixed`` for those that are missing there."""

    def constant(argument: Any) -> Any:
        return constants.get(argument.name, fixed.get(argument.name)) if isinstance(argument, Node) else argument

    made = BREAKPOINTS[operator](node, constant)
    assert made is not None
    return made[1]


def _as_float64(value: Any) -> Any:
    return value.detach().to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value


def _map_arguments(node: Node, replace: Callable[[Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(torch.fx.map_arg(node.args, replace)), dict(torch.fx.map_arg(node.kwargs, replace))


def _tensor_arguments(node: Node) -> list[Node]:
    flat = itertools.chain(node.args, node.kwargs.values())
    return [
        item
        for argument in flat
        for item in (argument if isinstance(argument, list) else [argument])
        if isinstance(item, Node)
    ]


def _operator(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return getattr(target, "__name__", str(target))


def _describe(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    where = f"in module '{path}' ({kind.rsplit('.', 1)[-1]})" if path else "in the top-level forward"
    return f"{_operator(node)} {where}"
