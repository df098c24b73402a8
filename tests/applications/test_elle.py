"""ELLE against its definition in plain torch, and against the method that it becomes without its penalty."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.elle import ELLE
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, case


@pytest.mark.parametrize(("levels", "weight"), [(1, 1e3), (8, 1e3), (10, 5e3), (20, 5e3), (22, 1e4)])
def test_it_is_a_sign_step_with_a_penalty_on_the_distance_from_the_chord(levels: int, weight: float) -> None:
    model, x, y, _ = case(2, name="preact-resnet-18" if levels == 8 else "small-cnn", batch=6)
    eps = levels / 255
    found = training_gradient(model, x, y, method="elle", eps=eps, generator=torch.Generator().manual_seed(7))

    generator = torch.Generator().manual_seed(7)
    noise = torch.empty(12, *x.shape[1:], dtype=x.dtype).uniform_(-eps, eps, generator=generator)
    share = torch.rand(6, dtype=x.dtype, generator=generator)
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
    image = (x + eps * slope.sign()).clamp(0, 1)
    loss = F.cross_entropy(model(image), y)
    a, b = x + noise[:6], x + noise[6:]
    wide = share[:, None, None, None]
    three = F.cross_entropy(model(torch.cat((a, b, (1 - wide) * a + wide * b))), y.repeat(3), reduction="none")
    missed = three[12:] - (1 - share) * three[:6] - share * three[6:12]
    value = loss + weight * (missed**2).mean()
    names, params = zip(*model.named_parameters(), strict=True)

    assert (found.delta - (image - x)).abs().max() <= 1e-12
    assert float(found.loss) == pytest.approx(float(value.detach()), rel=1e-10)
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(value, params), strict=True)), 1e-10)


def test_without_the_penalty_it_is_fgsm() -> None:
    model, x, y, _ = case(3)
    without = training_gradient(model, x, y, method="elle", eps=0.1, coefficient=0.0)
    fgsm = training_gradient(model, x, y, method="fast-at", eps=0.1, step=0.1, start="zero")
    assert torch.equal(without.delta, fgsm.delta)
    assert_close(without.grads, fgsm.grads, 1e-14)


def test_a_linear_loss_costs_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).double()
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    options = {"eps": 0.1, "attack_loss": "margin", "train_loss": "margin"}
    found = training_gradient(model, x, y, method="elle", **options)
    fgsm = training_gradient(model, x, y, method="fast-at", step=0.1, start="zero", **options)
    assert float(found.loss) == pytest.approx(float(fgsm.loss), rel=1e-12)


def test_it_costs_fourteen_passes() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", 0.1)
    assert round(forward_equivalents(ELLE(), model, batch, threat), 1) == 14.0
