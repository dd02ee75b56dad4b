"""Choosing kernels and device: what runs where, what is refused with which words, what is tried and said once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import regiongrid as rg
from regiongrid import backends, kernels
from regiongrid.backends import Selected, check_choice, check_dtype, select, weights_device
from regiongrid.kernels import gpu

CPU, CUDA0, CUDA1 = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


@dataclass
class Machine:
    """What torch and Triton find, in place of what is really there."""

    monkeypatch: pytest.MonkeyPatch
    tried: list[torch.device] = field(default_factory=list)

    def has(
        self,
        gpus: int,
        *,
        current: int = 0,
        capability: tuple[int, int] = (9, 0),
        hip: str | None = None,
        why_not: str | None = None,
        failure: Exception | None = None,
    ) -> None:
        """So many GPUs; ``failure`` is raised by every trial kernel."""

        def trial(device: torch.device) -> None:
            self.tried.append(device)
            if failure is not None:
                raise failure

        major, minor = capability
        cards = [
            SimpleNamespace(name=f"card {index}", major=major, minor=minor, total_memory=10**10)
            for index in range(gpus)
        ]
        self._cuda(is_available=lambda: gpus > 0, device_count=lambda: gpus, current_device=lambda: current)
        self._cuda(get_device_properties=lambda device: cards[device.index])
        self.monkeypatch.setattr(torch.version, "hip", hip)
        self.monkeypatch.setattr(gpu, "why_not", lambda device: why_not)
        self.monkeypatch.setattr(kernels, "probe", SimpleNamespace(run=trial), raising=False)

    def _cuda(self, **functions: Any) -> None:
        for name, function in functions.items():
            self.monkeypatch.setattr(torch.cuda, name, function)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends._failed_trial.cache_clear()
    yield Machine(monkeypatch)
    backends._failed_trial.cache_clear()


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(rg.InputError) as raised:
        select(*arguments, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    ("backend", "device", "network_device", "backend_used", "device_used"),
    [
        ("auto", "auto", None, "triton", CUDA1),
        ("auto", "auto", CPU, "triton", CUDA1),
        ("auto", "auto", torch.device("meta"), "triton", CUDA1),
        ("auto", "auto", CUDA0, "triton", CUDA0),
        ("auto", "auto", torch.device("cuda"), "triton", CUDA1),
        ("auto", "cpu", CUDA0, "cpu", CPU),
        ("auto", CPU, None, "cpu", CPU),
        ("auto", "cuda", CUDA0, "triton", CUDA1),
        ("auto", "cuda:0", CUDA1, "triton", CUDA0),
        ("auto", CUDA0, None, "triton", CUDA0),
        ("auto", torch.device("cuda"), None, "triton", CUDA1),
        ("triton", "auto", None, "triton", CUDA1),
        ("triton", "auto", CUDA0, "triton", CUDA0),
        ("triton", "cuda:0", None, "triton", CUDA0),
        ("cpu", "auto", CUDA0, "cpu", CPU),
        ("cpu", "cpu", None, "cpu", CPU),
        ("reference", "auto", None, "reference", CPU),
        ("reference", CPU, CUDA1, "reference", CPU),
    ],
)
def test_what_runs_with_two_gpus(
    machine: Machine,
    backend: str,
    device: Any,
    network_device: torch.device | None,
    backend_used: str,
    device_used: torch.device,
) -> None:
    machine.has(2, current=1)
    found = select(backend, device, network_device=network_device)
    assert (found.backend, found.device) == (backend_used, device_used)
    assert found.reason == (f"Triton runs on {device_used}" if (backend, device) == ("auto", "auto") else "as asked")
    assert found.device_name == ("cpu" if device_used == CPU else f"{device_used} card {device_used.index}")
    assert machine.tried == ([] if device_used == CPU else [device_used])


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("gpu", "auto", "backend is 'gpu'; it must be one of auto, cpu, reference, triton"),
        ("", "auto", "backend is ''; it must be one of"),
        ("auto", "gpu", "device is 'gpu'; it must be auto, cpu, cuda or cuda:N (such as cuda:0)"),
        ("auto", "cuda:", "device is 'cuda:'; it must be"),
        ("auto", "cuda:01", "device is 'cuda:01'; it must be"),
        ("auto", "cuda:-1", "device is 'cuda:-1'; it must be"),
        ("auto", "CUDA", "device is 'CUDA'; it must be"),
        ("auto", torch.device("mps"), "device is 'mps'; it must be"),
        ("auto", 0, "device is '0'; it must be"),
        ("cpu", "cuda", "backend 'cpu' computes on the CPU and not on device 'cuda'; use device 'auto' or 'cpu', or "),
        ("reference", CUDA1, "backend 'reference' computes on the CPU and not on device 'cuda:1'; use device 'auto' "),
    ],
)
def test_names_and_contradictions(machine: Machine, backend: str, device: Any, message: str) -> None:
    machine.has(2)
    assert refused(backend, device).startswith(message)
    with pytest.raises(rg.InputError):
        check_choice(backend, device)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(
    ("gpus", "device", "seen"),
    [(1, "cuda:7", "1 CUDA device, cuda:0;"), (2, torch.device("cuda", 2), "2 CUDA devices, cuda:0 to cuda:1;")],
)
def test_a_number_beyond_the_devices(machine: Machine, backend: str, gpus: int, device: Any, seen: str) -> None:
    machine.has(gpus)
    assert refused(backend, device).startswith(f"device '{device}' does not exist: torch sees {seen} use one that ")
    assert machine.tried == []


@pytest.mark.parametrize("build", ["13.0", None], ids=["cuda-build", "cpu-build"])
def test_without_a_gpu(machine: Machine, build: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(0)
    monkeypatch.setattr(torch.version, "cuda", build)
    reason = "torch sees no CUDA or ROCm device" + ("" if build else " (this build of it is for the CPU alone)")
    assert select() == Selected("cpu", CPU, reason)
    assert select("auto", "cpu") == Selected("cpu", CPU, "as asked")
    assert refused("triton") == f"backend 'triton' cannot run: {reason}; use backend 'auto' or 'cpu'"
    for device in ("cuda", "cuda:3", CUDA1):
        assert refused("auto", device) == f"device '{device}' cannot be used: {reason}; use device 'auto' or 'cpu'"
        way_out = "use backend 'auto' or 'cpu' and device 'auto'"
        assert refused("triton", device) == f"backend 'triton' cannot run: {reason}; {way_out}"
    assert machine.tried == []


def test_triton_on_the_cpu_without_its_interpreter(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(1, why_not="Triton compiles for GPUs")
    message = "backend 'triton' cannot run: Triton compiles for GPUs; use backend 'auto' or 'cpu' and device 'auto'"
    assert refused("triton", "cpu") == message


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "not installed": ({"why_not": "Triton is not installed"}, "Triton is not installed"),
    "old card": (
        {"capability": (6, 1)},
        "compute capability 6.1 of cuda:0 card 0 is below 7.0, which Triton needs",
    ),
    "no compiler": (
        {"failure": RuntimeError("no C compiler,\n  set CC")},
        "a trial kernel failed on cuda:0 (RuntimeError: no C compiler, set CC)",
    ),
    "import": (
        {"failure": ImportError("libtriton.so: cannot open")},
        "a trial kernel failed on cuda:0 (ImportError: libtriton.so: cannot open)",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_gpu_that_cannot_be_used(machine: Machine, name: str) -> None:
    traits, reason = UNUSABLE[name]
    machine.has(1, **traits)
    for network_device in (None, CUDA0):
        assert select(network_device=network_device) == Selected("cpu", CPU, reason)
        message = refused("triton", network_device=network_device)
        assert message == f"backend 'triton' cannot run: {reason}; use backend 'auto' or 'cpu'"
    assert refused("auto", "cuda") == f"device 'cuda' cannot be used: {reason}; use device 'auto' or 'cpu'"
    assert refused("triton", "cuda:0").endswith(f"{reason}; use backend 'auto' or 'cpu' and device 'auto'")
    assert len(machine.tried) == ("failure" in traits)


@pytest.mark.parametrize("capability", [(7, 0), (12, 1)])
def test_cards_that_triton_supports(machine: Machine, capability: tuple[int, int]) -> None:
    machine.has(1, capability=capability)
    assert select().backend == "triton"


def test_capabilities_of_rocm_devices_are_not_those_of_cuda(machine: Machine) -> None:
    machine.has(1, capability=(6, 0), hip="7.0")
    assert select() == Selected("triton", CUDA0, "Triton runs on cuda:0")


def test_cuda_that_does_not_start(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    machine.has(1)
    monkeypatch.setattr(torch.cuda, "current_device", fails)
    reason = "torch cannot start CUDA (RuntimeError: Cannot re-initialize CUDA in forked subprocess)"
    assert select(network_device=CUDA0) == Selected("cpu", CPU, reason)
    assert reason in refused("triton")
    assert reason in refused("auto", "cuda:0")


def test_long_messages_are_cut(machine: Machine) -> None:
    machine.has(1, failure=RuntimeError("ptxas " * 1000))
    assert len(select().reason) < 400


def test_a_device_is_tried_once(machine: Machine) -> None:
    machine.has(2, failure=RuntimeError("no"))
    for _ in range(3):
        select()
        select(network_device=CUDA1)
        refused("triton", "cuda:1")
    assert machine.tried == [CUDA0, CUDA1]


def test_the_reason_is_logged_once(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    def logged() -> list[tuple[int, str]]:
        found = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "regiongrid"]
        caplog.clear()
        return found

    caplog.set_level(logging.INFO)
    machine.has(0)
    reason = select().reason
    select()
    assert logged() == [(logging.INFO, f"running on the CPU: {reason}")]
    machine.has(1, why_not="Triton is not installed")
    select()
    select()
    assert logged() == [(logging.WARNING, "running on the CPU: Triton is not installed")]
    machine.has(1, capability=(5, 2))
    select()
    ((level, message),) = logged()
    assert (level, "5.2" in message) == (logging.WARNING, True)
    machine.has(0)
    select()
    select("cpu")
    select("auto", "cpu")
    machine.has(1)
    select()
    select("triton")
    assert logged() == []


def test_a_failed_trial_keeps_its_traceback_for_debugging(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="regiongrid")
    failure = RuntimeError("ptxas fatal")
    machine.has(1, failure=failure)
    select()
    (record,) = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert record.exc_info is not None
    assert record.exc_info[1] is failure


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_interpreter_is_for_who_asks_for_it(machine: Machine, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    machine.has(gpus)
    asked = Selected("triton", CPU, "as asked, in Triton's interpreter (TRITON_INTERPRET is set)")
    assert [select("triton"), select("triton", "cpu"), select("triton", network_device=CUDA0)] == [asked] * 3
    assert select().backend == "cpu"
    assert ("TRITON_INTERPRET is set" in select().reason) == bool(gpus)
    for backend in ("auto", "triton"):
        assert ("TRITON_INTERPRET is set" in refused(backend, "cuda")) == bool(gpus)
    assert machine.tried == [CPU]


def test_the_interpreter_needs_triton_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    machine.has(0, why_not="Triton is not installed")
    assert refused("triton") == ("backend 'triton' cannot run: Triton is not installed; use backend 'auto' or 'cpu'")


@pytest.mark.parametrize(
    ("selected", "capability", "hip", "reason"),
    [
        (Selected("triton", CUDA0, "as asked"), (8, 0), None, None),
        (Selected("triton", CPU, "interpreter"), (9, 0), None, None),
        (
            Selected("triton", CUDA0, "as asked"),
            (7, 5),
            None,
            "compute capability 7.5 of cuda:0 card 0 is below 8.0, which its kernels need",
        ),
        (Selected("triton", CUDA0, "as asked"), (9, 4), "7.0", None),
        (
            Selected("cpu", CPU, "torch sees no GPU"),
            (9, 0),
            None,
            "it needs Triton on a GPU, and the backend is 'cpu': torch sees no GPU",
        ),
    ],
)
def test_tensor_cores(
    machine: Machine, selected: Selected, capability: tuple[int, int], hip: str | None, reason: str | None
) -> None:
    machine.has(1, capability=capability, hip=hip)
    for dtype in ("auto", "float32", "float64"):
        check_dtype(dtype, selected)
    if reason is None:
        check_dtype("float16x3", selected)
        return
    with pytest.raises(rg.InputError) as raised:
        check_dtype("float16x3", selected)
    assert str(raised.value) == (
        f"dtype 'float16x3' cannot be used: {reason}; use dtype 'auto', 'float32' or 'float64'"
    )


def test_device_of_a_network() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, device="meta"))
    assert weights_device(module) == torch.device("meta")
    assert weights_device(nn.Linear(2, 3)) == CPU
    assert weights_device(rg.load_network(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))) is None
    assert weights_device(nn.ReLU()) is None
    assert weights_device("model.pt") is None


def run_python(code: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**environment, **NO_GPU, **variables},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_selecting_without_a_gpu_imports_neither_triton_nor_numba() -> None:
    run_python(
        "import sys\n"
        "import regiongrid\n"
        "from regiongrid.backends import check_choice, select\n"
        "check_choice('triton', 'cuda:0')\n"
        "assert not {'torch', 'numpy', 'triton', 'numba'} & set(sys.modules)\n"
        "assert select().backend == 'cpu'\n"
        "try:\n"
        "    select('triton')\n"
        "except regiongrid.InputError as error:\n"
        "    assert 'torch sees no' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
        "assert not {'triton', 'numba'} & set(sys.modules)\n"
    )


@needs_triton
def test_the_interpreter_really_runs_the_trial() -> None:
    printed = run_python(
        "import sys\n"
        "from regiongrid.backends import select\n"
        "auto = select()\n"
        "assert 'triton' not in sys.modules\n"
        "asked = select('triton')\n"
        "assert 'regiongrid.kernels.probe' in sys.modules\n"
        "print(auto.backend, asked.backend, asked.device)\n",
        TRITON_INTERPRET="1",
    )
    assert printed == "cpu triton cpu\n"


@needs_triton
def test_the_trial_writes_a_number_and_reads_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from regiongrid.kernels import probe

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    probe.run(device)

    class WritesNothing:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda out, number, num_warps: None

    monkeypatch.setattr(probe, "_write", WritesNothing())
    with pytest.raises(RuntimeError, match=f"the kernel wrote {probe._NUMBER}, and -1 was read back"):
        probe.run(device)


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_auto_takes_the_gpu_of_this_machine() -> None:
    found = select()
    assert (found.backend, found.device.type) == ("triton", "cuda")
    assert torch.cuda.get_device_name(found.device) in found.device_name
