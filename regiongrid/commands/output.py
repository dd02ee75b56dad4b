"""What a run leaves behind: the folder of --out, and the JSON object of --json and summary.json."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import platform
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regiongrid.errors import RegiongridError
from regiongrid.files import atomic_path

if TYPE_CHECKING:
    from regiongrid.regions import RegionTable
    from regiongrid.slices import Slice

SliceFiles = Mapping[str, tuple[str, Callable[[Path], object]]]
"""Files of one slice: what each holds, to its name and the function that writes it to a path."""

SCHEMA = "regiongrid.summary/1"


class OutputFolder:
    """The folder of --out, made (with its parents) if missing, and tried for writing before any work is done.

    Raises
    ------
    RegiongridError
        The folder cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".regiongrid-{secrets.token_hex(8)}"
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise RegiongridError(
                f"cannot write to the folder {path}: {error.strerror or error}; choose another --out"
            ) from error

    def write_slice(self, files: SliceFiles, number: int, slices: int) -> dict[str, str]:
        """Write the files of one slice, numbered if there are several; return their names by what they hold."""
        names = {}
        for what, (name, write) in files.items():
            stem, suffix = Path(name).stem, Path(name).suffix
            names[what] = f"{stem}-{number:03d}{suffix}" if slices > 1 else name
            with atomic_path(self.path / names[what]) as temporary:
                write(temporary)
        return names

    def write_summary(self, summary: dict[str, Any]) -> None:
        with atomic_path(self.path / "summary.json") as temporary:
            temporary.write_text(strict_json(summary) + "\n", encoding="utf-8")

    def remove_if_unused(self) -> None:
        """Remove the folders that this run made if it wrote nothing into them."""
        for folder in self._made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def slice_files(regions: RegionTable, slice_: Slice, plot: Callable[[Path], object], picture: str) -> SliceFiles:
    """The files that every engine leaves of a slice, with the picture in the format ``picture``."""
    return {
        "regions": (f"regions.{_table_format()}", regions.write),
        "picture": (f"slice.{picture}", plot),
        "slice": ("slice.npz", slice_.save),
    }


def _table_format() -> str:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        return "csv"
    return "parquet"


def strict_json(value: Any) -> str:
    """JSON text as the standard has it: a number that is not finite becomes null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None for a package that is not installed."""
    from regiongrid import __version__

    packages = ("torch", "numpy", "numba", "scikit-image")
    return {
        "regiongrid": __version__,
        **{name: installed_version(name) for name in packages},
        "python": platform.python_version(),
    }


def installed_version(package: str) -> str | None:
    """The version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
