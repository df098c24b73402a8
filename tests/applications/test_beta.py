"""BETA against its definition in plain torch, in its full and its cheap forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods.beta import BETA
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, assert_same_bits, case

EPS = 0.3


def margins(model: nn.Module, image: Tensor, y: Tensor) -> Tensor:
    logits = model(image)
    return logits - logits[torch.arange(len(y)), y][:, None]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("rivals", [20, 9, 3, 1])
def test_it_trains_at_the_largest_margin_of_any_rival(steps: int, rivals: int) -> None:
    model, x, y, start = case(2, batch=6)
    start = (EPS * start).clamp(-x, 1 - x)
    found = training_gradient(model, x, y, method="beta", eps=EPS, start=start, steps=steps, step=0.2, rivals=rivals)

    ranked = margins(model, x + start, y).argsort(1, descending=True)
    order = [[int(k) for k in row if k != label] for row, label in zip(ranked, y, strict=True)]
    best = torch.full((6,), -torch.inf, dtype=x.dtype)
    delta = torch.zeros_like(x)
    for rank in range(min(rivals, 9)):
        rival = torch.tensor([classes[rank] for classes in order])
        point = start
        for _ in range(steps):
            point = point.detach().requires_grad_()
            chosen = margins(model, x + point, y)[torch.arange(6), rival]
            (slope,) = torch.autograd.grad(chosen.sum(), point)
            point = (point + 0.2 * slope.sign()).clamp(-EPS, EPS).clamp(-x, 1 - x)
        reached = margins(model, x + point, y)[torch.arange(6), rival].detach()
        delta = torch.where((reached > best).view(-1, 1, 1, 1), point.detach(), delta)
        best = torch.maximum(best, reached)
    loss = F.cross_entropy(model(x + delta), y)
    names, params = zip(*model.named_parameters(), strict=True)

    assert (found.delta - delta).abs().max() <= 1e-12
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(loss, params), strict=True)))


def test_one_step_towards_the_runner_up_is_fast_at_on_the_margin() -> None:
    model, x, y, start = case(3, dtype=torch.float32)
    same: dict[str, Any] = {"eps": EPS, "start": EPS * start, "step": 0.2, "attack_loss": "margin"}
    cheap = training_gradient(model, x, y, method="beta", steps=1, rivals=1, **same)
    assert_same_bits(cheap, training_gradient(model, x, y, method="fast-at", **same))


@pytest.mark.parametrize(("steps", "rivals", "cost"), [(2, 1, 7), (3, 1, 9), (1, 3, 12), (2, 3, 18), (2, 9, 48)])
def test_cost_in_forward_passes(steps: int, rivals: int, cost: float) -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(BETA(steps=steps, rivals=rivals), model, batch, threat), 1) == cost


def test_another_attack_loss_is_refused() -> None:
    with pytest.raises(UserError, match="`attack_loss` must be `margin` for beta"):
        BETA(attack_loss="kl")  # type: ignore[arg-type]
