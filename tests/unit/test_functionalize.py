"""`functionalize` alone: what it computes is what the module computes, and nothing of the module changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import blo
from tests.accelerator import Recorder
from tests.strategies import normal

Make = Callable[[], nn.Module]
SEED = 11


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(make: Make, seed: int = 0) -> nn.Module:
    """Return a float64 module with parameters from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed, and a third layer with the encoder's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.again = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(self.encoder(x).tanh())
        return y @ self.encoder.weight


class Noisy(nn.Module):
    """Random numbers by every road that torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        noise = torch.rand_like(x) + torch.randn(x.shape, dtype=x.dtype) + torch.empty_like(x).uniform_()
        return F.gumbel_softmax(F.alpha_dropout(x * noise, 0.3, training=True)) + torch.native_dropout(x, 0.4, True)[0]


class Counter(nn.Module):
    """Replaces its buffer instead of writing to it, and has one that grows."""

    seen: Tensor
    history: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("history", torch.zeros(1))
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.seen.sum()
        self.seen = 0.5 * self.seen + y.mean().reshape(1)
        self.history = torch.cat([self.history, self.seen.detach()])
        return y


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.2, batch_first=True)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 3))


def spectral() -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))
    return nn.Sequential(layer, nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ELU(), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(16, 2)
    )


class Recurrent(nn.Module):
    """An LSTM with dropout between its layers, which happens inside one C++ function."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, num_layers=2, dropout=0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y


