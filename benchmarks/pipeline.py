"""The whole job against what a user would write: hooks, a dense grid, np.unique, label and regionprops_table."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from skimage.measure import label, regionprops_table
from torch import Tensor, nn

import regiongrid as rg
from benchmarks.cases import CASES, Case, folded_layers
from benchmarks.harness import Row, seconds

RES = 4096
_CHUNK = 1 << 16


def patterns(module: nn.Module, points: np.ndarray, axes: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Packed activation patterns, uint8 [n, bytes], by forward hooks on every ReLU."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output > 0))
        for layer in module.modules()
        if isinstance(layer, nn.ReLU)
    ]
    packed = []
    with torch.no_grad():
        for part in np.array_split(points, max(1, len(points) // _CHUNK)):
            seen.clear()
            module(torch.from_numpy((part @ axes.T + origin).astype(np.float32)))
            packed.append(np.packbits(torch.cat(seen, dim=1).numpy(), axis=1))
    for hook in hooks:
        hook.remove()
    return np.concatenate(packed)


def naive(module: nn.Module, axes: np.ndarray, origin: np.ndarray, plane: rg.Slice) -> dict[str, np.ndarray]:
    centres = plane.pixel_centres(RES)
    points = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    codes = patterns(module, points, axes, origin)
    keys = codes.view(f"V{codes.shape[1]}").reshape(-1)
    _, inverse = np.unique(keys, return_inverse=True)
    regions = label(inverse.reshape(RES, RES) + 1, connectivity=1)
    table: dict[str, np.ndarray] = regionprops_table(
        regions, properties=("area", "eccentricity", "perimeter", "centroid")
    )
    return table


def as_written(case: Case) -> None:
    plane = case.slice()
    naive(case.module(), np.stack([plane.u, plane.v], axis=1), plane.origin, plane)


def with_the_slice_folded(case: Case) -> None:
    """The same by someone who noticed that the first layer is affine in (u, v)."""
    layers: list[nn.Module] = []
    for weight, bias in folded_layers(case)[:-1]:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        layers += [linear, nn.ReLU()]
    naive(nn.Sequential(*layers), np.eye(2), np.zeros(2), case.slice())


def benchmark() -> Iterator[Row]:
    """Checkpoint to table at 4096 x 4096, after one warm-up run, against the naive pipeline as written and folded."""
    with tempfile.TemporaryDirectory() as folder:
        for name, wanted in (("128x3-1k", ">= 150"), ("128x3-11k", ">= 100")):
            case = CASES[name]
            file = Path(folder) / f"{name}.pt"
            torch.save(case.module().state_dict(), file)

            def job(file: Path = file, case: Case = case) -> None:
                rg.estimate(rg.load_network(file), case.slice(), RES).summary()

            job()
            ours = float(np.median([seconds(job) for _ in range(5)]))
            plain = seconds(lambda: as_written(case))  # noqa: B023
            clever = seconds(lambda: with_the_slice_folded(case))  # noqa: B023
            yield Row(name, "regiongrid, file to summary", ours, "s")
            yield Row(name, "naive pipeline", plain, "s")
            yield Row(name, "naive pipeline, slice folded", clever, "s")
            yield Row(name, "naive / regiongrid", plain / ours, "x", "naive pipeline", wanted)
            yield Row(name, "folded / regiongrid", clever / ours, "x", "naive pipeline, slice folded", ">= 8")
