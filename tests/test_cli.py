"""The command line: what it prints where, what it writes, its exit codes, and one clear message for every bad input."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp
from torch import nn
from typer.testing import CliRunner

import regiongrid as rg
from regiongrid import backends, commands, data, estimation, kernels, plots, slices
from regiongrid.commands import options, running
from regiongrid.commands.app import app
from regiongrid.commands.output import strict_json
from regiongrid.kernels import gpu
from regiongrid.sampling import guard, image
from regiongrid.subdivision import exact, export
from regiongrid.subdivision.export import load_polygons

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "triton", "numba", "matplotlib", "numpy", "scipy", "skimage", "sklearn", "pyarrow")

# Without the first line a test run started in the background, where SIGINT is ignored, could not be interrupted.
LAUNCH = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from regiongrid.commands import main; main()
"""


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints and data, good and bad."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    two, four = mlp([2, 8, 8, 2]), mlp([4, 8, 8, 2])
    torch.save(two.state_dict(), folder / "two.pt")
    torch.save(four.state_dict(), folder / "four.pt")
    torch.save(mlp([2, 8, 1]).state_dict(), folder / "one.pt")
    torch.save({**four.state_dict(), "0.bias": torch.full((8,), torch.nan)}, folder / "nan.pt")
    torch.save({"state_dict": four.state_dict(), "extra": Evil(folder / "ran")}, folder / "evil.pt")
    (folder / "cut.pt").write_bytes((folder / "four.pt").read_bytes()[:1500])
    (folder / "models.py").write_text(
        "from torch import nn\n"
        "print('the model file is noisy')\n"
        "def gelu():\n"
        "    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))\n"
        "def softmax():\n"
        "    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Softmax(dim=1)]\n"
        "    return nn.Sequential(*layers)\n"
        "def wide(width=8, slope=None):\n"
        "    bend = nn.ReLU() if slope is None else nn.LeakyReLU(slope)\n"
        "    return nn.Sequential(nn.Linear(4, width), bend, nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    x = np.random.default_rng(0).standard_normal((20, 2, 2))
    np.savez(folder / "data.npz", x=x, y=np.arange(20) % 3)
    np.save(folder / "line.npy", np.arange(5.0)[:, None] * np.ones(4))
    np.save(folder / "long.npy", np.zeros((3, 7)))
    np.savez(folder / "incomplete.npz", origin=np.zeros(4), u=np.eye(4)[0])
    rg.Slice.random(4, seed=5).save(folder / "slice4.npz")
    rg.Slice.random(3).save(folder / "slice3.npz")
    return folder


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80", "REGIONGRID_DEBUG": None})


def run_json(*arguments: object, command: str = "estimate") -> dict[str, Any]:
    result = invoke(command, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return strictly_parsed(result.stdout)


def strictly_parsed(text: str) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    parsed: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return parsed


def field(text: str, label: str) -> str:
    """What stands behind a label of the report, its first line."""
    return next(line for line in text.splitlines() if line.startswith(label)).removeprefix(label).strip()


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from regiongrid.commands import main\n"
        "for arguments in (['--version'], ['--help'], *([name, '--help'] for name in ('estimate', 'exact', 'env'))):\n"
        "    sys.argv = ['regiongrid', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0\n"
        f"found = sorted(set({HEAVY}) & set(sys.modules))\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"regiongrid {rg.__version__}\n")


def test_launcher_in_a_checkout() -> None:
    done = subprocess.run([sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"regiongrid {rg.__version__}\n", "")


def test_json_is_all_of_stdout_even_with_a_noisy_model(files: Path) -> None:
    model = ("--model", files / "models.py:wide", "--model-arg", "width=8")
    command: list[str | Path] = [
        sys.executable,
        "-c",
        LAUNCH,
        "estimate",
        "--ckpt",
        files / "four.pt",
        *model,
        "--res",
        "32",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert strictly_parsed(done.stdout)["slices"][0]["res"] == 32
    assert done.stderr == "the model file is noisy\n"


def test_interrupt_keeps_what_is_finished_and_no_half_written_file(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command: list[str | Path] = [
        sys.executable,
        "-c",
        LAUNCH,
        "estimate",
        "--ckpt",
        files / "four.pt",
        "--res",
        "256",
        "--slices",
        "200",
    ]
    process = subprocess.Popen([*command, "--out", out, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while not (out / "summary.json").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr == b"interrupted\n"
    summary = strictly_parsed((out / "summary.json").read_text())
    assert strictly_parsed(stdout.decode()) == summary
    assert not summary["complete"]
    assert 1 <= len(summary["slices"]) < 200
    assert not list(out.glob(".*"))
    for one in summary["slices"]:
        assert len(rg.RegionTable.read(out / one["files"]["regions"])) == one["regions"]
        assert rg.Slice.load(out / one["files"]["slice"]).half_width == one["slice"]["half_width"]
        assert (out / one["files"]["picture"]).read_bytes().endswith(b"IEND\xaeB`\x82")


def test_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", LAUNCH, "env"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    commands._prepare_streams()
    with sys.stdout:
        print("to nobody")


def test_report_of_one_slice_reads_as_the_library_counts(files: Path) -> None:
    result = invoke("estimate", "--ckpt", files / "two.pt", "--res", "64", "--half-width", "2", "--by-layer")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    expected = rg.estimate(files / "two.pt", rg.Slice.square(2.0), 64, by_layer=True).summary()
    text = result.stdout
    assert field(text, "Regions") == str(expected["regions"])
    half, extrapolated = expected["regions_half_resolution"], expected["regions_extrapolated"]
    assert f"{extrapolated} = 2 x {expected['regions']} - {half}, " in field(text, "Extrapolated")
    assert field(text, "Components").startswith(f"{expected['components']} ")
    assert f"length {expected['boundary']['length']:.4g} input units" in field(text, "Boundary")
    statistics = field(text, "Area [input units^2]").split()
    assert [float(number) for number in statistics] == pytest.approx(
        [expected["area"][name] for name in ("mean", "median", "std", "p5", "p95")], rel=1e-3
    )
    assert re.search(rf"^1 to 2 .* 8 +{expected['by_layer'][1]['regions']} +[0-9.]+$", text, re.MULTILINE)
    assert "No data given: the slice is the square" in text
    for warning in expected["warnings"]:
        assert warning in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_report_marks_an_extrapolation_that_cannot_be_trusted(files: Path) -> None:
    result = invoke("estimate", "--ckpt", files / "two.pt", "--res", "8", "--half-width", "50")
    assert field(result.stdout, "Extrapolated").startswith("! ")
    assert "not to be trusted" in " ".join(result.stdout.split())


def test_report_of_several_slices_gives_mean_and_deviation(files: Path) -> None:
    arguments = ("--ckpt", files / "four.pt", "--data", files / "data.npz", "--slices", "3", "--res", "32")
    counted = [one["regions"] for one in run_json(*arguments)["slices"]]
    result = invoke("estimate", *arguments, "--by-layer")
    assert result.exit_code == 0, result.stderr
    rows = [line.replace("!", " ").split() for line in result.stdout.splitlines()]
    rows = [row for row in rows if row and row[0] in ("0", "1", "2", "mean", "std") and len(row) == 8]
    shown = [float(row[2]) for row in rows]
    assert shown == pytest.approx([*counted, mean(counted), stdev(counted)], rel=6e-3)
    assert len(re.findall(r"\d: plane through data points \d+, \d+, \d+", result.stdout)) == 3
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_holds_what_the_library_finds(files: Path) -> None:
    found = run_json("--ckpt", files / "four.pt", "--slice", files / "slice4.npz", "--res", "48", "--by-layer")
    expected = rg.estimate(files / "four.pt", rg.Slice.random(4, seed=5), 48, by_layer=True).summary()
    one = found["slices"][0]
    timed = ("seconds",)
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    assert (found["schema"], found["engine"], found["complete"]) == ("regiongrid.summary/1", "grid", True)
    assert found["network"] == rg.load_network(files / "four.pt").describe()
    assert found["settings"]["res"] == 48
    assert found["settings"]["command"].startswith("regiongrid")
    chosen = backends.select()
    kernels = {"backend": "auto", "device": "auto", "backend_used": chosen.backend, "backend_reason": chosen.reason}
    assert found["settings"].items() >= {**kernels, "device_used": chosen.device_name}.items()
    assert {"load", "evaluate", "measure", "total"} <= set(found["seconds"])
    assert set(found["versions"]) == {"regiongrid", "torch", "numpy", "numba", "scikit-image", "python"}
    assert found["versions"]["torch"] == torch.__version__


def test_out_holds_everything_to_run_it_again(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "not" / "there yet"
    chosen = ("--ckpt", files / "four.pt", "--res", "32")
    found = run_json(*chosen, "--data", files / "data.npz", "--anchors", "3,7,12", "--out", out)
    assert {file.name for file in out.iterdir()} == {"summary.json", "regions.parquet", "slice.png", "slice.npz"}
    assert strictly_parsed((out / "summary.json").read_text()) == found
    table = rg.RegionTable.read(out / "regions.parquet")
    assert len(table) == found["slices"][0]["regions"]
    again = run_json(*chosen, "--slice", out / "slice.npz")["slices"][0]
    assert again["regions"] == len(table)
    assert again["slice"] == found["slices"][0]["slice"]
    assert (out / "slice.png").read_bytes().startswith(b"\x89PNG")


def test_out_of_several_slices_is_numbered(files: Path, tmp_path: Path) -> None:
    result = invoke("estimate", "--ckpt", files / "four.pt", "--res", "16", "--slices", "2", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    numbered = {f"{stem}-00{k}.{ending}" for k in (0, 1) for stem, ending in (("slice", "png"), ("slice", "npz"))}
    assert {file.name for file in tmp_path.iterdir()} == numbered | {
        "regions-000.parquet",
        "regions-001.parquet",
        "summary.json",
    }
    assert "regions-000.parquet to regions-001.parquet" in " ".join(result.stdout.split())


def test_out_without_pyarrow_is_csv_and_says_so(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    result = invoke("estimate", "--ckpt", files / "two.pt", "--res", "16", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert len(rg.RegionTable.read(tmp_path / "regions.csv")) == int(field(result.stdout, "Regions"))
    assert "Parquet needs pyarrow" in " ".join(result.stdout.split())


ENGINES = {"estimate": ("regiongrid.estimation", ("--res", "16")), "exact": ("regiongrid.subdivision", ())}
"""Where the function of each command is, and what makes the command quick."""


@pytest.mark.parametrize("command", ENGINES)
@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
def test_failure_in_a_later_slice_keeps_the_earlier_ones(
    failure: BaseException, command: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, quick = importlib.import_module(ENGINES[command][0]), ENGINES[command][1]
    real, calls = getattr(home, command), []

    def fails_at_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise failure
        return real(*args, **kwargs)

    monkeypatch.setattr(home, command, fails_at_the_second)
    result = invoke(command, "--ckpt", files / "four.pt", *quick, "--slices", "3", "--out", tmp_path)
    interrupted = isinstance(failure, KeyboardInterrupt)
    assert result.exit_code == (130 if interrupted else 1)
    assert result.stderr.count("\n") == 1
    assert ("interrupted" if interrupted else "boom") in result.stderr
    summary = strictly_parsed((tmp_path / "summary.json").read_text())
    assert (len(summary["slices"]), summary["complete"]) == (1, False)
    assert field(result.stdout, "Incomplete").startswith("only 1 slice finished")


@pytest.mark.parametrize("command", ENGINES)
def test_one_result_at_a_time_in_memory(
    command: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, quick = importlib.import_module(ENGINES[command][0]), ENGINES[command][1]
    real = getattr(home, command)
    made: list[weakref.ref[Any]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert all(earlier() is None for earlier in made)
        result = real(*args, **kwargs)
        made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(home, command, watched)
    result = invoke(command, "--ckpt", files / "four.pt", *quick, "--slices", "2", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert len(made) == 2


def test_slices_without_data_say_so(files: Path) -> None:
    square = run_json("--ckpt", files / "two.pt", "--res", "16")
    assert square["slices"][0]["slice"]["half_width"] == 1.0
    assert "square" in square["notes"][0]
    planes = run_json("--ckpt", files / "four.pt", "--res", "16", "--slices", "2", "--seed", "3", "--half-width", "0.5")
    assert [one["slice"]["half_width"] for one in planes["slices"]] == [0.5, 0.5]
    described = [one["slice"]["description"] for one in planes["slices"]]
    assert described == [f"plane through three standard-normal points of seed {seed}" for seed in (3, 4)]
    assert "standard-normal" in planes["notes"][0]


def test_slices_at_data_points(files: Path) -> None:
    chosen = ("--ckpt", files / "four.pt", "--data", files / "data.npz", "--res", "16")
    around = run_json(*chosen, "--kind", "one", "--anchors", "4", "--half-width", "0.25", "--slices", "2")
    assert [one["slice"]["half_width"] for one in around["slices"]] == [0.25, 0.25]
    nearest = run_json(*chosen, "--kind", "nearest", "--anchors", "4")
    assert "data point 4 (class 1), its nearest of another class" in nearest["slices"][0]["slice"]["description"]
    drawn = run_json(*chosen, "--seed", "9")
    expected = slices.slices_from_data(data.load_data(str(files / "data.npz")).x, seed=9)[0]
    assert drawn["slices"][0]["slice"]["description"] == expected.description
    assert drawn["notes"] == []
    scaled = run_json(*chosen, "--anchors", "0,1,2", "--normalise", "0.5,0.25")["slices"][0]
    plain = run_json(*chosen, "--anchors", "0,1,2")["slices"][0]
    assert scaled["slice"]["half_width"] == pytest.approx(4 * plain["slice"]["half_width"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--sampling", "dense"),
        ("--backend", "reference", "--sampling", "adaptive"),
        ("--measure", "skimage", "--threads", "1", "--max-memory", "1GiB"),
        ("--dtype", "float64", "--device", "cpu", "--backend", "cpu"),
        ("--input-shape", "4", "--seed", "0"),
    ],
    ids=" ".join,
)
def test_ways_to_compute_agree(flags: tuple[str, ...], files: Path) -> None:
    chosen = ("--ckpt", files / "four.pt", "--res", "32")
    found, plain = run_json(*chosen, *flags)["slices"][0], run_json(*chosen)["slices"][0]
    assert (found["regions"], found["components"]) == (plain["regions"], plain["components"])


def test_network_flags_reach_the_loader(files: Path) -> None:
    model = ("--model", f"{files / 'models.py'}:wide", "--model-arg", "slope=0.25")
    result = invoke("estimate", "--ckpt", files / "four.pt", *model, "--input-shape", "4", "--res", "16", "--json")
    assert result.exit_code == 0, result.stderr
    found = strictly_parsed(result.stdout)
    assert "leaky_relu" in found["network"]["layers"][0]["operator"]
    assert found["settings"]["model_args"] == {"slope": "0.25"}
    assert found["settings"]["input_shape"] == [4]


CONTRADICTIONS = {
    "slice and anchors": (("--slice", "s.npz", "--anchors", "1,2,3"), "leave out --anchors"),
    "slice and data": (("--slice", "s.npz", "--data", "digits"), "leave out --data"),
    "slice and width": (("--slice", "s.npz", "--half-width", "1"), "leave out --half-width"),
    "anchors alone": (("--anchors", "1,2,3"), "--anchors needs data; add --data"),
    "kind alone": (("--kind", "nearest"), "--kind needs data; add --data"),
    "split alone": (("--split", "train"), "--split needs data; add --data"),
    "normalise alone": (("--normalise", "0.1,0.3"), "--normalise needs data; add --data"),
    "normalise by one number": (
        ("--data", "digits", "--normalise", "0.1"),
        "--normalise must be a mean and a positive std",
    ),
    "normalise by zero": (
        ("--data", "digits", "--normalise", "0.1,0"),
        "--normalise must be a mean and a positive std",
    ),
    "anchors and slices": (("--data", "digits", "--anchors", "1,2,3", "--slices", "2"), "--slices asks for 2"),
    "one without width": (("--data", "digits", "--kind", "one"), "add --half-width"),
    "anchors not numbers": (("--data", "digits", "--anchors", "a,b,c"), "--anchors must be whole numbers"),
    "negative anchor": (("--data", "digits", "--anchors", "1,2,-3"), "--anchors must be whole numbers"),
    "width zero": (("--half-width", "0"), "--half-width must be a positive number"),
    "width nan": (("--half-width", "nan"), "--half-width must be a positive number"),
    "input shape": (("--input-shape", "28x28"), "--input-shape must be whole numbers"),
    "input shape zero": (("--input-shape", "0"), "--input-shape must be whole numbers of at least 1"),
    "model argument": (("--model-arg", "width"), "--model-arg must be KEY=VALUE"),
    "model argument twice": (("--model-arg", "w=1", "--model-arg", "w=2"), "given twice"),
    "memory size": (("--max-memory", "8 lots"), "--max-memory must be a size"),
    "figure without folder": (("--figure", "svg"), "--figure needs a folder to write to; add --out DIR"),
    "no slice": (("--slices", "0"), "--slices"),
    "unknown flag": (("--resolution", "3"), "--resolution"),
}
CONTRADICTIONS_ON_A_GRID = {
    "unknown choice": (("--sampling", "sparse"), "'sparse' is not one of"),
    "unknown backend": (("--backend", "opencl"), "'opencl' is not one of 'auto', 'cpu', 'reference', 'triton'"),
    "unknown device": (("--device", "gpu"), "device is 'gpu'; it must be auto, cpu, cuda or cuda:N (such as cuda:0)"),
    "number of no device": (("--device", "cuda:-1"), "device is 'cuda:-1'; it must be"),
    "CPU kernels on a GPU": (
        ("--backend", "cpu", "--device", "cuda:1"),
        "backend 'cpu' computes on the CPU and not on",
    ),
}
CONTRADICTIONS_OF_POLYGONS = {
    "flag of the grid": (("--res", "64"), "No such option: --res"),
    "backend": (("--backend", "triton"), "No such option: --backend"),
    "device": (("--device", "cuda"), "No such option: --device"),
    "polygons without folder": (("--polygons", "npz"), "--polygons needs a folder to write to; add --out DIR"),
    "files without folder": (("--figure", "pdf", "--polygons", "json"), "--figure and --polygons need a folder"),
    "unknown format": (("--polygons", "shp"), "'shp' is not one of"),
}
CASES = {
    "estimate": CONTRADICTIONS | CONTRADICTIONS_ON_A_GRID,
    "exact": CONTRADICTIONS | CONTRADICTIONS_OF_POLYGONS,
}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in CASES for name in CASES[command]])
def test_wrong_flags_are_one_message_and_exit_code_2(command: str, name: str) -> None:
    flags, message = CASES[command][name]
    result = invoke(command, "--ckpt", "not looked at", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


BAD_INPUTS = {
    "missing checkpoint": (("--ckpt", "nope.pt"), 2, "nope.pt does not exist"),
    "folder": (("--ckpt", "."), 2, "is a folder"),
    "cut short": (("--ckpt", "cut.pt"), 2, "cut.pt is cut short or damaged"),
    "not a checkpoint": (("--ckpt", "models.py"), 2, "is not a PyTorch, safetensors or torch.export file"),
    "pickled code": (("--ckpt", "evil.pt"), 2, "--trust-pickle"),
    "nan weights": (("--ckpt", "nan.pt"), 2, "parameter 0.bias of shape [8] has 8 NaN"),
    "unknown operator": (("--ckpt", "four.pt", "--model", "models.py:gelu"), 2, "(GELU) is not piecewise affine"),
    "no such factory": (("--ckpt", "four.pt", "--model", "models.py:nope"), 2, "has no 'nope'"),
    "model without colon": (("--ckpt", "four.pt", "--model", "models"), 2, "model must be pkg.mod:factory"),
    "model of other size": (
        ("--ckpt", "four.pt", "--model", "models.py:wide", "--model-arg", "width=5"),
        2,
        "wrong shapes: 0.weight is [8, 4] in the file, [5, 4] in the model",
    ),
    "input shape": (
        ("--ckpt", "four.pt", "--input-shape", "5"),
        2,
        "could not be traced with an input of shape (1, 5)",
    ),
    "data of other size": (("--ckpt", "four.pt", "--data", "long.npy"), 2, "7 entries, the network takes [4]"),
    "missing data": (("--ckpt", "four.pt", "--data", "nope.npy"), 2, "there is no file or folder nope.npy"),
    "collinear anchors": (("--ckpt", "four.pt", "--data", "line.npy", "--anchors", "0,1,3"), 2, "lie on a line"),
    "equal anchors": (("--ckpt", "four.pt", "--data", "data.npz", "--anchors", "3,3,4"), 2, "different data points"),
    "anchor out of range": (("--ckpt", "four.pt", "--data", "data.npz", "--anchors", "0,1,20"), 2, "from 0 to 19"),
    "incomplete slice": (("--ckpt", "four.pt", "--slice", "incomplete.npz"), 2, "v, half_width is missing"),
    "missing slice": (("--ckpt", "four.pt", "--slice", "nope.npz"), 2, "slice file nope.npz does not exist"),
    "slice of other space": (("--ckpt", "four.pt", "--slice", "slice3.npz"), 2, "slice3.npz lies in a space of dim"),
    "several squares": (("--ckpt", "two.pt", "--slices", "2"), 2, "a 2-D input has one slice, its square"),
    "out below a file": (("--ckpt", "four.pt", "--out", "models.py/below"), 1, "cannot write to the folder models.py"),
    "out is a file": (("--ckpt", "four.pt", "--out", "models.py"), 1, "cannot write to the folder models.py"),
}
BAD_GRIDS = {
    "res 0": (("--ckpt", "four.pt", "--res", "0"), 2, "--res must be a number of pixels from 1 to "),
    "res too large": (("--ckpt", "four.pt", "--res", str(estimation.MAX_RES + 1)), 2, f"got {estimation.MAX_RES + 1}"),
    "memory": (("--ckpt", "four.pt", "--res", "9999", "--max-memory", "500M"), 2, "0.5 GB may be used"),
}
SOFTMAX = ("--ckpt", "four.pt", "--model", "models.py:softmax")
BAD_FOR_POLYGONS = {
    "boundary of one output": (
        ("--ckpt", "one.pt", "--decision-boundary"),
        2,
        "needs at least two outputs, the network has one",
    ),
    "boundary behind softmax": ((*SOFTMAX, "--decision-boundary"), 2, "--decision-boundary cannot be had: the output"),
    "both behind softmax": (
        (*SOFTMAX, "--decision-boundary", "--linear"),
        2,
        "--linear and --decision-boundary cannot",
    ),
    "memory": (("--ckpt", "two.pt", "--max-memory", "1K"), 2, "memory"),
}
BAD_CASES = {"estimate": BAD_INPUTS | BAD_GRIDS, "exact": BAD_INPUTS | BAD_FOR_POLYGONS}


@pytest.mark.parametrize(("command", "name"), [(command, name) for command in BAD_CASES for name in BAD_CASES[command]])
def test_bad_input_is_one_clear_message(
    command: str, name: str, files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    flags, code, message = BAD_CASES[command][name]
    result = invoke(command, *ENGINES[command][1], *flags)
    assert (result.exit_code, result.stdout) == (code, "")
    lines = result.stderr.replace("the model file is noisy\n", "").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert message in lines[0]
    assert capfd.readouterr().err == ""
    assert not (files / "ran").exists()
    assert not (files / "below").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--out", "models.py/below"),
        ("--res", "9999", "--max-memory", "500M"),
        ("--res", "0"),
        ("--device", "cuda:99"),
        ("--dtype", "float16x3", "--backend", "cpu"),
    ],
    ids=" ".join,
)
def test_cheap_checks_come_before_loading(flags: tuple[str, ...], files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)

    def loads(*args: object, **options: object) -> None:
        raise AssertionError("the network was loaded")

    monkeypatch.setattr(rg.network, "load_network", loads)
    result = invoke("estimate", "--ckpt", "four.pt", *flags)
    assert result.exit_code in (1, 2)
    assert "was loaded" not in result.stderr


def test_failed_run_leaves_no_empty_folders(files: Path, tmp_path: Path) -> None:
    assert invoke("estimate", "--ckpt", files / "nan.pt", "--out", tmp_path / "a" / "b").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_trusted_pickle_runs_with_a_warning_unless_quiet(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), tmp_path / "module.pt")
    chosen = ("estimate", "--ckpt", tmp_path / "module.pt", "--res", "8", "--trust-pickle")
    loud, quiet = invoke(*chosen), invoke(*chosen, "--quiet")
    assert (loud.exit_code, quiet.exit_code) == (0, 0)
    assert loud.stderr.startswith("regiongrid: ")
    assert "running the pickled code" in loud.stderr
    assert quiet.stderr == ""
    assert field(quiet.stdout, "Regions") == field(loud.stdout, "Regions")


def test_traceback_only_when_asked_for(files: Path) -> None:
    chosen = ["estimate", "--ckpt", str(files / "nan.pt")]
    assert "Traceback" not in invoke(*chosen).stderr
    for result in (invoke(*chosen, "--debug"), CliRunner().invoke(app, chosen, env={"REGIONGRID_DEBUG": "1"})):
        assert result.exit_code == 2
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("Error: checkpoint")
    assert "--debug" not in invoke("estimate", "--help").stdout


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (MemoryError("8 GB"), 1, "Error: out of memory (8 GB); use a lower --res"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ValueError("odd"), 1, "Error: unexpected ValueError: odd; --debug shows where"),
        (rg.InputError("bad"), 2, "Error: bad"),
    ],
    ids=repr,
)
def test_exit_codes(failure: Exception, code: int, message: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(rg.network, "load_network", fails)
    result = invoke("estimate", "--ckpt", files / "two.pt")
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_advice_where_memory_runs_out_is_that_of_the_engine(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(rg.network, "load_network", fails)
    assert "use a smaller --half-width or fewer --threads" in invoke("exact", "--ckpt", files / "two.pt").stderr


def test_choices_are_those_of_the_library() -> None:
    assert tuple(options.Sampling) == image.SAMPLINGS
    assert set(options.Dtype) == set(guard.DTYPES)
    assert tuple(options.Measure) == estimation.MEASURES
    assert tuple(options.Backend) == backends.BACKENDS
    assert {f".{picture}" for picture in options.Picture} == set(plots._DPI)
    assert tuple(options.PolygonFormat) == export.FORMATS
    assert set(options.Kind) == set(slices._ANCHORS_OF_KIND)
    assert set(options.Split) == set(data._SPLIT_PREFIX)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("500M", 500_000_000), ("8g", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("2kb", 2000), (None, None)],
)
def test_memory_sizes(text: str | None, size: int | None) -> None:
    assert options.memory_size(text) == size


def test_json_has_null_where_a_number_is_not_finite() -> None:
    text = strict_json({"a": [float("nan"), 1.5, {"b": float("-inf")}], "c": (1, "µ", None, True)})
    assert strictly_parsed(text) == {"a": [None, 1.5, {"b": None}], "c": [1, "µ", None, True]}


def test_progress_goes_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(terminal: bool, quiet: bool) -> str:
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        with running.progress_bar(2, quiet) as progress:
            progress(1, 0.5)
        return stream.getvalue()

    assert "evaluating slice 2 of 2" in shown(terminal=True, quiet=False)
    assert "75%" in shown(terminal=True, quiet=False)
    assert shown(terminal=True, quiet=True) == ""
    assert shown(terminal=False, quiet=False) == ""


def test_text_of_an_estimate(files: Path) -> None:
    module = mlp([2, 8, 8, 2])
    result = rg.estimate(module, rg.Slice([0, 0], [1, 0], [0, 1], 1.0, description="at [bold]home[/bold]"), 32)
    text = str(result)
    assert field(text, "Regions") == str(len(result.regions))
    assert field(text, "Network") == "Sequential"
    assert field(text, "Slice") == "at [bold]home[/bold]"
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_figure_chooses_the_format_of_the_picture(files: Path, tmp_path: Path) -> None:
    for command, (_, quick) in ENGINES.items():
        out = tmp_path / command
        found = run_json("--ckpt", files / "two.pt", *quick, "--out", out, "--figure", "svg", command=command)
        assert found["slices"][0]["files"]["picture"] == "slice.svg"
        assert (out / "slice.svg").read_bytes().startswith(b"<?xml")
        assert not (out / "slice.png").exists()


def test_exact_report_reads_as_the_library_counts(files: Path) -> None:
    flags = ("--half-width", "2", "--linear", "--decision-boundary")
    result = invoke("exact", "--ckpt", files / "two.pt", *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    expected = exact(files / "two.pt", rg.Slice.square(2.0))
    summary, text = expected.summary(), result.stdout
    regions = len(expected.regions)
    assert field(text, "Regions") == str(regions)
    mesh = expected.polygons
    assert field(text, "Exact") == f"{regions} polygons, {len(mesh.sides)} sides, {len(mesh.points)} points"
    assert re.search(r"^ +0 of [\d,]+ signs too close to call, decided exactly$", text, re.MULTILINE)
    assert "Grid" not in text
    assert field(text, "Linear") == f"{expected.linear_regions().count} linear regions of the function itself"
    assert field(text, "Boundary").startswith(f"length {expected.boundary_length:.4g} input units, ")
    assert field(text, "Decision") == f"boundary of length {expected.decision_boundary().length:.4g} input units"
    for label, name in {"Area [input units^2]": "area", "Elongation": "elongation", "Sides": "sides"}.items():
        numbers = [float(number.replace(",", "")) for number in field(text, label).split()]
        statistics = [summary[name][statistic] for statistic in ("mean", "median", "std", "p5", "p95")]
        assert numbers == pytest.approx(statistics, rel=1e-3)
    last = expected.layers[1]
    assert re.search(
        rf"^1 to 2 .* 8 +{regions} +{last['boundary_length']:.4g} +{last['own_length']:.4g}$", text, re.MULTILINE
    )
    assert re.search(r"Time .* linear \d.* decision \d", " ".join(text.split()))
    assert max(map(len, text.splitlines())) <= 80
    assert str(expected).splitlines()[0] == "Network       two.pt"


def test_exact_json_holds_what_the_library_finds(files: Path) -> None:
    chosen = ("--ckpt", files / "four.pt", "--slice", files / "slice4.npz")
    found = run_json(*chosen, "--linear", "--decision-boundary", "--threads", "1", command="exact")
    expected = exact(files / "four.pt", rg.Slice.random(4, seed=5))
    (one,) = found["slices"]
    assert one.pop("linear_regions") == expected.linear_regions().count
    assert one.pop("decision_boundary")["length"] == expected.decision_boundary().length
    changing = ("seconds", "effort")
    summary = {name: value for name, value in expected.summary().items() if name not in changing}
    assert {name: value for name, value in one.items() if name not in changing} == json.loads(strict_json(summary))
    assert (found["schema"], found["engine"], found["complete"]) == ("regiongrid.summary/1", "exact", True)
    assert (found["settings"]["linear"], found["settings"]["threads"]) == (True, 1)
    assert {"load", "subdivide", "measure", "linear", "decision", "total"} <= set(found["seconds"])
    plain = run_json(*chosen, command="exact")["slices"][0]
    assert not {"linear_regions", "decision_boundary"} & set(plain)


def test_exact_out_holds_polygons_that_join_the_table(files: Path, tmp_path: Path) -> None:
    flags = ("--polygons", "npz", "--polygons", "json", "--polygons", "npz", "--decision-boundary")
    found = run_json("--ckpt", files / "two.pt", *flags, "--out", tmp_path, command="exact")
    names = {"summary.json", "regions.parquet", "slice.png", "slice.npz", "polygons.npz", "polygons.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert set(found["slices"][0]["files"].values()) == names - {"summary.json"}
    assert strictly_parsed((tmp_path / "summary.json").read_text()) == found
    table, (polygons, pattern) = (
        rg.RegionTable.read(tmp_path / "regions.parquet"),
        load_polygons(tmp_path / "polygons.npz"),
    )
    np.testing.assert_array_equal(table.pattern, pattern)
    assert len(polygons) == len(table) == found["slices"][0]["regions"]
    features = strictly_parsed((tmp_path / "polygons.json").read_text())["features"]
    assert [feature["properties"]["area"] for feature in features] == table.area.tolist()
    again = run_json("--ckpt", files / "two.pt", "--slice", tmp_path / "polygons.npz", command="exact")
    assert again["slices"][0]["regions"] == len(table)


def test_exact_report_of_several_slices(files: Path, tmp_path: Path) -> None:
    chosen = ("--ckpt", files / "four.pt", "--slices", "2", "--linear", "--decision-boundary")
    counted = [one["regions"] for one in run_json(*chosen, command="exact")["slices"]]
    result = invoke("exact", *chosen, "--polygons", "npz", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    rows = [row for row in rows if row and row[0] in ("0", "1", "mean", "std") and len(row) == 9]
    assert [float(row[2]) for row in rows] == pytest.approx([*counted, mean(counted), stdev(counted)], rel=6e-3)
    assert field(result.stdout, "Exact") == f"{sum(counted):,} polygons in all"
    assert "polygons-000.npz to polygons-001.npz" in " ".join(result.stdout.split())
    assert max(len(line) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= 80


def test_engines_agree_on_the_patterns_of_wide_regions(files: Path, tmp_path: Path) -> None:
    for command, quick in (("estimate", ("--res", "256")), ("exact", ())):
        run_json("--ckpt", files / "two.pt", *quick, "--out", tmp_path / command, command=command)
    grid, polygons = (rg.RegionTable.read(tmp_path / command / "regions.parquet") for command in ENGINES)
    assert set(grid.pattern.tolist()) <= set(polygons.pattern.tolist())
    wide = polygons.pattern[polygons.inradius > 2 * np.sqrt(2) / 256]
    assert set(wide.tolist()) <= set(grid.pattern.tolist())
    assert wide.size > 20


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As if torch saw one GPU, on which every trial kernel fails."""

    def fails(device: torch.device) -> None:
        raise RuntimeError("no C compiler\non this machine")

    card = SimpleNamespace(name="a card", total_memory=80 * 10**9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(gpu, "why_not", lambda device: None)
    monkeypatch.setattr(kernels, "probe", SimpleNamespace(run=fails), raising=False)
    monkeypatch.setattr(backends, "_failed_trial", backends._failed_trial.__wrapped__)
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return card


CANNOT_RUN = {
    "triton": (("--backend", "triton"), "backend 'triton' cannot run: {reason}; use backend 'auto' or 'cpu'"),
    "cuda": (("--device", "cuda"), "device 'cuda' cannot be used: {reason}; use device 'auto' or 'cpu'"),
    "cuda:0": (("--device", "cuda:0"), "device 'cuda:0' cannot be used: {reason}; use device 'auto' or 'cpu'"),
    "triton there": (
        ("--backend", "triton", "--device", "cuda:0"),
        "backend 'triton' cannot run: {reason}; use backend 'auto' or 'cpu' and device 'auto'",
    ),
    "tensor cores": (
        ("--dtype", "float16x3"),
        "dtype 'float16x3' cannot be used: it needs Triton on a GPU, and the backend is 'cpu': {reason}; "
        "use dtype 'auto', 'float32' or 'float64'",
    ),
}


@pytest.mark.parametrize("name", CANNOT_RUN)
@pytest.mark.parametrize(
    ("machine", "reason"), [("no_gpu", "torch sees no CUDA"), ("one_gpu", "a trial kernel failed")]
)
@pytest.mark.parametrize("command", ["estimate", "compare"])
def test_kernels_that_cannot_run_are_one_message(
    command: str,
    machine: str,
    reason: str,
    name: str,
    files: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request.getfixturevalue(machine)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    flags, message = CANNOT_RUN[name]
    result = invoke(command, "--ckpt", files / "two.pt", "--res", "16", "--quiet", *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    before, after = message.split("{reason}")
    assert result.stderr.startswith(f"Error: {before}{reason}")
    assert result.stderr.endswith(f"{after}\n")
    assert result.stderr.count("\n") == 1


def test_triton_without_a_gpu_in_a_process_of_its_own(files: Path) -> None:
    command: list[str | Path] = [
        sys.executable,
        "-c",
        LAUNCH,
        "estimate",
        "--ckpt",
        files / "two.pt",
        "--backend",
        "triton",
    ]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **hidden})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: backend 'triton' cannot run: torch sees no CUDA or ROCm device")
    assert done.stderr.count("\n") == 1


def test_a_gpu_that_cannot_be_used_is_a_warning_and_the_reason_is_kept(
    one_gpu: SimpleNamespace, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "a trial kernel failed on cuda:0 (RuntimeError: no C compiler on this machine)"
    chosen = ("estimate", "--ckpt", files / "two.pt", "--res", "16", "--json")
    loud = invoke(*chosen)
    assert (loud.exit_code, loud.stderr) == (0, f"regiongrid: running on the CPU: {reason}\n")
    settings = strictly_parsed(loud.stdout)["settings"]
    assert (settings["backend_used"], settings["device_used"], settings["backend_reason"]) == ("cpu", "cpu", reason)
    monkeypatch.setattr(backends, "_said", set())
    assert invoke(*chosen, "--quiet").stderr == ""
    assert invoke(*chosen, "--backend", "cpu").stderr == ""


@pytest.mark.parametrize(
    ("command", "home"), [("estimate", "regiongrid.estimation"), ("compare", "regiongrid.comparison")]
)
def test_what_was_chosen_is_what_the_library_is_asked_for(
    command: str, home: str, one_gpu: SimpleNamespace, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def takes(*args: object, **options: object) -> None:
        asked.update(options)
        raise rg.InputError("far enough")

    monkeypatch.setattr(importlib.import_module(home), command, takes)
    monkeypatch.setattr(kernels, "probe", SimpleNamespace(run=lambda device: None), raising=False)
    chosen = (command, "--ckpt", files / "two.pt", "--res", "16", "--dtype", "float16x3")
    assert "far enough" in invoke(*chosen).stderr
    assert (asked["backend"], asked["device"], asked["dtype"]) == ("triton", "cuda:0", "float16x3")
    invoke(*chosen[:-2], "--device", "cpu")
    assert (asked["backend"], asked["device"], asked["dtype"]) == ("cpu", "cpu", "auto")


def test_no_gpu_is_no_reason_for_a_warning(no_gpu: None, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())
    found = run_json("--ckpt", files / "two.pt", "--res", "16")
    assert found["settings"]["backend_reason"].startswith("torch sees no CUDA or ROCm device")
    assert "kernels" not in found["settings"]


def test_env_says_what_would_run_and_why(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONGRID_DATA", "/data/sets")
    result = invoke("env")
    assert (result.exit_code, result.stderr) == (0, "")
    assert field(result.stdout, "torch ") == torch.__version__
    assert field(result.stdout, "CUDA devices") == "none that torch sees"
    assert field(result.stdout, "backend").startswith("auto runs cpu: torch sees no CUDA or ROCm device")
    assert field(result.stdout, "REGIONGRID_DATA").startswith("/data/sets")
    assert "scipy" not in result.stdout
    assert "warps" not in result.stdout
    assert field(invoke("env", "-v").stdout, "scipy") != ""


def test_env_lists_devices(one_gpu: SimpleNamespace) -> None:
    result = invoke("env")
    assert (result.exit_code, result.stderr) == (0, "")
    assert field(result.stdout, "CUDA devices") == "cuda:0 a card, 80 GB, compute capability 9.0"
    assert "auto runs cpu: a trial kernel failed on cuda:0 (RuntimeError: no C" in " ".join(result.stdout.split())
    facts = strictly_parsed(invoke("env", "--json").stdout)
    card = {"name": "a card", "memory": 80 * 10**9, "compute_capability": "9.0", "architecture": "sm_90"}
    assert facts["cuda_devices"] == [card]
    reason = "a trial kernel failed on cuda:0 (RuntimeError: no C compiler on this machine)"
    assert facts["backend"] == {"auto": "cpu", "device": "cpu", "reason": reason}
    assert "triton_kernels" not in facts
    assert facts["cpu_cores"] >= 1
    assert Path(facts["numba_cache"]).is_absolute()


def test_env_with_a_gpu_that_works(one_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "probe", SimpleNamespace(run=lambda device: None), raising=False)
    assert field(invoke("env").stdout, "backend") == "auto runs triton: Triton runs on cuda:0"
    facts = strictly_parsed(invoke("env", "--json").stdout)
    assert facts["backend"] == {"auto": "triton", "device": "cuda:0 a card", "reason": "Triton runs on cuda:0"}


def test_env_of_a_rocm_device(one_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    one_gpu.gcnArchName = "gfx942:sramecc+:xnack-"
    assert field(invoke("env").stdout, "CUDA devices") == "cuda:0 a card, 80 GB, gfx942:sramecc+:xnack-"
    (card,) = strictly_parsed(invoke("env", "--json").stdout)["cuda_devices"]
    assert (card["compute_capability"], card["architecture"]) == (None, "gfx942:sramecc+:xnack-")


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_env_shows_how_triton_kernels_are_started(no_gpu: None) -> None:
    result, rows = invoke("env", "-v"), strictly_parsed(invoke("env", "-v", "--json").stdout)["triton_kernels"]
    assert result.exit_code == 0, result.stderr
    operations = {file.parent.name for file in (ROOT / "kernels").glob("*/gpu.py")}
    assert {row["operation"] for row in rows} == operations != set()
    for operation in operations:
        builds = importlib.import_module(f"regiongrid.kernels.{operation}.gpu").builds()
        shown = [(row["kernel"], row["warps"], row["stages"]) for row in rows if row["operation"] == operation]
        assert shown == [(build.name, build.warps, build.stages) for build in builds]
    table = " ".join(result.stdout.split())
    assert "Triton kernel" in table
    assert all(f"{name}={value}" in table for row in rows for name, value in row["constants"].items())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_env_without_triton_says_so(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    result = invoke("env", "-v")
    assert result.exit_code == 0, result.stderr
    assert "Triton kernels: none, because Triton is not installed" in result.stdout
    assert strictly_parsed(invoke("env", "-v", "--json").stdout)["triton_kernels"] is None


@pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
def test_env_hides_no_error_of_a_kernel_module(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ModuleNotFoundError("No module named 'regiongrid.nowhere'", name="regiongrid.nowhere")

    monkeypatch.setattr(commands.env, "_triton_modules", broken)
    result = invoke("env", "-v")
    assert result.exit_code == 1
    assert "No module named 'regiongrid.nowhere'" in result.stderr
