"""Data sets as arrays: files (.npy, .npz, .pt, IDX), and the named sets digits, mnist and fashion-mnist.

Samples of type uint8 are images: they are scaled to [0, 1] (divided by 255). Nothing else is done to the values unless
``normalise`` is given.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError, UnsafeCheckpointError
from regiongrid.files import existing_file, read_npy, read_npz

log = logging.getLogger("regiongrid")

Samples = NDArray[np.float32] | NDArray[np.float64]
Labels = NDArray[np.int64]
Split = Literal["train", "test"]

#: Folder in which the named data sets are looked for, and into which they are fetched.
DATA_FOLDER_VARIABLE = "REGIONGRID_DATA"

_SYSTEM_FOLDER = Path("/usr/share/datasets")  # Debian's data set packages, such as dataset-fashion-mnist
_SAMPLE_KEYS = ("x", "X", "images", "data", "arr_0")
_LABEL_KEYS = ("y", "labels", "targets")
_SPLIT_PREFIX = {"train": "train", "test": "t10k"}
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class _Mirror:
    """Where a named data set may lie under a folder, and where it can be fetched."""

    url: str
    folders: tuple[str, ...]
    md5: Mapping[str, str]


_MIRRORS = {
    "mnist": _Mirror(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ("mnist", "MNIST/raw", "MNIST"),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": _Mirror(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}
NAMES = ("digits", *_MIRRORS)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and their class labels.

    Parameters
    ----------
    name : str
        The data set's name, or the path it was read from.
    x : array of float32 or float64, [n, ...]
        The samples, all finite.
    y : array of int64, [n], or None
        The class labels, if there are any.
    """

    name: str
    x: Samples
    y: Labels | None

    def __len__(self) -> int:
        return len(self.x)


def load_data(
    name_or_path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    split: Split = "test",
    download: bool = True,
    normalise: tuple[float, float] | None = None,
) -> Dataset:
    """Load a named data set or a file.

    Parameters
    ----------
    name_or_path : str or path
        ``digits``, ``mnist`` or ``fashion-mnist``, or a path (write ``./mnist`` for a folder of that name):

        * ``.npy``: the samples;
        * ``.npz``: samples under the first of ``x_train``/``x_test`` (by ``split``), ``x``, ``X``, ``images``,
          ``data``, ``arr_0``; labels likewise under ``y_train``/``y_test``, ``y``, ``labels``, ``targets``;
        * ``.pt`` or ``.pth``: a tensor, a pair (samples, labels), or a mapping with those keys; tensors only, read with
          ``weights_only=True``;
        * an IDX file (``...-idx3-ubyte``, plain or gzipped), or a folder of them under the usual names
          (``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte.gz``, ...).
    data_dir : path, optional
        Folder to look in for a named set: it holds the four files, or a folder ``mnist``, ``MNIST/raw``,
        ``fashion-mnist`` or ``FashionMNIST/raw`` that does. Next come the folder named by ``$REGIONGRID_DATA``,
        ``/usr/share/datasets`` and the cache folder of ``download``. Files that are found are used as they are; only
        what is fetched is checked against a checksum.
    split : {"test", "train"}
        Part of the named sets, IDX folders and split ``.npz`` archives. ``digits`` has no parts.
    download : bool
        Fetch a named set that is not found (needs the extra ``regiongrid[data]``), into ``data_dir``, else
        ``$REGIONGRID_DATA``, else ``$XDG_CACHE_HOME/regiongrid`` or ``~/.cache/regiongrid``.
    normalise : (mean, std), optional
        Subtract ``mean`` and divide by ``std`` after the scaling to [0, 1].

    Returns
    -------
    Dataset
        uint8 samples as float32 in [0, 1]; other types as they are, in the smallest of float32 and float64 that holds
        them. ``digits`` has shape [1797, 64], in [0, 1].

    Raises
    ------
    InputError
        The data cannot be found, fetched or read, or are not finite numbers of shape [n, ...] with n integer labels.

    Examples
    --------
    >>> digits = load_data("digits")
    >>> digits.x.shape, float(digits.x.max())
    ((1797, 64), 1.0)
    """
    if split not in _SPLIT_PREFIX:
        raise InputError(f"split must be one of {', '.join(_SPLIT_PREFIX)}, got {split!r}")
    name = _known_name(name_or_path)
    if name == "digits":
        dataset = _digits()
    elif name is not None:
        folder = _find(name, data_dir, split) or _fetch(name, data_dir, split, download)
        dataset = _from_idx_folder(folder, split, name)
    else:
        dataset = _from_path(Path(name_or_path), split)
    return dataset if normalise is None else _normalised(dataset, normalise)


