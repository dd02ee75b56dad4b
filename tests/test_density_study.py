"""The study of local complexity: runs that can be killed, measurements, tables and figures."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from regiongrid.errors import InputError
from regiongrid.monitoring.sinks import read_jsonl
from regiongrid.study import density, density_burst, density_init, density_training
from regiongrid.study.density_burst import measure_burst
from regiongrid.study.density_config import DensityConfig, image_runs, toy_runs
from regiongrid.study.density_data import make_net
from regiongrid.study.density_init import Known, measure_init
from regiongrid.study.density_measuring import Tempered, norm_product
from regiongrid.study.density_report import Track, init_rows, kinks_to_boundary, relations, write_report
from regiongrid.study.density_training import CHECKPOINT, METRICS, batches, make_optimizer, train_density

TINY = DensityConfig(
    data="digits", train_points=50, test_points=60, width=12, depth=2, batch_size=16, steps=30, per_decade=2,
    measured_points=30, few_points=10, slices=2, half_width=0.5, weight_decay=0.01, epsilon=0.02, lr=0.01,
)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / CHECKPOINT, weights_only=True)["net"]


def same_run(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return (one / METRICS).read_bytes() == (other / METRICS).read_bytes() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("density") / TINY.name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density_training, "SAVE_EVERY", 7)
        assert not train_density(TINY, folder).earlier
    return folder


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [0, 10, 30])
def test_killed_and_resumed_is_not_interrupted(
    at: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after a line was written, before the checkpoint that goes with it."""
    monkeypatch.setattr(density_training, "SAVE_EVERY", 7)

    def kill(step: int, record: dict[str, float]) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        train_density(TINY, tmp_path / "run", kill)
    if at == 30:
        assert torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["step"] == 28
    assert not train_density(TINY, tmp_path / "run").earlier
    assert same_run(tmp_path / "run", whole)


def test_made_longer_is_one_that_was_longer_from_the_start(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density_training, "SAVE_EVERY", 7)
    train_density(replace(TINY, steps=17), tmp_path / "run")
    assert read_jsonl(tmp_path / "run" / METRICS)["step"].tolist() == [0, 1, 3, 10, 17]
    train_density(TINY, tmp_path / "run")
    assert same_run(tmp_path / "run", whole)
    with pytest.raises(InputError, match="run of 30 steps, and 17 are asked for"):
        train_density(replace(TINY, steps=17), tmp_path / "run")


def test_finished_run_is_not_run_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(file.name, file.stat().st_mtime_ns) for file in sorted(whole.iterdir()) if file.name != ".lock"]
    monkeypatch.setattr(density_training._Training, "run", lambda *_: pytest.fail("it was run"))
    assert train_density(TINY, whole).earlier
    assert before == [(file.name, file.stat().st_mtime_ns) for file in sorted(whole.iterdir()) if file.name != ".lock"]
    with pytest.raises(InputError, match=r"lr is 0\.1 here and 0\.01 there"):
        train_density(DensityConfig.from_mapping({**vars(TINY), "lr": 0.1}), whole)


def test_numbers_of_a_run(whole: Path) -> None:
    history = read_jsonl(whole / METRICS)
    assert history["step"].tolist() == [0, 1, 3, 10, 30]
    np.testing.assert_allclose(history["test/lc"], history["test/lc/1"] + history["test/lc/2"])
    assert history["train/accuracy"][-1] > history["train/accuracy"][0] + 0.2
    assert (history["test/pgd"] <= 1).all()
    assert (history["test/rank/1"] <= 12).all()
    # A network without biases has an exactly known value at every point, whatever its weights in the mean.
    law = 24 * 8 / (math.sqrt(2 * math.pi) * 8)
    assert history["test/lc"][0] == pytest.approx(law, rel=0.5)
    assert len({history[name][0] for name in ("test/lc", "train/lc", "test/tv", "test/distance")}) == 4


