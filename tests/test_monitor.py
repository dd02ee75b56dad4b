"""Monitoring of training: the live network, slices in one mesh, measures at points, and that nothing is disturbed."""

from __future__ import annotations

import copy
import csv
import gc
import io
import os
import pickle
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import ConvNet, mlp
from PIL import Image
from torch import Tensor, nn

import regiongrid as rg
from regiongrid.errors import InputError, UnsupportedOperatorError
from regiongrid.monitor import METRICS, RegionMonitor, RegionMonitorWarning
from regiongrid.monitoring.folding import Folder
from regiongrid.monitoring.history import History
from regiongrid.monitoring.plan import REGIONS_WANTED
from regiongrid.monitoring.points import (
    Activity,
    effective_rank,
    feature_std,
    frame,
    frame_factor,
    hidden_features,
    near_boundary,
)
from regiongrid.monitoring.records import COLUMNS
from regiongrid.network import lowering
from regiongrid.network.live import LiveNetwork
from regiongrid.network.on_slice import restrict_all
from regiongrid.network.program import Maximum, Piecewise, Program
from regiongrid.slices import Slice
from regiongrid.subdivision import joint
from regiongrid.subdivision.joint import joinable, subdivide_jointly


class Various(nn.Module):
    """Whatever a program's constants can come from: PReLU, bounds that are parameters, a tied weight, a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.bend = nn.PReLU()
        self.one, self.two = nn.Linear(5, 4), nn.Linear(5, 4)
        self.two.weight = self.one.weight
        self.least = nn.Parameter(-torch.rand(5))
        self.mask = torch.rand(5)
        self.register_buffer("shift", torch.rand(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bend(self.norm(self.first(x) * self.mask + self.shift)) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
        y = torch.clamp(y, min=self.least)
        return self.one(y) + self.two(torch.relu(y)) + self.one.weight.split(2)[0].sum()


class Annealed(nn.Module):
    """A slope that changes in training, and a counter that means nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)
        self.slope, self.calls = 1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.second(torch.relu(self.slope * self.first(x) - 0.1))


class Skip(nn.Module):
    """The input is read behind the first breakpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(11, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.third(torch.relu(self.second(torch.cat([x, y], 1))))


def pooled() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 8), nn.ReLU(),
        nn.Linear(8, 2),
    )  # fmt: skip


def parametrised() -> nn.Sequential:
    norms = nn.utils.parametrizations
    return nn.Sequential(
        norms.weight_norm(nn.Linear(4, 6)), nn.ReLU(), norms.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 2)
    )


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp([4, 8, 8, 2]), (4,)),
    "float64": (lambda: mlp([4, 8, 2]).double(), (4,)),
    "bfloat16": (lambda: mlp([4, 8, 2]).bfloat16(), (4,)),
    "convolutions": (ConvNet, (1, 6, 6)),
    "various": (Various, (4,)),
    "parametrised": (parametrised, (4,)),
}


def assert_equal_programs(one: Program, two: Program) -> None:
    assert one.constants.keys() == two.constants.keys()
    for name, value in one.constants.items():
        assert value.dtype == two.constants[name].dtype
        assert torch.equal(value, two.constants[name]), name
    assert [stage.label for stage in one.stages] == [stage.label for stage in two.stages]
    for first, second in zip(one.stages, two.stages):
        for name, value in vars(first.breakpoint).items():
            assert np.array_equal(value, getattr(second.breakpoint, name)), (first.label, name)


def train(module: nn.Module, shape: tuple[int, ...], steps: int = 1, rate: float = 0.05) -> None:
    dtype = next(module.parameters()).dtype
    optimizer = torch.optim.SGD(module.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(8, *shape, dtype=dtype)).square().sum().backward()
        optimizer.step()


# The live network


@pytest.mark.parametrize("name", MODULES)
def test_live_network_equals_a_fresh_load(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODULES[name]
    module, other = make(), make()
    live = LiveNetwork(module, shape)
    assert_equal_programs(live.current().program, rg.load_network(module, input_shape=shape).program)
    before = live.current().program
    train(module, shape, 3)  # the running statistics, too
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(0.9).add_(0.01)
    changed = live.current()
    assert_equal_programs(changed.program, rg.load_network(module, input_shape=shape).program)
    assert any(not torch.equal(value, before.constants[key]) for key, value in changed.program.constants.items())
    module.load_state_dict(other.state_dict())
    assert_equal_programs(live.current().program, rg.load_network(module, input_shape=shape).program)
    assert str(changed) == str(rg.load_network(module, input_shape=shape))


def test_what_was_read_does_not_follow_the_module() -> None:
    module = mlp([4, 8, 2]).double()  # float64, so that nothing has to be converted
    live = LiveNetwork(module)
    before = live.current().program
    copies = {name: value.clone() for name, value in before.constants.items()}
    train(module, (4,))
    assert all(torch.equal(value, copies[name]) for name, value in before.constants.items())


def test_plain_tensor_attributes_are_followed() -> None:
    module = Various()
    live = LiveNetwork(module, (4,))
    module.mask.mul_(2)
    assert_equal_programs(live.current().program, rg.load_network(module, input_shape=(4,)).program)


def test_live_network_leaves_the_module_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
    module[1].eval()
    attributes = [set(vars(part)) for part in module.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    live = LiveNetwork(module, (4,))
    live.current()
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    assert [part.training for part in module.modules()] == [True, True, False, True, True, True]
    assert [set(vars(part)) for part in module.modules()] == attributes
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in module.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    pickle.loads(pickle.dumps(module))
    copy.deepcopy(module)


def _replace_relu(module: nn.Sequential) -> None:
    module[1] = nn.GELU()


def _widen(module: nn.Sequential) -> None:
    module[0] = nn.Linear(4, 9)


def _lengthen(module: nn.Sequential) -> None:
    module.append(nn.ReLU())


def _drop_bias(module: nn.Sequential) -> None:
    module[0].bias = None


def _register(module: nn.Sequential) -> None:
    module[0].register_buffer("scale", torch.ones(3))


def _untie(module: nn.Sequential) -> None:
    module[4].weight = nn.Parameter(module[2].weight.detach().clone())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_replace_relu, "'1' was .*ReLU and is .*GELU"),
        (_widen, "'0.weight' was parameter 8x4 and is parameter 9x4"),
        (_lengthen, "'6' is new"),
        (_drop_bias, "'0.bias' is gone"),
        (_register, "'0.scale' is new .buffer 3"),
        (_untie, "the tensor of the same name as '4.weight' is gone"),
    ],
    ids=lambda value: value.__name__[1:] if callable(value) else "",
)
def test_a_changed_structure_is_noticed(change: Callable[[Any], None], said: str) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    module[4].weight = module[2].weight
    live = LiveNetwork(module)
    live.current()
    change(module)
    with pytest.raises(InputError, match=said):
        live.current()


def test_plain_settings_are_followed_and_counters_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Annealed()
    live = LiveNetwork(module, (3,))
    traced = 0
    original = lowering._export

    def counting(*arguments: Any) -> Any:
        nonlocal traced
        traced += 1
        return original(*arguments)

    monkeypatch.setattr(lowering, "_export", counting)
    for _ in range(3):
        train(module, (3,))  # the counter goes up
        live.current()
    assert traced == 1
    module.slope = 0.25
    assert_equal_programs(live.current().program, rg.load_network(module, input_shape=(3,)).program)
    assert traced == 3  # one of them is load_network's
    live.current()
    assert traced == 3


class Scaled(nn.Module):
    """A Python number from a tensor, as a factor, as what fills a tensor, or as a bound."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.scale, self.how = nn.Linear(3, 3), nn.Parameter(torch.ones(())), how

    def forward(self, x: Tensor) -> Tensor:
        number, y = self.scale.item(), self.layer(x)
        if self.how == "factor":
            return torch.relu(y * number)
        return torch.relu(y + torch.full((3,), number)) if self.how == "fill" else torch.clamp(y, -1.0, number)


