"""Which kernels run, and where.

Three backends compute the same image: ``"triton"`` on a CUDA or ROCm device (torch calls both ``cuda``), ``"cpu"``
(numba) and ``"reference"`` (plain numpy, slow). ``"auto"`` takes Triton where it runs and the CPU elsewhere, and says
once why; what is asked for by name runs or is an error. Nothing here imports torch before something is selected, or
Triton before there is a device to try it on.
"""

from __future__ import annotations

import functools
import logging
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regiongrid.errors import InputError

if TYPE_CHECKING:
    import torch

BACKENDS = ("auto", "cpu", "reference", "triton")
TENSOR_CORE_DTYPE = "float16x3"
"""Products as good as float32's, made of three products of float16 on the matrix units of a GPU."""

_DEVICE = re.compile(r"auto|cpu|cuda(?::(?:0|[1-9][0-9]*))?")
_LEAST_CAPABILITY = (7, 0)  # below it Triton generates no code
_LEAST_TENSOR_CORES = (8, 0)  # below it the tiles of the kernels do not fit
_LONGEST_MESSAGE = 300

_log = logging.getLogger("regiongrid")
_said: set[str] = set()


@dataclass(frozen=True)
class Selected:
    """The kernels that run.

    Attributes
    ----------
    backend
        ``"triton"``, ``"cpu"`` or ``"reference"``.
    device
        Where their tensors are. The CPU for Triton means its interpreter.
    reason
        Why these.
    """

    backend: str
    device: torch.device
    reason: str

    @property
    def device_name(self) -> str:
        """Like ``cpu`` or ``cuda:0 NVIDIA H100 80GB HBM3``."""
        import torch

        if self.device.type == "cpu":
            return "cpu"
        return f"{self.device} {torch.cuda.get_device_properties(self.device).name}"


def select(
    backend: str = "auto", device: str | torch.device = "auto", *, network_device: torch.device | None = None
) -> Selected:
    """Choose the kernels to run, and make sure that they do: a trial kernel runs once for every device and process.

    Parameters
    ----------
    backend
        One of `BACKENDS`. ``"auto"``: Triton if it runs on the device, otherwise the CPU, with the reason logged once
        (as information where torch sees no GPU, as a warning where one cannot be used).
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` (torch's current one) or ``"cuda:N"``, or a `torch.device`. ``"auto"``: the
        device of the network if that is a GPU, otherwise torch's current one.
    network_device
        Where the weights of the network are (see `weights_device`); None if nowhere in particular.

    Returns
    -------
    Selected
        With a device that has an index if it is a GPU. Under TRITON_INTERPRET=1, backend ``"triton"`` runs in Triton's
        interpreter on the CPU, which is for tests; ``"auto"`` never takes that.

    Raises
    ------
    InputError
        A name that does not exist, a device that torch does not see, Triton asked for where it cannot run, a GPU asked
        for that cannot be used, or one for kernels that compute on the CPU.

    Examples
    --------
    >>> select("reference")
    Selected(backend='reference', device=device(type='cpu'), reason='as asked')
    >>> select("auto", "cpu").backend
    'cpu'
    """
    check_choice(backend, device)
    asked = _asked_device(str(device))
    if backend == "triton":
        return _triton(asked, network_device)
    if backend != "auto":
        return Selected(backend, _cpu(), "as asked")
    if asked is None:
        return _whatever_runs(network_device)
    return _asked_gpu(asked) if asked.type == "cuda" else Selected("cpu", asked, "as asked")


def check_choice(backend: str, device: str | torch.device) -> None:
    """Raise `InputError` for names that do not exist or contradict each other, without looking at the machine."""
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    name = str(device)
    if _DEVICE.fullmatch(name) is None:
        raise InputError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N (such as cuda:0)")
    if backend in ("cpu", "reference") and name.startswith("cuda"):
        raise InputError(
            f"backend {backend!r} computes on the CPU and not on device {name!r}; "
            "use device 'auto' or 'cpu', or backend 'auto' or 'triton'"
        )


def check_dtype(dtype: str, selected: Selected) -> None:
    """Raise `InputError` if ``dtype`` is `TENSOR_CORE_DTYPE` and these kernels cannot have it.

    It needs Triton, and compute capability 8.0 of an NVIDIA GPU. In Triton's interpreter it is allowed.
    """
    if dtype != TENSOR_CORE_DTYPE:
        return
    reason = _why_no_tensor_cores(selected)
    if reason is not None:
        raise InputError(f"dtype {dtype!r} cannot be used: {reason}; use dtype 'auto', 'float32' or 'float64'")


def weights_device(network: object) -> torch.device | None:
    """Where the weights of a module are; None for what is no module or has none."""
    from torch import nn

    if not isinstance(network, nn.Module):
        return None
    weights = next(network.parameters(), None)
    return None if weights is None else weights.device


class _CannotRunError(Exception):
    """Why Triton's kernels do not run somewhere."""