class Twice(nn.Module):
    """A linear layer and a batch norm that are known by two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.again, self.last = self.linear, self.norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.again(self.norm(self.linear(x)).tanh()))
        return y


ZOO: dict[str, tuple[Make, tuple[int, ...]]] = {
    "network": (network, (6, 4)),
    "tied": (Tied, (6, 4)),
    "twice": (Twice, (6, 4)),
    "noisy": (Noisy, (6, 4)),
    "counter": (Counter, (6, 4)),
    "attention": (attention, (2, 3, 4)),
    "spectral": (spectral, (6, 4)),
    "convolution": (convolution, (3, 2, 4, 4)),
    "recurrent": (Recurrent, (5, 2, 4)),
}
modules = pytest.mark.parametrize(("make", "shape"), ZOO.values(), ids=ZOO)
#: Without two that torch itself cannot map over: an LSTM, and a spectral norm, which also has no forward mode.
MAPPED = {name: case for name, case in ZOO.items() if name not in ("recurrent", "spectral")}
mapped = pytest.mark.parametrize(("make", "shape"), MAPPED.values(), ids=MAPPED)


def plain(module: nn.Module, parameters: dict[str, Tensor], x: Tensor, seed: int = SEED) -> Tensor:
    """What the module gives when told its parameters and its seed by hand.

    Attention transposes, and then the masks of torch differ inside and outside `vmap`; those inside are meant.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    if isinstance(module, Twice):
        module = copy.deepcopy(module)  # Torch leaves the given tensors in a module that has two names.

    def call(x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(module, {**parameters, **buffers}, (x,))
        return output

    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(seed)
        if isinstance(module, nn.TransformerEncoderLayer):
            return torch.vmap(call, randomness="same")(x[None])[0]
        return call(x)


def square(output: Tensor) -> Tensor:
    """A loss that tells the entries of the output apart."""
    weights = torch.linspace(1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return (weights * (output.square() + output)).mean()


def moved(parameters: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    return {name: (p + 0.1 * randn(*p.shape, seed=seed)).detach() for name, p in parameters.items()}


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Return all that an evaluation must leave alone, tensors as bytes."""
    state: dict[str, Any] = {}
    for name, tensor in (*module.named_parameters(remove_duplicate=False), *module.named_buffers()):
        state[name] = (id(tensor), tensor.detach().numpy().tobytes(), tensor.requires_grad)
        state[f"{name}.grad"] = None if tensor.grad is None else (id(tensor.grad), tensor.grad.numpy().tobytes())
        state[f"{name}.version"] = tensor._version
    for name, part in module.named_modules():
        state[f"{name}.hooks"] = (part.training, list(part._forward_hooks), list(part._forward_pre_hooks))
        state[f"{name}.keys"] = (list(part._parameters), list(part._buffers), list(vars(part)))
    state["random"] = torch.get_rng_state().numpy().tobytes()
    state["attention"] = [
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    ]
    return state


@modules
def test_value_and_gradient_are_those_of_the_module_under_the_seed(make: Make, shape: tuple[int, ...]) -> None:
    module, x = built(make), randn(*shape)
    f = blo.functionalize(module, square, seed=SEED)
    parameters = moved(f.parameters)
    assert abs(f(parameters, x) - square(plain(module, parameters, x))) <= 1e-14
    found = torch.func.grad(f)(parameters, x)
    truth = torch.func.grad(lambda p: square(plain(module, p, x)))(parameters)
    for name in parameters:
        assert truth[name].abs().max() > 0 or name.endswith("k_proj.bias")
        assert (found[name] - truth[name]).abs().max() <= 1e-14


@modules
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, by its jvp
def test_nothing_of_the_module_changes(make: Make, shape: tuple[int, ...], training: bool) -> None:
    module, x = built(make).train(training), randn(*shape)
    for index, parameter in enumerate(module.parameters()):
        parameter.grad = torch.ones_like(parameter) if index % 2 else None
        parameter.requires_grad_(index != 1)
    module.register_forward_hook(lambda part, given, output: output * 2)
    before = snapshot(module)
    f = blo.functionalize(module, square)
    parameters = moved(f.parameters)
    f(parameters, x)
    gradient = torch.func.grad(f)
    gradient(parameters, x)
    if make is not spectral:
        torch.func.jvp(lambda p: gradient(p, x), (parameters,), (parameters,))
    f(f.parameters, x).backward()
    assert all(p.grad is not None for p in f.parameters.values())
    assert snapshot(module) == before


@mapped
def test_nothing_of_the_module_changes_when_an_evaluation_fails(make: Make, shape: tuple[int, ...]) -> None:
    module = built(make)
    before = snapshot(module)

    def fail(output: Tensor) -> Tensor:
        torch.rand(3)
        raise ArithmeticError

    f = blo.functionalize(module, fail, buffers="update-once")
    with pytest.raises(ArithmeticError):
        f(f.parameters, randn(*shape))
    with pytest.raises(ArithmeticError):
        torch.vmap(lambda x: f(f.parameters, x))(randn(2, *shape))
    assert snapshot(module) == before
    assert not torch._C._are_functorch_transforms_active()


@mapped
def test_vmap_over_parameters_is_a_loop(make: Make, shape: tuple[int, ...]) -> None:
    f, x = blo.functionalize(built(make), square), randn(*shape)
    lanes = [moved(f.parameters, seed) for seed in range(3)]
    stacked = {name: torch.stack([lane[name] for lane in lanes]) for name in lanes[0]}
    found = torch.vmap(torch.func.grad(f), in_dims=(0, None))(stacked, x)
    for index, lane in enumerate(lanes):
        for name, slope in torch.func.grad(f)(lane, x).items():
            assert (found[name][index] - slope).abs().max() <= 1e-13


@mapped
def test_vmap_over_inputs_is_a_loop(make: Make, shape: tuple[int, ...]) -> None:
    f, x = blo.functionalize(built(make), square), randn(3, *shape)
    found = torch.vmap(lambda x: f(f.parameters, x))(x)
    assert (found - torch.stack([f(f.parameters, lane) for lane in x])).abs().max() <= 1e-14


def test_grad_of_vmap_and_vmap_of_vmap() -> None:
    f, x = blo.functionalize(built(network), square), randn(2, 6, 4)
    lanes = [moved(f.parameters, seed) for seed in range(3)]
    stacked = {name: torch.stack([lane[name] for lane in lanes]) for name in lanes[0]}

    def total(parameters: dict[str, Tensor]) -> Tensor:
        inner = torch.vmap(f, in_dims=(0, None))
        return torch.vmap(inner, in_dims=(None, 0))(parameters, x).square().sum()

    def loop(parameters: dict[str, Tensor]) -> Tensor:
        lanes = [{name: p[i] for name, p in parameters.items()} for i in range(3)]
        return torch.stack([f(lane, part) for lane in lanes for part in x]).square().sum()

    found, truth = torch.func.grad(total)(stacked), torch.func.grad(loop)(stacked)
    assert all((found[name] - truth[name]).abs().max() <= 1e-14 for name in truth)


def test_vmap_with_different_randomness_keeps_it_and_replays_it() -> None:
    f = blo.functionalize(nn.Dropout(0.5), seed=3)
    lanes = torch.vmap(lambda x: f({}, x), randomness="different")
    x = torch.ones(8, 64)
    assert len({tuple(lane.tolist()) for lane in lanes(x)}) == 8
    assert torch.equal(lanes(x), lanes(x))


def test_vmap_still_refuses_random_operations_outside_the_functional() -> None:
    f = blo.functionalize(nn.Dropout(0.5))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(lambda x: torch.dropout(f({}, x), 0.5, True))(torch.ones(2, 3))


def test_masks_follow_the_seed() -> None:
    module, x = nn.Dropout(0.5), torch.ones(64)

    def mask(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return F.dropout(x, 0.5)

    f = blo.functionalize(module, seed=1)
    assert torch.equal(f({}, x), mask(1))
    assert torch.equal(f({}, x), mask(1))
    f.reseed(2)
    assert torch.equal(f({}, x), mask(2))
    drawn = []
    for _ in range(3):
        f.reseed()
        drawn.append(f({}, x))
    f.reseed(2)
    again = [f({}, x)]
    for _ in range(3):
        f.reseed()
        again.append(f({}, x))
    assert torch.equal(torch.stack(again[1:]), torch.stack(drawn))
    assert len({tuple(row.tolist()) for row in again}) == 4


class Strided(nn.Module):
    """Drops entries of a tensor whose order in memory is not that of its indices."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x.T, 0.5, self.training).T


def test_masks_depend_on_the_shape_alone_also_after_an_evaluation_that_drew_none() -> None:
    module, x = Strided().eval(), torch.ones(5, 7)
    f = blo.functionalize(module, seed=1)
    assert torch.equal(f({}, x), x)
    assert torch.equal(f({}, x), x)
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        mask = F.dropout(torch.ones(7, 5), 0.5).T
    for _ in range(3):
        assert torch.equal(f({}, x), mask)
        assert torch.equal(f({}, x.T.contiguous().T), mask)
        assert torch.equal(torch.vmap(lambda x: f({}, x))(torch.stack([x, x]))[1], mask)


def test_fused_dropout_is_taken_apart() -> None:
    """On accelerators it would draw another mask than `vmap` does, which has no rule for the fused one."""

    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.native_dropout(x, 0.5, self.training)[0]

    module = Fused()
    f, x = blo.functionalize(module), randn(6, 4).requires_grad_()
    with Recorder() as recorder:
        value = f({}, x)
    assert torch.ops.aten.native_dropout.default not in recorder.seen
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert set(slope.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(value, x * slope)
    assert torch.equal(torch.func.grad(lambda x: f({}, x).sum())(x), slope)
    module.eval()
    assert torch.equal(f({}, x), x)


def test_a_generator_gives_the_seeds() -> None:
    x = torch.ones(64)

    def masks(generator: torch.Generator) -> Tensor:
        f = blo.functionalize(nn.Dropout(0.5), seed=generator)
        first = f({}, x)
        f.reseed()
        return torch.stack([first, f({}, x)])

    generator = torch.Generator().manual_seed(5)
    found = masks(generator)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(masks(torch.Generator().manual_seed(5)), found)
    assert not torch.equal(masks(generator), found)  # it has moved on


def test_parameters_are_leaves_of_their_own_tied_once_frozen_never() -> None:
    module = built(Tied)
    module.again.bias.requires_grad_(False)  # type: ignore[union-attr]
    f = blo.functionalize(module)
    assert list(f.parameters) == ["encoder.weight", "encoder.bias"]
    assert all(p.is_leaf and p.requires_grad and type(p) is Tensor for p in f.parameters.values())
    assert f.parameters["encoder.bias"] is f.parameters["encoder.bias"]
    assert f.parameters["encoder.bias"].data_ptr() != module.encoder.bias.data_ptr()  # type: ignore[union-attr]


def test_frozen_parameters_are_used_and_may_be_given() -> None:
    module, x = built(network), randn(6, 4)
    module[0].requires_grad_(False)  # type: ignore[index]
    f = blo.functionalize(module)
    assert "0.weight" not in f.parameters
    own = f(f.parameters, x)
    weight = module.get_parameter("0.weight")
    assert torch.equal(f({**f.parameters, "0.weight": weight}, x), own)
    assert not torch.allclose(f({**f.parameters, "0.weight": 2 * weight + 1}, x), own)


def test_trained_parameters_load_back_into_the_module() -> None:
    module, x = built(Tied), randn(6, 4)
    f = blo.functionalize(module)
    parameters = moved(f.parameters)
    truth = f(parameters, x)
    module.load_state_dict(parameters, strict=False)
    assert torch.equal(module(x), truth)


def test_without_a_loss_the_value_is_the_output_and_several_inputs_are_a_tuple() -> None:
    module = built(lambda: nn.Bilinear(2, 3, 4))
    a, b = randn(5, 2), randn(5, 3)
    f = blo.functionalize(module)
    assert torch.equal(f(f.parameters, (a, b)), module(a, b))
    g = blo.functionalize(module, lambda output, weight, target: (weight * (output - target)).sum())
    weight, target = randn(5, 1), randn(5, 4)
    assert torch.equal(g(g.parameters, (a, b), weight, target), (weight * (module(a, b) - target)).sum())


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


@modules
def test_update_once_moves_the_buffers_as_one_forward_pass(make: Make, shape: tuple[int, ...]) -> None:
    module, twin, x = built(make), built(make), randn(*shape)
    f = blo.functionalize(module, square, buffers="update-once", seed=SEED)
    with torch.random.fork_rng(devices=[]):
        for step in range(3):
            value = f(f.parameters, x + step)
            slopes = torch.func.grad(f)(f.parameters, x + step)
            truth = torch.func.grad(lambda p, x: square(plain(twin, p, x, SEED)))(f.parameters, x + step)
            assert all((slopes[name] - truth[name]).abs().max() <= 1e-14 for name in truth)
            f(f.parameters, x - 1)
            assert abs(value - square(plain(twin, f.parameters, x + step))) <= 1e-14
            torch.manual_seed(SEED)
            twin(x + step)
            for name, buffer in buffers_of(twin).items():
                assert torch.equal(module.get_buffer(name), buffer), name
                assert not module.get_buffer(name).requires_grad
            f.reseed(SEED)


def test_update_once_sees_through_grad_and_refuses_vmap() -> None:
    module, twin, x = built(network), built(network), randn(6, 4)
    f = blo.functionalize(module, square, buffers="update-once")
    outer = torch.func.grad(lambda p: sum(g.sum() for g in torch.func.grad(f)(p, x).values()))
    outer(f.parameters)
    twin(x)
    assert all(torch.equal(module.get_buffer(name), buffer) for name, buffer in buffers_of(twin).items())
    f.reseed()
    before = snapshot(module)
    with pytest.raises(blo.StructureError, match="update_buffers"):
        torch.vmap(lambda x: f(f.parameters, x))(randn(2, 6, 4))
    assert snapshot(module) == before
    f.update_buffers(f.parameters, x)
    torch.vmap(lambda x: f(f.parameters, x))(randn(2, 6, 4))
    twin(x)
    assert all(torch.equal(module.get_buffer(name), buffer) for name, buffer in buffers_of(twin).items())


def test_an_explicit_update_takes_the_place_of_that_by_the_next_evaluation() -> None:
    module, twin, x = built(network), built(network), randn(6, 4)
    f = blo.functionalize(module, square, buffers="update-once")
    f.update_buffers(f.parameters, x)
    f(f.parameters, x + 1)
    twin(x)
    assert all(torch.equal(module.get_buffer(name), buffer) for name, buffer in buffers_of(twin).items())


def test_frozen_buffers_move_when_told_and_are_read_from_the_module() -> None:
    module, twin, x = built(network), built(network), randn(6, 4)
    f = blo.functionalize(module, square)
    for _ in range(2):
        f.update_buffers(f.parameters, x)
        twin(x)
    assert all(torch.equal(module.get_buffer(name), buffer) for name, buffer in buffers_of(twin).items())
    module.eval(), twin.eval()
    assert torch.equal(f(f.parameters, x), square(twin(x)))
    module[1].running_mean.add_(1.0)  # type: ignore[index, union-attr, operator]
    assert not torch.allclose(f(f.parameters, x), square(twin(x)))


def test_constants_among_the_buffers_keep_their_version() -> None:
    class Masked(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.register_buffer("mask", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(x) * self.mask
            return y

    module = built(Masked)
    f = blo.functionalize(module, square, buffers="update-once")
    version = module.mask._version  # type: ignore[union-attr]
    f(f.parameters, randn(6, 4))
    assert module.mask._version == version  # type: ignore[union-attr]
    assert module.norm.running_mean.abs().max() > 0  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_acts_as_on_the_module(dtype: torch.dtype) -> None:
    module, x = built(network).float(), randn(6, 4).float()
    f = blo.functionalize(module, lambda output: output.float().square().mean(), seed=SEED)
    full = f(f.parameters, x)
    with torch.autocast("cpu", dtype):
        output = plain(module, f.parameters, x)
        value = f(f.parameters, x)
        slopes = torch.func.grad(f)(f.parameters, x)
        lanes = torch.vmap(f, in_dims=(None, 0))(f.parameters, torch.stack([x, x + 1]))
        loop = torch.stack([f(f.parameters, x), f(f.parameters, x + 1)])
    assert output.dtype == dtype
    assert torch.equal(value, output.float().square().mean())
    assert not torch.equal(value, full)
    assert (lanes - loop).abs().max() <= torch.finfo(dtype).eps
    value.backward()
    for name, parameter in f.parameters.items():
        assert slopes[name].dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - slopes[name]).abs().max() <= 1e-6


def test_attention_has_second_derivatives_by_default() -> None:
    def attend(z: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(z, z, z)

    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attend(x)

    x = randn(1, 2, 3, 4)
    f = blo.functionalize(Attend(), square)
    found = torch.autograd.functional.hessian(lambda x: f({}, x), x).reshape(24, 24)

    def by_hand(x: Tensor) -> Tensor:
        return square((x @ x.mT / 2).softmax(-1) @ x)

    truth = torch.autograd.functional.hessian(by_hand, x).reshape(24, 24)
    assert (found - truth).abs().max() <= 1e-14
    fused = blo.functionalize(Attend(), square, fused_attention=True)
    assert abs(fused({}, x) - by_hand(x)) <= 1e-14
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.functional.hessian(lambda x: fused({}, x), x)


def test_checkpointed_modules_are_refused_and_checkpointed_calls_are_right() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.body, x, use_reentrant=False)
            return y

    module, x = built(Checkpointed), randn(6, 4)
    f = blo.functionalize(module, square)
    with pytest.raises(RuntimeError, match="checkpoint the call"):
        f(f.parameters, x)
    module = built(network)
    f = blo.functionalize(module, square)
    parameters = {name: p.requires_grad_() for name, p in moved(f.parameters).items()}
    value: Tensor = checkpoint(f, parameters, x, use_reentrant=False)
    found = torch.autograd.grad(value, list(parameters.values()))
    truth = torch.autograd.grad(f(parameters, x), list(parameters.values()))
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))


class Centred(nn.Module):
    """Remembers where inputs lie, from the first batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("center", None)

    def forward(self, x: Tensor) -> Tensor:
        self.center = x.mean(0) if self.center is None else (self.center + x.mean(0)) / 2
        return ((x - self.center) * self.weight).sum()


def test_a_module_that_makes_buffers_as_it_goes_is_refused_until_it_has_them() -> None:
    net, x = nn.Sequential(Centred()), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    f = blo.functionalize(net)
    for call in (f, torch.func.grad(f), lambda parameters, x: f.update_buffers(parameters, x)):
        with pytest.raises(blo.StructureError, match=r"creates \['0\.center'\].*Call the module once"):
            call(f.parameters, x)
        assert net[0].center is None
    net(x)
    for _ in range(2):  # the centre is that of x and 3 x: twice that of x, as the mean of 2 x would have it
        assert f(f.parameters, 3 * x).item() == (3 * x - 2 * x.mean(0)).sum().item()
    assert torch.equal(net[0].center, x.mean(0))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_bad_arguments_are_named() -> None:
    module = built(network)
    f = blo.functionalize(module)
    x = randn(6, 4)
    with pytest.raises(blo.StructureError, match=r"`module`.*function"):
        blo.functionalize(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`buffers`.*'thaw'"):
        blo.functionalize(module, buffers="thaw")  # type: ignore[arg-type]
    with pytest.raises(blo.StructureError, match=r"lazy"):
        blo.functionalize(nn.LazyLinear(3))
    with pytest.raises(blo.StructureError, match=r"DataParallel.*`\.module`"):
        blo.functionalize(nn.Sequential(nn.DataParallel(module)))
    with pytest.raises(blo.StructureError, match=r"torch\.jit"):
        blo.functionalize(torch.jit.trace(nn.Linear(4, 3).double(), x))  # type: ignore[no-untyped-call]
    with pytest.raises(blo.StructureError, match=r"`parameters`.*list"):
        f(list(f.parameters.values()), x)  # type: ignore[arg-type]
    with pytest.raises(blo.StructureError, match=r"lacks \['0.weight'\].*unknown \['weight'\]"):
        f({**{k: v for k, v in f.parameters.items() if k != "0.weight"}, "weight": x}, x)
    with pytest.raises(blo.StructureError, match=r"'0.bias'.*\(5,\).*\(2, 5\).*vmap"):
        f({**f.parameters, "0.bias": torch.zeros(2, 5)}, x)
    with pytest.raises(blo.StructureError, match="loss"):
        f(f.parameters, x, x)


class Scoring(nn.Module):
    """Computes its own loss from keywords, and returns it in an object or a dict."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, rows: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.layer(rows).squeeze(-1)
        loss = None if labels is None else (scores - labels).square().mean()
        found = {"loss": loss, "scores": scores}
        return found if self.kind == "dict" else SimpleNamespace(**found)


@pytest.mark.parametrize("kind", ["dict", "object"])
def test_a_module_that_computes_its_own_loss_solves_to_the_ridge_regression(kind: str) -> None:
    batch = {"rows": normal(1, 9, 3), "labels": normal(2, 9)}
    module = Scoring(kind)
    f = blo.functionalize(module, "loss")
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    lower = blo.LowerProblem(lambda t, z: f(z, **batch) + t * sum(p.square().sum() for p in z.values()))
    z = blo.argmin(lower, theta, f.parameters, gradient=blo.Implicit(blo.Direct()))

    ones = torch.cat([batch["rows"], torch.ones(9, 1).double()], 1)
    matrix = ones.T @ ones / 9 + theta * torch.eye(4).double()
    truth = torch.linalg.solve(matrix, ones.T @ batch["labels"] / 9)
    found = torch.cat([z["layer.weight"].flatten(), z["layer.bias"]])
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-8)
    slopes = [torch.autograd.grad(value.sum(), theta)[0] for value in (found, truth)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-8)


def test_a_module_without_a_loss_of_its_own_is_refused() -> None:
    f = blo.functionalize(Scoring("object"), "loss")
    rows, labels = normal(1, 9, 3), normal(2, 9)
    with pytest.raises(blo.StructureError, match=r"must hold its own loss as a tensor.*`loss` is NoneType"):
        f(f.parameters, rows=rows)
    with pytest.raises(blo.StructureError, match="there are 1 targets"):
        f(f.parameters, rows, labels)
    name: Any = "logits"
    with pytest.raises(ValueError, match="`loss` must be a function"):
        blo.functionalize(Scoring("dict"), name)
