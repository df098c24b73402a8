"""Averages of the weights: their rule, their resumption, and that they are what is validated, selected and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from adv_train import averaging, checkpoint, data
from adv_train.cli import main
from adv_train.errors import UserError
from adv_train.loading import load_model
from adv_train.models import load_weights
from adv_train.summaries import summarise
from adv_train.train import fit
from adv_train.trainer import Trainer
from tests.applications.test_resume import EPOCHS, Stopped, assert_same_run, config, stop_at_write

HERE = f"{__name__}:normalised"
QUICK = ["--no-autoattack", "--pgd-steps", "2", "--pgd-restarts", "1", "--limit", "60", "--device", "cpu", "--quiet"]


def normalised(classes: int) -> nn.Module:
    """A network with BatchNorm, whose running statistics belong to its average."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, classes))


def steps_of(epochs: int = EPOCHS, **values: Any) -> tuple[list[dict[str, Tensor]], Trainer]:
    """Train, and return the model's state before the first step and after each one."""
    trainer = Trainer(config(model=HERE, **values), data.load("digits", root="", limit=96), torch.device("cpu"))
    seen = [{name: value.clone() for name, value in trainer.state.model.state_dict().items()}]

    def note() -> None:
        seen.append({name: value.clone() for name, value in trainer.state.model.state_dict().items()})

    for epoch in range(epochs):
        trainer.train_epoch(epoch, note)
    return seen, trainer


def assert_close(found: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, value in found.state_dict().items():
        assert (value.double() - expected[name].double()).abs().max() < 1e-6, name


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.5, 0.9995])
def test_the_average_forgets_by_a_decay_that_warms_up(decay: float) -> None:
    seen, trainer = steps_of(ema=decay)
    truth = {name: value.double() for name, value in seen[0].items()}
    for number, state in enumerate(seen[1:]):
        kept = min(decay, (1 + number) / (10 + number))
        for name, value in state.items():
            counted = name.endswith("num_batches_tracked")
            truth[name] = value.double() if counted else kept * truth[name] + (1 - kept) * value.double()
    assert trainer.state.average is not None and len(seen) == 13
    assert_close(trainer.state.average, truth)
    assert any("running_var" in name for name in truth)


def test_without_need_of_a_warm_up_it_is_the_average_of_torch() -> None:
    decay = 0.05  # below the 1/10 with which the warm-up begins
    seen, trainer = steps_of(ema=decay)
    model = normalised(10)
    model.load_state_dict(seen[0])
    oracle = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True)
    oracle.n_averaged.fill_(1)  # so that the first weights are not taken as they are
    for state in seen[1:]:
        model.load_state_dict(state)
        oracle.update_parameters(model)
    assert trainer.state.average is not None
    del (expected := oracle.module.state_dict())["2.num_batches_tracked"]
    found = trainer.state.average.state_dict()
    assert all((found[name] - value).abs().max() < 1e-6 for name, value in expected.items())


@pytest.mark.parametrize("first", [0, 2])
def test_the_mean_from_an_epoch_on_is_stochastic_weight_averaging(first: int) -> None:
    seen, trainer = steps_of(average_from=first)
    model = normalised(10)
    oracle = swa_utils.AveragedModel(model)
    for state in seen[1 + 3 * first :]:
        model.load_state_dict(state)
        oracle.update_parameters(model)
    assert trainer.state.average is not None
    found = dict(trainer.state.average.named_parameters())
    assert all((found[name] - value).abs().max() < 1e-6 for name, value in oracle.module.named_parameters())


def test_before_the_mean_begins_it_is_the_weights_themselves() -> None:
    _, trainer = steps_of(epochs=2, average_from=2)
    assert trainer.state.average is not None
    found = trainer.state.average.state_dict()
    assert all(torch.equal(found[name], value) for name, value in trainer.state.model.state_dict().items())
    assert [trainer.config.training.average_after(epoch) for epoch in (2, 3)] == [None, "mean from epoch 3"]


@pytest.mark.parametrize("share", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
def test_a_tensor_that_layers_share_moves_once(share: float | Tensor) -> None:
    def network(value: float) -> nn.Module:
        first, norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        model = nn.Sequential(first, norm, nn.Linear(3, 3), norm)
        model[2].weight = first.weight
        for state in model.state_dict().values():
            state.fill_(value)
        return model

    average = network(0.0)
    averaging.move(average, network(8.0), share)
    for name, state in average.state_dict().items():
        assert bool((state == (8 if name.endswith("num_batches_tracked") else 2)).all()), name


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[{"ema": 0.9}, {"average_from": 1}], ids=["ema", "mean"])
def averaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    chosen = {**request.param, "model": HERE}
    run = tmp_path_factory.mktemp("averaged") / "run"
    fit(config(**chosen), run, progress=False)
    return chosen, run


