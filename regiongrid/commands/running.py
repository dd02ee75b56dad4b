"""How a command runs: errors to messages and exit codes, stdout for results alone, logs and progress on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from regiongrid.errors import InputError, RegiongridError

INTERRUPTED = 130


@contextmanager
def exit_codes(debug: bool, to_save_memory: str = "close other programs") -> Iterator[None]:
    """Turn whatever goes wrong into one message on stderr and an exit code: 1, 2 (input) or 130 (interrupt).

    With ``debug`` the traceback comes before the message. ``to_save_memory`` is the advice where memory ran out. A
    reader of stdout that goes away early (``| head``) is no reason for a message.
    """
    try:
        yield
        sys.stdout.flush()
    except (typer.Exit, typer.Abort):
        raise
    except BrokenPipeError:
        _drop_unwritable_output()
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED, debug)
    except InputError as error:
        _fail(f"Error: {error}", 2, debug)
    except RegiongridError as error:
        _fail(f"Error: {error}", 1, debug)
    except MemoryError as error:
        _fail(f"Error: out of memory ({error}); {to_save_memory}", 1, debug)
    except OSError as error:
        _drop_unwritable_output()
        _fail(f"Error: {error}", 1, debug)
    except Exception as error:
        hint = "" if debug else "; --debug shows where"
        _fail(f"Error: unexpected {type(error).__name__}: {error}{hint}", 1, debug)


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    """Say it on stderr and exit. To be called while the error is handled."""
    with contextlib.suppress(OSError):
        if debug:
            traceback.print_exc(file=sys.stderr)
        print(message, file=sys.stderr, flush=True)
    raise typer.Exit(code) from None


def _drop_unwritable_output() -> None:
    """Send what cannot be written nowhere; the interpreter would complain about it again when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


@contextmanager
def results_on_stdout(quiet: bool) -> Iterator[None]:
    """Keep stdout for results: what else is printed inside (by a model factory, say) goes to stderr, and so do logs."""
    logger = logging.getLogger("regiongrid")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("regiongrid: %(message)s"))
    handler.setLevel(logging.ERROR if quiet else logging.WARNING)
    logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def progress_bar(slices: int, quiet: bool) -> Iterator[Callable[[int, float], None]]:
    """A bar on stderr where that is a terminal. Gives a function of the slice's number and its share done."""
    if quiet or not sys.stderr.isatty():
        yield lambda number, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("evaluating", total=slices)

        def show(number: int, share: float) -> None:
            of = f" slice {number + 1} of {slices}" if slices > 1 else ""
            doing = "evaluating" if share < 1 else "measuring"
            bar.update(task, completed=number + share, description=doing + of)

        yield show