def as_inputs(x: Samples, input_shape: Sequence[int]) -> Samples:
    """Reshape samples to a network's input shape, where that does not mix up axes.

    A sample fits if the shapes agree up to axes of length 1 (28x28 for 1x28x28), or if one of the two is flat (28x28
    for 784, 784 for 1x28x28; row-major order).

    Parameters
    ----------
    x : array, [n, ...]
        The samples.
    input_shape : sequence of int
        Shape of one input, without the batch axis.

    Returns
    -------
    array, [n, *input_shape]
        A view where possible.

    Raises
    ------
    InputError
        The number of entries differs, or axes would have to be exchanged (28x28x3 for 3x28x28).

    Examples
    --------
    >>> as_inputs(np.zeros((5, 28, 28)), (784,)).shape
    (5, 784)
    """
    have, want = tuple(x.shape[1:]), tuple(int(n) for n in input_shape)
    if math.prod(have) != math.prod(want):
        raise InputError(
            f"samples of shape {list(have)} have {math.prod(have)} entries, the network takes {list(want)}, "
            f"{math.prod(want)} entries; give data of that shape, or --input-shape"
        )
    long_have, long_want = [n for n in have if n != 1], [n for n in want if n != 1]
    if long_have != long_want and min(len(long_have), len(long_want)) > 1:
        raise InputError(
            f"samples of shape {list(have)} do not fit the network's input shape {list(want)}: the axes differ "
            f"in order or number; permute them first (images are [channels, height, width] in PyTorch)"
        )
    return x.reshape(len(x), *want)


def _known_name(name_or_path: str | os.PathLike[str]) -> str | None:
    if not isinstance(name_or_path, str):
        return None
    spelled = name_or_path.lower().replace("_", "-")
    spelled = "fashion-mnist" if spelled == "fashionmnist" else spelled
    return spelled if spelled in NAMES else None


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(_extra_missing("scikit-learn", "digits")) from error
    x, y = load_digits(return_X_y=True)
    return _dataset(np.asarray(x) / 16.0, y, "digits")


def _extra_missing(package: str, name: str) -> str:
    return f"data set {name} needs {package}, which is not installed: pip install 'regiongrid[data]'"