def _whatever_runs(network_device: torch.device | None) -> Selected:
    try:
        device = _usable(_gpu(network_device))
    except _CannotRunError as reason:
        return _fall_back(str(reason))
    return Selected("triton", device, f"Triton runs on {device}")


def _fall_back(reason: str) -> Selected:
    if reason not in _said:
        _said.add(reason)
        _log.log(logging.WARNING if _gpu_there() else logging.INFO, "running on the CPU: %s", reason)
    return Selected("cpu", _cpu(), reason)


def _asked_gpu(device: torch.device) -> Selected:
    try:
        return Selected("triton", _usable(device), "as asked")
    except _CannotRunError as reason:
        raise InputError(f"device '{device}' cannot be used: {reason}; use device 'auto' or 'cpu'") from None


def _triton(asked: torch.device | None, network_device: torch.device | None) -> Selected:
    from regiongrid.kernels.gpu import interpreted

    try:
        device = _usable(asked or (_cpu() if interpreted() else _gpu(network_device)))
    except _CannotRunError as reason:
        and_device = "" if asked is None else " and device 'auto'"
        raise InputError(f"backend 'triton' cannot run: {reason}; use backend 'auto' or 'cpu'{and_device}") from None
    where = ", in Triton's interpreter (TRITON_INTERPRET is set)" if device.type == "cpu" else ""
    return Selected("triton", device, f"as asked{where}")


def _asked_device(name: str) -> torch.device | None:
    """The device of this name; None for auto. Raises `InputError` if it has a number beyond those that torch sees."""
    import torch

    if name == "auto":
        return None
    device = torch.device(name)
    count = torch.cuda.device_count() if _gpu_there() else 0
    if device.index is not None and device.index >= count > 0:
        seen = "1 CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        raise InputError(f"device {name!r} does not exist: torch sees {seen}; use one that exists, or 'auto'")
    return device


def _gpu(network_device: torch.device | None) -> torch.device:
    """The GPU that auto means: the network's, or torch's current one."""
    import torch

    on_gpu = network_device is not None and network_device.type == "cuda"
    return network_device if network_device is not None and on_gpu else torch.device("cuda")


def _gpu_there() -> bool:
    import torch

    return torch.cuda.is_available()


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


def _usable(device: torch.device) -> torch.device:
    """The device, with its index if it is a GPU, if Triton's kernels run on it.

    Raises
    ------
    _CannotRunError
        They do not.
    """
    from regiongrid.kernels import gpu

    if device.type == "cuda":
        device = _started(device)
        if gpu.interpreted():
            raise _CannotRunError("TRITON_INTERPRET is set, and Triton's interpreter is for the CPU; unset it")
    if (reason := gpu.why_not(device)) is not None:
        raise _CannotRunError(reason)
    if device.type == "cuda" and (lacking := _lacking(device, _LEAST_CAPABILITY)) is not None:
        raise _CannotRunError(f"{lacking}, which Triton needs")
    if (failure := _failed_trial(device)) is not None:
        raise _CannotRunError(failure)
    return device


def _started(device: torch.device) -> torch.device:
    """The GPU with its index, when torch has started CUDA, which it cannot in a forked process, say."""
    import torch

    if not _gpu_there():
        alone = torch.version.cuda is None and torch.version.hip is None
        build = " (this build of it is for the CPU alone)" if alone else ""
        raise _CannotRunError(f"torch sees no CUDA or ROCm device{build}")
    try:
        current = torch.cuda.current_device()
    except Exception as error:
        raise _CannotRunError(f"torch cannot start CUDA ({_in_one_line(error)})") from error
    return device if device.index is not None else torch.device("cuda", current)


@functools.cache
def _failed_trial(device: torch.device) -> str | None:
    """What went wrong when a kernel was compiled for this device and run there; None if nothing did."""
    try:
        from regiongrid.kernels import probe

        probe.run(device)
    except Exception as error:  # whatever compilers, drivers and missing libraries raise
        _log.debug("a trial kernel failed on %s", device, exc_info=True)
        return f"a trial kernel failed on {device} ({_in_one_line(error)})"
    return None


def _in_one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_MESSAGE, placeholder=" ...")


def _why_no_tensor_cores(selected: Selected) -> str | None:
    if selected.backend != "triton":
        return f"it needs Triton on a GPU, and the backend is {selected.backend!r}: {selected.reason}"
    if selected.device.type == "cpu":
        return None
    lacking = _lacking(selected.device, _LEAST_TENSOR_CORES)
    return None if lacking is None else f"{lacking}, which its kernels need"


def _lacking(device: torch.device, least: tuple[int, int]) -> str | None:
    """Which compute capability a GPU has if that is less than ``least``. Those of ROCm devices mean something else."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    if torch.version.hip is not None or capability >= least:
        return None
    have, want = (f"{major}.{minor}" for major, minor in (capability, least))
    return f"compute capability {have} of {device} {properties.name} is below {want}"
