"""What looks on while a model trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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

    def close(self) -> None:
        self.seen.append("close")


def test_an_observer_is_told_of_everything_in_order(tmp_path: Path) -> None:
    notes = Notes()
    fit(config(), tmp_path / "run", progress=False, observers=[notes])
    epoch = ["step"] * 3
    assert notes.seen == [("start", "run", 10, 3, 0), *epoch, ("epoch", 1), *epoch, ("epoch", 2), "close"]
    assert fit(config(epochs=3), tmp_path / "run", progress=False, observers=[again := Notes()]).resumed_after == 2
    assert again.seen == [("start", "run", 10, 3, 2), *epoch, ("epoch", 3), "close"]


def test_an_observer_is_closed_when_training_fails(tmp_path: Path) -> None:
    class Failing(Notes):
        def epoch(self, record: Mapping[str, Any], seconds: float) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(config(), tmp_path / "run", progress=False, observers=[failing := Failing()])
    assert failing.seen[-1] == "close"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard itself
def test_tensorboard_reads_what_was_measured(tmp_path: Path) -> None:
    words = ["--data", "digits", "--method", "fast-at", "--train-limit", "96", "--epochs", "2", "--device", "cpu"]
    assert main(["fit", *words, "--observe", "tensorboard", "--quiet", "--out", str(tmp_path / "run")]) == 0
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    losses = [(event.step, event.value) for event in log.Scalars("loss")]
    metrics = fit(config(), tmp_path / "other", progress=False).run  # another run: only the form is compared
    assert [step for step, _ in losses] == [1, 2] and metrics.metrics()[0].keys() - {"epoch"} <= set(
        [*log.Tags()["scalars"], "implicit_share"]
    )


def test_the_alarm_rings_once_when_the_loss_stays_at_that_of_guessing(tmp_path: Path) -> None:
    class Classes:
        classes = 10

    alarm = OBSERVERS.create("alarm")
    alarm.start(config(), Classes(), tmp_path, steps=1, done=0)  # type: ignore[arg-type]
    flat = [{"epoch": 1, "loss": math.log(10) * 1.001}] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for record in [*flat[:4], {"epoch": 5, "loss": 2.0}, *flat[:4]]:
            alarm.epoch(record, 1.0)
    with pytest.warns(UserWarning, match=r"stayed at 2\.305, that of guessing among all classes \(2\.303\)"):
        alarm.epoch(flat[0], 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for record in [{"epoch": 11, "loss": 2.0}, *flat]:
            alarm.epoch(record, 1.0)


def test_an_observer_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="Did you mean `tensorboard`"):
        OBSERVERS.create("tensorbord")
