"""A program on one slice: everything affine in the slice coordinates (u, v) is folded, the input dimension is gone.

Values are flat here, [B, n]. Up to the first breakpoint a network is affine in (u, v), so three vectors a slice (one
constant, one a direction) stand for all its operators there, whatever the input dimension. Between breakpoints, affine
operators become one matrix where that is no more work than the operators themselves, and stay as they are elsewhere
(convolutions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from regiongrid.errors import InputError
from regiongrid.network.program import INPUT, Program, Ref, Segment, Stage
from regiongrid.slices import Slice

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# A segment of convolutions becomes a matrix only if that is this small, any other segment up to the larger size.
_DENSE_ENTRIES_SPARSE = 1 << 16
_DENSE_ENTRIES = 1 << 25
_PROBES = 32
_STEP = 2.0**40
_BASIS_ENTRIES = 1 << 24


@dataclass(frozen=True)
class AffineInUV:
    """constant + u * tangents[:, 0] + v * tangents[:, 1]."""

    constant: Tensor  # [n]
    tangents: Tensor  # [n, 2]


@dataclass(frozen=True)
class FoldedSegment:
    """The affine maps from earlier values (and from u, v) to ``outputs``.

    Either ``matrices`` holds a matrix for every (output, input), or ``graph`` computes what depends on earlier values.
    ``from_uv`` is the rest: the constant and the part that is affine in (u, v).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    from_uv: Mapping[str, AffineInUV]
    matrices: Mapping[tuple[str, str], Tensor]  # (output, input) -> [n_output, n_input]
    graph: Segment | None
    offsets: Mapping[str, Tensor]  # output -> [n], its value where all inputs and u, v are zero
    row_norms: Mapping[str, Tensor]  # output -> [n], Euclidean norm of the rows of its map
    fan_in: Mapping[str, float]  # input -> share of its entries that a typical row touches


@dataclass(frozen=True)
class SliceProgram:
    """A `Program` restricted to a `Slice`, in float64. ``uv_values``: values in front of the first breakpoint."""

    program: Program
    slice: Slice
    uv_values: Mapping[str, AffineInUV]
    segments: tuple[FoldedSegment, ...]  # after stage 0, 1, ...
    sizes: Mapping[str, int]
    last_use: Mapping[str, int] = field(repr=False)  # value -> index of the last stage or segment that reads it

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.program.stages


def restrict(program: Program, slice_: Slice) -> SliceProgram:
    """Fold a slice into a program.

    Raises
    ------
    InputError
        The slice lies in a space of another dimension than the network's input.
    """
    return restrict_all(program, [slice_])[0]


def restrict_all(program: Program, slices: Sequence[Slice]) -> list[SliceProgram]:
    """Fold several slices into a program; what does not depend on the slice is folded once and shared.

    Raises
    ------
    InputError
        A slice lies in a space of another dimension than the network's input.
    """
    sizes = {name: math.prod(shape) for name, shape in program.shapes.items()}
    last_use = _last_use(program)
    shared: dict[int, FoldedSegment] = {}
    found = []
    with torch.no_grad():
        for slice_ in slices:
            uv_values = _uv_values(program, slice_)
            segments = []
            for k, segment in enumerate(program.segments[1:]):
                folded = shared[k] if k in shared else _fold(program, segment, uv_values)
                if not set(segment.inputs) & set(uv_values):
                    shared[k] = folded
                segments.append(folded)
            found.append(SliceProgram(program, slice_, uv_values, tuple(segments), sizes, last_use))
    return found


def _uv_values(program: Program, slice_: Slice) -> dict[str, AffineInUV]:
    """The input and the values in front of the first breakpoint, as affine functions of (u, v)."""
    if slice_.origin.size != program.input_size:
        raise InputError(
            f"the slice lies in a space of dimension {slice_.origin.size}, but the network takes "
            f"{program.input_size} numbers (input shape {program.input_shape})"
        )
    origin, u, v = (
        torch.from_numpy(np.array(a)).reshape(program.shapes[INPUT]) for a in (slice_.origin, slice_.u, slice_.v)
    )
    of_input = AffineInUV(origin.reshape(-1), torch.stack([u.reshape(-1), v.reshape(-1)], dim=1))
    return {INPUT: of_input, **_head(program, origin, (u, v))}


