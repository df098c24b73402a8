"""What looks on while a model trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.observers import OBSERVERS, Observer
from adv_train.train import fit
from tests.applications.test_train import config


class Notes(Observer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def start(self, config: Any, dataset: Any, folder: Path, *, steps: int, done: int) -> None:
        self.seen.append(("start", folder.name, dataset.classes, steps, done))

    def step(self) -> None:
        self.seen.append("step")

    def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
        assert seconds > 0
        self.seen.append(("epoch", record["epoch"]))

    def finish(self, model: nn.Module) -> None:
        self.seen.append("train mode" if model.training else "finish")

    def close(self) -> None:
        self.seen.append("close")


def test_an_observer_is_told_of_everything_in_order(tmp_path: Path) -> None:
    notes = Notes()
    fit(config(), tmp_path / "run", progress=False, observers=[notes])
    epoch = ["step"] * 3
    assert notes.seen == [("start", "run", 10, 3, 0), *epoch, ("epoch", 1), *epoch, ("epoch", 2), "finish", "close"]
    assert fit(config(epochs=3), tmp_path / "run", progress=False, observers=[again := Notes()]).resumed_after == 2
    assert again.seen == [("start", "run", 10, 3, 2), *epoch, ("epoch", 3), "finish", "close"]


def test_an_observer_is_closed_when_training_fails(tmp_path: Path) -> None:
    class Failing(Notes):
        def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config(), tmp_path / "run", progress=False, observers=[failing := Failing()])
    assert failing.seen[-1] == "close"


def alarm_of(labels: list[int], folder: Path, **changes: Any) -> Observer:
    """Start an alarm for 10 classes and these validation labels."""
    dataset = SimpleNamespace(classes=10, validation=SimpleNamespace(labels=torch.tensor(labels)))
    alarm = OBSERVERS.create("alarm")
    alarm.start(config(**changes), dataset, folder, steps=1, done=0)  # type: ignore[arg-type]
    return alarm


GOOD = {"epoch": 1, "loss": 2.0, "val_sa": 0.6, "val_ra": 0.4, "val_top_class": 0.2}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (GOOD | {"loss": math.log(10) * 1.001}, r"stayed at 2\.305, the loss of guessing among all classes \(2\.303\)"),
        (GOOD | {"val_top_class": 0.995}, r"puts 99\.5% of the validation images in one class"),
    ],
)
def test_the_alarm_rings_once_when_nothing_is_learnt_for_five_epochs(
    tmp_path: Path, bad: dict[str, float], said: str
) -> None:
    alarm = alarm_of([0, 1, 2], tmp_path)
    for record in [*[bad] * 4, GOOD, *[bad] * 4]:
        alarm.epoch(record, 1.0)  # a warning would be an error
    with pytest.warns(UserWarning, match=said):
        alarm.epoch(bad, 1.0)
    for record in [GOOD, *[bad] * 5]:
        alarm.epoch(record, 1.0)


def test_one_class_among_the_validation_images_is_no_collapse(tmp_path: Path) -> None:
    alarm = alarm_of([3, 3, 3], tmp_path)
    for _ in range(5):
        alarm.epoch(GOOD | {"val_top_class": 1.0}, 1.0)


def test_the_alarm_rings_once_when_training_overfits_to_its_attack(tmp_path: Path) -> None:
    alarm = alarm_of([0, 1, 2], tmp_path)
    alarm.epoch(GOOD, 1.0)
    with pytest.warns(UserWarning, match=r"was 40\.0% after epoch 1 and 3\.0% after epoch 2.*evaluate best\.pt"):
        alarm.epoch(GOOD | {"epoch": 2, "val_ra": 0.03}, 1.0)
    alarm.epoch(GOOD | {"epoch": 3, "val_ra": 0.0}, 1.0)


def test_a_method_without_attack_has_no_attack_to_overfit_to(tmp_path: Path) -> None:
    alarm = alarm_of([0, 1, 2], tmp_path, method="standard")
    for record in (GOOD, GOOD | {"val_ra": 0.0}):
        alarm.epoch(record, 1.0)


@pytest.mark.filterwarnings("ignore:Masked gradients")
@pytest.mark.filterwarnings("always:For 5 epochs")
def test_a_constant_classifier_rings_the_alarm_from_the_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "fast-at", "--start", "zero", "--eps", "0.4", "--step", "0.6", "--epochs", "5", "--lr", "0.3"]
    out = ["--batch-size", "32", "--schedule", "constant", "--quiet", "--out", str(tmp_path / "flat")]
    assert main(["fit", "--data", "digits", "--device", "cpu", *words, *out]) == 0
    assert "puts 100.0% of the validation images in one class" in capsys.readouterr().err


def test_an_observer_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="Did you mean `tensorboard`"):
        OBSERVERS.create("tensorbord")
