"""Residual networks: published sizes, and weights under the names of RobustBench against forward passes written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from adv_train import models
from adv_train.errors import UserError
from adv_train.models import load_weights

CIFAR: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
State = dict[str, Tensor]


@pytest.mark.parametrize(
    ("name", "parameters", "gigamacs"),
    [
        ("resnet-18", 11_173_962, 0.556),
        ("resnet-34", 21_282_122, 1.159),
        ("resnet-50", 23_520_842, 1.298),
        ("preact-resnet-18", 11_172_170, 0.555),
        ("preact-resnet-34", 21_280_330, 1.159),
        ("preact-resnet-50", 23_513_162, 1.298),
        ("wrn-16-8", 10_961_370, 1.548),
        ("wrn-28-10", 36_479_194, 5.243),
        ("wrn-34-10", 46_160_474, 6.659),
        ("wrn-70-16", 266_796_506, 38.764),
    ],
)
def test_networks_have_the_published_size(name: str, parameters: int, gigamacs: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = models.create(name, **CIFAR).eval()
        assert model(torch.empty(1, 3, 32, 32)).shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gigamacs, abs=1e-3)


class Drawn:
    """Weights drawn on demand under their published names, while the network is evaluated as published."""

    def __init__(self) -> None:
        self.state: State = {}
        self._generator = torch.Generator().manual_seed(0)

    def _draw(self, name: str, *shape: int, low: float = -1.5) -> Tensor:
        drawn = low + (1.5 - low) * torch.rand(shape, generator=self._generator, dtype=torch.float64)
        self.state[name] = drawn / math.prod(shape[1:]) ** 0.5
        return self.state[name]

    def conv(self, name: str, x: Tensor, width: int, kernel: int, stride: int = 1, pad: int | None = None) -> Tensor:
        weight = self._draw(f"{name}.weight", width, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2 if pad is None else pad)

    def norm(self, name: str, x: Tensor) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (self._draw(f"{name}.{part}", x.shape[1], low=0.5).view(-1, 1, 1) for part in parts)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(3)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._draw(f"{name}.weight", 10, x.shape[1]).T + self._draw(f"{name}.bias", 10)

    def normalised(self, x: Tensor) -> Tensor:
        mu, sigma = (self._draw(name, 1, 3, 1, 1, low=0.5) for name in ("mu", "sigma"))
        return (x - mu) / sigma


def blocks(depths: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    for stage, depth in enumerate(depths):
        for index in range(depth):
            yield stage, index, 2 if stage and not index else 1


def preact_resnet_18(net: Drawn, x: Tensor) -> Tensor:
    x = net.conv("conv1", net.normalised(x), 64, 3)
    for stage, index, stride in blocks((2, 2, 2, 2)):
        at, width = f"layer{stage + 1}.{index}", 64 * 2**stage
        y = net.conv(f"{at}.conv1", net.norm(f"{at}.bn1", x).relu(), width, 3, stride)
        y = net.conv(f"{at}.conv2", net.norm(f"{at}.bn2", y).relu(), width, 3)
        x = y + (net.conv(f"{at}.shortcut.0", x, width, 1, stride) if stride == 2 else x)
    return net.linear("linear", net.norm("bn", x).relu().mean((2, 3)))


def resnet_18(net: Drawn, x: Tensor) -> Tensor:
    x = net.norm("bn1", net.conv("conv1", net.normalised(x), 64, 3)).relu()
    for stage, index, stride in blocks((2, 2, 2, 2)):
        at, width = f"layer{stage + 1}.{index}", 64 * 2**stage
        y = net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, width, 3, stride)).relu()
        y = net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", y, width, 3))
        if stride == 2:
            x = net.norm(f"{at}.shortcut.1", net.conv(f"{at}.shortcut.0", x, width, 1, stride))
        x = (x + y).relu()
    return net.linear("linear", x.mean((2, 3)))


def resnet_50(net: Drawn, x: Tensor) -> Tensor:
    x = net.norm("bn1", net.conv("conv1", net.normalised(x), 64, 3)).relu()
    for stage, index, stride in blocks((3, 4, 6, 3)):
        at, width = f"layer{stage + 1}.{index}", 64 * 2**stage
        y = net.norm(f"{at}.bn1", net.conv(f"{at}.conv1", x, width, 1)).relu()
        y = net.norm(f"{at}.bn2", net.conv(f"{at}.conv2", y, width, 3, stride)).relu()
        y = net.norm(f"{at}.bn3", net.conv(f"{at}.conv3", y, 4 * width, 1))
        if not index:
            x = net.norm(f"{at}.shortcut.1", net.conv(f"{at}.shortcut.0", x, 4 * width, 1, stride))
        x = (x + y).relu()
    return net.linear("linear", x.mean((2, 3)))


def preact_resnet_50(net: Drawn, x: Tensor) -> Tensor:
    x = net.conv("conv1", net.normalised(x), 64, 3)
    for stage, index, stride in blocks((3, 4, 6, 3)):
        at, width = f"layer{stage + 1}.{index}", 64 * 2**stage
        y = net.conv(f"{at}.conv1", net.norm(f"{at}.bn1", x).relu(), width, 1)
        y = net.conv(f"{at}.conv2", net.norm(f"{at}.bn2", y).relu(), width, 3, stride)
        y = net.conv(f"{at}.conv3", net.norm(f"{at}.bn3", y).relu(), 4 * width, 1)
        x = y + (x if index else net.conv(f"{at}.shortcut.0", x, 4 * width, 1, stride))
    return net.linear("linear", net.norm("bn", x).relu().mean((2, 3)))


def wide_resnet_16_8(net: Drawn, x: Tensor) -> Tensor:
    x = net.conv("conv1", x, 16, 3)
    for group, index, stride in blocks((2, 2, 2)):
        at, width = f"block{group + 1}.layer.{index}", 128 * 2**group
        active = net.norm(f"{at}.bn1", x).relu()
        y = net.conv(f"{at}.conv1", active, width, 3, stride)
        y = net.conv(f"{at}.conv2", net.norm(f"{at}.bn2", y).relu(), width, 3)
        x = y + (x if index else net.conv(f"{at}.convShortcut", active, width, 1, stride))
    net.state["sub_block1.layer.0.conv1.weight"] = torch.ones(3)  # which the published code never calls
    return net.linear("fc", net.norm("bn1", x).relu().mean((2, 3)))


def gowal_2020(net: Drawn, x: Tensor) -> Tensor:
    x = net.conv("init_conv", x, 16, 3)
    for group, index, stride in blocks((2, 2, 2)):
        at, width = f"layer.{group}.block.{index}", 128 * 2**group
        active = F.silu(net.norm(f"{at}.batchnorm_0", x))
        padded = F.pad(active, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
        y = net.conv(f"{at}.conv_0", padded, width, 3, stride, pad=0)
        y = net.conv(f"{at}.conv_1", F.silu(net.norm(f"{at}.batchnorm_1", y)), width, 3)
        x = y + (x if index else net.conv(f"{at}.shortcut", active, width, 1, stride))
    return net.linear("logits", F.silu(net.norm("batchnorm", x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "name", "options", "prefix"),
    [
        (preact_resnet_18, "preact-resnet-18", {}, ""),
        (preact_resnet_18, "preact-resnet-18", {}, "module."),
        (preact_resnet_50, "preact-resnet-50", {}, ""),
        (resnet_18, "resnet-18", {}, "model."),
        (resnet_50, "resnet-50", {}, ""),
        (wide_resnet_16_8, "wrn-16-8", {"raw": True, "dropout": 0.3}, "module.model."),
        (gowal_2020, "wrn-16-8", {"raw": True, "one_sided": True, "activation": "silu"}, ""),
    ],
)
def test_weights_of_robustbench_give_its_logits(
    network: Callable[[Drawn, Tensor], Tensor], name: str, options: dict[str, Any], prefix: str, tmp_path: Path
) -> None:
    net = Drawn()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = network(net, x)
    torch.save({"state_dict": {prefix + key: value for key, value in net.state.items()}}, tmp_path / "w.pt")
    model = models.create(name, **CIFAR, **options).double().eval()
    load_weights(model, tmp_path / "w.pt")
    torch.testing.assert_close(model(x), truth, rtol=1e-10, atol=1e-10)


def test_weights_without_normalisation_are_refused_by_a_model_that_normalises(tmp_path: Path) -> None:
    net = Drawn()
    wide_resnet_16_8(net, torch.rand(1, 3, 16, 16, dtype=torch.float64))
    torch.save(net.state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"lacks normalise\.mean, normalise\.std"):
        load_weights(models.create("wrn-16-8", **CIFAR), tmp_path / "w.pt")


def test_dropout_acts_in_training_alone() -> None:
    model = models.create("wrn-16-8", **CIFAR, dropout=0.5)
    x = torch.rand(2, 3, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    with pytest.raises(UserError, match="`dropout` must be at least 0 and below 1, but is 1"):
        models.create("wrn-16-8", **CIFAR, dropout=1.0)


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet", "vit_b_16"])
def test_models_of_torchvision_have_the_normalisation_inside(name: str) -> None:
    with torch.device("meta"):
        model = models.create(f"torchvision:{name}", **CIFAR | {"classes": 7})
    assert list(model.state_dict())[:2] == ["normalise.mean", "normalise.std"]
    logits = model(torch.empty(2, 3, 32, 32, device="meta"))
    assert isinstance(logits, Tensor) and logits.shape == (2, 7)


def test_a_model_of_torchvision_is_that_of_torchvision_on_normalised_images() -> None:
    from torchvision.models import mobilenet_v2

    model = models.create("torchvision:mobilenet_v2", **CIFAR, seed=0).eval()
    plain = mobilenet_v2(num_classes=10).eval()
    plain.load_state_dict({k.removeprefix("network."): v for k, v in model.state_dict().items() if "network" in k})
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), plain((x - 0.5) / 0.25))
    assert isinstance(model, nn.Module)


@pytest.mark.parametrize(
    ("name", "change", "options", "message"),
    [
        ("torchvision:resnet19", {}, {}, "Unknown model of torchvision `resnet19`.*resnet18"),
        ("torchvision:resnet18", {"channels": 1, "mean": [0.5], "std": [0.2]}, {}, "needs images with 3 channels"),
        ("torchvision:resnet18", {}, {"depth": 3}, "could not be made"),
        ("torchvision:vit_b_16", {"image_size": 33}, {}, "could not be made"),
    ],
)
def test_bad_input_is_named(name: str, change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.create(name, **CIFAR | change, **options)
