"""NuAT against its definition in plain torch, and its norm against a singular value decomposition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods import Moment
from adv_train.methods.nuat import NuAT, nuclear_norm
from adv_train.methods.standard import Standard
from adv_train.threat import Threat
from tests.applications import test_methods
from tests.applications.normed import EPS, assert_step, case, cut, moment, slope_at, take
from tests.applications.test_gat import guided_start


def by_hand(model: nn.Module, x: Tensor, y: Tensor, attack_weight: float, weight: float) -> tuple[Tensor, Tensor]:
    clean = model.train()(x)
    model.eval()

    def objective(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y) + attack_weight * torch.norm(logits - clean.detach(), "nuc") / len(y)

    start = guided_start(x)
    delta = cut(x, start + EPS * slope_at(model, x, start, objective).sign())
    apart = torch.norm(model.train()(x + delta) - clean, "nuc") / len(y)
    return delta, F.cross_entropy(clean, y) + weight * apart


@pytest.mark.parametrize("batch", [5, 3])  # more images than classes, and fewer
@pytest.mark.parametrize(("at", "attack_weight", "weight"), [(moment(2), 0, 1), (moment(3), 1.5, 1.5), (None, 4, 4)])
def test_it_is_its_definition_at_every_moment(
    at: Moment | None, attack_weight: float, weight: float, batch: int
) -> None:
    model, x, y = case(1, batch)
    found = take(NuAT(), model, Batch(x, y, torch.arange(len(y))), at=at)
    assert_step(found, model, *by_hand(model, x, y, attack_weight, weight))


def test_the_first_step_of_a_run_is_training_on_clean_images() -> None:
    model, x, y = case(2)
    batch = Batch(x, y, torch.arange(len(y)))
    found, standard = take(NuAT(), model, batch, at=moment(0)), take(Standard(), model, batch)
    for name, value in standard.grads.items():
        assert float((found.grads[name] - value).abs().max()) <= 1e-12, name


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (1, 5)])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_nuclear_norm_and_its_gradient_are_those_of_the_singular_values(
    shape: tuple[int, int], size: float
) -> None:
    matrix = size * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix.requires_grad_()
    norm = nuclear_norm(matrix)
    (slope,) = torch.autograd.grad(norm, matrix)
    assert float((norm - values.sum()).abs().detach()) <= 1e-12 * float(values.sum())
    assert float((slope - left @ right).abs().max()) <= 1e-10


def test_the_nuclear_norm_knows_singular_values_of_a_millionth_and_none() -> None:
    left, _ = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    values = torch.tensor([1.0, 1e-3, 1e-6], dtype=torch.float64)
    assert float(nuclear_norm(left * values)) == pytest.approx(float(values.sum()), rel=1e-12)
    nothing = torch.zeros(6, 3, requires_grad=True)
    norm = nuclear_norm(nothing)
    (slope,) = torch.autograd.grad(norm, nothing)
    assert float(norm.detach()) == 0 and not slope.any()


def test_it_costs_eight_forward_passes() -> None:
    model, x, y, _ = test_methods.case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(NuAT(), model, batch, threat), 1) == 8.0
