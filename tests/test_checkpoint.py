"""Checkpoints: every format to the same network, nothing unsafe without permission, one clear sentence a failure."""

from __future__ import annotations

import io
import itertools
import logging
import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from regiongrid.errors import InputError, UnsafeCheckpointError
from regiongrid.network.checkpoint import (
    check_finite,
    infer_mlp,
    load_checkpoint,
    load_module,
    make_model,
    read_torch_file,
    unwrap,
)


def mlp(*widths: int, bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        parts += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


class Named(nn.Module):
    """An MLP whose layers have names, with a batch norm so that there are buffers."""

    def __init__(self, inputs: int = 3, hidden: int = 5, outputs: int = 2, normalise: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.norm = nn.BatchNorm1d(hidden) if normalise else nn.Identity()
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.norm(self.first(x))))
        return out


def named(seed: int = 0, **options: Any) -> Named:
    torch.manual_seed(seed)
    return Named(**options).eval()


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def assert_same_function(a: nn.Module, b: nn.Module, inputs: int, dtype: torch.dtype = torch.float32) -> None:
    x = torch.randn(7, inputs, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)


def saved(tmp_path: Path, contents: Any, name: str = "model.pt", **options: Any) -> Path:
    torch.save(contents, tmp_path / name, **options)
    return tmp_path / name


