"""Training in l2 and l1: each step against plain torch with a projection by bisection, and the implicit gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adv_train import methods, training_gradient
from adv_train.bench.count import forward_equivalents
from adv_train.data import Batch
from adv_train.errors import UserError
from adv_train.threat import Threat
from tests.applications.test_methods import assert_close, assert_same_bits, case
from tests.cut_oracles import project

BUDGETS = {"l2": 0.7, "l1": 1.6}
EACH = pytest.mark.parametrize("norm", list(BUDGETS))


def nearest(x: Tensor, point: Tensor, norm: str, eps: float) -> Tensor:
    """The allowed perturbation that is nearest to a point, image by image, by bisection in extended precision."""
    rows = []
    for image, row in zip(x.flatten(1).numpy(), point.detach().flatten(1).numpy(), strict=True):
        none = np.zeros_like(row)
        rows.append(project(row, np.array(eps), none, -image, 1 - image, int(norm[1])))
    return torch.as_tensor(np.stack(rows)).view_as(x)


def along(slope: Tensor, length: float) -> Tensor:
    """A step of this Euclidean length along the gradient of each image."""
    return length * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def slope_at(model: nn.Module, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x + z), y, reduction="sum"), z)
    return slope


def outer(model: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> dict[str, Tensor]:
    params = list(model.parameters())
    return dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(F.cross_entropy(model(x + delta), y), params),
            strict=True,
        )
    )


# --- the attacks ------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize(
    ("method", "options", "lengths"),
    [
        ("fast-at", {}, [1.25]),
        ("fast-at", {"step": 0.3}, [0.3]),
        ("pgd-at", {}, [0.5, 0.5]),
        ("pgd-at", {"steps": 5}, [0.5] * 5),
        ("pgd-at", {"steps": 10}, [0.25] * 10),
        ("fast-at-ga", {"coefficient": 0}, [1.25]),
    ],
)
def test_steps_follow_the_gradient(norm: str, method: str, options: dict[str, float], lengths: list[float]) -> None:
    model, x, y, _ = case(1, batch=3)
    eps = BUDGETS[norm]
    z = nearest(x, 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double(), norm, eps)
    found = training_gradient(model, x, y, method=method, norm=norm, eps=eps, start=z, **options)  # type: ignore[arg-type]
    for length in lengths:
        length = length if "step" in options else length * eps
        z = nearest(x, z + along(slope_at(model, x, y, z), length), norm, eps)
    assert (found.delta - z).abs().max() <= 1e-10
    assert_close(found.grads, outer(model, x, y, z), 1e-9)


@EACH
def test_n_fgsm_starts_in_a_ball_twice_as_wide_and_cuts_nothing_but_the_range_of_images(norm: str) -> None:
    model, x, y, _ = case(2, batch=4)
    eps = BUDGETS[norm]
    same: dict[str, Any] = {"method": "n-fgsm", "norm": norm, "eps": eps}
    found = training_gradient(model, x, y, generator=torch.Generator().manual_seed(7), **same)
    noise = Threat(norm, 2 * eps).noise(x, generator=torch.Generator().manual_seed(7))  # type: ignore[arg-type]
    size = torch.linalg.vector_norm(noise.flatten(1), ord=int(norm[1]), dim=1)
    assert size.min() > eps and size.max() <= 2 * eps  # 64 pixels: all but 2**-64 of the ball is farther out than half
    z = (x + noise).clamp(0, 1) - x
    # A ball that holds noise and step: in l2 it always does, in l1 a step along the gradient would leave it.
    z = nearest(x, z + along(slope_at(model, x, y, z), eps), norm, 3 * eps)
    assert (found.delta - z).abs().max() <= 1e-10
    assert_close(found.grads, outer(model, x, y, z), 1e-9)
    # Without noise nothing leaves the ball.
    without = training_gradient(model, x, y, width=0.0, **same)
    fgsm = training_gradient(model, x, y, **(same | {"method": "fast-at", "step": eps, "start": "zero"}))
    assert (without.delta - fgsm.delta).abs().max() <= 1e-12
    assert_close(without.grads, fgsm.grads, 1e-11)


@EACH
def test_gradient_alignment_looks_at_a_point_of_the_ball(norm: str) -> None:
    model, x, y, _ = case(4)
    eps, weight = BUDGETS[norm], 0.7
    same: dict[str, Any] = {"method": "fast-at-ga", "norm": norm, "eps": eps}
    found = training_gradient(model, x, y, coefficient=weight, generator=torch.Generator().manual_seed(9), **same)
    noise = Threat(norm, eps).noise(x, generator=torch.Generator().manual_seed(9)).requires_grad_()  # type: ignore[arg-type]
    zero = torch.zeros_like(x)
    at_zero = slope_at(model, x, y, zero)
    (at_noise,) = torch.autograd.grad(F.cross_entropy(model(x + noise), y, reduction="sum"), noise, create_graph=True)
    delta = nearest(x, along(at_zero, 1.25 * eps), norm, eps)
    cosine = F.cosine_similarity(at_zero.flatten(1), at_noise.flatten(1))
    loss = F.cross_entropy(model(x + delta), y) + weight * (1 - cosine.mean())
    names, params = zip(*model.named_parameters(), strict=True)
    assert_close(found.grads, dict(zip(names, torch.autograd.grad(loss, params), strict=True)), 1e-9)
    by_default, told = (
        training_gradient(model, x, y, start=zero, generator=torch.Generator().manual_seed(1), **same, **chosen)
        for chosen in ({}, {"coefficient": 0.2})
    )
    assert_same_bits(by_default, told)


@EACH
def test_pgd_with_one_step_is_fast_at(norm: str) -> None:
    model, x, y, start = case(3)
    same: dict[str, Any] = {"norm": norm, "eps": BUDGETS[norm], "start": 0.01 * start, "step": 0.4}
    pgd = training_gradient(model, x, y, method="pgd-at", steps=1, **same)
    once = training_gradient(model, x, y, method="fast-at", **same)
    assert (pgd.delta - once.delta).abs().max() <= 1e-14
    assert_close(pgd.grads, once.grads, 1e-12)


@pytest.mark.parametrize(("name", "cost"), [("fast-at", 5), ("n-fgsm", 5), ("pgd-at", 7), ("fast-bat", 11)])
def test_the_cost_is_that_of_linf(name: str, cost: float) -> None:
    model, x, y, _ = case(0, name="preact-resnet-18", dtype=torch.float32)
    batch, method = Batch(x, y, torch.arange(len(y))), methods.METHODS.create(name)
    for norm, eps in BUDGETS.items():
        found = forward_equivalents(method, model, batch, Threat(norm, eps))  # type: ignore[arg-type]
        assert found == pytest.approx(cost, abs=0.2)


@pytest.mark.parametrize("norm", ["linf", *BUDGETS])
@pytest.mark.parametrize("name", methods.METHODS.names())
def test_what_a_method_makes_of_images_stays_in_the_set_that_it_names(name: str, norm: str) -> None:
    method = methods.METHODS.create(name)
    if norm not in method.norms or not isinstance(method, methods.Adversarial):
        return

    @settings(deadline=None, max_examples=5)
    @given(seed=st.integers(0, 2**31), share=st.floats(0.01, 1))
    def check(seed: int, share: float) -> None:
        model, x, y, _ = case(seed)
        eps = share * {"linf": 0.5, "l2": 3.0, "l1": 20.0}[norm]
        same: dict[str, Any] = {"method": name, "norm": norm, "eps": eps}
        delta = training_gradient(model, x, y, generator=torch.Generator().manual_seed(seed), **same).delta
        allowed = method.allowed(x.flatten(1), Threat(norm, eps))  # type: ignore[arg-type]
        assert (allowed.project(delta.flatten(1)).view_as(x) - delta).abs().max() <= 1e-9
        assert (x + delta).min() >= -1e-12 and (x + delta).max() <= 1 + 1e-12 and delta.any()

    check()


def test_a_method_that_is_not_defined_in_a_norm_is_refused() -> None:
    class Linf(methods.Method):
        def __call__(self, *arguments: Any, **named: Any) -> methods.Step:
            raise NotImplementedError

    method = object.__new__(Linf)
    method.check_norm("linf")
    methods_ = methods.METHODS
    before = dict(methods_._makers)
    try:
        methods_._makers["linf-only"] = Linf
        with pytest.raises(UserError, match="`norm` must be linf for linf-only, but is l2"):
            method.check_norm("l2")
    finally:
        methods_._makers = before


# --- Fast-BAT ---------------------------------------------------------------------------------------------------------


def smooth_case(seed: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network without kinks, images some of whose pixels are 0 or 1, and a start."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    x = torch.rand(4, 1, 3, 4, generator=generator).mul(1.6).sub(0.3).clamp(0, 1).double()
    start = 0.05 * torch.randn(x.shape, generator=generator).double()
    return model, x, torch.randint(5, (4,), generator=generator), start


@EACH
@pytest.mark.parametrize("seed", range(4))
def test_fast_bats_gradient_is_that_of_the_linearised_problem_solved_again(norm: str, seed: int) -> None:
    """With the theory's single lambda, against differences along a direction of `f(theta, z*(theta))`."""
    model, x, y, start = smooth_case(seed)
    eps, step = BUDGETS[norm], 0.8
    anchor = nearest(x, start, norm, eps)
    same: dict[str, Any] = {"method": "fast-bat", "norm": norm, "eps": eps, "step": step, "steps": 1}
    found = training_gradient(model, x, y, start=anchor, curvature=1 / step, **same)
    assert 0.01 < float(found.implicit_share) < 10
    direction = {name: torch.randn_like(value) for name, value in model.named_parameters()}
    params = {name: value.detach() for name, value in model.named_parameters()}

    def value(t: float) -> float:
        moved = {name: params[name] + t * direction[name] for name in params}

        def called(z: Tensor) -> Tensor:
            logits: Tensor = torch.func.functional_call(model, moved, (x + z,))
            return logits

        point = anchor.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(called(point), y, reduction="sum"), point)
        delta = nearest(x, anchor + step * slope, norm, eps)
        with torch.no_grad():
            return float(F.cross_entropy(called(delta), y))

    h = 1e-4  # Richardson's extrapolation: an error of h**4
    coarse, fine = ((value(width) - value(-width)) / (2 * width) for width in (h, h / 2))
    slope_along = sum(float((found.grads[name] * direction[name]).sum()) for name in params)
    assert slope_along == pytest.approx((4 * fine - coarse) / 3, rel=1e-8, abs=1e-8)


