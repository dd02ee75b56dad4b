"""Where measurements go: files that survive a killed process, TensorBoard, Weights & Biases, and several processes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import multiprocessing
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp
from torch import nn

import regiongrid as rg
from regiongrid.errors import InputError, RegiongridError
from regiongrid.integrations.parts import from_rank_zero
from regiongrid.monitoring.history import History
from regiongrid.monitoring.sinks import (
    CsvFile,
    JsonLines,
    StatusLine,
    TensorBoard,
    WandB,
    as_sink,
    read_jsonl,
)

FILES = pytest.mark.parametrize("kind", [JsonLines, CsvFile], ids=["jsonl", "csv"])
VALUES = [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 12.0]


def same(one: float, two: float) -> bool:
    return struct.pack("d", one) == struct.pack("d", two) or (math.isnan(one) and math.isnan(two))


def assert_same_history(one: History, two: History) -> None:
    assert one.columns == two.columns
    for name in one:
        assert np.array_equal(one[name], two[name], equal_nan=True), name


def read_csv(path: Path) -> History:
    history = History()
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            history.append(int(row.pop("step")), {name: float(cell or "nan") for name, cell in row.items()})
    return history


def read(path: Path) -> History:
    return read_jsonl(path) if path.suffix == ".jsonl" else read_csv(path)


@pytest.fixture
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / ("regions.csv" if "[csv" in request.node.name else "regions.jsonl")


# Files


@FILES
def test_every_float_comes_back(kind: Any, path: Path) -> None:
    sink = kind(path)
    names = [f'regions/"{k}", µ' for k in range(len(VALUES))]
    sink(-3, dict(zip(names, VALUES)))
    sink(np.int64(2**40), dict.fromkeys(names, np.float32(0.5)))
    history = read(path)
    assert history["step"].tolist() == [-3, 2**40]
    assert all(same(history[name][0], value) for name, value in zip(names, VALUES))
    assert all(history[name][1] == 0.5 for name in names)


def test_json_lines_are_json(path: Path) -> None:
    def refused(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    JsonLines(path)(1, {str(k): value for k, value in enumerate(VALUES)})
    record = json.loads(path.read_text(), parse_constant=refused)
    assert next(iter(record)) == "step"
    assert record["4"] is None
    assert record["5"] == math.inf


@FILES
def test_names_may_come_and_go(kind: Any, path: Path) -> None:
    sink = kind(path)
    sink(1, {"a": 1.0})
    sink(2, {"a": 2.0, "b": 2.5})
    kind(path)(3, {"c": 3.0, "d, e": 3.5})
    sink(4, {})
    history = read(path)
    assert history.columns == ("step", "a", "b", "c", "d, e")
    expected = {"a": [1, 2, None, None], "b": [None, 2.5, None, None], "c": [None, None, 3, None]}
    for name, column in expected.items():
        assert np.array_equal(history[name], np.array(column, float), equal_nan=True)
    history.write(path.with_suffix(".csv"))
    CsvFile(path.with_suffix(".csv"))(5, {"a": 5.0})  # what a history writes can be continued
    assert read_csv(path.with_suffix(".csv"))["step"].tolist() == [1, 2, 3, 4, 5]


@FILES
def test_a_line_cut_anywhere_is_repaired(kind: Any, path: Path) -> None:
    """Property over every position at which a write can have ended."""
    sink = kind(path)
    for step in (10, 20):
        sink(step, {"regions/count": 1.25 * step, "b": math.nan})
    whole = path.read_bytes()
    path.unlink()
    sink(30, {"regions/count": 7.0, "b": 8.0})
    alone = path.read_bytes()
    header = b"" if kind is JsonLines else alone[: alone.index(b"\n") + 1]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = whole[: whole[:cut].rfind(b"\n") + 1]
        if kind is JsonLines:
            assert len(read_jsonl(path)) == kept.count(b"\n")
        kind(path)
        assert path.read_bytes() == whole[:cut]  # looking at a file does not change it
        sink(30, {"regions/count": 7.0, "b": 8.0})
        assert path.read_bytes() == (kept + alone.removeprefix(header) if kept else alone), cut
        path.write_bytes(whole[:cut])
        kind(path).rewind(15)
        assert path.read_bytes() == b"".join(
            line for line in kept.splitlines(keepends=True) if not line.startswith((b'{"step": 20', b"20"))
        )


def test_a_long_torn_line_is_found(path: Path) -> None:
    sink = JsonLines(path)
    sink(1, {"a": 1.0})
    first = path.read_bytes()
    path.write_bytes(first + b'{"step": 2, "' + b"x" * 200_000)
    sink(3, {"a": 3.0})
    assert path.read_bytes() == first + first.replace(b"1", b"3")


WRITER = """
import sys
from regiongrid.monitoring import line_files
path, step, long = sys.argv[1], int(sys.argv[2]), "1" * 20_000_000
line_files._cells_of = lambda step, record, columns: [str(step), long]
sink = line_files.CsvFile(path) if path.endswith(".csv") else line_files.JsonLines(path)
while True:
    sink(step, {"0": 1.0} if path.endswith(".csv") else {long: 1.0})
    step += 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@FILES
