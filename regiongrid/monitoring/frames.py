"""Pattern images of a few slices, kept at every measurement, for `regiongrid.replay`.

A run's folder holds ``frames/slices.npz`` (the slices, once) and one ``frames/STEP.npz`` a measurement. A pattern keeps
its hash for the whole run, whatever the weights: the hash is made of the decisions alone.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.arguments import check_whole
from regiongrid.errors import InputError, RegiongridError
from regiongrid.estimation import MAX_RES
from regiongrid.files import atomic_path, read_npz
from regiongrid.kernels.components import number_regions
from regiongrid.network import Network
from regiongrid.network.on_slice import restrict_all
from regiongrid.sampling.image import sample_images
from regiongrid.slices import Slice

FOLDER = "frames"
"""Name of the folder inside that of the run."""
_SLICES_FILE = "slices.npz"
_FORMAT = "regiongrid.frames/1"
_FRAME_NAME = re.compile(r"\d{9,18}\.npz")
_LAST_STEP = 10**18 - 1  # 18 digits, as in the name of its file
_MOST_16_BITS = 1 << 16

Arrays = Mapping[str, NDArray[Any]]


class Frames:
    """Writes the pattern images of some slices, a file a measurement.

    A file is whole or not there. It holds, compressed, the number of each pixel's region in 16 or 32 bits, and the
    pattern hash of each region.

    Parameters
    ----------
    folder
        The folder of the run; it and its folder ``frames`` are made with the first frame.
    slices
        The slices to be kept as images.
    res
        Pixels along a side.

    Raises
    ------
    InputError
        No slice, slices of different dimensions, or a ``res`` that is not a number of pixels from 1 to 32768.

    Examples
    --------
    >>> import tempfile, torch, regiongrid as rg
    >>> network = rg.load_network(torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)))
    >>> run = tempfile.mkdtemp()
    >>> Frames(run, [rg.Slice.square(3.0)], res=32).record(0, network, threads=1)
    >>> recording = load_frames(run)
    >>> recording.steps.tolist(), recording.images(0).shape
    ([0], (1, 32, 32))
    """

    def __init__(self, folder: str | os.PathLike[str], slices: Sequence[Slice], res: int = 400) -> None:
        if not slices:
            raise InputError("there is no slice to keep images of; give at least one")
        dimensions = sorted({plane.dimension for plane in slices})
        if len(dimensions) > 1:
            raise InputError(f"the slices lie in spaces of different dimensions: {dimensions}")
        check_whole("res", res, 1, MAX_RES, of="pixels")
        self.folder = Path(folder).absolute() / FOLDER  # training scripts change the working directory
        self.slices = tuple(slices)
        self.res = int(res)
        self._started = False

    def record(self, step: int, network: Network, threads: int) -> None:
        """Write the images of ``network`` as the frame of this step, in place of one that is there.

        Raises
        ------
        InputError
            ``step`` is negative or has more than 18 digits, the folder holds frames of other slices or another
            resolution, or the slices do not fit the network.
        RegiongridError
            The file cannot be written.
        """
        number = operator.index(step)
        check_whole("a frame's step", number, 0, _LAST_STEP)
        self._start()
        folded = restrict_all(network.program, self.slices)
        images = [image.hashes for image in sample_images(folded, self.res, threads=threads)]
        numbered = [number_regions(hashes, threads=threads) for hashes in images]
        counts = np.array([patterns.size for _, patterns in numbered], np.int64)
        small = np.uint16 if counts.max() <= _MOST_16_BITS else np.uint32
        labels = np.stack([numbers for numbers, _ in numbered]).astype(small)
        patterns = np.concatenate([patterns for _, patterns in numbered])
        arrays = {"step": np.array(number, np.int64), "labels": labels, "patterns": patterns, "counts": counts}
        _write(self.folder / f"{number:09d}.npz", arrays)

    def rewind(self, step: int | None) -> None:
        """Delete the frames after ``step``, or all of them if None.

        Raises
        ------
        RegiongridError
            A file cannot be deleted.
        """
        self._started = False
        for number, path in _frame_files(self.folder).items():
            if step is None or number > step:
                _delete(path)
        if step is None:
            _delete(self.folder / _SLICES_FILE)

    def _start(self) -> None:
        """Write the slices, unless those that are there are the same."""
        if self._started:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegiongridError(f"cannot make the folder {self.folder}: {error.strerror or error}") from error
        path, own = self.folder / _SLICES_FILE, _slice_arrays(self.slices, self.res)
        if _frame_files(self.folder) and path.exists():
            found = read_npz(path, "slices of the frames")
            if any(name not in found or not np.array_equal(found[name], own[name]) for name in own):
                raise InputError(
                    f"{self.folder} holds frames of other slices or another resolution; give this run another folder, "
                    "or delete the old one"
                )
        else:
            _write(path, own)
        self._started = True


@dataclass(frozen=True, eq=False)
class Recording:
    """The frames of a run, read one at a time.

    Attributes
    ----------
    folder
        The folder with the files.
    slices
        What the images show.
    res
        Pixels along a side.
    steps
        [F] int64, ascending: the training step of each frame.
    """

    folder: Path
    slices: tuple[Slice, ...] = field(repr=False)
    res: int
    steps: NDArray[np.int64] = field(repr=False)
    _files: tuple[Path, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self._files)

    def images(self, number: int) -> NDArray[np.uint64]:
        """Pattern images of frame ``number``, [S, res, res]; row i is v = centres[i], column j is u = centres[j].

        Raises
        ------
        InputError
            The file is missing, cut short or no frame of these slices.
        """
        path = self._files[number]
        arrays = read_npz(path, "frame")
        shape = (len(self.slices), self.res, self.res)
        labels = _checked(arrays, "labels", ("uint16", "uint32"), shape, path)
        counts = _checked(arrays, "counts", ("int64",), shape[:1], path)
        step = _checked(arrays, "step", ("int64",), (), path)
        if step != self.steps[number]:
            raise InputError(f"{path} is the frame of step {step}, not of the step in its name; it was renamed")
        if (counts < 1).any() or (counts > self.res**2).any():
            raise InputError(
                f"{path} is no frame: it counts {counts.tolist()} regions on {self.res} x {self.res} pixels"
            )
        patterns = _checked(arrays, "patterns", ("uint64",), (int(counts.sum()),), path)
        if (labels.reshape(len(counts), -1).max(axis=1) >= counts).any():
            raise InputError(f"{path} is no frame: it has pixels of regions that it does not list")
        firsts = np.cumsum(counts) - counts
        images: NDArray[np.uint64] = patterns[labels.astype(np.int64) + firsts[:, None, None]]
        return images


def load_frames(folder: str | os.PathLike[str]) -> Recording:
    """Open the frames in the folder of a run. Nothing in the files is executed or trusted.

    Raises
    ------
    InputError
        There is no such folder, it holds no frames, or the description of the slices cannot be used.
    """
    run = Path(folder)
    if not run.is_dir():
        raise InputError(f"{run} is no folder; give the folder of a run, as RegionMonitor(..., run=FOLDER) writes it")
    frames = run / FOLDER
    files = _frame_files(frames)
    if not files:
        raise InputError(
            f"{run} holds no frames ({FOLDER}/000000000.npz, ...); RegionMonitor(..., run=FOLDER, frames=1) keeps them"
        )
    slices, res = _read_slices(frames / _SLICES_FILE)
    steps = sorted(files)
    return Recording(frames, slices, res, np.array(steps, np.int64), tuple(files[step] for step in steps))


def _frame_files(folder: Path) -> dict[int, Path]:
    """Step -> file; whatever else lies in the folder is not ours."""
    if not folder.is_dir():
        return {}
    try:
        return {int(path.stem): path for path in folder.iterdir() if _FRAME_NAME.fullmatch(path.name)}
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read: {error.strerror or error}") from error


def _slice_arrays(slices: Sequence[Slice], res: int) -> dict[str, NDArray[Any]]:
    return {
        "format": np.array(_FORMAT),
        "res": np.array(res, np.int64),
        "origin": np.stack([plane.origin for plane in slices]),  # [S, d]
        "u": np.stack([plane.u for plane in slices]),  # [S, d]
        "v": np.stack([plane.v for plane in slices]),  # [S, d]
        "half_width": np.array([plane.half_width for plane in slices]),  # [S]
        "anchors": np.concatenate([plane.anchors for plane in slices]),  # [K, 2], those of the first slice first
        "anchor_counts": np.array([len(plane.anchors) for plane in slices], np.int64),  # [S]
        "description": np.array([plane.description for plane in slices]),  # [S]
    }


def _read_slices(path: Path) -> tuple[tuple[Slice, ...], int]:
    arrays = read_npz(path, "slices of the frames")
    found = arrays.get("format")
    if found is None or found.shape != () or str(found) != _FORMAT:
        raise InputError(f"{path} is not of the format {_FORMAT}, which this regiongrid reads")
    res = int(_checked(arrays, "res", ("int64",), (), path))
    if not 1 <= res <= MAX_RES:
        raise InputError(f"{path} gives a resolution of {res}; it must be from 1 to {MAX_RES}")
    origin = arrays.get("origin")
    if origin is None or origin.ndim != 2 or not origin.size:
        raise InputError(f"{path} holds no slices: 'origin' must have shape [slices, dimension]")
    count = len(origin)
    vectors = [_checked(arrays, name, ("float64",), origin.shape, path) for name in ("origin", "u", "v")]
    widths = _checked(arrays, "half_width", ("float64",), (count,), path)
    anchor_counts = _checked(arrays, "anchor_counts", ("int64",), (count,), path)
    if (anchor_counts < 0).any():
        raise InputError(f"{path} gives a negative number of anchors")
    anchors = _checked(arrays, "anchors", ("float64",), (int(anchor_counts.sum()), 2), path)
    descriptions = arrays.get("description")
    if descriptions is None or descriptions.shape != (count,) or descriptions.dtype.kind != "U":
        raise InputError(f"{path} has no text 'description' for each slice")
    parted = np.split(anchors, np.cumsum(anchor_counts)[:-1])
    try:
        rows = zip(*vectors, widths.tolist(), parted, descriptions.tolist())
        return tuple(Slice(*row) for row in rows), res
    except InputError as error:
        raise InputError(f"{path} holds no slices: {error}") from error


def _checked(arrays: Arrays, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...], path: Path) -> NDArray[Any]:
    array = arrays.get(name)
    if array is None:
        raise InputError(f"{path} has no array {name!r}; it was not written by regiongrid, or by another version")
    if array.dtype.name not in dtypes or array.shape != shape:
        raise InputError(
            f"{path}: {name!r} is {array.dtype} of shape {list(array.shape)}, not {' or '.join(dtypes)} of shape "
            f"{list(shape)} as the slices of the run ask for"
        )
    return array


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("xb") as handle:
        np.savez_compressed(handle, **arrays)


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RegiongridError(f"cannot delete {path}: {error.strerror or error}") from error
