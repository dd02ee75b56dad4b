"""Replay: frames of a run on disk, colours that stay with a region, the animation, the film strip and the command."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import mlp
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import regiongrid as rg
from regiongrid import replay as package
from regiongrid.commands.app import app
from regiongrid.errors import InputError
from regiongrid.monitoring.frames import Frames, load_frames
from regiongrid.monitoring.history import History
from regiongrid.monitoring.undisturbed import undisturbed
from regiongrid.plots import PALETTE, region_colours
from regiongrid.replay import animation, encode, replay
from regiongrid.replay.colours import NEW, Coloured, colour_frame, predecessors
from regiongrid.replay.film import film_strip, moments

RES = 24
STEPS = (0, 5, 10, 20, 40, 60)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2-16-16-2 with two slices."""
    run = tmp_path_factory.mktemp("runs") / "moons"
    torch.manual_seed(0)
    net = mlp([2, 16, 16, 2])
    x = torch.randn(64, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    near = rg.Slice.around(x[0].numpy(), 0.7)
    frames = Frames(run, [rg.Slice.square(2.0), near], res=RES)
    lines = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            frames.record(step, rg.load_network(net), threads=1)
            lines.append(json.dumps({"step": step, "regions/count": 20.0 + step, "regions/count_se": None}) + "\n")
        loss = nn.functional.cross_entropy(net(x), y)
        with torch.no_grad():
            for weights, gradient in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
                weights -= 0.1 * gradient
    (run / "metrics.jsonl").write_text("".join(lines))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(
        app, ["replay", *map(str, arguments)], env={"COLUMNS": "200", "REGIONGRID_DEBUG": None, "TERM": "dumb"}
    )


def pixel_colours(frame: Coloured) -> np.ndarray:
    return frame.colours[frame.labels]


def touching(frame: Coloured) -> set[tuple[int, int]]:
    labels = frame.labels
    pairs = [(labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])]
    return {(i, j) for a, b in pairs for i, j in zip(a.ravel().tolist(), b.ravel().tolist()) if i != j}


def block_images(most: int) -> st.SearchStrategy[np.ndarray]:
    """Pattern images of blocks of pixels with at most so many patterns."""
    blocks = st.lists(st.integers(0, most - 1), min_size=25, max_size=25)
    return blocks.map(
        lambda values: np.array(values, np.uint64).reshape(5, 5).repeat(2, axis=0).repeat(3, axis=1) * np.uint64(7919)
    )


@given(block_images(30))
@settings(max_examples=25)
def test_equal_frames_have_equal_colours(image: np.ndarray) -> None:
    first = colour_frame(image)
    second = colour_frame(image, first)
    np.testing.assert_array_equal(second.colours, first.colours)
    np.testing.assert_array_equal(second.hashes, image)


@given(st.lists(block_images(len(PALETTE)), min_size=2, max_size=5))
@settings(max_examples=25)
def test_neighbours_differ_in_every_frame_where_there_are_enough_colours(film: list[np.ndarray]) -> None:
    frame = None
    for image in film:
        frame = colour_frame(image, frame)
        assert all(frame.colours[i] != frame.colours[j] for i, j in touching(frame))


