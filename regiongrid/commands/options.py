"""Options that several commands share: their flags, how their values are read, and what contradicts what.

Nothing here imports NumPy or torch before a network, data or slices are read.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from regiongrid.errors import InputError

if TYPE_CHECKING:
    from regiongrid.backends import Selected
    from regiongrid.data import Dataset
    from regiongrid.network import Network
    from regiongrid.slices import Slice


class Kind(StrEnum):
    THREE = "three"
    ONE = "one"
    NEAREST = "nearest"


class Split(StrEnum):
    TRAIN = "train"
    TEST = "test"


class Sampling(StrEnum):
    ADAPTIVE = "adaptive"
    DENSE = "dense"


class Backend(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    REFERENCE = "reference"
    TRITON = "triton"


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FLOAT16X3 = "float16x3"


class Measure(StrEnum):
    KERNELS = "kernels"
    SKIMAGE = "skimage"


class Picture(StrEnum):
    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


class PolygonFormat(StrEnum):
    NPZ = "npz"
    JSON = "json"


_NETWORK, _SLICES, _GRID, _EXACT, _RUN, _OUTPUT = "Network", "Slices", "Grid", "Exact", "Run", "Output"

CkptOption = Annotated[
    Path,
    typer.Option(
        "--ckpt",
        metavar="FILE",
        rich_help_panel=_NETWORK,
        help="Checkpoint: a state_dict (.pt, .safetensors), a training checkpoint, a pickled module, or .pt2.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PKG.MOD:FACTORY",
        rich_help_panel=_NETWORK,
        help="What makes the module, also path/to/file.py:factory. Without it an MLP is read off the weights.",
    ),
]
ModelArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model-arg", metavar="KEY=VALUE", rich_help_panel=_NETWORK, help="Argument of the factory; repeatable."
    ),
]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        metavar="KEY",
        rich_help_panel=_NETWORK,
        help="Entry of a training checkpoint that holds the weights.",
    ),
]
TrustPickleOption = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        rich_help_panel=_NETWORK,
        help="Run the code in a pickled checkpoint. Only for files whose origin you trust.",
    ),
]
InputShapeOption = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="1,28,28",
        rich_help_panel=_NETWORK,
        help="Shape of one input, where it cannot be read off the first layer.",
    ),
]

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME|FILE",
        rich_help_panel=_SLICES,
        help="Data whose points carry the slices: digits, mnist, fashion-mnist, or a .npy, .npz, .pt or IDX file.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", rich_help_panel=_SLICES, help="Folder that holds the named data sets."),
]
SplitOption = Annotated[
    Split | None,
    typer.Option("--split", rich_help_panel=_SLICES, show_default="test", help="Part of the data."),
]
NormaliseOption = Annotated[
    str | None,
    typer.Option(
        "--normalise",
        metavar="MEAN,STD",
        rich_help_panel=_SLICES,
        help="Shift and scale the data as in training, such as 0.1307,0.3081. By default images are in [0, 1].",
    ),
]
AnchorsOption = Annotated[
    str | None,
    typer.Option(
        "--anchors",
        metavar="3,17,42",
        rich_help_panel=_SLICES,
        help="Data points, by index from 0, that one slice goes through. Random ones if not given.",
    ),
]
SlicesOption = Annotated[
    int | None,
    typer.Option("--slices", metavar="N", min=1, rich_help_panel=_SLICES, show_default="1", help="Number of slices."),
]
SliceOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--slice",
        metavar="FILE.npz",
        rich_help_panel=_SLICES,
        help="Slice file with origin, u, v and half_width; repeatable. An earlier run with --out wrote one.",
    ),
]
KindOption = Annotated[
    Kind | None,
    typer.Option(
        "--kind",
        rich_help_panel=_SLICES,
        show_default="three",
        help="Through three data points, around one, or through one and its nearest of another and of its own class.",
    ),
]
HalfWidthOption = Annotated[
    float | None,
    typer.Option(
        "--half-width",
        metavar="H",
        rich_help_panel=_SLICES,
        help="Half the side of the square, in input units. By default 1.5 x the largest anchor coordinate, or 1 for a "
        "2-D input without data.",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, rich_help_panel=_SLICES, help="Seed of what is random in the choice of slices."
    ),
]

ResOption = Annotated[
    int, typer.Option("--res", metavar="PIXELS", rich_help_panel=_GRID, help="Pixels along a side of the slice.")
]
SamplingOption = Annotated[
    Sampling,
    typer.Option(
        "--sampling",
        rich_help_panel=_GRID,
        help="adaptive evaluates where patterns change and fills the rest; both give the same image.",
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        rich_help_panel=_GRID,
        metavar="NAME",
        help="Precision of the fast pass: auto, float32, float64, or float16x3 (products of float16 pairs on the "
        "matrix units of a GPU). Close decisions are made in float64 in any case.",
    ),
]
MeasureOption = Annotated[
    Measure,
    typer.Option("--measure", rich_help_panel=_GRID, help="Measure regions by compiled kernels or by scikit-image."),
]
ByLayerOption = Annotated[
    bool,
    typer.Option(
        "--by-layer", rich_help_panel=_GRID, help="Also count regions and boundary of the first 1, 2, ... layers alone."
    ),
]

LinearOption = Annotated[
    bool,
    typer.Option(
        "--linear",
        rich_help_panel=_EXACT,
        help="Also count linear regions: activation regions merge where the network is one affine map across them.",
    ),
]
DecisionBoundaryOption = Annotated[
    bool,
    typer.Option(
        "--decision-boundary",
        rich_help_panel=_EXACT,
        help="Also measure and draw where the largest output changes.",
    ),
]

BackendOption = Annotated[
    Backend,
    typer.Option(
        "--backend",
        rich_help_panel=_RUN,
        help="Kernels: Triton on a GPU, numba on the CPU (cpu), or plain NumPy (reference; slow, to check). By default "
        "Triton where it runs, otherwise cpu; all give the same image.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        rich_help_panel=_RUN,
        help="Where the kernels run: cuda is an NVIDIA or AMD GPU, cuda:1 the second. By default the current GPU, if "
        "there is one that can be used.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        rich_help_panel=_RUN,
        help="Worker threads. By default all cores; no result depends on it.",
    ),
]
MaxMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        rich_help_panel=_RUN,
        help="Memory to use at most, such as 500M, 8G (powers of 1000) or 8GiB. By default 4/5 of what is free.",
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        rich_help_panel=_OUTPUT,
        help="Write summary.json, the region table, the picture and the slice there. Made if missing.",
    ),
]
FigureOption = Annotated[
    Picture | None,
    typer.Option("--figure", rich_help_panel=_OUTPUT, show_default="png", help="Format of the picture in --out."),
]
PolygonsOption = Annotated[
    list[PolygonFormat] | None,
    typer.Option(
        "--polygons",
        rich_help_panel=_OUTPUT,
        help="Write the polygons to --out too, as NumPy arrays or as GeoJSON; repeatable.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="Print one JSON object instead of the tables.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=_OUTPUT, help="No progress and no log lines on stderr.")
]
DebugOption = Annotated[bool, typer.Option("--debug", hidden=True, envvar="REGIONGRID_DEBUG")]


@dataclass(frozen=True)
class NetworkChoice:
    """Which network: the options of `load_network`, read from their flags."""

    ckpt: Path
    model: str | None
    model_args: dict[str, str]
    weights_key: str | None
    trust_pickle: bool
    input_shape: tuple[int, ...] | None

    @classmethod
    def from_flags(
        cls,
        ckpt: Path,
        model: str | None,
        model_arg: list[str] | None,
        weights_key: str | None,
        trust_pickle: bool,
        input_shape: str | None,
    ) -> NetworkChoice:
        return cls(
            ckpt=ckpt,
            model=model,
            model_args=_pairs(model_arg or []),
            weights_key=weights_key,
            trust_pickle=trust_pickle,
            input_shape=None if input_shape is None else _whole_numbers(input_shape, "--input-shape", least=1),
        )

    def check(self) -> None:
        """Raise `InputError` if the checkpoint is not a readable file."""
        from regiongrid.files import existing_file

        existing_file(self.ckpt, "checkpoint")

    def load(self) -> Network:
        from regiongrid.network import load_network

        return load_network(
            self.ckpt,
            input_shape=self.input_shape,
            model=self.model,
            model_args=self.model_args or None,
            weights_key=self.weights_key,
            trust_pickle=self.trust_pickle,
        )

    def settings(self) -> dict[str, Any]:
        return _plain(self)


@dataclass(frozen=True)
class SliceChoice:
    """Which slices: files, data points, or the default square or plane. None where a flag was not given."""

    slice_files: tuple[Path, ...]
    data: str | None
    data_dir: Path | None
    split: str | None
    normalise: tuple[float, float] | None
    anchors: tuple[int, ...] | None
    slices: int | None
    kind: str | None
    half_width: float | None
    seed: int

    @classmethod
    def from_flags(
        cls,
        slice_files: list[Path] | None,
        data: str | None,
        data_dir: Path | None,
        split: Split | None,
        normalise: str | None,
        anchors: str | None,
        slices: int | None,
        kind: Kind | None,
        half_width: float | None,
        seed: int,
    ) -> SliceChoice:
        choice = cls(
            slice_files=tuple(slice_files or ()),
            data=data,
            data_dir=data_dir,
            split=None if split is None else split.value,
            normalise=None if normalise is None else _mean_and_std(normalise),
            anchors=None if anchors is None else _whole_numbers(anchors, "--anchors", least=0),
            slices=slices,
            kind=None if kind is None else kind.value,
            half_width=half_width,
            seed=seed,
        )
        choice._check()
        return choice

    def _check(self) -> None:
        """Raise `InputError` for flags that contradict each other."""
        given = {
            "--data": self.data,
            "--data-dir": self.data_dir,
            "--split": self.split,
            "--normalise": self.normalise,
            "--anchors": self.anchors,
            "--slices": self.slices,
            "--kind": self.kind,
            "--half-width": self.half_width,
        }
        flags = [flag for flag, value in given.items() if value is not None]
        if self.slice_files and flags:
            raise InputError(f"--slice takes its plane and half-width from the file; leave out {', '.join(flags)}")
        needing_data = [
            flag for flag in flags if flag in ("--data-dir", "--split", "--normalise", "--anchors", "--kind")
        ]
        if self.data is None and needing_data:
            need = "needs" if len(needing_data) == 1 else "need"
            raise InputError(f"{' and '.join(needing_data)} {need} data; add --data NAME or --data FILE")
        if self.half_width is not None and not (math.isfinite(self.half_width) and self.half_width > 0):
            raise InputError(f"--half-width must be a positive number, got {self.half_width:g}")
        if self.kind == "one" and self.half_width is None:
            raise InputError("--kind one has no half-width of its own; add --half-width H")
        if self.anchors is not None and self.kind != "one" and (self.slices or 1) > 1:
            raise InputError(f"--anchors give one slice, --slices asks for {self.slices}; leave out one of the two")

    def read(self) -> list[Slice] | Dataset | None:
        """Read the slice files or the data: what can be read before the network is known."""
        if self.slice_files:
            from regiongrid.slices import Slice

            return [Slice.load(file) for file in self.slice_files]
        if self.data is None:
            return None
        from regiongrid.data import load_data

        return load_data(
            self.data,
            data_dir=self.data_dir,
            split=cast("Literal['train', 'test']", self.split or "test"),
            normalise=self.normalise,
        )

    def make(self, source: list[Slice] | Dataset | None, input_shape: tuple[int, ...]) -> list[Slice]:
        """Make the slices from what `read` returned.

        Raises
        ------
        InputError
            The slices or the data do not fit the network's input, or the data points span no plane.
        """
        if isinstance(source, list):
            for file, slice_ in zip(self.slice_files, source):
                _check_dimension(f"slice file {file}", slice_, input_shape)
            return source
        if source is None:
            return self._default_slices(math.prod(input_shape))
        from regiongrid.data import as_inputs
        from regiongrid.slices import slices_from_data

        return slices_from_data(
            as_inputs(source.x, input_shape),
            source.y,
            anchors=self.anchors,
            count=self.slices or 1,
            kind=cast("Literal['three', 'one', 'nearest']", self.kind or "three"),
            half_width=self.half_width,
            seed=self.seed,
        )

    def _default_slices(self, dimension: int) -> list[Slice]:
        from regiongrid.slices import Slice

        if dimension == 2:
            if (self.slices or 1) > 1:
                raise InputError(
                    f"without --data a 2-D input has one slice, its square, and --slices asks for {self.slices}; "
                    "leave out --slices or add --data"
                )
            return [Slice.square(self.half_width or 1.0)]
        slices = [Slice.random(dimension, self.seed + number) for number in range(self.slices or 1)]
        if self.half_width is None:
            return slices
        return [dataclasses.replace(slice_, half_width=self.half_width) for slice_ in slices]

    def note(self, dimension: int) -> str | None:
        """A sentence for the report where the slices were chosen by default."""
        if self.slice_files or self.data is not None:
            return None
        if dimension == 2:
            return "No data given: the slice is the square around the origin of the 2-D input."
        return (
            "No data given: the anchors are standard-normal points, not data. "
            "Add --data (and --anchors) for slices near data."
        )

    def settings(self) -> dict[str, Any]:
        return _plain(self)


@dataclass(frozen=True)
class KernelChoice:
    """Which kernels, and where: the backend and the device asked for, and what runs then."""

    backend: str
    device: str

    @classmethod
    def from_flags(cls, backend: Backend, device: str) -> KernelChoice:
        from regiongrid.backends import check_choice

        check_choice(backend.value, device)
        return cls(backend.value, device)

    def check(self, dtype: str) -> None:
        """Raise `InputError` if this cannot run here, or not in this precision."""
        from regiongrid.backends import check_dtype

        check_dtype(dtype, self.selected)

    @cached_property
    def selected(self) -> Selected:
        from regiongrid.backends import select

        return select(self.backend, self.device)

    def settings(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "device": self.device,
            "backend_used": self.selected.backend,
            "device_used": self.selected.device_name,
            "backend_reason": self.selected.reason,
        }


@dataclass(frozen=True)
class OutputChoice:
    """Which files, and where."""

    out: Path | None
    picture: str
    polygons: tuple[str, ...]

    @classmethod
    def from_flags(
        cls, out: Path | None, figure: Picture | None, polygons: list[PolygonFormat] | None = None
    ) -> OutputChoice:
        flags = [flag for flag, value in {"--figure": figure, "--polygons": polygons}.items() if value]
        if out is None and flags:
            need = "needs" if len(flags) == 1 else "need"
            raise InputError(f"{' and '.join(flags)} {need} a folder to write to; add --out DIR")
        formats = dict.fromkeys(choice.value for choice in polygons or ())
        return cls(out, (figure or Picture.PNG).value, tuple(formats))


def _mean_and_std(text: str) -> tuple[float, float]:
    try:
        mean, std = (float(part) for part in text.split(","))
    except ValueError:
        mean = std = math.nan
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise InputError(f"--normalise must be a mean and a positive std, such as 0.1307,0.3081, got {text!r}")
    return mean, std


def _check_dimension(name: str, slice_: Slice, input_shape: tuple[int, ...]) -> None:
    size = math.prod(input_shape)
    if slice_.dimension != size:
        raise InputError(
            f"{name} lies in a space of dimension {slice_.dimension}, but the network takes {size} numbers "
            f"(input shape {list(input_shape)})"
        )


_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def memory_size(text: str | None) -> int | None:
    """Bytes from 8G (powers of 1000), 8GiB (powers of 1024) or a plain number of bytes.

    >>> memory_size("1.5G"), memory_size("2KiB"), memory_size("4096")
    (1500000000, 2048, 4096)
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]) or float(match[1]) == 0:
        raise InputError(f"--max-memory must be a size such as 500M, 8G or 8GiB, or a number of bytes, got {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))


def _whole_numbers(text: str, flag: str, *, least: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,18}", part) and int(part) >= least for part in parts):
        raise InputError(f"{flag} must be whole numbers of at least {least} with commas between them, got {text!r}")
    return tuple(int(part) for part in parts)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip().isidentifier():
            raise InputError(f"--model-arg must be KEY=VALUE, got {text!r}")
        if key.strip() in pairs:
            raise InputError(f"--model-arg {key.strip()} is given twice; leave out one of the two")
        pairs[key.strip()] = value
    return pairs


def _plain(choice: NetworkChoice | SliceChoice) -> dict[str, Any]:
    """The fields as JSON holds them."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(entry) for entry in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in vars(choice).items()}
