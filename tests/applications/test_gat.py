"""GAT against its definition in plain torch, and against standard training."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods import Moment
from adv_train.methods.gat import GAT
from adv_train.methods.standard import Standard
from adv_train.threat import Threat
from tests.applications import test_methods
from tests.applications.normed import EPS, assert_step, case, cut, moment, slope_at, take


def guided_start(x: Tensor, seed: int = 0) -> Tensor:
    coins = torch.empty_like(x).bernoulli_(0.5, generator=torch.Generator().manual_seed(seed))
    return cut(x, EPS / 2 * (2 * coins - 1))


def by_hand(model: nn.Module, x: Tensor, y: Tensor, attack_weight: float, weight: float) -> tuple[Tensor, Tensor]:
    """The perturbation and the loss of one step; the clean output of train mode serves both levels."""
    clean = model.train()(x)
    model.eval()

    def objective(logits: Tensor) -> Tensor:
        apart = (F.softmax(logits, 1) - F.softmax(clean.detach(), 1)).pow(2).sum()
        return F.cross_entropy(logits, y, reduction="sum") + attack_weight * apart

    start = guided_start(x)
    delta = cut(x, start + EPS * slope_at(model, x, start, objective).sign())
    apart = (F.softmax(model.train()(x + delta), 1) - F.softmax(clean, 1)).pow(2).sum(1).mean()
    return delta, F.cross_entropy(clean, y) + weight * apart


@pytest.mark.parametrize(
    ("at", "attack_weight", "weight"),
    [
        (moment(0), 0, 10),
        (moment(1), 10, 10),
        (moment(85, 100), 10, 10),
        (moment(86, 100), 0, 40),
        (moment(87, 100), 40, 40),
        (None, 40, 40),
    ],
)
def test_it_is_its_definition_at_every_moment(at: Moment | None, attack_weight: float, weight: float) -> None:
    model, x, y = case(1)
    found = take(GAT(), model, Batch(x, y, torch.arange(len(y))), at=at)
    assert_step(found, model, *by_hand(model, x, y, attack_weight, weight))


def test_the_distance_moves_the_attack() -> None:
    model, x, y = case(1)
    plain, guided = (by_hand(copy.deepcopy(model), x, y, weight, 1.0)[0] for weight in (0.0, 40.0))
    assert float((plain != guided).double().mean()) > 0.01


def test_with_weight_zero_it_is_training_on_clean_images() -> None:
    model, x, y = case(2)
    batch = Batch(x, y, torch.arange(len(y)))
    found, standard = take(GAT(coefficient=0), model, batch), take(Standard(), model, batch)
    for name, value in standard.grads.items():
        assert float((found.grads[name] - value).abs().max()) <= 1e-12, name


def test_it_costs_eight_forward_passes() -> None:
    model, x, y, _ = test_methods.case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(GAT(), model, batch, threat), 1) == 8.0
