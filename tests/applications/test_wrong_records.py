"""Records and weights that belong to something else than what is asked for are not used."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import adv_train
from adv_train import data, evaluation
from adv_train.attacks import ATTACKS, PGD
from adv_train.cli import main
from adv_train.comparison import Cell, Judgement
from adv_train.evaluation import Evaluation, Outcome
from adv_train.records import RunFolder
from adv_train.summaries import summarise
from adv_train.threat import Threat

TOY = ["--data", "digits", "--method", "fast-at", "--train-limit", "60", "--validation-steps", "1", "--device", "cpu"]
FEW = ["--limit", "20", "--quiet"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert main(["fit", *TOY, "--epochs", "1", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("asked", "judged"),
    [
        ("pgd(steps=2,restarts=1)", "pgd(steps=2,restarts=1,step=0.001)"),
        ("pgd-targeted(steps=2)", "pgd-targeted(steps=2,targets=1)"),
    ],
)
def test_a_comparison_takes_no_record_of_another_attack(run: Path, asked: str, judged: str) -> None:
    config = RunFolder(run).config()
    wanted = Judgement("best", (ATTACKS.read(asked, "attack"),), 20)
    for attack, right in ((judged, False), (asked, True)):
        assert main(["eval", str(run), "--attacks", attack, *FEW]) == 0
        assert any(wanted.is_in(record, 1, config) for record in evaluation.read_all(run)) == right


def test_a_comparison_takes_no_record_of_a_transfer_from_other_weights(run: Path) -> None:
    other, source = run.with_name("other"), run.with_name("source")
    assert main(["fit", *TOY, "--epochs", "1", "--seed", "1", "--out", str(other), "--quiet"]) == 0
    shutil.copytree(run, source)
    words = f"transfer(source={source / 'best.pt'},steps=2)"
    wanted, config = Judgement("best", (ATTACKS.read(words, "attack"),), 20), RunFolder(run).config()

    def taken() -> list[bool]:
        return [wanted.is_in(record, 1, config) for record in evaluation.read_all(run)]

    assert main(["eval", str(run), "--attacks", words, *FEW]) == 0 and taken() == [True]
    shutil.copy(other / "best.pt", source / "best.pt")
    assert taken() == [False]
    assert main(["eval", str(run), "--attacks", words, *FEW]) == 0 and sorted(taken()) == [False, True]
    (source / "best.pt").unlink()
    assert taken() == [True, True]  # a record may outlive its source


def test_the_headline_is_the_stronger_of_two_attacks_with_as_many_steps() -> None:
    clean = np.ones(4, dtype=bool)

    def record(step: float, left: int) -> Evaluation:
        outcome = Outcome(np.arange(4) < left, None, {"steps": 2, "restarts": 1, "step": step})
        return Evaluation(Threat("linf", 0.2), 0, clean, {"pgd": outcome}, about={"checkpoint": "best.pt", "epoch": 1})

    weak, strong = record(0.001, 4), record(0.05, 1)
    assert evaluation.headline([weak, strong]) is strong is evaluation.headline([strong, weak])


def test_a_figure_takes_no_record_of_an_earlier_epoch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was extended has other weights in best.pt than those that were evaluated."""
    words = ["eval", str(run), "--attacks", "pgd(steps=1,restarts=1)", *FEW]
    assert main(words) == 0
    figure = ["plot", "strength", str(run), "--out", str(run.parent / "figures"), "--quiet"]
    assert main(figure) == 0
    assert main(["fit", "--out", str(run), "--epochs", "6", "--quiet"]) == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 6
    capsys.readouterr()
    assert main(figure) == 2
    assert "No record evaluates best.pt" in capsys.readouterr().err


def trained_again(run: Path) -> None:
    """Replace the files of a run by those of another seed; its evaluations stay."""
    other = run.with_name("other")
    assert main(["fit", *TOY, "--epochs", "1", "--seed", "1", "--out", str(other), "--quiet"]) == 0
    shutil.copytree(other, run, dirs_exist_ok=True)


