"""AWP around every method, against its definition in plain torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import checkpoint
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods import METHODS, Method, Sizes, State, Step
from adv_train.methods.base import Adversarial
from adv_train.methods.fast_at import FastAT
from adv_train.methods.fast_bat import FastBAT
from adv_train.methods.free_at import FreeAT
from adv_train.methods.standard import Standard
from adv_train.methods.weight_perturbation import WeightPerturbed
from adv_train.threat import Threat
from adv_train.train import fit
from tests.applications.test_methods import Case, assert_close, assert_same_bits, case
from tests.applications.test_resume import config

EPS, THREAT = 0.1, Threat("linf", 0.1)


def step_of(method: Method, case: Case, seed: int = 7) -> Step:
    model, x, y, _ = case
    params = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return method(
        model, params, Batch(x, y, torch.arange(len(y))), THREAT, generator=torch.Generator().manual_seed(seed)
    )


def moved_by_hand(weights: dict[str, Tensor], slopes: dict[str, Tensor], gamma: float) -> dict[str, Tensor]:
    return {
        name: (w + gamma * w.pow(2).sum().sqrt() / slopes[name].pow(2).sum().sqrt() * slopes[name])
        .detach()
        .requires_grad_()
        if w.dim() > 1
        else w.detach().clone().requires_grad_()
        for name, w in weights.items()
    }


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet-18"])
@pytest.mark.parametrize("gamma", [0.01, 0.3])
def test_the_gradient_is_that_at_the_moved_weights(name: str, gamma: float) -> None:
    model, x, y, _ = one = case(1, name=name, batch=6)
    found = step_of(WeightPerturbed(base=FastAT(), gamma=gamma), one)

    noise = torch.empty_like(x).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(7))
    at = (x + noise).clamp(0, 1).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y), at)
    image = (at.detach() + 1.25 * EPS * slope.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    loss = F.cross_entropy(model(image), y)
    slopes = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    moved = moved_by_hand(weights, slopes, gamma)
    there = F.cross_entropy(torch.func.functional_call(model, moved, (image,)), y)
    truth = dict(zip(moved, torch.autograd.grad(there, list(moved.values())), strict=True))

    assert (found.delta - (image - x)).abs().max() <= 1e-12
    assert_close(found.grads, truth, 1e-9 if name == "preact-resnet-18" else 1e-10)
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert float(there.detach()) > float(loss.detach())


def test_an_implicit_part_stays_and_the_move_follows_the_direct_part() -> None:
    model, x, y, _ = one = case(2, batch=5)
    base = step_of(FastBAT(curvature=0.2), one)
    found = step_of(WeightPerturbed(base=FastBAT(curvature=0.2), gamma=0.1), one)
    assert float(base.implicit_share) > 0.01

    weights: dict[str, Tensor] = dict(model.named_parameters())
    direct = torch.autograd.grad(F.cross_entropy(model(x + base.delta), y), list(weights.values()))
    moved = moved_by_hand(weights, dict(zip(weights, direct, strict=True)), 0.1)
    there = F.cross_entropy(torch.func.functional_call(model, moved, (x + base.delta,)), y)
    at_moved = torch.autograd.grad(there, list(moved.values()))
    truth = {
        name: found_there + base.grads[name] - before
        for name, found_there, before in zip(weights, at_moved, direct, strict=True)
    }
    assert torch.equal(found.delta, base.delta)
    assert_close(found.grads, truth, 1e-10)
    assert all(torch.equal(*pair) for pair in zip(found.implicit, base.implicit, strict=True))


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_says_what_it_minimises(method: str) -> None:
    one = case(3, batch=5)
    model = one[0]
    step = step_of(METHODS.create(method), one)
    assert step.objective is not None
    params: dict[str, Tensor] = dict(model.named_parameters())
    value = step.objective(params)
    assert float(value.detach()) == pytest.approx(float(step.loss), rel=1e-12)
    slopes = torch.autograd.grad(value, list(params.values()), materialize_grads=True)
    direct = dict(zip(params, step.direct, strict=True)) if step.implicit else step.grads
    assert_close(dict(zip(params, slopes, strict=True)), direct, 1e-12)


@pytest.mark.parametrize("method", METHODS.names())
def test_gamma_0_is_the_method_itself(method: str) -> None:
    base = METHODS.create(method)
    assert_same_bits(step_of(WeightPerturbed(base=base, gamma=0.0), case(4)), step_of(base, case(4)))


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_can_be_perturbed(method: str) -> None:
    base = METHODS.create(method)
    found, plain = step_of(WeightPerturbed(base=base, gamma=0.05), case(5)), step_of(base, case(5))
    assert torch.equal(found.delta, plain.delta) and torch.equal(found.logits, plain.logits)
    assert any(not torch.equal(value, plain.grads[name]) for name, value in found.grads.items())
    assert all(value.isfinite().all() and not value.requires_grad for value in found.grads.values())


@pytest.mark.parametrize("name", METHODS.names())
def test_an_objective_gives_the_direct_part_with_batchnorm_and_an_attack_in_eval_mode_or_is_refused(name: str) -> None:
    """The running statistics that a pass in eval mode uses move within the step."""
    chosen = {"attack_mode": "eval"} if issubclass(METHODS.find(name), Adversarial) else {}
    try:
        method = METHODS.create(name, **chosen)
    except UserError:  # Fast-BAT's cheap forms need one pass for the attack and for training
        return
    one = case(3, name="preact-resnet-18", batch=5)
    step = step_of(method, one)
    assert step.objective is not None
    params: dict[str, Tensor] = dict(one[0].named_parameters())
    slopes = torch.autograd.grad(step.objective(params), list(params.values()), materialize_grads=True)
    direct = dict(zip(params, step.direct, strict=True)) if step.implicit else step.grads
    if name in ("elle", "fast-at-ga", "fgsm-pgi", "liet"):
        with pytest.raises(UserError, match=f"`attack_mode` train for {name}, whose training"):
            WeightPerturbed(base=method, gamma=0.01)
        WeightPerturbed(base=method, gamma=0.0)
        assert max(float((a - b).norm() / b.norm()) for a, b in zip(slopes, direct.values(), strict=True)) > 1e-3
    else:
        WeightPerturbed(base=method, gamma=0.01)
        assert_close(dict(zip(params, slopes, strict=True)), direct, 1e-9)


def test_a_weight_without_gradient_stays() -> None:
    one = case(6)
    nn.init.zeros_(one[0].get_parameter(next(reversed(dict(one[0].named_parameters()))).replace("bias", "weight")))
    found = step_of(WeightPerturbed(base=Standard(), gamma=0.1), one)  # the features get no gradient
    assert all(value.isfinite().all() for value in found.grads.values())


def test_frozen_parameters_are_constants() -> None:
    one = case(7)
    frozen = next(iter(dict(one[0].named_parameters())))
    one[0].get_parameter(frozen).requires_grad_(False)
    assert frozen not in step_of(WeightPerturbed(base=FastBAT(), gamma=0.1), one).grads


@dataclass(frozen=True, kw_only=True)
class Silent(Standard):
    """A method that remembers, repeats itself and does not say what it minimises."""

    def remember(self, model: nn.Module, sizes: Sizes) -> State:
        return {"images": torch.tensor(sizes.images[0])}

    def replays(self) -> int:
        return 4

    def __call__(self, *given: Any, **named: Any) -> Step:
        step = super().__call__(*given, **named)
        return Step(step.grads, step.delta, step.loss, step.logits)


def test_memory_and_replays_are_those_of_the_method() -> None:
    method = WeightPerturbed(base=Silent(), gamma=0.1)
    sizes = Sizes(torch.Size((9, 1, 8, 8)), 10, 4)
    assert method.replays() == 4
    assert method.remember(nn.Identity(), sizes) == {"images": torch.tensor(9)}


def test_a_method_without_objective_is_named() -> None:
    with pytest.raises(UserError, match=r"`weight_perturbation` needs a method .* Silent has none"):
        step_of(WeightPerturbed(base=Silent(), gamma=0.1), case(8))


def test_it_adds_three_passes() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch = Batch(x, y, torch.arange(len(y)))
    costs = [
        round(forward_equivalents(WeightPerturbed(base=base, gamma=0.01), model, batch, THREAT), 1)
        for base in (Standard(), FreeAT(), FastAT())
    ]
    assert costs == [6.0, 6.0, 8.0]


def test_a_run_trains_with_it_where_the_configuration_says_so(tmp_path: Path) -> None:
    chosen = config(method="free-at", repeats=2, epochs=1, weight_perturbation="0.01")
    assert chosen.full_method == WeightPerturbed(base=FreeAT(repeats=2), gamma=0.01)
    assert chosen.differences(config(method="free-at", repeats=2, epochs=1)) == ("weight_perturbation (0.01, not 0.0)",)
    found = checkpoint.load(fit(chosen, tmp_path / "with", progress=False).run.last)
    plain = checkpoint.load(
        fit(chosen.changed({"weight_perturbation": 0}), tmp_path / "without", progress=False).run.last
    )
    assert found.config.training.weight_perturbation == 0.01 and found.memory.keys() == {"delta"}
    assert not all(torch.equal(value, plain.model[name]) for name, value in found.model.items())
    with pytest.raises(UserError, match="`weight_perturbation` must be a number of at least 0"):
        config(weight_perturbation=-0.1)
