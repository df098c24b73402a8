"""Training: the loop is SGD on whatever a method hands over, and the run folder says truthfully what happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adv_train import attacks, checkpoint, data, methods, models, train
from adv_train.cli import main
from adv_train.config import RunConfig, resolve
from adv_train.data.split import to_unit_range
from adv_train.data.stratified import stratified_head
from adv_train.errors import Diverged, UserError
from adv_train.loading import load_checkpoint, load_model
from adv_train.methods import Method, Moment, State, Step
from adv_train.methods.fast_at import FastAT
from adv_train.records import RunFolder
from adv_train.schedules import cycled_momentum, learning_rate
from adv_train.threat import Threat
from adv_train.train import fit


def config(**values: Any) -> RunConfig:
    """A run of a second or two."""
    small = {"data": "digits", "method": "fast-at", "epochs": 2, "train_limit": 96, "batch_size": 32, "device": "cpu"}
    return resolve({**small, "validation_steps": 2, **values})


def folder(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


class Handed(Method):
    """Stands in for a method: hands over what a function of the step's index says, and remembers what it was given."""

    def __init__(
        self, gradient: Callable[[int, str, Tensor], Tensor], loss: Callable[[int], float] = lambda _: 1.0
    ) -> None:
        self.gradient, self.loss_of = gradient, loss
        self.seen: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(
        self,
        model: nn.Module,
        params: dict[str, Tensor],
        batch: data.Batch,
        threat: Threat,
        *,
        moment: Moment | None = None,
        state: State | None = None,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Step:
        assert generator is not None and start is None
        x, y = batch.x, batch.y
        index = len(self.seen)
        self.seen.append((x, y, model.training))
        grads = {name: self.gradient(index, name, value) for name, value in params.items()}
        loss = torch.tensor(self.loss_of(index))
        return Step(grads, torch.zeros_like(x), loss, x.new_empty(0), [torch.tensor(4.0)], [torch.tensor(1.0)])


@pytest.fixture
def hand_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handed], Handed]:
    def install(method: Handed) -> Handed:
        monkeypatch.setattr(FastAT, "__call__", lambda _, *arguments, **named: method(*arguments, **named))
        return method

    return install


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cycling", [False, True])
def test_weights_follow_sgd_on_the_gradients_that_the_method_hands_over(
    tmp_path: Path, hand_over: Callable[[Handed], Handed], cycling: bool
) -> None:
    def gradient(index: int, name: str, value: Tensor) -> Tensor:
        return torch.sin(torch.arange(value.numel()) + index).view_as(value)

    hand_over(Handed(gradient))
    chosen = config(momentum_cycling=cycling, lr=0.05, weight_decay=0.01, momentum=0.9)
    fit(chosen, tmp_path / "run", progress=False)

    # The heavy-ball recursion written out: v <- m v + (g + decay w), w <- w - lr v, rates of CyclicLR's triangle.
    dataset = data.load("digits", root="", limit=96)
    weights = dict(models.create("small-cnn", **dataset.model_arguments(), seed=0).named_parameters())
    truth = {name: value.detach().double() for name, value in weights.items()}
    velocity = {name: torch.zeros_like(value) for name, value in truth.items()}
    for index in range(6):
        rate = 0.05 * (1 - abs(index / 3 - 1))
        momentum = 0.9 - 0.1 * (1 - abs(index / 3 - 1)) if cycling else 0.9
        for name, value in truth.items():
            velocity[name] = momentum * velocity[name] + gradient(index, name, value).double() + 0.01 * value
            truth[name] = value - rate * velocity[name]
    found = checkpoint.load(tmp_path / "run" / "last.pt").model
    for name, value in truth.items():
        assert (found[name].double() - value).abs().max() < 1e-5, name
    assert learning_rate(2, 6, peak=0.05, schedule="triangular") == pytest.approx(0.05 * 2 / 3)
    assert cycled_momentum(3, 6, momentum=0.9) == pytest.approx(0.8)


