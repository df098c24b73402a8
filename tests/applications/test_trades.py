"""TRADES and its objective against their definitions in plain torch."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.trades import TRADES
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, case

EPS = 0.1


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL of the two predictions, summed over the samples."""
    p = clean.softmax(1)
    return (p * (p.log() - other.softmax(1).log())).sum()


@pytest.mark.parametrize(("steps", "beta"), [(5, 6.0), (2, 1.5)])
def test_it_attacks_the_divergence_in_eval_mode_and_minimises_it_beside_the_clean_loss(steps: int, beta: float) -> None:
    model, x, y, _ = case(1, name="preact-resnet-18", batch=6)
    by_hand = deepcopy(model)
    loss = f"trades(beta={beta})"
    found = training_gradient(
        model, x, y, method="trades", eps=EPS, steps=steps, train_loss=loss, generator=torch.Generator().manual_seed(7)
    )

    noise = 0.001 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(7))
    image, low, high = (x + noise).clamp(0, 1), (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)
    by_hand.eval()
    clean = by_hand(x).detach()
    for _ in range(steps):
        image = image.detach().requires_grad_()
        (slope,) = torch.autograd.grad(divergence(clean, by_hand(image)), image)
        image = (image + EPS / 4 * slope.sign()).clamp(low, high)
    by_hand.train()
    clean = by_hand(x)
    value = F.cross_entropy(clean, y) + beta * divergence(clean, by_hand(image.detach())) / len(x)
    names, params = zip(*by_hand.named_parameters(), strict=True)

    assert (found.delta - (image.detach() - x)).abs().max() <= 1e-12
    assert float(found.loss) == pytest.approx(float(value.detach()), rel=1e-12)
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(value, params), strict=True)), 1e-10)


def test_without_the_divergence_it_is_standard_training() -> None:
    model, x, y, _ = case(2)
    without = training_gradient(model, x, y, method="trades", eps=EPS, train_loss="trades(beta=0)")
    standard = training_gradient(model, x, y, method="standard", eps=EPS)
    assert without.delta.any()
    assert_close(without.grads, standard.grads, 1e-14)


def test_with_other_losses_and_its_settings_changed_it_is_pgd() -> None:
    model, x, y, start = case(3)
    same = {"eps": EPS, "steps": 3, "step": 0.03, "attack_mode": "train", "start": EPS * start}
    options = {"attack_loss": "cross-entropy", "train_loss": "cross-entropy", **same}
    found, pgd = (
        training_gradient(model, x, y, method="trades", **options),
        training_gradient(model, x, y, method="pgd-at", **same),
    )
    assert torch.equal(found.delta, pgd.delta)
    assert_close(found.grads, pgd.grads, 0.0)


@pytest.mark.parametrize("method", ["fast-at", "fast-bat", "n-fgsm", "standard", "fast-at-ga"])
def test_every_method_can_minimise_its_objective(method: str) -> None:
    model, x, y, _ = case(4)
    found = training_gradient(model, x, y, method=method, eps=EPS, train_loss="trades")
    clean = model(x)
    value = F.cross_entropy(clean, y) + 6 * divergence(clean, model(x + found.delta)) / len(x)
    if method != "fast-at-ga":  # whose loss holds the alignment too
        assert float(found.loss) == pytest.approx(float(value.detach()), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 10])
def test_it_costs_two_passes_a_step_and_seven(steps: int) -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(TRADES(steps=steps), model, batch, threat), 1) == 2 * steps + 7