def test_a_process_killed_while_it_writes(kind: Any, path: Path) -> None:
    """Killed as soon as the file grows, until that has cut a line in two; then a second writer goes on."""
    kind(path)(1, {"0": 1.0})
    for step in range(1000, 1500, 10):
        whole = path.read_bytes()
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(step)]) as child:
            deadline = time.monotonic() + 60
            while path.stat().st_size <= len(whole) and child.poll() is None and time.monotonic() < deadline:
                pass
            child.kill()
        content = path.read_bytes()
        assert len(content) > len(whole)
        if not content.endswith(b"\n"):
            break
    else:
        pytest.fail("no write was cut in two")
    kept = content[: content.rfind(b"\n") + 1]
    assert kept.startswith(whole)
    kind(path)(5000, {"0": 1.0})
    assert path.read_bytes().startswith(kept)
    lines = path.read_bytes()[len(kept) :].splitlines()
    assert len(lines) == 1
    assert b"5000" in lines[0]
    firsts = [line[:20].lstrip(b'{"step: ').partition(b",")[0] for line in kept.splitlines()]
    steps = [int(first) for first in firsts if first.isdigit()]
    assert steps[0] == 1
    assert all(after > before for before, after in itertools.pairwise(steps))
    assert steps[-1] < 5000


@FILES
def test_rewind(kind: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = kind(path)
    sink.rewind(5)
    assert not path.exists()
    for step in range(1, 5):
        sink(step, {"a": float(step)})
    whole, before = path.read_bytes(), path.stat()
    sink.rewind(4)
    assert path.stat().st_ino == before.st_ino  # nothing to drop: not even written anew
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RegiongridError, match="No space left"):
            sink.rewind(2)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    sink.rewind(2)
    assert read(path)["step"].tolist() == [1, 2]
    sink(3, {"a": 3.0})
    assert read(path)["a"].tolist() == [1, 2, 3]
    sink.rewind(None)
    assert path.read_bytes() == b""
    sink(0, {"b": 0.0})
    assert read(path).columns == ("step", "b")


FOREIGN = [
    b"\n",
    b"hello",
    b"stop,1\n",
    b"epoch,step\n1,2\n",
    b'{"epoch": 1}\n',
    b'{"step": "a"}\n',
    b"\x00" * 99,
    b"[]",
]


@FILES
@pytest.mark.parametrize("content", FOREIGN)
def test_files_of_others_are_left_alone(kind: Any, path: Path, content: bytes) -> None:
    late = kind(path)
    path.write_bytes(content)
    for attempt in (lambda: kind(path), lambda: late(1, {"a": 1.0}), lambda: late.rewind(0)):
        with pytest.raises(InputError, match="was not written by"):
            attempt()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (b'{"step": 2, "a": 1', "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "no measurement"),
        (b'{"a": 1}', "no measurement"),
        (b'{"step": 2.0}', "no measurement"),
        (b'{"step": true}', "no measurement"),
        (b'{"step": 9223372036854775808}', "no measurement"),
        (b'{"step": 2, "a": "1"}', "no number: str '1'"),
        (b'{"step": 2, "a": false}', "no number"),
        (b'{"step": 2, "a": 1' + b"0" * 400 + b"}", "no number"),
    ],
    ids=range(12),
)
def test_damaged_lines_are_named(path: Path, line: bytes, match: str) -> None:
    content = b'{"step": 1, "a": 1.0}\n' + line + b"\n" + b'{"step": 3, "a": 1.0}\n'
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"line 2 of .*{match}"):
        read_jsonl(path)
    with pytest.raises(InputError, match="line 2 of"):
        JsonLines(path).rewind(1)
    assert path.read_bytes() == content


