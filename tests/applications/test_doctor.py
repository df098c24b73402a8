"""The doctor finds each mistake in a model that has it, and none in models that have none."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adv_train
from adv_train import models
from adv_train.data import Split
from adv_train.doctor import CHECKS, Finding
from adv_train.doctor.significance import LEVEL, exceeds, more
from adv_train.errors import UserError
from adv_train.threat import Norm, Threat
from tests.applications.ill_models import (
    After,
    Before,
    Noise,
    digits,
    fitted,
    healthy,
    linear,
    perceptron,
    quantised,
    shattered,
    turned,
)


def found(model: nn.Module, check: str, eps: float = 0.1, norm: Norm = "linf", limit: int = 200) -> Finding:
    return adv_train.doctor(model, digits(), eps=eps, norm=norm, only=[check], limit=limit).findings[check]


def accuracy(model: nn.Module, change: Callable[[Tensor], Tensor]) -> float:
    test = digits().test
    with torch.no_grad():
        return float((model(change(test.images)).argmax(1) == test.labels).double().mean())


# --- healthy models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.03, 0.1, 0.2])
@pytest.mark.parametrize("decay", [1.0, 1000.0])
def test_a_linear_model_has_no_illness(decay: float, eps: float) -> None:
    assert not adv_train.doctor(linear(decay), digits(), eps=eps, limit=150).illnesses


@pytest.mark.parametrize(
    ("norm", "eps", "seed"), [("linf", 0.1, 0), ("linf", 0.1, 1), ("l2", 0.5, 0), ("l2", 1.0, 1), ("l1", 2.0, 0)]
)
def test_a_network_has_no_illness(norm: Norm, eps: float, seed: int) -> None:
    assert not adv_train.doctor(healthy(), digits(), eps=eps, norm=norm, seed=seed, limit=100).illnesses


@pytest.mark.parametrize("seed", range(6))
def test_random_weights_have_no_illness_but_that_they_may_answer_with_few_classes(seed: int) -> None:
    model = models.create("small-cnn", **digits().model_arguments(), seed=seed).eval()
    assert set(adv_train.doctor(model, digits(), eps=0.1).illnesses) <= {"collapse"}


def test_the_model_is_handed_back_as_it_was() -> None:
    model = fitted(perceptron(nn.BatchNorm1d(64), nn.Dropout(0.2)), steps=10)
    model.train()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    adv_train.doctor(model, digits(), eps=0.1, limit=60)
    assert torch.equal(state, torch.get_rng_state())
    assert [layer.training for layer in model] == [True, True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_findings() -> None:
    first, second = (adv_train.doctor(healthy(), digits(), eps=0.1, limit=100, seed=3).summary() for _ in range(2))
    assert first == second


# --- 1. normalisation -------------------------------------------------------------------------------------------------


def _denormalise(x: Tensor) -> Tensor:
    return x * digits().std[0] + digits().mean[0]


@pytest.mark.parametrize(
    ("undo", "scale", "name"),
    [
        (lambda x: x / 255, lambda x: 255 * x, "in 0..255"),
        (_denormalise, lambda x: (x - digits().mean[0]) / digits().std[0], "normalised with mean and std"),
        (lambda x: (x + 1) / 2, lambda x: 2 * x - 1, "in [-1, 1]"),
    ],
    ids=["bytes", "mean and std", "minus one to one"],
)
def test_normalisation_outside_the_model_is_found(
    undo: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor], name: str
) -> None:
    # What follows sees dark pixels alone, which images of less contrast do not have.
    model = Before(undo, fitted(Before(lambda x: 8 * (0.28 - x).relu(), perceptron())))
    seen = found(model, "normalisation", limit=360)
    assert seen.verdict == "ill" and name in seen.seen and name in seen.remedy
    assert seen.figures["accuracy"] == pytest.approx(accuracy(model, lambda x: x), abs=1e-12)
    assert seen.figures[name] == pytest.approx(accuracy(model, scale), abs=1e-12) and seen.figures[name] > 0.9
    assert f"{seen.figures['accuracy']:.1%}" in seen.seen and f"{seen.figures[name]:.1%}" in seen.seen
    # Ten images tell too little.
    assert found(model, "normalisation", limit=10).verdict == "well"


def test_images_that_are_normalised_already_are_found_and_nothing_is_attacked() -> None:
    x = (digits().test.images - 0.3) / 0.4
    seen = adv_train.doctor(healthy(), x, digits().test.labels, eps=0.1, limit=100)
    assert seen.findings["normalisation"].verdict == "ill" and "[-0.75, 1.75]" in seen.findings["normalisation"].seen
    assert seen.findings["one-step"].verdict == "not checked"


# --- 2. modes ---------------------------------------------------------------------------------------------------------


def test_batchnorm_in_train_mode_is_found_and_named() -> None:
    model = fitted(perceptron(nn.BatchNorm1d(64)))
    assert found(model, "batch-dependence").verdict == "well"
    seen = found(model.train(), "batch-dependence")
    assert seen.verdict == "ill" and "`2` (BatchNorm1d)" in seen.seen and "model.eval()" in seen.remedy
    assert seen.figures["moved"] == 16 and not seen.figures["in_eval_mode"]


def test_batchnorm_without_running_statistics_is_found_in_eval_mode() -> None:
    seen = found(fitted(perceptron(nn.BatchNorm1d(64, track_running_stats=False))), "batch-dependence")
    assert seen.verdict == "ill" and "track_running_stats=True" in seen.remedy and seen.figures["in_eval_mode"]


def test_layers_that_look_at_one_image_alone_are_no_illness() -> None:
    assert found(fitted(perceptron(nn.LayerNorm(64))).train(), "batch-dependence").verdict == "well"


def test_dropout_that_is_on_is_found_and_named() -> None:
    model = fitted(perceptron(nn.Dropout(0.3)))
    assert found(model, "randomness").verdict == "well"
    seen = found(model.train(), "randomness")
    assert seen.verdict == "ill" and "`2` (Dropout)" in seen.seen and "model.eval()" in seen.remedy
    assert found(model, "batch-dependence").verdict == "not checked"


def test_a_randomised_model_is_told_apart_from_one_in_train_mode() -> None:
    layer = found(fitted(perceptron(Noise())), "randomness")
    assert layer.verdict == "ill" and "`2` (Noise)" in layer.seen and "autoattack-rand" in layer.remedy
    inside = found(Before(lambda x: x + 0.1 * torch.randn_like(x), healthy()), "randomness")
    assert inside.verdict == "ill" and "single layer" not in layer.seen and inside.figures["in_eval_mode"]


# --- 3. budgets -------------------------------------------------------------------------------------------------------

CIFAR_STD = (0.2470, 0.2435, 0.2616)


def budget(norm: Norm, eps: float) -> Finding:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 3, 32, 32, generator=generator), torch.arange(20) % 4
    patient = adv_train.doctor
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    split = Split(x, y)
    dataset = adv_train.data.Dataset("x", split, split, split, tuple("abcd"), (0.5, 0.5, 0.5), CIFAR_STD, None)
    return patient(model, dataset, eps=eps, norm=norm, only=["budget"]).findings["budget"]


@pytest.mark.parametrize(
    ("norm", "eps", "verdict", "remedy"),
    [
        ("linf", 8.0, "ill", "8/255 = 0.03137"),
        ("l2", 128.0, "ill", "128/255 = 0.502"),
        ("linf", 8 / 255 / 255, "ill", r"eps 0.03137 \(8/255\)"),
        ("linf", 0.4 / 255, "ill", "by 255 twice"),
        ("linf", 0.5, "ill", "usual for l2"),
        ("l2", 40.0, "ill", "usual for CIFAR"),
        ("linf", 0.0, "ill", "above 0"),
        ("linf", 8 / 255 / 0.2435, "doubtful", "eps 8/255"),
        ("linf", round(4 / 255 / 0.2616, 6), "doubtful", "eps 4/255"),
        ("l2", 8 / 255, "doubtful", "--norm linf"),
        ("l1", 0.5, "doubtful", "--norm l2"),
    ],
)
def test_budgets_that_were_not_meant_are_found(norm: Norm, eps: float, verdict: str, remedy: str) -> None:
    seen = budget(norm, eps)
    assert seen.verdict == verdict
    with pytest.raises(AssertionError, match=remedy):
        raise AssertionError(seen.remedy)


@pytest.mark.parametrize(
    ("norm", "eps"),
    [
        *[("linf", levels / 255) for levels in (0.5, 1, 2, 4, 6, 8, 10, 12, 16, 24, 32)],
        *[("linf", eps) for eps in (0.031, 0.0314, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 1 / 16, 1 / 8, 3 / 16)],
        *[("l2", eps) for eps in (0.25, 0.5, 128 / 255, 1.0, 2.0, 3.0)],
        *[("l1", eps) for eps in (2.0, 10.0, 12.0, 255.0)],
    ],
)
def test_budgets_that_people_use_are_no_illness(norm: Norm, eps: float) -> None:
    assert budget(norm, eps).verdict == "well"


def test_checks_that_attack_say_why_they_do_not_at_such_a_budget() -> None:
    seen = adv_train.doctor(healthy(), digits(), eps=8, only=["budget", "one-step"], limit=20).findings
    assert seen["one-step"].verdict == "not checked" and "no budget in linf" in seen["one-step"].seen


# --- 4. masked gradients ----------------------------------------------------------------------------------------------

MASKED = {"large-budget", "random-search", "smoothing"}


def test_a_model_that_rounds_is_found_by_everything_that_needs_no_gradient() -> None:
    seen = adv_train.doctor(Before(quantised, healthy()), digits(), eps=0.2, skip=["leak"])
    assert set(seen.illnesses) == {*MASKED, "gradients"}
    gradients = seen.findings["gradients"].figures
    assert gradients["vanishing"] == gradients["n"] == gradients["vanishing_of_the_margin"]


def test_a_fine_ripple_is_found_by_smoothing_and_random_search() -> None:
    seen = adv_train.doctor(Before(shattered, healthy()), digits(), eps=0.2, skip=["leak"], limit=100)
    assert (
        set(seen.illnesses) == {"smoothing", "random-search", "one-step"}
        and seen.findings["gradients"].verdict == "well"
    )


def test_one_step_that_breaks_more_than_many_is_found() -> None:
    model = Before(lambda x: turned(x, everywhere=False), healthy())
    seen = found(model, "one-step", eps=0.2)
    assert seen.verdict == "ill"
    # One step of FGSM, by hand: the gradient on clean images is that of the body.
    x, y = digits().test.images.clone().requires_grad_(), digits().test.labels
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(healthy()(x), y, reduction="sum"), x)
    moved = (x + 0.2 * gradient.sign()).clamp(0, 1)
    broken = (healthy()(x).argmax(1) == y) & (healthy()(moved).argmax(1) != y)
    whole = found(model, "one-step", eps=0.2, limit=360)
    assert whole.figures["left_by_pgd"] == int((healthy()(x).argmax(1) == y).sum())
    assert whole.figures["broken"] == int(broken.sum())


def test_what_pgd_breaks_when_it_tries_harder_is_not_masked() -> None:
    """Steps of a gradient that leads the wrong way at first, and right after a while."""
    assert found(healthy(), "random-search", eps=0.3).verdict in ("well", "not checked")
    assert found(linear(100.0), "smoothing", eps=0.15).verdict == "well"


# --- 5. gradients -----------------------------------------------------------------------------------------------------


def test_a_saturated_cross_entropy_is_told_from_a_model_without_gradients() -> None:
    seen = found(After(healthy(), lambda logits: 200 * logits), "gradients")
    assert seen.verdict == "ill" and "saturated" in seen.seen and seen.figures["vanishing_of_the_margin"] == 0
    # In float64 the gradient of the cross-entropy is there where float32 has none.
    x = digits().test.images[:50].double().requires_grad_()
    logits = After(healthy(), lambda logits: 200 * logits).double()(x)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, digits().test.labels[:50]), x)
    healthy().float()
    assert bool((gradient != 0).any()) and 0 < int(seen.figures["vanishing"]) <= int(seen.figures["n"])


def test_an_underflow_in_float32_is_found() -> None:
    seen = found(After(healthy(), lambda logits: (15 * logits).softmax(1)), "gradients")
    assert seen.verdict == "ill" and "underflows" in seen.seen and "float64" in seen.remedy
    assert int(seen.figures["vanishing_in_double"]) < int(seen.figures["vanishing"]) / 2


def test_a_gradient_that_is_not_finite_is_found_and_stops_the_attacks_only() -> None:
    model = Before(lambda x: x.sqrt().square(), healthy())
    seen = adv_train.doctor(model, digits(), eps=0.1, only=["gradients", "one-step", "random-search"], limit=100)
    assert seen.findings["gradients"].verdict == "ill" and "sqrt" in seen.findings["gradients"].remedy
    assert seen.findings["gradients"].figures["not_finite"] == seen.findings["gradients"].figures["n"]
    assert seen.findings["random-search"].verdict == "not checked"


# --- 8. collapse (7. is in test_doctor_leak.py) ------------------------------------------------------------------


def test_a_constant_classifier_is_found_and_not_attacked() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].bias.data[3] = 100
    seen = adv_train.doctor(model, digits(), eps=0.1)
    assert set(seen.illnesses) == {"collapse"} and "1 classes are predicted of 10" in seen.findings["collapse"].seen
    assert seen.findings["one-step"].verdict == "not checked" and "collapsed" in seen.findings["one-step"].seen


def test_a_step_that_raises_the_accuracy_is_found() -> None:
    body = fitted(perceptron(), steps=8)
    seen = found(Before(lambda x: turned(x, everywhere=True), body), "robust-above-clean")
    assert seen.verdict == "ill" and seen.figures["one_step"] > seen.figures["clean"] + 0.1
    assert found(body, "robust-above-clean").verdict == "well"


# --- significance, and what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n", "share"), [(5, 100, 0.01), (8, 100, 0.01), (9, 9, 0.5), (10, 10, 0.5), (0, 0, 0.5)])
def test_the_tests_of_significance_are_those_of_the_binomial(k: int, n: int, share: float) -> None:
    tail = sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k, n + 1))
    assert exceeds(k, n, share) is (n > 0 and tail < LEVEL)
    first, second = torch.zeros(n + 5, dtype=torch.bool), torch.zeros(n + 5, dtype=torch.bool)
    first[:k], second[k:n] = True, True
    first[n:] = second[n:] = True  # where both hold nothing is told
    half = sum(math.comb(n, i) / 2**n for i in range(k, n + 1))
    assert more(first, second) is (n > 0 and half < LEVEL)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_few_images_raise_no_alarm(n: int) -> None:
    split = digits().test
    for model in (healthy(), linear(100.0)):
        assert not adv_train.doctor(model, split.images[:n], split.labels[:n], eps=0.1).illnesses
    # One image without a gradient may be chance.
    if n == 1:
        model = Before(quantised, healthy())
        assert not adv_train.doctor(model, split.images[:n], split.labels[:n], eps=0.2).illnesses


def test_mistakes_of_the_caller_are_told_in_a_line() -> None:
    x, y = digits().test.images, digits().test.labels
    with pytest.raises(UserError, match=r"Unknown check `leek`\. Did you mean `leak`"):
        adv_train.doctor(healthy(), x, y, eps=0.1, only=["leek"])
    with pytest.raises(UserError, match="No check is left"):
        adv_train.doctor(healthy(), x, y, eps=0.1, only=["leak"], skip=["leak"])
    with pytest.raises(UserError, match="by `threat` or by `eps`"):
        adv_train.doctor(healthy(), x, y)
    with pytest.raises(UserError, match="`images` are missing"):
        adv_train.doctor(healthy(), eps=0.1)
    with pytest.raises(UserError, match="one int64 label"):
        adv_train.doctor(healthy(), x, y[:3], eps=0.1)
    with pytest.raises(UserError, match="finite images"):
        adv_train.doctor(healthy(), x * torch.nan, y, eps=0.1)
    with pytest.raises(UserError, match="brings its own images"):
        adv_train.doctor("runs/a", x, y)
    with pytest.raises(UserError, match="The largest label is 10"):
        adv_train.doctor(healthy(), x, y + 1, eps=0.1)


def test_the_documentation_names_every_check() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Check an evaluation with `adv-train doctor`\n")
    section = section.partition("\n## ")[0]
    assert [name for name in CHECKS.names() if f"**`{name}`**" not in section] == []


def test_a_threat_and_an_eps_say_the_same() -> None:
    by_eps = adv_train.doctor(healthy(), digits(), eps=0.1, only=["one-step"], limit=50).summary()
    by_threat = adv_train.doctor(healthy(), digits(), None, Threat("linf", 0.1), only=["one-step"], limit=50).summary()
    assert by_eps == by_threat and np.isfinite(by_eps["eps"])
