"""Peak memory, behaviour on a busy machine, and start-up time, each in processes of their own."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

import regiongrid as rg
from benchmarks.cases import CASES
from benchmarks.harness import Row, in_fresh_process, seconds
from regiongrid.kernels.threads import cpu_count

# VmHWM and not ru_maxrss, which a new process inherits from the one that started it.
_MEMORY = """
import json, re, sys
import regiongrid as rg
from benchmarks.cases import CASES
case = CASES[sys.argv[1]]
if sys.argv[3] == "estimate":
    rg.estimate(case.module(), case.slice(), int(sys.argv[2])).summary()
else:
    import torch, numba
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps({"bytes": int(peak[1]) * 1024}))
"""


def memory() -> Iterator[Row]:
    """Peak resident memory of a process that does one estimate, torch included."""
    start = in_fresh_process(_MEMORY, "128x3-11k", "0", "nothing")["bytes"]
    yield Row("", "after import", start / 1e9, "GB")
    for name, res, wanted in (("128x3-11k", 4096, "< 1.5"), ("128x3-28k", 4096, "< 1.5"), ("128x3-11k", 16384, "< 8")):
        peak = in_fresh_process(_MEMORY, name, str(res), "estimate")["bytes"]
        yield Row(name, f"peak at {res}", peak / 1e9, "GB", "", wanted)


def _spin() -> None:
    while True:
        np.linalg.norm(np.ones(1000))


def load() -> Iterator[Row]:
    """An estimate while another process is busy on every core: in proportion means about twice the time."""
    case = CASES["128x3-11k"]
    net, plane = rg.load_network(case.module()), case.slice()

    def job() -> None:
        rg.estimate(net, plane, 4096)

    job()
    alone = float(np.median([seconds(job) for _ in range(5)]))
    context = multiprocessing.get_context("spawn")
    spinners = [context.Process(target=_spin, daemon=True) for _ in range(cpu_count())]
    for spinner in spinners:
        spinner.start()
    try:
        job()
        busy = float(np.median([seconds(job) for _ in range(5)]))
    finally:
        for spinner in spinners:
            spinner.terminate()
    yield Row(case.name, "alone", alone, "s")
    yield Row(case.name, "one busy process a core", busy, "s")
    yield Row(case.name, "busy / alone", busy / alone, "x", "alone", "about 2")


def startup() -> Iterator[Row]:
    """Import of regiongrid with its public names against import of torch, and `regiongrid --help`; medians of 7."""

    def measure(*command: str) -> float:
        runs = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(8)]
        return float(np.median(runs[1:]))

    python = (sys.executable, "-W", "ignore", "-c")
    torch_only = measure(*python, "import torch")
    lazy = measure(*python, "import regiongrid")
    ours = measure(*python, "import regiongrid as rg; rg.load_network, rg.estimate, rg.Slice, rg.load_data")
    yield Row("", "import torch", torch_only, "s")
    yield Row("", "import regiongrid", lazy, "s")
    yield Row("", "import regiongrid, all names used", ours, "s")
    yield Row("", "all names used / import torch", ours / torch_only, "x", "import torch", "< 1.3")
    yield Row("", "regiongrid --help", measure(sys.executable, "cli.py", "--help"), "s")