def test_errors_of_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        JsonLines(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(InputError, match="No such file"):
        read_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(RegiongridError, match="cannot read"):
        CsvFile(tmp_path)
    with pytest.raises(InputError, match="line break"):
        CsvFile(tmp_path / "a.csv")(1, {"a\nb": 1.0})
    with pytest.raises(InputError, match="'step'"):
        JsonLines(tmp_path / "a.jsonl")(1, {"step": 1.0})
    (tmp_path / "b.csv").write_bytes(b"step,a\n1,2\nx,3\n")
    with pytest.raises(InputError, match=r"line 3 of .*'x', where a step"):
        CsvFile(tmp_path / "b.csv").rewind(1)
    (tmp_path / "gone").mkdir()
    sink = JsonLines(tmp_path / "gone" / "a.jsonl")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RegiongridError, match=r"cannot write .*No such file"):
        sink(1, {})


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = JsonLines("a.jsonl")
    monkeypatch.chdir("/")
    sink(1, {})
    assert (tmp_path / "a.jsonl").exists()


def test_what_can_be_a_sink(tmp_path: Path) -> None:
    class Writer:
        add_scalar = flush = None

    assert isinstance(as_sink(str(tmp_path / "a.jsonl")), JsonLines)
    assert isinstance(as_sink(tmp_path / "A.CSV"), CsvFile)
    assert as_sink(print) is print
    for item, match in [
        ("a.txt", "ends in .jsonl or .csv"),
        (StatusLine, r"write StatusLine\(\.\.\.\)"),
        (Writer(), r"got Writer; wrap it: TensorBoard"),
        (3, "got int; give a function"),
    ]:
        with pytest.raises(InputError, match=match):
            as_sink(item)


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("torch.utils.tensorboard", "tensorboard", lambda: TensorBoard("runs")),
        ("wandb", "wandb", WandB),
    ],
    ids=["tensorboard", "wandb"],
)
def test_missing_libraries(module: str, extra: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'pip install "regiongrid\[{extra}\]"'):
        make()


# TensorBoard


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)] if name in events.Tags()["scalars"] else []


