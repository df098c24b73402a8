"""Every training method against plain autodiff, and against the methods it contains."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adv_train import data, methods, models, training_gradient
from adv_train.bench import by_hand
from adv_train.bench.count import forward_equivalents
from adv_train.bench.run import cases
from adv_train.errors import UserError
from adv_train.methods.fast_at_ga import _misalignment
from adv_train.ranks import Share
from adv_train.second_derivatives.mode import SUPPORTED
from adv_train.threat import Threat

Case = tuple[nn.Module, Tensor, Tensor, Tensor]


def case(seed: int = 0, *, dtype: torch.dtype = torch.float64, name: str = "small-cnn", batch: int = 3) -> Case:
    """A model in train mode, images that touch 0 and 1, labels and a start in the ball of radius 1."""
    generator = torch.Generator().manual_seed(seed)
    channels, size = (1, 8) if name == "small-cnn" else (3, 8)
    statistics: dict[str, Any] = {"mean": (0.4,) * channels, "std": (0.3,) * channels}
    model = models.create(name, channels=channels, classes=10, image_size=size, seed=seed, **statistics)
    x = torch.rand(batch, channels, size, size, generator=generator).mul(1.4).sub(0.2).clamp(0, 1).to(dtype)
    y = torch.randint(10, (batch,), generator=generator)
    start = (2 * torch.rand(x.shape, generator=generator) - 1).to(dtype)
    return model.to(dtype).train(), x, y, start


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    scale = max(float(value.abs().max()) for value in truth.values())
    for name, value in truth.items():
        assert float((found[name] - value).abs().max()) <= tolerance * scale, name


def assert_same_bits(found: methods.Step, other: methods.Step) -> None:
    assert torch.equal(found.delta, other.delta)
    assert torch.equal(found.loss, other.loss)
    for name, value in found.grads.items():
        assert torch.equal(value, other.grads[name]), name


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet-18"])
@pytest.mark.parametrize("title", list(by_hand.STEPS))
@pytest.mark.parametrize("eps", [8 / 255, 16 / 255])
def test_gradient_is_that_of_the_published_steps_written_by_hand(name: str, title: str, eps: float) -> None:
    ((method, options),) = ((method, options) for known, method, options in cases() if known == title)
    # The last stage sees one pixel an image: batch norm over three numbers would multiply rounding by 1e5.
    model, x, y, start = case(1, name=name, batch=6)
    torch.manual_seed(0)  # gradient alignment draws a point
    truth = by_hand.STEPS[title](model, x, y, eps * start, eps)
    torch.manual_seed(0)
    assert_close(training_gradient(model, x, y, method=method, eps=eps, start=eps * start, **options).grads, truth)


class _FirstIsDead(nn.Module):
    """A model whose logits for the first image have no gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return torch.cat([logits[:1].detach(), logits[1:]])


def test_gradient_alignment_by_hand_leaves_out_a_vanishing_gradient() -> None:
    model, x, y, start = case(2)
    model = _FirstIsDead(model)
    torch.manual_seed(0)
    truth = by_hand.STEPS["fast-at-ga"](model, x, y, 0.1 * start, 0.1)
    torch.manual_seed(0)
    assert_close(training_gradient(model, x, y, method="fast-at-ga", eps=0.1, start=0.1 * start).grads, truth)


@pytest.mark.parametrize(
    ("levels", "coefficient"),
    [
        # The table of the published code.
        *((2, 0.036), (4, 0.063), (6, 0.112), (8, 0.2), (10, 0.356), (12, 0.632), (14, 1.124), (16, 2.0)),
        # In between, that of the nearest radius.
        *((1, 0.036), (8.98, 0.2), (9.02, 0.356), (40, 2.0)),
    ],
)
def test_gradient_alignment_has_the_published_coefficient(levels: float, coefficient: float) -> None:
    model, x, y, _ = case(2, dtype=torch.float32)

    def step(**options: float) -> methods.Step:
        generator = torch.Generator().manual_seed(0)
        return training_gradient(
            model,
            x,
            y,
            method="fast-at-ga",
            eps=levels / 255,
            start=torch.zeros_like(x),
            generator=generator,
            **options,
        )

    assert_same_bits(step(), step(coefficient=coefficient))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), weight=st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3))
