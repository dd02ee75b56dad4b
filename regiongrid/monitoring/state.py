"""Parts of a monitor's state as tensors, numbers and texts, which ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regiongrid.errors import InputError
from regiongrid.slices import Slice


def slices_state(slices: Sequence[Slice]) -> dict[str, Any]:
    """Slices as tensors."""
    return {
        "origin": torch.from_numpy(np.stack([plane.origin for plane in slices])),
        "u": torch.from_numpy(np.stack([plane.u for plane in slices])),
        "v": torch.from_numpy(np.stack([plane.v for plane in slices])),
        "half_width": torch.tensor([plane.half_width for plane in slices], dtype=torch.float64),
        "anchors": [torch.from_numpy(plane.anchors.copy()) for plane in slices],
        "description": [plane.description for plane in slices],
    }


def slices_from(state: Mapping[str, Any]) -> list[Slice]:
    """The slices of `slices_state`, to the last bit."""
    columns = [state[name].numpy() for name in ("origin", "u", "v")]
    widths, anchors = state["half_width"].tolist(), [anchor.numpy() for anchor in state["anchors"]]
    return [Slice(*row) for row in zip(*columns, widths, anchors, state["description"])]


def fingerprint(rows: Tensor | None) -> str:
    """A hash of a batch of samples, so that a resumed run is not compared on another one; empty without a batch."""
    if rows is None:
        return ""
    digest = hashlib.blake2b(str(tuple(rows.shape)).encode(), digest_size=16)
    digest.update(rows.numpy().tobytes())
    return digest.hexdigest()


def check_structure(saved: Sequence[str], own: Sequence[str]) -> None:
    """Raise `InputError` unless two models have the same parts, shapes and ties."""
    if list(saved) == list(own):
        return
    gone = [line for line in saved if line not in own]
    new = [line for line in own if line not in saved]
    first = f"the state has {gone[0]!r}" if gone else "the state has nothing else"
    second = f"the model {new[0]!r}" if new else "the model lacks it" if gone else "the order of the parts differs"
    raise InputError(
        f"the state was taken from a model of another structure: {first}, {second} ({len(gone)} and {len(new)} lines "
        "differ); build the model as it was then"
    )