@EACH
@pytest.mark.parametrize("weight", [1.0, -1.0, 0.3])
@pytest.mark.parametrize("seed", range(2))
def test_fast_bats_implicit_part_is_its_weight_times_that_of_the_dense_optimality_system(
    norm: str, weight: float, seed: int
) -> None:
    """With a curvature of its own for the implicit part, as published."""
    model, x, y, start = smooth_case(seed)
    eps, step, curvature = BUDGETS[norm], 0.8, 3.0
    anchor = nearest(x, start, norm, eps)
    same: dict[str, Any] = {"method": "fast-bat", "norm": norm, "eps": eps, "step": step, "steps": 1, "start": anchor}
    found = training_gradient(model, x, y, curvature=curvature, ig_weight=weight, **same)
    without = training_gradient(model, x, y, ig_weight=0.0, **same)
    delta = nearest(x, anchor + step * slope_at(model, x, y, anchor), norm, eps)
    assert (found.delta - delta).abs().max() <= 1e-12

    linear = -slope_at(model, x, y, anchor) + (delta - anchor) / step  # gradient of the linearised problem
    upper = slope_at(model, x, y, delta) / len(x)
    adjoint = torch.stack(
        [
            torch.as_tensor(dense_adjoint(norm, eps, curvature, *(part[i].flatten().numpy() for part in parts)))
            for parts in [(x, delta, linear, upper)]
            for i in range(len(x))
        ]
    ).view_as(x)
    point = anchor.clone().requires_grad_()
    loss = F.cross_entropy(model(x + point), y, reduction="sum")
    (slope,) = torch.autograd.grad(loss, point, create_graph=True)
    names, params = zip(*model.named_parameters(), strict=True)
    parts = torch.autograd.grad((slope * adjoint).sum(), params, materialize_grads=True, allow_unused=True)
    truth = dict(zip(names, parts, strict=True))
    assert max(float(part.abs().max()) for part in parts) > 1e-3
    assert_close({name: (found.grads[name] - without.grads[name]) / weight for name in truth}, truth, 1e-9)