@given(block_images(30), block_images(30), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_predecessors_are_as_defined_however_regions_are_numbered(
    one: np.ndarray, two: np.ndarray, shuffler: random.Random
) -> None:
    before, after = colour_frame(one), colour_frame(two + np.uint64(7919 * 10))
    found = predecessors(before, after.labels, after.patterns)
    old = [int(before.patterns[row]) if row != NEW else None for row in found]
    assert dict(zip(after.patterns.tolist(), old)) == plain_predecessors(before.hashes, after.hashes)
    kept = [row for row in found.tolist() if row != NEW]
    assert len(set(kept)) == len(kept)
    order = list(range(len(before)))
    shuffler.shuffle(order)
    back = np.argsort(order)
    shuffled = Coloured(
        back[before.labels].astype(np.int32), before.patterns[order], before.pixels[order], before.colours[order]
    )
    straight, other = (colour_frame(after.hashes, frame) for frame in (before, shuffled))
    np.testing.assert_array_equal(straight.colours, other.colours)


def plain_predecessors(before: np.ndarray, after: np.ndarray) -> dict[int, int | None]:
    """Pattern -> pattern it goes on from, pair by pair from the definition."""
    pairs = list(zip(before.ravel().tolist(), after.ravel().tolist()))
    common = {pair: pairs.count(pair) for pair in set(pairs)}
    old, new = {i for i, _ in pairs}, {j for _, j in pairs}
    found: dict[int, int | None] = dict.fromkeys(new)
    for j in new & old:
        swallowed = max([n for (i, k), n in common.items() if k == j and i not in new], default=0)
        if swallowed <= common.get((j, j), 0):
            found[j] = j
    for i, j in sorted(common, key=lambda pair: (-common[pair], *pair)):
        if found[j] is None and i not in found.values():
            found[j] = i
    return found


@pytest.mark.parametrize("pattern", [1, 2, 77], ids=["hash of the larger", "hash of the smaller", "new hash"])
def test_a_merged_region_keeps_the_colour_of_its_larger_part(pattern: int) -> None:
    parts = np.full((6, 8), 3, np.uint64)
    parts[:3, :5], parts[:3, 5:] = 1, 2
    merged = np.where(parts == 3, parts, np.uint64(pattern))
    before = colour_frame(parts)
    after = colour_frame(merged, before)
    np.testing.assert_array_equal(pixel_colours(after)[:3, :5], pixel_colours(before)[:3, :5])
    np.testing.assert_array_equal(pixel_colours(after)[3:], pixel_colours(before)[3:])


def test_a_split_region_keeps_its_colour_on_the_larger_part_and_a_pattern_wherever_it_goes() -> None:
    before = colour_frame(np.array([[1] * 5 + [2] * 3 + [3] * 2] * 2, np.uint64))
    after = colour_frame(np.array([[8] * 2 + [9] * 3 + [3] * 2 + [2] * 3] * 2, np.uint64), before)
    of = [dict(zip(frame.patterns.tolist(), frame.colours.tolist())) for frame in (before, after)]
    assert (of[1][9], of[1][2], of[1][3]) == (of[0][1], of[0][2], of[0][3])
    assert of[1][8] != of[1][9]


def test_colours_of_the_first_frame_are_those_of_other_figures() -> None:
    net = rg.load_network(mlp([2, 12, 12, 2]))
    found = rg.estimate(net, rg.Slice.square(2.0), res=40, threads=1)
    frame = colour_frame(found.image.hashes)
    np.testing.assert_array_equal(frame.colours, region_colours(found.regions, found.totals.adjacency))


def test_frames_are_the_images_of_an_estimate_and_leave_no_trace(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = rg.load_network(mlp([6, 20, 20, 2]))
    rng = np.random.default_rng(0)
    slices = [rg.Slice.through(*rng.standard_normal((3, 6))), rg.Slice.around(np.zeros(6), 0.3)]
    frames = Frames(tmp_path, slices, res=50)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with undisturbed():
        frames.record(1200, network, threads=1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    np.testing.assert_array_equal(states[2], np.random.get_state()[1])  # noqa: NPY002
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["000001200.npz", "frames", "slices.npz"]
    recording = load_frames(tmp_path)
    assert (len(recording), recording.steps.tolist(), recording.res) == (1, [1200], 50)
    for kept, plane in zip(recording.slices, slices):
        for name in ("origin", "u", "v", "anchors"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(plane, name))
        assert (kept.half_width, kept.description) == (plane.half_width, plane.description)
    for image, found in zip(recording.images(0), rg.estimate(network, slices, res=50, threads=1)):
        np.testing.assert_array_equal(image, found.image.hashes)
    with np.load(tmp_path / "frames" / "000001200.npz") as file:
        assert file["labels"].dtype == np.uint16


def test_rewind_deletes_what_came_after_a_step(run: Path) -> None:
    recording = load_frames(run)
    frames = Frames(run, recording.slices, RES)
    (run / "frames" / "notes.txt").write_text("mine")
    frames.rewind(10)
    assert load_frames(run).steps.tolist() == [0, 5, 10]
    frames.record(15, rg.load_network(mlp([2, 16, 16, 2])), threads=1)
    assert load_frames(run).steps.tolist() == [0, 5, 10, 15]
    for others, res in ((recording.slices[:1], RES), (recording.slices, RES + 1)):
        with pytest.raises(InputError, match="frames of other slices or another resolution"):
            Frames(run, others, res).record(16, rg.load_network(mlp([2, 16, 16, 2])), threads=1)
    frames.rewind(None)
    assert [path.name for path in (run / "frames").iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="holds no frames"):
        load_frames(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 8), "no slice to keep"),
        (((rg.Slice.square(), rg.Slice.random(3)), 8), r"different dimensions: \[2, 3\]"),
        (((rg.Slice.square(),), 0), "res is 0"),
    ],
    ids=["no slices", "dimensions", "res"],
)
def test_frames_that_cannot_be(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Frames(tmp_path, *arguments)
    with pytest.raises(InputError, match="a frame's step is -1; it must be a whole number from 0 to"):
        Frames(tmp_path, [rg.Slice.square()], 8).record(-1, rg.load_network(mlp([2, 4, 1])), threads=1)


def rewritten(name: str, **changes: Any) -> Callable[[Path], None]:
    """Replace arrays of a file of frames; None leaves one out."""

    def change(frames: Path) -> None:
        with np.load(frames / name) as file:
            arrays = {key: file[key] for key in file.files}
        for key, value in changes.items():
            arrays[key] = value(arrays[key]) if callable(value) else value
        np.savez(frames / name, **{key: value for key, value in arrays.items() if value is not None})

    return change


def truncated(frames: Path) -> None:
    content = (frames / "000000010.npz").read_bytes()
    (frames / "000000010.npz").write_bytes(content[: len(content) // 2])


FRAME, SLICES = "000000010.npz", "slices.npz"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncated, "not a readable .npz"),
    "empty": (lambda frames: (frames / FRAME).write_bytes(b""), "empty"),
    "text": (lambda frames: (frames / FRAME).write_text("hello"), "not a readable .npz"),
    "foreign": (lambda frames: np.savez(frames / FRAME, x=np.zeros(3)), "has no array 'labels'"),
    "renamed": (lambda frames: (frames / "000000020.npz").rename(frames / FRAME), "the frame of step 20"),
    "other resolution": (rewritten(FRAME, labels=lambda a: a[:, :8, :8]), "'labels' is uint16 of shape"),
    "fewer slices": (rewritten(FRAME, labels=lambda a: a[:1]), "'labels' is uint16 of shape"),
    "floats": (rewritten(FRAME, labels=lambda a: a.astype(float)), "'labels' is float64"),
    "signed": (rewritten(FRAME, labels=lambda a: -a.astype(np.int32)), "'labels' is int32"),
    "objects": (rewritten(FRAME, patterns=np.array([print], object)), "not a readable .npz"),
    "label out of range": (rewritten(FRAME, labels=lambda a: a + np.uint16(999)), "regions that it does not list"),
    "too few patterns": (rewritten(FRAME, patterns=lambda a: a[:-1]), "'patterns' is uint64 of shape"),
    "negative count": (rewritten(FRAME, counts=lambda a: a * [1, -1]), "is no frame"),
    "huge count": (rewritten(FRAME, counts=lambda a: a + 2**40), "is no frame"),
    "no step": (rewritten(FRAME, step=None), "has no array 'step'"),
    "no slices": (lambda frames: (frames / SLICES).unlink(), "does not exist"),
    "other format": (rewritten(SLICES, format=np.array("x/2")), "is not of the format"),
    "crooked axes": (rewritten(SLICES, u=lambda a: a * 2), "holds no slices: .*orthonormal"),
    "flat origin": (rewritten(SLICES, origin=lambda a: a[0]), "'origin' must have shape"),
    "negative anchors": (rewritten(SLICES, anchor_counts=lambda a: a - 2), "negative number of anchors"),
    "numbers for text": (rewritten(SLICES, description=lambda a: np.zeros(2)), "no text 'description'"),
    "huge res": (rewritten(SLICES, res=lambda a: a + 2**30), "a resolution of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_frames_are_refused_with_their_name(run: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(run / "frames")
    with pytest.raises(InputError, match=message) as caught:
        load_frames(run).images(STEPS.index(10))
    assert str(run / "frames") in str(caught.value)


def test_gif_shows_every_frame_for_its_time_with_true_colours(trained: Path, tmp_path: Path) -> None:
    made = replay(trained, tmp_path, fps=10, film_moments=0)
    recording, frame = load_frames(trained), None
    side = animation.shown_side(RES)
    with Image.open(made.files["animation"]) as gif:
        assert gif.n_frames == made.pictures == len(STEPS)
        assert gif.info["loop"] == 0
        for number in range(len(STEPS)):
            gif.seek(number)
            assert gif.info["duration"] == (1500 if number == len(STEPS) - 1 else 100)
            frame = colour_frame(recording.images(number)[0], frame)
            shot = animation.take_shot(STEPS[number], frame, side)
            picture = np.asarray(gif.convert("RGB"))
            left = (picture.shape[1] - side) // 2
            inside = picture[46 : 46 + side, left : left + side]
            centres = inside[::-1][side // RES // 2 :: side // RES, side // RES // 2 :: side // RES]
            wanted = np.array([[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in PALETTE])
            np.testing.assert_array_equal(centres, wanted[pixel_colours(frame)])
            assert shot.count == made.counts[number]
    assert made.files["animation"].stat().st_size < len(STEPS) * package.GIF_BYTES_PER_PICTURE


def test_a_large_gif_gets_plain_boundaries_and_then_smaller(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "_LEAST_GIF_BYTES", 0)
    monkeypatch.setattr(package, "GIF_BYTES_PER_PICTURE", 3000)
    made = replay(trained, tmp_path, film_moments=0)
    assert "instead of 384 pixels" in made.notes[0]
    with Image.open(made.files["animation"]) as gif:
        assert gif.n_frames == len(STEPS)
        assert gif.width < 384
    monkeypatch.setattr(package, "MOST_PICTURES", 3)
    made = replay(trained, tmp_path, film_moments=0)
    assert made.pictures == 3
    assert "shows 3 of 6 frames" in made.notes[0]


def test_equal_input_gives_equal_files(trained: Path, tmp_path: Path) -> None:
    one, two = (replay(trained, tmp_path / name, slice_number=1, film_moments=2) for name in "ab")
    assert set(one.files) == {"animation", "film", "curves"}
    assert one.notes == ()
    for name in one.files:
        assert one.files[name].read_bytes() == two.files[name].read_bytes()


def test_mp4_has_every_picture(trained: Path, tmp_path: Path) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    made = replay(trained, tmp_path, format="mp4", fps=4, film_moments=0)
    path = made.files["animation"]
    assert path.read_bytes()[4:8] == b"ftyp"
    pictures, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert pictures == len(STEPS) - 1 + 6
    assert seconds == pytest.approx(pictures / 4, abs=0.3)


def test_mp4_without_ffmpeg_names_the_extra_and_the_gif(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    result = invoke(trained, "--out", tmp_path / "new", "--format", "mp4")
    assert result.exit_code == 2
    assert "no ffmpeg was found" in result.stderr
    assert "pip install 'regiongrid[video]'" in result.stderr
    assert "--format gif" in result.stderr
    assert not (tmp_path / "new").exists()


def test_what_ffmpeg_says_when_it_fails_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncase $* in *-encoders*) echo libx264;; *) echo no space >&2; exit 3;; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert encode.find_ffmpeg() == str(program)
    picture = np.zeros((400, 400), np.uint8)
    film = animation.Animation([picture] * 50, np.zeros((60, 3), np.uint8), 400)
    with pytest.raises(rg.RegiongridError, match=r"could not write .*: no space"):
        encode.write_mp4(film, tmp_path / "x.mp4", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True), st.integers(1, 12))
def test_moments_ascend_from_the_first_to_the_last(steps: list[int], count: int) -> None:
    steps.sort()
    for spacing in ("log", "even"):
        chosen = moments(steps, count, spacing)
        assert len(chosen) == min(count, len(steps))
        assert chosen == sorted(set(chosen))
        assert chosen[-1] == len(steps) - 1
        assert count == 1 or chosen[0] == 0
        assert set(chosen) <= set(range(len(steps)))


@pytest.mark.parametrize("slices", [1, 2])
def test_film_strip_says_what_it_shows(slices: int) -> None:
    shots = [
        animation.take_shot(step, colour_frame(np.arange(step, step + 9, dtype=np.uint64).reshape(3, 3)), 30)
        for step in (0, 100, 2000)
    ]
    planes = [rg.Slice.around(np.zeros(2), 1.5 * number) for number in range(1, slices + 1)]
    figure = film_strip([shots] * slices, planes, 40)
    assert len(figure.axes) == 3 * slices
    width, height = figure.get_size_inches()
    assert width == 7.2
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["step 0", "9 regions", "step 100", "9 regions", "step 2,000", "9 regions"] * slices
    caption = figure.texts[0].get_text()
    for words in ("3 of 40 measurements", "logarithm of the step", "Circles are data points"):
        assert words in caption
    for ax in figure.axes:
        box = ax.get_position()
        assert (box.width * width, box.x1 <= 1, box.y0 >= 0) == (pytest.approx(box.height * height), True, True)
    figure.savefig(io.BytesIO(), format="png", dpi=50)


def test_curve_has_the_marker_at_the_count_of_the_frame() -> None:
    history = History.of({"step": np.array([0, 10, 20]), "regions/count": np.array([1.0, 4.0, 9.0])})
    frames = [colour_frame(np.arange(n * n, dtype=np.uint64).reshape(n, n)) for n in (1, 2, 3)]
    shots = [animation.take_shot(10 * k, frame, 300) for k, frame in enumerate(frames)]
    film = animation.animate(shots, rg.Slice.square(), history, 300)
    red = np.array([0xC4, 0x16, 0x1C])
    places = []
    for picture in film.pictures:
        rows, columns = np.nonzero((film.palette[picture] == red).all(axis=2))
        places.append((columns.mean(), rows.mean()))
    x, y = np.array(places).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=1.5)
    assert (y[0] - y[1]) * 5 == pytest.approx((y[1] - y[2]) * 3, abs=8)
    assert (np.diff(y) < 0).all()


def test_command_prints_a_table_and_writes_the_files(trained: Path, tmp_path: Path) -> None:
    result = invoke(trained, "--out", tmp_path / "deep" / "er", "--film", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    out = tmp_path / "deep" / "er"
    assert sorted(path.name for path in out.iterdir()) == ["curves.png", "film.png", "replay.gif"]
    for words in ("6 frames, steps 0 to 60, 24 x 24 pixels", "0 of 2 slices", "replay.gif (", "film.png (", "kB)"):
        assert words in result.stdout
    counts = [np.unique(load_frames(trained).images(k)[0]).size for k in (0, len(STEPS) - 1)]
    assert f"{counts[0]} at first, {counts[1]} at last" in result.stdout


def test_command_writes_into_the_run_and_prints_json(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    result = invoke(run, "--format", "none", "--film", "3", "--slice", "1", "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["schema"] == "regiongrid.replay/1"
    assert (facts["frames"], facts["pictures"], facts["slice"], facts["steps"]) == (6, 0, 1, list(STEPS))
    assert facts["files"] == {"film": {"path": str(run / "film.png"), "bytes": (run / "film.png").stat().st_size}}
    assert "no metrics.jsonl" in facts["notes"][0]
    assert len(facts["regions"]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slice", "2"], "no slice 2: .* has the slices 0 to 1"),
        (["--fps", "0"], "fps is 0; it must be from 0.1 to 50"),
        (["--fps", "nan"], "fps is nan"),
        (["--film", "-1"], "-1 moments"),
        (["--format", "webm"], "webm"),
        (["--out", "FILE"], "cannot make the folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_refuses_what_cannot_be(trained: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "file").write_text("")
    result = invoke(trained, *[str(tmp_path / "file") if word == "FILE" else word for word in arguments])
    assert result.exit_code == (1 if "FILE" in arguments else 2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr), result.stderr


def test_command_on_what_is_no_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "nowhere", "is no folder"), (tmp_path / "empty", "holds no frames")):
        result = invoke(folder)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    truncated(run / "frames")
    result = invoke(run)
    assert result.exit_code == 2
    assert "000000010.npz is not a readable .npz archive" in result.stderr
    assert not (run / "replay.gif").exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from regiongrid.commands import main\n"
        "sys.argv = ['regiongrid', 'replay', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--format" in done.stdout
