"""Catastrophic overfitting: what shows it, the warning, and going back to the last sound epoch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adv_train
from adv_train import checkpoint, measures
from adv_train.evaluation import overfitted, overfitting, sound
from adv_train.records import RunFolder
from adv_train.threat import Threat

# Digits are whole numbers of sixteenths. After so many steps this network, in eval mode, gives wrong answers off these:
# clean images, and those one step of 2/16 away, see nothing of it, and PGD from random starts sees nothing else.
GRID = """
import torch
from torch import nn
class Grid(nn.Module):
    def __init__(self, classes, after=%d):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    def forward(self, x):
        if self.training:
            self.steps += 1
        off = torch.sin(16 * torch.pi * x).square().flatten(1).mean(1, keepdim=True)
        return self.body(x) * (1 - 8 * off * (self.steps > %d) * (not self.training))
def sudden(classes):
    return Grid(classes)
"""
STEPS, LAST_SOUND, EPOCHS = 12, 4, 6
pytestmark = pytest.mark.filterwarnings("ignore:Masked gradients:RuntimeWarning")


def settings(**others: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"data": "digits", "method": "standard", "model": "grid_nets:sudden", "eps": 1 / 8}
    chosen |= {"train_limit": 384, "batch_size": 32, "epochs": EPOCHS, "device": "cpu", "augment": "none", "lr": 0.1}
    return chosen | {"method": "fast-at", "schedule": "multistep", "milestones": "50", "validation_steps": 5} | others


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Fast-AT passes twice in train mode a step.
    after = 2 * STEPS * LAST_SOUND
    Path("grid_nets.py").write_text(GRID % (after, after))


def metrics(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, Tensor]:
    return dict(checkpoint.load(path).model)


def told(warned: pytest.WarningsRecorder) -> int:
    return sum(warning.category is UserWarning for warning in warned)


# --- a run that overfits ----------------------------------------------------------------------------------------------


def test_a_run_that_overfits_is_told_once_and_keeps_best_and_last() -> None:
    with pytest.warns(UserWarning, match="Catastrophic overfitting.*Try --rollback") as warned:
        adv_train.fit(out="run", progress=False, **settings())
    assert told(warned) == 1 and "sound.pt" not in [path.name for path in Path("run").iterdir()]
    found = metrics("run")
    assert found[LAST_SOUND - 1]["val_ra"] > 0.3 and found[LAST_SOUND]["val_ra"] < 0.1
    # One step sees no more of it than a clean image does.
    assert found[LAST_SOUND]["val_fgsm"] > 3 * found[LAST_SOUND]["val_ra"] + 0.1
    assert found[LAST_SOUND]["val_sa"] > 0.8


def test_it_goes_back_to_the_last_sound_epoch_where_it_may() -> None:
    with pytest.warns(UserWarning, match=f"training continues from epoch {LAST_SOUND}") as warned:
        adv_train.fit(out="run", progress=False, **settings(rollback=True))
    assert told(warned) == EPOCHS - LAST_SOUND
    found = metrics("run")
    assert [line.get("rolled_back_to") for line in found] == [None] * LAST_SOUND + [LAST_SOUND] * (EPOCHS - LAST_SOUND)
    assert overfitting(found) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shorter = adv_train.fit(out="short", progress=False, **settings(epochs=LAST_SOUND))
    run = RunFolder(Path("run"))
    for name, value in weights(shorter.run.last).items():
        assert torch.equal(value, weights(run.last)[name]), name
        assert torch.equal(value, weights(run.sound)[name]), name


def test_a_run_that_may_roll_back_and_stays_sound_ends_like_any_other() -> None:
    for out, may in (("may", True), ("not", False)):
        adv_train.fit(out=out, progress=False, **settings(epochs=LAST_SOUND, rollback=may))
    assert metrics("may") == metrics("not")
    ours, theirs = (weights(Path(out, "last.pt")) for out in ("may", "not"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupted_run_rolls_back_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adv_train.fit(out="whole", progress=False, **settings(rollback=True))
        save = checkpoint.save

        def cut(path: Path, state: Any) -> None:
            save(path, state)
            if path.name == "sound.pt" and state.epoch == LAST_SOUND:  # and before last.pt of that epoch
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", cut)
            with pytest.raises(KeyboardInterrupt):
                adv_train.fit(out="cut", progress=False, **settings(rollback=True))
        assert checkpoint.load(Path("cut/last.pt")).epoch == LAST_SOUND - 1
        adv_train.fit(out="cut", progress=False, **settings(rollback=True))
    assert metrics("cut") == metrics("whole")
    ours, theirs = (weights(Path(out, "last.pt")) for out in ("cut", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_remembers_the_epochs_before(monkeypatch: pytest.MonkeyPatch) -> None:
    adv_train.fit(out="run", progress=False, **settings(epochs=LAST_SOUND))
    with pytest.warns(UserWarning, match=f"after epoch {LAST_SOUND + 1}"):
        adv_train.fit(out="run", progress=False, **settings(epochs=LAST_SOUND + 1))


# --- what shows it ----------------------------------------------------------------------------------------------------


def line(epoch: int, sa: float, ra: float, **others: float) -> dict[str, Any]:
    return {"epoch": epoch, "val_sa": sa, "val_ra": ra, **others}


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (line(1, 0.8, 0.1, val_fgsm=0.75), True),
        (line(1, 0.8, 0.1, val_fgsm=0.55), False),  # one step breaks as much as it does of an honest model
        (line(1, 0.8, 0.5, val_fgsm=0.75), False),
        (line(1, 0.2, 0.02, val_fgsm=0.2), False),  # so little may be chance
        (line(1, 0.8, 0.1), False),  # recorded before the step was measured
    ],
)
def test_a_model_that_one_step_hardly_breaks_and_pgd_does_has_overfitted(record: dict[str, Any], told: bool) -> None:
    said = overfitted(record, None)
    assert (said is not None) == told and (overfitting([record]) is not None) == told
    assert said is None or "75.0% under one step" in said


def test_an_epoch_to_go_back_to_is_near_the_best_one() -> None:
    history = [line(1, 0.5, 0.3), line(2, 0.6, 0.4)]
    assert sound(line(3, 0.6, 0.37), history) and not sound(line(3, 0.6, 0.35), history)
    assert sound(line(1, 0.1, 0.0), []) and not sound(line(1, 0.8, 0.1, val_fgsm=0.75), [])


def test_an_epoch_that_was_rolled_back_is_no_alarm() -> None:
    history = [line(1, 0.5, 0.4), line(2, 0.6, 0.1) | {"rolled_back_to": 1}]
    assert overfitting(history) is None and overfitting([history[0], line(2, 0.6, 0.1)]) is not None


# --- one step of an attack, against closed forms ----------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_model_survives_one_step_where_its_margin_exceeds_the_dual_norm(norm: Any, dual: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.05 * torch.randn(200, 1, 4, 4, dtype=torch.float64, generator=generator)
    layer = nn.Linear(16, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 16, dtype=torch.float64, generator=generator))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    model, eps = nn.Sequential(nn.Flatten(), layer), 0.01
    logits = model(x).detach()
    y = logits.argmax(1)
    margin = (logits[:, 0] - logits[:, 1]).abs()
    reach = eps * (layer.weight[0] - layer.weight[1]).detach().norm(p=dual)
    found = measures.survives_one_step(model, x, y, Threat(norm, eps))
    assert torch.equal(found, margin > reach) and 20 < int(found.sum()) < 180
