"""Figures of the Triton kernels read off their machine code, without a GPU: `python -m benchmarks.static`.

Every `Build` of every ``kernels/*/gpu.py`` is compiled ahead of time for its chips. What the table and
results/gpu/static.csv say of each:

registers, accumulators
    Vector registers a thread; on AMD with the accumulation registers, whose share is ``accumulators``.
spills, scalar_spills
    Bytes a thread that ptxas spills (stores and loads), or 4 bytes for each vector register LLVM spills. Scalar
    registers that AMD's compiler moves into lanes of vector registers cost no memory and are counted apart.
stack
    Bytes of local memory a thread. Arrays that are indexed at run time live there too: stack, ``local_loads`` and
    ``local_stores`` are not spills by themselves.
shared, code
    Bytes of shared memory a block (AMD: LDS a work-group), and of machine code.
blocks_registers, blocks_shared, blocks_warps
    Blocks a multiprocessor holds at once by each of its limits; the least of them is the occupancy.
matrix ... instructions
    Instructions in the listing, each once however often it runs. A copy from global to shared memory (LDGSTS) is a
    load of one and a store of the other. AMD's scalar loads are left out (most fetch arguments), and so are no-ops.
bound_ns, binds
    Nanoseconds per 1000 items of work on the chip's product at its peak rates, and which peak that is.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import importlib.util
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import regiongrid.kernels
from regiongrid.errors import InputError, RegiongridError
from regiongrid.files import atomic_path
from regiongrid.kernels.gpu import Build
from regiongrid.kernels.threads import cpu_count

RESULTS = Path(__file__).parent.parent / "results" / "gpu" / "static.csv"
_KIB = 1024
_WIDTH = 160


@dataclass(frozen=True)
class Chip:
    """What one multiprocessor (NVIDIA: SM, AMD: compute unit) holds, and the peaks of a product with this chip.

    Both makers build it of four partitions with 512 registers a lane each, given to warps eight at a time (NVIDIA:
    65,536 registers an SM, 256 a warp at a time). Peaks are those without sparsity.

    Attributes
    ----------
    product
        The product that bandwidth and rates belong to.
    backend, arch, lanes
        The target in Triton's words; lanes of a warp (AMD: wavefront).
    warps, blocks, lone_blocks
        Most warps, most blocks, and most blocks of a single warp at once.
    shared, shared_block
        Bytes of shared memory, and the most that one block may use.
    shared_unit, shared_reserved
        Bytes it is given out by, and what the system keeps of it for each block.
    bandwidth
        Bytes a second of device memory.
    vector, matrix
        Floating-point operations a second by number format, without and with matrix instructions.
    """

    product: str
    backend: str
    arch: int | str
    lanes: int
    warps: int
    blocks: int
    lone_blocks: int
    shared: int
    shared_block: int
    shared_unit: int
    shared_reserved: int
    bandwidth: float
    vector: Mapping[str, float]
    matrix: Mapping[str, float]

    def resident(self, registers: int, shared: int, warps: int) -> tuple[int, int, int]:
        """Blocks at once by registers, by shared memory, and by places for warps and blocks.

        Arguments: registers a thread, bytes of shared memory a block, warps a block.
        """
        places = self.lone_blocks if warps == 1 else self.blocks
        by_registers = 4 * (512 // _round_up(max(registers, 1), 8)) // warps
        held = _round_up(shared, self.shared_unit) + self.shared_reserved
        by_shared = min(self.shared // held, places) if held else places
        return by_registers, by_shared, min(self.warps // warps, places)

    def peak(self, rate: str, matrix: bool) -> float:
        """Operations a second in this format: by matrix instructions if wanted and there, else by vector ones.

        Raises
        ------
        InputError
            The chip has no such rate.
        """
        rates = {**self.vector, **(self.matrix if matrix else {})}
        if rate not in rates:
            kind = "with" if matrix else "without"
            raise InputError(f"{self.product} has no rate {rate!r} {kind} matrix instructions; it has {sorted(rates)}")
        return rates[rate]


# Limits: NVIDIA, CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" (8.0 and 9.0), and for
# the units CUDA's occupancy calculator; AMD, "AMD Instinct MI300 Instruction Set Architecture" (CDNA3), and for eight
# waves a partition and 16 work-groups with barriers LLVM's AMDGPU back end, where 64, 72, 80, 96, 128, 168, 256 and 512
# registers are the most for 8 to 1 waves. Peaks: the data sheets of NVIDIA's H100 (SXM) and A100 (SXM, 80 GB: the one
# of 40 GB has 1.555 TB/s) and of AMD's MI300X.
CHIPS: dict[str, Chip] = {
    "sm_80": Chip(
        product="A100 SXM 80 GB", backend="cuda", arch=80, lanes=32, warps=64, blocks=32, lone_blocks=32,
        shared=164 * _KIB, shared_block=163 * _KIB, shared_unit=128, shared_reserved=_KIB, bandwidth=2.039e12,
        vector={"fp32": 19.5e12, "fp64": 9.7e12},
        matrix={"fp64": 19.5e12, "tf32": 156e12, "fp16": 312e12, "bf16": 312e12},
    ),
    "sm_90": Chip(
        product="H100 SXM", backend="cuda", arch=90, lanes=32, warps=64, blocks=32, lone_blocks=32,
        shared=228 * _KIB, shared_block=227 * _KIB, shared_unit=128, shared_reserved=_KIB, bandwidth=3.35e12,
        vector={"fp32": 67e12, "fp64": 34e12},
        matrix={"fp64": 67e12, "tf32": 494.7e12, "fp16": 989.4e12, "bf16": 989.4e12},
    ),
    "gfx942": Chip(
        product="MI300X", backend="hip", arch="gfx942", lanes=64, warps=32, blocks=16, lone_blocks=32,
        shared=64 * _KIB, shared_block=64 * _KIB, shared_unit=512, shared_reserved=0, bandwidth=5.3e12,
        vector={"fp32": 163.4e12, "fp64": 81.7e12},
        matrix={"fp32": 163.4e12, "fp64": 163.4e12, "tf32": 653.7e12, "fp16": 1307.4e12, "bf16": 1307.4e12},
    ),
}  # fmt: skip


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class Figures:
    """One row of results/gpu/static.csv; the columns are explained at the top of this module."""

    build: str
    target: str
    item: str
    warps: int
    stages: int
    registers: int
    accumulators: int
    spills: int
    scalar_spills: int
    stack: int
    shared: int
    code: int
    blocks_registers: int
    blocks_shared: int
    blocks_warps: int
    matrix: int
    matrix_kind: str
    fma32: int
    fma64: int
    global_loads: int
    global_stores: int
    shared_loads: int
    shared_stores: int
    shuffles: int
    local_loads: int
    local_stores: int
    atomics: int
    barriers: int
    instructions: int
    bound_ns: float
    binds: str


@dataclass(frozen=True)
class Examined:
    """What became of one build for one target: figures or, where it does not compile, the compiler's words."""

    figures: Figures | None
    failure: str
    seconds: float


