"""Every operator's lowering against the module's own forward, and what cannot be lowered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import ConvNet, mlp
from torch import Tensor, nn
from torch.nn import functional

import regiongrid as rg
from regiongrid.network import lowering
from regiongrid.network.lowering import lower


class Function(nn.Module):
    """A forward that is one expression, behind a linear map so that pre-activations are generic."""

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.shape = shape
        size = int(torch.tensor(shape).prod())
        self.before = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.before(x.flatten(1)).reshape(-1, *self.shape))


def batch_norm(layer: nn.Module) -> nn.Module:
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.3, 3.0)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def relu_then(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if isinstance(function, nn.Module):
        return nn.Sequential(nn.ReLU(), function)
    return lambda x: function(torch.relu(x))


IMAGE, LINE, FLAT, VOLUME = (2, 6, 6), (3, 8), (6,), (2, 4, 4, 4)

BREAKPOINTS = {
    "ReLU": (nn.ReLU(), FLAT),
    "ReLU-inplace": (nn.ReLU(inplace=True), FLAT),
    "LeakyReLU": (nn.LeakyReLU(0.2), FLAT),
    "LeakyReLU-default": (nn.LeakyReLU(), FLAT),
    "PReLU": (nn.PReLU(), FLAT),
    "PReLU-channels": (nn.PReLU(2), IMAGE),
    "RReLU": (nn.RReLU(0.1, 0.5), FLAT),
    "Hardtanh": (nn.Hardtanh(-0.2, 0.4), FLAT),
    "ReLU6": (nn.ReLU6(), FLAT),
    "Threshold": (nn.Threshold(0.1, 0.1), FLAT),
    "Hardsigmoid": (nn.Hardsigmoid(), FLAT),
    "MaxPool1d": (nn.MaxPool1d(3, 2, padding=1), LINE),
    "MaxPool2d": (nn.MaxPool2d(2), IMAGE),
    "MaxPool2d-odd": (nn.MaxPool2d((3, 2), (2, 1), padding=(1, 0), dilation=(1, 2), ceil_mode=True), IMAGE),
    "MaxPool3d": (nn.MaxPool3d(2, 1), VOLUME),
    "AdaptiveMaxPool1d": (nn.AdaptiveMaxPool1d(3), LINE),
    "AdaptiveMaxPool2d": (nn.AdaptiveMaxPool2d((4, 3)), IMAGE),
}
FUNCTIONS = {
    "abs": (torch.abs, FLAT),
    "clamp": (lambda x: x.clamp(-0.3, 0.2), FLAT),
    "clamp-min": (lambda x: x.clamp(min=0.1), FLAT),
    "clamp-max": (lambda x: x.clamp(max=-0.1), FLAT),
    "clamp-crossed": (lambda x: x.clamp(0.5, -0.5), FLAT),
    "clamp-tensor": (lambda x: torch.clamp(x, torch.linspace(-1, 0, 6).to(x), torch.linspace(0, 1, 6).to(x)), FLAT),
    "maximum": (lambda x: torch.maximum(x, 0.5 - x.flip(1)), FLAT),
    "maximum-broadcast": (lambda x: torch.maximum(x, x[:, :1]), FLAT),
    "maximum-constant": (lambda x: torch.maximum(x, torch.full((6,), 0.2).to(x)), FLAT),
    "minimum": (lambda x: torch.minimum(x[:, :3], x[:, 3:]), FLAT),
    "minimum-constant": (lambda x: torch.minimum(torch.full((6,), 0.2).to(x), x), FLAT),
    "amax": (lambda x: x.amax((1, 3)), IMAGE),
    "amin-keepdim": (lambda x: x.amin(2, keepdim=True), IMAGE),
    "max-dim": (lambda x: x.max(1).values, IMAGE),
    "max-pool-of-relu": (relu_then(lambda x: functional.max_pool2d(x, 2)), IMAGE),
    "conv1d": (relu_then(nn.Conv1d(3, 4, 3, stride=2, padding=1)), LINE),
    "conv2d-same": (relu_then(nn.Conv2d(2, 4, 3, padding="same")), IMAGE),
    "conv2d-groups": (relu_then(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), dilation=2, padding=2, groups=2)), IMAGE),
    "conv2d-reflect": (relu_then(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")), IMAGE),
    "conv2d-circular": (relu_then(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")), IMAGE),
    "conv-transpose1d": (relu_then(nn.ConvTranspose1d(3, 2, 3, stride=2)), LINE),
    "conv-transpose2d": (relu_then(nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1)), IMAGE),
    "batch-norm1d": (relu_then(batch_norm(nn.BatchNorm1d(6))), FLAT),
    "batch-norm2d": (relu_then(batch_norm(nn.BatchNorm2d(2))), IMAGE),
    "batch-norm-plain": (relu_then(batch_norm(nn.BatchNorm2d(2, affine=False))), IMAGE),
    "dropout": (relu_then(nn.Dropout(0.5)), FLAT),
    "avg-pool": (relu_then(nn.AvgPool2d(3, 2, padding=1)), IMAGE),
    "adaptive-avg-pool": (relu_then(nn.AdaptiveAvgPool2d((4, 1))), IMAGE),
    "zero-pad": (relu_then(nn.ZeroPad2d((1, 2, 0, 1))), IMAGE),
    "constant-pad": (relu_then(nn.ConstantPad1d(2, 3.5)), LINE),
    "replication-pad": (relu_then(nn.ReplicationPad2d(1)), IMAGE),
    "upsample-nearest": (relu_then(nn.Upsample(scale_factor=2)), IMAGE),
    "upsample-bilinear": (relu_then(nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE),
    "pixel-shuffle": (relu_then(lambda x: functional.pixel_shuffle(torch.cat([x, -x], 1), 2)), IMAGE),
    "flatten-linear": (relu_then(nn.Sequential(nn.Flatten(), nn.Linear(72, 5))), IMAGE),
    "no-bias": (relu_then(nn.Linear(6, 4, bias=False)), FLAT),
    "permute-reshape": (relu_then(lambda x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1, 4).transpose(1, 2)), IMAGE),
    "slice-cat": (relu_then(lambda x: torch.cat([x[:, 1:, ::2], x[:, :1, 1::2]], 1)), IMAGE),
    "stack-unbind": (relu_then(lambda x: torch.stack([2 * part for part in x.unbind(1)], 1).sum(1)), IMAGE),
    "split-chunk": (relu_then(lambda x: x.chunk(2, 1)[0] - x.split([1, 5], 1)[1][:, :3]), FLAT),
    "arithmetic": (relu_then(lambda x: (3 - 2 * x) / 4 + x * torch.linspace(-1, 1, 6).to(x) - 1), FLAT),
    "add-in-place": (relu_then(lambda x: x.add_(1).mul_(2)), FLAT),
    "write-in-place": (relu_then(lambda x: torch.stack([x[:, 0] * 0 + 1, *x.unbind(1)[1:]], 1)), FLAT),
    "mean-sum": (relu_then(lambda x: x.mean((2, 3)) + x.sum((2, 3))), IMAGE),
    "matmul-constant": (relu_then(lambda x: torch.linspace(-1, 1, 36).reshape(6, 6).to(x) @ x), IMAGE),
    "einsum-constant": (relu_then(lambda x: torch.einsum("bchw,hk->bkcw", x, torch.ones(6, 2).to(x))), IMAGE),
    "residual": (lambda x: x + torch.relu(x - 0.1) * 0.5 + torch.relu(x + torch.relu(x)), FLAT),
    "residual-in-place": (lambda x: functional.relu(x, inplace=True) + x, FLAT),
    "roll-flip": (relu_then(lambda x: x.roll(1, 2) + x.flip(3)), IMAGE),
    "cast": (relu_then(lambda x: x.float().to(x.dtype)), FLAT),
}


def compare(module: nn.Module, shape: tuple[int, ...], tolerance: float = 1e-11) -> None:
    module = module.double().eval()
    program = lower(module, shape)
    x = torch.randn(64, *shape, dtype=torch.float64) * 2
    with torch.no_grad():
        expected = torch.cat([module(sample[None].clone()) for sample in x])
    _, output = program.run(x)
    assert output is not None
    assert output.shape == expected.shape
    worst = (output - expected).abs().max()
    assert worst <= tolerance * (1 + expected.abs().max()), f"largest difference {worst}"


@pytest.mark.parametrize("case", BREAKPOINTS)
def test_breakpoint_layer(case: str) -> None:
    layer, shape = BREAKPOINTS[case]
    compare(Function(layer, shape), shape)


@pytest.mark.parametrize("case", FUNCTIONS)
def test_operator(case: str) -> None:
    function, shape = FUNCTIONS[case]
    compare(Function(function, shape), shape, 1e-6 if case == "cast" else 1e-11)


def test_decisions_partition_the_input() -> None:
    """Each unit's decisions really vary over the sample: the comparison above saw every piece."""
    program = lower(Function(nn.Hardtanh(-0.2, 0.4), FLAT), FLAT)
    z = program.run(torch.randn(200, 6, dtype=torch.float64))[0][0]
    bend = program.stages[0].breakpoint
    assert isinstance(bend, rg.network.program.Piecewise)
    assert set(bend.pieces(z).unique().tolist()) == {0, 1, 2}
    assert program.decisions == 12