def test_python_numbers_made_of_tensors_are_refused_or_followed() -> None:
    with pytest.raises(InputError, match="a Python number that is computed from a tensor"):
        LiveNetwork(Scaled("factor"), (3,))
    for how in ("fill", "bound"):
        module = Scaled(how)
        live = LiveNetwork(module, (3,))
        with torch.no_grad():
            module.scale.fill_(0.25)
        assert_equal_programs(live.current().program, rg.load_network(module, input_shape=(3,)).program)


def test_a_module_that_has_diverged_is_an_error() -> None:
    module = mlp([4, 8, 2])
    live = LiveNetwork(module)
    with torch.no_grad():
        module[2].bias[1] = torch.nan
    with pytest.raises(InputError, match=r"parameter 2.bias .* NaN"):
        live.current()


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    module = mlp([4, 8, 2])
    wrapped = torch.compile(nn.DataParallel(module), backend="eager")
    live = LiveNetwork(wrapped)
    train(module, (4,))
    assert_equal_programs(live.current().program, rg.load_network(module).program)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(module)
        live = LiveNetwork(parallel)
        train(parallel, (4,))
        assert_equal_programs(live.current().program, rg.load_network(module).program)
    finally:
        torch.distributed.destroy_process_group()


def test_live_network_takes_modules_only() -> None:
    with pytest.raises(InputError, match="got str"):
        LiveNetwork("model.pt")  # type: ignore[arg-type]


# Slices in one mesh


def _slices(d: int, half_widths: list[float]) -> list[Slice]:
    points = np.random.default_rng(3).standard_normal((len(half_widths), d))
    return [Slice.around(point, width, seed) for seed, (point, width) in enumerate(zip(points, half_widths))]


