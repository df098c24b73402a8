"""The quadratic upper bound is above the cross-entropy, touches it, and could not be lower."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adv_train import training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.fast_at import FastAT
from adv_train.objectives.qub import QUB
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, case


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**31),
    classes=st.integers(2, 12),
    size=st.floats(1e-3, 1e3),
    change=st.floats(1e-6, 1e3),
)
def test_it_is_never_below_the_cross_entropy(seed: int, classes: int, size: float, change: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(64, classes, dtype=torch.float64, generator=generator)

    clean, y = size * draw(), torch.randint(classes, (64,), generator=generator)
    logits = clean + change * draw()
    truth = F.cross_entropy(logits, y, reduction="none")
    # Both are computed from logits of this size, so they are known to about 1e-15 of their square.
    assert (QUB()(logits, y, clean) >= truth - 1e-15 * (1 + size + change) ** 2).all()


def test_it_touches_the_cross_entropy_at_the_clean_image() -> None:
    logits = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(20) % 7
    bound, loss = QUB()(logits, y, logits.detach(), "mean"), F.cross_entropy(logits, y)
    assert float(bound.detach()) == pytest.approx(float(loss.detach()), rel=1e-14)
    slopes = [torch.autograd.grad(value, logits)[0] for value in (bound, loss)]
    assert (slopes[0] - slopes[1]).abs().max() <= 1e-16


@pytest.mark.parametrize("size", [1e-2, 1e-1])
def test_no_smaller_curvature_would_do(size: float) -> None:
    # log(2 cosh t) = log 2 + t^2 / 2 - t^4 / 12 + ..., where the quadratic term is |d|^2 / 4.
    clean, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    logits = torch.tensor([[size, -size]], dtype=torch.float64)
    gap = float(QUB()(logits, y, clean) - F.cross_entropy(logits, y))
    assert gap == pytest.approx(size**4 / 12, rel=1e-2)


def test_it_trains_in_place_of_the_cross_entropy() -> None:
    model, x, y, start = case(3)
    options = {"eps": 0.1, "start": 0.1 * start}
    found = training_gradient(model, x, y, method="fast-at", train_loss="qub", **options)
    plain = training_gradient(model, x, y, method="fast-at", **options)
    assert torch.equal(found.delta, plain.delta) and float(found.loss) > float(plain.loss)

    clean, logits = model(x), model(x + found.delta)
    label, p = F.one_hot(y, 10).double(), clean.softmax(1)
    change = logits - clean
    terms = -(label * p.log()).sum(1) + ((p - label) * change).sum(1) + 0.25 * (change * change).sum(1)
    names, params = zip(*model.named_parameters(), strict=True)
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(terms.mean(), params), strict=True)), 1e-10)


def test_it_adds_a_forward_and_a_backward_pass() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", 0.1)
    assert round(forward_equivalents(FastAT(train_loss=QUB()), model, batch, threat), 1) == 8.0
