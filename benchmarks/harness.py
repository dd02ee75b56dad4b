"""Timing, the machine header, and rows of results in long format."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
import torch

import regiongrid as rg
from regiongrid.files import atomic_path
from regiongrid.kernels.threads import cpu_count
from regiongrid.resources import processor

RESULTS = Path(__file__).parent.parent / "results" / "benchmarks"


@dataclass(frozen=True)
class Row:
    """One figure. A ratio names its baseline, which was measured in the same run."""

    case: str
    quantity: str
    value: float
    unit: str
    baseline: str = ""
    wanted: str = ""


Benchmark = Callable[[], Iterator[Row]]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, run in turns so that a noisy moment hits all of them; one warm-up each."""
    for function in functions:
        function()
    times = np.array([[seconds(function) for function in functions] for _ in range(repeats)])
    return [float(median) for median in np.median(times, axis=0)]


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "cpu": processor(),
        "cores": str(cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "scikit-image": version("scikit-image"),
        "regiongrid": rg.__version__,
    }


def run(name: str, benchmark: Benchmark) -> None:
    """Run a benchmark, print its rows as they come, and write results/benchmarks/NAME.csv."""
    print(f"\n{name}: {(benchmark.__doc__ or '').strip().splitlines()[0]}", flush=True)
    rows = []
    for row in benchmark():
        note = f" (wanted {row.wanted})" if row.wanted else ""
        against = f", against {row.baseline}" if row.baseline else ""
        print(f"  {row.case:<14} {row.quantity:<44} {row.value:>12.5g} {row.unit}{against}{note}", flush=True)
        rows.append(row)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with atomic_path(RESULTS / f"{name}.csv") as temporary, temporary.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in machine().items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "quantity", "value", "unit", "baseline", "wanted"])
        for row in rows:
            writer.writerow([row.case, row.quantity, f"{row.value:.6g}", row.unit, row.baseline, row.wanted])


def in_fresh_process(code: str, *arguments: str) -> dict[str, float]:
    """Run code that prints one JSON object in a new interpreter, from the folder of the checkout."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=root, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result
