"""The benchmark script for machines with a GPU: what it says without one, and a rehearsal of all its parts."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be rehearsed")

from benchmarks import gpu
from benchmarks.gpu import Figure, Report, Step
from regiongrid.errors import MemoryLimitError

ROOT = Path(__file__).parent.parent
COLUMNS = ["part", "case", "quantity", "value", "p20", "p80", "unit", "baseline", "wanted", "note"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, which sees no GPU."""
    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "")
    environment = {**os.environ, **hidden, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Header and rows of a file of results."""
    lines = path.read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = csv.DictReader(line for line in lines if not line.startswith("# "))
    assert rows.fieldnames == COLUMNS
    return header, list(rows)


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    done = run("--out", str(folder))
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is nothing to measure: torch ")
    assert "run this on a machine with a GPU" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not folder.exists()


def test_unknown_part(tmp_path: Path) -> None:
    done = run("kernel", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "unknown part kernel; there are device, ceilings, correctness, kernels" in done.stderr


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """Every part runs to its end in the interpreter, and what it finds there is right."""
    done = run("--quick", "--rehearse", "--out", str(tmp_path))
    header, rows = read(tmp_path / "rehearsal-quick.csv")
    failed = [f"{row['part']} {row['case']}: {row['note']}" for row in rows if row["quantity"] == "failed"]
    assert (failed, done.returncode) == ([], 0), done.stderr[-3000:]
    assert {"gpu", "cpu", "torch", "triton", "regiongrid", "seed"} <= set(header)
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(gpu.PARTS)
    for row in rows:
        assert row["quantity"], row
        value = float(row["value"])
        assert math.isfinite(value), row
        assert value >= 0, row
        assert (row["p20"] == "") == (row["p80"] == ""), row
        if row["p20"]:
            assert float(row["p20"]) <= value <= float(row["p80"]), row
            assert row["unit"] == "ms", row
        if row["wanted"]:
            assert row["wanted"].startswith((">= ", "<= ")) or (row["wanted"] == "0" and value == 0), row
    ratios = [row for row in rows if row["unit"] == "x"]
    assert len(ratios) == 4
    assert all(row["baseline"] for row in ratios)
    found = [row["note"] for row in rows if row["quantity"].startswith("points that differ")]
    assert found, "the kernels for whole networks were not compared"
    assert f"rows in {tmp_path}" in done.stdout


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "new" / "device.csv", {"gpu": "a device"})


@pytest.fixture
def lab() -> gpu.Lab:
    return gpu.Lab(torch.device("cpu"), gpu.REHEARSAL, 0)


def test_a_step_that_fails_is_noted_and_the_next_one_runs(
    report: Report, lab: gpu.Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_disk = []

    def breaks() -> Iterator[Figure]:
        yield Figure("one", "before", 1.0, "s")
        raise RuntimeError("an illegal memory access\nmore of it")

    def goes_on() -> Iterator[Figure]:
        on_disk.append(read(report.path)[1])
        yield Figure("two", "pixels that differ", 3, "pixels", "the truth", "0")
        yield Figure("two", "time", 50.0, "ms", wanted="<= 40", p20=49.0, p80=51.0)

    def too_large() -> Iterator[Figure]:
        raise MemoryLimitError("res 9 needs more")
        yield

    def part(_: gpu.Lab) -> Iterator[Step]:
        """A part."""
        yield from (Step("one", breaks), Step("two", goes_on), Step("three", too_large))

    monkeypatch.setitem(gpu.PARTS, "mine", part)
    gpu.run_part(lab, report, "mine")
    report.close()
    header, rows = read(report.path)
    assert header == {"gpu": "a device"}
    assert [row["quantity"] for row in on_disk[0]] == ["before", "failed"], "not written before the next step"
    assert [(row["case"], row["quantity"], row["value"]) for row in rows[:-1]] == [
        ("one", "before", "1"),
        ("one", "failed", ""),
        ("two", "pixels that differ", "3"),
        ("two", "time", "50"),
        ("three", "does not fit", ""),
    ]
    assert rows[1]["note"] == "RuntimeError: an illegal memory access"
    assert (rows[3]["p20"], rows[3]["p80"]) == ("49", "51")
    assert len(report.failures) == 2, "an error and a check that is not 0; nothing else fails a run"
    assert len(report.misses) == 1
    said = capsys.readouterr().out
    assert "not as wanted:\n  mine: two time 50 ms (wanted <= 40)" in said


@pytest.mark.parametrize(
    ("value", "wanted", "met"),
    [(50, ">= 50", True), (49.9, ">= 50", False), (40, "<= 40", True), (40.1, "<= 40", False), (0, "0", True),
     (1, "0", False), (math.nan, "0", False), (math.nan, ">= 1", False), (7, "", True)],
)  # fmt: skip
def test_what_was_wanted(value: float, wanted: str, met: bool) -> None:
    assert gpu.met(Figure("", "", value, "", wanted=wanted)) is met


def test_checks_find_what_is_wrong() -> None:
    truth = np.arange(12, dtype=np.uint64).reshape(3, 4)
    found = truth.copy()
    found[2, 1] = 99
    figure = gpu.compare_images("net", "dense", found, truth)
    assert (figure.value, figure.wanted) == (1, "0")
    assert figure.note == "of 12; the first (row, column): [[2, 1]]"
    assert gpu.unequal(np.array([1.0, np.nan, 2.0]), np.array([1.0, np.nan, np.nan])) == 1
    assert gpu.unequal(truth, truth[:2]) == 12


def test_timings_take_turns(lab: gpu.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(lab, "scale", gpu.replace(gpu.REHEARSAL, most=4, least=4, patience=10.0))
    timing = lab.wall_time(lambda: calls.append("a"), lambda: calls.append("b"))
    assert len(timing.runs) == 4
    assert calls == ["a", "a", "b", "a", "b", "a", "b"], "each warmed up, one timed to choose the number of runs"
    calls.clear()
    monkeypatch.setattr(lab, "scale", gpu.replace(gpu.REHEARSAL, most=4, least=4, patience=0.0))
    assert len(lab.wall_time(lambda: calls.append("a"), lambda: calls.append("b")).runs) == 1, "too slow to repeat"


def test_a_baseline_that_would_take_long_is_scaled() -> None:
    def pipeline(res: int) -> gpu.Cost:
        return gpu.Cost(by_pixel=res**2 * 1e-3, by_region=2.0, regions=res)

    cost, note = gpu.measured_or_scaled(pipeline, 64, limit=1.0)
    assert cost.total == pytest.approx(64**2 * 1e-3 + 2.0)
    assert cost.regions == 16
    assert note.startswith("measured at 16^2; what grows with the pixels is scaled by 16")
    assert gpu.measured_or_scaled(pipeline, 64, limit=10.0) == (pipeline(64), "")


def test_plain_hashes_differ_where_decisions_do() -> None:
    """With ReLU and max-pool; the oracle of the comparisons must itself be right."""
    module = gpu.TRIALS[-2].module(gpu.REHEARSAL).double()
    side = gpu.REHEARSAL.width(12)
    network = gpu.rg.load_network(module, input_shape=(1, side, side))
    points: Tensor = torch.randn(5, side * side, dtype=torch.float64)
    patterns = [
        tuple(torch.cat([layer.reshape(-1) for layer in decisions(module, point.reshape(1, 1, side, side))]).tolist())
        for point in points
    ]
    hashes = gpu.plain_hashes(network.program, torch.cat([points, points + 1e-9]))
    assert (hashes[:5] == hashes[5:]).all()
    assert len(np.unique(hashes)) == len(set(patterns))


def decisions(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Signs behind every ReLU and winners of every max-pool."""
    found = []
    for layer in module.children():
        if isinstance(layer, torch.nn.MaxPool2d):
            _, winners = torch.nn.functional.max_pool2d(x, layer.kernel_size, layer.stride, return_indices=True)
            found.append(winners)
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            found.append(x > 0)
    return found
