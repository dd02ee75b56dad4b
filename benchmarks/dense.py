"""Throughput of dense sampling against the bare chain of matrix products and ReLUs that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.cases import CASES, Case, folded, folded_layers
from benchmarks.harness import Row, alternate, seconds
from regiongrid.sampling.image import sample_image

# Enough points for seconds of work, few enough to try chunk sizes.
RES = {"128x3-11k": 2048, "512x3-10k": 1024}


def chain(case: Case, res: int) -> Callable[[int], None]:
    """The hidden layers in float32 on all pixel centres, by torch with all its threads, ``chunk`` points at a time."""
    layers = [
        (torch.from_numpy(weight.T.astype(np.float32)).contiguous(), torch.from_numpy(bias.astype(np.float32)))
        for weight, bias in folded_layers(case)[:-1]
    ]
    centres = torch.from_numpy(case.slice().pixel_centres(res).astype(np.float32))
    points = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(-1, 2)

    def run(chunk: int) -> None:
        with torch.inference_mode():
            for part in points.split(chunk):
                x = part
                for weight, bias in layers:
                    x = torch.addmm(bias, x, weight).relu_()

    return run


def best_chunk(bare: Callable[[int], None]) -> int:
    """The chunk size at which the bare chain is fastest."""
    return min((1 << k for k in range(10, 15)), key=lambda size: min(seconds(lambda: bare(size)) for _ in range(2)))


def benchmark() -> Iterator[Row]:
    """Dense hashes, guard included, against the bare float32 chain on the same points."""
    for name, res in RES.items():
        case = CASES[name]
        program, bare = folded(case), chain(case, res)
        chunk = best_chunk(bare)
        ours, floor = alternate(
            [lambda: sample_image(program, res, sampling="dense"), lambda: bare(chunk)],  # noqa: B023
            5,
        )
        flops = 2 * res**2 * sum(weight.size for weight, _ in folded_layers(case)[:-1])
        yield Row(name, f"bare chain, best chunk {chunk}", flops / floor / 1e9, "Gflop/s")
        yield Row(name, "dense sampling", flops / ours / 1e9, "Gflop/s")
        yield Row(name, "dense sampling / bare chain", floor / ours, "x", "bare chain", ">= 0.8")
