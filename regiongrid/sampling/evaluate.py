"""Pattern hashes at a batch of slice coordinates, in one precision, with every close decision flagged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiongrid.kernels.pattern_hash import decision_keys, kernels
from regiongrid.network.on_slice import AffineInUV, FoldedSegment, SliceProgram
from regiongrid.network.program import Breakpoint, Maximum, Segment, cast_constants

Array = np.ndarray[Any, Any]
Observer = Callable[[int, Array, Array], None]

_BUFFER_BYTES = 1 << 19  # a layer's values of one chunk: two or three of these share a core's cache
_CHUNK_ROWS = (128, 2048)


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
    arguments: tuple[Any, ...]  # what the kernel takes between z and the band, in its order
    bias: Array  # [n]
    unit_gain: Array  # [n], per unit of rounding
    unit_offset: Array  # [n]
    size: int


@dataclass(frozen=True)
class _Map:
    """One affine map of a segment onto one output."""

    output: str
    matrices: tuple[tuple[str, Tensor], ...]  # (input, [n_input, n_output])
    tangents: Tensor | None  # [2, n_output]
    constant: Tensor | None  # [n_output]; None where the stage's kernel adds it or it is zero
    size: int


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
        self._deferred = _deferred_constants(folded)
        self._stages = tuple(self._build_stage(k, seed) for k in range(len(folded.stages)))
        self._maps = tuple(tuple(self._build_maps(s)) if s.graph is None else None for s in folded.segments)
        self._graphs = tuple(self._build_graph(s) if s.graph is not None else None for s in folded.segments)
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
        keys = decision_keys(stage.first_decision, breakpoint.decisions, seed)
        return _Stage(
            parts=tuple(parts),
            breakpoint=breakpoint,
            value=stage.value,
            arguments=self._breakpoint_arguments(breakpoint, keys),
            bias=self._cast(torch.cat(bias)).numpy(),
            unit_gain=self._cast(torch.cat(gain)).numpy(),
            unit_offset=self._cast(torch.cat(offset)).numpy(),
            size=breakpoint.inputs,
        )

    @staticmethod
    def _row_norms(segment: FoldedSegment, name: str) -> Tensor:
        return torch.maximum(segment.row_norms[name], segment.from_uv[name].tangents.norm(dim=1))

    def _breakpoint_arguments(self, breakpoint: Breakpoint, keys: Array) -> tuple[Any, ...]:
        if isinstance(breakpoint, Maximum):
            return breakpoint.windows, breakpoint.sign, keys.reshape(breakpoint.windows.shape)
        if breakpoint.is_relu:
            return (keys,)
        numbers = (breakpoint.thresholds, breakpoint.slopes, breakpoint.intercepts)
        return (*(a.astype(self.numpy_dtype) for a in numbers), keys.reshape(breakpoint.thresholds.shape))

    def _build_maps(self, segment: FoldedSegment) -> list[_Map]:
        return [
            _Map(
                output=output,
                matrices=tuple((name, self._cast(segment.matrices[output, name].T)) for name in segment.inputs),
                tangents=self._tangents(segment.from_uv[output]),
                constant=None if output in self._deferred else self._cast(segment.from_uv[output].constant),
                size=self._sizes[output],
            )
            for output in segment.outputs
        ]

    def _tangents(self, affine: AffineInUV) -> Tensor | None:
        return self._cast(affine.tangents.T) if bool(affine.tangents.any()) else None

    def _build_graph(self, segment: FoldedSegment) -> tuple[Segment, dict[str, Tensor], list[Tensor], list[_Map]]:
        assert segment.graph is not None
        constants = cast_constants(self._folded.program.constants, self.dtype)
        shapes = self._folded.program.shapes
        absent = [torch.zeros(shapes[name], dtype=self.dtype) for name in segment.graph.inputs[len(segment.inputs) :]]
        added = []
        for output in segment.outputs:
            constant = None if output in self._deferred else self._cast(segment.from_uv[output].constant)
            added.append(_Map(output, (), self._tangents(segment.from_uv[output]), constant, self._sizes[output]))
        return segment.graph, constants, absent, added

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
        hashes, flags = np.zeros(rows, np.uint64), np.zeros(rows, np.bool_)
        coordinates = torch.from_numpy(np.ascontiguousarray(uv, dtype=self.numpy_dtype))
        uv_norms = np.hypot(uv[:, 0], uv[:, 1]).astype(self.numpy_dtype)
        values: dict[str, Tensor] = {}
        norms: dict[str, Array] = {}
        with torch.inference_mode():
            for k, stage in enumerate(self._stages):
                z, scale = self._preactivations(k, stage, coordinates, uv_norms, values, norms)
                if observe is not None:
                    observe(k, z.numpy() + stage.bias, stage.unit_gain * scale[:, None] + stage.unit_offset)
                values[stage.value], norms[stage.value] = self._apply(k, stage, z, scale, hashes, flags)
                if prefixes is not None:
                    prefixes[k] = hashes
                self._drop(values, 2 * k)
                if k + 1 < len(self._stages):
                    self._advance(k, coordinates, values, norms, uv_norms)
                    self._drop(values, 2 * k + 1)
        for tensor in values.values():
            self._give_back(tensor)
        return hashes, flags

    def _preactivations(
        self,
        k: int,
        stage: _Stage,
        coordinates: Tensor,
        uv_norms: Array,
        values: dict[str, Tensor],
        norms: dict[str, Array],
    ) -> tuple[Tensor, Array]:
        """z without the deferred constants, [B, n], in a buffer that the kernel may overwrite; and the scale [B]."""
        rows = len(coordinates)
        scale: Array = np.zeros(rows, self.numpy_dtype)
        for part in stage.parts:
            if part.from_uv is not None:
                scale += uv_norms
            elif part.pool is not None:
                scale += norms[part.name] * self.numpy_dtype(part.pool)
            else:
                scale += norms[f"into {part.name}"]
        only = stage.parts[0]
        if len(stage.parts) == 1 and only.from_uv is None and self._last_use[only.name] == 2 * k:
            return values[only.name], scale
        z = self._buffer(rows, stage.size)
        start = 0
        for part in stage.parts:
            size = self._sizes[part.name]
            if part.from_uv is None:
                z[:, start : start + size] = values[part.name]
            elif size == stage.size:
                torch.mm(coordinates, part.from_uv, out=z)
            else:
                z[:, start : start + size] = coordinates @ part.from_uv
            start += size
        return z, scale

    def _apply(
        self, k: int, stage: _Stage, z: Tensor, scale: Array, hashes: Array, flags: Array
    ) -> tuple[Tensor, Array]:
        width = self.numpy_dtype(self.kappa[k] * self.unit)
        norms = np.empty_like(scale)
        band = (stage.unit_gain * width, stage.unit_offset * width, scale, self.arbiter)
        if isinstance(stage.breakpoint, Maximum):
            out = self._buffer(len(z), stage.breakpoint.units)
            self._kernels.maximum(z.numpy(), stage.bias, *stage.arguments, *band, out.numpy(), hashes, flags, norms)
            return out, norms
        kernel = self._kernels.relu if stage.breakpoint.is_relu else self._kernels.piecewise
        kernel(z.numpy(), stage.bias, *stage.arguments, *band, hashes, flags, norms)
        return z, norms

    def _advance(
        self, k: int, coordinates: Tensor, values: dict[str, Tensor], norms: dict[str, Array], uv_norms: Array
    ) -> None:
        """The affine maps behind stage k."""
        segment = self._folded.segments[k]
        if not segment.outputs:
            return
        for name in segment.inputs:
            if name not in norms:
                norms[name] = torch.linalg.vector_norm(values[name], dim=1).numpy()
        scale = sum(
            (norms[name] * self.numpy_dtype(segment.fan_in[name] ** 0.5) for name in segment.inputs), uv_norms * 0
        )
        maps = self._maps[k]
        graph = self._graphs[k]
        if maps is not None:
            for item in maps:
                out = self._buffer(len(coordinates), item.size)
                for position, (name, matrix) in enumerate(item.matrices):
                    if position == 0:
                        torch.mm(values[name], matrix, out=out)
                    else:
                        out.addmm_(values[name], matrix)
                values[item.output] = out
        elif graph is not None:
            maps = tuple(graph[3])
            self._run_graph(graph, segment, values)
        assert maps is not None
        for item in maps:
            into = scale
            if item.tangents is not None:
                values[item.output].addmm_(coordinates, item.tangents)
                into = scale + uv_norms
            if item.constant is not None:
                values[item.output] += item.constant
            norms[f"into {item.output}"] = into

    def _run_graph(
        self,
        graph: tuple[Segment, dict[str, Tensor], list[Tensor], list[_Map]],
        segment: FoldedSegment,
        values: dict[str, Tensor],
    ) -> None:
        operators, constants, absent, _ = graph
        shapes = self._folded.program.shapes
        batched = [values[name].reshape(-1, *shapes[name]) for name in segment.inputs]
        outputs = torch.vmap(lambda *live: operators.run(constants, (*live, *absent)))(*batched)
        for name, output in zip(segment.outputs, outputs):
            flat = output.reshape(len(output), -1)
            buffer = self._buffer(*flat.shape)
            values[name] = buffer.copy_(flat)  # a graph may return a view of its input, which kernels would overwrite

    def _drop(self, values: dict[str, Tensor], moment: int) -> None:
        for name in [name for name in values if self._last_use.get(name, -1) <= moment]:
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


def _deferred_constants(folded: SliceProgram) -> set[str]:
    """Outputs that one stage reads and nothing else does: its kernel adds the constant while it reads them anyway."""
    by_stages = [name for stage in folded.stages for name in stage.preactivations]
    by_segments = {name for segment in folded.segments for name in segment.inputs}
    return {name for name in by_stages if by_stages.count(name) == 1 and name not in by_segments}
