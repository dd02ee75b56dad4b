"""Data sets: IDX files to the bit, arrays of every kind, named sets found or fetched, errors that say what to do."""

from __future__ import annotations

import gzip
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regiongrid import data
from regiongrid.data import as_inputs, load_data, read_idx
from regiongrid.errors import InputError

FASHION = Path("/usr/share/datasets/fashion-mnist")
IDX_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, IDX_CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx_folder(folder: Path, *, n: int = 7, ending: str = "", mark: str = "-") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    arrays = {}
    for prefix, count in (("train", n + 2), ("t10k", n)):
        arrays[f"{prefix}-images{mark}idx3-ubyte"] = rng.integers(0, 256, (count, 4, 3), dtype=np.uint8)
        arrays[f"{prefix}-labels{mark}idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        raw = idx_bytes(array)
        (folder / (name + ending)).write_bytes(gzip.compress(raw, mtime=0) if ending else raw)
    return arrays


@pytest.fixture(autouse=True)
def _no_folders_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("REGIONGRID_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_SYSTEM_FOLDER", tmp_path / "system")


class TestIdx:
    @pytest.mark.parametrize("ending", ["", ".gz"])
    @pytest.mark.parametrize("kind", IDX_CODES)
    def test_round_trip(self, tmp_path: Path, kind: str, ending: str) -> None:
        array = (np.random.default_rng(3).standard_normal((5, 2, 3)) * 50).astype(kind)
        raw = idx_bytes(array)
        path = tmp_path / f"some-idx3{ending}"
        path.write_bytes(gzip.compress(raw) if ending else raw)
        read = read_idx(path)
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype
        assert read.dtype.isnative

    def test_bytes_of_the_format(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(bytes.fromhex("0000 0b02 00000002 00000001 0102 fffe"))
        assert read_idx(tmp_path / "a").tolist() == [[258], [-2]]

    @pytest.mark.parametrize("ending", ["", ".gz"])
    @pytest.mark.parametrize("mark", ["-", "."])
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_folder(self, tmp_path: Path, ending: str, mark: str, split: str) -> None:
        arrays = write_idx_folder(tmp_path / "set", ending=ending, mark=mark)
        prefix = {"train": "train", "test": "t10k"}[split]
        dataset = load_data(tmp_path / "set", split=split)
        images = arrays[f"{prefix}-images{mark}idx3-ubyte"]
        assert dataset.x.dtype == np.float32
        np.testing.assert_array_equal(dataset.x, images.astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(dataset.y, arrays[f"{prefix}-labels{mark}idx1-ubyte"])
        assert dataset.y.dtype == np.int64
        assert len(dataset) == len(images)

    def test_folder_without_labels(self, tmp_path: Path) -> None:
        write_idx_folder(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
        assert load_data(tmp_path).y is None

    def test_folder_without_the_split(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"has no IDX file train-images-idx3-ubyte, plain or .gz, for split 'train'"
        ):
            load_data(tmp_path, split="train")

    def test_single_file(self, tmp_path: Path) -> None:
        arrays = write_idx_folder(tmp_path, ending=".gz")
        dataset = load_data(str(tmp_path / "t10k-images-idx3-ubyte.gz"))
        assert dataset.x.shape == arrays["t10k-images-idx3-ubyte"].shape
        assert dataset.y is None

    def test_labels_of_another_count(self, tmp_path: Path) -> None:
        write_idx_folder(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(6, np.uint8)))
        with pytest.raises(InputError, match=r"must have shape \[7\], one class a sample, got \[6\]"):
            load_data(tmp_path)

    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_truncated_at_every_length(self, tmp_path: Path, ending: str) -> None:
        raw = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
        whole = gzip.compress(raw, mtime=0) if ending else raw
        path = tmp_path / f"cut-idx3{ending}"
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"cut-idx3.* (is empty|is cut short|is none of .npy)"):
                read_idx(path)

    def test_truncated_message(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(idx_bytes(np.zeros((3, 2, 2), np.int16))[:-1])
        with pytest.raises(InputError, match=r"is cut short: shape \[3, 2, 2\] of int16 takes 24 bytes, there are 23"):
            read_idx(tmp_path / "a")

    def test_too_long(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(idx_bytes(np.zeros((3, 2), np.uint8)) + b"\0")
        with pytest.raises(InputError, match=r"longer than its header says: shape \[3, 2\] of uint8 takes 6 bytes"):
            read_idx(tmp_path / "a")

    def test_lying_header_allocates_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(bytes([0, 0, 0x0E, 3]) + b"\xff" * 12 + b"\0" * 64)
        with pytest.raises(InputError, match=r"is cut short: shape \[4294967295, 4294967295, 4294967295\]"):
            read_idx(tmp_path / "a")

    @pytest.mark.parametrize("head", [b"\0\0\x07\x01", b"\0\0\x08\0", b"P5 2", b"\x01\0\x08\x01"])
    def test_not_idx(self, tmp_path: Path, head: bytes) -> None:
        (tmp_path / "a.bin").write_bytes(head + b"\0" * 20)
        with pytest.raises(InputError, match=rf"is none of .npy, .npz, .pt and IDX.*{head.hex(' ')}"):
            load_data(tmp_path / "a.bin")

    def test_damaged_gzip(self, tmp_path: Path) -> None:
        whole = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8).reshape(2, 100)), mtime=0))
        whole[-6] ^= 0xFF
        (tmp_path / "a.gz").write_bytes(whole)
        with pytest.raises(InputError, match=r"a.gz is cut short or damaged: its gzip stream"):
            read_idx(tmp_path / "a.gz")