@pytest.mark.parametrize("write", [4, 7])
def test_a_run_that_was_stopped_ends_with_the_same_average(
    averaged: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    chosen, whole = averaged
    with monkeypatch.context() as patch:
        stop_at_write(patch, write, after=True)
        with pytest.raises(Stopped):
            fit(config(**chosen), tmp_path / "run", progress=False)
    fit(config(**chosen), tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", whole)
    found, expected = (checkpoint.load(run / "last.pt").average for run in (tmp_path / "run", whole))
    assert found and all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_average_is_what_is_validated_selected_loaded_and_judged(
    averaged: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, run = averaged
    last, best = checkpoint.load(run / "last.pt"), checkpoint.load(run / "best.pt")
    assert not best.average and not torch.equal(last.model["1.weight"], last.average["1.weight"])
    model, validation = load_model(run, checkpoint="last"), data.load("digits", root="", limit=96).validation
    assert torch.equal(model.state_dict()["1.weight"], last.average["1.weight"])
    with torch.no_grad():
        right = (model(validation.images).argmax(1) == validation.labels).double().mean()
    assert float(right) == last.history[-1]["val_sa"]
    if best.epoch == last.epoch:
        assert all(torch.equal(best.model[name], value) for name, value in last.average.items())

    name = "ema 0.9" if "ema" in chosen else "mean from epoch 2"
    capsys.readouterr()
    assert main(["eval", str(run), "--checkpoint", "last", *QUICK]) == 0
    assert f"last.pt (averaged weights, {name})" in capsys.readouterr().out
    assert json.loads((run / "eval.json").read_text())["averaged"] == name
    assert f"averaged weights ({name})" in summarise(run).judged


def test_weights_to_start_from_are_the_average(averaged: tuple[dict[str, Any], Path]) -> None:
    _, run = averaged
    for name in ("best.pt", "last.pt"):
        model = normalised(10)
        load_weights(model, run / name)
        expected = checkpoint.load(run / name).judged
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_a_decay_of_zero_and_none_are_the_run_without_an_average(tmp_path: Path) -> None:
    runs = {
        name: fit(config(epochs=2, **chosen), tmp_path / name, progress=False).run
        for name, chosen in {"plain": {}, "zero": {"ema": 0}, "none": {"ema": "none"}}.items()
    }
    assert runs["plain"].metrics() == runs["zero"].metrics() == runs["none"].metrics()
    first, second = (checkpoint.load(runs[name].best).model for name in ("plain", "zero"))
    assert all(torch.equal(first[name], value) for name, value in second.items())
    assert runs["plain"].config() == runs["none"].config()


def test_an_average_goes_on_where_the_run_is_given_more_epochs(tmp_path: Path) -> None:
    chosen = {"ema": 0.9, "schedule": "constant", "model": HERE}
    whole = fit(config(**chosen), tmp_path / "whole", progress=False).run
    fit(config(epochs=2, **chosen), tmp_path / "run", progress=False)
    longer = fit(config(**chosen), tmp_path / "run", progress=False)
    assert longer.resumed_after == 2 and longer.run.metrics() == whole.metrics()
    found, expected = (checkpoint.load(run.last).average for run in (longer.run, whole))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_another_average_is_another_run(tmp_path: Path) -> None:
    fit(config(epochs=1, ema=0.9), tmp_path / "run", progress=False)
    with pytest.raises(UserError, match=r"differs in ema \(0.99, not 0.9\)"):
        fit(config(epochs=1, ema=0.99), tmp_path / "run", progress=False)
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    torn = checkpoint.Checkpoint(**{**vars(saved), "average": {}})
    checkpoint.save(tmp_path / "run" / "last.pt", torn)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="the weights belong to another model"):
        fit(config(epochs=1, ema=0.9), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ema": 1.5}, "`ema` must be a number between 0 and 1"),
        ({"ema": "slow"}, "`ema` must be"),
        ({"average_from": -1}, "`average_from` must be a whole number of at least 0"),
        ({"average_from": 4}, "`average_from` must be below `epochs`, which is 4, but is 4"),
        ({"ema": 0.9, "average_from": 1}, "`ema` and `average_from` cannot be combined"),
    ],
)
def test_an_average_that_cannot_be_is_told_in_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        config(**values)
    assert "\n" not in str(error.value)
