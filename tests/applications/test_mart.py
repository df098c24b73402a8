"""MART and its objective against their definitions in plain torch."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.mart import MART
from adv_train.objectives import OBJECTIVES
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, case

EPS = 0.1


def loss_of(p: Tensor, q: Tensor, label: int, weight: float) -> Tensor:
    """The loss of one sample, from the probabilities of the clean and the perturbed image."""
    others = torch.stack([q[k] for k in range(len(q)) if k != label])
    divergence = (p * (p / q).log()).sum()
    return -q[label].log() - (1.0001 - others.max()).log() + weight * divergence * (1 - p[label])


def test_its_loss_is_its_definition_where_the_class_is_right_and_where_it_is_wrong() -> None:
    logits, clean = torch.randn(2, 40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 4
    assert 0 < int((logits.argmax(1) == y).sum()) < 40
    found = OBJECTIVES.read("mart(weight=2)", "loss")(logits, y, clean)
    pairs = zip(clean.softmax(1), logits.softmax(1), y.tolist(), strict=True)
    assert (found - torch.stack([loss_of(*sample, 2.0) for sample in pairs])).abs().max() <= 1e-14


@pytest.mark.parametrize("weight", [5.0, 0.5])
def test_it_attacks_cross_entropy_in_eval_mode_and_minimises_the_boosted_loss(weight: float) -> None:
    model, x, y, _ = case(1, name="preact-resnet-18", batch=6)
    by_hand = deepcopy(model)
    options = {"method": "mart", "eps": EPS, "steps": 3, "train_loss": f"mart(weight={weight})"}
    found = training_gradient(model, x, y, generator=torch.Generator().manual_seed(7), **options)

    noise = 0.001 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(7))
    image, low, high = (x + noise).clamp(0, 1), (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)
    by_hand.eval()
    for _ in range(3):
        image = image.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(by_hand(image), y), image)
        image = (image + EPS / 4 * slope.sign()).clamp(low, high)
    by_hand.train()
    p, q = by_hand(x).softmax(1), by_hand(image.detach()).softmax(1)
    value = sum(loss_of(*sample, weight) for sample in zip(p, q, y.tolist(), strict=True)) / 6
    names, params = zip(*by_hand.named_parameters(), strict=True)

    assert (found.delta - (image.detach() - x)).abs().max() <= 1e-12
    assert float(found.loss) == pytest.approx(float(value.detach()), rel=1e-12)
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(value, params), strict=True)), 1e-10)


def test_the_loss_is_finite_where_a_wrong_class_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = OBJECTIVES.read("mart", "loss")(logits, torch.tensor([1]), torch.tensor([[-200.0, 0.0, 0.0]]), "mean")
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and slope.isfinite().all()


def test_it_costs_two_passes_a_step_and_six() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(MART(steps=4), model, batch, threat), 1) == 14.0
