"""What all training runs do with their folders: locking, checkpoints, and a digest of the data they depend on."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regiongrid.errors import InputError, RegiongridError
from regiongrid.files import atomic_path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it. The system lets go of the lock when a process is killed.

    Raises
    ------
    RegiongridError
        The folder cannot be written, or another process has it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise RegiongridError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RegiongridError(f"another process is training in {folder}") from error
        yield


def read_checkpoint(file: Path, version: int) -> dict[str, Any] | None:
    """A checkpoint, None if there is none.

    Raises
    ------
    InputError
        It is damaged, or its ``format`` is not ``version``.
    """
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"checkpoint {file} cannot be read ({type(error).__name__}); delete the folder") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != version:
        raise InputError(
            f"checkpoint {file} has format {found!r}, and this regiongrid reads {version}; delete the folder or "
            "choose another one"
        )
    return state


def save_checkpoint(state: Any, path: Path) -> None:
    """Write tensors, numbers and texts; the file appears, or is replaced, only when it is whole."""
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        torch.save(state, file)  # given a name, it would write it into the file


def digest_of(*tensors: Tensor) -> str:
    """A hash of shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