_NVIDIA = {
    "fma32": r"FFMA2?\b",
    "fma64": r"DFMA\b",
    "global_loads": r"(LDG|LDGSTS|LD|UTMALDG|UBLKCP)\b",
    "global_stores": r"(STG|ST|UTMASTG)\b",
    "shared_loads": r"(LDS|LDSM)\b",
    "shared_stores": r"(STS|STSM|LDGSTS)\b",
    "shuffles": r"SHFL\b",
    "local_loads": r"LDL\b",
    "local_stores": r"STL\b",
    "atomics": r"(ATOM|ATOMG|ATOMS|RED|REDG|REDS|REDAS)\b",
    "barriers": r"BAR\b",
}
_AMD = {
    "fma32": r"v_(pk_)?(fma|fmac|fmaak|fmamk|mac|mad)_f32",
    "fma64": r"v_(fma|fmac)_f64",
    "global_loads": r"(global|buffer|flat)_load_",
    "global_stores": r"(global|buffer|flat)_store_",
    "shared_loads": r"ds_(read|load)",
    "shared_stores": r"ds_(write|store)",
    "shuffles": r"ds_b?permute|ds_swizzle|v_permlane|\w+_dpp$",
    "local_loads": r"scratch_load_",
    "local_stores": r"scratch_store_",
    "atomics": r"(global|buffer|flat)_atomic_|ds_(add|sub|rsub|inc|dec|min|max|and|or|xor|mskor|wrxchg|cmp|pk_add)",
    "barriers": r"s_barrier",
}
_MATRIX = re.compile(r"([A-Z]+MMA)\b|(v_s?mfmac?)_")
_NO_OPERATION = {"NOP", "s_nop"}
_SASS_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_GCN_LINE = re.compile(r"^\t([a-z]\w*)", re.MULTILINE)