def test_every_epoch_shows_each_sample_once_in_an_order_of_its_own(
    tmp_path: Path, hand_over: Callable[[Handed], Handed]
) -> None:
    method = hand_over(Handed(lambda index, name, value: torch.zeros_like(value)))
    fit(config(), tmp_path / "run", progress=False)
    assert [training for *_, training in method.seen] == [True] * 6
    train_split = data.load("digits", root="", limit=96).train
    epochs = [torch.cat([x for x, *_ in method.seen[first : first + 3]]).flatten(1) for first in (0, 3)]
    everything = train_split.images.flatten(1)
    for epoch in epochs:
        assert torch.equal(torch.unique(epoch, dim=0), torch.unique(everything, dim=0))
        assert len(epoch) == len(everything)
    assert not torch.equal(*epochs)


def test_methods_that_draw_differently_see_the_same_augmented_images_in_the_same_order(
    tmp_path: Path, hand_over: Callable[[Handed], Handed], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, drawn = [], []
    for draws in (0, 3):
        method = hand_over(Handed(lambda _, __, value: torch.zeros_like(value)))
        call = FastAT.__call__

        def drawing(*arguments: Any, draws: int = draws, call: Any = call, **named: Any) -> Step:
            drawn.append(torch.rand(draws, generator=named["generator"]))
            return call(*arguments, **named)

        monkeypatch.setattr(FastAT, "__call__", drawing)
        fit(config(augment="crop"), tmp_path / str(draws), progress=False)
        seen.append(method.seen)
    few, many = seen
    assert len(few) == len(many) > 2
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(few, many, strict=True))
    noise = [tuple(numbers.tolist()) for numbers in drawn if len(numbers)]
    assert len(set(noise)) == len(noise)  # fresh in each step of each epoch


def test_a_step_never_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On an accelerator each of these makes the host wait; their number may not grow with the steps of an epoch.
    def reads(batch_size: int) -> int:
        count = 0
        trainer = train.Trainer(
            config(method="fast-bat", batch_size=batch_size),
            data.load("digits", root="", limit=96),
            torch.device("cpu"),
        )
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
                original = getattr(Tensor, name)

                def counting(*arguments: Any, _original: Any = original, **keywords: Any) -> Any:
                    nonlocal count
                    count += 1
                    return _original(*arguments, **keywords)

                patch.setattr(Tensor, name, counting)
            trainer.train_epoch(0, lambda: None)
        return count

    assert reads(16) == reads(48) > 0


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit(config(epochs=1), tmp_path / "run", progress=False)
    assert torch.equal(torch.rand(4), expected)


