"""ZeroGrad and MultiGrad against their definitions in plain torch, and against the methods that they become."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods import METHODS
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, assert_same_bits, case

EPS = 0.1


def input_gradient(model: nn.Module, image: Tensor, y: Tensor) -> Tensor:
    image = image.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(image), y), image)[0]


def trained(model: nn.Module, image: Tensor, y: Tensor) -> dict[str, Tensor]:
    names, params = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(F.cross_entropy(model(image), y), params), strict=True))


@pytest.mark.parametrize("quantile", [0.35, 0.5, 1.0])
def test_zerograd_leaves_out_the_smallest_gradients_of_each_image(quantile: float) -> None:
    model, x, y, start = case(2, batch=5)
    start = (EPS * start).clamp(-x, 1 - x)
    found = training_gradient(model, x, y, method="zerograd", eps=EPS, start=start, quantile=quantile)

    slope = input_gradient(model, x + start, y)
    least = torch.quantile(slope.abs().flatten(1), quantile, dim=1)
    kept = slope * (slope.abs() >= least.view(-1, 1, 1, 1))
    delta = (start + 2 * EPS * kept.sign()).clamp(-EPS, EPS).clamp(-x, 1 - x)
    assert quantile < 1 or (kept != 0).sum() == 5
    assert (found.delta - delta).abs().max() <= 1e-12
    assert_close(found.grads, trained(model, x + delta, y))


def test_zerograd_that_leaves_nothing_out_is_fast_at() -> None:
    model, x, y, start = case(3, batch=5)
    whole = training_gradient(model, x, y, method="zerograd", eps=EPS, start=EPS * start, quantile=0.0)
    assert_same_bits(whole, training_gradient(model, x, y, method="fast-at", eps=EPS, start=EPS * start, step=2 * EPS))


@pytest.mark.parametrize("points", [1, 3])
def test_multigrad_steps_from_zero_where_the_signs_at_random_points_agree(points: int) -> None:
    model, x, y, _ = case(4, batch=5)
    generator = torch.Generator().manual_seed(7)
    found = training_gradient(model, x, y, method="multigrad", eps=EPS, points=points, generator=generator)

    generator = torch.Generator().manual_seed(7)
    signs = []
    for _ in range(points):
        noise = torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)
        signs.append(input_gradient(model, (x + noise).clamp(0, 1), y).sign())
    agreed = signs[0] * torch.stack([sign == signs[0] for sign in signs]).all(0)
    delta = (2 * EPS * agreed).clamp(-EPS, EPS).clamp(-x, 1 - x)
    assert points == 1 or 0 < float((agreed == 0).double().mean()) < 1
    assert (found.delta - delta).abs().max() <= 1e-12
    assert_close(found.grads, trained(model, x + delta, y))


@pytest.mark.parametrize(("method", "cost"), [("zerograd", 5), ("multigrad", 9)])
def test_cost_in_forward_passes(method: str, cost: float) -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch = Batch(x, y, torch.arange(len(y)))
    assert round(forward_equivalents(METHODS.create(method), model, batch, Threat("linf", EPS)), 1) == cost
