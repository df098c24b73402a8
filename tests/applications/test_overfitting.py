"""Catastrophic overfitting: what shows it, the warning, and going back to the last sound epoch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import adv_train
from adv_train import checkpoint, measures, train
from adv_train.attacks import PGD
from adv_train.cli import main
from adv_train.comparison.cell import Cell, Judgement
from adv_train.evaluation import chance_margin, overfitted, overfitting, sound
from adv_train.plots import read_runs
from adv_train.records import RunFolder, best_record
from adv_train.summaries import summarise
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


def test_a_run_that_starts_anew_does_not_go_back_to_an_epoch_of_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run = adv_train.fit(out="anew", progress=False, **settings(epochs=1, rollback=True)).run
    for file in (run.config_file, run.metrics_file, run.last, run.best):
        file.unlink()
    assert run.sound.exists()
    # No epoch of its own is sound.
    monkeypatch.setattr(train, "overfitted", lambda record, best: "It has overfitted.")
    monkeypatch.setattr(train, "sound", lambda record, history: False)
    for out in ("whole", "anew"):
        adv_train.fit(out=out, progress=False, **settings(epochs=2, rollback=True, seed=1))
    assert metrics("anew") == metrics("whole")


def test_a_resumed_run_remembers_the_epochs_before(monkeypatch: pytest.MonkeyPatch) -> None:
    adv_train.fit(out="run", progress=False, **settings(epochs=LAST_SOUND))
    with pytest.warns(UserWarning, match=f"after epoch {LAST_SOUND + 1}"):
        adv_train.fit(out="run", progress=False, **settings(epochs=LAST_SOUND + 1))


# --- the average ------------------------------------------------------------------------------------------------------

SOUND, UNSOUND, WORSE = (0.5, 0.4), (0.5, 0.3), (0.9, 0.0)
"""Clean and robust accuracy of an epoch to go back to, of one that stays and is not, and of one that has overfitted."""


def seen_steps(monkeypatch: pytest.MonkeyPatch, scores: Sequence[tuple[float, float]]) -> list[list[dict[str, Tensor]]]:
    """Give these accuracies to the epochs; return the weights after each step of each epoch, noted as they run."""
    seen: list[list[dict[str, Tensor]]] = [[] for _ in scores]
    train_epoch = train.Trainer.train_epoch

    def validate(trainer: train.Trainer) -> dict[str, float]:
        sa, ra = scores[sum(map(bool, seen)) - 1]
        return {"val_images": 500, "val_sa": sa, "val_ra": ra, "val_fgsm": ra, "val_top_class": 0.1}

    def noted(trainer: train.Trainer, epoch: int, count_step: Callable[[], None], **others: Any) -> dict[str, Any]:
        def note() -> None:
            count_step()
            seen[epoch].append(
                {name: value.detach().double() for name, value in trainer.state.model.named_parameters()}
            )

        return train_epoch(trainer, epoch, note, **others)

    monkeypatch.setattr(train.Trainer, "validate", validate)
    monkeypatch.setattr(train.Trainer, "train_epoch", noted)
    return seen


@pytest.mark.parametrize(
    ("scores", "first", "kept"),
    [
        ((SOUND, WORSE, SOUND), 0, (1, 3)),
        ((SOUND, WORSE, WORSE, SOUND), 0, (1, 4)),
        ((SOUND, UNSOUND, WORSE, SOUND), 0, (1, 4)),  # back past an epoch that was not rolled back itself
        ((SOUND, SOUND, WORSE, SOUND), 1, (2, 4)),
        ((SOUND, WORSE, SOUND, SOUND), 1, (3, 4)),  # back to before the mean begins
        ((SOUND, WORSE, SOUND, SOUND), 2, (3, 4)),  # and before it could have begun
    ],
)
@pytest.mark.filterwarnings("ignore:Epoch . overfitted")
def test_the_mean_has_equal_weights_of_the_epochs_that_were_kept(
    monkeypatch: pytest.MonkeyPatch, scores: Sequence[tuple[float, float]], first: int, kept: tuple[int, ...]
) -> None:
    chosen = settings(model="small-cnn", train_limit=64, epochs=len(scores), rollback=True, average_from=first)
    with monkeypatch.context() as patch:
        seen = seen_steps(patch, scores)
        adv_train.fit(out="run", progress=False, **chosen)
    found = checkpoint.load(Path("run/last.pt")).average
    states = [state for epoch in kept for state in seen[epoch - 1]]
    assert len(states) == 2 * len(kept)
    for name in states[0]:
        expected = torch.stack([state[name] for state in states]).mean(0)
        assert (found[name].double() - expected).abs().max() < 1e-6, name

    def stop(trainer: train.Trainer, epoch: int, count_step: Callable[[], None], **others: Any) -> dict[str, Any]:
        if epoch == len(scores) - 1:
            raise KeyboardInterrupt
        return noted(trainer, epoch, count_step, **others)

    with monkeypatch.context() as patch:
        seen_steps(patch, scores)
        noted = train.Trainer.train_epoch
        with patch.context() as cut, pytest.raises(KeyboardInterrupt):
            cut.setattr(train.Trainer, "train_epoch", stop)
            adv_train.fit(out="cut", progress=False, **chosen)
        adv_train.fit(out="cut", progress=False, **chosen)
    resumed = checkpoint.load(Path("cut/last.pt")).average
    assert all(torch.equal(resumed[name], value) for name, value in found.items())


# --- the best epoch ---------------------------------------------------------------------------------------------------

SCORES = ((0.5, 0.4), (0.6, 0.45), (0.55, 0.43), (0.9, 0.0))
"""Clean and robust accuracy of each epoch; the last one has overfitted and is the most accurate."""


def validated(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter(SCORES)

    def validate(_: object) -> dict[str, float]:
        sa, ra = next(scores)
        return {"val_images": 500, "val_sa": sa, "val_ra": ra, "val_fgsm": ra, "val_top_class": 0.1}

    monkeypatch.setattr(train.Trainer, "validate", validate)


@pytest.mark.parametrize(("select", "best", "weights_of"), [("robust", 2, 2), ("clean", 2, 2), ("last", 4, 3)])
@pytest.mark.filterwarnings("ignore:Epoch 4 overfitted")
def test_an_epoch_that_was_rolled_back_is_best_nowhere(
    monkeypatch: pytest.MonkeyPatch, select: str, best: int, weights_of: int
) -> None:
    chosen = settings(model="small-cnn", train_limit=64, epochs=4, rollback=True, select=select)
    validated(monkeypatch)
    result = adv_train.fit(out="run", progress=False, **chosen)
    assert [line.get("rolled_back_to") for line in metrics("run")] == [None, None, None, 3]
    validated(monkeypatch)
    shorter = adv_train.fit(out="short", progress=False, **chosen | {"epochs": weights_of})
    run = result.run
    for name, value in weights(shorter.run.last).items():
        assert torch.equal(value, weights(run.best)[name]), name
    assert checkpoint.load(run.best).epoch == checkpoint.load(run.last).best_epoch == best
    # The figures that `fit` prints are those of the weights in best.pt.
    told = (result.best["epoch"], result.best["val_sa"], result.best["val_ra"])
    assert told == (best, *SCORES[weights_of - 1])
    # A comparison, a report and a figure find the same epoch in the records.
    judgements = tuple(Judgement(which, (PGD(1, 1),), 20) for which in ("best", "last"))
    cell = Cell("run", run.path, run.config(), judgements)
    for command in cell.commands():
        assert main(command) == 0
    assert [record and record.about["epoch"] for record in cell.evaluations()] == [best, 4]
    assert summarise(run.path).best_epoch == read_runs([run.path])[0].best_epoch == best


def test_the_best_record_is_the_first_of_the_highest_score() -> None:
    history = [line(1, 0.5, 0.4), line(2, 0.7, 0.4), line(3, 0.7, 0.4), line(4, 0.9, 0.5, rolled_back_to=3)]
    found = {select: best_record(select, history)["epoch"] for select in ("robust", "clean", "last")}
    assert found == {"robust": 2, "clean": 2, "last": 4}
    assert best_record("robust", [line(1, 0.5, 0.4, rolled_back_to=1)])["epoch"] == 1  # a resumed first epoch


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


@pytest.mark.parametrize(
    ("before", "now", "images", "alarms"),
    [
        ((0.2, 0.08), (0.2, 0.0), 500, True),
        ((0.3, 0.05), (0.35, 0.0), 500, True),
        ((0.2, 0.03), (0.2, 0.0), 50, False),
        ((0.2, 0.08), (0.2, 0.0), None, False),  # of few images, as far as is known
        ((0.2, 0.08), (0.2, 0.03), 500, False),
        ((0.2, 0.08), (0.2, 0.03), 5000, True),
        ((0.198, 0.08), (0.144, 0.018), 500, False),  # a bad epoch of a run that recovered: clean images suffer too
        ((0.6, 0.4), (0.45, 0.0), 500, False),
    ],
)
def test_whether_a_loss_of_robust_accuracy_is_chance_depends_on_the_number_of_images(
    before: tuple[float, float], now: tuple[float, float], images: int | None, alarms: bool
) -> None:
    counted = {} if images is None else {"val_images": images}
    history = [line(1, *before, **counted), line(2, *now, **counted)]
    assert (overfitting(history) is not None) is alarms


@pytest.mark.parametrize(("images", "alarms"), [(500, True), (50, False)])
def test_one_step_that_hardly_breaks_an_inaccurate_model_is_judged_by_the_number_of_images(
    images: int, alarms: bool
) -> None:
    assert (overfitted(line(1, 0.2, 0.01, val_fgsm=0.17, val_images=images), None) is not None) is alarms


@pytest.mark.parametrize(("n", "m"), [(50, 50), (500, 500), (500, 2000)])
def test_the_margin_of_chance_is_four_standard_deviations_of_the_difference(n: int, m: int) -> None:
    for p in (0.0, 0.05, 0.3, 1.0):
        deviation = np.sqrt(binom.var(n, p) / n**2 + binom.var(m, p) / m**2)
        assert chance_margin(p, p, {"val_images": n}, {"val_images": m}) == pytest.approx(4 * deviation, abs=1e-15)
    assert chance_margin(0.3, 0.2, {"val_images": n}, {}) == chance_margin(0.3, 0.2) == 0.1


@pytest.mark.parametrize("n", [20, 50, 100])
def test_two_epochs_of_equal_models_raise_hardly_a_false_alarm(n: int) -> None:
    counts = np.arange(n + 1)
    alarms = np.array(
        [
            [overfitted(line(2, 1, now / n, val_images=n), line(1, 1, was / n, val_images=n)) is not None]
            for was in counts
            for now in counts
        ]
    ).reshape(n + 1, n + 1)
    assert alarms.any()
    for p in np.linspace(0.02, 0.98, 25):
        chances = binom.pmf(counts, n, p)
        assert chances @ alarms @ chances < 4e-5  # the rate in the documentation of the margin


def test_an_epoch_to_go_back_to_is_near_the_best_one() -> None:
    history = [line(1, 0.5, 0.3), line(2, 0.6, 0.4)]
    assert sound(line(3, 0.6, 0.37), history) and not sound(line(3, 0.6, 0.35), history)
    back = [*history, line(3, 0.9, 0.45, rolled_back_to=2)]
    assert sound(line(4, 0.6, 0.37), back)
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