class TestInferredMlp:
    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_state_dict(self, tmp_path: Path, bias: bool, legacy: bool) -> None:
        net = mlp(4, 6, 5, 3, bias=bias)
        path = saved(tmp_path, net.state_dict(), _use_new_zipfile_serialization=not legacy)
        loaded = load_checkpoint(path)
        assert_same_function(loaded.module, net, 4)
        assert not loaded.module.training
        assert loaded.format == "state_dict"
        assert loaded.source == path
        assert loaded.notes == (
            "MLP 4-6-5-3 read off the weight shapes (0, 2, 4); "
            "ReLU between the layers is assumed, a state_dict does not name activations",
        )

    @given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.booleans())
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_any_widths(self, widths: list[int], bias: bool) -> None:
        net = mlp(*widths, bias=bias)
        module, note = infer_mlp(net.state_dict())
        assert_same_function(module, net, widths[0])
        assert f"MLP {'-'.join(map(str, widths))} " in note

    def test_one_layer_saved_alone(self, tmp_path: Path) -> None:
        layer = nn.Linear(3, 2)
        module = load_module(saved(tmp_path, layer.state_dict()))
        assert_same_function(module, layer, 3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_weights_as_stored(self, tmp_path: Path, dtype: torch.dtype) -> None:
        net = mlp(3, 4, 2).to(dtype)
        module = load_module(saved(tmp_path, net.state_dict()))
        assert {parameter.dtype for parameter in module.parameters()} == {dtype}
        assert_same_function(module, net, 3, dtype)

    def test_file_order_wins_over_names(self) -> None:
        layers = OrderedDict([("z", nn.Linear(3, 4)), ("relu", nn.ReLU()), ("a", nn.Linear(4, 3))])
        net = nn.Sequential(layers)
        module, note = infer_mlp(net.state_dict())
        assert_same_function(module, net, 3)
        assert "(z, a)" in note

    def test_natural_order_of_names_where_file_order_does_not_chain(self) -> None:
        net = mlp(2, 3, 3, 3, 3, 3, 5)
        state = net.state_dict()
        shuffled = {name: state[name] for name in sorted(state)}  # 10.weight before 2.weight
        module, note = infer_mlp(shuffled)
        assert_same_function(module, net, 2)
        assert "(0, 2, 4, 6 and 2 more)" in note

    def test_order_of_a_safetensors_file_means_nothing(self, tmp_path: Path) -> None:
        """All layers are square, so the alphabetical order of the file chains too, but is wrong."""
        net = mlp(3, 3, 3, 3, 3, 3, 3)
        save_file(net.state_dict(), tmp_path / "model.safetensors")
        assert_same_function(load_module(tmp_path / "model.safetensors"), net, 3)

    @pytest.mark.parametrize(
        ("state", "found"),
        [
            (
                {"conv.weight": torch.zeros(6, 3, 5, 5), "fc.weight": torch.zeros(2, 6)},
                r"besides matrices it holds conv.weight \[6, 3, 5, 5\]",
            ),
            (named().state_dict(), r"holds norm.weight \[5\], norm.bias \[5\], norm.running_mean \[5\].* and 1 more"),
            ({"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(3)}, r"holds fc.bias \[3\]"),
            ({"fc.weight": torch.zeros(2, 3), "gc.bias": torch.zeros(2)}, r"holds gc.bias \[2\]"),
            ({"fc.weight": torch.zeros(2, 0)}, r"it holds fc.weight \[2, 0\]"),
            ({"fc.weight": torch.zeros(2, 3, dtype=torch.int64)}, r"it holds fc.weight \[2, 3\] of torch.int64"),
            ({"fc.weight": torch.zeros(2, 3), "epoch": 3}, r"holds epoch \(int\)"),
            (
                {"a.weight": torch.zeros(4, 3), "b.weight": torch.zeros(2, 5)},
                r"a.weight \[4, 3\] gives 4 values, but b.weight \[2, 5\] takes 5",
            ),
        ],
        ids=["conv", "batch norm", "bias shape", "lone bias", "empty", "integers", "number", "no chain"],
    )
    def test_anything_else_asks_for_a_model(self, tmp_path: Path, state: dict[str, Any], found: str) -> None:
        path = saved(tmp_path, state)
        with pytest.raises(InputError, match=found) as caught:
            load_module(path)
        assert str(path) in str(caught.value)
        assert "--model pkg.mod:factory" in str(caught.value)
        assert "--model-arg key=value" in str(caught.value)


MODEL_FILE = """
import torch
from torch import nn
from beside import HIDDEN

class Net(nn.Module):
    def __init__(self, inputs=3, widths=(HIDDEN,), activation="relu"):
        super().__init__()
        assert activation == "relu"
        sizes = [inputs, *widths, 2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    @classmethod
    def wide(cls):
        return cls(widths=(9,))

def not_a_module():
    return 3

number = 5
"""


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "nets.py").write_text(MODEL_FILE)
    (folder / "beside.py").write_text("HIDDEN = 4\n")
    for name in ("beside", "nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield folder / "nets.py"
    for name in ("beside", "nets"):
        sys.modules.pop(name, None)


class TestFactories:
    def test_file(self, tmp_path: Path, model_file: Path) -> None:
        net = make_model(f"{model_file}:Net")
        path = saved(tmp_path, net.state_dict())
        before = list(sys.path)
        assert_same_function(load_module(path, model=f"{model_file}:Net"), net, 3)
        assert sys.path == before

    def test_module_in_the_working_folder(self, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(model_file.parent)
        assert make_model("nets:Net").layers[0].out_features == 4  # type: ignore[index,union-attr]
        assert make_model("nets:Net.wide").layers[0].out_features == 9  # type: ignore[index,union-attr]

    def test_installed_modules_are_not_shadowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "wave.py").write_text("raise SystemExit('shadowed')")
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "wave", raising=False)
        with pytest.raises(InputError, match=r"wave \(.*wave.py\) has no 'Net'") as caught:
            make_model("wave:Net")
        assert str(tmp_path) not in str(caught.value)

    def test_arguments_are_literals_or_text(self) -> None:
        seen: dict[str, Any] = {}

        def factory(**options: Any) -> nn.Module:
            seen.update(options)
            return nn.Identity()

        given_as_text = {"a": "[1, 2]", "b": "0.5", "c": "None", "d": "relu", "e": "'3'", "f": "os.sep"}
        make_model(factory, {**given_as_text, "g": 7})
        assert seen == {"a": [1, 2], "b": 0.5, "c": None, "d": "relu", "e": "3", "f": "os.sep", "g": 7}

    def test_arguments_reach_the_factory(self, tmp_path: Path, model_file: Path) -> None:
        net = make_model(f"{model_file}:Net", {"widths": "[6, 7]", "inputs": "5"})
        path = saved(tmp_path, net.state_dict())
        loaded = load_module(path, model=f"{model_file}:Net", model_args={"widths": "[6, 7]", "inputs": "5"})
        assert_same_function(loaded, net, 5)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("nets.Net", "model must be pkg.mod:factory or path/to/file.py:factory, got 'nets.Net'"),
            (":Net", "model must be pkg.mod:factory"),
            ("no_such_package.nets:Net", "importing no_such_package.nets failed: ModuleNotFoundError"),
            (
                "no/such/file.py:Net",
                "importing no/such/file.py failed: FileNotFoundError: there is no file no/such/file.py",
            ),
            ("{file}:Net.narrow", "has no 'Net.narrow'"),
            ("{file}:number", "number must be a class or a function, it is a int"),
            ("{file}:not_a_module", "must return a torch.nn.Module, it returned a int"),
        ],
    )
    def test_bad_factories(self, model_file: Path, model: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            make_model(model.format(file=model_file))

    def test_a_factory_that_fails(self, model_file: Path) -> None:
        with pytest.raises(InputError, match=r"Net\(inputs='three'\) failed: TypeError"):
            make_model(f"{model_file}:Net", {"inputs": "three"})

    def test_a_file_that_fails(self, tmp_path: Path) -> None:
        (tmp_path / "train.py").write_text("import sys\nsys.exit('usage: train.py DATA')\n")
        with pytest.raises(InputError, match=r"failed: SystemExit: usage: train.py DATA"):
            make_model(f"{tmp_path / 'train.py'}:Net")
        assert "_regiongrid_model_train" not in sys.modules

    def test_a_module_is_no_factory(self) -> None:
        with pytest.raises(InputError, match=r"must be a factory .* got a module itself"):
            make_model(nn.Linear(2, 2))

    def test_arguments_without_a_model(self, tmp_path: Path) -> None:
        path = saved(tmp_path, mlp(2, 3).state_dict())
        with pytest.raises(
            InputError, match=r"model arguments \['width'\] need a model: name the architecture: --model"
        ):
            load_module(path, model_args={"width": "3"})

    def test_batch_norm_and_eval_mode(self, tmp_path: Path) -> None:
        net = named()
        net.train()(torch.randn(20, 3))
        net.eval()
        module = load_module(saved(tmp_path, net.state_dict()), model=Named)
        assert not any(part.training for part in module.modules())
        assert_same_function(module, net, 3)

    def test_wider_weights_are_not_rounded(self, tmp_path: Path) -> None:
        net = named(normalise=False).double()
        module = load_module(saved(tmp_path, net.state_dict()), model=Named, model_args={"normalise": False})
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float64}
        assert_same_function(module, net, 3, torch.float64)

    def test_tied_weights_stay_tied(self, tmp_path: Path) -> None:
        def tied() -> nn.Module:
            net = mlp(3, 3, 3)
            net[2].weight = net[0].weight
            return net

        net = tied().double()
        module = load_module(saved(tmp_path, net.state_dict()), model=tied)
        assert module[2].weight is module[0].weight  # type: ignore[index]
        assert_same_function(module, net, 3, torch.float64)

    def test_lazy_modules(self, tmp_path: Path) -> None:
        net = mlp(3, 4, 2)
        module = load_module(
            saved(tmp_path, net.state_dict()),
            model=lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2)),
        )
        assert_same_function(module, net, 3)

    def test_safetensors(self, tmp_path: Path) -> None:
        net = named()
        save_file(net.state_dict(), tmp_path / "model.safetensors")
        loaded = load_checkpoint(tmp_path / "model.safetensors", model=Named)
        assert_same_function(loaded.module, net, 3)
        assert loaded.format == "safetensors"

    def test_misfits_in_one_error(self, tmp_path: Path) -> None:
        state = named(hidden=6).state_dict()
        state["extra.weight"] = torch.zeros(1)
        del state["last.bias"]
        with pytest.raises(InputError) as caught:
            load_module(saved(tmp_path, state), model=Named)
        message = str(caught.value)
        assert "does not fit the model made by Named" in message
        assert "missing keys: last.bias;" in message
        assert "unexpected keys: extra.weight;" in message
        assert "wrong shapes: first.weight is [6, 3] in the file, [5, 3] in the model, " in message
        assert message.count(" in the file, ") == 4
        assert "and 3 more; check --model-arg" in message

    def test_values_that_are_no_tensors(self, tmp_path: Path) -> None:
        state = {**named(normalise=False).state_dict(), "first.bias": 3.0}
        with pytest.raises(InputError, match=r"does not fit the model made by Named: .*first.bias"):
            load_module(saved(tmp_path, state), model=Named, model_args={"normalise": False})

    def test_meta_device(self, tmp_path: Path) -> None:
        def meta() -> nn.Module:
            net = mlp(2, 3)
            net.register_buffer("scale", torch.ones(2, device="meta"), persistent=False)
            return net

        with pytest.raises(
            InputError, match=r"model factory .*meta must make real tensors, it made some on the meta device"
        ):
            load_module(saved(tmp_path, mlp(2, 3).state_dict()), model=meta)


