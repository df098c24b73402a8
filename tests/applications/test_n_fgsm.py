"""N-FGSM against its definition in plain torch, and against the methods that it becomes in its limits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.n_fgsm import NFGSM
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, case

EPS = 0.1


def test_it_is_one_sign_step_from_wide_noise_and_cuts_nothing_but_the_range_of_images() -> None:
    model, x, y, _ = case(2, batch=5)
    found = training_gradient(model, x, y, method="n-fgsm", eps=EPS, generator=torch.Generator().manual_seed(7))

    noise = torch.empty_like(x).uniform_(-2 * EPS, 2 * EPS, generator=torch.Generator().manual_seed(7))
    noise = (x + noise).clamp(0, 1) - x
    at = (x + noise).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
    delta = (x + noise + EPS * slope.sign()).clamp(0, 1) - x
    loss = F.cross_entropy(model(x + delta), y)
    truth = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))

    assert (found.delta - delta).abs().max() <= 1e-12 and found.delta.abs().max() > EPS
    assert_close(found.grads, truth)


def test_without_noise_it_is_fgsm() -> None:
    model, x, y, _ = case(3, batch=5)
    without = training_gradient(model, x, y, method="n-fgsm", eps=EPS, width=0.0)
    fgsm = training_gradient(model, x, y, method="fast-at", eps=EPS, step=EPS, start="zero")
    assert torch.equal(without.delta, fgsm.delta)
    assert_close(without.grads, fgsm.grads, 0.0)


def test_without_noise_a_long_step_of_fgsm_is_not_clipped_to_the_ball() -> None:
    model, x, y, _ = case(4, batch=5)
    found = training_gradient(model, x, y, method="n-fgsm", eps=EPS, width=0.0, step=2 * EPS)
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y, reduction="sum"), at)
    delta = (x + 2 * EPS * slope.sign()).clamp(0, 1) - x
    assert (found.delta - delta).abs().max() <= 1e-15 and found.delta.abs().max() > 1.9 * EPS


def test_it_costs_as_much_as_fast_at() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(NFGSM(), model, batch, threat), 1) == 5.0
