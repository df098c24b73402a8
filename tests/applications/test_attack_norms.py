"""The judging attacks in l2 and l1: projections, closed forms, and the code of AutoAttack's authors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import L1_projection
from torch import Tensor, nn

from adv_train.attacks import PGD, StandardAutoAttack, autoattack, pgd
from adv_train.attacks.checks import check_budget
from adv_train.attacks.geometry import GEOMETRIES
from adv_train.attacks.judging import suitable_threads
from adv_train.errors import UserError
from adv_train.threat import Norm, Threat
from tests.applications.test_attacks import Network, linear_case, random, wide_case
from tests.cut_oracles import project

EACH = pytest.mark.parametrize("norm", ["l2", "l1"])
RADII = {"l2": 0.5, "l1": 1.5}


def wide_linear_case(seed: int, classes: int, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier of images of 5 x 5 pixels, some of them black or white, labelled as it does."""
    generator = random(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(n, 1, 5, 5, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
    return model, x, model(x).argmax(1)


def worst_margins(model: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """The exact worst case of a linear model, in float64: the least of logit y minus another over the cut ball.

    In l1 the pixels of largest weight go to their bounds as long as the budget lasts. In l2 the answer is
    `clip(-t w)` for the t at which its length is eps.
    """
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()  # type: ignore[index, union-attr]
    worst = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for i, image in enumerate(x.double().flatten(1)):
        for other in range(len(bias)):
            if other == y[i]:
                continue
            w = weight[y[i]] - weight[other]
            room = torch.where(w > 0, image, 1 - image)
            if norm == "l1":
                order = w.abs().argsort(descending=True)
                before = room[order].cumsum(0) - room[order]
                move = torch.minimum(room[order], (eps - before).clamp(min=0))
                fall = (w.abs()[order] * move).sum()
            else:
                low, high = 0.0, 1e6
                for _ in range(100):
                    t = (low + high) / 2
                    low, high = (low, t) if torch.minimum(t * w.abs(), room).norm() > eps else (t, high)
                fall = (w.abs() * torch.minimum(low * w.abs(), room)).sum()
            margin = w @ image + bias[y[i]] - bias[other] - fall
            worst[i] = torch.minimum(worst[i], margin)
    return worst


# --- geometry ---------------------------------------------------------------------------------------------------------


@EACH
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 6), size=st.floats(0.01, 5))
def test_the_projection_is_that_of_bisection_in_extended_precision_and_that_of_training(
    norm: Norm, seed: int, eps: float, size: float
) -> None:
    generator = random(seed)
    x = torch.rand(3, 1, 2, 3, generator=generator).double().mul(1.4).sub(0.2).clamp(0, 1)
    z = x + size * torch.randn(x.shape, generator=generator).double()
    threat = Threat(norm, eps)
    found = GEOMETRIES[norm].project(z, x, threat) - x
    for image, point, nearest in zip(
        x.flatten(1).numpy(), (z - x).flatten(1).numpy(), found.flatten(1).numpy(), strict=True
    ):
        truth = project(point, np.array(eps), np.zeros(6), -image, 1 - image, int(norm[1]))
        np.testing.assert_allclose(nearest, truth, rtol=0, atol=1e-12)
    assert threat.contains(x, found, 1e-14).all()
    if eps > 0:  # `blo.L1Ball` has no radius 0
        assert (found - threat.project(x, z - x)).abs().max() <= 1e-12


def test_the_projection_in_l1_is_that_of_the_authors_of_l1_apgd() -> None:
    x = torch.rand(6, 3, 8, 8, generator=random(0)).mul(1.4).sub(0.2).clamp(0, 1)
    change = torch.randn(x.shape, generator=random(1))
    for eps in (0.5, 12.0, 60.0):
        theirs = change + L1_projection(x, change, eps)
        ours = GEOMETRIES["l1"].project(x + change, x, Threat("l1", eps)) - x
        assert (ours - theirs).abs().max() <= 5e-5  # theirs sums 384 numbers in single precision


@EACH
def test_starts_are_uniform_in_the_ball(norm: Norm) -> None:
    x = torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    threat = Threat(norm, 0.1)
    delta = GEOMETRIES[norm].start(x, threat, random(0)) - x
    powers = (threat.distance(delta) / 0.1) ** 4  # uniform in 4 dimensions
    grid = torch.linspace(0, 1, len(x), dtype=torch.float64)
    assert (powers.sort().values - grid).abs().max() < 0.03  # Kolmogorov: 1.6 / sqrt(4000) has a probability of 1 %
    assert ((delta.flatten(1) > 0).double().mean(0) - 0.5).abs().max() < 0.04
    largest = delta.flatten(1).abs().argmax(1).bincount(minlength=4).double() / len(x)
    assert (largest - 0.25).abs().max() < 0.04


@EACH
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_step_has_length_one_whatever_the_size_of_the_gradient(norm: Norm, scale: float) -> None:
    gradient = scale * torch.randn(3, 1, 2, 4, generator=random(0))
    gradient[1] = 0
    step = GEOMETRIES[norm].step(gradient)
    assert step.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 0, 1], abs=1e-6)
    assert torch.equal(step.sign(), gradient.sign())


