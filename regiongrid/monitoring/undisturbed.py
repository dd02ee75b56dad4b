"""Computing in the middle of somebody else's training loop without leaving a trace in it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from regiongrid.resources import one_torch_thread


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside: no gradients, no autocast, tensors on the CPU, one torch thread. Afterwards: all as it was."""
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # its tensors cannot be differentiated
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(one_torch_thread())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside: every part of ``module`` in eval mode. Afterwards: modes, and random generators, as they were."""
    modes = [(part, part.training) for part in module.modules()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's generator is this one
    used = {tensor.device for tensor in module.parameters() if tensor.is_cuda}
    try:
        with torch.random.fork_rng([device.index for device in used]):
            for part, _ in modes:
                part.training = False  # not .eval(), which a module may override
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
