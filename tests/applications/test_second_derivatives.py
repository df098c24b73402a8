"""Our second derivatives of convolutions and BatchNorm are those of torch, which computes them in another way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from adv_train import models
from adv_train.data import Batch
from adv_train.methods.fast_bat import FastBAT
from adv_train.second_derivatives import fast_second_derivatives, mode
from adv_train.second_derivatives.batch_norm import batch_norm
from adv_train.second_derivatives.convolution import convolution
from adv_train.threat import Threat
from blo._torch import load_forward_mode

pytestmark = pytest.mark.skipif(
    not mode.SUPPORTED, reason="this torch does not tell whether a layer is in a checkpoint"
)
_TIGHT = {"rtol": 1e-11, "atol": 1e-11}


def drawn(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    found = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    return found.contiguous(memory_format=layout).requires_grad_()


def gradients(layer: Callable[..., Tensor], inputs: list[Tensor], *, ours: bool) -> list[Tensor]:
    """Return output, first derivatives, and derivatives of a function of all the first derivatives."""
    with fast_second_derivatives(ours):
        output = layer(*inputs)
    first = torch.autograd.grad(output.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((slope**3).sum() for slope in first) + output.exp().mean(), inputs)
    return [output, *first, *second]


def agree(layer: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    for ours, theirs in zip(*(gradients(layer, inputs, ours=ours) for ours in (True, False)), strict=True):
        torch.testing.assert_close(ours, theirs, **_TIGHT)


@pytest.mark.parametrize(
    ("channels", "kernel", "options"),
    [
        (4, 3, {"padding": 1}),
        (4, 3, {"stride": 2, "padding": 1}),
        (4, 1, {"stride": (2, 1)}),
        (4, (1, 3), {"padding": (0, 2), "dilation": (1, 2)}),
        (2, 3, {"groups": 2}),
        (1, 3, {"groups": 4, "stride": 2}),
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_a_convolution(channels: int, kernel: Any, options: dict[str, Any], biased: bool) -> None:
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    x, w = drawn(3, 4, 6, 7, layout=torch.channels_last), drawn(4, channels, *size)
    assert convolution(x, w, **options) is not None

    def layer(x: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        return F.conv2d(x, w, *b, **options)

    agree(layer, [x, w, *([drawn(4)] if biased else [])])


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (4, 3, 5, 6), (2, 3, 2, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm(shape: tuple[int, ...], affine: bool) -> None:
    running = [torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]

    def layer(x: Tensor, *weights: Tensor) -> Tensor:
        return F.batch_norm(x + 3.0, running[0].clone(), running[1].clone(), *weights, training=True, eps=0.01)

    agree(layer, [drawn(*shape), *([drawn(3), drawn(1, 3)[0].detach().requires_grad_()] if affine else [])])


def test_a_batch_norm_with_a_weight_of_zero() -> None:
    w = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    agree(lambda x, w: F.batch_norm(x, None, None, w, training=True), [drawn(4, 2, 3, 3), w])


def test_the_derivative_of_a_single_gradient() -> None:
    """In an attack, only the gradient of the input is differentiated, so that the others have no cotangent."""
    x, w = drawn(3, 4, 5, 5, layout=torch.channels_last), drawn(4, 4, 3, 3)

    def layer(x: Tensor, w: Tensor) -> Tensor:
        return F.batch_norm(F.conv2d(x, w), None, None, training=True)

    for differentiated, wanted in product((x, w), repeat=2):
        found = []
        for ours in (True, False):
            with fast_second_derivatives(ours):
                output = layer(x, w)
            (slope,) = torch.autograd.grad(output.sin().sum(), differentiated, create_graph=True)
            found += torch.autograd.grad((slope**3).sum(), wanted)
        torch.testing.assert_close(*found, **_TIGHT)


def test_running_statistics_and_outputs_are_those_of_torch() -> None:
    x = drawn(4, 3, 5, 5)
    for momentum in (0.1, None):
        layers = [nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64) for _ in range(2)]
        for scale in (1.0, 2.0):
            outputs = []
            for ours, layer in zip((True, False), layers, strict=True):
                with fast_second_derivatives(ours):
                    outputs.append(layer(scale * x))
            assert torch.equal(*outputs)
        for name, value in layers[0].state_dict().items():
            assert torch.equal(value, layers[1].state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_of_lower_precision(dtype: torch.dtype, affine: bool) -> None:
    layer = nn.BatchNorm2d(3, affine=affine).to(dtype)
    x = drawn(4, 3, 5, 5).detach().to(dtype).requires_grad_()
    slopes = []
    for ours in (True, False):
        with fast_second_derivatives(ours):
            output = layer(x)
        (slope,) = torch.autograd.grad(output.float().sin().sum(), x, create_graph=True)
        slopes.append(torch.autograd.grad(slope.float().square().sum(), x)[0].float())
    assert (slopes[0] - slopes[1]).norm() < 8 * torch.finfo(dtype).eps * slopes[1].norm()


def test_what_torch_refuses_or_does_faster_is_left_to_torch() -> None:
    x, w = drawn(1, 2, 4, 4, layout=torch.channels_last), drawn(2, 2, 3, 3)
    assert convolution(x, w) is not None
    assert convolution(drawn(1, 2, 4, 4), w) is None  # contiguous
    assert convolution(x, w, padding="same") is None
    assert convolution(x.detach(), w.detach()) is None
    assert convolution(x, w, torch.ones(1, dtype=torch.float64)) is None
    assert convolution(x, w, torch.ones(2)) is None
    assert convolution(x.to(torch.complex128), w.to(torch.complex128)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(x, w) is None  # autocast leaves double precision as it is
    with fast_second_derivatives():
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            nn.BatchNorm2d(3)(torch.ones(1, 3, 1, 1))
        assert "_BatchNorm" not in repr(nn.BatchNorm2d(3).eval()(torch.ones(2, 3, 4, 4)).grad_fn)
    with torch.no_grad(), fast_second_derivatives():
        assert not nn.BatchNorm2d(3)(torch.ones(2, 3, 4, 4)).requires_grad


def _network(x: Tensor, w: Tensor) -> Tensor:
    return F.batch_norm(F.conv2d(x, w), None, None, training=True)


def _in_a_checkpoint(x: Tensor, w: Tensor) -> Tensor:
    found: Tensor = checkpoint(_network, x, w, use_reentrant=False)
    return found


def _compiled(x: Tensor, w: Tensor) -> Tensor:
    found: Tensor = torch.compile(_network, backend="eager")(x, w)
    return found


@pytest.mark.parametrize("layer", [_in_a_checkpoint, _compiled])
def test_layers_that_something_else_executes(layer: Callable[..., Tensor]) -> None:
    agree(layer, [drawn(3, 4, 5, 5, layout=torch.channels_last), drawn(4, 4, 3, 3)])


def test_layers_in_transforms() -> None:
    load_forward_mode()  # torch warns of a deprecation while it loads
    x, w = (one.detach() for one in (drawn(3, 4, 5, 5, layout=torch.channels_last), drawn(4, 4, 3, 3)))
    found = []
    for ours in (True, False):
        with fast_second_derivatives(ours):
            found.append(torch.func.grad(lambda w: _network(x, w).sin().sum())(w))
            found.append(torch.func.jvp(lambda w: _network(x, w), (w,), (torch.ones_like(w),))[1])
    torch.testing.assert_close(found[:2], found[2:], **_TIGHT)


def test_a_graph_that_is_used_twice() -> None:
    x, w = drawn(3, 4, 5, 5, layout=torch.channels_last), drawn(4, 4, 3, 3)
    with fast_second_derivatives():
        (slope,) = torch.autograd.grad(_network(x, w).sin().sum(), x, create_graph=True)
    first, again = (torch.autograd.grad((slope**3).sum(), w, retain_graph=True) for _ in range(2))
    assert torch.equal(*first, *again)


def test_a_gradient_of_the_images_alone_needs_no_gradient_of_the_weights() -> None:
    """Neither for a parameter nor for a weight that follows from one."""
    x, parameter = drawn(3, 4, 5, 5, layout=torch.channels_last), drawn(4, 4, 3, 3)
    for w in (parameter, 2 * parameter):
        counts = []
        for wanted in ([x], [x, w]):
            with fast_second_derivatives():
                output = F.conv2d(x, w).sin().sum()
            with FlopCounterMode(display=False) as counter:
                torch.autograd.grad(output, wanted, create_graph=True)
            counts.append(counter.get_total_flops())
        assert 0 < 2 * counts[0] == counts[1]


def test_a_third_derivative_is_refused() -> None:
    """Also one through the vector that a gradient is multiplied by."""
    x, factor = drawn(4, 2, 3, 3), torch.ones((), dtype=torch.float64, requires_grad=True)
    with fast_second_derivatives():
        output = F.batch_norm(x, None, None, training=True)
    (first,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    for value, source in (((first**3).sum(), x), ((factor * first.detach() * first).sum(), factor)):
        (second,) = torch.autograd.grad(value, x, create_graph=True)
        with pytest.raises(RuntimeError, match="third derivative"):
            torch.autograd.grad(second.sum(), source)


class _Counted(TorchDispatchMode):
    """Counts the operations of at least as many entries as the images have."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.operations = entries, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        first = found[0] if isinstance(found, tuple) else found
        self.operations += isinstance(first, Tensor) and first.numel() >= self.entries
        return found