# --- PGD --------------------------------------------------------------------------------------------------------------


@EACH
@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 2))
def test_pgd_finds_the_exact_robust_accuracy_of_a_two_class_linear_model(norm: Norm, seed: int, share: float) -> None:
    model, x, y = linear_case(seed, classes=2, n=15, dtype=torch.float64)
    eps = share * RADII[norm]
    margins = worst_margins(model, x, y, norm, eps)
    robust, adversarial = pgd(model, x, y, eps=eps, norm=norm, steps=100, restarts=1, generator=random(seed))
    clear = margins.abs() > 0.02 * eps + 1e-9  # steps of fixed length stay a little off the corner
    assert torch.equal(robust[clear], margins[clear] > 0)
    assert not robust[margins <= -1e-9].any() or robust[margins > 0].all()
    assert Threat(norm, eps).contains(x, adversarial - x, 1e-12).all()


@EACH
def test_pgd_never_breaks_a_sample_whose_exact_worst_case_is_robust(norm: Norm) -> None:
    model, x, y = linear_case(1, classes=5, n=30, dtype=torch.float64)
    for eps in (0.02 * RADII[norm], 0.3 * RADII[norm]):
        robust, _ = pgd(model, x, y, eps=eps, norm=norm, steps=6, restarts=3, generator=random(0))
        assert robust[worst_margins(model, x, y, norm, eps) > 1e-9].all()
        assert 0 < int(robust.sum()) < len(x)


@EACH
def test_pgd_does_not_depend_on_the_batch_size(norm: Norm) -> None:
    model, x, y = Network(), torch.rand(40, 1, 3, 4, generator=random(0)).double(), torch.arange(40) % 4
    same: dict[str, Any] = {"eps": 0.4 * RADII[norm], "norm": norm, "steps": 4, "restarts": 3}
    whole = pgd(model, x, y, generator=random(2), **same)
    pieces = pgd(model, x, y, generator=random(2), batch_size=7, **same)
    assert torch.equal(whole[0], pieces[0]) and torch.allclose(whole[1], pieces[1], atol=1e-10)


def test_in_l1_the_ball_shrinks_to_the_radius_and_the_record_says_so() -> None:
    model, x = Network(), torch.rand(8, 1, 3, 4, generator=random(0)).double()
    for steps in (1, 2, 3, 7):
        threat, seen = Threat("l1", 0.2), []

        def look(_: nn.Module, given: tuple[Tensor], threat: Threat = threat, seen: list[float] = seen) -> None:
            if len(given[0]) == len(x):
                seen.append(float(threat.distance(given[0].detach() - x).max()))

        handle = model.register_forward_pre_hook(look)
        with torch.no_grad():
            right = model.eval()(x).argmax(1)
        found = PGD(steps, 1)(model, x, right, threat, seed=0)
        handle.remove()
        each = steps // 3
        most = [0.6] * each + [0.4] * each + [0.2] * (steps - 2 * each) + [0.2]
        assert len(seen[2:]) == steps + 1  # after the labels and the clean images
        assert all(size <= bound + 1e-12 for size, bound in zip(seen[2:], most, strict=True))
        assert each == 0 or (seen[2] > 0.25 and seen[2 + each] > 0.25)
        assert found.settings["radii"] == [0.2 * 3, 0.2 * 2, 0.2] and found.settings["step"] == 0.2 / 4
    assert "radii" not in PGD(1, 1)(model, x, right, Threat("l2", 0.2), seed=0).settings


@EACH
@pytest.mark.parametrize("how", ["rounding", "detach", "saturation"])
def test_a_model_that_hides_its_gradient_is_not_called_robust_without_a_word(norm: Norm, how: str) -> None:
    model, x, y = wide_case(how)
    with pytest.warns(RuntimeWarning, match="Masked gradients"):
        pgd(model, x, y, eps=0.4 * RADII[norm], norm=norm, steps=6, restarts=1, generator=random(0))


@EACH
def test_a_gradient_that_is_there_raises_no_alarm(norm: Norm) -> None:
    for seed in range(3):
        for eps in (0.0, 1e-12, 1e-4, 0.03, 0.5, 2.0):
            pgd(*wide_case("nothing"), eps=eps, norm=norm, steps=6, restarts=1, generator=random(seed))
            model, x = Network(seed), torch.rand(40, 1, 3, 4, generator=random(seed)).double()
            with torch.no_grad():
                y = model.eval()(x).argmax(1)
            pgd(model, x, y, eps=eps, norm=norm, steps=3, restarts=1, generator=random(seed))


