"""Checkpoints in the form of RobustBench: their names and shapes fit, and our logits are those of their networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adv_train import models
from adv_train.cli import main
from adv_train.config import ModelConfig
from adv_train.errors import UserError
from adv_train.models import load_weights
from adv_train.models.foreign import translation
from adv_train.models.preact_resnet import PreActResNet18, PreActResNet50
from adv_train.models.resnet import ResNet18, ResNet50
from adv_train.models.wide_resnet import WideResNet, WRN16x8
from tests.applications import foreign_networks as there
from tests.applications.foreign_networks import Foreign, State

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SHAPE: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 8, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
BASIC, DEEP, FEW = (2, 2, 2, 2), (3, 4, 6, 3), (1, 2, 1, 1)


class FewBlocks(PreActResNet18):
    depths = FEW


class FewBottlenecks(PreActResNet50):
    depths = FEW


class FewPostBlocks(ResNet18):
    depths = FEW


class FewPostBottlenecks(ResNet50):
    depths = FEW


class Narrow(WideResNet):
    depth, factor = 16, 2


Maker = Callable[..., nn.Module]
#: Of RobustBench for CIFAR-10: Rice2020OverfittingNetL2; Andriushchenko2020 and Wong2020; Wu2020; Zhang2019 (TRADES);
#: Gowal2020 and Wang2023; Engstrom2019; and the ResNet-50 of Zhang et al. (ICML 2022), of the same module names.
CASES: dict[str, tuple[Foreign, Maker, dict[str, Any]]] = {
    "preact V2": (there.preact_resnet(BASIC, activated=True), PreActResNet18, {"shortcut": "activated"}),
    "preact, no last norm": (there.preact_resnet(FEW, last=False), FewBlocks, {"final_norm": False}),
    "preact, raw shortcut": (there.preact_resnet(FEW), FewBlocks, {}),
    "preact 50": (there.preact_resnet(FEW, bottleneck=True, activated=True), FewBottlenecks, {}),
    "wide": (there.wide_resnet(16, 8), WRN16x8, {}),
    "wide, spare stage": (there.wide_resnet(16, 2, spare=True), Narrow, {}),
    "wide, padded at the end": (there.deepmind_wide_resnet(16, 2), Narrow, {"activation": "silu", "padding": "end"}),
    "resnet": (there.resnet(FEW), FewPostBlocks, {}),
    "resnet 50": (there.resnet(FEW, bottleneck=True), FewPostBottlenecks, {}),
}


def ours(maker: Maker, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return maker(**SHAPE, **options).double().eval()


def images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def with_normalisation(state: State) -> State:
    if "mean" in state:
        return state | {key: torch.tensor(value).view(3, 1, 1) for key, value in {"mean": MEAN, "std": STD}.items()}
    return state | {
        key: torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1)
        for key, value in {"mu": MEAN, "sigma": STD}.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_foreign_network(case: str, tmp_path: Path) -> None:
    foreign, maker, options = CASES[case]
    state = with_normalisation(foreign.state())
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pt")
    model = ours(maker, **options)
    load_weights(model, tmp_path / "w.pt")
    mean, std = (state[key].double().view(3, 1, 1) for key in (("mean", "std") if "mean" in state else ("mu", "sigma")))
    x = images()
    torch.testing.assert_close(model(x), foreign.logits(state, (x - mean) / std), rtol=1e-10, atol=1e-10)


def test_what_the_names_do_not_tell_changes_the_logits() -> None:
    x = images()
    plain, activated = (there.preact_resnet(FEW, activated=choice) for choice in (False, True))
    assert plain.shapes == activated.shapes
    state = plain.state()
    assert not torch.allclose(plain.logits(state, x), activated.logits(state, x), rtol=1e-2)


@pytest.mark.parametrize(
    ("foreign", "name", "options"),
    [
        (there.wide_resnet(28, 10, spare=True), "wrn-28-10", {}),
        (there.wide_resnet(34, 10), "wrn-34-10", {}),
        (there.wide_resnet(70, 16), "wrn-70-16", {}),
        (there.wide_resnet(22, 8), "wrn-22-8", {}),
        (there.deepmind_wide_resnet(70, 16), "wrn-70-16", {"padding": "end"}),
        (there.resnet(DEEP), "resnet-34", {}),
    ],
)
def test_names_and_shapes_of_large_networks_fit(foreign: Foreign, name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = models.MODELS.create(name, 3, 10, 32, MEAN, STD, **options)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    names = translation([*foreign.shapes, "mu", "sigma"], wanted)
    found = {names[key]: shape for key, shape in foreign.shapes.items() if names[key] is not None}
    normalisation = {key: (3, 1, 1) for key in ("normalise.mean", "normalise.std")}
    assert found | normalisation == wanted


# --- what a file does not say ---


@pytest.mark.parametrize(("normalisation", "mean", "std"), [("data", SHAPE["mean"], SHAPE["std"]), ("none", 0, 1)])
def test_weights_without_normalisation_need_a_word_on_it(
    tmp_path: Path, normalisation: Any, mean: Any, std: Any
) -> None:
    foreign = there.preact_resnet(FEW)
    state, x = foreign.state(), images()
    torch.save({"last": state}, tmp_path / "w.pt")
    model = ours(FewBlocks)
    with pytest.raises(UserError, match=r"do not say how images were normalised.* --init-normalisation"):
        load_weights(model, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt", normalisation)
    mean, std = (torch.as_tensor(value).double().view(-1, 1, 1) for value in (mean, std))
    torch.testing.assert_close(model(x), foreign.logits(state, (x - mean) / std), rtol=1e-6, atol=1e-6)


def test_files_from_before_batches_were_counted_are_read(tmp_path: Path) -> None:
    foreign = there.preact_resnet(FEW)
    state = {key: value for key, value in foreign.state().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    model, x = ours(FewBlocks), images()
    load_weights(model, tmp_path / "w.pt", "none")
    torch.testing.assert_close(model(x), foreign.logits(state, x), rtol=1e-10, atol=1e-10)


PREACT, POST, WIDE = there.preact_resnet(FEW), there.resnet(FEW), there.wide_resnet(16, 2)


@pytest.mark.parametrize(
    ("state", "maker", "options", "message"),
    [
        (WIDE, Narrow, {"padding": "end"}, "padding=even, but the model has padding=end"),
        (there.deepmind_wide_resnet(16, 2), Narrow, {}, "padding=end, but the model has padding=even"),
        (there.preact_resnet(FEW, last=False), FewBlocks, {}, "it lacks bn.bias"),
        (PREACT, FewBlocks, {"final_norm": False}, "the model lacks bn.bias"),
        (PREACT, FewPostBlocks, {}, "do not fit the model"),
        (POST, FewBlocks, {}, "the model lacks layer2.0.shortcut.1.bias"),
        (there.preact_resnet(BASIC), FewBlocks, {}, "do not fit the model"),
        (there.preact_resnet(FEW, classes=100), FewBlocks, {}, r"head.bias \(100,\) instead of \(10,\)"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, state: Foreign, maker: Maker, options: dict[str, Any], message: str
) -> None:
    torch.save({key: torch.ones(shape) for key, shape in state.shapes.items()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as error:
        load_weights(ours(maker, **options), tmp_path / "w.pt")
    assert "\n" not in str(error.value)


def test_a_name_and_its_translation_in_one_file_are_refused(tmp_path: Path) -> None:
    torch.save(PREACT.state() | {"fc.bias": torch.zeros(10)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"hold head\.bias twice"):
        load_weights(ours(FewBlocks), tmp_path / "w.pt", "data")


def test_a_word_on_normalisation_that_is_not_called_for_is_refused(tmp_path: Path) -> None:
    torch.save(with_normalisation(PREACT.state()), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"but those in .* have them, or the model does not normalise"):
        load_weights(ours(FewBlocks), tmp_path / "w.pt", "data")


# --- the command line ---


def test_foreign_weights_are_judged_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = there.preact_resnet(BASIC).state()
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    state["conv1.weight"] = state["conv1.weight"][:, :1]  # for grey images
    torch.save(state, "w.pt")
    words = ["eval", "--checkpoint-file", "w.pt", "--data", "digits", "--eps", "0.2", "--no-autoattack", "--quiet",
             "--pgd-steps", "1", "--pgd-restarts", "1", "--limit", "20", "--device", "cpu"]  # fmt: skip
    judged = ["--model", "preact-resnet-18(shortcut=activated)"]
    assert main([*words, *judged]) == 2
    assert "--normalisation" in capsys.readouterr().err
    assert main([*words, *judged, "--normalisation", "data"]) == 0
    fit = ["fit", "--data", "digits", "--method", "standard", "--model", "preact-resnet-18", "--epochs", "1", "--quiet",
           "--train-limit", "20", "--validation-steps", "1", "--device", "cpu", "--out", "run"]  # fmt: skip
    assert main([*fit, "--init", "w.pt", "--init-normalisation", "none", "--lr", "0"]) == 0
    found = torch.load("run/last.pt", weights_only=True)["model"]
    assert torch.equal(found["head.weight"], state["linear.weight"])
    assert found["normalise.mean"].flatten().tolist() == [0.0] and found["normalise.std"].flatten().tolist() == [1.0]


def test_options_in_a_name_are_those_of_the_model() -> None:
    found = models.MODELS.parsed("preact-resnet-18(shortcut=activated, final_norm=false)", "model")
    assert found == ("preact-resnet-18", {"shortcut": "activated", "final_norm": False})
    for text, message in {
        "wrn-16-8(classes=3)": "no option `classes`",
        "wrn-16-8(dropout=2)": "between 0 and 0.99",
    }.items():
        with pytest.raises(UserError, match=message):
            models.MODELS.parsed(text, "model")
    with pytest.raises(UserError, match="`init_normalisation` must be left out"):
        ModelConfig(name="wrn-16-8", init_normalisation="none")