def counted(ours: bool) -> tuple[int, Tensor]:
    """Return the operations of a second derivative through a convolution and BatchNorm, and the derivative."""
    x, w = drawn(8, 4, 6, 6, layout=torch.channels_last), drawn(4, 4, 3, 3)
    with fast_second_derivatives(ours):
        output = F.batch_norm(F.conv2d(x, w, padding=1), None, None, training=True)
    (first,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    with _Counted(x.numel()) as counts:
        (second,) = torch.autograd.grad(first, w, x.detach())
    return counts.operations, second


def test_there_are_fewer_operations() -> None:
    (few, ours), (many, theirs) = counted(True), counted(False)
    torch.testing.assert_close(ours, theirs, **_TIGHT)
    assert 2 * few < many


def test_layers_of_both_precisions_keep_theirs_under_autocast() -> None:
    """The backward pass runs under the autocast of its caller, whatever that of the layer was."""
    x, w = (drawn(*shape, layout=torch.channels_last).detach().float() for shape in ((8, 4, 6, 6), (4, 4, 3, 3)))
    slopes = {}
    for ours in (True, False):
        live = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), fast_second_derivatives(ours):
            with torch.autocast("cpu", enabled=False):
                first = F.batch_norm(F.conv2d(*live), None, None, training=True)
            output = F.batch_norm(F.conv2d(first, live[1]), None, None, training=True)
            (slope,) = torch.autograd.grad(output.sin().sum(), live[0], create_graph=True)
            slopes[ours] = torch.autograd.grad(slope.square().sum(), live[1])[0]
        assert output.dtype == torch.bfloat16 and slopes[ours].dtype == torch.float32
    assert (slopes[True] - slopes[False]).norm() < 0.05 * slopes[False].norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_fast_bat(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a residual network with BatchNorm, with the plain layers and with ours."""
    arguments: dict[str, Any] = {"channels": 3, "image_size": 32, "classes": 10, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model = models.create("preact-resnet-18", **arguments, seed=0, base_width=4).double().to(memory_format=layout)
    x, y = torch.rand(6, 3, 32, 32, dtype=torch.float64), torch.arange(6)
    batch, threat = Batch(x.contiguous(memory_format=layout), y, torch.arange(6)), Threat("linf", 8 / 255)
    params = dict(model.named_parameters())
    start = torch.zeros_like(batch.x)
    calls: list[int] = []
    monkeypatch.setitem(
        mode._OURS, F.batch_norm, lambda *args, **options: calls.append(1) or batch_norm(*args, **options)
    )
    ours = FastBAT(step=0.01)(model, params, batch, threat, start=start)
    assert calls
    calls.clear()
    FastBAT(step=0.01, implicit="shifted")(model, params, batch, threat, start=start)
    assert not calls
    monkeypatch.setattr("adv_train.methods.losses.fast_second_derivatives", lambda _: fast_second_derivatives(False))
    theirs = FastBAT(step=0.01)(model, params, batch, threat, start=start)
    assert ours.implicit_share > 1e-4
    for name, value in theirs.grads.items():
        torch.testing.assert_close(ours.grads[name], value, rtol=1e-9, atol=1e-11)