def test_ties_go_to_the_first_entry_and_zero_is_off() -> None:
    program = lower(nn.Sequential(nn.MaxPool1d(2), nn.ReLU()), (1, 4))
    pool, relu = (stage.breakpoint for stage in program.stages)
    assert pool.winners(torch.tensor([[1.0, 1.0, 0.0, 2.0]])).tolist() == [[0, 1]]
    assert relu.pieces(torch.zeros(1, 2)).tolist() == [[0, 0]]


def test_whole_network_keeps_mode_weights_and_cuts_the_softmax() -> None:
    net = ConvNet()
    net.train()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    program = lower(net, (1, 6, 6))
    assert program.output is None
    assert "softmax" in program.cut
    assert [part.training for part in (net, net.first, net.norm)] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_weights_are_upcast(dtype: torch.dtype) -> None:
    module = mlp([3, 8, 2]).to(dtype)
    program = lower(module, (3,))
    x = torch.randn(16, 3, dtype=torch.float64)
    torch.testing.assert_close(program.run(x)[1], module.double()(x), rtol=1e-12, atol=1e-12)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.after = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.after(self.attention(x, x, x, need_weights=False)[0]))


NOT_AFFINE = {
    "GELU": (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.ReLU()), (4,), "gelu in module '1' (GELU)"),
    "SiLU": (nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.ReLU()), (4,), "silu in module '1' (SiLU)"),
    "Tanh": (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.ReLU()), (4,), "tanh in module '1' (Tanh)"),
    "LayerNorm": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()), (4,), "layer_norm in module '1'"),
    "product": (Function(lambda x: torch.relu(x * x.flip(1)), (4,)), (4,), "mul in the top-level forward"),
    "attention": (Attention(), (3, 4), "attention"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_AFFINE)
