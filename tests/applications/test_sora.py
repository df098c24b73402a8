"""SORA against its definition in plain torch, and where the loss is linear."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.sora import SORA
from adv_train.objectives.margin import Margin
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, case

EPS, THREAT = 0.1, Threat("linf", 0.1)


@pytest.mark.parametrize(("alignment", "longest"), [(0.99, 2 * EPS), (0.9, 0.4 * EPS), (1.0, 2 * EPS)])
def test_it_is_a_sign_step_of_random_lengths_that_remembers_how_far_the_gradient_held(
    alignment: float, longest: float
) -> None:
    model, x, y, _ = case(2, batch=5)
    params, batch = dict(model.named_parameters()), Batch(x, y, torch.arange(5))
    state = {"alignment": torch.tensor(alignment, dtype=x.dtype)}
    found = SORA()(model, params, batch, THREAT, state=state, generator=torch.Generator().manual_seed(7))

    generator = torch.Generator().manual_seed(7)
    noise = torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)
    at = (x + noise).clamp(0, 1).requires_grad_()
    share = torch.rand(x.shape, dtype=x.dtype, generator=generator)
    (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y), at)
    image = (at.detach() + longest * share * slope.sign()).clamp(0, 1).requires_grad_()
    loss = F.cross_entropy(model(image), y)
    *grads, after = torch.autograd.grad(loss, [*params.values(), image])
    held = [float((g.sign() * h).sum() / g.abs().sum()) for g, h in zip(slope, after, strict=True)]
    moved = 0.95 * alignment + 0.05 * max(-1.0, min(1.0, sum(held) / 5))

    assert (found.delta - (image - x)).abs().max() <= 1e-12
    assert_close(found.grads, dict(zip(params, grads, strict=True)))
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert float(found.state["alignment"]) == pytest.approx(moved, rel=1e-10)


def test_a_linear_loss_keeps_an_alignment_of_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    x, y = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    method = SORA(attack_loss=Margin(), train_loss=Margin(), alignment=0.5, alignment_rate=1.0)
    step = method(model, dict(model.named_parameters()), Batch(x, y, torch.arange(6)), THREAT)
    assert float(step.state["alignment"]) == pytest.approx(1.0, abs=1e-12)


def test_saturated_pixels_count_like_others_and_an_image_without_a_gradient_counts_as_zero() -> None:
    # The published code: `(p * g').sum(1) / g.abs().sum(1).clamp_min(1e-12)`, averaged over all images.
    torch.manual_seed(0)
    linear = nn.Linear(64, 2).double()
    model, x = nn.Sequential(nn.Flatten(), linear), torch.rand(4, 1, 8, 8, dtype=torch.float64).round()
    labels = Batch(x, torch.tensor([0, 1, 1, 1]), torch.arange(4))
    method = SORA(attack_loss=Margin(), train_loss=Margin(), alignment=0.5, alignment_rate=1.0)
    step = method(model, dict(model.named_parameters()), labels, THREAT)
    assert (step.delta == 0).any() and float(step.state["alignment"]) == pytest.approx(1.0, abs=1e-12)
    with torch.no_grad():
        linear.bias.copy_(torch.tensor([1000.0, -1000.0]))  # the cross-entropy of class 0 is 0 in float64
    step = SORA(alignment_rate=1.0)(model, dict(model.named_parameters()), labels, THREAT)
    assert float(step.state["alignment"]) == pytest.approx(3 / 4, abs=1e-12)


class Square(nn.Module):
    """Two classes whose margin is the square of a weighted sum of pixels: its gradient grows along every ascent."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        margin = (self.weight * images.flatten(1).sum(1)).square()
        return torch.stack((torch.zeros_like(margin), margin), 1)


def test_the_alignment_of_a_batch_is_cut_to_1() -> None:
    x, y = torch.full((4, 1, 2, 2), 0.4, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    method, model = SORA(attack_loss=Margin(), train_loss=Margin(), alignment=0.5, alignment_rate=1.0), Square()
    step = method(model, dict(model.named_parameters()), Batch(x, y, torch.arange(4)), THREAT)
    assert (step.delta > 0).any() and float(step.state["alignment"]) == 1.0


def test_it_costs_as_much_as_fast_at() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    assert round(forward_equivalents(SORA(), model, Batch(x, y, torch.arange(len(y))), THREAT), 1) == 5.0
