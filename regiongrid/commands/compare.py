"""`regiongrid compare`: how accurate the grid is, resolution by resolution, against the exact polygons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regiongrid.commands import options, running
from regiongrid.commands.options import KernelChoice, NetworkChoice, OutputChoice, SliceChoice
from regiongrid.commands.runner import Run, SliceResult
from regiongrid.errors import InputError

if TYPE_CHECKING:
    from regiongrid.commands.output import SliceFiles
    from regiongrid.comparison import Comparison
    from regiongrid.network import Network
    from regiongrid.slices import Slice

SCHEMA = "regiongrid.comparison/1"

ResolutionsOption = Annotated[
    str,
    typer.Option(
        "--res",
        metavar="256,512,...",
        rich_help_panel=options._GRID,
        help="Pixels along a side of the slice, one grid for each number.",
    ),
]
AccuracyOption = Annotated[
    float,
    typer.Option(
        "--accuracy",
        metavar="ERROR",
        rich_help_panel=options._GRID,
        help="Relative error to recommend a resolution for, such as 0.01 for one percent.",
    ),
]


def compare(
    ckpt: options.CkptOption,
    model: options.ModelOption = None,
    model_arg: options.ModelArgOption = None,
    weights_key: options.WeightsKeyOption = None,
    trust_pickle: options.TrustPickleOption = False,
    input_shape: options.InputShapeOption = None,
    data: options.DataOption = None,
    data_dir: options.DataDirOption = None,
    split: options.SplitOption = None,
    normalise: options.NormaliseOption = None,
    anchors: options.AnchorsOption = None,
    slices: options.SlicesOption = None,
    slice_files: options.SliceOption = None,
    kind: options.KindOption = None,
    half_width: options.HalfWidthOption = None,
    seed: options.SeedOption = 0,
    res: ResolutionsOption = "256,512,1024,2048,4096",
    accuracy: AccuracyOption = 0.01,
    sampling: options.SamplingOption = options.Sampling.ADAPTIVE,
    dtype: options.DtypeOption = options.Dtype.AUTO,
    backend: options.BackendOption = options.Backend.AUTO,
    device: options.DeviceOption = "auto",
    threads: options.ThreadsOption = None,
    max_memory: options.MaxMemoryOption = None,
    out: options.OutOption = None,
    figure: options.FigureOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Measure how accurate the grid is on slices, resolution by resolution, against the exact polygons.

    Without --data or --slice: the square [-1, 1]^2 of a 2-D input, else a plane through three standard-normal points.
    """
    advice = "use lower --res, a smaller --half-width or fewer --threads"
    with running.exit_codes(debug, to_save_memory=advice):
        run = ComparisonRun(
            NetworkChoice.from_flags(ckpt, model, model_arg, weights_key, trust_pickle, input_shape),
            SliceChoice.from_flags(
                slice_files, data, data_dir, split, normalise, anchors, slices, kind, half_width, seed
            ),
            GridAgainstExact(
                resolutions=tuple(sorted(set(options._whole_numbers(res, "--res", least=1)))),
                accuracy=accuracy,
                sampling=sampling.value,
                dtype=dtype.value,
                kernels=KernelChoice.from_flags(backend, device),
                threads=threads,
                max_memory=options.memory_size(max_memory),
            ),
            OutputChoice.from_flags(out, figure),
        )
        run.carry_out(as_json, quiet)


class ComparisonRun(Run):
    """A run whose slices are comparisons and not regions."""

    def _summary(self, network: Network, slices: list[Slice], finished: list[dict[str, Any]]) -> dict[str, Any]:
        return {**super()._summary(network, slices, finished), "schema": SCHEMA}

    def _print(self, as_json: bool) -> None:
        if as_json or self.summary is None:
            super()._print(as_json)
            return
        from regiongrid.commands.comparison_report import print_comparison

        print_comparison(self.summary, self.output.out)


@dataclass(frozen=True)
class GridAgainstExact:
    """Both engines: the options of `regiongrid.compare`, read from their flags."""

    resolutions: tuple[int, ...]
    accuracy: float
    sampling: str
    dtype: str
    kernels: KernelChoice
    threads: int | None
    max_memory: int | None
    name = "compare"

    def check(self) -> None:
        """Raise `InputError` for what cannot be or cannot run, `MemoryLimitError` for a grid that does not fit."""
        from regiongrid.estimation import MAX_RES, check_memory

        if self.resolutions[-1] > MAX_RES:
            raise InputError(f"--res must be numbers of pixels from 1 to {MAX_RES}, got {self.resolutions[-1]}")
        if not (math.isfinite(self.accuracy) and self.accuracy > 0):
            raise InputError(f"--accuracy must be a positive number, such as 0.01 for 1%, got {self.accuracy:g}")
        check_memory(self.resolutions[-1], self.sampling, "kernels", self.max_memory)
        self.kernels.check(self.dtype)

    def check_network(self, network: Network) -> None:
        """Whether the network has polygons shows at the first slice."""

    def settings(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "kernels"}
        return {**plain, "resolutions": list(self.resolutions), **self.kernels.settings()}

    def one_slice(self, network: Network, slice_: Slice, progress: Callable[[float], None]) -> SliceResult:
        from regiongrid.comparison import QUANTITIES
        from regiongrid.comparison import compare as compare_engines

        result = compare_engines(
            network,
            slice_,
            self.resolutions,
            sampling=self.sampling,
            dtype=self.dtype,
            backend=self.kernels.selected.backend,
            device=str(self.kernels.selected.device),
            threads=self.threads,
            max_memory=self.max_memory,
            progress=lambda _, share: progress(share),
        )
        advice = {quantity: result.recommended(self.accuracy, quantity) for quantity in QUANTITIES}
        summary = {
            **result.summary(),
            "accuracy": self.accuracy,
            "recommended": {quantity: None if found is None else found._asdict() for quantity, found in advice.items()},
        }
        return SliceResult(summary, result.seconds, lambda output: _files(result, output))


def _files(result: Comparison, output: OutputChoice) -> SliceFiles:
    return {
        "comparison": ("comparison.csv", result.write),
        "picture": (f"comparison.{output.picture}", result.plot),
        "slice": ("slice.npz", result.slice.save),
    }