def test_operator_that_is_not_piecewise_affine(case: str) -> None:
    module, shape, named = NOT_AFFINE[case]
    with pytest.raises(rg.UnsupportedOperatorError, match="not piecewise affine and feeds relu") as caught:
        lower(module, shape)
    assert named in str(caught.value)


def test_no_breakpoint() -> None:
    with pytest.raises(rg.InputError, match=r"no piecewise-linear breakpoint.*gelu in module '1'"):
        lower(nn.Sequential(nn.Linear(4, 4), nn.GELU()), (4,))


def test_wrong_input_shape() -> None:
    with pytest.raises(rg.InputError, match=r"could not be traced with an input of shape \(1, 5\)"):
        lower(mlp([4, 4, 2]), (5,))


def test_two_inputs() -> None:
    with pytest.raises(rg.InputError, match="could not be traced"):
        lower(nn.Bilinear(3, 3, 2), (3,))


def test_unused_branches_are_left_out() -> None:
    program = lower(Function(lambda x: (torch.relu(x), torch.exp(x))[0], FLAT), FLAT)
    assert program.cut == ""
    assert len(program.stages) == 1


def test_load_network_reads_the_input_shape_off_a_linear_layer() -> None:
    net = rg.load_network(nn.Sequential(nn.Dropout(), mlp([5, 7, 2])))
    assert net.input_shape == (5,)
    assert net.units == 7
    with pytest.raises(rg.InputError, match=r"Conv2d layer; give it, for example --input-shape"):
        rg.load_network(ConvNet())


def test_load_network_names_the_parameter_that_is_not_finite() -> None:
    module = mlp([5, 7, 2])
    module[0].weight.data[2, 3] = torch.nan
    with pytest.raises(rg.InputError, match=r"0\.weight"):
        rg.load_network(module)


def test_discontinuous_threshold_is_noted() -> None:
    net = rg.load_network(nn.Sequential(nn.Linear(3, 3), nn.Threshold(0.1, 20.0)))
    assert "jumps at its threshold" in net.notes[0]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_plain_chains_need_no_tracing_and_give_the_traced_program(bias: bool) -> None:
    shared = nn.ReLU()
    chain = nn.Sequential(
        shared, nn.Sequential(nn.Linear(5, 7, bias=bias), nn.Dropout(), shared), nn.Linear(7, 3, bias=bias), shared
    )
    short = lowering._lower_chain(chain, (5,))
    traced = lowering._Lowering(lowering._export(chain, (5,)), (5,)).program()
    assert short is not None
    x = torch.randn(50, 5, dtype=torch.float64)
    for ours, theirs in zip([*short.run(x)[0], short.run(x)[1]], [*traced.run(x)[0], traced.run(x)[1]]):
        assert torch.equal(ours, theirs)
    assert [stage.label for stage in short.stages] == [stage.label for stage in traced.stages]
    assert [stage.first_decision for stage in short.stages] == [stage.first_decision for stage in traced.stages]


def test_what_is_not_a_plain_chain_is_traced() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    hooked = mlp([4, 5, 2])
    hooked[0].register_forward_hook(lambda module, inputs, output: output + 1)
    weighted = mlp([4, 5, 2])
    nn.utils.parametrizations.weight_norm(weighted[0])
    for module in (nn.Sequential(Doubled(4, 5), nn.ReLU(), nn.Linear(5, 2)), hooked, weighted):
        assert lowering._lower_chain(module, (4,)) is None
        compare(module, (4,))
    assert lowering._lower_chain(mlp([4, 5, 2]), (3, 4)) is None
    assert lowering._lower_chain(mlp([4, 5, 2]), (5,)) is None