class TestPrefixes:
    @pytest.mark.parametrize(
        ("prefix", "removed"),
        [
            ("module.", "module."),
            ("_orig_mod.", "_orig_mod."),
            ("module._orig_mod.", "_orig_mod.module."),
            ("_orig_mod.module.", "_orig_mod.module."),
            ("model.", "model."),
            ("net.backbone.", "net.backbone."),
            ("", ""),
        ],
    )
    def test_stripped_where_needed(self, tmp_path: Path, prefix: str, removed: str) -> None:
        net = named()
        state = {prefix + name: value for name, value in net.state_dict().items()}
        loaded = load_checkpoint(saved(tmp_path, state), model=Named)
        assert_same_function(loaded.module, net, 3)
        assert loaded.notes == ((f"prefix {removed!r} stripped from the weight names",) if removed else ())

    def test_kept_where_the_model_has_it(self, tmp_path: Path) -> None:
        def wrapped() -> nn.Module:
            outer = nn.Module()
            outer.module = named()
            return outer

        path = saved(tmp_path, wrapped().state_dict())
        assert load_checkpoint(path, model=wrapped).notes == ()

    def test_part_of_the_prefix_kept(self, tmp_path: Path) -> None:
        def wrapped() -> nn.Module:
            outer = nn.Module()
            outer.encoder = named()
            return outer

        state = {f"module.{name}": value for name, value in wrapped().state_dict().items()}
        loaded = load_checkpoint(saved(tmp_path, state), model=wrapped)
        assert loaded.notes == ("prefix 'module.' stripped from the weight names",)

    def test_one_compiled_part(self, tmp_path: Path) -> None:
        net = named(normalise=False)
        state = {name.replace("last.", "last._orig_mod."): value for name, value in net.state_dict().items()}
        module = load_module(saved(tmp_path, state), model=Named, model_args={"normalise": False})
        assert_same_function(module, net, 3)

    @pytest.mark.parametrize("model", [None, named])
    def test_averaged_model(self, tmp_path: Path, model: Any) -> None:
        net = mlp(3, 4, 2) if model is None else model()
        averaged = torch.optim.swa_utils.AveragedModel(net)
        module = load_module(saved(tmp_path, averaged.state_dict()), model=model)
        assert_same_function(module, net, 3)

    def test_mlp_with_a_prefix(self, tmp_path: Path) -> None:
        net = mlp(3, 4, 2)
        state = {f"module.{name}": value for name, value in net.state_dict().items()}
        assert_same_function(load_module(saved(tmp_path, state)), net, 3)


