"""Pattern images: one 64-bit hash a pixel over a slice, dense or adaptive."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiongrid.kernels.refinement import first_spacing, kernels
from regiongrid.kernels.threads import Workers, cpu_count
from regiongrid.network.on_slice import SliceProgram
from regiongrid.resources import full_float32, one_torch_thread
from regiongrid.sampling.device import adaptive_images
from regiongrid.sampling.guard import Calibration, GuardedEvaluator
from regiongrid.slices import Slice

Array = np.ndarray[Any, Any]
Progress = Callable[[float], None]

SAMPLINGS = ("adaptive", "dense")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PatternImage:
    """One pattern hash a pixel centre.

    Attributes
    ----------
    pixels
        [res, res], the hashes: a uint64 array, or an int64 tensor on the device that made it (the same bits).
    evaluations
        Pixels at which the network was evaluated; the others were filled by convexity.
    reevaluated
        Evaluations that were too close to call in the fast precision and decided in float64.
    """

    slice: Slice
    pixels: Array | Tensor = field(repr=False)
    sampling: str
    evaluations: int
    reevaluated: int
    calibration: Calibration

    @cached_property
    def hashes(self) -> Array:
        """[res, res] uint64; row i is v = centres[i], column j is u = centres[j]. Copied from the device once."""
        return self.pixels.cpu().numpy().view(np.uint64) if isinstance(self.pixels, Tensor) else self.pixels

    @property
    def res(self) -> int:
        return int(self.pixels.shape[0])


def sample_image(folded: SliceProgram, res: int, **options: Any) -> PatternImage:
    """Pattern image of one slice; see `sample_images` for the options."""
    return sample_images([folded], res, **options)[0]


def sample_images(
    folded: Sequence[SliceProgram],
    res: int,
    *,
    sampling: str = "adaptive",
    dtype: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    backend: str = "cpu",
    device: torch.device = _CPU,
    seed: int = 0,
) -> list[PatternImage]:
    """Pattern images of ``res`` x ``res`` pixels of one program on several slices.

    Dense and adaptive sampling, and all backends and devices, give the same image. Adaptive sampling evaluates a coarse
    lattice of pixels and quarters every cell whose corners differ, down to single pixels; a cell whose corners share a
    hash lies in one region, because activation regions are convex. With "triton" all slices go through the same
    launches, and their images stay on the device.

    ``progress`` is called with the share of the images that is known.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
    report = progress or (lambda share: None)
    if backend == "triton":
        return _on_device(folded, res, sampling, dtype, report, device, seed)
    images = []
    for number, on_slice in enumerate(folded):
        evaluator = GuardedEvaluator(on_slice, dtype, backend=backend, seed=seed)
        threads = threads or cpu_count()
        with one_torch_thread(), Workers(threads) as workers:
            run = _Run(
                evaluator,
                on_slice.slice.pixel_centres(res),
                workers,
                lambda share: report((number + share) / len(folded)),  # noqa: B023 - called at once
            )
            hashes = run.adaptive(backend) if sampling == "adaptive" else run.dense()
        images += _images([on_slice], [hashes], sampling, evaluator)
    return images


def _on_device(
    folded: Sequence[SliceProgram],
    res: int,
    sampling: str,
    dtype: str,
    progress: Progress,
    device: torch.device,
    seed: int,
) -> list[PatternImage]:
    with full_float32(), current_device(device):
        evaluator = GuardedEvaluator(folded, dtype, backend="triton", device=device, seed=seed)
        if sampling == "adaptive":
            images = adaptive_images(evaluator.write, len(folded), res, device, progress)
        else:
            images = torch.empty((len(folded), res, res), dtype=torch.int64, device=device)
            evaluator.write_all(images, progress)
        return _images(folded, list(images), sampling, evaluator)


def _images(
    folded: Sequence[SliceProgram], pixels: Sequence[Array | Tensor], sampling: str, evaluator: GuardedEvaluator
) -> list[PatternImage]:
    return [
        PatternImage(on_slice.slice, image, sampling, evaluations, reevaluated, evaluator.calibration)
        for on_slice, image, evaluations, reevaluated in zip(folded, pixels, evaluator.evaluated, evaluator.reevaluated)
    ]


def current_device(device: torch.device) -> Any:
    """Triton launches on torch's current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class _Run:
    def __init__(self, evaluator: GuardedEvaluator, centres: Array, workers: Workers, progress: Progress) -> None:
        self.evaluator = evaluator
        self.centres = centres
        self.res = len(centres)
        self.workers = workers
        self.progress = progress

    def dense(self) -> Array:
        image = np.empty((self.res, self.res), np.uint64)
        done = 0

        def evaluate(start: int, stop: int) -> None:
            nonlocal done
            uv = np.empty((stop - start, self.res, 2))
            uv[..., 0], uv[..., 1] = self.centres, self.centres[start:stop, None]
            image[start:stop] = self.evaluator(uv.reshape(-1, 2)).reshape(-1, self.res)
            done += stop - start
            self.progress(done / self.res)

        self.workers.run(evaluate, self.res, max(1, self._span(image.size) // self.res))
        return image

    def adaptive(self, backend: str) -> Array:
        refine = kernels(backend)
        image = np.zeros((self.res, self.res), np.uint64)  # of UNKNOWN, but written only when it is known
        spacing = first_spacing(self.res)
        ticks = np.unique(np.append(np.arange(0, self.res, spacing), self.res - 1))
        points = (ticks[:, None] * self.res + ticks).reshape(-1)
        corners = ticks[:-1]
        cells = np.stack(np.meshgrid(corners, corners, indexing="ij"), axis=-1).reshape(-1, 2)
        while True:
            self._evaluate(image, points)
            if spacing == 1:  # all pixels are corners by now
                self.progress(1.0)
                return image
            mixed = np.empty(len(cells), np.bool_)

            def fill(start: int, stop: int) -> None:
                refine.fill(image, cells, spacing, mixed, start, stop)  # noqa: B023 - called before they change

            self.workers.run(fill, len(cells), self._share(len(cells)))
            cells = cells[mixed]
            self.progress(max(0.0, 1 - len(cells) * (spacing - 1) ** 2 / image.size))
            if not len(cells):
                return image
            children = np.empty((4 * len(cells), 2), np.int64)
            asked = np.empty(5 * len(cells), np.int64)
            n_children, n_asked = refine.subdivide(image, cells, spacing, children, asked)
            cells, points, spacing = children[:n_children], asked[:n_asked], spacing // 2

    def _evaluate(self, image: Array, points: Array) -> None:
        flat = image.reshape(-1)

        def evaluate(start: int, stop: int) -> None:
            flat[points[start:stop]] = self._hash(points[start:stop])

        self.workers.run(evaluate, len(points), self._span(len(points)))

    def _hash(self, points: Array) -> Array:
        rows, columns = np.divmod(points, self.res)
        return self.evaluator(np.stack([self.centres[columns], self.centres[rows]], axis=1))

    def _span(self, total: int) -> int:
        """Points a task: large enough to batch the close calls, small enough to keep all threads busy."""
        return min(self._share(total), self.evaluator.span)

    def _share(self, total: int) -> int:
        return max(256, -(-total // (4 * self.workers.threads)))
