"""What is exported is the model: its logits, read by other libraries and from a file alone."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from torch import nn

import adv_train
from adv_train import checkpoint, models
from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.export import FORMS
from adv_train.export import state_dict as state_dict_form
from adv_train.export.state_dict import StateDict

SUFFIXES = {"state-dict": ".pt", "safetensors": ".safetensors", "torch-export": ".pt2", "onnx": ".onnx"}
OWN = """
from torch import nn
def net(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))
class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        x = self.layer(x.flatten(1))
        return x if x.sum().item() > 0 else -x
def branching():
    return Branching()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is not its last one, with averaged weights."""
    out = tmp_path_factory.mktemp("export") / "run"
    adv_train.fit(out=out, data="digits", method="fast-at", epochs=3, train_limit=96, batch_size=32, device="cpu",
                  progress=False, validation_steps=1, ema=0.9)  # fmt: skip
    last = checkpoint.load(out / "last.pt")
    moved = {name: value + 0.01 if value.is_floating_point() else value for name, value in last.average.items()}
    best = checkpoint.load(out / "best.pt")
    checkpoint.save(out / "best.pt", checkpoint.Checkpoint(**{**vars(best), "model": moved}))
    return out


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["best", "last"])
def which(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.fixture(scope="module")
def truth(run: Path, images: torch.Tensor, which: str) -> torch.Tensor:
    """The logits by a computation in NumPy-like steps, from the weights in the checkpoint."""
    saved = checkpoint.load(run / f"{which}.pt")
    w = saved.average or saved.model
    assert which == "best" or not torch.equal(saved.average["head.weight"], saved.model["head.weight"])
    x = (images - w["normalise.mean"]) / w["normalise.std"]
    for name, stride in (("0", 1), ("2", 2), ("4", 2)):
        x = nn.functional.conv2d(x, w[f"features.{name}.weight"], w[f"features.{name}.bias"], stride, padding=1).relu()
    return x.flatten(1) @ w["head.weight"].T + w["head.bias"]


def test_every_form_is_the_model_that_was_asked_for(
    tmp_path: Path, run: Path, images: torch.Tensor, which: str, truth: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, suffix in SUFFIXES.items():
        words = [str(run), "--form", form, "--checkpoint", which, "--out", str(tmp_path / f"x{suffix}")]
        assert main(["export", *words]) == 0
        said = capsys.readouterr().out
        assert "(averaged weights, ema 0.9)" in said and "differ from the model's by at most" in said
    model = adv_train.load_model(run)
    for state in (torch.load(tmp_path / "x.pt", weights_only=True), _safetensors(tmp_path / "x.safetensors")):
        model.load_state_dict(state)
        torch.testing.assert_close(model(images), truth, rtol=1e-5, atol=1e-5)
    program = torch.export.load(tmp_path / "x.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 2, 9):
        torch.testing.assert_close(program(images[:number]), truth[:number], rtol=1e-5, atol=1e-5)
        (found,) = session.run(None, {"images": images[:number].numpy()})
        np.testing.assert_allclose(found, truth[:number].numpy(), rtol=1e-4, atol=1e-4)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_files_say_what_they_hold(tmp_path: Path, run: Path) -> None:
    adv_train.export(run, tmp_path / "x.safetensors", form="safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        told = {key: json.loads(value) for key, value in file.metadata().items()}
    saved = checkpoint.load(run / "best.pt")
    assert told["model"] == "small-cnn" and told["mean"] != list(saved.model_arguments["mean"])
    assert all(told[key] == saved.model[f"normalise.{key}"].flatten().tolist() for key in ("mean", "std"))
    assert (told["classes"], told["channels"], told["image_size"], told["norm"]) == (10, 1, 8, "linf")
    assert (
        told["eps"] == saved.config.threat.eps and told["epoch"] == saved.epoch and told["torch"] == torch.__version__
    )
    made = adv_train.export(run, tmp_path / "x.onnx", form="onnx", opset=20)
    graph = onnx.load(tmp_path / "x.onnx")
    assert graph.opset_import[0].version == 20 and made.difference <= made.allowed
    assert {prop.key: json.loads(prop.value) for prop in graph.metadata_props if prop.key == "adv_train"} == {
        "adv_train": told
    }
    extra = {"adv_train.json": ""}
    adv_train.export(run, tmp_path / "x.pt2", form="torch-export")
    torch.export.load(tmp_path / "x.pt2", extra_files=extra)
    assert json.loads(extra["adv_train.json"]) == told


def test_the_normalisation_told_is_that_of_the_weights(tmp_path: Path, run: Path) -> None:
    """Of the data, exactly; or, where a run starts from weights for images in [0, 1], none."""
    last = checkpoint.load(run / "last.pt")
    told = adv_train.export(run, tmp_path / "a.pt", form="state-dict", checkpoint="last").about
    assert all(told[key] == list(last.model_arguments[key]) for key in ("mean", "std"))
    weights = {name: value for name, value in last.model.items() if not name.startswith("normalise")}
    torch.save(weights, tmp_path / "init.pt")
    adv_train.fit(out=tmp_path / "b", data="digits", method="fast-at", epochs=1, train_limit=64, device="cpu",
                  progress=False, init=str(tmp_path / "init.pt"), init_normalisation="none")  # fmt: skip
    adv_train.export(tmp_path / "b", tmp_path / "b.safetensors", form="safetensors")
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert (file.metadata()["mean"], file.metadata()["std"]) == ("[0.0]", "[1.0]")


@pytest.mark.parametrize("form", ["state-dict", "safetensors"])
def test_exported_weights_are_judged_as_the_run_is(
    tmp_path: Path, run: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = f"x{SUFFIXES[form]}"
    assert main(["export", str(run), "--form", form, "--out", file]) == 0
    quick = [
        "--no-autoattack",
        "--pgd-steps",
        "2",
        "--pgd-restarts",
        "1",
        "--limit",
        "60",
        "--quiet",
        "--device",
        "cpu",
    ]
    eps = adv_train.checkpoint.load(run / "best.pt").config.threat.eps  # type: ignore[attr-defined]
    words = ["--checkpoint-file", file, "--model", "small-cnn", "--data", "digits", "--eps", str(eps), "--out", "there"]
    assert main(["eval", *words, *quick]) == 0
    assert main(["eval", str(run), *quick]) == 0
    one, other = (json.loads((place / "eval.json").read_text()) for place in (Path("there"), run))
    assert one["weights"] == other["weights"] and (one["sa"], one["ra_pgd"]) == (other["sa"], other["ra_pgd"])


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all.")
    with pytest.raises(UserError, match="is not a weights file that PyTorch or safetensors can read"):
        models.load_weights(nn.Linear(2, 2), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="There is no weights file"):
        models.load_weights(nn.Linear(2, 2), tmp_path / "gone.safetensors")


def test_networks_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets_to_export.py").write_text(OWN)
    for name in ("net", "branching"):
        adv_train.fit(out=name, data="digits", method="standard", model=f"nets_to_export:{name}", epochs=1,
                      train_limit=64, device="cpu", progress=False, validation_steps=1)  # fmt: skip
    for form, suffix in SUFFIXES.items():
        assert adv_train.export("net/last.pt", f"net{suffix}", form=form).size == Path(f"net{suffix}").stat().st_size
    with pytest.raises(UserError, match=r"torch\.export cannot trace the model .*state-dict or safetensors"):
        adv_train.export("branching", "b.pt2", form="torch-export")
    assert not Path("b.pt2").exists()
    assert adv_train.export("branching", "b.safetensors", form="safetensors").difference == 0
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    assert adv_train.export(module, "m.pt2", form="torch-export", image_shape=(3, 2, 2)).about["channels"] == 3
    with pytest.raises(UserError, match="`image_shape` is missing"):
        adv_train.export(module, "n.pt2", form="torch-export")


def test_what_is_there_is_kept_without_force(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.pt"
    out.write_bytes(b"mine")
    words = ["export", str(run), "--form", "state-dict", "--out", str(out)]
    assert main(words) == 2 and out.read_bytes() == b"mine"
    assert "--force to replace it" in capsys.readouterr().err
    # What is not the model does not replace anything either.
    with monkeypatch.context() as patch:
        patch.setattr(state_dict_form.torch, "save", _spoilt(torch.save))
        assert main([*words, "--force"]) == 2
    assert "The written model differs from the original" in capsys.readouterr().err
    assert out.read_bytes() == b"mine" and [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    assert main([*words, "--force"]) == 0 and torch.load(out, weights_only=True)


def _spoilt(save: Any) -> Any:
    return lambda state, file: save(state | {"head.bias": state["head.bias"] + 1e-6}, file)


def test_nan_is_no_agreement(tmp_path: Path) -> None:
    broken = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        broken[1].bias[0] = float("nan")
    with pytest.raises(UserError, match="is not finite for 1 random images"):
        adv_train.export(broken, tmp_path / "x.pt", form="state-dict", image_shape=(3, 2, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--form", "onnx"], "Give also --out"),
        (["--form", "onx", "--out", "x.onnx"], "Did you mean `onnx`"),
        (["--form", "onnx", "--out", "x.pt"], "a file that ends in .onnx, but --out is `x.pt`"),
        (["--form", "state-dict", "--opset", "18", "--out", "x.pt"], "form 'state-dict' has no option `opset`"),
        (["--form", "onnx", "--opset", "7", "--out", "x.onnx"], "`opset` must be"),
        (["--form", "robustbench", "--out", "x"], "needs --model-id AuthorYearWord"),
        (["--form", "robustbench", "--model-id", "A2026B", "--out", "x"], "no leaderboard for digits"),
    ],
)
def test_what_cannot_be_written_is_told_in_one_line(
    run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_missing_package_of_onnx_is_told_with_the_command(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    form = importlib.import_module("adv_train.export.onnx")
    monkeypatch.setattr(form, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    assert main(["export", str(run), "--form", "onnx", "--out", str(tmp_path / "x.onnx")]) == 2
    assert "onnxscript is missing; install them with: pip install 'torch-blo[onnx]'" in capsys.readouterr().err


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12))
    model[2].weight = model[1].weight
    for form in ("state-dict", "safetensors"):
        adv_train.export(model, tmp_path / f"x{SUFFIXES[form]}", form=form, image_shape=(3, 2, 2))
    assert _safetensors(tmp_path / "x.safetensors").keys() == model.state_dict().keys()


def test_a_form_has_a_line_in_the_list() -> None:
    assert set(FORMS.names()) == {*SUFFIXES, "robustbench"} and isinstance(FORMS.create("state-dict"), StateDict)
    assert all(FORMS.describe(name) for name in FORMS.names())
