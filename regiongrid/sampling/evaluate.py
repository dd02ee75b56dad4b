"""Pattern hashes at a batch of slice coordinates, in one precision, with every close decision flagged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiongrid.kernels.pattern_hash import START, decision_keys, kernels
from regiongrid.network.on_slice import AffineInUV, FoldedSegment, SliceProgram
from regiongrid.network.program import Breakpoint, Maximum, Segment, cast_constants

Array = np.ndarray[Any, Any]
Observer = Callable[[int, Array, Array], None]

_BUFFER_BYTES = 1 << 21  # a layer's values of one chunk: small enough for a cache, large enough that calls cost little
_CHUNK_ROWS = (128, 4096)


@dataclass(frozen=True)
class _Part:
    """One piece of a stage's pre-activations."""

    name: str
    from_uv: Tensor | None  # [2, n], where the piece is affine in (u, v)
    pool: float | None  # passed on unchanged from a value: 1 / sqrt(n)


@dataclass(frozen=True)
class _Stage:
    parts: tuple[_Part, ...]
    breakpoint: Breakpoint
    value: str
    kernel: Callable[..., None]
    arguments: tuple[Any, ...]  # what the kernel takes between the bias and the band, in its order
    bias: Array  # [n]
    unit_gain: Array  # [n], one unit of rounding of z is unit_gain * scale + unit_offset
    unit_offset: Array  # [n]
    gain: Array  # [n], the same times kappa and the unit: the band
    offset: Array  # [n]
    size: int


@dataclass(frozen=True)
class _Map:
    """One output of a segment: products with matrices, or what a graph has left there, plus what (u, v) add."""

    output: str
    matrices: tuple[tuple[str, Tensor], ...]  # (input, [n_input, n_output]); empty behind a graph
    tangents: Tensor | None  # [2, n_output]
    constant: Tensor | None  # [n_output]; None where the stage's kernel adds it or it is zero
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
    uv_norms: Array  # [B]
    hashes: Array  # [B] uint64
    flags: Array  # [B] bool
    values: dict[str, Tensor] = field(default_factory=dict)  # [B, n]
    norms: dict[str, Array] = field(default_factory=dict)  # [B], of values
    scales: dict[str, Array] = field(default_factory=dict)  # [B], size of what was added up into a value


