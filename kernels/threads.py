"""Worker threads for the CPU kernels.

Each worker runs whole chunks, single-threaded inside (numba kernels release the GIL; torch runs one thread a worker).
There is no barrier inside a chunk, so a busy machine slows the work in proportion and no more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor


def cpu_count() -> int:
    """Number of CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``range(total)`` into half-open spans ``(start, stop)`` of at most ``size``."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def run_spans(function: Callable[[int, int], None], total: int, size: int, threads: int) -> None:
    """Call ``function(start, stop)`` for every span of ``range(total)``, on ``threads`` workers.

    The first exception of a worker is raised here; spans that have not started by then never run.
    """
    work = list(spans(total, size))
    if threads <= 1 or len(work) <= 1:
        for start, stop in work:
            function(start, stop)
        return
    with ThreadPoolExecutor(max_workers=min(threads, len(work))) as pool:
        futures = [pool.submit(function, start, stop) for start, stop in work]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
