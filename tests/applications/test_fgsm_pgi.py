"""FGSM-PGI against its definition in plain torch over several visits of an image, and against Fast-AT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import checkpoint, data, training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch, Motion
from adv_train.methods.fgsm_pgi import FGSMPGI
from adv_train.threat import Threat
from adv_train.train import fit
from tests.applications import test_methods
from tests.applications.normed import EPS, assert_step, case, cut, moment, sizes, slope_at, take
from tests.applications.test_resume import Stopped, assert_same_run, config, stop_at_write


def coins(x: Tensor, seed: int) -> Tensor:
    signs = torch.empty_like(x).bernoulli_(0.5, generator=torch.Generator().manual_seed(seed))
    return EPS * (2 * signs - 1)


def by_hand(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, weight: float = 10.0) -> tuple[Tensor, ...]:
    """The perturbation, the loss and the input gradient at the start: one pass for both levels."""
    point = start.clone().requires_grad_()
    near = model(x + point)
    loss = F.cross_entropy(near, y, label_smoothing=0.3)
    (slope,) = torch.autograd.grad(loss, point, retain_graph=True)
    delta = cut(x, start + EPS * slope.sign())
    logits = model(x + delta)
    return delta, F.cross_entropy(logits, y, label_smoothing=0.3) + weight * F.mse_loss(logits, near), slope


SMOOTHED = {"attack_loss": "cross-entropy(smoothing=0.3)", "train_loss": "cross-entropy(smoothing=0.3)"}


@pytest.mark.parametrize("memory", ["mep", "ep"])
def test_it_is_its_definition_at_each_visit_of_an_image(memory: str) -> None:
    """Three epochs of two batches; from the third on every image starts anew."""
    model, x, y = case(1, batch=6)
    method = FGSMPGI(memory=memory, reset_epochs=2, **SMOOTHED)  # type: ignore[arg-type]
    state = method.remember(model, sizes(6))
    starts, momenta = torch.zeros_like(x), torch.zeros_like(x)
    for visit in range(6):
        epoch, index = visit // 2, torch.tensor([[4, 0, 2], [5, 1, 3]][visit % 2])
        if epoch in (0, 2):
            starts[index], momenta[index] = coins(x[index], visit), 0
        batch = Batch(x[index], y[index], index)
        found = take(method, model, batch, at=moment(visit, epoch=epoch), state=state, seed=visit)

        start = cut(x[index], starts[index])
        delta, loss, slope = by_hand(model, x[index], y[index], start)
        assert_step(found, model, delta, loss)
        momenta[index] = 0.3 * momenta[index] + slope / slope.norm(p=1)
        ahead = cut(x[index], start + EPS * momenta[index].sign())
        starts[index] = ahead if memory == "mep" else delta
        state = found.state
        assert torch.allclose(state["delta"], starts, atol=1e-12, rtol=0)


def test_the_memory_follows_the_pixels_of_an_image() -> None:
    """Shifted by one row and mirrored: what fell out of the image is remembered as it was."""
    model, x, y = case(2, batch=3)
    index = torch.tensor([2, 0, 1])
    motion = Motion(torch.tensor([[1, 0], [0, 0], [0, -1]]), torch.tensor([False, True, False]))
    moved = motion.apply(x)
    assert torch.equal(moved[0, :, :-1], x[0, :, 1:]) and torch.equal(moved[2, :, :, 1:], x[2, :, :, :-1])
    method = FGSMPGI(memory="ep")
    before = cut(x, coins(x, 0))
    state = {"delta": torch.empty_like(x).index_copy(0, index, before), "stretch": torch.zeros(3, dtype=torch.int64)}
    found = take(method, model, Batch(moved, y, index, motion), at=moment(1), state=state)
    expected = before.clone()
    expected[0, :, 1:] = found.delta[0, :, :-1]
    expected[1] = found.delta[1].flip(-1)
    expected[2, :, :, :-1] = found.delta[2, :, :, 1:]
    assert torch.equal(found.state["delta"][index], expected)
    start = torch.zeros_like(x)
    start[0, :, :-1], start[1], start[2, :, :, 1:] = before[0, :, 1:], before[1].flip(-1), before[2, :, :, :-1]
    slope = slope_at(model, moved, start, lambda logits: F.cross_entropy(logits, y))
    assert float((found.delta - cut(moved, start + EPS * slope.sign())).abs().max()) <= 1e-12


def test_without_memory_and_regulariser_it_is_fast_at_from_its_start() -> None:
    model, x, y, _ = test_methods.case(3, batch=5)
    generator = torch.Generator().manual_seed(5)
    found = training_gradient(model, x, y, method="fgsm-pgi", eps=EPS, coefficient=0.0, generator=generator)
    start = cut(x, coins(x, 5))
    fast = training_gradient(model, x, y, method="fast-at", eps=EPS, step=EPS, start=start)
    assert float((found.delta - fast.delta).abs().max()) <= 1e-15
    test_methods.assert_close(found.grads, fast.grads, 1e-12)


@pytest.mark.parametrize("method", ["fgsm-pgi", "atas", "liet"])
def test_a_run_that_was_stopped_remembers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    chosen = config(method=method, epochs=2, train_limit=64, augment="flip-crop")
    whole = fit(chosen, tmp_path / "whole", progress=False).run
    with monkeypatch.context() as patch:
        stop_at_write(patch, 4, after=True)
        with pytest.raises(Stopped):
            fit(chosen, tmp_path / "run", progress=False)
    fit(chosen, tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", whole.path)
    found, expected = checkpoint.load(tmp_path / "run" / "last.pt").memory, checkpoint.load(whole.last).memory
    assert expected and all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(value.any() for value in expected.values() if value.ndim > 1)


def test_it_costs_seven_forward_passes() -> None:
    model, x, y, _ = test_methods.case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, threat = data.Batch(x, y, torch.arange(len(y))), Threat("linf", EPS)
    assert round(forward_equivalents(FGSMPGI(), model, batch, threat), 1) == 7.0