def count_instructions(mnemonics: Sequence[str], kinds: Mapping[str, str]) -> dict[str, int | str]:
    """Number of instructions of each kind, of matrix instructions (and which), and of all that are no no-ops."""
    listed = Counter(mnemonics)
    counts: dict[str, int | str] = {
        kind: sum(number for name, number in listed.items() if re.match(pattern, name))
        for kind, pattern in kinds.items()
    }
    matrix = {name: found for name in listed if (found := _MATRIX.match(name))}
    counts["matrix"] = sum(listed[name] for name in matrix)
    counts["matrix_kind"] = "+".join(sorted({found[1] or found[2] for found in matrix.values()}))
    counts["instructions"] = sum(number for name, number in listed.items() if name not in _NO_OPERATION)
    return counts


def bound(build: Build, chip: Chip) -> tuple[float, str]:
    """Least nanoseconds per 1000 items, and what binds: "compute", "memory", or nothing where the data decide.

    A rate such as tf32x3 makes every operation of the product three of its format.
    """
    rate, _, factor = _rate(build).partition("x")
    compute = build.flops * int(factor or 1) / chip.peak(rate, build.matrix) if build.flops else 0.0
    memory = build.bytes / chip.bandwidth
    longest = max(compute, memory)
    return longest * 1e12, "" if not longest else "compute" if compute > memory else "memory"


def _rate(build: Build) -> str:
    return build.rate


def sources() -> list[str]:
    """The modules with Triton kernels: every ``regiongrid.kernels.*.gpu`` that there is."""
    folders = (module.name for module in pkgutil.iter_modules(regiongrid.kernels.__path__) if module.ispkg)
    modules = (f"regiongrid.kernels.{name}.gpu" for name in folders)
    return [module for module in modules if importlib.util.find_spec(module)]


def builds_of(source: str) -> list[Build]:
    """What the module's ``builds()`` lists.

    Raises
    ------
    InputError
        A build is for an unknown chip.
    """
    builds: list[Build] = importlib.import_module(source).builds()
    for build in builds:
        unknown = [target for target in build.targets if target not in CHIPS]
        if unknown:
            raise InputError(f"build {build.name!r} is for {', '.join(unknown)}; known chips are {', '.join(CHIPS)}")
    return builds


def check_kernel(build: Build) -> None:
    """Refuse a kernel that Triton's compiler does not take, for one because it was defined for the interpreter.

    Raises
    ------
    InputError
        The kernel is no ``triton.jit`` function.
    """
    from triton.runtime.jit import JITFunction

    if not isinstance(build.kernel, JITFunction):
        raise InputError(
            f"build {build.name!r} has a {type(build.kernel).__name__} for a kernel, wanted a triton.jit function; "
            "if TRITON_INTERPRET was set when it was imported, unset it"
        )


