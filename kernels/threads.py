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


class Workers:
    """Threads that stay for a number of runs, so that what a thread keeps (buffers, library state) stays warm.

    >>> with Workers(2) as workers:
    ...     squares = [0] * 5
    ...     workers.run(lambda start, stop: [squares.__setitem__(i, i * i) for i in range(start, stop)], 5, 2)
    >>> squares
    [0, 1, 4, 9, 16]
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(max_workers=threads) if threads > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[[int, int], object], total: int, size: int) -> None:
        """Call ``function(start, stop)`` for every span of ``range(total)`` of at most ``size``.

        The first exception of a worker is raised here; spans that have not started by then never run.
        """
        work = list(spans(total, size))
        if self._pool is None or len(work) <= 1:
            for start, stop in work:
                function(start, stop)
            return
        futures = [self._pool.submit(function, start, stop) for start, stop in work]
        try:
            for future in futures:
                future.result()
        except BaseException:
            self._pool.shutdown(wait=True, cancel_futures=True)
            raise


def run_spans(function: Callable[[int, int], object], total: int, size: int, threads: int) -> None:
    """One `Workers.run` on ``threads`` threads of its own."""
    with Workers(threads) as workers:
        workers.run(function, total, size)
