"""Files in and out: writing that leaves a whole file or none, and NumPy reading that never unpickles."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError, RegiongridError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``, which takes the place of ``path`` when the block ends well.

    The block creates and closes the file itself, so that it gets the usual permissions (the process's umask). The
    temporary name ends like ``path``, because writers choose a format by the ending. Whatever goes wrong in the block
    (an interrupt included), ``path`` stays as it was and the temporary file is removed. A ``path`` that is a symbolic
    link is written through.

    Raises
    ------
    RegiongridError
        The file cannot be written: no such folder, no permission, a full disk, or ``path`` is not a regular file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> target = Path(tempfile.mkdtemp()) / "counts.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("17 regions")
    >>> target.read_text()
    '17 regions'
    """
    target = Path(path)
    final = Path(os.path.realpath(target))  # replacing a symbolic link would leave its target stale
    if final.exists() and not final.is_file():
        kind = "a folder" if final.is_dir() else "not a regular file"
        raise RegiongridError(f"cannot write {target}: it is {kind}; give the name of a file")
    if not final.parent.is_dir():
        raise RegiongridError(f"cannot write {target}: there is no folder {final.parent}; create it first")
    temporary = final.parent / f".regiongrid-{secrets.token_hex(8)}{final.suffix}"
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(final)
    except OSError as error:
        raise RegiongridError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """Without this a power cut after the rename can leave an empty file under the final name."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return ``path`` as a :class:`~pathlib.Path` to a readable, non-empty file; ``what`` names its role in errors.

    Raises
    ------
    InputError
        There is no such file, it is a folder, it is empty, or it may not be read.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"{what} {file} is a folder; give the file inside it")
        if not file.exists():
            raise InputError(f"{what} {file} does not exist")
        with file.open("rb") as handle:
            if not handle.read(1):
                raise InputError(f"{what} {file} is empty (0 bytes)")
    except OSError as error:
        raise InputError(f"{what} {file} cannot be read: {error.strerror or error}") from error
    return file


def read_npy(path: str | os.PathLike[str], what: str = "array file") -> NDArray[np.generic]:
    """Read one array from a ``.npy`` file, without unpickling.

    Raises
    ------
    InputError
        The file is missing, cut short, not a ``.npy`` file, or holds Python objects.
    """
    file = existing_file(path, what)
    try:
        with file.open("rb") as handle:
            return np.lib.format.read_array(handle, allow_pickle=False)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{what} {file} is not a readable .npy file: {_first_line(error)}") from error


def read_npz(path: str | os.PathLike[str], what: str = "array archive") -> dict[str, NDArray[np.generic]]:
    """Read all arrays of a ``.npz`` archive, in file order, without unpickling.

    Raises
    ------
    InputError
        The file is missing, cut short, not a ``.npz`` archive, or holds Python objects.
    """
    file = existing_file(path, what)
    if not zipfile.is_zipfile(file):
        raise InputError(f"{what} {file} is not a readable .npz archive: it is another kind of file, or is cut short")
    try:
        # Opened here, because np.load leaves a damaged file open.
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return {key: np.asarray(archive[key]) for key in archive.files}
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{what} {file} is not a readable .npz archive: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
