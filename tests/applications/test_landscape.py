"""The loss around images: closed forms, a plain loop, and that nothing else changes."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adv_train.errors import UserError
from adv_train.measures import landscape
from adv_train.threat import Norm, Threat

NORMS: list[tuple[Norm, float]] = [("linf", 0.3), ("l2", 2.0), ("l1", 6.0)]
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}


def images(n: int = 5) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 3)).double()


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_of_a_linear_model_it_is_the_closed_form(norm: Norm, eps: float) -> None:
    """With margin m = w'x the loss is log(1 + exp(-m)), and the attack lowers m by eps times the dual norm of w."""
    x, _ = images()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).double()
    w = (model[1].weight[0] - model[1].weight[1]).detach().numpy()
    wide = Threat(norm, eps, low=-100.0, high=100.0)
    found = landscape(model, x, torch.zeros(5, dtype=torch.int64), wide, points=5, reach=1.5, seed=4)
    assert found.steps.tolist() == [-1.5, -0.75, 0.0, 0.75, 1.5] and found.clamped.max() == 0 == found.flat
    margins = x.flatten(1).numpy() @ w
    # In l1 the direction is the gradient, not the pixel of steepest ascent.
    fall = {"linf": np.abs(w).sum(), "l2": np.sqrt(w @ w), "l1": w @ w / np.abs(w).sum()}[norm]
    for i, a in enumerate(found.steps):
        if norm == "linf":  # the random direction changes the margin as well, but for none of it
            expected = np.log1p(np.exp(-(margins - a * eps * fall))).mean()
            assert found.loss[i, 2] == pytest.approx(expected, abs=1e-12)
        else:  # orthogonal: nothing changes along it
            expected = np.log1p(np.exp(-(margins - a * eps * fall))).mean()
            assert found.loss[i] == pytest.approx([expected] * 5, abs=1e-12)


@pytest.mark.parametrize(("norm", "eps"), NORMS)
def test_it_is_what_a_plain_loop_over_images_and_points_finds(norm: Norm, eps: float) -> None:
    x, y = images()
    model, seed = network().eval(), 3
    drawn = torch.Generator().manual_seed(seed)
    noise = (
        torch.randint(2, x.shape, generator=drawn) * 2.0 - 1
        if norm == "linf"
        else torch.randn(x.shape, generator=drawn)
    )
    found = landscape(model, x, y, Threat(norm, eps), points=4, reach=2.0, seed=seed)
    loss, cut = np.zeros((4, 4)), np.zeros((4, 4))
    for image, label, other in zip(x, y, noise.double(), strict=True):
        point = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(point), label[None]), point)
        g, r = gradient.flatten().numpy(), other.flatten().numpy()
        if norm == "linf":
            g = np.sign(g)
        else:
            r = r - (r @ g) / (g @ g) * g
            g, r = g / np.linalg.norm(g, ORDER[norm]), r / np.linalg.norm(r, ORDER[norm])
            assert abs(g @ r) < 1e-12
        for i, a in enumerate((-2, -2 / 3, 2 / 3, 2)):
            for j, b in enumerate((-2, -2 / 3, 2 / 3, 2)):
                moved = image.flatten().numpy() + eps * (a * g + b * r)
                seen = torch.from_numpy(np.clip(moved, 0, 1)).view(1, 1, 4, 4)
                with torch.no_grad():
                    loss[i, j] += float(cross_entropy(model(seen), label[None])) / 5
                cut[i, j] += ((moved < 0) | (moved > 1)).mean() / 5
    assert np.allclose(found.loss, loss, atol=1e-10, rtol=0)
    assert np.allclose(found.clamped, cut, atol=1e-6, rtol=0) and cut.max() > 0.1


def test_neither_the_batch_size_nor_the_other_images_change_it() -> None:
    x, y = images()
    model, threat = network(), Threat("linf", 0.3)
    whole = landscape(model, x, y, threat, points=3)
    counted: list[int] = []
    parts = landscape(model, x, y, threat, points=3, batch_size=2, count=counted.append)
    assert np.allclose(whole.loss, parts.loss, atol=1e-13, rtol=0) and sum(counted) == 5 * 9
    assert max(counted) <= 2
    with torch.no_grad():
        assert whole.loss[1, 1] == pytest.approx(float(cross_entropy(network().eval()(x), y)), abs=1e-12)


def test_the_seed_decides_the_random_direction_alone() -> None:
    x, y = images()
    first, again, other = (landscape(network(), x, y, Threat("linf", 0.3), points=5, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.loss, again.loss) and not np.allclose(first.loss, other.loss)
    assert np.allclose(first.loss[:, 2], other.loss[:, 2], atol=1e-14, rtol=0)  # where there is none of it


def test_the_model_is_handed_back_as_it_was() -> None:
    x, y = images()
    model = network().train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    landscape(model, x, y, Threat("linf", 0.3), points=3)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_in_half_precision_is_measured_nearly_alike() -> None:
    x, y = images()
    exact = landscape(network().float(), x.float(), y, Threat("linf", 0.1), points=3)
    half = landscape(network().bfloat16(), x.bfloat16(), y, Threat("linf", 0.1), points=3)
    assert np.allclose(exact.loss, half.loss, atol=0.02) and not np.array_equal(exact.loss, half.loss)


def test_images_without_a_gradient_are_counted() -> None:
    x, y = images()
    model = network()
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    for norm, eps in NORMS:
        found = landscape(model, x, y, Threat(norm, eps), points=3)
        assert found.flat == 5 and np.ptp(found.loss) < 1e-12


def test_a_loss_or_gradient_that_is_not_finite_is_refused() -> None:
    x, y = images()

    class Steep(nn.Module):
        def __init__(self, power: float) -> None:
            super().__init__()
            self.power = power

        def forward(self, z: Tensor) -> Tensor:
            value = (z.flatten(1) - 1).abs().sum(1) ** self.power
            return torch.stack([value, -value], 1)

    with pytest.raises(UserError, match="gradient of the loss in the image is not finite"):
        landscape(Steep(0.5), torch.ones_like(x), y * 0, Threat("linf", 0.3), points=3)

    class Broken(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            logits = torch.stack([z.flatten(1).sum(1), z.flatten(1)[:, 0]], 1)
            return torch.where(z.flatten(1).amax(1, keepdim=True) > 0.99, torch.nan, logits)

    with warnings.catch_warnings(), pytest.raises(UserError, match=r"not finite at \d of 9 points"):
        landscape(Broken(), x * 0.9, y * 0, Threat("linf", 0.3), points=3)
