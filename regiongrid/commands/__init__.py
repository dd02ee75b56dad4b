"""The command line. Parsing and printing only: whatever it computes is in the library too."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command `regiongrid` on ``sys.argv`` and exit with its code."""
    # Importing torch makes a million objects that live to the end: looking among them for garbage at the usual rate,
    # and once more on the way out, would take a third of a small run.
    gc.set_threshold(100_000, 50)
    try:
        _prepare_streams()
        from regiongrid.commands.app import app

        app(prog_name="regiongrid")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()


def _prepare_streams() -> None:
    """A closed stream, or a character outside the terminal's encoding, must not turn a finished run into an error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
