"""What the Triton kernels share: whether they can run, and how one is described for compiling ahead of time.

Triton is imported by the ``gpu`` module of an operation, never here at import, so that nothing needs it until it runs.
Hashes are int64 tensors on the device (bit for bit the uint64 of the other backends). Under TRITON_INTERPRET=1 all
kernels run in Triton's interpreter on CPU tensors: slow, but the same code without a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

NVIDIA_TARGETS = ("sm_80", "sm_90")
TARGETS = (*NVIDIA_TARGETS, "gfx942")


@dataclass(frozen=True)
class Build:
    """One compilation of a kernel: what decides its machine code, without any tensor.

    Attributes
    ----------
    name
        For people: kernel, case, precision.
    kernel
        The function under ``triton.jit``.
    types
        Argument to Triton type: "*i64" for a pointer, "i32" or "fp32" for a number, "i32:16" for one that 16 divides.
        Pointers count as aligned.
    constants
        Arguments that are compile-time constants.
    warps, stages
        ``num_warps`` and ``num_stages``.
    targets
        The chips it is meant for, of `TARGETS`.
    matrix
        Whether matrix instructions are intended.
    flops, bytes
        Floating-point operations of the matrix products, each counted once, and bytes of device memory that an ``item``
        of work needs: the bound on paper. 0 where the data decide.
    item
        What one unit of work is: "point", "pixel", "cell".
    rate
        The rate at which the chip does ``flops``: "fp32", "fp64", "fp16", "bf16" or "tf32", with "x3" or "x6" behind it
        where one product is made of so many.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int = 1
    targets: tuple[str, ...] = TARGETS
    matrix: bool = False
    flops: float = 0.0
    bytes: float = 0.0
    item: str = "point"
    rate: str = "fp32"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}  # as Triton reads it


def why_not(device: torch.device) -> str | None:
    """Why the Triton kernels cannot run on tensors of this device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with torch's CUDA and ROCm builds)"
    if device.type == "cuda":
        return None if torch.cuda.is_available() else "torch sees no CUDA or ROCm device"
    if device.type == "cpu" and interpreted():
        return None
    return f"Triton compiles for CUDA and ROCm devices, not for {device.type!r}"