class PatternEvaluator:
    """Evaluates pattern hashes of a `SliceProgram` in ``dtype``.

    Parameters
    ----------
    kappa
        Width of the guard band in units of rounding, one a stage.
    arbiter
        Decide every unit with the band as the tolerance around zero (see `regiongrid.kernels.pattern_hash`); the flags
        mean nothing then.
    """

    def __init__(
        self,
        folded: SliceProgram,
        dtype: torch.dtype,
        kappa: Array,
        *,
        arbiter: bool = False,
        backend: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.dtype = dtype
        self.numpy_dtype = np.float32 if dtype == torch.float32 else np.float64
        self.unit = float(np.finfo(self.numpy_dtype).eps) / 2
        self.kappa = kappa
        self.arbiter = arbiter
        self._kernels = kernels(backend)
        self._folded = folded
        self._sizes = folded.sizes
        self._last_use = folded.last_use
        self._read_last = _read_last(folded)
        self._deferred = _deferred_constants(folded)
        self._stages = tuple(self._build_stage(k, seed) for k in range(len(folded.stages)))
        self._maps = tuple(self._build_maps(segment) for segment in folded.segments)
        self._graphs = tuple(self._build_graph(segment) for segment in folded.segments)
        widest = max(max(stage.size, stage.breakpoint.units) for stage in self._stages)
        rows = _BUFFER_BYTES // (widest * np.dtype(self.numpy_dtype).itemsize)
        self.chunk = int(np.clip(rows, *_CHUNK_ROWS))
        self._local = threading.local()

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).contiguous()

    def _build_stage(self, k: int, seed: int) -> _Stage:
        stage = self._folded.stages[k]
        parts, bias, gain, offset = [], [], [], []
        for name in stage.preactivations:
            size = self._sizes[name]
            if name in self._folded.uv_values:
                affine = self._folded.uv_values[name]
                parts.append(_Part(name, self._cast(affine.tangents.T), None))
                bias.append(affine.constant)
                gain.append(affine.tangents.norm(dim=1))
                offset.append(affine.constant.abs())
                continue
            made_by = next((s for s in self._folded.segments if name in s.outputs), None)
            zeros = torch.zeros(size, dtype=torch.float64)
            parts.append(_Part(name, None, None if made_by else size**-0.5))
            bias.append(made_by.from_uv[name].constant if made_by and name in self._deferred else zeros)
            gain.append(self._row_norms(made_by, name) if made_by else zeros + 1)
            offset.append(made_by.offsets[name].abs() if made_by else zeros)
        breakpoint = stage.breakpoint
        kernel, arguments = self._kernel(breakpoint, decision_keys(stage.first_decision, breakpoint.decisions, seed))
        unit_gain, unit_offset = (self._cast(torch.cat(column)).numpy() for column in (gain, offset))
        width = self.numpy_dtype(self.kappa[k] * self.unit)
        return _Stage(
            parts=tuple(parts),
            breakpoint=breakpoint,
            value=stage.value,
            kernel=kernel,
            arguments=arguments,
            bias=self._cast(torch.cat(bias)).numpy(),
            unit_gain=unit_gain,
            unit_offset=unit_offset,
            gain=unit_gain * width,
            offset=unit_offset * width,
            size=breakpoint.inputs,
        )

    @staticmethod
    def _row_norms(segment: FoldedSegment, name: str) -> Tensor:
        return torch.maximum(segment.row_norms[name], segment.from_uv[name].tangents.norm(dim=1))

    def _kernel(self, breakpoint: Breakpoint, keys: Array) -> tuple[Callable[..., None], tuple[Any, ...]]:
        if isinstance(breakpoint, Maximum):
            shape = breakpoint.windows.shape
            return self._kernels.maximum, (breakpoint.windows, breakpoint.sign, keys.reshape(shape))
        if breakpoint.is_relu:
            return self._kernels.relu, (keys,)
        numbers = (breakpoint.thresholds, breakpoint.slopes, breakpoint.intercepts)
        arguments = (*(a.astype(self.numpy_dtype) for a in numbers), keys.reshape(breakpoint.thresholds.shape))
        return self._kernels.piecewise, arguments

    def _build_maps(self, segment: FoldedSegment) -> list[_Map]:
        return [
            _Map(
                output=output,
                matrices=tuple(
                    (name, self._cast(segment.matrices[output, name].T)) for name in segment.inputs if segment.matrices
                ),
                tangents=self._tangents(segment.from_uv[output]),
                constant=None if output in self._deferred else self._cast(segment.from_uv[output].constant),
                size=self._sizes[output],
            )
            for output in segment.outputs
        ]

    def _tangents(self, affine: AffineInUV) -> Tensor | None:
        return self._cast(affine.tangents.T) if bool(affine.tangents.any()) else None

    def _build_graph(self, segment: FoldedSegment) -> _Graph | None:
        if segment.graph is None:
            return None
        shapes = self._folded.program.shapes
        absent = tuple(
            torch.zeros(shapes[name], dtype=self.dtype) for name in segment.graph.inputs[len(segment.inputs) :]
        )
        return _Graph(segment.graph, cast_constants(self._folded.program.constants, self.dtype), absent)

    def __call__(
        self, uv: Array, observe: Observer | None = None, prefixes: Array | None = None
    ) -> tuple[Array, Array]:
        """Hashes and flags of at most ``chunk`` points.

        Parameters
        ----------
        uv
            [B, 2] float64 slice coordinates.
        observe
            Called with the stage's number, its pre-activations [B, n] and the size [B, n] of one unit of the band,
            before the breakpoint is applied.
        prefixes
            [stages, B] uint64, written: hashes of the decisions of stages 0 to k only.

        Returns
        -------
        hashes : [B] uint64
        flags : [B] bool
        """
        rows = len(uv)
        if rows > self.chunk:
            raise ValueError(f"{rows} points in one call, at most {self.chunk} fit")
        coordinates = np.ascontiguousarray(uv, dtype=self.numpy_dtype)
        with np.errstate(over="ignore"):
            uv_norms = np.sqrt(np.square(coordinates[:, 0]) + np.square(coordinates[:, 1]))
        batch = _Batch(
            coordinates=torch.from_numpy(coordinates),
            uv_norms=uv_norms,
            hashes=np.full(rows, START),
            flags=np.zeros(rows, np.bool_),
        )
        with torch.inference_mode():
            for k, stage in enumerate(self._stages):
                z, scale = self._preactivations(k, stage, batch)
                if observe is not None:
                    observe(k, z.numpy() + stage.bias, stage.unit_gain * scale[:, None] + stage.unit_offset)
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

    def _preactivations(self, k: int, stage: _Stage, batch: _Batch) -> tuple[Tensor, Array]:
        """z without the deferred constants, [B, n], in a buffer that the kernel may overwrite; and the scale [B]."""
        scales = [
            batch.uv_norms if part.from_uv is not None
            else batch.norms[part.name] * self.numpy_dtype(part.pool) if part.pool is not None
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
                torch.mm(batch.coordinates, part.from_uv, out=columns)
            start += columns.shape[1]
        return z, sum(scales[1:], start=scales[0])

    def _apply(self, stage: _Stage, z: Tensor, scale: Array, batch: _Batch) -> None:
        """Run the breakpoint's kernel; z turns into the values, or gives way to them."""
        norms = np.empty_like(scale)
        band = (stage.gain, stage.offset, scale, self.arbiter)
        out = z
        results: tuple[Array, ...] = (batch.hashes, batch.flags, norms)
        if isinstance(stage.breakpoint, Maximum):
            out = self._buffer(len(z), stage.breakpoint.units)
            results = (out.numpy(), *results)
        stage.kernel(z.numpy(), stage.bias, *stage.arguments, *band, *results)
        batch.values[stage.value], batch.norms[stage.value] = out, norms

    def _advance(self, k: int, batch: _Batch) -> None:
        """The affine maps behind stage k."""
        segment, maps, graph = self._folded.segments[k], self._maps[k], self._graphs[k]
        if not segment.outputs:
            return
        for name in segment.inputs:
            if name not in batch.norms:
                batch.norms[name] = torch.linalg.vector_norm(batch.values[name], dim=1).numpy()
        scale: Array = np.zeros_like(batch.uv_norms)
        for name in segment.inputs:
            scale += batch.norms[name] * self.numpy_dtype(segment.fan_in[name] ** 0.5)
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
                batch.values[item.output].addmm_(batch.coordinates, item.tangents)
            if item.constant is not None:
                batch.values[item.output] += item.constant
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
        whole = stock.pop() if stock else torch.empty(self.chunk, size, dtype=self.dtype)
        self._local.__dict__.setdefault("lent", {})[whole.data_ptr()] = whole
        return whole[:rows]

    def _give_back(self, tensor: Tensor) -> None:
        whole = self._local.lent.pop(tensor.data_ptr())
        self._local.__dict__[f"free {whole.shape[1]}"].append(whole)


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
