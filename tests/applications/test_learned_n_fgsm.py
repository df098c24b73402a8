"""Learned N-FGSM: its hypergradient by plain autograd through the unrolled step, its optimiser, and its limits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adv_train import checkpoint, training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.methods.learned_n_fgsm import LearnedNFGSM, _adam
from adv_train.threat import Threat
from adv_train.train import fit
from tests.applications.test_memory import Stopped, config, stop_at_write
from tests.applications.test_methods import assert_close, case
from tests.applications.test_shifted import smooth

EPS, THREAT = 0.1, Threat("linf", 0.1)


def step_at(phi: Tensor, confidence: Tensor) -> Tensor:
    """The logarithm of the step over eps: straight lines between knots at confidences from 0 to 1."""
    knots = len(phi) - 1
    if knots == 1:
        return phi[1].expand(len(confidence))
    place = confidence * (knots - 1)
    left = place.floor().long().clamp(max=knots - 2)
    return phi[1:][left] + (place - left) * (phi[1:][left + 1] - phi[1:][left])


def attacked(model: nn.Module, x: Tensor, y: Tensor, phi: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The perturbation as a function of phi, and its ingredients."""
    unit = torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)
    image = (x + unit * phi[0].detach().exp()).clamp(0, 1).requires_grad_()
    logits = model(image)
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), image)
    confidence = logits.detach().softmax(1)[torch.arange(len(y)), y]
    noisy = (x + unit * phi[0].exp()).clamp(0, 1)
    lengths = EPS * step_at(phi, confidence).exp()
    return {"image": (noisy + lengths.view(-1, 1, 1, 1) * slope.sign()).clamp(0, 1), "confidence": confidence}


def by_hand(model: nn.Module, x: Tensor, y: Tensor, phi: Tensor, generator: torch.Generator) -> Tensor:
    """The derivative in phi of the PGD loss on the first two images after a step of SGD on the others."""
    phi = phi.clone().requires_grad_()
    images = attacked(model, x, y, phi, generator)["image"]
    names, params = zip(*model.named_parameters(), strict=True)
    loss = F.cross_entropy(model(images[2:]), y[2:])
    slopes = torch.autograd.grad(loss, params, create_graph=True)
    moved = {name: w - 0.3 * g for name, w, g in zip(names, params, slopes, strict=True)}

    def logits(delta: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, moved, (x[:2] + delta,))
        return out

    delta = torch.empty_like(x[:2]).uniform_(-EPS, EPS, generator=generator).clamp(-x[:2], 1 - x[:2])
    for _ in range(3):
        delta.requires_grad_()
        (ascent,) = torch.autograd.grad(F.cross_entropy(logits(delta), y[:2], reduction="sum"), delta)
        delta = (delta.detach() + 2.5 * EPS / 3 * ascent.sign()).clamp(-EPS, EPS).clamp(-x[:2], 1 - x[:2])
    return torch.autograd.grad(F.cross_entropy(logits(delta), y[:2]), phi)[0]


@pytest.mark.parametrize("products", ["reverse", "finite-difference"])
@pytest.mark.parametrize("knots", [1, 3])
def test_phi_follows_the_held_out_loss_after_one_step_of_the_weights(knots: int, products: Any) -> None:
    model, x, y, _ = smooth(2)
    with torch.no_grad():
        model.head.weight *= 200  # so that confidences spread over [0, 1]
    x = torch.cat((x, x.flip(2)))
    y = torch.cat((y, model(x[4:]).argmax(1)))  # and half of the images are classified correctly
    phi = torch.tensor([0.4, *(0.2, -0.3, 0.1)[:knots]], dtype=x.dtype)
    method = LearnedNFGSM(knots=knots, unrolled_lr=0.3, judge_steps=3, attack_lr=0.01, products=products)
    none = torch.zeros_like(phi)
    state = {"phi": phi, "mean": none, "square": none, "step": torch.zeros((), dtype=x.dtype)}
    params, batch = dict(model.named_parameters()), Batch(x, y, torch.arange(8))
    found = method(model, params, batch, THREAT, state=state, generator=torch.Generator().manual_seed(7))

    truth = by_hand(model, x, y, phi, torch.Generator().manual_seed(7))
    assert truth.abs().min() > 1e-9
    tolerance = 1e-6 if products == "finite-difference" else 1e-10
    assert (10 * found.state["mean"] - truth).abs().max() <= tolerance * truth.abs().max()
    assert (found.state["phi"] - (phi - 0.01 * truth.sign())).abs().max() < 1e-12  # the first step of Adam
    # The weights follow the attack with the phi before.
    images = attacked(model, x, y, phi, torch.Generator().manual_seed(7))["image"]
    names, weights = zip(*params.items(), strict=True)
    grads = torch.autograd.grad(F.cross_entropy(model(images), y), weights)
    assert (x + found.delta - images).abs().max() < 1e-12
    assert_close(found.grads, dict(zip(names, grads, strict=True)))


