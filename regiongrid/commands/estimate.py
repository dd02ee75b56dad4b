"""`regiongrid estimate`: count and measure regions on slices, on a pixel grid."""

from __future__ import annotations

import functools
import gc
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regiongrid.commands import options, running
from regiongrid.commands.options import NetworkChoice, SliceChoice
from regiongrid.errors import InputError

if TYPE_CHECKING:
    from regiongrid.commands.output import OutputFolder
    from regiongrid.estimation import Estimate
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
    device: options.DeviceOption = options.Device.AUTO,
    threads: options.ThreadsOption = None,
    max_memory: options.MaxMemoryOption = None,
    out: options.OutOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Count and measure the linear regions of a network on slices, on a grid of pixels.

    Without --data or --slice: the square [-1, 1]^2 of a 2-D input, else a plane through three standard-normal points.
    """
    with running.exit_codes(debug):
        run = Run(
            NetworkChoice.from_flags(ckpt, model, model_arg, weights_key, trust_pickle, input_shape),
            SliceChoice.from_flags(
                slice_files, data, data_dir, split, normalise, anchors, slices, kind, half_width, seed
            ),
            GridChoice(
                res=res,
                sampling=sampling.value,
                dtype=dtype.value,
                measure=measure.value,
                by_layer=by_layer,
                backend=backend.value,
                device=device.value,
                backend_used=options.kernels_to_run(backend, device)[0],
                threads=threads,
                max_memory=options.memory_size(max_memory),
            ),
            out,
        )
        try:
            with running.results_on_stdout(quiet):
                run.work(quiet)
        finally:
            run.print(as_json)  # of a run that failed or was interrupted, what is finished


@dataclass(frozen=True)
class GridChoice:
    """How to estimate: the options of `regiongrid.estimate`, read from their flags."""

    res: int
    sampling: str
    dtype: str
    measure: str
    by_layer: bool
    backend: str
    device: str
    backend_used: str
    threads: int | None
    max_memory: int | None

    def check(self) -> None:
        """Raise `InputError` for a resolution that cannot be, `MemoryLimitError` for one that does not fit."""
        from regiongrid.estimation import MAX_RES, check_memory

        if not 1 <= self.res <= MAX_RES:
            raise InputError(f"--res must be a number of pixels from 1 to {MAX_RES}, got {self.res}")
        check_memory(self.res, self.sampling, self.measure, self.max_memory)


@dataclass
class Run:
    """One run of the command, and the summary of what is finished of it."""

    network_choice: NetworkChoice
    slice_choice: SliceChoice
    grid: GridChoice
    out: Path | None
    summary: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    def work(self, quiet: bool) -> None:
        """Estimate slice by slice; write a slice's files and the summary as soon as it is done.

        What is cheap to check comes before what takes time, and all of it before the first slice.
        """
        self.network_choice.check()
        self.grid.check()
        folder = self._folder()
        try:
            loaded = time.perf_counter()
            source = self.slice_choice.read()
            network = self.network_choice.load()
            slices = self.slice_choice.make(source, network.input_shape)
            self.seconds = {"start": loaded - self._started, "load": time.perf_counter() - loaded}
            self._estimate(network, slices, folder, quiet)
        finally:
            if folder is not None:
                folder.remove_if_unused()

    def print(self, as_json: bool) -> None:
        """Print the summary of what is finished, if anything is."""
        if self.summary is None:
            return
        if as_json:
            from regiongrid.commands.output import strict_json

            print(strict_json(self.summary))
        else:
            from regiongrid.commands.report import print_summary

            print_summary(self.summary, self.out)

    def _folder(self) -> OutputFolder | None:
        if self.out is None:
            return None
        from regiongrid.commands.output import OutputFolder

        return OutputFolder(self.out)

    def _estimate(self, network: Network, slices: list[Slice], folder: OutputFolder | None, quiet: bool) -> None:
        finished: list[dict[str, Any]] = []
        gc.freeze()  # what is imported and loaded by now stays, so that the collections below are quick
        with running.progress_bar(len(slices), quiet) as progress:
            for number, slice_ in enumerate(slices):
                result = self._one_slice(network, slice_, functools.partial(progress, number))
                finished.append(self._finish(result, folder, number, len(slices)))
                del result  # its image would stay in memory beside the next one,
                gc.collect()  # also through the reference cycle that drawing leaves
                self.summary = self._summary(network, slices, finished)
                if folder is not None:
                    folder.write_summary(self.summary)

    def _one_slice(self, network: Network, slice_: Slice, progress: Callable[[float], None]) -> Estimate:
        from regiongrid.estimation import estimate as estimate_slice

        return estimate_slice(
            network,
            slice_,
            self.grid.res,
            sampling=self.grid.sampling,
            dtype=self.grid.dtype,
            backend=self.grid.backend_used,
            measure=self.grid.measure,
            by_layer=self.grid.by_layer,
            threads=self.grid.threads,
            max_memory=self.grid.max_memory,
            progress=lambda _, share: progress(share),
        )

    def _finish(self, result: Estimate, folder: OutputFolder | None, number: int, slices: int) -> dict[str, Any]:
        """Write the files of one slice; return its summary."""
        summary = result.summary()
        for name, value in result.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        if folder is not None:
            before = time.perf_counter()
            summary["files"] = folder.write_slice(result, number, slices)
            self.seconds["write"] = self.seconds.get("write", 0.0) + time.perf_counter() - before
        return summary

    def _summary(self, network: Network, slices: list[Slice], finished: list[dict[str, Any]]) -> dict[str, Any]:
        from regiongrid.commands.output import SCHEMA, versions

        note = self.slice_choice.note(slices[0].dimension)
        return {
            "schema": SCHEMA,
            "engine": "grid",
            "complete": len(finished) == len(slices),
            "network": network.describe(),
            "settings": {
                "command": shlex.join(["regiongrid", *sys.argv[1:]]),
                **self.network_choice.settings(),
                **self.slice_choice.settings(),
                **vars(self.grid),
            },
            "notes": [] if note is None else [note],
            "slices": list(finished),
            "seconds": {**self.seconds, "total": time.perf_counter() - self._started},
            "versions": versions(),
        }
