"""`regiongrid env`: versions, devices, and which kernels would run."""

from __future__ import annotations

import os
import platform
from typing import Annotated, Any

import typer

from regiongrid.commands import options, running

_PACKAGES = ("torch", "numpy", "numba", "scikit-image", "triton")
_FURTHER_PACKAGES = (
    "scipy",
    "matplotlib",
    "typer",
    "rich",
    "safetensors",
    "pyarrow",
    "scikit-learn",
    "pooch",
)
_VARIABLES = {
    "REGIONGRID_DATA": "folder of the named data sets",
    "REGIONGRID_DEBUG": "tracebacks with error messages",
    "XDG_CACHE_HOME": "fetched data go to its folder regiongrid",
    "NUMBA_CACHE_DIR": "folder of compiled kernels",
    "NUMBA_DISABLE_JIT": "kernels run as plain Python, very slowly",
    "NUMBA_NUM_THREADS": "not used: kernels run on Python threads, --threads",
    "OMP_NUM_THREADS": "torch's own threads, outside the kernels",
    "CUDA_VISIBLE_DEVICES": "CUDA devices that torch sees",
}


def env(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More packages, and unset variables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    debug: options.DebugOption = False,
) -> None:
    """Show versions, cores, memory, devices, and which kernels would run and why."""
    with running.exit_codes(debug):
        with running.results_on_stdout(quiet=False):
            facts = _facts(verbose)
        if as_json:
            from regiongrid.commands.output import strict_json

            print(strict_json(facts))
        else:
            from regiongrid.commands.report import print_environment

            print_environment(facts, _VARIABLES)


def _facts(verbose: bool) -> dict[str, Any]:
    import torch

    from regiongrid import __version__
    from regiongrid.commands.output import installed_version
    from regiongrid.kernels.threads import cpu_count
    from regiongrid.resources import available_memory

    backend, reason = options.kernels_to_run(options.Backend.AUTO, options.Device.AUTO)
    devices = _cuda_devices()
    packages = (*_PACKAGES, *_FURTHER_PACKAGES) if verbose else _PACKAGES
    return {
        "schema": "regiongrid.env/1",
        "versions": {
            "regiongrid": __version__,
            "python": platform.python_version(),
            **{name: installed_version(name) for name in packages},
        },
        "platform": platform.platform(),
        "cpu_cores": cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_available": available_memory(),
        "cuda_devices": devices,
        "backend": {"auto": backend, "reason": reason if devices else f"no CUDA device, and {reason}"},
        "numba_cache": _numba_cache(),
        "variables": {name: os.environ.get(name) for name in _VARIABLES if verbose or name in os.environ},
    }


def _cuda_devices() -> list[dict[str, Any]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append({"name": properties.name, "memory": int(properties.total_memory)})
    return found


def _numba_cache() -> str | None:
    """Folder of the compiled kernels, None where there is none that numba may write to, or nothing is compiled."""
    try:
        from regiongrid.kernels.pattern_hash import cpu
    except RuntimeError:  # "cannot cache function: no locator available"
        return None
    stats = getattr(cpu.relu, "stats", None)  # a plain function under NUMBA_DISABLE_JIT
    return None if stats is None else str(stats.cache_path)
