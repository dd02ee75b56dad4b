"""Many runs at a time, each in a folder and a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from regiongrid.arguments import check_whole
from regiongrid.errors import InputError, RegiongridError
from regiongrid.study.config import StudyConfig
from regiongrid.study.training import MakeMonitor, Run, train

FAILURE = "failure.txt"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")

Progress = Callable[[StudyConfig, int, int], None]
"""Called with a run's configuration, its epochs done and its epochs in all, after each epoch of any run."""


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end; ``folder / "failure.txt"`` has the traceback, if Python made one."""

    folder: Path
    config: StudyConfig
    message: str


def run_many(
    configs: Sequence[StudyConfig],
    root: str | os.PathLike[str],
    jobs: int = 1,
    *,
    resume: bool = False,
    monitor: bool | MakeMonitor = True,
    progress: Progress | None = None,
) -> list[Run | Failure]:
    """Train each configuration in ``root / config.name``, ``jobs`` at a time, each on one thread.

    What goes wrong in a run ends that run alone, also if its process is killed. Runs that were finished before are not
    run again, so the same call continues a study that was interrupted; ``resume`` continues the runs inside it too. The
    processes are spawned: a script has to make this call under ``if __name__ == "__main__":``.

    Parameters
    ----------
    jobs
        Runs at a time; more than there are cores only slows them down.
    resume, monitor
        As for `train`; a function that makes monitors has to be one of a module, so that a process can import it.
    progress
        Called after each epoch of any run.

    Returns
    -------
    list of Run or Failure
        In the order of ``configs``.

    Raises
    ------
    InputError
        No configuration, the same one twice, or ``jobs`` is no whole number from 1 on.
    """
    folders = _folders(configs, Path(root))
    check_whole("jobs", jobs, 1)
    tasks = deque(_Task(i, config, folder, resume, monitor) for i, (config, folder) in enumerate(zip(configs, folders)))
    outcomes: dict[int, Run | Failure] = {}
    idle: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    try:
        while tasks or busy:
            while tasks and len(busy) < jobs:
                worker = idle.pop() if idle else _Worker()
                worker.give(tasks.popleft())
                busy[worker.connection] = worker
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                outcome = worker.news(progress)
                if outcome is not None:
                    outcomes[worker.task.number] = outcome
                    del busy[connection]
                    if worker.alive:
                        idle.append(worker)
    finally:
        for worker in (*idle, *busy.values()):
            worker.end()
    return [outcomes[i] for i in range(len(configs))]


@dataclass(frozen=True)
class _Task:
    number: int
    config: StudyConfig
    folder: Path
    resume: bool
    monitor: bool | MakeMonitor


class _Worker:
    """A process that does one run after the other, seen from outside."""

    task: _Task

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(theirs,), daemon=True)
        with _one_thread_each():
            self.process.start()
        theirs.close()
        self.alive, self.busy = True, False

    def give(self, task: _Task) -> None:
        self.task, self.busy = task, True
        with contextlib.suppress(BrokenPipeError):  # it has died, which `news` will find
            self.connection.send(task)

    def news(self, progress: Progress | None) -> Run | Failure | None:
        """Read one message; return the run's outcome if it is that."""
        try:
            message: Any = self.connection.recv()
        except (EOFError, ConnectionError):
            self.alive = False
            self.process.join()
            code = self.process.exitcode or 0
            ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return Failure(self.task.folder, self.task.config, f"its process {ended}")
        if isinstance(message, Run | Failure):
            self.busy = False
            return message
        if progress is not None:
            progress(self.task.config, *message)
        return None

    def end(self) -> None:
        """End the process, in good order if it has nothing to do: then it gives back what it holds of the system."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.connection.close()
        if self.busy:
            self.process.terminate()
        self.process.join()


def _work(connection: Connection) -> None:
    """What a process does: a run for each task, until it gets None, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's business
    # What a user's encoder prints would be mixed up with the results of the command.
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(EOFError, ConnectionError):
        while (task := connection.recv()) is not None:
            connection.send(_outcome(task, lambda *epochs: connection.send(epochs)))


def _outcome(task: _Task, progress: Callable[[int, int], None]) -> Run | Failure:
    report = task.folder / FAILURE
    try:
        run = train(task.config, task.folder, resume=task.resume, monitor=task.monitor, progress=progress)
        report.unlink(missing_ok=True)
    except RegiongridError as error:
        return Failure(task.folder, task.config, str(error))
    except ConnectionError:  # nobody is there any more to tell
        raise
    except Exception as error:
        with contextlib.suppress(OSError):
            report.write_text(traceback.format_exc(), encoding="utf-8")
        return Failure(task.folder, task.config, f"{type(error).__name__}: {error}")
    return run


def _folders(configs: Sequence[StudyConfig], root: Path) -> list[Path]:
    if not configs:
        raise InputError("there is nothing to run; give at least one configuration")
    folders = [root / config.name for config in configs]
    if len(set(folders)) < len(folders):
        twice = next(folder.name for i, folder in enumerate(folders) if folder in folders[:i])
        raise InputError(f"the run {twice} is asked for twice; give every configuration once")
    return folders


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside compute with one thread; the libraries read these variables when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