def test_tensorboard(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path / "runs"
    sink = TensorBoard(folder)
    assert not folder.exists()
    for step in (10, 20, 30):
        sink(step, {"regions/count": step / 4, "regions/count_se": math.nan if step == 20 else 1.0})
    assert scalars(folder, "regions/count") == [(10, 2.5), (20, 5), (30, 7.5)]  # before it is closed
    assert scalars(folder, "regions/count_se") == [(10, 1), (30, 1)]
    sink.rewind(20)
    sink(25, {"regions/count": 6.25})
    sink.close()
    assert scalars(folder, "regions/count") == [(10, 2.5), (20, 5), (25, 6.25)]
    sink.rewind(None)
    sink(5, {"regions/count": 1.25})
    sink.close()
    assert scalars(folder, "regions/count") == [(5, 1.25)]

    writer = SummaryWriter(str(tmp_path / "own"))
    given = TensorBoard(writer)
    given(1, {"a": 1.0})
    given.rewind(0)
    given.close()
    writer.add_scalar("a", 2.0, global_step=2)
    writer.close()
    assert scalars(tmp_path / "own", "a") == [(1, 1), (2, 2)]
    with pytest.raises(InputError, match="got int"):
        TensorBoard(3)


# Weights & Biases


def wandb_log(folder: Path) -> Iterator[Any]:
    """The one log of an offline run: records in blocks of 32 KiB, as in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    (log,) = folder.rglob("*.wandb")
    data, at, body = log.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if 32768 - at % 32768 < 7 or kind == 0:
            at += 32768 - at % 32768
            continue
        body += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(body)
            body = b""


def wandb_rows(folder: Path) -> list[dict[str, float]]:
    """The rows of a finished run; its log is written a little later than ``finish`` returns."""
    deadline = time.monotonic() + 30
    while "exit" not in (kinds := [record.WhichOneof("record_type") for record in wandb_log(folder)]):
        assert time.monotonic() < deadline, kinds
        time.sleep(0.02)
    rows = []
    for record in wandb_log(folder):
        if record.WhichOneof("record_type") == "history":
            cells = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({name: float(cell) for name, cell in cells.items() if not name.startswith("_")})
    return rows


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "own").mkdir()
    (tmp_path / "user").mkdir()
    with pytest.raises(InputError, match="not both"):
        WandB(object(), project="p")
    with pytest.raises(InputError, match="got int"):
        WandB(3)

    sink = WandB(project="p", dir=tmp_path / "own")
    assert wandb.run is None
    for step in (10, 20, 15):  # back to 15: resumed
        sink(step, {"regions/count": step / 4, "regions/count_se": math.nan, "train/loss": 0.5})
    sink.close()
    assert wandb.run is None
    assert wandb_rows(tmp_path / "own") == [
        {"regions/count": step / 4, "train/loss": 0.5, "regions/step": step} for step in (10, 20, 15)
    ]

    with wandb.init(project="p", dir=tmp_path / "user") as run:
        sink = WandB()  # finds the active run
        for step in range(6):
            run.log({"loss": float(step)}, step=step)
            if step > 1:
                sink(step, {"regions/count": float(step)})
            run.log({"accuracy": float(step)}, step=step)  # the same row: must not be too late
        sink(8, {"regions/count": 8.0})
        sink(9, {"regions/count": 9.0})
        sink.close()
        run.log({"late": 1.0})
    rows = wandb_rows(tmp_path / "user")
    for name in ("loss", "accuracy"):
        assert [row[name] for row in rows if name in row] == [0, 1, 2, 3, 4, 5]
    assert [(row["regions/step"], row["regions/count"]) for row in rows if "regions/count" in row] == [
        (step, step) for step in (2, 3, 4, 5, 8, 9)
    ]
    assert sum("late" in row for row in rows) == 1


# The terminal


def test_status_line() -> None:
    from rich.console import Console

    text = io.StringIO()
    sink = StatusLine(Console(file=text, force_terminal=True, width=150))
    for step, count in ((10, 120.0), (20, 90.0), (30, 90.1), (40, 200.0)):
        sink(step, {"regions/count": count, "regions/boundary_density": 2.54321, "regions/alarm": float(step == 40)})
    sink.close()
    shown = text.getvalue()
    for line in ("step 10 | regions 120 |", "step 20 | regions 90 ↓ | boundary density 2.543", "90.1 →", "200 ↑"):
        assert line in shown
    assert "90.1 → | boundary density 2.543\r" in shown  # no alarm
    assert "boundary density 2.543 | ALARM" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back
    quiet = io.StringIO()
    StatusLine(Console(file=quiet))(1, {"regions/count": 3.0})
    assert quiet.getvalue() == ""


# The monitor


def train_step(net: nn.Module, data: torch.Tensor, step: int, rate: float = 0.05) -> None:
    net.zero_grad()
    net(data[step % len(data)]).square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= rate * parameter.grad


def test_records_of_a_monitor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, data = mlp([3, 8, 2]), torch.randn(8, 4, 3)
    seen: list[tuple[int, dict[str, float]]] = []
    paths = [tmp_path / "a.jsonl", tmp_path / "a.csv"]

    def monitor(on_error: str = "raise", sinks: Any = (*paths, lambda step, record: seen.append((step, dict(record))))):
        return rg.RegionMonitor(net, data[0], slices=2, every=2, sinks=list(sinks), on_error=on_error)

    first = monitor()
    for step in range(1, 9):
        train_step(net, data, step)
        record = first.step(step, also={"train/loss": step / 8})
        if record is not None:
            assert seen[-1] == (step, record)
        if step == 4:
            state, weights = first.state_dict(), {name: value.clone() for name, value in net.state_dict().items()}
    assert [step for step, _ in seen] == [2, 4, 6, 8]
    assert seen[1][1]["train/loss"] == 0.5
    before = [path.read_bytes() for path in paths]
    for path in paths:
        assert_same_history(read(path), first.history)

    net.load_state_dict(weights)
    again = monitor()
    again.load_state_dict(state)
    assert read(paths[0])["step"].tolist() == [2, 4]
    for step in range(5, 9):
        train_step(net, data, step)
        again.step(step, also={"train/loss": step / 8})
    assert [path.read_bytes() for path in paths] == before

    def broken(step: int, record: Any) -> None:
        raise OSError("no space")

    careful = monitor("warn", [broken, seen.append])
    with pytest.warns(rg.monitor.RegionMonitorWarning, match="no space"):
        assert careful.measure(0) is not None


# Several processes


def one_rank(rank: int, folder: str) -> None:
    """Train as one of two ranks, and write what came of it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(mlp([3, 8, 2]))
    data = torch.randn(6, 4, 3) + rank
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    monitor = rg.RegionMonitor(net, data[0], slices=2, every=2, sinks=[f"{folder}/a.jsonl"], on_error="raise")
    measured = []
    for step in range(1, 7):
        optimizer.zero_grad()
        net(data[step - 1]).square().sum().backward()
        optimizer.step()
        measured.append(monitor.step(step) is not None)
    found = [measured, len(monitor.history), from_rank_zero(17 + rank, torch.device("cpu"))]
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort a process, or have it hang, that takes its group down in good order


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_only_rank_zero_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=one_rank, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [[[False, True] * 3, 3, 17], [[False] * 6, 0, 17]]
    history = read_jsonl(tmp_path / "a.jsonl")
    assert history["step"].tolist() == [2, 4, 6]
    assert (history["regions/count"] >= 1).all()