def _places(name: str, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Folders that may hold a named set. ``data_dir`` itself is one; a shared root may hold another set's files."""
    roots = [Path(root).expanduser() for root in (data_dir, os.environ.get(DATA_FOLDER_VARIABLE)) if root]
    places = [root / folder for root in roots for folder in _MIRRORS[name].folders]
    if data_dir:
        places.append(roots[0])
    return [*places, _SYSTEM_FOLDER / name, _cache_folder() / name]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "regiongrid"


def _find(name: str, data_dir: str | os.PathLike[str] | None, split: Split) -> Path | None:
    for folder in _places(name, data_dir):
        if all(_idx_file(folder, split, part) for part in ("images", "labels")):
            log.info("data set %s read from %s", name, folder)
            return folder
    return None


def _fetch(name: str, data_dir: str | os.PathLike[str] | None, split: Split, download: bool) -> Path:
    """Fetch the two files of a split, checked by their checksums; return the folder they are in."""
    mirror = _MIRRORS[name]
    looked = ", ".join(str(place) for place in _places(name, data_dir))
    files = {file: md5 for file, md5 in mirror.md5.items() if file.startswith(_SPLIT_PREFIX[split])}
    way_out = f"put {' and '.join(files)} into FOLDER/{name} and pass --data-dir FOLDER or set ${DATA_FOLDER_VARIABLE}"
    if not download:
        raise InputError(f"data set {name} is not in {looked}, and fetching is off; {way_out}")
    try:
        import pooch
    except ImportError as error:
        raise InputError(
            f"data set {name} is not in {looked}; {_extra_missing('pooch', name)}, or {way_out}"
        ) from error
    root = data_dir or os.environ.get(DATA_FOLDER_VARIABLE) or _cache_folder()
    folder = Path(root).expanduser() / name
    for file, md5 in files.items():
        try:
            pooch.retrieve(mirror.url + file, f"md5:{md5}", fname=file, path=folder, progressbar=False)
        except (OSError, ValueError) as error:  # the network's errors are OSErrors, a wrong checksum is a ValueError
            raise InputError(
                f"data set {name} is not in {looked}, and fetching {mirror.url}{file} failed "
                f"({type(error).__name__}); {way_out}"
            ) from error
    return folder


def _from_path(path: Path, split: Split) -> Dataset:
    if not path.exists():
        raise InputError(f"there is no file or folder {path}, and the named data sets are {', '.join(NAMES)}")
    if path.is_dir():
        return _from_idx_folder(path, split, str(path))
    ending = path.suffix.lower()
    if ending == ".npy":
        return _dataset(read_npy(path, "data file"), None, str(path))
    if ending == ".npz":
        return _from_mapping(read_npz(path, "data file"), split, str(path))
    if ending in (".pt", ".pth"):
        return _from_torch_file(path, split)
    return _dataset(read_idx(path), None, str(path))


def _from_mapping(arrays: Mapping[str, Any], split: Split, source: str) -> Dataset:
    x_key = _first_key((f"x_{split}", *_SAMPLE_KEYS), arrays)
    y_key = _first_key((f"y_{split}", *_LABEL_KEYS), arrays)
    if x_key is None:
        raise InputError(
            f"data file {source} has none of the keys x_{split}, {', '.join(_SAMPLE_KEYS)}; it has "
            f"{', '.join(map(str, arrays)) or 'none at all'}"
        )
    return _dataset(arrays[x_key], None if y_key is None else arrays[y_key], source)


def _first_key(keys: Sequence[str], arrays: Mapping[str, Any]) -> str | None:
    return next((key for key in keys if key in arrays), None)


def _from_torch_file(path: Path, split: Split) -> Dataset:
    from torch import Tensor

    from regiongrid.network.checkpoint import read_torch_file

    try:
        contents = read_torch_file(path)
    except UnsafeCheckpointError as error:
        raise InputError(
            f"data file {path} holds pickled objects, which are not loaded; save plain tensors, "
            f"torch.save({{'x': x, 'y': y}}, 'data.pt')"
        ) from error
    if isinstance(contents, Tensor):
        return _dataset(contents, None, str(path))
    if isinstance(contents, Mapping):
        return _from_mapping(contents, split, str(path))
    if isinstance(contents, tuple | list) and len(contents) == 2 and all(isinstance(t, Tensor) for t in contents):
        return _dataset(contents[0], contents[1], str(path))
    raise InputError(
        f"data file {path} must hold a tensor, a pair of tensors (samples, labels) or a mapping of tensors, "
        f"it holds a {type(contents).__name__}"
    )


def _from_idx_folder(folder: Path, split: Split, name: str) -> Dataset:
    images = _idx_file(folder, split, "images")
    if images is None:
        raise InputError(
            f"folder {folder} has no IDX file {_SPLIT_PREFIX[split]}-images-idx3-ubyte, plain or .gz, "
            f"for split {split!r}"
        )
    labels = _idx_file(folder, split, "labels")
    return _dataset(read_idx(images), None if labels is None else read_idx(labels), name)


def _idx_file(folder: Path, split: Split, part: Literal["images", "labels"]) -> Path | None:
    rank = 3 if part == "images" else 1
    for mark in ("-", "."):
        for ending in ("", ".gz"):
            file = folder / f"{_SPLIT_PREFIX[split]}-{part}{mark}idx{rank}-ubyte{ending}"
            if file.is_file():
                return file
    return None


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    """Read an IDX file, plain or gzipped, in the machine's byte order.

    The format: two zero bytes, a type byte (0x08 uint8, 0x09 int8, 0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64),
    the number of axes, one big-endian uint32 length an axis, then the entries, big-endian, row-major.

    Raises
    ------
    InputError
        The file is missing, not IDX, cut short, or longer than its header says.
    """
    file = existing_file(path, "data file")
    raw = _read_maybe_gzipped(file)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES or raw[3] == 0:
        raise InputError(
            f"data file {file} is none of .npy, .npz, .pt and IDX (an IDX file starts with two zero bytes, a type and "
            f"the number of axes; this one with {raw[:4].hex(' ')})"
        )
    dtype, start = np.dtype(_IDX_TYPES[raw[2]]), 4 + 4 * raw[3]
    if len(raw) < start:
        raise InputError(f"data file {file} is cut short: its header of {start} bytes ends after {len(raw)}")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) - start != expected:
        what = "is cut short" if len(raw) - start < expected else "is longer than its header says"
        raise InputError(
            f"data file {file} {what}: shape {list(shape)} of {dtype.name} takes {expected} bytes, "
            f"there are {len(raw) - start}"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _read_maybe_gzipped(file: Path) -> bytes:
    try:
        raw = file.read_bytes()
        return gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"data file {file} is cut short or damaged: its gzip stream does not end well") from error
    except OSError as error:
        raise InputError(f"data file {file} cannot be read: {error.strerror or error}") from error


