"""Pattern hashes at a batch of slice coordinates, in one precision, with every close decision flagged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiongrid.kernels.pattern_hash import START, decision_keys, kernels
from regiongrid.network.on_slice import AffineInUV, FoldedSegment, SliceProgram
from regiongrid.network.program import Breakpoint, Maximum, Segment, Stage, cast_constants

Array = np.ndarray[Any, Any]
Observer = Callable[[int, Tensor, Tensor], None]

# A layer's values of one chunk: small enough for a cache, large enough that calls cost little. On a GPU, where a call
# has to keep thousands of cores busy, memory is the limit.
_BUFFER_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}
_CHUNK_ROWS = {"cpu": (128, 4096), "cuda": (128, 1 << 20)}
_CPU = torch.device("cpu")
_START = int(START.astype(np.int64))


@dataclass(frozen=True)
class _Part:
    """One piece of a stage's pre-activations."""

    name: str
    from_uv: Tensor | None  # [slices, 2, n], where the piece is affine in (u, v)
    pool: float | None  # passed on unchanged from a value: 1 / sqrt(n)


@dataclass(frozen=True)
class _Stage:
    parts: tuple[_Part, ...]
    breakpoint: Breakpoint
    value: str
    kernel: Callable[..., None]
    arguments: tuple[Any, ...]  # what the kernel takes between the bias and the band, in its order
    bias: Tensor  # [n] or [slices, n], as the next four
    unit_gain: Tensor  # one unit of rounding of z is unit_gain * scale + unit_offset
    unit_offset: Tensor
    gain: Tensor  # the same times kappa and the unit: the band
    offset: Tensor
    size: int


@dataclass(frozen=True)
class _Map:
    """One output of a segment: products with matrices, or what a graph has left there, plus what (u, v) add."""

    output: str
    matrices: tuple[tuple[str, Tensor], ...]  # (input, [n_input, n_output]); empty behind a graph
    tangents: Tensor | None  # [slices, 2, n_output]
    constant: Tensor | None  # [slices, n_output]; None where the stage's kernel adds it or it is zero
    size: int


@dataclass(frozen=True)
class _Graph:
    """Operators of a segment that stay operators."""

    operators: Segment
    constants: dict[str, Tensor]
    absent: tuple[Tensor, ...]  # zeros for the inputs that are affine in (u, v): their share is added behind


@dataclass
class _Batch:
    """What one call knows of its points so far."""

    coordinates: Tensor  # [B, 2]
    which: Tensor | None  # [B] int64, the slice of each point where there are several
    uv_norms: Tensor  # [B]
    hashes: Tensor  # [B] int64, the bits of the uint64 hashes
    flags: Tensor  # [B] bool
    values: dict[str, Tensor] = field(default_factory=dict)  # [B, n]
    norms: dict[str, Tensor] = field(default_factory=dict)  # [B], of values
    scales: dict[str, Tensor] = field(default_factory=dict)  # [B], size of what was added up into a value


