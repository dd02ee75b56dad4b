"""Adaptive against dense sampling: evaluations and seconds as the resolution grows."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cases import CASES, folded
from benchmarks.harness import Row, alternate, seconds
from regiongrid.sampling.image import sample_image


def benchmark() -> Iterator[Row]:
    """Evaluations and time of adaptive sampling from 1024 to 16384, against dense sampling up to 4096."""
    for name in ("128x3-1k", "128x3-11k"):
        program = folded(CASES[name])
        evaluations = {}
        for res in (1024, 2048, 4096, 8192, 16384):
            image = sample_image(program, res)
            evaluations[res] = image.evaluations
            share = image.evaluations / res**2
            yield Row(name, f"evaluated at {res}", 100 * share, "%", "all pixels")
            if res > 4096:
                yield Row(name, f"adaptive at {res}", seconds(lambda: sample_image(program, res)), "s")  # noqa: B023
                continue
            adaptive, dense = alternate(
                [lambda: sample_image(program, res), lambda: sample_image(program, res, sampling="dense")],  # noqa: B023
                3,
            )
            wanted = "<= 1.6" if res == 4096 else ""
            yield Row(name, f"adaptive at {res}", adaptive, "s")
            yield Row(name, f"dense at {res}", dense, "s")
            yield Row(name, f"time ratio / evaluation ratio at {res}", adaptive / dense / share, "x", "dense", wanted)
        growth = evaluations[16384] / evaluations[4096]
        yield Row(name, "evaluations at 16384 / at 4096", growth, "x", "4096", "<= 4.5")
