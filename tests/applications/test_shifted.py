"""First-order Fast-BAT: what it computes, and how far from the implicit gradient that is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import models, training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.methods.fast_bat import FastBAT
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, assert_same_bits, case

EPS, STEP = 0.1, 2.0


def smooth(seed: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network without kinks, images away from the ends of their range, labels and a start."""
    _, x, y, start = case(seed, batch=4)
    statistics: dict[str, Any] = {"channels": 1, "classes": 10, "image_size": 8, "mean": (0.4,), "std": (0.3,)}
    model = models.create("small-cnn", seed=seed, activation="silu", **statistics).double()
    return model, 0.2 + 0.6 * x, y, EPS * start


def ascent(model: nn.Module, image: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """The input gradient of the summed loss."""
    image = image.detach().requires_grad_()
    loss = F.cross_entropy(model(image), y, reduction="sum")
    return torch.autograd.grad(loss, image, create_graph=create_graph)[0]


def shift(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor, curvature: float) -> Tensor:
    """P dL/ddelta / curvature."""
    free = (delta.abs() < EPS - 1e-7) & (x + delta > 1e-7) & (x + delta < 1 - 1e-7)
    return free * ascent(model, x + delta, y) / curvature


def gap(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    return float(sum((found[name] - value).square().sum() for name, value in truth.items())) ** 0.5


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    names, params = zip(*model.named_parameters(), strict=True)
    # The implicit part does not reach the last bias.
    found = torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_it_is_the_plain_gradient_at_a_shifted_point(steps: int, weight: float) -> None:
    model, x, y, start = case(3, batch=4)
    delta = start = (EPS * start).clamp(-x, 1 - x)
    found = training_gradient(
        model, x, y, method="fast-bat", eps=EPS, start=start, step=STEP, steps=steps, ig_weight=weight,
        implicit="shifted",
    )  # fmt: skip
    for _ in range(steps):
        delta = (delta + STEP * ascent(model, x + delta, y)).clamp(-EPS, EPS).clamp(-x, 1 - x)
    delta = delta + weight * shift(model, x, y, delta, 10.0)
    assert (found.delta - delta).abs().max() <= 1e-12
    assert_close(found.grads, gradients(model, F.cross_entropy(model(x + delta), y)))
    assert float(found.implicit_share) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_it_errs_by_the_square_of_the_shift_from_the_implicit_gradient_at_the_solution(seed: int) -> None:
    model, x, y, start = smooth(seed)
    errors, sizes = [], []
    for curvature in (1.0, 2.0, 4.0):
        found = training_gradient(
            model, x, y, method="fast-bat", eps=EPS, start=start, step=STEP, curvature=curvature, implicit="shifted"
        )
        plain = training_gradient(model, x, y, method="fast-bat", eps=EPS, start=start, step=STEP, ig_weight=0.0)
        u = shift(model, x, y, plain.delta, curvature)
        implicit = gradients(model, (ascent(model, x + plain.delta, y, create_graph=True) * u).sum() / len(x))
        errors.append(gap(found.grads, {name: plain.grads[name] + value for name, value in implicit.items()}))
        sizes.append(gap(implicit, {name: torch.zeros_like(value) for name, value in implicit.items()}))
    assert errors[0] < 0.3 * sizes[0]  # it follows the implicit part, which is not small here
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_nears_the_published_gradient_as_the_anchor_nears_the_solution(seed: int) -> None:
    model, x, y, start = smooth(seed)
    errors = []
    for step in (0.02, 0.01, 0.005):
        given: dict[str, Any] = {"method": "fast-bat", "eps": EPS, "start": start, "step": step, "curvature": 1e3}
        exact = training_gradient(model, x, y, **given)
        shifted = training_gradient(model, x, y, implicit="shifted", **given)
        share = float(exact.implicit_share) * gap(exact.grads, {k: torch.zeros_like(v) for k, v in exact.grads.items()})
        errors.append(gap(shifted.grads, exact.grads) / share)
    assert errors[0] < 0.1
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.1)


def test_without_a_shift_it_is_fast_bat_without_implicit_gradient() -> None:
    model, x, y, start = case(4, dtype=torch.float32)
    given: dict[str, Any] = {"method": "fast-bat", "eps": EPS, "start": EPS * start, "step": STEP}
    without = training_gradient(model, x, y, ig_weight=0.0, **given)
    assert_same_bits(training_gradient(model, x, y, implicit="shifted", ig_weight=0.0, **given), without)
    far = training_gradient(model, x, y, implicit="shifted", curvature=1e30, **given)
    assert_close(far.grads, without.grads, 1e-6)
    signs = training_gradient(model, x, y, direction="sign", **given)
    assert_same_bits(training_gradient(model, x, y, implicit="shifted", direction="sign", **given), signs)


@pytest.mark.parametrize(("steps", "cost"), [(1, 7), (2, 9), (3, 11)])
def test_cost_in_forward_passes(steps: int, cost: float) -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(FastBAT(steps=steps, implicit="shifted"), model, batch, threat), 1) == cost


@pytest.mark.parametrize("options", [{"attack_loss": "margin"}, {"train_loss": "kl"}, {"attack_mode": "eval"}])
def test_levels_that_do_not_share_a_loss_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="`implicit` must be exact if"):
        FastBAT(implicit="shifted", **options)
    FastBAT(**options)
