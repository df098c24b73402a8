"""LIET against its definition in plain torch, at small and at large budgets."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train.bench.count import flops, forward_equivalents
from adv_train.data import Batch
from adv_train.methods.fast_at import FastAT
from adv_train.methods.liet import LIET
from adv_train.threat import Threat
from tests.applications import test_methods
from tests.applications.normed import CLASSES, assert_step, case, cut, moment, sizes, take


def soft_labels(logits: Tensor, y: Tensor, smoothing: float, generator: torch.Generator) -> Tensor:
    others = torch.rand(logits.shape, dtype=torch.float64, generator=generator)
    others[torch.arange(len(y)), y] = 0
    labels = smoothing * others / others.sum(1, keepdim=True)
    labels[torch.arange(len(y)), y] = 1 - smoothing
    return labels


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """The mean Jensen-Shannon divergence of two batches of probabilities."""
    middle = ((first + second) / 2).log()
    one, other = (F.kl_div(middle, p, reduction="batchmean") for p in (first, second))
    return (one + other) / 2


@pytest.mark.parametrize("seed", [0, 1, 3])  # both sides of the coin
@pytest.mark.parametrize(
    ("eps", "width", "least", "most", "smoothing", "weight"),
    [(8 / 255, 1, 0.1, 0.5, 0.6, 37.5), (16 / 255, 2, 0.0, 1.0, 0.4, 7.5)],
)
def test_it_is_its_definition(
    seed: int, eps: float, width: int, least: float, most: float, smoothing: float, weight: float
) -> None:
    model, x, y = case(1)
    signs = torch.randn(CLASSES, 2, 6, 6, dtype=torch.float64).sign()
    method, batch = LIET(refresh=2), Batch(x, y, torch.arange(len(y)))
    found = take(method, model, batch, eps=eps, at=moment(3), state={"class_signs": signs}, seed=seed)

    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty_like(x).uniform_(-width * eps, width * eps, generator=generator)
    share, coin = torch.rand(2, dtype=torch.float64, generator=generator)
    replaced = torch.empty_like(x).uniform_(generator=generator) < least + (most - least) * share
    start = torch.where(replaced, noise, eps * signs[y])
    start = (x - start if coin < 0.5 else x + start).clamp(0, 1) - x
    point = start.clone().requires_grad_()
    near = model(x + point)
    attacked = F.cross_entropy(near, soft_labels(near, y, smoothing, generator))
    (slope,) = torch.autograd.grad(attacked, point, retain_graph=True)
    ahead = start + eps * slope.sign()
    delta = cut(x, ahead, eps) if width == 1 else (x + ahead).clamp(0, 1) - x
    logits = model(x + delta)
    loss = F.cross_entropy(logits, soft_labels(logits, y, smoothing, generator))
    loss = loss + weight * divergence(F.softmax(near, 1), F.softmax(logits, 1))
    assert_step(found, model, delta, loss)

    # Two of the four classes a step: in step 3 the last two, in eval mode.
    classes = torch.tensor([2, 3])
    grey = torch.full((2, 2, 6, 6), 0.5, dtype=torch.float64, requires_grad=True)
    outputs = model.eval()(grey)
    labels = soft_labels(outputs, classes, smoothing, generator)
    (slope,) = torch.autograd.grad(F.cross_entropy(outputs, labels), grey)
    assert torch.equal(found.state["class_signs"], torch.cat([signs[:2], slope.sign()]))


@pytest.mark.parametrize(("classes", "refresh"), [(4, 20), (7, 3), (7, 1), (5, 5)])
def test_every_class_is_renewed_in_time(classes: int, refresh: int) -> None:
    model, x, y = case(2, classes=classes)
    method, batch = LIET(refresh=refresh), Batch(x, y, torch.arange(len(y)))
    state = method.remember(model, sizes(9, classes))
    assert not state["class_signs"].any()
    for step in range(refresh):
        state = take(method, model, batch, at=moment(step), state=state).state
    assert state["class_signs"].abs().flatten(1).all(1).all()


def test_without_smoothing_and_divergence_it_is_fast_at_from_its_start() -> None:
    model, x, y = case(3)
    batch, eps = Batch(x, y, torch.arange(len(y))), 8 / 255
    start = cut(x, torch.randn_like(x), eps)
    found = take(LIET(coefficient=0, smoothing=0), model, batch, eps=eps, start=start)
    fast = take(FastAT(step=eps), model, batch, eps=eps, start=start)
    assert float((found.delta - fast.delta).abs().max()) <= 1e-15
    test_methods.assert_close(found.grads, fast.grads, 1e-12)


def test_it_costs_seven_forward_passes_and_those_of_a_few_grey_images() -> None:
    model, x, y, _ = test_methods.case(0, name="preact-resnet-18", dtype=torch.float32, batch=4)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", 8 / 255)
    assert round(forward_equivalents(LIET(), model, batch, threat), 1) == 7.0

    def step(network: nn.Module) -> None:
        params: dict[str, Tensor] = dict(network.named_parameters())
        state = {"class_signs": torch.zeros(10, *x.shape[1:])}
        LIET()(network, params, batch, threat, moment=moment(0), state=state)

    with torch.no_grad():
        forward = flops(lambda: model(x))
    # Ten classes within twenty steps: one grey image a step, beside four images.
    assert round(flops(lambda: step(copy.deepcopy(model))) / forward, 1) == 7.5
