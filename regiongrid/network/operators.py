"""What regiongrid knows of ATen operators: which are affine, and which breakpoint each of the others makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from regiongrid.network.program import Array, Breakpoint, Maximum, Piecewise

# Affine in all their tensor arguments together.
JOINTLY_AFFINE = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "neg",
        "cat",
        "stack",
        "concat",
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "t",
        "expand",
        "expand_as",
        "repeat",
        "slice",
        "select",
        "narrow",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "getitem",
        "select_scatter",
        "slice_scatter",
        "copy",
        "sum",
        "mean",
        "cumsum",
        "flip",
        "roll",
        "constant_pad_nd",
        "pad",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "upsample_trilinear3d",
        "upsample_bicubic2d",
        "unfold",
        "im2col",
        "col2im",
        "diagonal",
        "tril",
        "triu",
        "movedim",
        "swapaxes",
        "moveaxis",
        "view_as",
    ]
)
# Affine in the first tensor argument when all the others are constants.
AFFINE_IN_FIRST = frozenset(
    [
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "div",
        "_native_batch_norm_legit_no_training",
        "index",
        "index_select",
        "gather",
        "take_along_dim",
    ]
)
# Affine when exactly one of the tensor arguments depends on the input.
AFFINE_IN_ONE = frozenset(["mul", "matmul", "mm", "bmm", "mv", "dot", "inner", "outer", "einsum", "kron"])
# added + left @ right: affine unless both factors depend on the input.
ADDED_PRODUCTS = frozenset(["addmm", "addmv", "addbmm", "baddbmm"])
# What does not change the affine map: copies, dropout in eval mode, and casts (engines choose their own precision).
PASS_THROUGH = frozenset(
    [
        "_to_copy",
        "to",
        "type_as",
        "clone",
        "contiguous",
        "alias",
        "detach",
        "dropout",
        "feature_dropout",
        "lift_fresh_copy",
    ]
)


def _normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor]:
    """Batch normalisation with stored statistics, in a form that torch.vmap runs without a loop over the batch."""
    factor = (variance + epsilon).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    channels = [-1, *[1] * (x.dim() - 2)]
    return (x * factor.reshape(channels) + shift.reshape(channels),)


SUBSTITUTES: dict[str, Callable[..., Any]] = {"_native_batch_norm_legit_no_training": _normalise}

# A rule turns a node into the nodes whose flattened values are the pre-activations, and the breakpoint on them.
# `constant(argument)` is the value of an argument that does not depend on the input, and None for one that does.
Constant = Callable[[Any], Any]
Rule = Callable[[Node, Constant], tuple[list[Node], Breakpoint] | None]


def is_affine(name: str, live: Sequence[bool]) -> bool:
    """Whether operator ``name`` is affine in its live arguments; ``live`` has one flag a tensor argument, in order."""
    if name in JOINTLY_AFFINE:
        return True
    if name in AFFINE_IN_FIRST:
        return live[0] and not any(live[1:])
    if name in AFFINE_IN_ONE:
        return sum(live) == 1
    return name in ADDED_PRODUCTS and sum(live[1:]) <= 1


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _piecewise(node: Any, thresholds: Sequence[Any], slopes: Sequence[Any], intercepts: Sequence[Any]) -> Piecewise:
    """Numbers or tensors, from the lowest piece to the highest, spread over the entries of ``node``."""
    shape = _shape(node)

    def spread(entries: Sequence[Any]) -> Array:
        rows = [torch.as_tensor(entry, dtype=torch.float64).expand(shape).reshape(-1) for entry in entries]
        return torch.stack(rows).numpy()

    return Piecewise(spread(thresholds), spread(slopes), spread(intercepts))


def _bent_at_zero(low: float, high: float) -> Rule:
    def rule(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
        x: Any = node.args[0]
        return [x], _piecewise(x, [0.0], [low, high], [0.0, 0.0])

    return rule


def _leaky_relu(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
    x: Any = node.args[0]
    return [x], _piecewise(x, [0.0], [_argument(node, 1, "negative_slope", 0.01), 1.0], [0.0, 0.0])


def _rrelu(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
    x: Any = node.args[0]
    lower, upper = _argument(node, 1, "lower", 0.125), _argument(node, 2, "upper", 1 / 3)
    return [x], _piecewise(x, [0.0], [(lower + upper) / 2, 1.0], [0.0, 0.0])


def _prelu(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint] | None:
    x: Any = node.args[0]
    weight = constant(node.args[1])
    if weight is None:
        return None
    dimensions = len(_shape(x))
    if weight.numel() > 1 and dimensions > 1:
        weight = weight.reshape(-1, *[1] * (dimensions - 2))  # one slope a channel, channels being dimension 1
    return [x], _piecewise(x, [0.0], [weight, 1.0], [0.0, 0.0])


def _threshold(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
    x: Any = node.args[0]
    return [x], _piecewise(x, [node.args[1]], [0.0, 1.0], [node.args[2], 0.0])


def _hardsigmoid(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
    x: Any = node.args[0]
    return [x], _piecewise(x, [-3.0, 3.0], [0.0, 1 / 6, 0.0], [0.0, 0.5, 1.0])


def _clamp_rule(low_name: str | None, high_name: str | None, low_default: Any = None, high_default: Any = None) -> Rule:
    def rule(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint] | None:
        x: Any = node.args[0]
        position = 1
        bounds = []
        for name, default in ((low_name, low_default), (high_name, high_default)):
            bound = None
            if name is not None:
                argument = _argument(node, position, name, default)
                position += 1
                bound = constant(argument)
                if bound is None and argument is not None:
                    return None
            bounds.append(bound)
        return [x], _clamp(x, *bounds)

    return rule


def _relu6(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
    x: Any = node.args[0]
    return [x], _clamp(x, 0.0, 6.0)


def _clamp(x: Any, low: Any, high: Any) -> Piecewise:
    if low is None:
        return _piecewise(x, [high], [1.0, 0.0], [0.0, high])
    if high is None:
        return _piecewise(x, [low], [0.0, 1.0], [low, 0.0])
    # clamp gives `high` everywhere where the bounds are the wrong way round
    low = torch.minimum(torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64))
    return _piecewise(x, [low, high], [0.0, 1.0, 0.0], [low, 0.0, high])


def _extremum_of_two(sign: int) -> Rule:
    def rule(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint] | None:
        first, second = node.args[:2]
        for x, other in ((first, second), (second, first)):
            bound = constant(other)
            if bound is not None and isinstance(x, Node) and constant(x) is None:
                if _shape(x) != _shape(node):
                    return None
                return [x], _clamp(x, bound, None) if sign > 0 else _clamp(x, None, bound)
        grids, offset = [], 0
        for x in (first, second):
            indices = np.arange(np.prod(_shape(x))).reshape(_shape(x))
            grids.append(np.broadcast_to(indices, _shape(node)).reshape(-1) + offset)
            offset += indices.size
        return [first, second], Maximum(np.stack(grids, axis=1), offset, sign)  # type: ignore[list-item]

    return rule


def _extremum_over_dimensions(sign: int, reduce_all: bool) -> Rule:
    def rule(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
        x: Any = node.args[0]
        shape = _shape(x)
        asked = _argument(node, 1, "dim", [] if reduce_all else None)
        dims = [asked] if isinstance(asked, int) else list(asked or range(len(shape)))
        dims = [dim % len(shape) for dim in dims]
        kept = [dim for dim in range(len(shape)) if dim not in dims]
        indices = np.arange(np.prod(shape)).reshape(shape).transpose(*kept, *dims)
        windows = indices.reshape(int(np.prod([shape[dim] for dim in kept])), -1)
        return [x], Maximum(np.ascontiguousarray(windows), int(np.prod(shape)), sign)

    return rule


def _per_dimension(argument: Any, dimensions: int) -> list[int]:
    values = [argument] if isinstance(argument, int) else list(argument)
    return values * dimensions if len(values) == 1 else values


def _windows(shape: tuple[int, ...], axes: Sequence[Array]) -> Array:
    """[units, k] entries of every pooling window, -1 for none.

    ``axes`` has for every pooled dimension the input positions of every output position, [outputs, k], -1 for none.
    """
    dimensions = len(axes)
    channels = int(np.prod(shape[:-dimensions]))
    index = np.zeros((1, 1), dtype=np.int64)
    valid = np.ones((1, 1), dtype=bool)
    for positions, size in zip(axes, shape[-dimensions:]):
        outputs, k = index.shape[0] * positions.shape[0], index.shape[1] * positions.shape[1]
        index = (index[:, None, :, None] * size + positions.clip(min=0)[None, :, None, :]).reshape(outputs, k)
        valid = (valid[:, None, :, None] & (positions >= 0)[None, :, None, :]).reshape(outputs, k)
    start = np.arange(channels)[:, None, None] * int(np.prod(shape[-dimensions:]))
    windows = np.where(valid[None], index[None] + start, -1)
    return windows.reshape(-1, index.shape[1])


def _max_pool(dimensions: int) -> Rule:
    def rule(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
        x: Any = node.args[0]
        kernel = _per_dimension(node.args[1], dimensions)
        stride = _per_dimension(_argument(node, 2, "stride") or kernel, dimensions)
        padding = _per_dimension(_argument(node, 3, "padding", 0), dimensions)
        dilation = _per_dimension(_argument(node, 4, "dilation", 1), dimensions)
        shape, outputs = _shape(x), output_shape(node)[-dimensions:]
        axes = []
        for d, size in enumerate(shape[-dimensions:]):
            positions = np.arange(outputs[d])[:, None] * stride[d] - padding[d] + np.arange(kernel[d]) * dilation[d]
            axes.append(np.where((positions >= 0) & (positions < size), positions, -1))
        return [x], Maximum(_windows(shape, axes), int(np.prod(shape)))

    return rule


def _adaptive_max_pool(dimensions: int) -> Rule:
    def rule(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint]:
        x: Any = node.args[0]
        shape, outputs = _shape(x), output_shape(node)[-dimensions:]
        axes = []
        for size, count in zip(shape[-dimensions:], outputs):
            first = np.arange(count) * size // count
            last = -(-(np.arange(count) + 1) * size // count)
            positions = first[:, None] + np.arange((last - first).max())
            axes.append(np.where(positions < last[:, None], positions, -1))
        return [x], Maximum(_windows(shape, axes), int(np.prod(shape)))

    return rule


def output_shape(node: Node) -> tuple[int, ...]:
    """Shape of the values, for operators that return values or (values, indices)."""
    value = node.meta["val"]
    return tuple((value if isinstance(value, Tensor) else value[0]).shape)


BREAKPOINTS: dict[str, Rule] = {
    "relu": _bent_at_zero(0.0, 1.0),
    "abs": _bent_at_zero(-1.0, 1.0),
    "leaky_relu": _leaky_relu,
    "rrelu": _rrelu,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "threshold": _threshold,
    "hardsigmoid": _hardsigmoid,
    "clamp": _clamp_rule("min", "max"),
    "clip": _clamp_rule("min", "max"),
    "clamp_min": _clamp_rule("min", None),
    "clamp_max": _clamp_rule(None, "max"),
    "relu6": _relu6,
    "hardtanh": _clamp_rule("min_val", "max_val", -1.0, 1.0),
    "maximum": _extremum_of_two(1),
    "minimum": _extremum_of_two(-1),
    "amax": _extremum_over_dimensions(1, reduce_all=True),
    "amin": _extremum_over_dimensions(-1, reduce_all=True),
    **{f"max_pool{d}d": _max_pool(d) for d in (1, 2, 3)},
    **{f"max_pool{d}d_with_indices": _max_pool(d) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": _adaptive_max_pool(d) for d in (1, 2, 3)},
}


def _max_or_min(sign: int) -> Rule:
    two, over = _extremum_of_two(sign), _extremum_over_dimensions(sign, reduce_all=False)

    def rule(node: Node, constant: Constant) -> tuple[list[Node], Breakpoint] | None:
        return (two if len(node.args) == 2 and isinstance(node.args[1], Node) else over)(node, constant)

    return rule


BREAKPOINTS["max"] = _max_or_min(1)
BREAKPOINTS["min"] = _max_or_min(-1)