def _dataset(x: Any, y: Any, source: str) -> Dataset:
    samples = _samples(x, source)
    return Dataset(source, samples, None if y is None else _labels(y, len(samples), source))


def _samples(x: Any, source: str) -> Samples:
    array: NDArray[Any] = _as_array(x, source)
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"samples of {source} must have shape [n, ...] with n >= 1, got {list(array.shape)}")
    if array.dtype.kind not in "fiub":
        raise InputError(f"samples of {source} must be real numbers, got {array.dtype}")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    wide = np.result_type(array.dtype, np.float32).itemsize > 4
    samples: Samples = array.astype(np.float64) if wide else array.astype(np.float32)
    bad = ~np.isfinite(samples)
    if bad.any():
        first = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
        raise InputError(
            f"samples of {source} have {int(bad.sum())} NaN or infinite entries, the first in sample {first}; "
            f"remove them"
        )
    return samples


def _labels(y: Any, n: int, source: str) -> Labels:
    array = _as_array(y, source)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (n,):
        raise InputError(f"labels of {source} must have shape [{n}], one class a sample, got {list(array.shape)}")
    kind = array.dtype.kind
    if not (kind in "iub" or (kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all())):
        raise InputError(f"labels of {source} must be whole numbers (classes), got {array.dtype}")
    return array.astype(np.int64)


def _as_array(values: Any, source: str) -> NDArray[Any]:
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    try:
        array: NDArray[Any] = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"a tensor of {source} ({tensor.dtype}, {tensor.layout}) is no plain array") from error
    return array


def _normalised(dataset: Dataset, normalise: tuple[float, float]) -> Dataset:
    mean, std = (float(value) for value in normalise)
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0.0):
        raise InputError(f"normalise must be a finite mean and a positive finite std, got {normalise}")
    x: Any = (dataset.x - dataset.x.dtype.type(mean)) / dataset.x.dtype.type(std)
    return replace(dataset, x=x)
