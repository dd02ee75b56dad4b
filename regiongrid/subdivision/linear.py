"""Linear regions: activation regions joined where the network is the same affine map on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regiongrid.errors import InputError
from regiongrid.network.on_slice import SliceProgram
from regiongrid.network.program import Maximum
from regiongrid.resources import one_torch_thread
from regiongrid.subdivision.levels import CutLevel, PickLevel
from regiongrid.subdivision.polygons import Polygons
from regiongrid.subdivision.subdivide import Block, Subdivision

AGREEMENT = 1e-10
"""Two maps agree if their Jacobians differ by at most this part of their size: rounding leaves about 1e-15."""
_FACES = 512


@dataclass(frozen=True, eq=False)
class LinearRegions:
    """The regions of one slice joined to linear regions; c outputs."""

    number: NDArray[np.int32]  # [R] linear region of each row of the region table
    count: int
    constant: NDArray[np.float64]  # [count, c] F(u, v) = constant + jacobian @ (u, v) there
    jacobian: NDArray[np.float64]  # [count, c, 2] output units per input unit, along the slice's axes


def linear_regions(folded: SliceProgram, polygons: Polygons, **options: Any) -> LinearRegions:
    """Join neighbouring polygons whose affine maps agree."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    program = folded.program
    if program.output is None:
        raise InputError(
            f"the output of this network is not piecewise affine ({program.cut}); give the network without it"
        )
    with one_torch_thread():
        _, leaves = Subdivision(folded, leaf=_affine_maps, **options).run()
    maps = np.concatenate(leaves)  # [R, 3, c]
    sides = polygons.sides
    inner = (sides.left >= 0) & (sides.right >= 0)
    left, right = sides.left[inner], sides.right[inner]
    size = np.abs(maps[:, 1:]).max(axis=(1, 2), initial=0.0)
    apart = np.abs(maps[left, 1:] - maps[right, 1:]).max(axis=(1, 2), initial=0.0)
    same = apart <= AGREEMENT * np.maximum(size[left], size[right])
    links = coo_array((np.ones(int(same.sum())), (left[same], right[same])), shape=(len(maps), len(maps)))
    count, number = connected_components(links, directed=False)
    first = np.unique(number, return_index=True)[1]
    return LinearRegions(
        number.astype(np.int32), int(count), maps[first, 0], np.ascontiguousarray(maps[first, 1:].transpose(0, 2, 1))
    )


def _affine_maps(subdivision: Subdivision, block: Block) -> NDArray[np.float64]:
    """The output on every polygon of a finished block as constant, u and v part, [F, 3, c]."""
    faces = np.arange(block.mesh.faces)
    spans = [faces[start : start + _FACES] for start in range(0, faces.size, _FACES)]
    return np.concatenate([_maps_of(subdivision, block, span) for span in spans])


def _maps_of(subdivision: Subdivision, block: Block, faces: NDArray[Any]) -> NDArray[np.float64]:
    folded = subdivision.folded
    decided: dict[int, list[NDArray[np.uint64]]] = {}
    for level in reversed(block.levels):
        if isinstance(level, PickLevel):
            faces = level.faces[faces]
        elif isinstance(level, CutLevel):
            decided.setdefault(level.stage, []).insert(0, level.on[faces])
            faces = level.parents[faces]
    values: dict[str, Tensor] = {
        name: torch.cat([affine.constant[None], affine.tangents.T]).expand(len(faces), 3, -1)
        for name, affine in folded.uv_values.items()
    }
    for k, stage in enumerate(folded.stages):
        z = torch.cat([values[name] for name in stage.preactivations], dim=2)
        breakpoint = stage.breakpoint
        if isinstance(breakpoint, Maximum):
            winners = subdivision.rationals.tournaments[k].winners(decided.get(k, []), len(z))
            chosen = np.take_along_axis(
                np.broadcast_to(breakpoint.windows, (len(winners), *breakpoint.windows.shape)),
                winners[..., None],
                axis=2,
            )[..., 0]
            values[stage.value] = torch.gather(z, 2, torch.from_numpy(chosen)[:, None].expand(-1, 3, -1))
        else:
            thresholds, units = breakpoint.thresholds.shape
            bits = np.unpackbits(decided[k][0].view(np.uint8), axis=1, bitorder="little", count=thresholds * units)
            piece = bits.reshape(-1, thresholds, units).sum(axis=1)
            column = np.arange(units)
            out = z * torch.from_numpy(breakpoint.slopes[piece, column])[:, None]
            out[:, 0] += torch.from_numpy(breakpoint.intercepts[piece, column])
            values[stage.value] = out
        subdivision.values.advance_maps(k, values)
    assert folded.program.output is not None
    result: NDArray[np.float64] = values[folded.program.output].numpy()
    return result