def test_implicit_part_alone_is_the_published_one_times_its_signed_weight(seed: int, weight: float) -> None:
    model, x, y, start = case(seed)
    eps = 8 / 255

    def gradient(ig_weight: float) -> methods.Step:
        return training_gradient(model, x, y, method="fast-bat", eps=eps, start=eps * start, ig_weight=ig_weight)

    weighted, without = gradient(weight), gradient(0.0)
    truth = _implicit_by_hand(model, x, y, eps * start, eps)
    found = {name: (weighted.grads[name] - without.grads[name]) / weight for name in truth}
    scale = max(float(value.abs().max()) for value in without.grads.values())
    for name, value in truth.items():
        assert float((found[name] - value).abs().max()) <= 1e-12 * scale / abs(weight), name
    share = _norm(truth) / _norm(without.grads) * abs(weight)
    assert float(weighted.implicit_share) == pytest.approx(share, rel=1e-9)
    assert float(without.implicit_share) == 0


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 3))
def test_with_the_steps_own_curvature_the_gradient_is_autodiff_through_the_last_step(seed: int, steps: int) -> None:
    model, x, y, start = case(seed)
    eps, step = 0.1, 2.0
    found = training_gradient(
        model, x, y, method="fast-bat", eps=eps, start=eps * start, steps=steps, step=step, curvature=1 / step
    )
    low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
    delta = eps * start
    for number in range(steps):
        delta = delta.detach().requires_grad_()
        loss = F.cross_entropy(model(x + delta), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, delta, create_graph=number == steps - 1)
        delta = (delta.detach() + step * slope).clamp(low, high)
    loss = F.cross_entropy(model(x + delta), y)
    names, params = zip(*model.named_parameters(), strict=True)
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(loss, params), strict=True)))
    assert torch.equal(found.delta, delta.detach())


@pytest.mark.parametrize(
    ("method", "options"), [("fast-bat", {"direction": "sign", "steps": 1}), ("pgd-at", {"steps": 1})]
)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), step=st.floats(0.01, 0.5))
def test_one_sign_step_is_fast_at_bit_for_bit(method: str, options: dict[str, Any], seed: int, step: float) -> None:
    model, x, y, start = case(seed, dtype=torch.float32)
    same: dict[str, Any] = {"eps": 0.2, "start": 0.2 * start, "step": step}
    found = training_gradient(model, x, y, method=method, **options, **same)
    assert_same_bits(found, training_gradient(model, x, y, method="fast-at", **same))
    assert float(found.implicit_share) == 0


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_gradient_alignment_with_coefficient_zero_is_the_sign_step_from_zero_bit_for_bit(seed: int) -> None:
    model, x, y, _ = case(seed, dtype=torch.float32)
    aligned = training_gradient(model, x, y, method="fast-at-ga", eps=0.2, coefficient=0.0)
    assert_same_bits(aligned, training_gradient(model, x, y, method="fast-at", eps=0.2, start="zero"))