class TestTrainingCheckpoints:
    plain, average = mlp(3, 4, 2, seed=1), mlp(3, 4, 2, seed=2)

    def extras(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.plain.parameters())
        self.plain(torch.zeros(1, 3)).sum().backward()
        optimizer.step()
        return {"epoch": 3, "optimizer": optimizer.state_dict(), "loss": torch.tensor(0.5), "config": {"lr": 0.1}}

    @pytest.mark.parametrize(
        "key",
        [
            "state_dict",
            "model_state_dict",
            "model",
            "net",
            "network",
            "module",
            "params",
            "weights",
            "ema",
            "model_ema",
        ],
    )
    def test_known_keys(self, tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="regiongrid")
        path = saved(tmp_path, {**self.extras(), key: self.plain.state_dict()})
        loaded = load_checkpoint(path)
        assert_same_function(loaded.module, self.plain, 3)
        assert loaded.notes[0] == f"weights taken from key {key!r}"
        assert f"weights taken from key {key!r}" in caplog.text

    @pytest.mark.parametrize("average_key", ["ema", "ema_state_dict", "model_ema", "state_dict_ema"])
    def test_plain_weights_before_averages(self, tmp_path: Path, average_key: str) -> None:
        path = saved(tmp_path, {average_key: self.average.state_dict(), "model": self.plain.state_dict()})
        loaded = load_checkpoint(path)
        assert_same_function(loaded.module, self.plain, 3)
        assert loaded.notes[0] == f"weights taken from key 'model' (not {average_key}; choose with --weights-key)"
        chosen = load_checkpoint(path, weights_key=average_key)
        assert_same_function(chosen.module, self.average, 3)
        assert chosen.notes[0] == f"weights taken from key {average_key!r}, as asked"

    def test_entries_inside_entries(self, tmp_path: Path) -> None:
        contents = {"model": {"state_dict": self.plain.state_dict()}, "ema": {"shadow": self.average.state_dict()}}
        path = saved(tmp_path, contents)
        assert_same_function(load_module(path), self.plain, 3)
        assert_same_function(load_module(path, weights_key="ema"), self.average, 3)

    def test_an_unknown_key_that_is_the_only_one(self, tmp_path: Path) -> None:
        loaded = load_checkpoint(saved(tmp_path, {**self.extras(), "classifier": self.plain.state_dict()}))
        assert_same_function(loaded.module, self.plain, 3)
        assert loaded.notes[0] == "weights taken from key 'classifier'"

    def test_several_unknown_keys(self, tmp_path: Path) -> None:
        contents = {"generator": self.plain.state_dict(), "discriminator": self.average.state_dict(), "epoch": 1}
        path = saved(tmp_path, contents)
        with pytest.raises(
            InputError, match=r"several sets of weights, under 'generator', 'discriminator'; choose one"
        ):
            load_module(path)
        assert_same_function(load_module(path, weights_key="discriminator"), self.average, 3)

    def test_wrong_key(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"model": self.plain.state_dict(), "epoch": 1})
        with pytest.raises(InputError, match=r"no weights under the key 'ema'; weights are under model"):
            load_module(path, weights_key="ema")
        with pytest.raises(InputError, match=r"no weights under the key 'epoch'"):
            load_module(path, weights_key="epoch")
        bare = saved(tmp_path, self.plain.state_dict())
        with pytest.raises(InputError, match=r"no weights under the key 'ema'; it has no such keys"):
            load_module(bare, weights_key="ema")

    @pytest.mark.parametrize(
        ("contents", "found"),
        [
            (torch.zeros(3, 2), r"holds no weights: one tensor of shape \[3, 2\]"),
            ({"epoch": 3, "lr": 0.1}, "holds no weights: a dict with 'epoch': int, 'lr': float"),
            ({}, "holds no weights: an empty mapping"),
            ([1, 2], "holds no weights: a builtins.list"),
            ({"model": {"encoder": {"w": torch.zeros(1)}}}, "holds no weights: a dict with 'model': dict"),
        ],
    )
    def test_no_weights(self, tmp_path: Path, contents: Any, found: str) -> None:
        with pytest.raises(InputError, match=found):
            load_module(saved(tmp_path, contents))

    def test_unwrap_leaves_a_state_dict_alone(self) -> None:
        state = self.plain.state_dict()
        weights, notes = unwrap(state)
        assert weights is state
        assert notes == []


