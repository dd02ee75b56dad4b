"""A trial kernel: whether Triton can compile for a device, launch there and write to its memory.

Importing this module imports Triton.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

_NUMBER = 20_917


@triton.jit
def _write(out, number):  # type: ignore[no-untyped-def]
    tl.store(out + tl.program_id(0).to(tl.int64), number)


def run(device: torch.device) -> None:
    """Let a kernel write a number to the device and read it back; raises whatever goes wrong on the way.

    Raises
    ------
    RuntimeError
        The kernel ran, but the number read back is another one.
    """
    out = torch.full((1,), -1, dtype=torch.int64, device=device)
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        _write[(1,)](out, _NUMBER, num_warps=1)
    if (found := int(out.item())) != _NUMBER:
        raise RuntimeError(f"the kernel wrote {_NUMBER}, and {found} was read back")