def test_phi_moves_by_adam() -> None:
    method, generator = LearnedNFGSM(knots=2, attack_lr=0.05), torch.Generator().manual_seed(0)
    state = method._fresh(torch.empty((), dtype=torch.float64))
    phi = state["phi"].clone().requires_grad_()
    adam = torch.optim.Adam([phi], lr=0.05, eps=0.0)
    for _ in range(6):
        phi.grad = torch.randn(3, generator=generator, dtype=torch.float64)
        adam.step()
        state = _adam(state, phi.grad, 0.05)
    assert (state["phi"] - phi).abs().max() < 1e-12


def test_without_learning_it_is_n_fgsm() -> None:
    model, x, y, _ = case(3, batch=6)
    given: dict[str, Any] = {"eps": EPS, "width": 1.5}
    fixed = training_gradient(
        model, x, y, method="learned-n-fgsm", attack_lr=0.0, length=0.8,
        generator=torch.Generator().manual_seed(1), **given,
    )  # fmt: skip
    base = training_gradient(
        model, x, y, method="n-fgsm", step=0.8 * EPS, generator=torch.Generator().manual_seed(1), **given
    )
    assert (fixed.delta - base.delta).abs().max() < 1e-15
    assert_close(fixed.grads, base.grads)
    assert fixed.state["phi"].tolist() == pytest.approx([math.log(1.5), math.log(0.8)])


def test_width_and_step_stay_within_reach() -> None:
    model, x, y, _ = case(3, batch=6)
    given: dict[str, Any] = {"method": "learned-n-fgsm", "eps": EPS, "width": 1.5, "length": 0.8, "knots": 2}
    moved = training_gradient(model, x, y, attack_lr=9.0, reach=2.0, **given).state["phi"].exp()
    for value, first in zip(moved.tolist(), (1.5, 0.8, 0.8), strict=True):
        assert any(value == pytest.approx(first * factor) for factor in (0.5, 1.0, 2.0))
    assert (moved != moved.new_tensor((1.5, 0.8, 0.8))).sum() >= 2


@pytest.mark.parametrize("images", [2, 3, 4, 9])
def test_a_batch_of_any_size_is_split(images: int) -> None:
    _, x, y, _ = case(4, batch=images)
    model = nn.Sequential(  # whose BatchNorm refuses a lone image
        nn.Conv2d(1, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10)
    ).double()
    state = training_gradient(model, x, y, method="learned-n-fgsm", eps=EPS, knots=3).state
    assert state["phi"].isfinite().all() and state["step"] == 1
    assert (state["phi"][0] != math.log(2)) and state["phi"][1:].any()


def test_what_is_learned_is_saved_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(method="learned-n-fgsm", epochs=2, knots=3)
    whole = checkpoint.load(fit(chosen, tmp_path / "whole", progress=False).run.last).memory
    with monkeypatch.context() as patch:
        stop_at_write(patch, 4, after=True)
        with pytest.raises(Stopped):
            fit(chosen, tmp_path / "run", progress=False)
    again = checkpoint.load(fit(chosen, tmp_path / "run", progress=False).run.last).memory
    assert whole["step"] == 6 and whole["phi"].shape == (4,) and float(whole["phi"][0]) != math.log(2)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_cost_in_forward_passes() -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", batch=8, dtype=torch.float32)
    cost = forward_equivalents(LearnedNFGSM(), model, Batch(x, y, torch.arange(8)), THREAT)
    assert 14 < cost < 14.5