class TestPickledModules:
    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
    def test_needs_trust(self, tmp_path: Path, legacy: bool) -> None:
        net = mlp(3, 4, 2)
        path = saved(tmp_path, net, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UnsafeCheckpointError) as caught:
            load_module(path)
        message = str(caught.value)
        for name in ("torch.nn.modules.container.Sequential", "torch.nn.modules.linear.Linear", "activation.ReLU"):
            assert name in message
        assert "OrderedDict" not in message
        assert "FloatStorage" not in message
        assert "torch.save(model.state_dict(), 'weights.pt')" in message
        assert "--trust-pickle (trust_pickle=True)" in message
        loaded = load_checkpoint(path, trust_pickle=True)
        assert_same_function(loaded.module, net, 3)
        assert loaded.format == "pickled module"
        assert not loaded.module.training

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"_use_new_zipfile_serialization": False},
            {"pickle_protocol": 4},
            {"pickle_protocol": 4, "_use_new_zipfile_serialization": False},
        ],
        ids=["zip", "legacy", "zip, protocol 4", "legacy, protocol 4"],
    )
    def test_malicious_file_does_not_run(self, tmp_path: Path, options: dict[str, Any]) -> None:
        marker = tmp_path / "marker"
        path = saved(tmp_path, {"state_dict": mlp(2, 2).state_dict(), "extra": Touch(marker)}, **options)
        with pytest.raises(UnsafeCheckpointError, match=r"not run by default: .*pathlib\.(Path|PosixPath)") as caught:
            load_module(path)
        assert str(path) in str(caught.value)
        assert not marker.exists()
        load_module(path, trust_pickle=True)
        assert marker.exists()

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_plain_pickle_is_never_run(self, tmp_path: Path, protocol: int) -> None:
        marker = tmp_path / "marker"
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({"w": Touch(marker)}, protocol=protocol))
        for trust in (False, True):
            with pytest.raises(InputError, match=r"is (a plain Python pickle, not made by torch.save|not a PyTorch)"):
                load_module(path, trust_pickle=trust)
        assert not marker.exists()

    def test_state_dict_of_a_newer_protocol(self, tmp_path: Path) -> None:
        net = mlp(2, 3, 2)
        path = saved(tmp_path, dict(net.state_dict()), pickle_protocol=4)
        with pytest.raises(UnsafeCheckpointError, match=r"pickle instructions that weights_only does not know"):
            load_module(path)
        assert_same_function(load_module(path, trust_pickle=True), net, 2)

    def test_trust_is_logged_and_not_used_without_need(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        load_module(saved(tmp_path, mlp(2, 2).state_dict()), trust_pickle=True)
        assert "pickled code" not in caplog.text
        load_module(saved(tmp_path, mlp(2, 2)), trust_pickle=True)
        assert "running the pickled code in this file, as permitted: torch.nn.modules" in caplog.text

    def test_a_module_inside_a_training_checkpoint(self, tmp_path: Path) -> None:
        net = mlp(3, 4, 2)
        loaded = load_checkpoint(saved(tmp_path, {"epoch": 2, "model": net}), trust_pickle=True)
        assert_same_function(loaded.module, net, 3)
        assert loaded.notes == ("weights taken from key 'model'",)

    def test_its_weights_can_fill_a_factory(self, tmp_path: Path) -> None:
        net = mlp(3, 4, 2)
        module = load_module(saved(tmp_path, net), model=lambda: mlp(3, 4, 2, seed=5), trust_pickle=True)
        assert_same_function(module, net, 3)

    def test_wrappers_are_taken_off(self, tmp_path: Path) -> None:
        net = mlp(3, 4, 2)
        module = load_module(saved(tmp_path, nn.DataParallel(net)), trust_pickle=True)
        assert isinstance(module, nn.Sequential)
        assert_same_function(module, net, 3)

    def test_class_that_cannot_be_imported(self, tmp_path: Path, model_file: Path, monkeypatch: Any) -> None:
        monkeypatch.syspath_prepend(model_file.parent)
        path = saved(tmp_path, make_model("nets:Net"))
        monkeypatch.undo()
        for name in ("beside", "nets"):
            sys.modules.pop(name)
        with pytest.raises(InputError, match=r"needs code that cannot be imported here .*No module named 'nets'"):
            load_module(path, trust_pickle=True)

    def test_numpy_arrays(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"fc.weight": np.zeros((2, 3))})
        with pytest.raises(
            UnsafeCheckpointError, match=r"the file holds NumPy arrays: convert them with torch.from_numpy"
        ):
            load_module(path)
        with pytest.raises(InputError, match=r"holds no weights: a dict with 'fc.weight': ndarray"):
            load_module(path, trust_pickle=True)