def test_gradient_alignment_is_its_definition() -> None:
    model, x, y, _ = case(4)
    eps, weight = 0.1, 0.7
    found = training_gradient(
        model, x, y, method="fast-at-ga", eps=eps, coefficient=weight, generator=torch.Generator().manual_seed(9)
    )
    noise = torch.empty_like(x).uniform_(-eps, eps, generator=torch.Generator().manual_seed(9)).requires_grad_()
    zero = torch.zeros_like(x).requires_grad_()
    (at_zero,) = torch.autograd.grad(F.cross_entropy(model(x + zero), y, reduction="sum"), zero)
    (at_noise,) = torch.autograd.grad(F.cross_entropy(model(x + noise), y, reduction="sum"), noise, create_graph=True)
    delta = (1.25 * eps * at_zero.sign()).clamp((-x).clamp(min=-eps), (1 - x).clamp(max=eps))
    a, b = at_zero.flatten(1), at_noise.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    loss = F.cross_entropy(model(x + delta), y) + weight * (1 - cosine.mean())
    names, params = zip(*model.named_parameters(), strict=True)
    truth = torch.autograd.grad(loss, params)
    assert_close(found.grads, dict(zip(names, truth, strict=True)), 1e-9)
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1e-9, 1e-15])
def test_gradient_alignment_does_not_depend_on_the_size_of_the_gradients(size: float) -> None:
    """A confident sample has a tiny gradient, whose direction counts like that of any other."""
    random = torch.Generator().manual_seed(0)
    fixed, moving = torch.randn(2, 3, 4, generator=random)

    def term(size: float) -> tuple[Tensor, Tensor]:
        point = (size * moving).requires_grad_()
        found = _misalignment(size * fixed, point, Share(3))
        return found.detach(), size * torch.autograd.grad(found, point)[0]

    for found, truth in zip(term(size), term(1.0), strict=True):
        assert torch.allclose(found, truth, rtol=1e-4)


def test_standard_is_the_gradient_of_the_clean_loss() -> None:
    model, x, y, _ = case(2)
    names, params = zip(*model.named_parameters(), strict=True)
    truth = dict(zip(names, torch.autograd.grad(F.cross_entropy(model(x), y), params), strict=True))
    step = training_gradient(model, x, y, method="standard", eps=0.1)
    assert_close(step.grads, truth)
    assert not step.delta.any()


def test_no_implicit_gradient_when_every_coordinate_is_active() -> None:
    model, x, y, start = case(3)
    pushed = training_gradient(model, x, y, method="fast-bat", eps=1e-3, start=1e-3 * start, step=1e9)
    without = training_gradient(model, x, y, method="fast-bat", eps=1e-3, start=1e-3 * start, step=1e9, ig_weight=0.0)
    assert float(pushed.implicit_share) == 0
    assert_same_bits(pushed, without)


def test_a_pixel_within_1e_7_of_its_bound_is_held_as_in_the_published_code() -> None:
    model, x, y, _ = case(4)
    step = training_gradient(model, x, y, method="fast-bat", eps=8 / 255, start=-torch.ones_like(x), step=1e-9)
    low = (-x).clamp(min=-8 / 255)
    assert int((step.delta > low).sum()) > 0 and float((step.delta - low).max()) < 1e-7
    assert float(step.implicit_share) == 0


@pytest.mark.parametrize("method", ["fast-at", "fast-at-ga", "pgd-at", "fast-bat"])
def test_perturbed_images_are_images_within_the_budget(method: str) -> None:
    model, x, y, _ = case(5)
    delta = training_gradient(model, x, y, method=method, eps=0.1).delta
    assert float(delta.abs().max()) <= 0.1 + 1e-15
    assert float((x + delta).min()) >= -1e-15
    assert float((x + delta).max()) <= 1 + 1e-15
    assert delta.any()


def test_parameters_their_gradients_and_the_mode_are_left_alone() -> None:
    model, x, y, _ = case(6)
    before = {name: value.clone() for name, value in model.named_parameters()}
    training_gradient(model, x, y, method="fast-bat", eps=0.1)
    assert model.training
    for name, value in model.named_parameters():
        assert value.grad is None
        assert value.requires_grad
        assert torch.equal(value, before[name])


