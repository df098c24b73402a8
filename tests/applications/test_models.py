"""The models, against architectures written out by hand and counts done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from adv_train import models
from adv_train.errors import UserError

GREY: dict[str, Any] = {"channels": 1, "classes": 10, "image_size": 8, "mean": [0.3], "std": [0.4]}
CIFAR: dict[str, Any] = {
    "channels": 3,
    "classes": 10,
    "image_size": 32,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2471, 0.2435, 0.2616],
}
#: Of each family the smallest with each kind of block.
KINDS = ["small-cnn", "preact-resnet-18", "preact-resnet-50", "resnet-18", "resnet-50", "wrn-16-8"]
STAGES = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def create(name: str, arguments: dict[str, Any] = CIFAR, **options: Any) -> nn.Module:
    """A model in float64 whose BatchNorm has seen nothing, so every buffer and weight must be used as it is."""
    model = models.create(name, **arguments, seed=0, **options).double()
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model


# --- preact-resnet-18: the published details ---


def preact_resnet_by_hand(model: nn.Module, x: Tensor, train: bool) -> Tensor:
    """The network as the papers draw it, over the weights of ``model`` in the order they are declared."""
    weights = iter([p.detach() for p in model.parameters()])
    state = model.state_dict()
    statistics = iter([state[k] for k in state if k.endswith(("running_mean", "running_var"))])

    def bn_relu(v: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if train:
            mean, var = v.mean((0, 2, 3)), v.var((0, 2, 3), correction=0)
        shape = (1, -1, 1, 1)
        v = (v - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * gamma.view(shape) + beta.view(shape)
        return v.clamp(min=0)

    mean, std = torch.tensor(CIFAR["mean"]), torch.tensor(CIFAR["std"])
    x = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    x = F.conv2d(x, next(weights), padding=1)
    first_width = width_before = x.shape[1]
    for width, stride in ((width * first_width // 64, stride) for width, stride in STAGES):
        first, conv1 = (next(weights), next(weights)), next(weights)
        second, conv2 = (next(weights), next(weights)), next(weights)
        shortcut = x if width == width_before else F.conv2d(x, next(weights), stride=stride)
        y = F.conv2d(bn_relu(x, *first, next(statistics), next(statistics)), conv1, stride=stride, padding=1)
        y = F.conv2d(bn_relu(y, *second, next(statistics), next(statistics)), conv2, padding=1)
        x, width_before = y + shortcut, width
    x = bn_relu(x, next(weights), next(weights), next(statistics), next(statistics))
    return x.mean((2, 3)) @ next(weights).T + next(weights)


@pytest.mark.parametrize(("train", "options"), [(False, {}), (True, {}), (True, {"base_width": 6})])
def test_preact_resnet_is_the_published_network_or_a_narrow_one(train: bool, options: dict[str, int]) -> None:
    model = create("preact-resnet-18", **options).train(train)
    assert model.get_submodule("stem").out_channels == options.get("base_width", 64)
    x = images(3, 3, 16, 16)
    expected = preact_resnet_by_hand(model, x, train)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_preact_resnet_has_the_published_number_of_parameters() -> None:
    count = 3 * 64 * 9
    width_in = 64
    for width, stride in STAGES:
        count += 2 * width_in + 9 * width_in * width + 2 * width + 9 * width * width
        count += width_in * width if stride == 2 else 0
        width_in = width
    count += 2 * 512 + 512 * 10 + 10
    assert count == 11_172_170  # as reported for this network on CIFAR-10
    assert sum(p.numel() for p in create("preact-resnet-18").parameters()) == count


def test_preact_resnet_costs_the_published_operations() -> None:
    macs, width_in, side = 32**2 * 3 * 64 * 9, 64, 32
    for width, stride in STAGES:
        side //= stride
        macs += side**2 * (9 * width_in * width + 9 * width * width)
        macs += side**2 * width_in * width if stride == 2 else 0
        width_in = width
    macs += 512 * 10
    model = models.create("preact-resnet-18", **CIFAR)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(1, 3, 32, 32, dtype=torch.float32))
    assert counter.get_total_flops() == 2 * macs
    assert counter.get_total_flops() / 1e9 == pytest.approx(1.11, abs=0.005)


# --- small-cnn ---


@pytest.mark.parametrize(("size", "side"), [(8, 2), (28, 7), (32, 8), (5, 2), (1, 1)])
def test_small_cnn_is_three_convolutions_and_a_linear_layer(size: int, side: int) -> None:
    model = create("small-cnn", GREY | {"image_size": size})
    w1, b1, w2, b2, w3, b3, w4, b4 = [p.detach() for p in model.parameters()]
    x = images(4, 1, size, size)
    h = F.conv2d((x - torch.tensor(0.3)) / torch.tensor(0.4), w1, b1, padding=1).clamp(min=0)
    h = F.conv2d(h, w2, b2, stride=2, padding=1).clamp(min=0)
    h = F.conv2d(h, w3, b3, stride=2, padding=1).clamp(min=0)
    assert h.shape == (4, 64, side, side)
    torch.testing.assert_close(model(x), h.reshape(4, -1) @ w4.T + b4, rtol=1e-10, atol=1e-10)


# --- what holds for every model ---


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [8, 32, 64])
def test_logits_have_a_row_a_sample_and_a_column_a_class(name: str, size: int) -> None:
    model = models.create(name, **CIFAR | {"image_size": size, "classes": 7})
    assert model(images(2, 3, size, size, dtype=torch.float32)).shape == (2, 7)


@pytest.mark.parametrize("name", KINDS)
def test_normalisation_is_inside_and_saved(name: str) -> None:
    model = create(name).eval()
    plain = create(name, CIFAR | {"mean": [0.0] * 3, "std": [1.0] * 3}).eval()
    x = images(2, 3, 32, 32)
    mean, std = (torch.tensor(CIFAR[key]).double().view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(model(x), plain((x - mean) / std), rtol=1e-9, atol=1e-9)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), model(x))


@pytest.mark.parametrize("name", KINDS)
def test_the_seed_alone_decides_the_weights_and_leaves_the_global_state(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = models.create(name, **CIFAR, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = (models.create(name, **CIFAR, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", KINDS)
def test_silu_makes_the_network_smooth(name: str) -> None:
    rectified, smooth = models.create(name, **CIFAR), models.create(name, **CIFAR, activation="silu")
    kinds = [{type(module) for module in model.modules()} for model in (rectified, smooth)]
    assert nn.ReLU in kinds[0] and nn.SiLU not in kinds[0]
    assert nn.SiLU in kinds[1] and nn.ReLU not in kinds[1]


@pytest.mark.parametrize("name", KINDS)
def test_second_derivatives_exist(name: str) -> None:
    model = create(name, activation="silu").eval()
    x = images(1, 3, 32, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", [None, 3])
def test_the_count_before_building_draws_nothing(name: str, seed: int | None) -> None:
    """The weights are those of the class itself, called right after the seed."""
    torch.manual_seed(3)
    expected = models.MODELS.find(name)(**CIFAR).state_dict()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found = models.create(name, **CIFAR, seed=seed).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(value.device.type == "cpu" for value in found.values())
    assert seed is not None or torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(("size", "classes"), [(3_000, 2), (3_000, 10), (3_000, 1_000), (100_000, 10)])
def test_a_dense_layer_on_large_images_is_refused_before_it_is_allocated(size: int, classes: int) -> None:
    side = size // 4
    count = sum((27 * 16 + 16, 9 * 16 * 32 + 32, 9 * 32 * 64 + 64, 64 * side * side * classes + classes))
    with pytest.raises(UserError, match="small-cnn") as error:
        models.create("small-cnn", **CIFAR | {"image_size": size, "classes": classes})
    message = str(error.value)
    assert f"{count:,} parameters" in message and f"{size}x{size}" in message and "`size`" in message
    assert "\n" not in message
    assert sum(p.numel() for p in models.create("preact-resnet-18", **CIFAR | {"image_size": size}).parameters()) < 2e7


# --- bad input ---


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("smal-cnn", {}, r"Unknown model `smal-cnn`. Did you mean `small-cnn`"),
        ("preact-resnet-18", {"activation": "gelu"}, "Unknown activation `gelu`.* relu, silu"),
        ("small-cnn", {"activatoin": "silu"}, "model 'small-cnn' has no option `activatoin`; it has activation"),
        ("small-cnn", {"classes": 1}, "at least 2 classes"),
        ("small-cnn", {"image_size": 0}, "3 x 0 x 0"),
        ("small-cnn", {"mean": [0.5]}, "each of the 3 channels.*1 and 3"),
        ("small-cnn", {"std": [0.2, 0.0, 0.2]}, "above zero"),
    ],
)
def test_bad_input_is_named_in_one_line(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        models.create(name, **CIFAR | change)
    assert "\n" not in str(error.value)
