"""`regiongrid exact`: the regions of a slice as exact polygons."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regiongrid.commands import options, running
from regiongrid.commands.options import NetworkChoice, OutputChoice, SliceChoice
from regiongrid.commands.runner import Run, SliceResult
from regiongrid.errors import InputError

if TYPE_CHECKING:
    from regiongrid.commands.output import SliceFiles
    from regiongrid.network import Network
    from regiongrid.slices import Slice
    from regiongrid.subdivision import Exact
    from regiongrid.subdivision.level_sets import LevelSet


def exact(
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
    linear: options.LinearOption = False,
    decision_boundary: options.DecisionBoundaryOption = False,
    threads: options.ThreadsOption = None,
    max_memory: options.MaxMemoryOption = None,
    out: options.OutOption = None,
    figure: options.FigureOption = None,
    polygons: options.PolygonsOption = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Count and measure the linear regions of a network on slices exactly, as polygons.

    Without --data or --slice: the square [-1, 1]^2 of a 2-D input, else a plane through three standard-normal points.
    """
    with running.exit_codes(debug, to_save_memory="use a smaller --half-width or fewer --threads"):
        run = Run(
            NetworkChoice.from_flags(ckpt, model, model_arg, weights_key, trust_pickle, input_shape),
            SliceChoice.from_flags(
                slice_files, data, data_dir, split, normalise, anchors, slices, kind, half_width, seed
            ),
            ExactPolygons(linear, decision_boundary, threads, options.memory_size(max_memory)),
            OutputChoice.from_flags(out, figure, polygons),
        )
        run.carry_out(as_json, quiet)


@dataclass(frozen=True)
class ExactPolygons:
    """The exact engine: the options of `regiongrid.exact`, read from their flags."""

    linear: bool
    decision_boundary: bool
    threads: int | None
    max_memory: int | None
    name = "exact"

    def check(self) -> None:
        """Every combination of these options can be."""

    def check_network(self, network: Network) -> None:
        """Raise `InputError` where the output has no affine pieces, or where there is nothing to decide between."""
        asked = {"--linear": self.linear, "--decision-boundary": self.decision_boundary}
        flags = " and ".join(flag for flag, given in asked.items() if given)
        program = network.program
        if flags and program.output is None:
            raise InputError(
                f"{flags} cannot be had: the output comes from {program.cut}, which is not piecewise affine; leave it "
                "out of the model, or leave out the option"
            )
        if self.decision_boundary and program.output is not None and math.prod(program.shapes[program.output]) < 2:
            raise InputError("--decision-boundary needs at least two outputs, the network has one; leave it out")

    def settings(self) -> dict[str, Any]:
        return dict(vars(self))

    def one_slice(self, network: Network, slice_: Slice, progress: Callable[[float], None]) -> SliceResult:
        from regiongrid.subdivision import exact as find_polygons

        result = find_polygons(
            network,
            slice_,
            threads=self.threads,
            max_memory=self.max_memory,
            progress=lambda _, share: progress(share),
        )
        summary, seconds = result.summary(), dict(result.seconds)
        boundary = None
        if self.linear:
            started = time.perf_counter()
            summary["linear_regions"] = result.linear_regions().count
            seconds["linear"] = time.perf_counter() - started
        if self.decision_boundary:
            started = time.perf_counter()
            boundary = result.decision_boundary()
            summary["decision_boundary"] = {"length": boundary.length, "segments": len(boundary.segments)}
            seconds["decision"] = time.perf_counter() - started
        return SliceResult(summary, seconds, functools.partial(_files, result, boundary))


def _files(result: Exact, boundary: LevelSet | None, output: OutputChoice) -> SliceFiles:
    from regiongrid.commands.output import slice_files
    from regiongrid.plots import plot_exact
    from regiongrid.subdivision.export import save_polygons

    draw = functools.partial(plot_exact, result, level_set=boundary)
    write = functools.partial(save_polygons, result)
    return {
        **slice_files(result.regions, result.slice, draw, output.picture),
        **{f"polygons_{suffix}": (f"polygons.{suffix}", write) for suffix in output.polygons},
    }