def examine(task: tuple[str, int, str]) -> Examined:
    """Compile build number ``task[1]`` of module ``task[0]`` for chip ``task[2]`` and read its machine code."""
    source, index, target = task
    build = builds_of(source)[index]
    start = time.perf_counter()
    try:
        compiled, _ = _compile(build, target)
    except Exception as error:  # the compilers raise what they like
        failure = f"{build.name} for {target} does not compile: {type(error).__name__}: {error}"
        return Examined(None, failure, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    read = _read_amd if CHIPS[target].backend == "hip" else _read_nvidia
    return Examined(_figures(build, target, read(build, target, compiled)), "", seconds)


def _compile(build: Build, target: str) -> tuple[Any, str]:
    """The compiled kernel, and what the compilers printed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names: list[str] = build.kernel.arg_names
    given = {**build.types, **dict.fromkeys(build.constants, "constexpr")}
    if set(names) != set(given):
        raise InputError(f"build {build.name!r} describes the arguments {sorted(given)}, the kernel has {names}")
    aligned = [index for index, name in enumerate(names) if given[name].startswith("*") or given[name].endswith(":16")]
    code = ASTSource(
        fn=build.kernel,
        signature={name: given[name].removesuffix(":16") for name in names},
        constexprs=dict(build.constants),
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    chip = CHIPS[target]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compiled = triton.compile(
            code,
            target=GPUTarget(chip.backend, chip.arch, chip.lanes),
            options={"num_warps": build.warps, "num_stages": build.stages},
        )
    return compiled, printed.getvalue()


def _read_nvidia(build: Build, target: str, compiled: Any) -> dict[str, Any]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "-sass", str(file)]
        # Its warnings about the format of the file are of no use, so stderr is shown on failure only.
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    usage = re.search(rf"Function {compiled.metadata.name}:\s*REG:(\d+) STACK:(\d+)", done.stdout)
    mnemonics = _SASS_LINE.findall(done.stdout)
    if done.returncode or usage is None or "EXIT" not in mnemonics:
        raise RegiongridError(f"cuobjdump cannot read {build.name} for {target}: {done.stderr.strip() or 'no listing'}")
    stack = int(usage[2])
    return {
        **count_instructions(mnemonics, _NVIDIA),
        "registers": int(usage[1]),
        "accumulators": 0,
        "spills": _ptxas_spills(build, target) if stack else 0,
        "scalar_spills": 0,
        "stack": stack,
        "shared": compiled.metadata.shared,
        "code": 16 * len(mnemonics),
    }


def _ptxas_spills(build: Build, target: str) -> int:
    """Bytes of spill stores and loads.

    Only the log of ptxas tells them, which the cache does not keep: hence compiled once more. Spills need a stack, so
    this is for kernels that have one.
    """
    from triton import knobs

    with knobs.compilation.scope(), knobs.nvidia.scope():
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        _, log = _compile(build, target)
    found = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not found:
        raise RegiongridError(f"the log of ptxas for {build.name} and {target} says nothing of spills: {log!r}")
    return sum(int(stores) + int(loads) for stores, loads in found)


def _read_amd(build: Build, target: str, compiled: Any) -> dict[str, Any]:
    listing: str = compiled.asm["amdgcn"]
    body = re.search(rf"^{compiled.metadata.name}:(.*?)^\.Lfunc_end0:", listing, re.MULTILINE | re.DOTALL)
    mnemonics = _GCN_LINE.findall(body[1]) if body else []
    keys = ("vgpr_count", "agpr_count", "vgpr_spill_count", "sgpr_spill_count",
            "private_segment_fixed_size", "group_segment_fixed_size")  # fmt: skip
    values = {key: int(found[1]) for key in keys if (found := re.search(rf"\.{key}:\s*(\d+)", listing))}
    length = re.search(r"codeLenInByte = (\d+)", listing)
    if "s_endpgm" not in mnemonics or len(values) < len(keys) or length is None:
        raise RegiongridError(f"the listing of {build.name} for {target} lacks its code or its metadata")
    return {
        **count_instructions(mnemonics, _AMD),
        "registers": values["vgpr_count"],
        "accumulators": values["agpr_count"],
        "spills": 4 * values["vgpr_spill_count"],
        "scalar_spills": values["sgpr_spill_count"],
        "stack": values["private_segment_fixed_size"],
        "shared": max(compiled.metadata.shared, values["group_segment_fixed_size"]),
        "code": int(length[1]),
    }


def _figures(build: Build, target: str, read: dict[str, Any]) -> Figures:
    chip = CHIPS[target]
    nanoseconds, binds = bound(build, chip)
    by_registers, by_shared, by_warps = chip.resident(read["registers"], read["shared"], build.warps)
    return Figures(
        build=build.name,
        target=target,
        item=build.item,
        warps=build.warps,
        stages=build.stages,
        blocks_registers=by_registers,
        blocks_shared=by_shared,
        blocks_warps=by_warps,
        bound_ns=float(f"{nanoseconds:.4g}"),
        binds=binds,
        **read,
    )


def violations(build: Build, row: Figures) -> list[str]:
    """What must not be: a sentence each."""
    chip, who = CHIPS[row.target], f"{row.build} for {row.target}"
    found = []
    if row.spills:
        found.append(f"{who} spills {row.spills} bytes a thread; make its blocks smaller or give it more warps.")
    if row.scalar_spills and row.stack:
        found.append(f"{who} spills {row.scalar_spills} scalar registers and uses {row.stack} bytes of scratch memory.")
    if row.shared > chip.shared_block:
        most = f"the chip allows {chip.shared_block}"
        found.append(f"{who} wants {row.shared} bytes of shared memory a block; {most}.")
    if build.matrix and not row.matrix:
        found.append(f"{who} has no matrix instructions, though they are intended.")
    return found


def notes(build: Build, row: Figures) -> list[str]:
    """What may be but is worth knowing: a sentence each."""
    who = f"{row.build} for {row.target}"
    found = []
    if row.target == "sm_90" and row.matrix and "HGMMA" not in row.matrix_kind and not _rate(build).startswith("fp64"):
        found.append(f"{who} uses {row.matrix_kind}, not the warp-group instructions (HGMMA) of the chip.")
    if row.scalar_spills and not row.stack:
        found.append(f"{who} keeps {row.scalar_spills} scalar registers in lanes of vector registers.")
    if row.stack and not row.spills:
        found.append(f"{who} uses {row.stack} bytes of local memory a thread, none of it for spills.")
    return found


def run_tasks(tasks: Sequence[tuple[str, int, str]], jobs: int) -> list[Examined]:
    """`examine` each task, in this process or in ``jobs`` others; results in the order of the tasks.

    Raises
    ------
    RegiongridError
        A compiler brought a process down.
    """
    if min(jobs, len(tasks)) <= 1:
        return [examine(task) for task in tasks]
    try:
        with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
            return list(pool.map(examine, tasks))
    except BrokenProcessPool as error:
        raise RegiongridError("a compiler ended its process; use --jobs 1 and --kernel to find the build") from error


def header() -> dict[str, str]:
    """What the figures depend on: versions, and the peaks of the bound."""
    peaks = {
        name: f"{chip.product}, {chip.bandwidth / 1e12:g} TB/s; Tflop/s: vector {_tera(chip.vector)}, "
        f"matrix {_tera(chip.matrix)}"
        for name, chip in CHIPS.items()
    }
    # Without the local part (+cpu, +cu130): it has no say in what Triton compiles.
    return {"triton": version("triton"), "torch": version("torch").partition("+")[0], **peaks}


def _tera(rates: Mapping[str, float]) -> str:
    return " ".join(f"{name} {rate / 1e12:g}" for name, rate in rates.items())


def write_csv(rows: Sequence[Figures], path: Path = RESULTS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in header().items())
        writer = csv.DictWriter(file, [field.name for field in fields(Figures)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**asdict(row), "bound_ns": f"{row.bound_ns:g}" if row.binds else ""})


def print_table(results: Sequence[Examined]) -> None:
    """The figures in 160 columns; a slash joins loads with stores."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("build", overflow="fold")
    for title in (
        "chip", "warps\nstages", "regs", "spill\nbytes", "shared\nbytes", "blocks by\nreg/shm/wrp", "matrix", "fma\n32",
        "fma\n64", "global\nld/st", "shared\nld/st", "shfl", "local\nld/st", "atom", "bar", "all", "bound\nns/1000",
        "by", "s",
    ):  # fmt: skip
        table.add_column(title, no_wrap=True, justify="left" if title == "chip" else "right")
    last = ""
    for result in results:
        row = result.figures
        if row is None:
            continue
        table.add_row(
            "" if row.build == last else row.build,
            row.target,
            f"{row.warps}/{row.stages}",
            f"{row.registers}",
            f"{row.spills}",
            f"{row.shared}",
            f"{row.blocks_registers}/{row.blocks_shared}/{row.blocks_warps}",
            f"{row.matrix} {row.matrix_kind}" if row.matrix else "",
            f"{row.fma32}",
            f"{row.fma64}",
            f"{row.global_loads}/{row.global_stores}",
            f"{row.shared_loads}/{row.shared_stores}",
            f"{row.shuffles}",
            f"{row.local_loads}/{row.local_stores}",
            f"{row.atomics}",
            f"{row.barriers}",
            f"{row.instructions}",
            f"{row.bound_ns:.3g}" if row.binds else "",
            {"compute": "comp", "memory": "mem"}.get(row.binds, ""),
            f"{result.seconds:.1f}",
        )
        last = row.build
    Console(width=_WIDTH, highlight=False).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.static",
        description="Compile all Triton kernels without a GPU and read figures off the machine code. "
        "Exit status 1 where a kernel spills, wants too much shared memory or lacks its matrix instructions.",
    )
    parser.add_argument("--target", action="append", choices=list(CHIPS), help="only this chip (may be repeated)")
    parser.add_argument("--kernel", default="", metavar="TEXT", help="only builds with this text in their name")
    parser.add_argument("--builds", action="append", metavar="MODULE", help="only builds() of this module")
    parser.add_argument("--jobs", type=int, default=min(4, cpu_count()), help="processes (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write results/gpu/static.csv")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def choose(options: argparse.Namespace) -> list[tuple[tuple[str, int, str], Build]]:
    """The builds that the command line asks for, with their task for `examine`.

    Raises
    ------
    InputError
        There is none, two have one name, or one has a kernel that cannot be compiled.
    """
    modules = options.builds or sources()
    chosen = [
        ((module, index, target), build)
        for module in modules
        for index, build in enumerate(builds_of(module))
        if options.kernel in build.name
        for target in build.targets
        if not options.target or target in options.target
    ]
    if not chosen:
        raise InputError(f"no build to compile in {', '.join(modules) or 'kernels/*/gpu.py'} with this choice")
    for _, build in chosen:
        check_kernel(build)
    for (name, _), times in Counter((build.name, target) for (_, _, target), build in chosen).items():
        if times > 1:
            raise InputError(f"{times} builds have the name {name!r}; a name must tell them apart")
    return chosen


