"""ATAS against its definition in plain torch over several visits of an image, and against Fast-AT."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.atas import ATAS
from adv_train.methods.fast_at import FastAT
from adv_train.threat import Threat
from tests.applications import test_methods
from tests.applications.normed import EPS, assert_step, case, cut, moment, sizes, slope_at, take


def test_it_is_its_definition_at_each_visit_of_an_image() -> None:
    """Four epochs of two batches: one of warm-up, and a new start before the third."""
    model, x, y = case(1, batch=6)
    method = ATAS(warmup_epochs=1, reset_epochs=2, softness=0.1, shortest=EPS / 2, longest=1.75 * EPS)
    state = method.remember(model, sizes(6))
    starts, sharpness, lengths = torch.zeros_like(x), torch.zeros(6, dtype=torch.float64), []
    for visit in range(8):
        epoch, index = visit // 2, torch.tensor([[4, 0, 2], [5, 1, 3]][visit % 2])
        if epoch in (0, 2):
            noise = torch.empty_like(x[index]).uniform_(-EPS, EPS, generator=torch.Generator().manual_seed(visit))
            starts[index] = noise
        batch = Batch(x[index], y[index], index)
        found = take(method, model, batch, at=moment(visit, epoch=epoch), state=state, seed=visit)

        start = cut(x[index], starts[index])
        model.eval()
        slope = slope_at(model, x[index], start, lambda logits, y=y[index]: F.cross_entropy(logits, y, reduction="sum"))
        step = torch.full((3,), EPS, dtype=torch.float64)
        if epoch >= 1:
            sharpness[index] = 0.5 * sharpness[index] + 0.5 * slope.pow(2).sum((1, 2, 3))
            step = (2 * EPS / (1 + sharpness[index].sqrt() / 0.1)).clamp(EPS / 2, 1.75 * EPS)
            lengths.append(step)
        starts[index] = cut(x[index], start + step.view(3, 1, 1, 1) * slope.sign())
        loss = F.cross_entropy(model.train()(x[index] + starts[index]), y[index])
        assert_step(found, model, starts[index], loss)
        state = found.state
        assert torch.allclose(state["delta"], starts, atol=1e-12, rtol=0)
        assert torch.allclose(state["sharpness"], sharpness, atol=0, rtol=1e-10)
    assert len(torch.cat(lengths).unique()) > 6  # neither bound held them all


@pytest.mark.parametrize("softness", [1e-9, 1e9])
def test_with_a_step_at_a_bound_it_is_fast_at_with_that_step(softness: float) -> None:
    model, x, y = case(2)
    batch, start = Batch(x, y, torch.arange(len(y))), cut(x, torch.randn_like(x))
    found = take(ATAS(softness=softness), model, batch, start=start)
    length = EPS / 2 if softness < 1 else 1.75 * EPS
    fast = take(FastAT(step=length, attack_mode="eval"), model, batch, start=start)
    assert float((found.delta - fast.delta).abs().max()) <= 1e-15
    test_methods.assert_close(found.grads, fast.grads, 1e-12)


def test_it_costs_as_much_as_fast_at() -> None:
    model, x, y, _ = test_methods.case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(ATAS(), model, batch, threat), 1) == 5.0