class TestExported:
    def export(self, path: Path) -> nn.Module:
        net = named()
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(net, (torch.zeros(4, 3),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
        return net

    @pytest.mark.parametrize("name", ["model.pt2", "model.pt"])
    def test_needs_trust(self, tmp_path: Path, name: str) -> None:
        net = self.export(tmp_path / "model.pt2")
        path = (tmp_path / "model.pt2").rename(tmp_path / name)
        with pytest.raises(UnsafeCheckpointError, match=r"torch.export.load can run code .*--trust-pickle"):
            load_module(path)
        loaded = load_checkpoint(path, trust_pickle=True)
        assert_same_function(loaded.module, net, 3)
        assert loaded.format == "torch.export"
        assert "eval or train mode" in loaded.notes[0]

    def test_malicious_archive_does_not_run(self, tmp_path: Path) -> None:
        """torch.export.load falls back to unrestricted unpickling for the example inputs; hence the permission."""
        self.export(tmp_path / "good.pt2")
        marker = tmp_path / "marker"
        inputs = io.BytesIO()
        torch.save((Touch(marker),), inputs)
        replace_member(tmp_path / "good.pt2", tmp_path / "evil.pt2", "data/sample_inputs/model.pt", inputs.getvalue())
        with pytest.raises(UnsafeCheckpointError, match=r"torch.export archive"):
            load_module(tmp_path / "evil.pt2")
        assert not marker.exists()

    def test_it_is_its_own_model(self, tmp_path: Path) -> None:
        self.export(tmp_path / "model.pt2")
        with pytest.raises(InputError, match=r"which is its own model; leave out --model"):
            load_module(tmp_path / "model.pt2", model=Named, trust_pickle=True)

    def test_damaged(self, tmp_path: Path) -> None:
        self.export(tmp_path / "good.pt2")
        replace_member(tmp_path / "good.pt2", tmp_path / "bad.pt2", "models/model.json", b"{}")
        with pytest.raises(InputError, match=r"cannot be read by torch.export.load of torch .*export it again"):
            load_module(tmp_path / "bad.pt2", trust_pickle=True)


def replace_member(source: Path, target: Path, member: str, contents: bytes) -> None:
    """Copy an archive of torch with one member exchanged, in torch's own zip dialect."""
    writer = torch._C.PyTorchFileWriter(str(target))
    replaced = False
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            record = name.partition("/")[2]
            if record.startswith(".data/") or record == "byteorder":  # the writer adds these itself
                continue
            data = contents if record == member else archive.read(name)
            replaced |= record == member
            writer.write_record(record, data, len(data))
    writer.write_end_of_file()
    assert replaced


class TestFinite:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_parameters(self, tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
        state = {name: value.to(dtype) for name, value in mlp(3, 4, 2).state_dict().items()}
        state["2.weight"][1, 2:] = bad
        with pytest.raises(
            InputError, match=r"model.pt: parameter 2.weight of shape \[2, 4\] has 2 NaN or infinite entries of 8"
        ):
            load_module(saved(tmp_path, state))

    def test_buffers(self, tmp_path: Path) -> None:
        state = named().state_dict()
        state["norm.running_var"][3] = float("inf")
        with pytest.raises(
            InputError, match=r"buffer norm.running_var of shape \[5\] has 1 NaN or infinite entries of 5"
        ):
            load_module(saved(tmp_path, state), model=Named)

    def test_other_types(self) -> None:
        module = nn.Module()
        module.register_buffer("count", torch.tensor(3))
        module.register_buffer("small", torch.ones(2).to(torch.float8_e5m2))
        module.register_buffer("sparse", torch.eye(3).to_sparse())
        check_finite(module)
        module.register_buffer("small", torch.tensor([1.0, float("inf")]).to(torch.float8_e5m2))
        with pytest.raises(InputError, match=r"buffer small of shape .* has 1 NaN"):
            check_finite(module)

    def test_meta_and_lazy(self) -> None:
        with pytest.raises(InputError, match=r"parameter weight has no data"):
            check_finite(nn.Linear(2, 2, device="meta"))
        with pytest.raises(InputError, match=r"parameter weight has no data"):
            check_finite(nn.LazyLinear(2))


class TestUnreadableFiles:
    @pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
    def test_truncated(self, tmp_path: Path, form: str) -> None:
        state = mlp(3, 4, 2).state_dict()
        path = tmp_path / "whole.bin"
        if form == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
        whole = path.read_bytes()
        cut = tmp_path / ("cut.safetensors" if form == "safetensors" else "cut.pt")
        lengths = sorted({0, 1, 2, 3, 7, 8, 9, 40, *range(0, len(whole), len(whole) // 40), len(whole) - 1})
        for length in lengths:
            cut.write_bytes(whole[:length])
            with pytest.raises(InputError) as caught:
                load_module(cut)
            message = str(caught.value)
            assert message.startswith(f"checkpoint {cut} ")
            assert "\n" not in message
            assert not isinstance(caught.value, UnsafeCheckpointError)

    @pytest.mark.parametrize(
        ("contents", "message"),
        [
            (b"", r"is empty \(0 bytes\)"),
            (b"hello", r"is not a PyTorch, safetensors or torch.export file \(it starts with b'hello'\)"),
            (b"c\nos\nsystem\n", "is not a PyTorch"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer.*git lfs pull"),
            (b"PK\x03\x04" + b"\0" * 60, "is cut short or damaged: File is not a zip file"),
            (b"\x80\x02]q\x00.", "is a plain Python pickle, not made by torch.save"),
            (b"\x93NUMPY\x01\x00", "is not a PyTorch"),
        ],
        ids=["empty", "text", "opcodes", "git lfs", "zip head", "pickle", "npy"],
    )
    def test_other_files(self, tmp_path: Path, contents: bytes, message: str) -> None:
        (tmp_path / "model.pt").write_bytes(contents)
        with pytest.raises(InputError, match=message) as caught:
            load_module(tmp_path / "model.pt")
        assert str(tmp_path / "model.pt") in str(caught.value)

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"checkpoint .*absent.pt does not exist"):
            load_module(tmp_path / "absent.pt")
        with pytest.raises(InputError, match=r"is a folder; give the file inside it"):
            load_module(tmp_path)

    def test_other_zip(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "model.npz", a=np.zeros(2))
        with pytest.raises(InputError, match=r"is a zip archive but not a checkpoint \(no data.pkl; it holds a.npy\)"):
            load_module(tmp_path / "model.npz")

    def test_not_safetensors(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{'not': 'json' } and more")
        with pytest.raises(InputError, match=r"is not a readable .safetensors file"):
            load_module(tmp_path / "model.safetensors")

    def test_torchscript(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit itself is deprecated
            torch.jit.save(torch.jit.trace(mlp(2, 3, 2), torch.zeros(1, 2)), str(tmp_path / "script.pt"))
        with pytest.raises(InputError) as caught:
            load_module(tmp_path / "script.pt", trust_pickle=True)
        message = str(caught.value)
        assert "is a TorchScript archive" in message
        assert "torch.save(torch.jit.load('script.pt').state_dict(), 'weights.pt')" in message
        assert "--model" in message

    def test_damaged_pickle_in_a_zip(self, tmp_path: Path) -> None:
        path = saved(tmp_path, mlp(2, 2).state_dict())
        whole = path.read_bytes()
        start = whole.index(b"ccollections")
        path.write_bytes(whole[:start] + b"\xff\xff" + whole[start + 2 :])
        with pytest.raises(InputError, match=r"cannot be read: it is cut short or damaged") as caught:
            load_module(path)
        assert not isinstance(caught.value, UnsafeCheckpointError)

    def test_read_torch_file_of_another_kind(self, tmp_path: Path) -> None:
        save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
        with pytest.raises(InputError, match=r"is not a file saved by torch.save but a safetensors file"):
            read_torch_file(tmp_path / "a.safetensors")