def _head(program: Program, origin: Tensor, directions: Sequence[Tensor]) -> dict[str, AffineInUV]:
    """Values in front of the first breakpoint, as affine functions of (u, v)."""
    segment = program.segments[0]
    if not segment.outputs:
        return {}

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return segment.run(program.constants, [x] if segment.inputs else [])

    constants = run(origin)
    at_zero = run(torch.zeros_like(origin))
    tangents = [_linear_part(run, (direction,), at_zero) for direction in directions]
    return {
        name: AffineInUV(constants[k].reshape(-1), torch.stack([t[k].reshape(-1) for t in tangents], dim=1))
        for k, name in enumerate(segment.outputs)
    }


def _linear_part(
    function: Callable[..., tuple[Tensor, ...]], tangents: Sequence[Tensor], at_zero: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The linear part of an affine function at ``tangents``; ``at_zero`` is its value at zero."""
    # An affine function has no second order, so a huge step costs no accuracy and drowns the constant.
    images = function(*(tangent * _STEP for tangent in tangents))
    return tuple((image - constant) / _STEP for image, constant in zip(images, at_zero))


def _fold(program: Program, segment: Segment, uv_values: Mapping[str, AffineInUV]) -> FoldedSegment:
    live = tuple(name for name in segment.inputs if name not in uv_values)
    from_slice = tuple(name for name in segment.inputs if name in uv_values)
    ordered = Segment(segment.calls, live + from_slice, segment.outputs)
    shapes = [program.shapes[name] for name in ordered.inputs]
    zeros = tuple(torch.zeros(shape, dtype=torch.float64) for shape in shapes)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return ordered.run(program.constants, inputs)

    if not segment.outputs:
        return FoldedSegment(live, (), {}, {}, None, {}, {}, {})
    bias = run(*zeros)

    def linear(tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _linear_part(run, tangents, bias)

    sizes_in = {name: math.prod(program.shapes[name]) for name in live}
    sizes_out = {name: math.prod(program.shapes[name]) for name in segment.outputs}
    entries = sum(sizes_in.values()) * sum(sizes_out.values())
    sparse = any("conv" in str(call.function) or "pool" in str(call.function) for call in segment.calls)
    dense = entries <= (_DENSE_ENTRIES_SPARSE if sparse else _DENSE_ENTRIES)
    parts = []
    for k in range(3):  # constant, u, v
        tangents = list(zeros)
        for position, name in enumerate(from_slice, start=len(live)):
            value = uv_values[name]
            column = value.constant if k == 0 else value.tangents[:, k - 1]
            tangents[position] = column.reshape(shapes[position])
        parts.append(linear(tangents) if from_slice else tuple(torch.zeros_like(b) for b in bias))
    from_uv = {
        name: AffineInUV(
            # A graph adds its own biases when it runs; with matrices they are added here.
            (parts[0][k] + bias[k] if dense else parts[0][k]).reshape(-1),
            torch.stack([parts[1][k].reshape(-1), parts[2][k].reshape(-1)], dim=1),
        )
        for k, name in enumerate(segment.outputs)
    }
    offsets = {name: (parts[0][k] + bias[k]).reshape(-1) for k, name in enumerate(segment.outputs)}
    if dense:
        weight = _weight(program, segment)
        matrices = {
            (output, name): matrix
            for position, name in enumerate(live)
            for output, matrix in zip(
                segment.outputs, _matrices(linear, zeros, position) if weight is None else [weight]
            )
        }
        norms = {
            output: torch.stack([matrices[output, name].norm(dim=1) for name in live]).amax(0)
            for output in segment.outputs
        }
        return FoldedSegment(live, segment.outputs, from_uv, matrices, None, offsets, norms, dict.fromkeys(live, 1.0))
    probes = _probe(linear, zeros, len(live))
    norms = {output: probe.square().mean(0).sqrt() for output, probe in zip(segment.outputs, probes)}
    fan_in = {name: _fan_in(run, zeros, position) for position, name in enumerate(live)}
    return FoldedSegment(live, segment.outputs, from_uv, {}, ordered, offsets, norms, fan_in)


def _weight(program: Program, segment: Segment) -> Tensor | None:
    """The matrix of a segment that is one linear layer on a vector: it need not be found by applying it."""
    if len(segment.calls) != 1 or segment.inputs == ():
        return None
    (call,) = segment.calls
    if call.function not in (nn.functional.linear, torch.ops.aten.linear.default) or len(call.args) < 2:
        return None
    value, weight = call.args[:2]
    if not (isinstance(value, Ref) and isinstance(weight, Ref) and weight.name in program.constants):
        return None
    matrix = program.constants[weight.name]
    fits = segment.inputs == (value.name,) and math.prod(program.shapes[value.name]) == matrix.shape[1]
    return matrix if fits else None


def _matrices(
    linear: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], zeros: tuple[Tensor, ...], position: int
) -> list[Tensor]:
    """The matrix from one input to every output, [n_output, n_input] each."""
    blocks = _column_blocks(linear, zeros, position)
    return [torch.cat(columns).T.contiguous() for columns in zip(*blocks)]


def _column_blocks(
    linear: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], zeros: tuple[Tensor, ...], position: int
) -> Iterator[list[Tensor]]:
    """The columns of the matrices from one input, some at a time: [columns, n_output] for every output."""
    size = zeros[position].numel()

    def column(tangent: Tensor) -> tuple[Tensor, ...]:
        tangents = list(zeros)
        tangents[position] = tangent.reshape(zeros[position].shape)
        return linear(tangents)

    step = max(1, min(512, _BASIS_ENTRIES // size))
    for start in range(0, size, step):
        basis = torch.zeros(min(step, size - start), size, dtype=torch.float64)
        basis[torch.arange(basis.shape[0]), start + torch.arange(basis.shape[0])] = 1
        yield [out.reshape(out.shape[0], -1) for out in torch.vmap(column)(basis)]


def sparse_matrices(program: Program, folded: FoldedSegment, most_entries: int) -> dict[tuple[str, str], csr_array]:
    """The matrices of a segment that stayed a graph, (output, input) -> [n_output, n_input].

    Empty if they have more than ``most_entries`` entries that are not zero.
    """
    from scipy.sparse import csr_array, vstack

    graph = folded.graph
    assert graph is not None
    zeros = tuple(torch.zeros(program.shapes[name], dtype=torch.float64) for name in graph.inputs)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return graph.run(program.constants, inputs)

    with torch.no_grad():
        bias = run(*zeros)
        found: dict[tuple[str, str], csr_array] = {}
        for position, name in enumerate(folded.inputs):
            columns: list[list[csr_array]] = []
            for block in _column_blocks(lambda tangents: _linear_part(run, tangents, bias), zeros, position):
                columns.append([csr_array(part.numpy()) for part in block])
                most_entries -= sum(part.nnz for part in columns[-1])
                if most_entries < 0:
                    return {}
            for output, parts in zip(folded.outputs, zip(*columns)):
                found[output, name] = csr_array(vstack(parts).T)
    return found


def _probe(
    linear: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], zeros: tuple[Tensor, ...], live: int
) -> list[Tensor]:
    """Images of standard normal vectors, [probes, n_output] each: their root mean square is the norm of a row."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(_PROBES):
        tangents = [
            torch.randn(zero.shape, generator=generator, dtype=torch.float64) if k < live else zero
            for k, zero in enumerate(zeros)
        ]
        images.append([image.reshape(-1) for image in linear(tangents)])
    return [torch.stack(rows) for rows in zip(*images)]


def _fan_in(run: Callable[..., tuple[Tensor, ...]], zeros: tuple[Tensor, ...], position: int) -> float:
    """Share of the entries of one input that an output entry touches, the median over a few output entries."""
    with torch.enable_grad():
        inputs = tuple(zero.clone().requires_grad_(True) for zero in zeros)
        outputs = torch.cat([output.reshape(-1) for output in run(*inputs)])
        counts = []
        for row in sorted(set(np.linspace(0, outputs.numel() - 1, 17).astype(int).tolist())):
            (gradient,) = torch.autograd.grad(outputs[row], inputs[position], retain_graph=True, allow_unused=True)
            counts.append(0 if gradient is None else int(gradient.count_nonzero()))
    return float(np.median([c for c in counts if c] or [zeros[position].numel()])) / zeros[position].numel()


def _last_use(program: Program) -> dict[str, int]:
    """When a value is read for the last time; stage k reads at 2 k, the segment behind it at 2 k + 1."""
    last: dict[str, int] = {}
    for k, stage in enumerate(program.stages):
        last.update(dict.fromkeys(stage.preactivations, 2 * k))
        last.update(dict.fromkeys(program.segments[k + 1].inputs, 2 * k + 1))
    return last