def test_the_same_generator_gives_the_same_bits() -> None:
    model, x, y, _ = case(7, dtype=torch.float32)
    first, second = (
        training_gradient(model, x, y, method="fast-bat", eps=0.1, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert_same_bits(first, second)


@pytest.mark.parametrize(
    ("method", "options", "most"),
    [
        ("standard", {}, 3.1),
        ("fast-at", {}, 5.1),
        ("pgd-at", {"steps": 2}, 7.1),
        ("fast-bat", {"ig_weight": 0.0}, 7.1),
        ("fast-bat", {}, 11.3),
        # torch's own second derivatives of convolutions cost more operations.
        ("fast-at-ga", {}, 11.3 if SUPPORTED else 14.2),
    ],
)
def test_cost_in_forward_passes(method: str, options: dict[str, Any], most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    model = models.create(
        "preact-resnet-18", channels=3, classes=10, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0
    ).train()
    x, y = torch.rand(2, 3, 32, 32, generator=generator), torch.tensor([1, 2])
    batch = data.Batch(x, y, torch.arange(len(y)))
    cost = forward_equivalents(methods.METHODS.create(method, **options), model, batch, Threat("linf", 8 / 255))
    assert 2.9 < cost <= most


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "fast-bta"}, "fast-bat"),
        ({"method": "fast-bat", "steps": 0}, "steps"),
        ({"method": "fast-bat", "curvature": 0.0}, "curvature"),
        ({"method": "fast-bat", "ig_weight": float("nan")}, "ig_weight"),
        ({"method": "fast-bat", "step": -1.0}, "step"),
        ({"method": "fast-bat", "direction": "up"}, "direction"),
        ({"method": "fast-at", "curvature": 1.0}, "curvature"),
        ({"method": "fast-at", "start": "corner"}, "start"),
        ({"method": "pgd-at", "steps": 0}, "steps"),
        ({"method": "fast-at-ga", "coefficient": -1.0}, "coefficient"),
        ({"method": "fast-at", "start": torch.zeros(1)}, "start"),
    ],
)
def test_a_wrong_choice_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    model, x, y, _ = case(8)
    with pytest.raises(UserError, match=named):
        training_gradient(model, x, y, eps=0.1, **options)


def _norm(parts: dict[str, Tensor]) -> float:
    return float(sum(value.pow(2).sum() for value in parts.values())) ** 0.5