class PatternEvaluator:
    """Evaluates pattern hashes of a program on one slice, or on several, in ``dtype``.

    Parameters
    ----------
    folded
        The program on its slice, or a sequence of one program on several slices.
    kappa
        Width of the guard band in units of rounding, one a stage.
    arbiter
        Decide every unit with the band as the tolerance around zero (see `regiongrid.kernels.pattern_hash`); the flags
        mean nothing then.
    backend, device
        Kernels, and where they run: "triton" on a GPU, "cpu" or "reference" on the CPU.
    """

    def __init__(
        self,
        folded: SliceProgram | Sequence[SliceProgram],
        dtype: torch.dtype,
        kappa: Array,
        *,
        arbiter: bool = False,
        backend: str = "cpu",
        device: torch.device = _CPU,
        seed: int = 0,
    ) -> None:
        self.dtype = dtype
        self.unit = torch.finfo(dtype).eps / 2
        self.kappa = kappa
        self.arbiter = arbiter
        self.device = device
        self._kernels = kernels(backend)
        self._slices = [folded] if isinstance(folded, SliceProgram) else list(folded)
        self._folded = self._slices[0]
        self._sizes = self._folded.sizes
        self._last_use = self._folded.last_use
        self._read_last = _read_last(self._folded)
        self._deferred = _deferred_constants(self._folded)
        self._stages = tuple(self._build_stage(k, seed) for k in range(len(self._folded.stages)))
        self._maps = tuple(self._build_maps(k) for k in range(len(self._folded.segments)))
        self._graphs = tuple(self._build_graph(segment) for segment in self._folded.segments)
        widest = max(max(stage.size, stage.breakpoint.units) for stage in self._stages)
        rows = _BUFFER_BYTES[device.type] // (widest * dtype.itemsize)
        self.chunk = int(np.clip(rows, *_CHUNK_ROWS[device.type]))
        self._local = threading.local()

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype).contiguous()

    def _build_stage(self, k: int, seed: int) -> _Stage:
        stage = self._folded.stages[k]
        breakpoint = stage.breakpoint
        kernel, arguments = self._kernel(breakpoint, decision_keys(stage.first_decision, breakpoint.decisions, seed))
        of_slices = [self._preactivation_bounds(folded, stage) for folded in self._slices]
        columns = [torch.stack(column) for column in zip(*of_slices)]
        bias, unit_gain, unit_offset = (self._cast(c if len(of_slices) > 1 else c[0]) for c in columns)
        width = self.kappa[k] * self.unit
        return _Stage(
            parts=tuple(self._build_part(name) for name in stage.preactivations),
            breakpoint=breakpoint,
            value=stage.value,
            kernel=kernel,
            arguments=arguments,
            bias=bias,
            unit_gain=unit_gain,
            unit_offset=unit_offset,
            gain=unit_gain * width,
            offset=unit_offset * width,
            size=breakpoint.inputs,
        )

    def _build_part(self, name: str) -> _Part:
        if name in self._folded.uv_values:
            tangents = torch.stack([folded.uv_values[name].tangents.T for folded in self._slices])
            return _Part(name, self._cast(tangents), None)
        from_segment = any(name in segment.outputs for segment in self._folded.segments)
        return _Part(name, None, None if from_segment else self._sizes[name] ** -0.5)

    def _preactivation_bounds(self, folded: SliceProgram, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
        """Deferred constant, gain and offset of every unit of a stage, [n] float64 each."""
        bias, gain, offset = [], [], []
        for name in stage.preactivations:
            if name in folded.uv_values:
                affine = folded.uv_values[name]
                bias.append(affine.constant)
                gain.append(affine.tangents.norm(dim=1))
                offset.append(affine.constant.abs())
                continue
            made_by = next((s for s in folded.segments if name in s.outputs), None)
            zeros = torch.zeros(self._sizes[name], dtype=torch.float64)
            bias.append(made_by.from_uv[name].constant if made_by and name in self._deferred else zeros)
            gain.append(self._row_norms(made_by, name) if made_by else zeros + 1)
            offset.append(made_by.offsets[name].abs() if made_by else zeros)
        return torch.cat(bias), torch.cat(gain), torch.cat(offset)

    @staticmethod
    def _row_norms(segment: FoldedSegment, name: str) -> Tensor:
        return torch.maximum(segment.row_norms[name], segment.from_uv[name].tangents.norm(dim=1))

    def _kernel(self, breakpoint: Breakpoint, keys: Array) -> tuple[Callable[..., None], tuple[Any, ...]]:
        def on_device(array: Array) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

        numbers = keys.view(np.int64)
        if isinstance(breakpoint, Maximum):
            windows = on_device(breakpoint.windows)
            return self._kernels.maximum, (windows, breakpoint.sign, on_device(numbers.reshape(windows.shape)))
        if breakpoint.is_relu:
            return self._kernels.relu, (on_device(numbers),)
        shapes = (breakpoint.thresholds, breakpoint.slopes, breakpoint.intercepts)
        pieces = (on_device(shape).to(self.dtype) for shape in shapes)
        return self._kernels.piecewise, (*pieces, on_device(numbers.reshape(breakpoint.thresholds.shape)))

    def _build_maps(self, k: int) -> list[_Map]:
        segment = self._folded.segments[k]
        affine = {name: [folded.segments[k].from_uv[name] for folded in self._slices] for name in segment.outputs}
        return [
            _Map(
                output=output,
                matrices=tuple(
                    (name, self._cast(segment.matrices[output, name].T)) for name in segment.inputs if segment.matrices
                ),
                tangents=self._tangents(affine[output]),
                constant=None
                if output in self._deferred
                else self._cast(torch.stack([item.constant for item in affine[output]])),
                size=self._sizes[output],
            )
            for output in segment.outputs
        ]

    def _tangents(self, affine: Sequence[AffineInUV]) -> Tensor | None:
        tangents = torch.stack([item.tangents.T for item in affine])
        return self._cast(tangents) if bool(tangents.any()) else None

    def _build_graph(self, segment: FoldedSegment) -> _Graph | None:
        if segment.graph is None:
            return None
        shapes = self._folded.program.shapes
        absent = tuple(
            torch.zeros(shapes[name], dtype=self.dtype, device=self.device)
            for name in segment.graph.inputs[len(segment.inputs) :]
        )
        constants = cast_constants(self._folded.program.constants, self.dtype)
        return _Graph(segment.graph, {name: c.to(self.device) for name, c in constants.items()}, absent)

    def __call__(
        self,
        uv: Tensor,
        which: Tensor | None = None,
        *,
        observe: Observer | None = None,
        prefixes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hashes and flags of at most ``chunk`` points; everything is on the evaluator's device.

        Parameters
        ----------
        uv
            [B, 2] float64 slice coordinates.
        which
            [B] int64, the slice of each point; needed where there are several.
        observe
            Called with the stage's number, its pre-activations [B, n] and the size [B, n] of one unit of the band,
            before the breakpoint is applied.
        prefixes
            [stages, B] int64, written: hashes of the decisions of stages 0 to k only.

        Returns
        -------
        hashes : [B] int64, the bits of the uint64 hashes
        flags : [B] bool
        """
        rows = len(uv)
        if rows > self.chunk:
            raise ValueError(f"{rows} points in one call, at most {self.chunk} fit")
        coordinates = uv.to(self.dtype).contiguous()
        several = len(self._slices) > 1
        batch = _Batch(
            coordinates=coordinates,
            which=which if several else None,
            uv_norms=(coordinates[:, 0].square() + coordinates[:, 1].square()).sqrt(),
            hashes=torch.full((rows,), _START, dtype=torch.int64, device=self.device),
            flags=torch.zeros(rows, dtype=torch.bool, device=self.device),
        )
        with torch.inference_mode():
            for k, stage in enumerate(self._stages):
                z, scale = self._preactivations(k, stage, batch)
                if observe is not None:
                    bias, gain, offset = (
                        _rows(numbers, batch.which) for numbers in (stage.bias, stage.unit_gain, stage.unit_offset)
                    )
                    observe(k, z + bias, gain * scale[:, None] + offset)
                self._apply(stage, z, scale, batch)
                if prefixes is not None:
                    prefixes[k] = batch.hashes
                self._drop(batch.values, 2 * k)
                if k + 1 < len(self._stages):
                    self._advance(k, batch)
                    self._drop(batch.values, 2 * k + 1)
        for tensor in batch.values.values():
            self._give_back(tensor)
        return batch.hashes, batch.flags

    def _preactivations(self, k: int, stage: _Stage, batch: _Batch) -> tuple[Tensor, Tensor]:
        """z without the deferred constants, [B, n], in a buffer that the kernel may overwrite; and the scale [B]."""
        scales = [
            batch.uv_norms if part.from_uv is not None
            else batch.norms[part.name] * part.pool if part.pool is not None
            else batch.scales[part.name]
            for part in stage.parts
        ]  # fmt: skip
        only = stage.parts[0]
        if len(stage.parts) == 1 and only.from_uv is None and self._last_use[only.name] == 2 * k:
            return batch.values[only.name], scales[0]
        z = self._buffer(len(batch.hashes), stage.size)
        start = 0
        for part in stage.parts:
            columns = z[:, start : start + self._sizes[part.name]]
            if part.from_uv is None:
                columns.copy_(batch.values[part.name])
            else:
                _times_uv(batch, part.from_uv, columns)
            start += columns.shape[1]
        return z, sum(scales[1:], start=scales[0])

    def _apply(self, stage: _Stage, z: Tensor, scale: Tensor, batch: _Batch) -> None:
        """Run the breakpoint's kernel; z turns into the values, or gives way to them."""
        norms = torch.empty_like(scale)
        band = (stage.gain, stage.offset, scale, self.arbiter)
        out = z
        results: tuple[Tensor, ...] = (batch.hashes, batch.flags, norms)
        if isinstance(stage.breakpoint, Maximum):
            out = self._buffer(len(z), stage.breakpoint.units)
            results = (out, *results)
        stage.kernel(z, stage.bias, *stage.arguments, *band, *results, which=batch.which)
        batch.values[stage.value], batch.norms[stage.value] = out, norms

    def _advance(self, k: int, batch: _Batch) -> None:
        """The affine maps behind stage k."""
        segment, maps, graph = self._folded.segments[k], self._maps[k], self._graphs[k]
        if not segment.outputs:
            return
        for name in segment.inputs:
            if name not in batch.norms:
                batch.norms[name] = torch.linalg.vector_norm(batch.values[name], dim=1)
        scale = torch.zeros_like(batch.uv_norms)
        for name in segment.inputs:
            scale += batch.norms[name] * segment.fan_in[name] ** 0.5
        if graph is not None:
            self._run_graph(graph, segment, batch.values)
        for item in maps:
            if item.matrices:
                out = self._buffer(len(batch.hashes), item.size)
                (name, matrix), *others = item.matrices
                torch.mm(batch.values[name], matrix, out=out)
                for name, matrix in others:
                    out.addmm_(batch.values[name], matrix)
                batch.values[item.output] = out
            if item.tangents is not None:
                _times_uv(batch, item.tangents, batch.values[item.output], add=True)
            if item.constant is not None:
                batch.values[item.output] += _rows(item.constant, batch.which)
            batch.scales[item.output] = scale if item.tangents is None else scale + batch.uv_norms

    def _run_graph(self, graph: _Graph, segment: FoldedSegment, values: dict[str, Tensor]) -> None:
        shapes = self._folded.program.shapes
        batched = [values[name].reshape(-1, *shapes[name]) for name in segment.inputs]
        outputs = torch.vmap(lambda *live: graph.operators.run(graph.constants, (*live, *graph.absent)))(*batched)
        for name, output in zip(segment.outputs, outputs):
            flat = output.reshape(len(output), -1)
            buffer = self._buffer(*flat.shape)
            values[name] = buffer.copy_(flat)  # a graph may return a view of its input, which kernels would overwrite

    def _drop(self, values: dict[str, Tensor], moment: int) -> None:
        for name in self._read_last[moment]:
            tensor = values.pop(name)
            if not any(tensor is other for other in values.values()):
                self._give_back(tensor)

    def _buffer(self, rows: int, size: int) -> Tensor:
        """A [rows, size] buffer of this thread; fresh memory would cost a page fault every 4 kB."""
        stock: list[Tensor] = self._local.__dict__.setdefault(f"free {size}", [])
        whole = stock.pop() if stock else torch.empty(self.chunk, size, dtype=self.dtype, device=self.device)
        self._local.__dict__.setdefault("lent", {})[whole.data_ptr()] = whole
        return whole[:rows]

    def _give_back(self, tensor: Tensor) -> None:
        whole = self._local.lent.pop(tensor.data_ptr())
        self._local.__dict__[f"free {whole.shape[1]}"].append(whole)


def _times_uv(batch: _Batch, tangents: Tensor, out: Tensor, *, add: bool = False) -> None:
    """coordinates @ tangents of each point's slice, into ``out`` [B, n] or added to it."""
    if batch.which is None:
        if add:
            out.addmm_(batch.coordinates, tangents[0])
        else:
            torch.mm(batch.coordinates, tangents[0], out=out)
        return
    u, v = batch.coordinates.unbind(1)
    product = u[:, None] * tangents[batch.which, 0] + v[:, None] * tangents[batch.which, 1]
    out.copy_(out + product if add else product)


def _rows(rows: Tensor, which: Tensor | None) -> Tensor:
    """Each point's row of numbers that may differ by slice: [n] or [1, n] for all points, [slices, n] by ``which``."""
    return rows if which is None else rows[which]


def _read_last(folded: SliceProgram) -> list[list[str]]:
    """The values that nobody reads after a moment; stage k runs at moment 2 k, the segment behind it at 2 k + 1."""
    moments: list[list[str]] = [[] for _ in range(2 * len(folded.stages))]
    for k, (stage, segment) in enumerate(zip(folded.stages, folded.segments)):
        for name, made in [(stage.value, 2 * k), *((output, 2 * k + 1) for output in segment.outputs)]:
            moments[max(made, folded.last_use.get(name, made))].append(name)
    return moments


def _deferred_constants(folded: SliceProgram) -> set[str]:
    """Outputs that one stage reads and nothing else does: its kernel adds the constant while it reads them anyway."""
    by_stages = [name for stage in folded.stages for name in stage.preactivations]
    by_segments = {name for segment in folded.segments for name in segment.inputs}
    return {name for name in by_stages if by_stages.count(name) == 1 and name not in by_segments}
