"""Pattern images: one 64-bit hash a pixel over a slice, dense or adaptive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regiongrid.kernels.refinement import kernels
from regiongrid.kernels.threads import Workers, cpu_count
from regiongrid.network.on_slice import SliceProgram
from regiongrid.resources import one_torch_thread
from regiongrid.sampling.guard import Calibration, GuardedEvaluator
from regiongrid.slices import Slice

Array = np.ndarray[Any, Any]
Progress = Callable[[float], None]

SAMPLINGS = ("adaptive", "dense")
_COARSEST_CELLS = 16  # cells along a side to begin with; starting coarser only saves evaluations, to a point


@dataclass(frozen=True)
class PatternImage:
    """One pattern hash a pixel centre.

    Attributes
    ----------
    hashes
        [res, res] uint64; row i is v = centres[i], column j is u = centres[j].
    evaluations
        Pixels at which the network was evaluated; the others were filled by convexity.
    reevaluated
        Evaluations that were too close to call in the fast precision and decided in float64.
    """

    slice: Slice
    hashes: Array = field(repr=False)
    sampling: str
    evaluations: int
    reevaluated: int
    calibration: Calibration

    @property
    def res(self) -> int:
        return int(self.hashes.shape[0])


def sample_image(
    folded: SliceProgram,
    res: int,
    *,
    sampling: str = "adaptive",
    dtype: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    backend: str = "cpu",
    seed: int = 0,
) -> PatternImage:
    """Pattern image of ``res`` x ``res`` pixels; dense and adaptive sampling give the same image.

    Adaptive sampling evaluates a coarse lattice of pixels and quarters every cell whose corners differ, down to single
    pixels; a cell whose corners share a hash lies in one region, because activation regions are convex.

    ``progress`` is called with the share of the image that is known.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
    threads = threads or cpu_count()
    evaluator = GuardedEvaluator(folded, dtype, backend=backend, seed=seed)
    with one_torch_thread(), Workers(threads) as workers:
        run = _Run(evaluator, folded.slice.pixel_centres(res), workers, progress or (lambda share: None))
        hashes = run.adaptive(backend) if sampling == "adaptive" else run.dense()
    return PatternImage(
        folded.slice, hashes, sampling, evaluator.evaluated, evaluator.reevaluated, evaluator.calibration
    )


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
        spacing = 1
        while spacing * _COARSEST_CELLS < self.res:
            spacing *= 2
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
            self.progress(1 - len(cells) * (spacing - 1) ** 2 / image.size)
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