def test_the_same_configuration_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(torch.seed())  # whatever the global state is
        fit(config(seed=seed), tmp_path / name, progress=False)
    a, b, c = (checkpoint.load(tmp_path / name / "last.pt").model for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_eps_rises_epoch_by_epoch_and_validation_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[float] = []
    validated: list[float] = []
    call, pgd = FastAT.__call__, attacks.pgd

    def noting(method: FastAT, model: nn.Module, params: Any, batch: Any, threat: Threat, **named: Any) -> Step:
        trained.append(threat.eps)
        return call(method, model, params, batch, threat, **named)

    def attacking(*arguments: Any, eps: float, **named: Any) -> Any:
        validated.append(eps)
        return pgd(*arguments, eps=eps, **named)

    monkeypatch.setattr(FastAT, "__call__", noting)
    monkeypatch.setattr(attacks, "pgd", attacking)
    run = fit(config(epochs=3, eps=0.2, eps_warmup=2), tmp_path / "run", progress=False).run
    assert trained == pytest.approx([0.05] * 3 + [0.15] * 3 + [0.2] * 3) and trained[-1] == 0.2
    assert validated == [0.2] * 3
    assert [record.get("eps") for record in run.metrics()] == [pytest.approx(0.05), pytest.approx(0.15), None]


def test_a_warm_up_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    chosen = config(epochs=4, eps_warmup=3)
    whole = fit(chosen, tmp_path / "whole", progress=False).run
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop = train.Trainer.train_epoch

        def interrupted(
            self: train.Trainer, epoch: int, count_step: Callable[[], None], **others: Any
        ) -> dict[str, Any]:
            if epoch == 2:
                raise KeyboardInterrupt
            return stop(self, epoch, count_step, **others)

        patch.setattr(train.Trainer, "train_epoch", interrupted)
        fit(chosen, tmp_path / "run", progress=False)
    run = fit(chosen, tmp_path / "run", progress=False).run
    assert run.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    found, expected = (checkpoint.load(path).model for path in (run.last, whole.last))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_part_of_the_validation_images_may_validate(tmp_path: Path) -> None:
    whole = fit(config(epochs=2), tmp_path / "whole", progress=False)
    part = fit(config(epochs=2, validation_images=50), tmp_path / "part", progress=False)
    assert [line["loss"] for line in part.run.metrics()] == [line["loss"] for line in whole.run.metrics()]
    split = data.load("digits", root="").validation
    chosen = split.subset(stratified_head(split.labels, 50))
    assert len(chosen.labels.unique()) == 10
    answers = load_model(part.run.last)(to_unit_range(chosen.images))
    clean = float((answers.argmax(1) == chosen.labels).double().mean())
    assert part.run.metrics()[-1]["val_sa"] == clean
    assert [run.metrics()[-1]["val_images"] for run in (part.run, whole.run)] == [50, 96]


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_records_of_every_epoch_and_the_best_checkpoint_agree(tmp_path: Path) -> None:
    result = fit(config(epochs=4, train_limit=None, batch_size=64), tmp_path / "run", progress=False)
    run = result.run
    metrics = run.metrics()
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4] == [line["epoch"] for line in run.timing()]
    measured = {"val_images", "val_steps", "val_sa", "val_ra", "val_fgsm", "val_top_class", "val_alignment"}
    assert set(metrics[0]) == {"epoch", "lr", "loss", "implicit_share", *measured}
    assert {line["val_steps"] for line in metrics} == {2}
    best, last = checkpoint.load(run.best), checkpoint.load(run.last)
    chosen = max(metrics, key=lambda line: (line["val_ra"], line["val_sa"], -line["epoch"]))
    assert best.epoch == chosen["epoch"] == result.best["epoch"] == last.best_epoch
    assert best.best_score == (chosen["val_ra"], chosen["val_sa"])
    assert last.epoch == 4 and list(last.history) == metrics

    # The recorded clean accuracy is that of the saved weights, measured here by hand.
    validation = data.load("digits", root="").validation
    model = load_model(run.path, checkpoint="best")
    assert not model.training
    with torch.no_grad():
        answers = model(validation.images).argmax(1)
    assert float((answers == validation.labels).double().mean()) == chosen["val_sa"]
    assert max(answers.tolist().count(k) for k in range(10)) / len(answers) == chosen["val_top_class"]


@pytest.mark.parametrize(("select", "expected"), [("robust", 4), ("clean", 3), ("last", 4)])
def test_best_is_what_the_configuration_selects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str, expected: int
) -> None:
    scores = iter([(0.1, 0.1), (0.2, 0.3), (0.4, 0.2), (0.3, 0.3)])

    def validate(_: object) -> dict[str, float]:
        sa, ra = next(scores)
        return {"val_sa": sa, "val_ra": ra, "val_top_class": 0.1}

    # Epoch 4 ties with epoch 2 in robust accuracy and beats it in clean accuracy.
    monkeypatch.setattr(train.Trainer, "validate", validate)
    fit(config(epochs=4, select=select), tmp_path / "run", progress=False)
    assert checkpoint.load(tmp_path / "run" / "best.pt").epoch == expected
    read = {which: load_checkpoint(RunFolder(tmp_path / "run"), which).epoch for which in ("best", "last")}
    assert read == {"best": expected, "last": 4}


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    fit(config(), tmp_path / "run", progress=False)
    before = folder(tmp_path / "run")
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}
    again = fit(config(), tmp_path / "run", progress=False)
    assert again.resumed_after == 2
    assert folder(tmp_path / "run") == before
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == times