def _assert_joint_equals_exact(network: rg.Network, slices: list[Slice]) -> None:
    folded = restrict_all(network.program, slices)
    assert joinable(folded)
    found = subdivide_jointly(folded)
    single = rg.exact(network, slices)
    counts = np.bincount(found.slice_of, minlength=len(slices))
    assert counts.tolist() == [len(one.regions) for one in single]
    for stage in range(len(network.program.stages)):
        expected = [one.layers[stage]["regions"] for one in single]
        assert found.regions_up_to(stage, len(slices)).tolist() == expected
    inner = found.polygons.sides.stage >= 0
    lengths = np.bincount(found.side_slices[inner], found.polygons.side_lengths[inner], len(slices))
    assert lengths == pytest.approx([one.boundary_length for one in single], rel=1e-9)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: mlp([5, 16, 16, 16, 2]), (5,)),
        (lambda: mlp([5, 16, 16, 2], nn.Hardtanh), (5,)),
        (pooled, (1, 6, 6)),
    ],
    ids=["relu", "two thresholds", "max-pool"],
)
def test_joint_subdivision_finds_what_single_ones_do(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    network = rg.load_network(make(), input_shape=shape)
    slices = _slices(network.program.input_size, [0.5, 2.0, 1.0, 3.0])
    _assert_joint_equals_exact(network, [*slices, slices[0], slices[1]])  # the same regions once more


def test_joint_subdivision_settles_ties_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many lines through one point, and through corners: signs that float64 leaves open."""
    module = mlp([2, 6, 4, 2])
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1], [2, 1], [1, 2]]))
        module[0].bias.zero_()
        module[2].weight.copy_(torch.tensor([[1.0, 1, 0, 0, 0, 0], [1, -1, 0, 0, 0, 0], [0, 0, 1, -1, 0, 0], [1] * 6]))
        module[2].bias.copy_(torch.tensor([-1.0, 0, 0, -2]))
    network = rg.load_network(module)
    slices = [
        Slice([0, 0], [1, 0], [0, 1], 1.0), Slice([1, 1], [1, 0], [0, 1], 1.0), Slice([0, 0.5], [1, 0], [0, 1], 2.0)
    ]  # fmt: skip
    asked: list[int] = []
    original = joint._JointRationals._first_values

    def counting(self: Any, face: int) -> Any:
        asked.append(face)
        return original(self, face)

    monkeypatch.setattr(joint._JointRationals, "_first_values", counting)
    _assert_joint_equals_exact(network, slices)
    assert set(asked) == {0, 1, 2}


@pytest.mark.parametrize("make", [lambda: mlp([6, 12, 12, 2]), lambda: nn.Sequential(nn.Flatten(), *mlp([6, 9, 2]))])
def test_folder_folds_as_restrict_all(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(2)
    program = rg.load_network(make(), input_shape=(6,)).program
    slices = _slices(6, [0.3, 1.0, 2.0])
    for mine, theirs in zip(Folder(slices)(program), restrict_all(program, slices)):
        assert mine.slice is theirs.slice
        assert mine.uv_values.keys() == theirs.uv_values.keys()
        for name, affine in mine.uv_values.items():
            torch.testing.assert_close(affine.constant, theirs.uv_values[name].constant, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(affine.tangents, theirs.uv_values[name].tangents, rtol=1e-12, atol=1e-12)


def test_networks_that_read_the_input_later_are_measured_one_by_one() -> None:
    torch.manual_seed(3)
    module, points = Skip(), torch.randn(6, 3)
    folded = Folder(_slices(3, [1.0, 2.0]))(rg.load_network(module, input_shape=(3,)).program)
    assert not joinable(folded)
    monitor = RegionMonitor(module, points, slices=3, half_width=2.0, on_error="raise")
    record = monitor.measure(0)
    assert record is not None
    _assert_record_is_that_of_exact(record, rg.load_network(module, input_shape=(3,)), monitor.slices)


# Measures at points


def _all_decisions(program: Program, x: Tensor) -> Iterator[Tensor]:
    """Every decision at one point, as the definition has it: [D]."""
    preactivations, _ = program.run(x[None])
    for stage, z in zip(program.stages, preactivations):
        bend = stage.breakpoint
        if isinstance(bend, Piecewise):
            yield (z[0][None] - torch.from_numpy(bend.thresholds)).flatten()
        else:
            for window, position in zip(bend.windows, bend.winners(z)[0]):
                rivals = [j for place, j in enumerate(window) if j >= 0 and place != int(position)]
                yield bend.sign * (z[0, window[int(position)]] - z[0, rivals])


def _by_definition(program: Program, x: Tensor, sigma: float) -> tuple[float, float]:
    """Local complexity and distance from Jacobians."""
    values = torch.cat(list(_all_decisions(program, x)))
    jacobian = torch.autograd.functional.jacobian(lambda v: torch.cat(list(_all_decisions(program, v))), x)
    norms = jacobian.norm(dim=1)
    density = torch.exp(-0.5 * (values / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return float((norms * density).sum()), float((values.abs() / norms)[norms > 0].min())


@pytest.mark.parametrize(
    ("make", "shape", "count"),
    [
        (lambda: mlp([5, 12, 12, 2]), (5,), 6),
        (lambda: mlp([5, 12, 12, 2], nn.Hardtanh), (5,), 6),
        (pooled, (1, 6, 6), 4),
        (ConvNet, (1, 6, 6), 1),
        (Skip, (3,), 6),
    ],
    ids=["relu", "two thresholds", "max-pool", "all operators", "skip"],
)
def test_local_complexity_and_distance_are_those_of_the_definition(
    make: Callable[[], nn.Module], shape: tuple[int, ...], count: int
) -> None:
    torch.manual_seed(4)
    program = rg.load_network(make(), input_shape=shape).program
    points = torch.randn(count, program.input_size, dtype=torch.float64)
    everything = torch.eye(program.input_size, dtype=torch.float64)
    found = near_boundary(program, points, everything, 0.2, Activity())
    expected = np.array([_by_definition(program, point, 0.2) for point in points])
    assert found.local_complexity == pytest.approx(expected[:, 0], rel=1e-9)
    assert found.distance == pytest.approx(expected[:, 1], rel=1e-9)


def test_a_few_directions_are_enough() -> None:
    torch.manual_seed(5)
    program = rg.load_network(mlp([200, 40, 40, 2])).program
    points = torch.randn(64, 200, dtype=torch.float64)
    exact = near_boundary(program, points, torch.eye(200, dtype=torch.float64), 0.1, Activity())
    found = [near_boundary(program, points, frame(200, seed), 0.1, Activity()) for seed in range(8)]
    means = [one.local_complexity.mean() for one in found]
    assert np.mean(means) == pytest.approx(exact.local_complexity.mean(), rel=0.03)
    for one in found:
        assert (one.distance >= exact.distance * (1 - 1e-12)).all()  # never too small
        assert np.mean(one.distance / exact.distance) < 1.05


def test_frame_is_orthonormal_and_its_factor_right() -> None:
    directions = frame(50, 7)
    torch.testing.assert_close(directions @ directions.T, torch.eye(len(directions), dtype=torch.float64))
    assert frame_factor(3, 3) == pytest.approx(1.0)
    vector = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = [float((frame(50, seed) @ vector).norm()) for seed in range(2000)]
    assert np.mean(lengths) / float(vector.norm()) == pytest.approx(frame_factor(len(directions), 50), rel=0.02)


def test_idle_units() -> None:
    module = mlp([3, 5, 4, 2])
    with torch.no_grad():
        module[0].bias.copy_(torch.tensor([-1e3, -1e3, 1e3, 0, 0]))
        module[2].bias.copy_(torch.tensor([1e6, 1e6, 1e6, -1e6]))
    activity = Activity()
    program = rg.load_network(module).program
    torch.manual_seed(0)
    first = hidden_features(program, torch.randn(64, 3, dtype=torch.float64), activity)
    assert (activity.off, activity.on) == (3 / 9, 4 / 9)
    assert first.shape == (64, 4)
    with torch.no_grad():
        module[0].bias[0] = 1e3  # one unit is off in one batch and on in the next
    hidden_features(rg.load_network(module).program, torch.randn(8, 3, dtype=torch.float64), activity)
    assert (activity.off, activity.on) == (2 / 9, 4 / 9)


def test_effective_rank_and_spread_of_features() -> None:
    features = torch.randn(40, 12, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.logspace(0, -4, 12))
    for rows in (features, features.T):
        singular = torch.linalg.svdvals(rows.double())
        shares = singular / singular.sum() + 1e-7
        assert effective_rank(rows) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-6)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(torch.zeros(3, 4)) == 0.0
    rows = torch.randn(5000, 64, generator=torch.Generator().manual_seed(2))
    assert feature_std(rows) == pytest.approx(1 / 8, rel=0.01)
    assert feature_std(torch.arange(1.0, 7.0)[:, None] * torch.ones(6, 4)) == pytest.approx(0.0, abs=1e-12)


# The monitor's numbers


def _assert_record_is_that_of_exact(record: dict[str, float], network: rg.Network, slices: Any) -> None:
    found = rg.exact(network, list(slices))
    tables = [one.regions for one in found]
    expected = {
        "count": [len(table) for table in tables],
        "area_mean": [table.area.mean() for table in tables],
        "area_median": [np.median(table.area) for table in tables],
        "eccentricity_mean": [table.eccentricity.mean() for table in tables],
        "eccentricity_median": [np.median(table.eccentricity) for table in tables],
        "elongation_mean": [table.elongation.mean() for table in tables],
        "elongation_median": [np.median(table.elongation) for table in tables],
        "elongation_p95": [np.percentile(table.elongation, 95) for table in tables],
        "boundary_length": [one.boundary_length for one in found],
        "boundary_density": [one.boundary_length / one.slice.domain_area for one in found],
        **{
            f"by_layer/{k + 1}": [one.layers[k]["regions"] for one in found] for k in range(len(network.program.stages))
        },
    }
    for name, values in expected.items():
        assert record[f"regions/{name}"] == pytest.approx(np.mean(values), rel=1e-8), name
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert record[f"regions/{name}_se"] == pytest.approx(error, rel=1e-6), name


@pytest.mark.parametrize(("slices", "kind"), [(11, "one"), (3, "three")])
def test_record_of_exact_polygons(slices: int, kind: str) -> None:
    torch.manual_seed(6)
    module, data = mlp([6, 20, 20, 2]), torch.randn(40, 6)
    monitor = RegionMonitor(module, data, slices=slices, kind=kind, half_width=1.0, probe=data, on_error="raise")
    assert monitor.plan.engine == "exact"
    train(module, (6,), 3)
    record = monitor.measure(3)
    assert record is not None
    assert all(type(value) is float and name.startswith("regions/") for name, value in record.items())
    _assert_record_is_that_of_exact(record, rg.load_network(module), monitor.slices)
    program = rg.load_network(module).program
    near = [_by_definition(program, point, 0.05) for point in data[:16].double()]
    assert record["regions/local_complexity"] == pytest.approx(np.mean(near, axis=0)[0], rel=1e-9)  # d = 6: all of it
    assert record["regions/distance"] == pytest.approx(np.mean(near, axis=0)[1], rel=1e-9)
    assert record["regions/distance_median"] == pytest.approx(np.median(near, axis=0)[1], rel=1e-9)
    preactivations = [torch.relu(z) for z in program.run(torch.cat([data[:16], data]).double())[0]]
    active = torch.cat([z > 0 for z in preactivations], 1)
    assert record["regions/units_off"] == pytest.approx(float((~active.any(0)).double().mean()))
    assert record["regions/units_on"] == pytest.approx(float(active.all(0).double().mean()))
    bits = active[16:].double()
    pairs = [(bits[i] - bits[j]).abs().mean() for i in range(40) for j in range(i)]
    assert record["regions/pattern_distance"] == pytest.approx(float(torch.stack(pairs).mean()))
    shares = torch.linalg.svdvals(bits - bits.mean(0))
    shares = shares[shares > 1e-9 * shares[0]] / shares.sum()
    assert record["regions/pattern_rank"] == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-5)
    assert record["regions/effective_rank"] == pytest.approx(effective_rank(preactivations[-1][16:]))
    assert record["regions/feature_std"] == pytest.approx(feature_std(preactivations[-1][16:]))


def test_record_of_the_grid() -> None:
    torch.manual_seed(7)
    module, data = mlp([6, 10, 10, 2]), torch.randn(5, 6)
    monitor = RegionMonitor(module, data, slices=2, half_width=2.0, engine="grid", res=64, on_error="raise")
    record = monitor.measure(0)
    found = rg.estimate(module, list(monitor.slices), 64, by_layer=True)
    assert record is not None
    assert record["regions/count"] == np.mean([len(one.regions) for one in found])
    assert record["regions/by_layer/1"] == np.mean([one.layers[0]["regions"] for one in found])
    assert record["regions/boundary_length"] == pytest.approx(np.mean([one.totals.boundary_length for one in found]))
    assert "regions/elongation_mean" not in record


def test_only_the_metrics_that_were_asked_for() -> None:
    module, data = mlp([4, 6, 2]), torch.randn(5, 4)
    for metric in METRICS:
        probe = data if metric == "representation" else None
        record = RegionMonitor(module, data, slices=1, metrics=[metric], probe=probe, on_error="raise").measure(0)
        assert record is not None
        names = {name.removeprefix("regions/") for name in record if not name.endswith("_se")}
        assert names == set(COLUMNS.get(metric, ("by_layer/1",)))
        assert all(np.isnan(value) for name, value in record.items() if name.endswith("_se") and "distance" not in name
                   and "complexity" not in name)  # fmt: skip


def test_features_of_the_users_own_see_the_model_in_eval_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    module[3].eval()
    data = torch.randn(20, 4)
    seen: list[bool] = []

    def features(batch: Tensor) -> Tensor:
        seen.extend(part.training for part in module.modules())
        seen.append(torch.is_grad_enabled())
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        return module(batch)

    monitor = RegionMonitor(module, data[:4], slices=2, probe=data, features=features, on_error="raise")
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    statistics = module[1].running_mean.clone()
    record = monitor.measure(0)
    assert record is not None
    assert not any(seen)
    assert [part.training for part in module.modules()] == [True, True, True, True, False, True]
    assert torch.equal(module[1].running_mean, statistics)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    with torch.no_grad():
        expected = effective_rank(copy.deepcopy(module).eval()(data))
    assert record["regions/effective_rank"] == pytest.approx(expected)


def test_features_that_fail_leave_the_modes_as_they_were() -> None:
    module, data = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3)), torch.randn(20, 4)
    monitor = RegionMonitor(
        module, data[:4], slices=1, probe=data, features=lambda batch: batch.sum(), on_error="raise"
    )
    with pytest.raises(InputError, match="features"):
        monitor.measure(0)
    assert all(part.training for part in module.modules())
    assert len(monitor.history) == 0


# Slices, engine, plan


def test_default_half_width_suits_the_network() -> None:
    torch.manual_seed(8)
    data = torch.randn(16, 30)
    for width in (32, 128):
        monitor = RegionMonitor(mlp([30, width, width, 2]), data, metrics=["count"], on_error="raise")
        record = monitor.measure(0)
        assert record is not None
        (low, high), widths = monitor.plan.half_width, {plane.half_width for plane in monitor.slices}
        assert widths == {low} == {high}
        assert f"{low:.0e}"[0] in "125"
        assert monitor.plan.regions <= REGIONS_WANTED
        assert record["regions/count"] == pytest.approx(monitor.plan.regions, rel=0.5)


def test_slices_are_deterministic_and_cycle_through_the_anchors() -> None:
    module, data = mlp([6, 10, 2]), np.random.default_rng(0).standard_normal((3, 6))
    one, two = (RegionMonitor(module, data, slices=5, half_width=0.5, seed=4) for _ in range(2))
    for a, b, anchor, number in zip(one.slices, two.slices, [0, 1, 2, 0, 1], range(5)):
        assert np.array_equal(a.u, b.u)
        assert np.array_equal(a.origin, data[anchor])
        assert np.array_equal(a.u, Slice.around(data[anchor], 0.5, seed=4 + number).u)
    assert not np.array_equal(
        RegionMonitor(module, data, slices=1, half_width=0.5, seed=5).slices[0].u, one.slices[0].u
    )
    given = [Slice.random(6, 1), Slice.random(6, 2)]
    assert RegionMonitor(module, data, slices=given).slices == tuple(given)


def test_engine_follows_the_cost_and_is_said() -> None:
    module, data = mlp([6, 12, 12, 2]), torch.randn(5, 6)
    small = RegionMonitor(module, data, slices=2)
    assert small.plan.engine == "exact"
    assert small.plan.seconds["exact"] < small.plan.seconds["grid of 256 x 256"]
    assert "engine exact: predicted to be faster" in str(small)
    wide = RegionMonitor(mlp([6, 200, 200, 200, 2]), data, slices=2, half_width=50.0, res=16)
    assert wide.plan.engine == "grid"
    assert "engine grid: predicted to be faster" in str(wide)
    assert RegionMonitor(module, data, slices=2, engine="grid").plan.reason == "as asked"
    needed = RegionMonitor(mlp([6, 200, 200, 200, 2]), data, slices=2, half_width=50.0, res=16, metrics=["elongation"])
    assert needed.plan.engine == "exact"


def test_networks_with_jumps_are_for_the_grid() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Threshold(0.1, -1.0), nn.Linear(5, 2))
    monitor = RegionMonitor(module, torch.randn(4, 3), slices=2, half_width=1.0, res=32, on_error="raise")
    assert monitor.plan.engine == "grid"
    assert "cannot have this network" in str(monitor)
    assert monitor.measure(0)
    with pytest.raises(InputError, match="jumps at its threshold"):
        RegionMonitor(module, torch.randn(4, 3), slices=2, engine="exact")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slices": 0}, r"slices \(if not a sequence of Slice\) is 0; it must be a whole number from 1 on"),
        ({"slices": []}, r"a sequence of Slice, got \[\]"),
        ({"slices": ["x"]}, "a sequence of Slice"),
        ({"slices": [Slice.random(7)]}, "dimension 7, but the network takes 4"),
        ({"slices": [Slice.random(4)], "half_width": 1.0}, "leave out half_width"),
        ({"every": 0}, "every is 0"),
        ({"res": 1.5}, "res is 1.5"),
        ({"threads": -1}, "threads is -1"),
        ({"engine": "fast"}, "engine is 'fast'"),
        ({"kind": "two"}, "kind of slice"),
        ({"metrics": ["area", "volume"]}, "metrics must be some of"),
        ({"metrics": "area"}, "metrics must be some of"),
        ({"metrics": ["representation"]}, "needs a probe batch"),
        ({"metrics": ["elongation"], "engine": "grid"}, "needs exact polygons"),
        ({"features": len}, "needs a probe batch"),
        ({"features": 3, "probe": torch.zeros(2, 4)}, "must be a function"),
        ({"probe": torch.zeros(2, 5)}, "probe must have shape"),
        ({"probe": torch.full((2, 4), torch.nan)}, "probe have 8 NaN"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"half_width": -1.0}, "half-width"),
        ({"input_shape": (5,)}, "could not be traced|must have shape|input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RegionMonitor(mlp([4, 6, 2]), torch.randn(5, 4), **options)


@pytest.mark.parametrize(
    "anchors", [torch.zeros(4), torch.zeros(0, 4), np.array(["a"] * 4), torch.full((2, 4), torch.inf)]
)
def test_anchors_that_cannot_be_used(anchors: Any) -> None:
    with pytest.raises(InputError, match="anchors"):
        RegionMonitor(mlp([4, 6, 2]), anchors)


def test_networks_that_cannot_be_measured() -> None:
    with pytest.raises(UnsupportedOperatorError, match="gelu"):
        RegionMonitor(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.ReLU()), torch.randn(5, 4))


# Nothing is disturbed


def _dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def _batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )


SCENARIOS: dict[str, dict[str, Any]] = {
    "dropout": {"make": _dropout},
    "batch-norm": {"make": _batch_norm},
    "autocast": {"make": _dropout, "context": lambda: torch.autocast("cpu", torch.bfloat16)},
    "compiled": {"make": _dropout, "wrap": lambda module: torch.compile(module, backend="eager")},
    "frozen": {"make": _dropout, "freeze": "0."},
    "accumulation": {"make": _dropout, "accumulate": 3},
    "grid": {"make": _dropout, "monitor": {"engine": "grid", "res": 16}},
}


def _run(
    *,
    monitored: bool,
    make: Callable[[], nn.Module],
    context: Callable[[], Any] = nullcontext,
    wrap: Callable[[nn.Module], Any] = lambda module: module,
    freeze: str | None = None,
    accumulate: int = 1,
    monitor: dict[str, Any] | None = None,
) -> tuple[list[Any], RegionMonitor | None]:
    """Everything that training leaves behind."""
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    module = make()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(freeze is None or not name.startswith(freeze))
    model = wrap(module)
    data, anchors = torch.randn(64, 6), torch.randn(5, 6)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-2)
    watch = None
    if monitored:
        watch = RegionMonitor(model, anchors, slices=2, every=2, probe=data, on_error="raise", **(monitor or {}))
    with watch.attach(optimizer) if watch else nullcontext():
        for _ in range(6):
            optimizer.zero_grad()
            for _ in range(accumulate):
                rows = torch.randint(0, 64, (16,))
                noise = float(np.random.rand() + random.random())  # noqa: NPY002
                with context():
                    loss = model(data[rows] + noise).float().square().mean() / accumulate
                loss.backward()
            with context():
                optimizer.step()
    gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    state = [
        *module.state_dict().values(), *gradients, torch.get_rng_state(),
        torch.from_numpy(np.random.get_state()[1].copy()),  # noqa: NPY002
    ]  # fmt: skip
    for entry in optimizer.state_dict()["state"].values():
        state += list(entry.values())
    return [*state, random.getstate(), [part.training for part in module.modules()], torch.get_num_threads()], watch


def _same(one: Any, two: Any) -> bool:
    return torch.equal(one, two) if isinstance(one, Tensor) else bool(one == two)


@pytest.mark.parametrize("name", SCENARIOS)
def test_training_is_the_same_to_the_last_bit(name: str) -> None:
    plain, _ = _run(monitored=False, **SCENARIOS[name])
    watched, monitor = _run(monitored=True, **SCENARIOS[name])
    assert monitor is not None
    assert monitor.history["step"].tolist() == [2, 4, 6]
    assert np.isfinite(monitor.history["regions/count"]).all()
    different = [k for k, (one, two) in enumerate(zip(plain, watched, strict=True)) if not _same(one, two)]
    assert not different


_IN_A_FRESH_PROCESS = """
import hashlib, sys
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 96), nn.ReLU(),
                    nn.Linear(96, 10))
