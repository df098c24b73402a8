"""A file that names a model of foreign code runs it only where the user repeats the name."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import adv_train
from adv_train import checkpoint
from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.models import trusted

NAME = "planted:linear"
PLANTED = """
from pathlib import Path
from torch import nn
Path("imported").touch()
def linear(classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
"""
SMALL = ["--train-limit", "96", "--epochs", "1", "--device", "cpu", "--quiet", "--validation-steps", "1"]
EVAL = ["eval", "run", "--no-autoattack", "--pgd-steps", "1", "--limit", "20", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sys.modules.pop("planted", None)  # a worker that returns to this module makes the fixture once more
        Path("planted.py").write_text(PLANTED)
        words = ["fit", "--data", "digits", "--method", "standard", "--model", NAME, "--out", "run", *SMALL]
        assert main(words) == 0 and Path("imported").exists()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of somebody else: nothing is trusted, and the code that it names has not been imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trusted, "_trusted", set())
    sys.modules.pop("planted", None)
    Path("planted.py").write_text(PLANTED)
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.mark.parametrize(
    "words",
    [
        EVAL,
        ["doctor", "run", "--quiet"],
        ["export", "run", "--form", "state-dict", "--out", "a.pt"],
        ["fit", "--out", "run", "--epochs", "2", "--quiet"],
        ["plot", "landscape", "run", "--out", "figures", "--points", "3", "--quiet"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_refuses_a_factory_that_only_a_file_names(
    words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"--trust {NAME}" in capsys.readouterr().err
    assert not Path("imported").exists()


@pytest.mark.parametrize("words", [["--trust", NAME], [f"--trust={NAME}"]], ids=["two words", "one word"])
def test_a_name_that_is_repeated_is_trusted(words: list[str], run: Path) -> None:
    assert main([*EVAL, *words]) == 0
    assert Path("imported").exists()


def test_another_name_is_not_trusted(run: Path) -> None:
    assert main([*EVAL, "--trust", "planted:other"]) == 2
    assert not Path("imported").exists()


def test_python_refuses_and_trusts_likewise(run: Path) -> None:
    for path in (run, run / "best.pt"):
        with pytest.raises(UserError, match=r"adv_train\.trust\('planted:linear'\)"):
            adv_train.load_model(path)
    assert not Path("imported").exists()
    adv_train.trust(NAME)
    assert adv_train.load_model(run)[1].out_features == 10  # type: ignore[index, union-attr]


def test_a_checkpoint_cannot_pass_arguments_to_a_function(run: Path) -> None:
    saved = checkpoint.load(run / "best.pt")
    model = replace(saved.config.model, name="subprocess:getoutput")
    planted = replace(saved, config=replace(saved.config, model=model), model_arguments={"cmd": "touch imported"})
    checkpoint.save(run / "best.pt", planted)
    adv_train.trust("subprocess:getoutput")
    with pytest.raises(UserError, match="unknown model arguments cmd"):
        adv_train.load_model(run / "best.pt")
    assert not Path("imported").exists()


def test_a_comparison_trusts_what_its_user_named(run: Path) -> None:
    words = ["compare", "--methods", "standard", "--data", "digits", "--model", NAME, "--seeds", "1", "--limit", "20"]
    assert main([*words, "--attacks", "pgd", "--pgd-steps", "1", "--out", "compared", "--workers", "1", *SMALL]) == 0
    assert Path("compared/comparison.json").exists()


@pytest.mark.parametrize("name", ["small-cnn", ":", "a:", ":b", ""])
def test_only_the_name_of_a_factory_can_be_trusted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--trust", name]) == 2
    assert "package.module:factory" in capsys.readouterr().err
