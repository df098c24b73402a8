"""What is written for RobustBench: its networks compute the same from it, and the claim holds what was measured."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import adv_train
from adv_train import checkpoint, evaluation, models
from adv_train.config import resolve, to_yaml
from adv_train.digests import digest
from adv_train.errors import UserError
from adv_train.evaluation import Evaluation, Outcome
from adv_train.export.counterparts import counterpart
from adv_train.threat import Threat
from tests.applications import foreign_networks as there
from tests.applications.foreign_networks import Foreign
from tests.applications.test_foreign_weights import BASIC, CASES, DEEP, MEAN, STD, images, ours

ARGUMENTS: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 32, "mean": list(MEAN), "std": list(STD)}
TOLD = {
    "model_id": "Doe2026Fast",
    "title": "Fast",
    "authors": "J. Doe",
    "venue": "Unpublished 2026",
    "link": "https://x.org",
}


# --- the names ---


@pytest.mark.parametrize("case", CASES)
def test_their_network_computes_the_same_from_renamed_weights(case: str) -> None:
    foreign, maker, options = CASES[case]
    model = ours(maker, **options)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.5 + 0.1 * torch.rand(value.shape, dtype=value.dtype))
    found = counterpart(model, 10)
    state = {found.name(name): value for name, value in model.state_dict().items()}
    mean, std = (state.pop(key) for key in (("mean", "std") if "mean" in state else ("mu", "sigma")))
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: shape
        for key, shape in foreign.shapes.items()
        if key not in ("mean", "std") and not key.startswith("sub_block1")
    }
    x = images()
    torch.testing.assert_close(foreign.logits(state, (x - mean) / std), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "foreign", "title"),
    [
        ("preact-resnet-34", there.preact_resnet(DEEP), "PreActResNet-34"),
        ("preact-resnet-50", there.preact_resnet(DEEP, bottleneck=True), "PreActResNet-50"),
        ("resnet-34", there.resnet(DEEP), "ResNet-34"),
        ("resnet-50", there.resnet(DEEP, bottleneck=True), "ResNet-50"),
        ("wrn-28-10", there.wide_resnet(28, 10), "WideResNet-28-10"),
        ("wrn-70-16(padding=end, activation=silu)", there.deepmind_wide_resnet(70, 16), "WideResNet-70-16"),
        ("wrn-16-8(widening=2)", there.wide_resnet(16, 2), "WideResNet-16-2"),
        ("wrn-16-8(widening=2, padding=end)", there.deepmind_wide_resnet(16, 2), "WideResNet-16-2"),
    ],
)
def test_names_and_titles_of_networks(name: str, foreign: Foreign, title: str) -> None:
    plain, options = models.MODELS.parsed(name, "model")
    with torch.device("meta"):
        model = models.MODELS.create(plain, 3, 10, 32, MEAN, STD, **options)
    found = counterpart(model, 10)
    names = {found.name(key) for key in model.state_dict()} - {"mu", "sigma"}
    assert names == foreign.shapes.keys() and found.title == title


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("small-cnn", "no counterpart of SmallCNN"),
        ("preact-resnet-18(activation=silu)", "activation=relu only"),
        ("preact-resnet-18(base_width=8)", "base_width 64 only, not 8"),
        ("preact-resnet-50(shortcut=raw)", "no PreActBottleneck with shortcut=raw"),
        ("wrn-16-8(activation=silu)", "activation=relu, or padding=end only"),
    ],
)
def test_a_network_that_they_lack_is_refused(name: str, said: str) -> None:
    plain, options = models.MODELS.parsed(name, "model")
    with torch.device("meta"):
        model = models.MODELS.create(plain, 3, 10, 32, MEAN, STD, **options)
    with pytest.raises(UserError, match=said):
        counterpart(model, 10)


# --- the folder ---


def trained(out: Path, **changes: Any) -> nn.Module:
    """Put a run on CIFAR-10 into a folder, with weights of which none is neutral, and return its model."""
    config = resolve({"data": "cifar10", "method": "fast-at", "eps": 8 / 255, "device": "cpu", **changes})
    model = models.create(config.model.name, **ARGUMENTS, **config.model.options, seed=0)
    for name, value in model.state_dict().items():
        if ("bn" in name or "bias" in name) and value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=torch.Generator().manual_seed(len(name))))
    out.mkdir()
    (out / "config.yaml").write_text(to_yaml(config))
    record = {"epoch": 1, "loss": 1.0, "val_sa": 0.5, "val_ra": 0.4}
    saved = checkpoint.Checkpoint(config, ARGUMENTS, 1, model.state_dict(), history=(record,), best_epoch=1)
    checkpoint.save(out / "best.pt", saved)
    return model.eval()


def judged(model: nn.Module, *, broken: int = 0, n: int = 10_000, attack: str = "autoattack") -> Evaluation:
    """A record in which 8,512 of 10,000 clean images are right, and 4,306 withstand, or `broken` fewer."""
    clean, robust = (np.arange(n) < count for count in (8512, 4306 - broken))
    about = {"checkpoint": "best.pt", "epoch": 1, "weights": digest(model.state_dict())[:16]}
    return Evaluation(Threat("linf", 8 / 255), broken, clean, {attack: Outcome(robust, None, {})}, about=about)


class Stub(nn.Module):
    """Stands for a class of theirs: notes its arguments, keeps what is loaded, computes as the restated network."""

    foreign: Foreign
    seen: dict[str, Any]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()
        type(self).seen = {"arguments": arguments, **named}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        own = {key: state[key] for key in dict(self.named_buffers())}
        super().load_state_dict(own)
        self.weights = {key: value for key, value in state.items() if key not in own}
        assert self.weights.keys() == self.foreign.shapes.keys() - {"mean", "std"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "mean"):
            x = (x - self.mean) / self.std  # as theirs does itself
        return self.foreign.logits(self.weights, x)


@pytest.mark.parametrize(
    ("changes", "foreign", "module", "names", "seen"),
    [
        (
            {"model": "preact-resnet-18"},
            there.preact_resnet(BASIC),
            "resnet",
            ["PreActResNet", "PreActBlock"],
            {"arguments": ("PreActBlock", [2, 2, 2, 2]), "num_classes": 10, "bn_before_fc": True},
        ),
        (
            {"model": "wrn-16-8"},
            there.wide_resnet(16, 8),
            "wide_resnet",
            ["WideResNet"],
            {"arguments": (), "depth": 16, "num_classes": 10, "widen_factor": 8, "sub_block1": False},
        ),
        (
            {"model": "wrn-16-8", "widening": 2},
            there.wide_resnet(16, 2),
            "wide_resnet",
            ["WideResNet"],
            {"arguments": (), "depth": 16, "num_classes": 10, "widen_factor": 2, "sub_block1": False},
        ),
        (
            {"model": "wrn-16-8", "widening": 2, "padding": "end", "activation": "silu"},
            there.deepmind_wide_resnet(16, 2),
            "dm_wide_resnet",
            ["DMWideResNet", "Swish"],
            {"arguments": (), "num_classes": 10, "depth": 16, "width": 2, "activation_fn": "Swish"},
        ),
        (
            {"model": "wrn-16-8", "padding": "end", "activation": "silu"},
            there.deepmind_wide_resnet(16, 8),
            "dm_wide_resnet",
            ["DMWideResNet", "Swish"],
            {"arguments": (), "num_classes": 10, "depth": 16, "width": 8, "activation_fn": "Swish"},
        ),
    ],
    ids=["preact", "wide", "wide of another factor", "the same, padded at the end", "wide, padded at the end"],
)
def test_the_folder_is_a_submission(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    foreign: Foreign,
    module: str,
    names: list[str],
    seen: dict[str, Any],
) -> None:
    model = trained(tmp_path / "run", **changes)
    evaluation.write(judged(model), tmp_path / "run")
    made = adv_train.export(tmp_path / "run", tmp_path / "rb", form="robustbench", **TOLD)
    assert made.difference == 0 and not made.notes
    files = {str(file.relative_to(tmp_path / "rb")) for file in (tmp_path / "rb").rglob("*") if file.is_file()}
    weights = "models/cifar10/Linf/Doe2026Fast.pt"
    assert files == {weights, "model_info/cifar10/Linf/Doe2026Fast.json", "model_zoo/Doe2026Fast.py"}
    state = torch.load(tmp_path / "rb" / weights, weights_only=True)

    # Our own loader of foreign checkpoints, into fresh weights and another normalisation.
    name, options = changes["model"], {key: value for key, value in changes.items() if key != "model"}
    fresh = models.create(name, **{**ARGUMENTS, "mean": [0.0] * 3, "std": [1.0] * 3}, seed=1, **options).eval()
    models.load_weights(fresh, tmp_path / "rb" / weights)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(x).detach()
    assert torch.equal(fresh(x), expected)

    # The class that was written, over a stand-in for theirs.
    stub = type(names[0], (Stub,), {"foreign": foreign})
    place = f"robustbench.model_zoo.architectures.{module}"
    for part in ("robustbench", "robustbench.model_zoo", "robustbench.model_zoo.architectures", place):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    vars(sys.modules[place]).update({names[0]: stub, **{other: other for other in names[1:]}})
    scope: dict[str, Any] = {"__name__": "zoo"}
    exec((tmp_path / "rb" / "model_zoo" / "Doe2026Fast.py").read_text(), scope)
    network = scope["Doe2026Fast"]()
    assert type(network).seen == seen
    network.load_state_dict(state)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, nn.Module]:
    return tmp_path / "run", trained(tmp_path / "run", model="preact-resnet-18")


def claim(path: Path, out: Path, **told: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    made = adv_train.export(path, out, form="robustbench", force=True, **{"model_id": "Doe2026Fast", **told})
    return json.loads((out / "model_info/cifar10/Linf/Doe2026Fast.json").read_text()), made.notes


def test_the_claim_holds_what_was_measured_and_told(tmp_path: Path, run: tuple[Path, nn.Module]) -> None:
    path, model = run
    evaluation.write(judged(model), path)
    info, notes = claim(path, tmp_path / "rb", additional_data=True, footnote="Note.", **TOLD)
    assert info == {
        "link": "https://x.org",
        "name": "Fast",
        "authors": "J. Doe",
        "additional_data": True,
        "number_forward_passes": 1,
        "dataset": "cifar10",
        "venue": "Unpublished 2026",
        "architecture": "PreActResNet-18",
        "eps": "8/255",
        "clean_acc": "85.12",
        "reported": None,
        "autoattack_acc": "43.06",
        "footnote": "Note.",
    }
    evaluation.write(judged(model, broken=7), path)  # another seed of the attacks
    doubtful = replace(
        judged(model, broken=9), attacks={"autoattack": Outcome(np.arange(10_000) < 4297, None, {}, ("x",))}
    )
    evaluation.write(doubtful, path)
    info, notes = claim(path, tmp_path / "rb")
    assert info["autoattack_acc"] == "42.97" and info["venue"] == info["name"] == ""
    assert notes == (
        "complete these fields in the JSON, or give them as flags: title, authors, venue, link",
        "warning of the evaluation: autoattack: x",
    )


def test_figures_that_were_not_measured_are_not_claimed(tmp_path: Path, run: tuple[Path, nn.Module]) -> None:
    path, model = run
    with pytest.raises(UserError, match="the run is not evaluated: run `adv-train eval"):
        claim(path, tmp_path / "rb")
    other = judged(model)
    for record in (
        judged(model, n=9_999),
        judged(model, attack="pgd"),
        replace(other, threat=Threat("linf", 0.01)),
        replace(other, about={**other.about, "weights": "0" * 16}),
    ):
        evaluation.write(record, path)
        with pytest.raises(
            UserError, match=r"with AutoAttack on all 10,000 test images within linf 8/255: run `adv-train eval"
        ):
            claim(path, tmp_path / "rb")
    assert not (tmp_path / "rb").exists()


def test_a_leaderboard_that_does_not_exist_is_told(tmp_path: Path) -> None:
    trained(tmp_path / "run", model="preact-resnet-18", norm="l1", eps=12 / 255)
    with pytest.raises(UserError, match="no leaderboard for l1, only for linf and l2"):
        claim(tmp_path / "run", tmp_path / "rb")
    with pytest.raises(UserError, match="needs a run, because it reports"):
        adv_train.export(nn.Linear(2, 2), tmp_path / "rb", form="robustbench", image_shape=(3, 2, 2), model_id="A2026B")
