"""Training architectures and from weights that are the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import adv_train
from adv_train import checkpoint, data, models
from adv_train.bench.count import flops, step_cost
from adv_train.cli import main
from adv_train.config import resolve
from adv_train.errors import UserError

SMALL = ["--train-limit", "96", "--epochs", "1", "--device", "cpu", "--quiet", "--validation-steps", "1"]
FACTORY = """
from torch import nn
def linear(classes, channels, image_size, mean):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
def frozen(classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, classes))
    model[1].requires_grad_(False)
    return model
"""


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets_to_train.py").write_text(FACTORY)


def test_an_architecture_of_ones_own_is_trained_judged_and_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "digits", "--method", "fast-bat", "--model", "nets_to_train:linear", "--out", "run", *SMALL]
    assert main(["fit", *words]) == 0
    assert main(["eval", "run", "--no-autoattack", "--pgd-steps", "1", "--limit", "20", "--quiet"]) == 0
    assert main(["fit", "--out", "run", "--epochs", "2", "--quiet"]) == 0
    model = adv_train.load_model("run")
    assert isinstance(model[1], nn.Linear) and model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert main(["fit", *words, "--model", "nets_to_train:missing", "--out", "other"]) == 2
    assert "factory in module nets_to_train" in capsys.readouterr().err


def test_frozen_layers_stay_as_they_are() -> None:
    words = ["--data", "digits", "--method", "fast-at", "--model", "nets_to_train:frozen", "--out", "run", *SMALL]
    assert main(["fit", *words]) == 0
    torch.default_generator.manual_seed(0)
    fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10)).state_dict()
    found = checkpoint.load(Path("run/last.pt")).model
    assert torch.equal(found["1.weight"], fresh["1.weight"]) and not torch.equal(found["3.weight"], fresh["3.weight"])


@pytest.mark.parametrize("method", ["fast-at", "fast-bat", "free-at", "gat", "standard"])
def test_frozen_layers_do_not_cost_gradients(method: str) -> None:
    chosen = {"data": "digits", "method": method, "model": "nets_to_train:frozen", "device": "cpu"}
    adv_train.trust("nets_to_train:frozen")
    config, arguments = resolve(chosen), data.load("digits", root="").model_arguments()
    model, x = models.create("nets_to_train:frozen", **arguments), torch.rand(8, 1, 8, 8)
    trained = {name: value for name, value in model.named_parameters() if name.startswith("3.")}
    batch, generator = data.Batch(x, torch.zeros(8, dtype=torch.int64), torch.arange(8)), torch.Generator()
    with torch.no_grad():
        forward = flops(lambda: model(x))
    step = flops(lambda: config.method(model, trained, batch, config.threat, generator=generator))
    assert step_cost(config, arguments) == step / forward


def test_training_starts_from_given_weights() -> None:
    first = adv_train.fit(
        out="first", data="digits", method="standard", epochs=2, train_limit=96, device="cpu", progress=False
    )
    second = adv_train.fit(
        "digits-fast-at",
        out="second",
        init="first/best.pt",
        lr=0,
        epochs=1,
        train_limit=96,
        device="cpu",
        progress=False,
    )
    weights, kept = (checkpoint.load(path).model for path in (first.run.best, second.run.last))
    assert all(torch.equal(kept[name], value) for name, value in weights.items())
    assert second.run.config().model.init == "first/best.pt"
    with pytest.raises(UserError, match=r"There is no weights file `gone\.pt`"):
        adv_train.fit("digits-fast-at", out="third", init="gone.pt", device="cpu", progress=False)
    assert not Path("third").exists()


def test_fit_takes_a_preset_a_file_or_names(tmp_path: Path) -> None:
    quick = {"epochs": 1, "train_limit": 96, "device": "cpu", "progress": False}
    Path("mine.yaml").write_text("data: digits\nmethod: {name: fast-bat, steps: 1}\nthreat: {eps: 0.1}\n")
    by_file = adv_train.fit("mine.yaml", out="file", **quick).run.config()
    by_names = adv_train.fit(out="names", data="digits", method="fast-bat", steps=1, eps=0.1, **quick).run.config()
    by_path = adv_train.fit(Path("mine.yaml"), out="path", **quick).run.config()
    assert by_file == by_names == by_path
    assert adv_train.fit(by_file, out="again", progress=False, seed=3).run.config().training.seed == 3