def dense_adjoint(
    norm: str, eps: float, curvature: float, image: np.ndarray, z: np.ndarray, slope: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Solve the optimality system of one image for the adjoint of v: free pixels, and the ball where it is active."""
    free = (z > -image + 1e-9) & (z < 1 - image - 1e-9)
    if norm == "l1":
        free &= np.abs(z) > 1e-9
    normal = np.where(free, z if norm == "l2" else np.sign(z), 0.0)
    on = np.linalg.norm(z, int(norm[1])) > eps - 1e-9
    force = -(normal @ slope) / (normal @ normal) if on else 0.0
    size = len(z)
    system = np.zeros((size + 1, size + 1))
    system[:size, :size] = np.where(free, curvature + (force if norm == "l2" else 0.0), 1.0) * np.eye(size)
    if on:
        system[:size, size] = system[size, :size] = normal
    else:
        system[size, size] = 1.0
    found: np.ndarray = np.linalg.solve(system, np.append(np.where(free, v, 0.0), 0.0))[:size]
    return found


def test_the_cases_of_fast_bat_hold_bounds_ball_and_free_pixels_together() -> None:
    for norm, eps in BUDGETS.items():
        for seed in range(2):
            model, x, y, start = smooth_case(seed)
            anchor = nearest(x, start, norm, eps)
            delta = nearest(x, anchor + 0.8 * slope_at(model, x, y, anchor), norm, eps)
            on = Threat(norm, eps).distance(delta) > eps - 1e-9  # type: ignore[arg-type]
            bound = ((delta <= -x) | (delta >= 1 - x)).flatten(1)
            free = ~bound & (delta.flatten(1).abs() > 1e-9)
            assert (on & bound.any(1) & (free.sum(1) > 1)).sum() >= 2


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "l3", "eps": 0.1}, "Unknown norm `l3`"),
        ({"norm": "l2", "eps": 8.1}, r"must not exceed 8 in l2, .* of size 1 x 8 x 8, but is 8.1"),
        ({"norm": "l1", "eps": 65}, "must not exceed 64 in l1"),
        ({"norm": "l2", "eps": -1}, "`eps` must be a number of at least 0"),
        ({"norm": "l1", "eps": float("nan")}, "`eps` must be a number of at least 0"),
    ],
)
def test_a_threat_that_is_none_is_refused(options: dict[str, Any], says: str) -> None:
    model, x, y, _ = case(0)
    with pytest.raises(UserError, match=says):
        training_gradient(model, x, y, method="fast-at", **options)