def report(options: argparse.Namespace) -> bool:
    """Do what the command line says; whether every rule is kept."""
    if options.write and (options.target or options.kernel or options.builds):
        raise InputError("--write keeps the figures of all builds; leave out --target, --kernel and --builds")
    if importlib.util.find_spec("triton") is None:
        raise InputError("Triton is not installed; `pip install triton` (Linux) adds it")
    chosen = choose(options)
    results = run_tasks([task for task, _ in chosen], options.jobs)
    rows = [(build, result.figures) for (_, build), result in zip(chosen, results) if result.figures]
    failures = [result.failure for result in results if result.failure]
    wrong = failures + [sentence for build, row in rows for sentence in violations(build, row)]
    remarks = [sentence for build, row in rows for sentence in notes(build, row)]
    if options.json:
        figures = [asdict(row) for _, row in rows]
        print(json.dumps({**header(), "figures": figures, "violations": wrong, "notes": remarks}))
    else:
        print("\n".join(f"{key}: {value}" for key, value in header().items()))
        print_table(results)
        print("".join(f"note: {remark}\n" for remark in remarks), end="", flush=True)
    print("".join(f"{sentence}\n" for sentence in wrong), end="", file=sys.stderr)
    if options.write and failures:
        raise RegiongridError(f"{RESULTS.name} stays as it was, for not every build compiles")
    if options.write:
        write_csv([row for _, row in rows])
    return not wrong


def main() -> None:
    options = _parser().parse_args()
    # Triton reads it when a kernel is defined: under it there would be nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        kept = report(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RegiongridError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