class TestArrays:
    x = np.random.default_rng(0).standard_normal((6, 3))
    y = np.array([0, 1, 2, 0, 1, 2], dtype=np.int32)

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            ("f8", "f8"),
            ("f4", "f4"),
            ("f2", "f4"),
            (">f4", "f4"),
            (">f8", "f8"),
            ("i2", "f4"),
            ("i8", "f8"),
            ("?", "f4"),
        ],
    )
    def test_npy_types(self, tmp_path: Path, dtype: str, expected: str) -> None:
        array = (10 * self.x).astype(dtype)
        np.save(tmp_path / "a.npy", array)
        dataset = load_data(tmp_path / "a.npy")
        np.testing.assert_array_equal(dataset.x, array)
        assert dataset.x.dtype == np.dtype(expected)
        assert dataset.x.dtype.isnative
        assert dataset.y is None
        assert dataset.name == str(tmp_path / "a.npy")

    def test_uint8_is_scaled(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([[0, 51, 255]], dtype=np.uint8))
        np.testing.assert_array_equal(load_data(tmp_path / "a.npy").x, np.float32([[0, 0.2, 1]]))

    @pytest.mark.parametrize("key", ["x", "X", "images", "data", "arr_0"])
    @pytest.mark.parametrize("label", ["y", "labels", "targets"])
    def test_npz_keys(self, tmp_path: Path, key: str, label: str) -> None:
        np.savez(tmp_path / "a.npz", **{label: self.y, key: self.x, "other": [1]})
        dataset = load_data(tmp_path / "a.npz")
        np.testing.assert_array_equal(dataset.x, self.x)
        np.testing.assert_array_equal(dataset.y, self.y)

    def test_npz_with_splits(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x_train=self.x, y_train=self.y, x_test=self.x[:2], y_test=self.y[:2])
        assert load_data(tmp_path / "a.npz").x.shape == (2, 3)
        assert load_data(tmp_path / "a.npz", split="train").x.shape == (6, 3)

    def test_npz_without_samples(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", features=self.x, y=self.y)
        with pytest.raises(InputError, match=r"none of the keys x_test, x, X, images, data, arr_0; it has features, y"):
            load_data(tmp_path / "a.npz")

    @pytest.mark.parametrize("ending", [".npy", ".npz"])
    def test_pickled_arrays_are_not_loaded(self, tmp_path: Path, ending: str) -> None:
        path, marker = tmp_path / f"a{ending}", tmp_path / "marker"
        array = np.array([[_Touch(marker)]], dtype=object)
        np.save(path, array, allow_pickle=True) if ending == ".npy" else np.savez(path, x=array)
        with pytest.raises(InputError, match=rf"is not a readable {ending} (file|archive): Object arrays"):
            load_data(path)
        assert not marker.exists()

    @pytest.mark.parametrize("ending", [".npy", ".npz"])
    def test_truncated(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a{ending}"
        np.save(path, self.x) if ending == ".npy" else np.savez(path, x=self.x)
        whole = path.read_bytes()
        for length in range(0, len(whole), 11):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=rf"a\{ending} is (empty|not a readable)"):
                load_data(path)

    @pytest.mark.parametrize(
        "contents",
        [
            lambda x, y: {"x": x, "y": y},
            lambda x, y: (x, y),
            lambda x, y: [x, y],
            lambda x, y: {"data": x, "targets": y[:, None]},
            lambda x, y: {"images": x, "labels": y.double()},
        ],
        ids=["mapping", "tuple", "list", "column of labels", "labels as floats"],
    )
    @pytest.mark.parametrize("legacy", [False, True])
    def test_torch_files(self, tmp_path: Path, contents: Any, legacy: bool) -> None:
        x, y = torch.from_numpy(self.x), torch.from_numpy(self.y)
        torch.save(contents(x, y), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        dataset = load_data(tmp_path / "a.pt")
        np.testing.assert_array_equal(dataset.x, self.x)
        np.testing.assert_array_equal(dataset.y, self.y)
        assert dataset.y.dtype == np.int64

    def test_one_tensor(self, tmp_path: Path) -> None:
        x = torch.from_numpy(self.x).to(torch.bfloat16)
        torch.save(x, tmp_path / "a.pth")
        dataset = load_data(tmp_path / "a.pth")
        np.testing.assert_array_equal(dataset.x, x.float().numpy())
        assert dataset.y is None

    def test_torch_file_with_code(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        torch.save({"x": torch.zeros(2, 2), "extra": _Touch(marker)}, tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"holds pickled objects, which are not loaded; save plain tensors"):
            load_data(tmp_path / "a.pt")
        assert not marker.exists()

    def test_torch_file_of_another_kind(self, tmp_path: Path) -> None:
        torch.save("text", tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"must hold a tensor, a pair of tensors .* it holds a str"):
            load_data(tmp_path / "a.pt")
        torch.save((torch.zeros(2, 2),) * 3, tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"it holds a tuple"):
            load_data(tmp_path / "a.pt")
        torch.save(torch.eye(3).to_sparse(), tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"sparse_coo.* is no plain array"):
            load_data(tmp_path / "a.pt")

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (np.zeros(5), None, r"samples of .* must have shape \[n, ...\] with n >= 1, got \[5\]"),
            (np.zeros((0, 3)), None, r"got \[0, 3\]"),
            (np.zeros((2, 2), complex), None, "must be real numbers, got complex128"),
            (np.array([["a"]]), None, "must be real numbers, got <U1"),
            (np.array([[0, 1], [np.nan, np.inf]]), None, "have 2 NaN or infinite entries, the first in sample 1"),
            (np.zeros((2, 2)), np.eye(2), r"labels of .* must have shape \[2\], one class a sample, got \[2, 2\]"),
            (np.zeros((2, 2)), np.array([0.5, 1]), "must be whole numbers .*, got float64"),
            (np.zeros((2, 2)), np.array([np.inf, 1]), "must be whole numbers .*, got float64"),
            (np.zeros((2, 2)), np.array(["cat", "dog"]), "must be whole numbers .*, got <U3"),
        ],
        ids=["1-D", "none", "complex", "text", "not finite", "one-hot", "half", "infinite label", "text labels"],
    )
    def test_bad_contents(self, tmp_path: Path, x: np.ndarray, y: np.ndarray | None, message: str) -> None:
        np.savez(tmp_path / "a.npz", x=x, **({} if y is None else {"y": y}))
        with pytest.raises(InputError, match=message):
            load_data(tmp_path / "a.npz")

    def test_unknown_name(self) -> None:
        with pytest.raises(
            InputError, match=r"no file or folder cifar, .* named data sets are digits, mnist, fashion-mnist"
        ):
            load_data("cifar")

    def test_unknown_split(self) -> None:
        with pytest.raises(InputError, match=r"split must be one of train, test, got 'valid'"):
            load_data("digits", split="valid")

    def test_normalise(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([[0, 255]], dtype=np.uint8))
        dataset = load_data(tmp_path / "a.npy", normalise=(0.5, 0.25))
        np.testing.assert_array_equal(dataset.x, [[-2.0, 2.0]])
        assert dataset.x.dtype == np.float32

    @pytest.mark.parametrize("normalise", [(0.0, 0.0), (np.nan, 1.0), (0.0, -1.0), (0.0, np.inf)])
    def test_bad_normalise(self, tmp_path: Path, normalise: tuple[float, float]) -> None:
        np.save(tmp_path / "a.npy", np.zeros((2, 2)))
        with pytest.raises(InputError, match=r"normalise must be a finite mean and a positive finite std"):
            load_data(tmp_path / "a.npy", normalise=normalise)


class _Touch:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_touch_would_touch(tmp_path: Path) -> None:
    """The tests with _Touch mean something only if it works."""
    pickle.loads(pickle.dumps(_Touch(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


class TestDigits:
    def test_digits(self) -> None:
        pytest.importorskip("sklearn", reason="digits come with scikit-learn")
        dataset = load_data("digits")
        assert dataset.name == "digits"
        assert dataset.x.shape == (1797, 64)
        assert (dataset.x.min(), dataset.x.max()) == (0.0, 1.0)
        np.testing.assert_array_equal(np.unique(dataset.y), np.arange(10))
        assert dataset.y.dtype == np.int64

    def test_without_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(
            InputError, match=r"needs scikit-learn, which is not installed: pip install 'regiongrid\[data\]'"
        ):
            load_data("digits")


class TestNamedSets:
    @pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw", "MNIST"])
    def test_found_in_data_dir(self, tmp_path: Path, folder: str) -> None:
        arrays = write_idx_folder(tmp_path / "root" / folder, ending=".gz")
        dataset = load_data("mnist", data_dir=tmp_path / "root")
        assert dataset.name == "mnist"
        np.testing.assert_array_equal(dataset.y, arrays["t10k-labels-idx1-ubyte"])

    @pytest.mark.parametrize("name", ["fashion-mnist", "Fashion_MNIST", "FashionMNIST"])
    def test_found_by_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        write_idx_folder(tmp_path / "root" / "fashion-mnist")
        monkeypatch.setenv("REGIONGRID_DATA", str(tmp_path / "root"))
        assert load_data(name).name == "fashion-mnist"

    def test_environment_root_itself_is_not_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_idx_folder(tmp_path / "root")
        monkeypatch.setenv("REGIONGRID_DATA", str(tmp_path / "root"))
        with pytest.raises(InputError, match=r"fetching is off"):
            load_data("mnist", download=False)

    def test_found_on_the_system_and_in_the_cache(self, tmp_path: Path) -> None:
        write_idx_folder(tmp_path / "cache" / "regiongrid" / "mnist", n=5)
        assert len(load_data("mnist", download=False)) == 5
        write_idx_folder(tmp_path / "system" / "mnist", n=6)
        assert len(load_data("mnist", download=False)) == 6

    def test_data_dir_comes_before_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_idx_folder(tmp_path / "a" / "mnist", n=5)
        write_idx_folder(tmp_path / "b" / "mnist", n=6)
        monkeypatch.setenv("REGIONGRID_DATA", str(tmp_path / "b"))
        assert len(load_data("mnist", data_dir=tmp_path / "a")) == 5

    def test_images_without_labels_are_passed_over(self, tmp_path: Path) -> None:
        write_idx_folder(tmp_path / "mnist")
        (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(InputError, match=r"put t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into"):
            load_data("mnist", data_dir=tmp_path, download=False)

    def test_not_found_and_not_fetched(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            load_data("mnist", data_dir=tmp_path / "root", split="train", download=False)
        message = str(caught.value)
        assert str(tmp_path / "root" / "mnist") in message
        assert "put train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz into FOLDER/mnist" in message
        assert "$REGIONGRID_DATA" in message

    @pytest.mark.parametrize(
        ("name", "url"),
        [
            ("mnist", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
            ("fashion-mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        ],
    )
    @pytest.mark.parametrize("into", ["data_dir", "environment", "cache"])
    def test_fetched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, url: str, into: str) -> None:
        pooch = pytest.importorskip("pooch", reason="named sets are fetched with pooch")
        arrays = write_idx_folder(tmp_path / "mirror", ending=".gz")
        calls = []

        def retrieve(address: str, known_hash: str, fname: str, path: Path, progressbar: bool) -> str:
            calls.append((address, known_hash))
            Path(path).mkdir(parents=True, exist_ok=True)
            (Path(path) / fname).write_bytes((tmp_path / "mirror" / fname).read_bytes())
            assert not progressbar
            return str(Path(path) / fname)

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        root = tmp_path / "root"
        if into == "environment":
            monkeypatch.setenv("REGIONGRID_DATA", str(root))
        elif into == "cache":
            root = tmp_path / "cache" / "regiongrid"
        options = {"data_dir": root} if into == "data_dir" else {}
        dataset = load_data(name, split="train", **options)
        np.testing.assert_array_equal(dataset.y, arrays["train-labels-idx1-ubyte"])
        assert sorted(file.name for file in (root / name).iterdir()) == [
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
        ]
        assert calls == [
            (url + file, f"md5:{data._MIRRORS[name].md5[file]}")
            for file in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
        ]
        assert load_data(name, split="train", download=False, **options).x.shape == dataset.x.shape
        assert len(calls) == 2

    @pytest.mark.parametrize(
        "failure",
        [ConnectionError("no route"), ValueError("hash of downloaded file does not match")],
        ids=["net", "md5"],
    )
    def test_fetching_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
        pooch = pytest.importorskip("pooch", reason="named sets are fetched with pooch")

        def retrieve(*_: object, **__: object) -> str:
            raise failure

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        with pytest.raises(InputError) as caught:
            load_data("mnist", data_dir=tmp_path)
        message = str(caught.value)
        assert f"t10k-images-idx3-ubyte.gz failed ({type(failure).__name__})" in message
        assert "put t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into FOLDER/mnist" in message

    def test_pooch_checks_the_checksum(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The real pooch.retrieve, on a local file in place of the mirror, refuses a file with another checksum."""
        pooch = pytest.importorskip("pooch", reason="named sets are fetched with pooch")
        real = pooch.retrieve

        def copy(_url: str, output_file: str, _pooch: object) -> None:
            Path(output_file).write_bytes(b"not the data")

        monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: real(*a, **k, downloader=copy))
        with pytest.raises(InputError, match=r"failed \(ValueError\)"):
            load_data("mnist", data_dir=tmp_path)
        assert not list((tmp_path / "mnist").iterdir())

    def test_without_pooch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pooch", None)
        with pytest.raises(InputError, match=r"needs pooch, .* pip install 'regiongrid\[data\]', or put t10k-images"):
            load_data("mnist", data_dir=tmp_path)

    def test_a_folder_named_like_a_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_idx_folder(tmp_path / "mnist", n=4)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"data set mnist is not in"):
            load_data("mnist", download=False)
        assert len(load_data("./mnist")) == 4
        assert len(load_data(Path("mnist"))) == 4

    @pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
    def test_fashion_mnist_of_debian(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data, "_SYSTEM_FOLDER", FASHION.parent)
        dataset = load_data("fashion-mnist", download=False)
        assert dataset.x.shape == (10_000, 28, 28)
        assert dataset.x.dtype == np.float32
        assert (dataset.x.min(), dataset.x.max()) == (0.0, 1.0)
        np.testing.assert_array_equal(np.bincount(dataset.y), [1000] * 10)
        assert dataset.y[:8].tolist() == [9, 2, 1, 1, 6, 1, 4, 6]


class TestAsInputs:
    @pytest.mark.parametrize(
        ("have", "want"),
        [
            ((28, 28), (784,)),
            ((28, 28), (1, 28, 28)),
            ((784,), (1, 28, 28)),
            ((784,), (784,)),
            ((1, 28, 28), (28, 28)),
            ((3, 5, 5), (75,)),
            ((2,), (2,)),
            ((3, 4, 5), (3, 4, 5)),
        ],
    )
    def test_fits(self, have: tuple[int, ...], want: tuple[int, ...]) -> None:
        x = np.arange(2 * np.prod(have), dtype=np.float32).reshape(2, *have)
        inputs = as_inputs(x, want)
        assert inputs.shape == (2, *want)
        np.testing.assert_array_equal(inputs.ravel(), x.ravel())

    def test_number_of_entries(self) -> None:
        with pytest.raises(
            InputError, match=r"shape \[28, 28\] have 784 entries, the network takes \[3, 32, 32\], 3072"
        ):
            as_inputs(np.zeros((1, 28, 28)), (3, 32, 32))

    @pytest.mark.parametrize(("have", "want"), [((28, 28, 3), (3, 28, 28)), ((4, 6), (6, 4)), ((4, 6), (2, 2, 6))])
    def test_axes_are_not_mixed_up(self, have: tuple[int, ...], want: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"the axes differ in order or number; permute them first") as caught:
            as_inputs(np.zeros((1, *have)), want)
        assert str(list(have)) in str(caught.value)
        assert str(list(want)) in str(caught.value)


def test_import_is_light() -> None:
    code = (
        "import sys, regiongrid.data, regiongrid.slices\n"
        "print(*{'sklearn', 'pooch', 'torch', 'numba', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