def test_another_configuration_is_refused_by_its_keys_and_changes_nothing(tmp_path: Path) -> None:
    fit(config(), tmp_path / "run", progress=False)
    before = folder(tmp_path / "run")
    with pytest.raises(UserError, match=r"differs in step \(0.1, not None\), epochs \(3, not 2\), lr \(0.3, not 0.1\)"):
        fit(config(epochs=3, lr=0.3, step=0.1), tmp_path / "run", progress=False)
    assert folder(tmp_path / "run") == before


def test_where_the_data_lie_does_not_make_another_run(tmp_path: Path) -> None:
    fit(config(), tmp_path / "run", progress=False)
    assert fit(config(data_root="elsewhere"), tmp_path / "run", progress=False).resumed_after == 2


def test_results_without_a_configuration_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"somebody's work")
    with pytest.raises(UserError, match=r"holds last\.pt but no config.yaml"):
        fit(config(), tmp_path, progress=False)
    assert folder(tmp_path) == {"last.pt": b"somebody's work"}


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.claim(config()), pytest.raises(UserError, match="Another process is training in"):
        fit(config(), run.path, progress=False)
    fit(config(epochs=2), run.path, progress=False)  # free again


def test_what_cannot_be_trained_does_not_occupy_the_folder(tmp_path: Path) -> None:
    for wrong in ({"model": "smallcnn"}, {"activation": "relo"}, {"batch_size": 1}, {"train_limit": 1}):
        with pytest.raises(UserError):
            fit(config(**wrong), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    tmp_path: Path, hand_over: Callable[[Handed], Handed], bad: float
) -> None:
    def loss(index: int) -> float:
        return bad if index == 7 else 1.0  # in the third epoch of three steps

    hand_over(Handed(lambda index, name, value: torch.zeros_like(value), loss))
    with pytest.raises(
        Diverged, match=r"epoch 3: the loss is (nan|inf); `.*last.pt` keeps epoch 2. Try a smaller --lr"
    ):
        fit(config(epochs=4), tmp_path / "run", progress=False)
    run = RunFolder(tmp_path / "run")
    assert checkpoint.load(run.last).epoch == 2 == len(run.metrics())
    assert checkpoint.load(run.best).epoch <= 2


def test_a_weight_that_is_not_finite_is_noticed_even_when_the_loss_is(
    tmp_path: Path, hand_over: Callable[[Handed], Handed]
) -> None:
    hand_over(Handed(lambda index, name, value: torch.full_like(value, float("nan") if index == 5 else 0.0)))
    with pytest.raises(Diverged, match="epoch 2: a weight is not a finite number"):
        fit(config(), tmp_path / "run", progress=False)
    assert checkpoint.load(tmp_path / "run" / "last.pt").epoch == 1


def test_a_learning_rate_out_of_all_reason_diverges_before_anything_is_saved(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="no checkpoint was written yet"):
        fit(config(method="standard", lr=1e30), tmp_path / "run", progress=False)
    assert set(folder(tmp_path / "run")) == {"config.yaml", ".lock"}


# --- options ----------------------------------------------------------------------------------------------------------


def test_a_radius_of_zero_is_for_standard_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an attack of radius 0 is --method standard"):
        fit(config(eps=0), tmp_path / "run", progress=False)
    fit(config(method="standard", eps=0, epochs=1), tmp_path / "run", progress=False)


@pytest.mark.parametrize("method", methods.METHODS.names())
def test_every_method_trains_the_digits_through_the_command_line(tmp_path: Path, method: str) -> None:
    words = ["fit", "--data", "digits", "--method", method, "--epochs", "6", "--batch-size", "128", "--device", "cpu"]
    assert main([*words, "--validation-steps", "2", "--quiet", "--out", str(tmp_path / "run")]) == 0
    metrics = RunFolder(tmp_path / "run").metrics()
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["val_sa"] > 0.3  # ten classes: a tenth is chance
    has_implicit_part = method == "fast-bat"
    assert (metrics[-1]["implicit_share"] > 0) == has_implicit_part
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]) == metrics[-1]
