"""Many fixed slices folded into a program whose parameters change from one measurement to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from regiongrid.network.on_slice import AffineInUV, SliceProgram, restrict_all
from regiongrid.network.program import INPUT, Program, run_segment
from regiongrid.slices import Slice

_STEP = 2.0**40  # of a finite difference: an affine function has no second order, so nothing is lost


class Folder:
    """Folds the same slices into one program after another of the same network.

    What is in front of the first breakpoint is applied to the origins and axes of all slices together, as one matrix
    product. The rest is folded once, where slices share it.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.slices = tuple(slices)
        origins, us, vs = (
            torch.from_numpy(np.stack([getattr(plane, name) for plane in slices])) for name in ("origin", "u", "v")
        )
        self._of_input = [
            AffineInUV(origin, torch.stack([u, v], dim=1)) for origin, u, v in zip(origins, us, vs)
        ]  # [d], [d, 2]
        self._rows = torch.cat([torch.zeros_like(origins[:1]), origins, _STEP * us, _STEP * vs])  # [1 + 3 S, d]

    def __call__(self, program: Program) -> list[SliceProgram]:
        """The program on every slice.

        Raises
        ------
        InputError
            The slices lie in a space of another dimension than the network's input.
        """
        from regiongrid.subdivision.joint import joinable

        first = restrict_all(program, self.slices[:1])
        if len(self.slices) == 1:
            return first
        if not joinable(first):
            return restrict_all(program, self.slices)
        heads = self._heads(program)
        return first + [
            replace(first[0], slice=plane, uv_values=head) for plane, head in zip(self.slices[1:], heads[1:])
        ]

    def _heads(self, program: Program) -> list[dict[str, AffineInUV]]:
        """Values in front of the first breakpoint, as affine functions of (u, v), for each slice."""
        segment, count = program.segments[0], len(self.slices)
        values = {INPUT: self._rows.reshape(-1, *program.shapes[INPUT])}
        with torch.no_grad():
            run_segment(segment, program.constants, values)
        heads = [{INPUT: affine} for affine in self._of_input]
        for name in segment.outputs:
            rows = values[name].reshape(len(self._rows), -1)
            constant, tangents = rows[1 : count + 1], (rows[count + 1 :] - rows[0]) / _STEP
            for k, head in enumerate(heads):
                head[name] = AffineInUV(constant[k], torch.stack([tangents[k], tangents[count + k]], dim=1))
        return heads
