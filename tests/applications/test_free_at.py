"""Free-AT against its definition in plain torch, against the methods that its steps are, and in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adv_train import checkpoint, training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods import State, Step
from adv_train.methods.free_at import FreeAT
from adv_train.threat import Threat
from adv_train.train import fit
from tests.applications.test_methods import Case, assert_close, case
from tests.applications.test_resume import Stopped, assert_same_run, config, stop_at_write

EPS, THREAT = 0.1, Threat("linf", 0.1)


def steps(case: Case, number: int, method: FreeAT) -> list[Step]:
    """Make steps on one batch with weights that stay."""
    model, x, y, _ = case
    found: list[Step] = []
    state: State = {"delta": torch.zeros_like(x)}
    for _ in range(number):
        step = method(model, dict(model.named_parameters()), Batch(x, y, torch.arange(len(y))), THREAT, state=state)
        state = step.state
        found.append(step)
    return found


@pytest.mark.parametrize("length", [None, 0.03])
def test_one_gradient_moves_weights_and_perturbation(length: float | None) -> None:
    model, x, y, start = case(2, batch=5)
    kept = torch.cat(
        (EPS * start, torch.full_like(x[:2], 0.07))
    )  # of a batch of seven; this one is the last and smaller
    method, params = FreeAT(step=length), dict(model.named_parameters())
    found = method(model, params, Batch(x, y, torch.arange(5)), THREAT, state={"delta": kept})

    at = (x + EPS * start).clamp(0, 1).requires_grad_()
    loss = F.cross_entropy(model(at), y)
    *grads, slope = torch.autograd.grad(loss, [*params.values(), at])
    moved = (at.detach() + (length or EPS) * slope.sign()).clamp(x - EPS, x + EPS).clamp(0, 1) - x

    assert (found.delta - (at.detach() - x)).abs().max() <= 1e-12
    assert_close(found.grads, dict(zip(params, grads, strict=True)), 1e-10)
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert found.state["delta"].shape == kept.shape
    assert (found.state["delta"][:5] - moved).abs().max() <= 1e-12
    assert torch.equal(found.state["delta"][5:], kept[5:])


def test_from_zero_the_first_step_is_standard_training_and_leaves_the_perturbation_of_fgsm() -> None:
    model, x, y, _ = one = case(3)
    (step,) = steps(one, 1, FreeAT(repeats=1))
    assert_close(step.grads, training_gradient(model, x, y, method="standard", eps=EPS).grads, 1e-14)
    fgsm = training_gradient(model, x, y, method="fast-at", eps=EPS, step=EPS, start="zero")
    assert torch.equal(step.state["delta"], fgsm.delta)


def test_with_weights_that_stay_later_steps_are_pgd_with_one_step_less() -> None:
    model, x, y, _ = one = case(4)
    for number, step in enumerate(steps(one, 4, FreeAT(step=0.04))):
        if number:
            pgd = training_gradient(model, x, y, method="pgd-at", eps=EPS, steps=number, step=0.04, start="zero")
            assert torch.equal(step.delta, pgd.delta)
            assert_close(step.grads, pgd.grads, 1e-14)


def test_it_costs_as_much_as_standard_training() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch = Batch(x, y, torch.arange(len(y)))
    assert round(forward_equivalents(FreeAT(), model, batch, THREAT), 1) == 3.0


def test_a_run_has_more_steps_and_goes_on_from_its_perturbation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(method="free-at", repeats=3, epochs=2, batch_size=40)  # 40, 40 and 16 of 96 images
    whole, part = tmp_path / "whole", tmp_path / "part"
    counted = fit(chosen, whole, progress=False)
    with monkeypatch.context() as patch:
        stop_at_write(patch, 4, after=True)
        with pytest.raises(Stopped):
            fit(chosen, part, progress=False)
    fit(chosen, part, progress=False)
    assert_same_run(part, whole)
    deltas = [checkpoint.load(run / "last.pt").memory["delta"] for run in (part, whole)]
    assert torch.equal(*deltas) and deltas[0].shape == (40, 1, 8, 8) and deltas[0].flatten(1).any(1).all()
    assert counted.run.config().method == FreeAT(repeats=3)
