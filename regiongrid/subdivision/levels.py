"""The way of a block: by which decisions each of its polygons came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class CutLevel:
    """The polygons were split. ``on`` and ``parents`` are of the polygons after it, ``chord_face`` of those before."""

    stage: int
    on: NDArray[np.uint64]  # [F', W] the decisions that are on
    parents: NDArray[np.int32]  # [F']
    line_base: int  # number of the first line that it drew
    chord_face: NDArray[np.int32]  # [C] polygon of each line
    chord_decision: NDArray[np.int32]  # [C]
    forms: dict[int, Any] = field(
        default_factory=dict, repr=False
    )  # exact affine maps of polygons, as they are asked for


@dataclass(frozen=True, eq=False)
class PickLevel:
    """Polygon k goes on as what was polygon ``faces[k]``."""

    faces: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class AliasLevel:
    """Line ``line_base + i`` is another name of line ``lines[i]``, where another unit changes."""

    line_base: int
    lines: NDArray[np.int32]


Level = CutLevel | PickLevel | AliasLevel