def test_weight_decay_acts_on_weights_alone() -> None:
    net = make_net(6, 5, 2, 3, seed=0)
    optimizer = make_optimizer(net, DensityConfig(weight_decay=0.5, lr=0.1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        expected = 0.95 if name.endswith("weight") else 1.0
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_published_initialisation() -> None:
    net = make_net(400, 100, 3, 10, seed=1)
    deviations = [float(layer.weight.detach().std()) for layer in net if isinstance(layer, nn.Linear)]
    expected = [math.sqrt(2 / fan_in) for fan_in in (400, 400, 100, 100)]
    assert deviations == pytest.approx(expected, rel=0.05)
    assert not any(layer.bias.any() for layer in net if isinstance(layer, nn.Linear))


def test_every_batch_order_is_a_permutation_and_depends_on_the_seed() -> None:
    found = list(batches(TINY, 0, 8))
    assert [len(batch) for batch in found] == [16, 16, 16, 2] * 2
    first, second = torch.cat(found[:4]), torch.cat(found[4:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert not torch.equal(first, second)
    assert torch.equal(next(batches(TINY, 5, 6)), found[5])
    assert not torch.equal(next(batches(replace(TINY, seed=1), 0, 1)), found[0])


def test_active_units_and_losses_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density_burst, "image_runs", lambda seeds: [TINY])
    monkeypatch.setattr(density_burst, "STEPS", 20)
    monkeypatch.setattr(density_burst, "EVERY", 10)
    found = measure_burst(tmp_path)
    assert [(row["adam_epsilon"], row["step"]) for row in found] == [(e, s) for e in (1e-8, 1e-5) for s in (10, 20)]
    assert found[0]["largest_loss"] > found[1]["largest_loss"] > 0
    assert all(0 < row["active/2"] <= 12 for row in found)
    assert found[1]["lc"] != found[3]["lc"]
    monkeypatch.setattr(density_burst, "_watched", lambda *_: pytest.fail("it was run again"))
    assert measure_burst(tmp_path) == found


def test_attack_of_a_saturated_network_is_that_of_the_network_in_scale() -> None:
    """Logits of a million leave the plain cross-entropy without a gradient."""
    from regiongrid.complexity.robustness import pgd_accuracy

    x = torch.linspace(-1, 1, 101)[:, None]
    small, large = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        small.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        large.weight.copy_(1e6 * small.weight)
    y = (x[:, 0] < 0).long()
    found = [
        pgd_accuracy(model, x, y, 0.5, steps=10, data_range=None).accuracy
        for model in (Tempered(small, x), Tempered(large, x), large)
    ]
    assert found[0] == found[1] < 0.55
    assert found[2] > found[0] + 0.1


def test_norm_product() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(7 * torch.eye(2))
        net[2].weight.copy_(torch.diag(torch.tensor([0.5, 0.25])))
        net[4].weight.copy_(torch.tensor([[3.0, 4.0]]))
    assert norm_product(net) == pytest.approx(5.0)


def test_report_is_the_same_every_time(whole: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in (0, 1):
        config = DensityConfig.from_mapping({**vars(TINY), "seed": seed, "steps": 3})
        train_density(config, runs / config.name)
    toy = DensityConfig.from_mapping({**vars(TINY), "data": "gaussians", "steps": 3})
    train_density(toy, runs / toy.name)
    unfinished = DensityConfig.from_mapping({**vars(TINY), "seed": 2})
    folder = runs / unfinished.name
    folder.mkdir()
    (folder / "config.toml").write_text(unfinished.to_toml())
    (folder / METRICS).write_bytes((runs / toy.name / METRICS).read_bytes())
    known = Known("LC", "net", 1.0, 2.0, [2.4, 2.6, 2.5])
    density_init._store(runs / "init", [known])
    steps = (
        {"adam_epsilon": e, "step": s, "largest_loss": 1 / s, "active/1": 3, "lc": s} for e in (1, 2) for s in (1, 2)
    )
    density_burst._store(runs / "burst", list(steps))
    files = write_report(runs, tmp_path / "out")
    assert sorted(file.name for file in files) == [
        "burst.csv", "burst.png", "init.csv", "init.png", "runs.toml", "slices.png", "toy.csv", "toy.png",
        "toy_relations.csv",
        "toy_summary.csv", "training.csv", "training.png", "training_relations.csv", "training_summary.csv",
    ]  # fmt: skip
    first = {file: file.read_bytes() for file in files}
    write_report(runs, tmp_path / "out")
    assert first == {file: file.read_bytes() for file in files}
    with (tmp_path / "out" / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["step"]) for row in rows] == [(s, t) for s in "01" for t in "013"]
    assert init_rows([known])[0]["standard_errors_off"] == pytest.approx(0.5 / (0.1 / math.sqrt(3)))


def test_relations_along_a_run(whole: Path) -> None:
    track = Track(TINY, read_jsonl(whole / METRICS))
    (row,) = relations([track], first=1)
    assert 0.5 < row["slices_over_lc"] < 2
    assert row["slices_over_lc_least"] <= row["slices_over_lc"] <= row["slices_over_lc_largest"]
    expected = scipy.stats.spearmanr(track["test/lc"][1:], track["test/tv"][1:]).statistic
    assert row["with_variation"] == pytest.approx(expected)
    assert math.isnan(relations([track], first=10)[0]["with_variation"])


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run"):
        write_report(tmp_path, tmp_path / "out")


def test_values_at_initialisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density_init, "POINTS", 20)
    monkeypatch.setattr(density_init, "FEW_POINTS", 4)
    monkeypatch.setattr(density_init, "DISTANCE_NETS", ((50, 4),))
    monkeypatch.setattr(density_init, "DEPTHS", (2,))
    monkeypatch.setattr(density_init, "_published_numbers", lambda seeds: iter(()))
    lines: list[str] = []
    found = measure_init(tmp_path / "init", 12, lines.append)
    assert len(lines) == len(found) == 2
    distance, law = found
    assert 1.1 < distance.mean < 1.45
    assert abs(law.mean - 1) < 4 * law.error < 0.2
    monkeypatch.setattr(density_init, "_distance_law", lambda seeds: pytest.fail("it was measured again"))
    assert measure_init(tmp_path / "init", 12, lines.append) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "cifar"}, "data is 'cifar'; it must be one of"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 on"),
        ({"seed": True}, "seed is True; it must be a whole number from 0 on"),
        ({"weight_decay": -0.1}, r"weight_decay is -0.1; it must be a number from 0 on"),
        ({"epochs": 3}, "unknown key epochs"),
    ],
    ids=["choice", "zero", "flag", "negative", "unknown"],
)
def test_bad_configuration(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DensityConfig.from_mapping(change)


def test_runs_have_names_of_their_own() -> None:
    runs = [*image_runs(3), *toy_runs()]
    assert len({run.name for run in runs}) == len(runs) == 7 + 2 * 4 + 3
    assert [run.seed for run in image_runs(2)] == [0] * 7 + [1] * 4


def test_kinks_to_boundary_in_space() -> None:
    """A random plane through 3-D space meets planes of density 1 in lines of density pi / 4."""
    assert kinks_to_boundary(3) == pytest.approx(math.pi / 4)


def test_command_line(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(density, "image_runs", lambda seeds, **changes: [TINY])
    out = tmp_path / "out"
    arguments = ["--runs", str(whole.parent), "--out", str(out), "--part", "train", "--part", "report", "--jobs", "1"]
    assert density.main(arguments) == 0
    assert "was finished earlier" in capsys.readouterr().err
    assert (out / "training.png").exists()
    assert density.main(["--runs", str(tmp_path), "--out", str(out), "--part", "report"]) == 1
    assert "no finished run" in capsys.readouterr().err