# --- AutoAttack -------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAB and Square cut short: where APGD finds everything they take most of the time."""
    standard = AutoAttack._set_version

    def shorter(attack: AutoAttack, version: str) -> None:
        standard(attack, version)
        attack.square.n_queries, attack.fab.n_iter = 50, 5

    monkeypatch.setattr(AutoAttack, "_set_version", shorter)


@EACH
@pytest.mark.usefixtures("short_autoattack")
def test_autoattack_finds_the_exact_robust_accuracy_of_a_linear_model(norm: Norm) -> None:
    eps = RADII[norm] / 3
    model, x, y = wide_linear_case(0, classes=4, n=24)
    robust, adversarial = autoattack(model, x, y, eps=eps, norm=norm, seed=3)
    margins = worst_margins(model, x, y, norm, eps)
    clear = margins.abs() > 1e-3  # in the logits' units, which are near 1: float32 decides nothing closer
    assert torch.equal(robust[clear], margins[clear] > 0)
    assert robust.any() and not robust.all()
    assert Threat(norm, eps).contains(x, adversarial - x, 1e-5).all()
    by_pgd, _ = pgd(model, x, y, eps=eps, norm=norm, steps=50, restarts=2, generator=random(0))
    assert torch.equal(by_pgd[clear], robust[clear])


@EACH
def test_it_is_the_authors_attack_bit_for_bit(norm: Norm) -> None:
    # Every image falls, so this is quick and each image returned counts.
    model, x, y = wide_linear_case(5, classes=10, n=12)
    eps = 2 * RADII[norm]
    robust, adversarial = autoattack(model, x, y, eps=eps, norm=norm, seed=0, batch_size=8)
    assert not robust.any()
    with torch.random.fork_rng(devices=[]), suitable_threads(model, x):
        theirs, _ = AutoAttack(model, eps=eps, norm=norm.upper(), seed=0).run_standard_evaluation(x, y, batch_size=8)
    assert torch.equal(adversarial, theirs)


@pytest.mark.parametrize(("norm", "targets"), [("linf", (9, 9)), ("l2", (9, 9)), ("l1", (5, 9))])
def test_the_standard_version_of_the_norm_is_run(
    norm: Norm, targets: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def spy(attack: AutoAttack, x: Tensor, y: Tensor, *, batch_size: int) -> tuple[Tensor, Tensor]:
        seen.append((attack.norm, attack.apgd_targeted.n_target_classes, attack.fab.n_target_classes))
        return x, y

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", spy)
    for classes in (12, 5):
        model, x, y = wide_linear_case(0, classes=classes, n=10)
        found = StandardAutoAttack()(model, x, y, Threat(norm, 0.1), seed=0)
        assert found.settings["norm"] == seen[-1][0]
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    assert seen == [(name, *targets), (name, 4, 4)]


@EACH
def test_images_that_square_cannot_divide_are_refused(norm: Norm) -> None:
    model, x, y = linear_case(0, classes=4, n=5, dtype=torch.float32)
    with pytest.raises(UserError, match=f"AutoAttack in {norm} needs images of at least 5 x 5 pixels, .* have 3 x 4"):
        autoattack(model, x, y, eps=0.1, norm=norm, seed=0)


def test_an_image_outside_the_ball_is_not_believed_but_rounding_is() -> None:
    x = torch.rand(1, 3, 32, 32, generator=random(0)).mul(0.5).add(0.25)
    for norm, eps in (("l2", 0.5), ("l1", 12.0), ("l1", 0.1)):
        threat = Threat(norm, eps)  # type: ignore[arg-type]
        for seed in range(3):
            point = x + torch.randn(x.shape, generator=random(seed))
            inside = GEOMETRIES[norm].project(point, x, threat)
            check_budget(inside, x, threat)
        with pytest.raises(RuntimeError, match=f"outside the {norm} ball of radius {eps:g}"):
            check_budget(x + 1.01 * (inside - x), x, threat)
        with pytest.raises(RuntimeError, match="left its budget"):
            check_budget(torch.full_like(x, torch.nan), x, threat)


@EACH
def test_a_budget_that_reaches_every_image_is_refused(norm: Norm) -> None:
    model, x, y = wide_linear_case(0, classes=4, n=5)
    farthest = {"l2": 5.0, "l1": 25.0}[norm]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not pgd(model, x, y, eps=farthest, norm=norm, steps=6, restarts=1, generator=random(0))[0].any()
    for attack in (PGD(1, 1), StandardAutoAttack()):
        with pytest.raises(UserError, match=f"must not exceed {farthest:g} in {norm}"):
            attack(model, x, y, Threat(norm, farthest + 0.1), seed=0)