optimizer = torch.optim.Adam(net.parameters())
data = torch.randn(256, 64)
if sys.argv[1] == "watched":
    from regiongrid.monitor import RegionMonitor
    monitor = RegionMonitor(net, data[:4], slices=2, every=2, on_error="raise")
    monitor.attach(optimizer)
for _ in range(10):
    optimizer.zero_grad()
    net(data[torch.randint(0, 256, (200,))]).square().mean().backward()
    optimizer.step()
if sys.argv[1] == "watched":
    assert len(monitor.history) == 5
digest = hashlib.md5()
for tensor in (*net.state_dict().values(), torch.get_rng_state()):
    digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def test_training_is_the_same_as_in_a_process_that_never_saw_a_monitor() -> None:
    """The number of torch's threads and the state of its libraries belong to the process."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", _IN_A_FRESH_PROCESS, how], capture_output=True, text=True, check=True
        ).stdout
        for how in ("plain", "watched")
    ]
    assert digests[0] == digests[1] != ""


def test_the_callers_settings_are_as_they_were() -> None:
    module, data = mlp([4, 6, 2]), torch.randn(5, 4)
    monitor = RegionMonitor(module, data, slices=2, every=1, probe=data, on_error="raise")
    expected = monitor.measure(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            assert monitor.measure(1) == pytest.approx(expected, nan_ok=True)
            assert torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.empty(1).device.type == "meta"
        with torch.inference_mode():
            assert monitor.measure(2) == pytest.approx(expected, nan_ok=True)
            assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_model_and_optimizer_stay_picklable_and_detaching_removes_everything() -> None:
    module, data = _dropout(), torch.randn(8, 6)
    optimizer = torch.optim.Adam(module.parameters())
    hooks = len(optimizer._optimizer_step_post_hooks)
    attributes = [set(vars(part)) for part in module.modules()]
    monitor = RegionMonitor(module, data, slices=2, every=1)
    handle = monitor.attach(optimizer)
    module(data).sum().backward()
    optimizer.step()
    assert len(monitor.history) == 1
    pickle.loads(pickle.dumps(module))
    copy.deepcopy(module)
    pickle.loads(pickle.dumps(optimizer))
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, io.BytesIO())
    handle.remove()
    assert len(optimizer._optimizer_step_post_hooks) == hooks
    optimizer.step()
    assert len(monitor.history) == 1
    assert [set(vars(part)) for part in module.modules()] == attributes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    with monitor.attach(optimizer):
        optimizer.step()
    optimizer.step()
    assert len(monitor.history) == 2
    with pytest.raises(InputError, match="got SimpleNamespace"):
        monitor.attach(type("SimpleNamespace", (), {})())


def test_memory_does_not_grow() -> None:
    module, data = mlp([3, 4, 4, 2]), torch.randn(4, 3)
    monitor = RegionMonitor(module, data, slices=2, every=1, probe=data, half_width=0.5, threads=1)
    resident: list[int] = []
    for step in range(1100):
        monitor.measure(step)
        if step in (99, 1099):
            gc.collect()
            resident.append(int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]))  # type: ignore[index]
    assert monitor.errors == 0
    columns = len(monitor.history.columns)
    assert resident[1] - resident[0] < 1024 + 4 * columns * 8  # kB: the history itself has 8 kB a column


# Errors


def test_errors_warn_once_and_do_not_end_training() -> None:
    module, data = mlp([4, 6, 2]), torch.randn(5, 4)
    monitor = RegionMonitor(module, data, slices=2, every=1)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    threads = torch.get_num_threads()
    with torch.no_grad():
        module[0].bias[0] = torch.nan
    with monitor.attach(optimizer):
        with pytest.warns(RegionMonitorWarning, match=r"at step 1 failed.*NaN"):
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
    assert (monitor.errors, len(monitor.history)) == (2, 0)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    with torch.no_grad():
        module[0].bias[0] = 0.0
    assert monitor.step() is not None
    assert monitor.history["step"].tolist() == [3]


def test_errors_are_raised_if_asked_for() -> None:
    module = mlp([4, 6, 2])
    monitor = RegionMonitor(module, torch.randn(5, 4), slices=2, every=1, on_error="raise")
    module[1] = nn.Tanh()
    with pytest.raises(InputError, match="has changed since it was lowered"):
        monitor.step()


def test_an_interrupt_passes() -> None:
    data = torch.randn(5, 4)

    def interrupted(batch: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monitor = RegionMonitor(mlp([4, 6, 2]), data, slices=1, probe=data, features=interrupted)
    with pytest.raises(KeyboardInterrupt):
        monitor.measure(0)
    assert monitor.errors == 0


# Steps, history, state


def test_when_a_measurement_is_due() -> None:
    monitor = RegionMonitor(mlp([4, 6, 2]), torch.randn(5, 4), slices=1, every=3, metrics=["count"])
    assert [monitor.step() is not None for _ in range(7)] == [False, False, True, False, False, True, False]
    assert monitor.step(9) is not None
    assert monitor.step(9) is None  # once for each number
    assert monitor.step(10) is None
    assert monitor.measure(10) is not None
    assert monitor.history["step"].tolist() == [3, 6, 9, 10]


def test_history_columns_and_file(tmp_path: Path) -> None:
    history = History()
    with pytest.raises(InputError, match="nothing has been measured"):
        history.last()
    history.append(0, {"regions/count": 1 / 3})
    history.append(5, {"regions/count": 2.0, "regions/new": 7.0})
    assert list(history) == list(history.keys()) == ["step", "regions/count", "regions/new"]
    assert (len(history), history.last_step) == (2, 5)
    assert np.array_equal(history["regions/new"], [np.nan, 7.0], equal_nan=True)
    assert history.last() == {"regions/count": 2.0, "regions/new": 7.0}
    assert {name: column.dtype for name, column in history.to_dict().items()} == {
        "step": np.int64, "regions/count": np.float64, "regions/new": np.float64,
    }  # fmt: skip
    history.write(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 5]
    assert float(rows[0]["regions/count"]) == 1 / 3
    with pytest.raises(InputError, match="no column 'regions/area'"):
        history["regions/area"]
    with pytest.raises(InputError, match=r"\.csv"):
        history.write(tmp_path / "history.txt")
    assert os.listdir(tmp_path) == ["history.csv"]  # noqa: PTH208


def test_plot(tmp_path: Path) -> None:
    data = torch.randn(5, 4)
    monitor = RegionMonitor(mlp([4, 6, 6, 2]), data, slices=2, every=1, probe=data)
    with pytest.raises(InputError, match="nothing has been measured"):
        monitor.plot()
    for _ in range(3):
        monitor.step()
        train(monitor.model, (4,))
    figure = monitor.plot(tmp_path / "curves.png")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert {
        "regions a slice",
        "regions by the first k layers",
        "local complexity",
        "effective rank of features",
    } <= set(titles)
    (curve,) = figure.axes[titles.index("regions a slice")].lines
    assert np.array_equal(curve.get_xdata(), [1, 2, 3])
    assert np.array_equal(curve.get_ydata(), monitor.history["regions/count"])
    with Image.open(tmp_path / "curves.png") as image:
        assert min(image.size) > 500
    with pytest.raises(InputError, match=r"suffix|file"):
        monitor.plot(tmp_path / "curves.bmp")


def _watched_run(module: nn.Module, monitor: RegionMonitor, steps: range) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    with monitor.attach(optimizer):
        for step in steps:
            optimizer.zero_grad()
            batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            module(batch).square().mean().backward()
            optimizer.step()


@pytest.mark.parametrize("engine", ["exact", "grid"])
def test_a_resumed_run_has_the_same_history(engine: str) -> None:
    torch.manual_seed(9)
    first, data = mlp([6, 10, 10, 3]), torch.randn(20, 6)
    second = copy.deepcopy(first)
    options: dict[str, Any] = {"slices": 3, "res": 16, "engine": engine, "probe": data[5:], "on_error": "raise"}
    whole = RegionMonitor(first, data[:5], every=2, **options)
    _watched_run(first, whole, range(12))
    part = RegionMonitor(second, data[:5], every=2, **options)
    _watched_run(second, part, range(5))
    file = io.BytesIO()
    torch.save({"model": second.state_dict(), "monitor": part.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    third = mlp([6, 10, 10, 3])
    third.load_state_dict(saved["model"])
    # Other anchors, settings and seed: those of the state count.
    resumed = RegionMonitor(third, torch.randn(4, 6), every=7, seed=3, half_width=9.0, **{**options, "slices": 2})
    resumed.load_state_dict(saved["monitor"])
    _watched_run(third, resumed, range(5, 12))
    assert resumed.history.columns == whole.history.columns
    for name in whole.history:
        assert np.array_equal(resumed.history[name], whole.history[name], equal_nan=True), name
    assert resumed.history["step"].tolist() == [2, 4, 6, 8, 10, 12]
    assert str(resumed) == str(whole)


def test_states_that_do_not_fit() -> None:
    data = torch.randn(5, 4)
    monitor = RegionMonitor(mlp([4, 6, 2]), data, slices=1, probe=data)
    state = monitor.state_dict()
    with pytest.raises(InputError, match=r"another structure.*0.weight: parameter 6x4.*0.weight: parameter 7x4"):
        RegionMonitor(mlp([4, 7, 2]), data, slices=1, probe=data).load_state_dict(state)
    with pytest.raises(InputError, match="another probe batch"):
        RegionMonitor(mlp([4, 6, 2]), data, slices=1, probe=data + 1).load_state_dict(state)
    with pytest.raises(InputError, match="version"):
        monitor.load_state_dict({**state, "version": 99})


def test_no_result_depends_on_the_number_of_threads() -> None:
    torch.manual_seed(10)
    module, data = mlp([6, 40, 40, 3]), torch.randn(20, 6)
    records = [RegionMonitor(module, data, threads=threads, on_error="raise").measure(0) for threads in (1, 2, 3)]
    assert records[0] == records[1] == records[2]
    assert records[0] is not None
    assert records[0]["regions/count"] > 10


def test_a_max_pool_is_measured_exactly() -> None:
    torch.manual_seed(11)
    data = torch.randn(6, 1, 6, 6)
    monitor = RegionMonitor(pooled(), data, slices=3, on_error="raise")
    assert any(isinstance(stage.breakpoint, Maximum) for stage in monitor._live.current().program.stages)
    record = monitor.measure(0)
    assert record is not None
    network = rg.load_network(monitor.model, input_shape=(1, 6, 6))
    _assert_record_is_that_of_exact(record, network, monitor.slices)


def test_a_point_that_no_decision_can_reach() -> None:
    """Windows of one entry each, beside padding: nothing ever changes."""
    program = rg.load_network(nn.MaxPool1d(2, 2, padding=1), input_shape=(9, 2)).program
    points = torch.randn(3, 18, dtype=torch.float64)
    found = near_boundary(program, points, torch.eye(18, dtype=torch.float64), 0.1, Activity())
    assert np.isinf(found.distance).all()
    assert not found.local_complexity.any()
