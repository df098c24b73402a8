"""Networks of torchvision by name: theirs behind our normalisation, and only for images that they take."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from adv_train import models
from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.models import load_weights, size, torchvision_models
from adv_train.precision import computed_in

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
COLOUR: dict[str, Any] = {"channels": 3, "classes": 7, "image_size": 32, "mean": MEAN, "std": STD}
GREY: dict[str, Any] = {"channels": 1, "classes": 7, "image_size": 32, "mean": (0.3,), "std": (0.4,)}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_logits_are_those_of_torchvision_behind_our_normalisation() -> None:
    model = models.create("torchvision:resnet18", **COLOUR, seed=3).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = torchvision.models.resnet18(num_classes=7).eval()
    x = images(2, 3, 32, 32)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    assert torch.equal(model(x), theirs((x - mean) / std))
    assert {key for key in model.state_dict() if not key.startswith("network.")} == {"normalise.mean", "normalise.std"}


def test_a_grey_image_is_three_equal_channels() -> None:
    model = models.create("torchvision:squeezenet1_1", **GREY, seed=0).eval()
    x = images(2, 1, 32, 32)
    assert torch.equal(model(x), model.network(((x - 0.3) / 0.4).repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("googlenet", 32),
        ("mobilenet_v3_small", 8),
        ("regnet_x_400mf", 32),
        ("shufflenet_v2_x0_5", 32),
        ("vit_b_32", 64),
    ],
)
def test_networks_of_every_kind_give_logits_in_train_mode(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "vit_b_32":  # the same network with a twelfth of the weights
        vit = torchvision.models.VisionTransformer
        monkeypatch.setattr(
            torchvision.models,
            "get_model",
            lambda _, weights, **given: vit(
                patch_size=32, num_layers=1, num_heads=2, hidden_dim=64, mlp_dim=64, **given
            ),
        )
    model = models.create(f"torchvision:{name}", **COLOUR | {"image_size": side})
    assert model.training and model(images(2, 3, side, side)).shape == (2, 7)


def test_nothing_but_the_weights_is_drawn() -> None:
    torch.manual_seed(0)
    torchvision.models.shufflenet_v2_x0_5(num_classes=7)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    models.create("torchvision:shufflenet_v2_x0_5", **COLOUR)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("resnet19", {}, "Unknown network of torchvision `resnet19`. Did you mean `resnet1"),
        ("raft_small", {}, "Unknown network of torchvision `raft_small`"),  # no classifier
        ("vgg11", {"image_size": 8}, "`torchvision:vgg11` does not take images of 8x8 pixels.*`size`"),
        ("vit_b_16", {"image_size": 40}, "does not take images of 40x40 pixels"),
        ("resnet18", {"channels": 2, "mean": (0, 0), "std": (1, 1)}, "1 or 3 channels, but these have 2"),
        ("resnet18", {"activation": "silu"}, "has no option `activation`"),
    ],
)
def test_what_torchvision_lacks_or_refuses_is_told_in_one_line(
    name: str, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "vgg11":
        features = torchvision.models.vgg.cfgs["A"]
        monkeypatch.setattr(
            torchvision.models,
            "get_model",
            lambda *_, **__: torchvision.models.vgg.make_layers(features),  # without its 120 million other weights
        )
    with pytest.raises(UserError, match=message) as error:
        models.create(f"torchvision:{name}", **COLOUR | change)
    assert "\n" not in str(error.value)


def test_a_network_that_does_not_fit_into_memory_is_refused_by_its_published_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(size, "available_memory", lambda: 2**30)
    with pytest.raises(UserError, match="644,812,894 parameters"):
        models.create("torchvision:regnet_y_128gf", **COLOUR)


def test_the_first_layer_and_the_logits_keep_single_precision_in_bf16() -> None:
    model = models.create("torchvision:resnet18", **COLOUR, seed=0).eval()
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    seen: list[torch.dtype] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    with computed_in("bf16", torch.device("cpu")):
        model(images(2, 3, 32, 32))
    assert seen[0] == seen[-1] == torch.float32 and set(seen[1:-1]) == {torch.bfloat16}


def test_a_model_can_be_copied_and_pickled() -> None:
    model = models.create("torchvision:squeezenet1_1", **COLOUR, seed=0).eval()
    x = images(2, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


def test_weights_of_torchvision_are_loaded(tmp_path: Path) -> None:
    theirs = torchvision.models.squeezenet1_1(num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    model = models.create("torchvision:squeezenet1_1", **COLOUR, seed=0).eval()
    load_weights(model, tmp_path / "w.pt", "none")
    x = images(2, 3, 32, 32)
    assert torch.equal(model(x), theirs(x))


def test_a_network_of_torchvision_is_trained_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", "digits", "--method", "fast-bat", "--model", "torchvision:resnet18", "--train-limit", "32"]
    assert main(["fit", *words, "--epochs", "1", "--validation-steps", "1", "--device", "cpu", "--quiet",
                 "--out", "run"]) == 0  # fmt: skip
    assert main(["eval", "run", "--no-autoattack", "--pgd-steps", "1", "--pgd-restarts", "1", "--limit", "10",
                 "--quiet"]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["eval", "--model", "torchvision:resnet18", "--data", "digits", "--eps", "0.2"]) == 2
    assert "does not come with trained weights" in capsys.readouterr().err


def test_the_list_says_how_they_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]}
    assert listed == {*models.MODELS.names(), f"{torchvision_models.PREFIX}NETWORK", "MODULE:FACTORY"}