def test_a_comparison_and_a_figure_take_no_record_of_other_weights_of_the_same_epoch(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack, figure = "pgd(steps=1,restarts=1)", ["plot", "strength", str(run), "--out", str(run.parent), "--quiet"]
    judgements = tuple(Judgement(which, (ATTACKS.read(attack, "attack"),), 20) for which in ("best", "last"))

    def taken() -> list[Evaluation | None]:
        return Cell("run", run, RunFolder(run).config(), judgements).evaluations()

    assert main(["eval", str(run), "--attacks", attack, *FEW]) == 0
    (old,) = evaluation.read_all(run)
    assert None not in taken() and main(figure) == 0
    trained_again(run)
    assert taken() == [None, None] and main(figure) == 2
    assert "No record evaluates best.pt" in capsys.readouterr().err
    assert main(["eval", str(run), "--attacks", attack, *FEW]) == 0
    found = taken()
    assert all(record and record.about["weights"] != old.about["weights"] for record in found)
    assert main(figure) == 0

    shutil.rmtree(run / "evaluations")
    about = {key: value for key, value in old.about.items() if key != "weights"}
    evaluation.write(replace(old, about=about), run)
    assert None not in taken() and main(figure) == 0  # an older record does not name its weights

    shutil.rmtree(run / "evaluations")
    evaluation.write(old, run)
    for file in run.glob("*.pt"):
        file.unlink()
    assert None not in taken() and main(figure) == 0  # a record may outlive the weights


def test_a_report_shows_no_record_of_other_weights_as_that_of_a_checkpoint(run: Path) -> None:
    words = ["eval", str(run), "--attacks", "pgd(steps=1,restarts=1)", "--quiet"]
    draw = ["plot", "landscape", str(run), "--points", "3", "--images", "5", "--device", "cpu", "--quiet"]
    assert main([*words, "--limit", "40"]) == 0 and main(draw) == 0
    summary = summarise(run)
    assert summary.landscape and "not those evaluated" not in summary.landscape.told
    trained_again(run)
    summary = summarise(run)
    assert summary.evaluation["checkpoint"] == "earlier best.pt" and "best.pt has other weights" in summary.alarms[-1]
    assert main([*words, "--limit", "20"]) == 0  # of fewer images, so the old record was the headline
    summary = summarise(run)
    assert (summary.evaluation["checkpoint"], summary.evaluation["n"]) == ("best.pt", 20)
    assert sorted(record["checkpoint"] for record in summary.records) == ["best.pt", "earlier best.pt"]
    assert not any("other weights" in alarm for alarm in summary.alarms)
    assert summary.landscape and "not those evaluated" in summary.landscape.told
    written = json.loads((run / "eval.json").read_text())
    assert (written["n"], written["weights"]) == (20, summary.evaluation["weights"])


def test_a_record_belongs_to_the_code_of_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = """
import torch
from torch import nn
SIGN = 1.0
class Net(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.head = nn.Linear(size, 10)
        nn.init.constant_(self.head.bias, 0.0)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(10.0 * size).view(10, size).sin())
    def forward(self, x):
        return SIGN * self.head(x.flatten(1))
def make(channels, image_size):
    return Net(channels * image_size**2)
"""
    Path("nets_that_change.py").write_text(code)
    words = ["eval", "--model", "nets_that_change:make", "--data", "digits", "--eps", "0.2", "--out", "judged", *FEW]
    assert main([*words, "--attacks", "pgd(steps=1,restarts=1)"]) == 0
    assert main([*words, "--attacks", "pgd(steps=1,restarts=1)"]) == 0
    assert "Already evaluated" in capsys.readouterr().out
    import nets_that_change  # type: ignore[import-not-found]

    nets_that_change.SIGN = -1.0  # as if the file had been edited: the weights stay the same
    assert main([*words, "--attacks", "pgd(steps=1,restarts=1),pgd-targeted(steps=1)"]) == 0
    assert "Reused" not in capsys.readouterr().out
    records = evaluation.read_all(Path("judged"))
    assert len({record.about["weights"] for record in records}) == 1
    assert len({record.about["answers"] for record in records}) == len(records) == 2


def test_bytes_span_the_range_of_the_threat() -> None:
    """A network for images in [-1, 1] gets the same images as floats, as bytes and as a data set."""

    class Shifted(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net((x + 1) / 2)
            return logits

    head = nn.Linear(64, 10, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.arange(640.0).view(10, 64).sin())
    model = Shifted(nn.Sequential(nn.Flatten(), head)).eval()
    digits = data.load("digits", root="")
    digits = replace(digits, test=digits.test.subset(torch.arange(40)))
    threat, attack = Threat("linf", 0.1, low=-1.0, high=1.0), PGD(steps=2, restarts=1)
    unit, labels = digits.test.images, digits.test.labels
    stored = (255 * unit).round().to(torch.uint8)
    pairs = [((-1 + 2 * unit, labels), (digits, None)), ((-1 + stored.float() / 255 * 2, labels), (stored, labels))]
    for pair in pairs:
        first, second = (adv_train.evaluate(model, *of, threat, attacks=[attack], progress=False) for of in pair)
        assert np.array_equal(first.predicted, second.predicted)
        assert np.array_equal(first.attacks["pgd"].predicted, second.attacks["pgd"].predicted)


def test_weights_of_another_activation_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *TOY, "--activation", "silu", "--epochs", "1", "--out", str(tmp_path / "a"), "--quiet"]) == 0
    file = str(tmp_path / "a" / "best.pt")
    words = ["eval", "--checkpoint-file", file, "--data", "digits", "--eps", "0.2", "--out", str(tmp_path / "e"), *FEW]
    words += ["--attacks", "pgd(steps=1,restarts=1)"]
    assert main([*words, "--model", "small-cnn"]) == 2
    assert "activation=silu, but the model has activation=relu" in capsys.readouterr().err
    assert main([*words, "--model", "small-cnn(activation=silu)"]) == 0
    assert main(["fit", *TOY, "--init", file, "--epochs", "1", "--out", str(tmp_path / "b"), "--quiet"]) == 2
    assert "activation=silu, but the model has activation=relu" in capsys.readouterr().err


def test_a_start_that_a_method_would_ignore_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--data",
        "digits",
        "--method",
        "learned-n-fgsm",
        "--eps",
        "0.2",
        "--start",
        "gaussian",
        "--out",
        str(tmp_path / "x"),
    ]
    assert main(["fit", *words]) == 2
    assert "`start` must be uniform or zero" in capsys.readouterr().err


def test_a_damaged_log_of_steps_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "steps.jsonl").write_text("{not json\n")
    assert main(["fit", "--out", str(run), "--epochs", "2", "--log-every", "1", "--quiet"]) == 2
    assert re.search(r"Line 1 of `.*steps.jsonl` is not JSON", capsys.readouterr().err)


def test_milestones_that_are_never_reached_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", *TOY, "--epochs", "1", "--schedule", "multistep", "--milestones", "70,85", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "does not fall at milestone 70, 85" in capsys.readouterr().err
