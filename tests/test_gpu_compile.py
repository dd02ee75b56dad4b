"""The Triton kernels compiled ahead of time, without a GPU: no spills, memory that fits, matrix instructions.

The compiling is done in another process, where kernels are defined without TRITON_INTERPRET, and once for all tests.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be compiled")

import triton
import triton.language as tl

from benchmarks import static
from regiongrid.errors import InputError
from regiongrid.kernels.gpu import Build

ROOT = Path(__file__).parent.parent

Row = dict[str, Any]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each build and chip. Not at import, since this file is also imported for its own kernels."""
    if "build" in metafunc.fixturenames:
        builds = [build for source in static.sources() for build in static.builds_of(source)]
        cases = [(build, target) for build in builds for target in build.targets]
        metafunc.parametrize(("build", "target"), cases, ids=[f"{build.name}-{target}" for build, target in cases])


@triton.jit  # type: ignore[untyped-decorator]
def _centre(x, y, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """All of a block is needed until its maximum is known, so a long one does not fit the registers."""
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i)
    tl.store(y + i, values - tl.max(values))


@triton.jit  # type: ignore[untyped-decorator]
def _reverse(x, y, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Gathers through shared memory, which holds the whole block."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.gather(tl.load(x + i), BLOCK - 1 - i, 0))


@triton.jit  # type: ignore[untyped-decorator]
def _square(x, y, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A matrix times itself."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i[:, None] * BLOCK + i[None, :])
    tl.store(y + i[:, None] * BLOCK + i[None, :], tl.dot(a, a))


def builds() -> list[Build]:
    """Kernels that break one rule each, one that does not compile, and two that are sound."""
    fp32 = {"x": "*fp32", "y": "*fp32"}
    fp16 = {"x": "*fp16", "y": "*fp32"}
    hopper, amd = ("sm_90",), ("gfx942",)
    return [
        Build("spills", _centre, fp32, {"BLOCK": 1 << 16}, warps=16, targets=hopper),
        Build("spills too", _centre, fp32, {"BLOCK": 1 << 17}, warps=16, targets=amd),
        Build("shares too much", _reverse, fp32, {"BLOCK": 1 << 16}, warps=32, targets=("sm_80", "sm_90")),
        Build("multiplies nothing", _reverse, fp32, {"BLOCK": 1 << 10}, warps=4, matrix=True),
        Build("odd block", _centre, fp32, {"BLOCK": 1000}, warps=4, targets=hopper),
        Build("forgets y", _centre, {"x": "*fp32"}, {"BLOCK": 1024}, warps=4, targets=hopper),
        Build("sound", _square, fp16, {"BLOCK": 64}, warps=4, matrix=True),
        Build("small tiles", _square, fp16, {"BLOCK": 32}, warps=1, matrix=True, targets=hopper),
    ]


def _static(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "benchmarks.static", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _rows(report: dict[str, Any]) -> dict[tuple[str, str], Row]:
    return {(row["build"], row["target"]): row for row in report["figures"]}


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], Row]:
    """Figures of all builds."""
    done = _static("--json")
    assert done.returncode in {0, 1}, done.stderr  # 1: a rule is broken, which the tests show one by one
    return _rows(json.loads(done.stdout))


@pytest.fixture(scope="module")
def faulty() -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The report about the kernels of this file."""
    done = _static("--json", "--builds", "test_gpu_compile")
    assert done.stdout, done.stderr
    return done, json.loads(done.stdout)


@pytest.mark.slow
def test_build(build: Build, target: str, compiled: dict[tuple[str, str], Row]) -> None:
    assert (build.name, target) in compiled, "it does not compile; `python -m benchmarks.static` says why"
    row = compiled[build.name, target]
    assert row["spills"] == 0
    assert row["scalar_spills"] == 0 or row["stack"] == 0
    assert row["shared"] <= static.CHIPS[target].shared_block
    assert min(row["blocks_registers"], row["blocks_shared"], row["blocks_warps"]) >= 1
    assert row["matrix"] > 0 or not build.matrix
    assert row["global_stores"] + row["atomics"] > 0, "it writes nothing"


@pytest.mark.slow
def test_committed_figures(compiled: dict[tuple[str, str], Row]) -> None:
    lines = static.RESULTS.read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    table = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    stale = "results/gpu/static.csv is out of date: run `python -m benchmarks.static --write`"
    assert list(table[0]) == [field.name for field in fields(static.Figures)], stale
    assert [(row["build"], row["target"]) for row in table] == list(compiled), stale
    if header["triton"] == static.header()["triton"]:
        for row in table:
            now = compiled[row["build"], row["target"]]
            kept = {key: int(row[key]) for key in ("warps", "registers", "shared", "matrix")}
            assert kept == {key: now[key] for key in kept}, f"{row['build']}, {row['target']}: {stale}"


def test_checker_reports_broken_rules(faulty: tuple[subprocess.CompletedProcess[str], dict[str, Any]]) -> None:
    done, report = faulty
    assert done.returncode == 1
    spilled = {target: _rows(report)[name, target] for name, target in (("spills", "sm_90"), ("spills too", "gfx942"))}
    expected = [
        "odd block for sm_90 does not compile: CompilationError: ",
        "forgets y for sm_90 does not compile: InputError: build 'forgets y' describes the arguments ['BLOCK', 'x'], "
        "the kernel has ['x', 'y', 'BLOCK']",
        f"spills for sm_90 spills {spilled['sm_90']['spills']} bytes a thread; ",
        f"spills too for gfx942 spills {spilled['gfx942']['spills']} bytes a thread; ",
        "shares too much for sm_80 wants 262144 bytes of shared memory a block; the chip allows 166912.",
        "shares too much for sm_90 wants 262144 bytes of shared memory a block; the chip allows 232448.",
        *(f"multiplies nothing for {c} has no matrix instructions, though they are intended." for c in static.CHIPS),
    ]
    found = report["violations"]
    assert len(found) == len(expected), found
    for sentence, start in zip(found, expected, strict=True):
        assert sentence.startswith(start)
        assert sentence in done.stderr
    for row in spilled.values():
        assert min(row["spills"], row["stack"], row["local_loads"], row["local_stores"]) > 0


def test_figures_of_known_kernels(faulty: tuple[subprocess.CompletedProcess[str], dict[str, Any]]) -> None:
    report = faulty[1]
    rows = _rows(report)
    kinds = {target: rows["sound", target]["matrix_kind"] for target in static.CHIPS}
    assert kinds == {"sm_80": "HMMA", "sm_90": "HGMMA", "gfx942": "v_mfma"}
    # 64^3 multiplications: an HMMA of 16 x 8 x 16 by each of four warps, an HGMMA of 64 x 64 x 16 by all of them.
    assert [rows["sound", target]["matrix"] for target in ("sm_80", "sm_90")] == [32, 4]
    assert report["notes"] == [
        "small tiles for sm_90 uses HMMA, not the warp-group instructions (HGMMA) of the chip.",
    ]
    for target, chip in static.CHIPS.items():
        row = rows["multiplies nothing", target]
        assert row["shared"] == 4 * 1024
        assert row["blocks_shared"] == min(chip.shared // (4096 + chip.shared_reserved), chip.blocks)
        assert row["blocks_warps"] == chip.warps // 4
        # 1024 numbers in 4 warps are 8 a lane of NVIDIA, 4 a lane of AMD: two or one instructions of 16 bytes.
        assert (row["global_loads"], row["global_stores"]) == ((2, 2) if chip.lanes == 32 else (1, 1))
        assert min(row["shared_loads"], row["shared_stores"], row["barriers"]) > 0
        assert row["spills"] == row["stack"] == row["local_loads"] == row["local_stores"] == row["atomics"] == 0


def test_occupancy_by_registers() -> None:
    """AMD: the bounds LLVM documents for gfx90a and later. NVIDIA: 65,536 registers an SM, 256 a warp at a time."""
    amd = {64: 8, 65: 7, 72: 7, 73: 6, 80: 6, 96: 5, 97: 4, 128: 4, 168: 3, 169: 2, 256: 2, 257: 1, 512: 1}
    assert {n: static.CHIPS["gfx942"].resident(n, 0, 4)[0] for n in amd} == amd
    nvidia = {32: 64, 33: 48, 64: 32, 128: 16, 168: 12, 255: 8}
    assert {n: static.CHIPS["sm_90"].resident(n, 0, 1)[0] for n in nvidia} == nvidia


@pytest.mark.parametrize(("target", "shared", "blocks"), [
    ("sm_80", 163 * 1024, 1), ("sm_80", 81 * 1024, 2), ("sm_80", 81 * 1024 + 1, 1), ("sm_80", 0, 32),
    ("sm_90", 227 * 1024, 1), ("sm_90", 56 * 1024, 4), ("gfx942", 64 * 1024, 1), ("gfx942", 32 * 1024 + 1, 1),
    ("gfx942", 0, 16),
])  # fmt: skip
def test_occupancy_by_shared_memory(target: str, shared: int, blocks: int) -> None:
    assert static.CHIPS[target].resident(32, shared, 4)[1] == blocks


def test_occupancy_by_places() -> None:
    """AMD holds 16 work-groups with barriers, but a wave to itself has none."""
    places = {(c, warps): static.CHIPS[c].resident(1, 0, warps)[2] for c in ("sm_90", "gfx942") for warps in (1, 2, 8)}
    assert places == {("sm_90", 1): 32, ("sm_90", 2): 32, ("sm_90", 8): 8,
                      ("gfx942", 1): 32, ("gfx942", 2): 16, ("gfx942", 8): 4}  # fmt: skip


@pytest.mark.parametrize(
    ("flops", "size", "nanoseconds", "binds"),
    [(67e6, 8.0, 1e6, "compute"), (0.0, 6.7, 2.0, "memory"), (0.0, 0.0, 0.0, "")],
    ids=["compute", "memory", "unknown"],
)
def test_bound(flops: float, size: float, nanoseconds: float, binds: str) -> None:
    # fp32 has no matrix instructions on NVIDIA, so the vector rate holds.
    build = Build("product", _square, {}, {}, warps=4, matrix=True, flops=flops, bytes=size)
    found, by = static.bound(build, static.CHIPS["sm_90"])
    assert found == pytest.approx(nanoseconds)
    assert by == binds


@pytest.mark.parametrize(
    ("rate", "nanoseconds"),
    [("tf32", 1e6), ("tf32x3", 3e6), ("fp64", 494.7 / 67 * 1e6)],
    ids=["tf32", "tf32x3", "fp64"],
)
def test_bound_by_rate(rate: str, nanoseconds: float) -> None:
    build = Build("product", _square, {}, {}, warps=4, matrix=True, flops=494.7e6, rate=rate)
    assert static.bound(build, static.CHIPS["sm_90"])[0] == pytest.approx(nanoseconds)


def test_refuses_what_cannot_be_compiled() -> None:
    with pytest.raises(InputError, match=r"'plain' has a function for a kernel, wanted a triton\.jit function"):
        static.check_kernel(Build("plain", builds, {}, {}, warps=4))


def test_unknown_rate() -> None:
    with pytest.raises(InputError, match=r"H100 SXM has no rate 'fp8' without matrix instructions"):
        static.CHIPS["sm_90"].peak("fp8", matrix=False)


@pytest.mark.parametrize(("listed", "kinds", "expected"), [
    (["LDG.E.128", "LDGSTS.E", "STG.E", "ATOMG.E.ADD", "REDUX.SUM", "LDL.LU", "STL.64", "BAR.SYNC", "NOP", "LDC"],
     static._NVIDIA,
     {"global_loads": 2, "shared_stores": 1, "global_stores": 1, "atomics": 1, "local_loads": 1, "local_stores": 1,
      "barriers": 1, "instructions": 9}),
    (["HGMMA.64x64x8.F32.TF32", "WARPGROUP.ARRIVE", "DMMA.8x8x4", "FFMA.FTZ", "DFMA", "SHFL.BFLY", "LDSM.16.M88.4"],
     static._NVIDIA,
     {"matrix": 2, "matrix_kind": "DMMA+HGMMA", "fma32": 1, "fma64": 1, "shuffles": 1, "shared_loads": 1}),
    (["v_mfma_f32_32x32x2_f32", "v_mfma_f64_16x16x4_f64", "v_xor_b32_dpp", "ds_bpermute_b32", "ds_read2st64_b32",
      "ds_write_b128", "ds_add_u32", "buffer_load_dwordx4", "s_load_dword", "v_pk_fma_f32", "v_fmac_f64_e32", "s_nop"],
     static._AMD,
     {"matrix": 2, "matrix_kind": "v_mfma", "shuffles": 2, "shared_loads": 1, "shared_stores": 1, "atomics": 1,
      "global_loads": 1, "fma32": 1, "fma64": 1, "instructions": 11}),
    (["scratch_load_dword", "scratch_store_dwordx2", "global_atomic_add_x2", "flat_store_dword", "s_barrier"],
     static._AMD,
     {"local_loads": 1, "local_stores": 1, "atomics": 1, "global_stores": 1, "global_loads": 0, "barriers": 1}),
], ids=["sass-memory", "sass-arithmetic", "gcn-arithmetic", "gcn-memory"])  # fmt: skip
def test_count_instructions(listed: list[str], kinds: dict[str, str], expected: dict[str, int | str]) -> None:
    counts = static.count_instructions(listed, kinds)
    assert {key: counts[key] for key in expected} == expected


def test_written_table_is_the_same_twice(tmp_path: Path) -> None:
    numbers = {field.name: 3 for field in fields(static.Figures)}
    texts: dict[str, Any] = {"build": "a, b", "target": "sm_90", "item": "pixel", "matrix_kind": "", "binds": "memory"}
    row = static.Figures(**{**numbers, **texts, "bound_ns": 2.388})
    for name in ("first.csv", "second.csv"):
        static.write_csv([row, replace(row, binds="", bound_ns=0.0)], tmp_path / name)
    first = (tmp_path / "first.csv").read_text()
    assert first == (tmp_path / "second.csv").read_text()
    known, unknown = csv.DictReader(line for line in first.splitlines() if not line.startswith("# "))
    assert (known["build"], known["bound_ns"], unknown["bound_ns"]) == ("a, b", "2.388", "")
    assert str(ROOT) not in first


def test_write_takes_no_selection() -> None:
    done = _static("--write", "--target", "sm_90")
    assert done.returncode == 2
    assert "--write keeps the figures of all builds" in done.stderr
