"""`regiongrid estimate`: count and measure regions on slices, on a pixel grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regiongrid.commands import options, running
from regiongrid.commands.options import KernelChoice, NetworkChoice, OutputChoice, SliceChoice
from regiongrid.commands.runner import Run, SliceResult
from regiongrid.errors import InputError

if TYPE_CHECKING:
    from regiongrid.network import Network
    from regiongrid.slices import Slice


def estimate(
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
    res: options.ResOption = 1024,
    sampling: options.SamplingOption = options.Sampling.ADAPTIVE,
    dtype: options.DtypeOption = options.Dtype.AUTO,
    measure: options.MeasureOption = options.Measure.KERNELS,
    by_layer: options.ByLayerOption = False,
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
    """Count and measure the linear regions of a network on slices, on a grid of pixels.

    Without --data or --slice: the square [-1, 1]^2 of a 2-D input, else a plane through three standard-normal points.
    """
    with running.exit_codes(debug, to_save_memory="use a lower --res, fewer --threads or --measure kernels"):
        run = Run(
            NetworkChoice.from_flags(ckpt, model, model_arg, weights_key, trust_pickle, input_shape),
            SliceChoice.from_flags(
                slice_files, data, data_dir, split, normalise, anchors, slices, kind, half_width, seed
            ),
            Grid(
                res=res,
                sampling=sampling.value,
                dtype=dtype.value,
                measure=measure.value,
                by_layer=by_layer,
                kernels=KernelChoice.from_flags(backend, device),
                threads=threads,
                max_memory=options.memory_size(max_memory),
            ),
            OutputChoice.from_flags(out, figure),
        )
        run.carry_out(as_json, quiet)


@dataclass(frozen=True)
class Grid:
    """The grid engine: the options of `regiongrid.estimate`, read from their flags."""

    res: int
    sampling: str
    dtype: str
    measure: str
    by_layer: bool
    kernels: KernelChoice
    threads: int | None
    max_memory: int | None
    name = "grid"

    def check(self) -> None:
        """Raise `InputError` for what cannot be or cannot run, `MemoryLimitError` for a grid that does not fit."""
        from regiongrid.estimation import MAX_RES, check_memory

        if not 1 <= self.res <= MAX_RES:
            raise InputError(f"--res must be a number of pixels from 1 to {MAX_RES}, got {self.res}")
        check_memory(self.res, self.sampling, self.measure, self.max_memory)
        self.kernels.check(self.dtype)

    def check_network(self, network: Network) -> None:
        """The grid takes every network."""

    def settings(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "kernels"}
        return {**plain, **self.kernels.settings()}

    def one_slice(self, network: Network, slice_: Slice, progress: Callable[[float], None]) -> SliceResult:
        from regiongrid import estimation
        from regiongrid.commands.output import slice_files

        result = estimation.estimate(
            network,
            slice_,
            self.res,
            sampling=self.sampling,
            dtype=self.dtype,
            backend=self.kernels.selected.backend,
            device=str(self.kernels.selected.device),
            measure=self.measure,
            by_layer=self.by_layer,
            threads=self.threads,
            max_memory=self.max_memory,
            progress=lambda _, share: progress(share),
        )
        return SliceResult(
            result.summary(),
            result.seconds,
            lambda output: slice_files(result.regions, slice_, result.plot, output.picture),
        )