def _implicit_by_hand(model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float) -> dict[str, Tensor]:
    """The published implicit part: mean over the batch of grad_theta < grad of the summed loss at z, u >."""
    step = 5000 / 255
    low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
    z = start.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x + z), y, reduction="sum"), z)
    z = (z + step * slope).clamp(low, high).detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x + z), y, reduction="sum"), z, create_graph=True)
    delta = (z + step * slope).clamp(low, high).detach().requires_grad_()
    (outer,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
    u = ((delta > low + 1e-7) & (delta < high - 1e-7)) * outer / 10
    names, params = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((slope * u.detach()).sum() / len(x), params, materialize_grads=True, allow_unused=True)
    return dict(zip(names, found, strict=True))


# --- modes, and what training_gradient refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fast-at", "pgd-at", "fast-bat", "fast-at-ga", "n-fgsm"])
def test_the_attack_can_see_the_model_as_after_training(method: str) -> None:
    model, x, y, start = case(4, name="preact-resnet-18", batch=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that the statistics stay and two models can be compared
    options: dict[str, Any] = {"method": method, "eps": 0.05, "start": 0.05 * start}
    found = training_gradient(model, x, y, attack_mode="eval", **options)
    assert all(module.training for module in model.modules())
    as_after = training_gradient(model.eval(), x, y, **options)
    # The attack is that on the model in eval mode; the loss on what it found is that of training.
    assert torch.equal(found.delta, as_after.delta)
    assert not torch.equal(found.delta, training_gradient(model.train(), x, y, **options).delta)
    if method != "fast-at-ga":
        assert torch.equal(found.loss, F.cross_entropy(model(x + found.delta), y))


#: Their attack also sees the clean output in train mode, as published.
GUIDED = {"gat", "nuat"}


@pytest.mark.parametrize("method", [name for name in methods.METHODS.names() if name not in GUIDED])
def test_dropout_is_off_in_an_attack_in_eval_mode_and_on_in_training(method: str) -> None:
    if not issubclass(cast(type, methods.METHODS.find(method)), methods.Adversarial):
        assert "attack_mode" not in methods.METHODS.options(method)
        return
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.SiLU(), nn.Dropout(0.5), nn.Linear(40, 10)).double()
    _, x, y, _ = case(4, batch=6)

    def step(mode: str, seed: int) -> methods.Step:
        torch.manual_seed(seed)  # which draws what dropout leaves out
        generator = torch.Generator().manual_seed(7)
        return training_gradient(model, x, y, method=method, eps=0.1, generator=generator, attack_mode=mode)

    off, again, on, other = (step(mode, seed) for mode in ("eval", "train") for seed in (1, 2))
    assert torch.equal(off.delta, again.delta) and not torch.equal(off.loss, again.loss)
    assert not torch.equal(on.delta, other.delta)
    assert all(module.training for module in model.modules())


def test_frozen_parameters_are_constants() -> None:
    model, x, y, start = case(0)
    every = training_gradient(model, x, y, method="fast-bat", eps=0.1, start=0.1 * start).grads
    frozen = next(iter(every))
    model.get_parameter(frozen).requires_grad_(False)
    for method in ("standard", "fast-at", "fast-bat"):
        assert frozen not in training_gradient(model, x, y, method=method, eps=0.1, start=0.1 * start).grads
    found = training_gradient(model, x, y, method="fast-bat", eps=0.1, start=0.1 * start).grads
    assert_close(found, {name: value for name, value in every.items() if name != frozen}, 0.0)


def test_training_gradient_names_what_it_cannot_use() -> None:
    model, x, y, _ = case(0)
    for images, labels, eps, says in (
        (255 * x, y, 0.1, r"needs images in \[0, 1\]"),
        ((x - 0.5) / 0.25, y, 0.1, r"needs images in \[0, 1\]"),
        ((255 * x).byte(), y, 0.1, "Divide uint8 images by 255"),
        (x, y, 8, "`eps` must not exceed"),
        (x, y.float(), 0.1, "one int64 label an image"),
        (x, y + 10, 0.1, "The largest label is 1., but the model has 10 logits"),
        (x.float(), y, 0.1, "The images are torch.float32, but the parameter `.*` is torch.float64"),
    ):
        with pytest.raises(UserError, match=says):
            training_gradient(model, images, labels, method="fast-at", eps=eps)
    for other, says in ((nn.Flatten(), "No parameter"), (nn.Linear(8, 8).double(), "must return logits of shape")):
        with pytest.raises(UserError, match=says):
            training_gradient(other, x, y, method="fast-bat", eps=0.1)
    assert not model._forward_hooks
    for options, says in (
        ({"start": 3}, "Unknown start `3`"),
        ({"start": x.float()}, r"the dtype and the shape of x, torch.float64 of shape .*, but is torch.float32"),
        ({"start": torch.full_like(x, torch.nan)}, "`start` must be finite"),
        ({"eps": 0}, "`eps` must be above 0 for fast-bat: an attack of radius 0 is --method standard"),
        ({"method": None}, "Unknown method `None`"),
    ):
        with pytest.raises(UserError, match=says):
            training_gradient(model, x, y, **{"method": "fast-bat", "eps": 0.1, **options})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"pass its `\.module`"):
        training_gradient(nn.DataParallel(model), x, y, method="fast-at", eps=0.1)
    with pytest.raises(UserError, match="nothing to train"):
        training_gradient(model.requires_grad_(False), x, y, method="fast-at", eps=0.1)


@pytest.mark.parametrize("method", ["standard", "fast-at", "pgd-at", "n-fgsm"])
def test_label_smoothing_is_applied_once_and_not_in_the_attack(method: str) -> None:
    model, x, y, _ = case(5)

    def step(**options: str) -> methods.Step:
        return training_gradient(
            model, x, y, method=method, eps=0.1, generator=torch.Generator().manual_seed(1), **options
        )

    found = step(train_loss="cross-entropy(smoothing=0.4)")
    assert torch.equal(found.delta, step().delta)
    wanted = torch.full((len(y), 10), 0.04, dtype=x.dtype)
    wanted[torch.arange(len(y)), y] += 0.6
    params = dict(model.named_parameters())
    loss = -(wanted * model(x + found.delta).log_softmax(1)).sum(1).mean()
    assert abs(float(found.loss) - float(loss.detach())) < 1e-12
    assert_close(found.grads, dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)))
