"""Threats: their sets hold what they say, and starts are spread as they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import blo
from adv_train.errors import UserError
from adv_train.threat import NORMS, Threat


def images(seed: int, shape: tuple[int, ...] = (4, 1, 3, 3)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).mul(1.4).sub(0.2).clamp(0, 1)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.5), ("l1", 1.0)])
def test_the_set_of_each_image_is_the_ball_cut_by_the_range_of_images(norm: str, eps: float) -> None:
    threat, x = Threat(norm, eps), images(0)  # type: ignore[arg-type]
    far = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = threat.project(x, far)
    assert threat.contains(x, found, 1e-12).all() and not threat.contains(x, far, 1e-12).any()
    for image, point, nearest in zip(
        x.flatten(1).numpy(), far.flatten(1).numpy(), found.flatten(1).numpy(), strict=True
    ):
        np.testing.assert_allclose(nearest, scipys_projection(point, image, norm, eps), atol=1e-5)


def scipys_projection(point: np.ndarray, image: np.ndarray, norm: str, eps: float) -> np.ndarray:
    """Project in positive and negative parts, which make the 1-norm smooth; exact to about 1e-6."""
    size = len(image)
    limits = {
        "linf": lambda p: eps - p,
        "l2": lambda p: np.array([eps**2 - ((p[:size] - p[size:]) ** 2).sum()]),
        "l1": lambda p: np.array([eps - p.sum()]),
    }
    answer = minimize(
        lambda p: ((p[:size] - p[size:] - point) ** 2).sum() + 1e-13 * p.sum(),
        np.zeros(2 * size),
        bounds=[(0, high) for high in np.concatenate([1 - image, image])],
        constraints={"type": "ineq", "fun": limits[norm]},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return answer.x[:size] - answer.x[size:]


@pytest.mark.parametrize("norm", NORMS)
def test_starts_are_uniform_in_the_ball(norm: str) -> None:
    # Far from the range's ends nothing is cut. Of a uniform point of the unit ball in d dimensions, size**d is uniform.
    shape, eps = (4000, 1, 2, 2), 0.1
    x = torch.full(shape, 0.5, dtype=torch.float64)
    delta = Threat(norm, eps).sample(x, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    sizes = (Threat(norm, eps).distance(delta) / eps) ** 4  # type: ignore[arg-type]
    assert sizes.max() <= 1 + 1e-9
    grid = torch.linspace(0, 1, len(sizes), dtype=torch.float64)
    assert (sizes.sort().values - grid).abs().max() < 0.03  # Kolmogorov: 1.6 / sqrt(4000) has a probability of 1 %
    assert delta.mean(0).abs().max() < 0.01 * 0.5
    below = (delta.flatten(1) > 0).double().mean(0)
    assert (below - 0.5).abs().max() < 0.04


def test_starts_are_images() -> None:
    for norm, eps in (("linf", 0.3), ("l2", 0.8), ("l1", 2.0)):
        threat, x = Threat(norm, eps), images(3)  # type: ignore[arg-type]
        assert threat.contains(x, threat.sample(x, torch.Generator().manual_seed(1)), 1e-12).all()


def test_an_attack_in_each_norm_is_one_lower_problem_an_image() -> None:
    x = images(5)
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for norm, eps in (("linf", 0.2), ("l2", 0.5), ("l1", 1.0)):
        threat = Threat(norm, eps)  # type: ignore[arg-type]
        attack = blo.LowerProblem(lambda theta, z: -(theta * slope * z).flatten(1).sum(1), threat.set(x), batched=True)
        theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        solver = blo.ProjectedGradient(0.3, max_steps=4000, tol=1e-9)
        delta = blo.argmin(attack, theta, torch.zeros_like(x), solver=solver, gradient=blo.Zero(), on_failure="ignore")
        assert threat.contains(x, delta, 1e-9).all()
        assert ((slope * delta).flatten(1).sum(1) > 0).all()


@pytest.mark.parametrize(
    ("norm", "eps", "says"), [("l3", 0.1, "Unknown norm `l3`"), ("linf", -1, "at least 0"), ("linf", 8, "Try 8/255")]
)
def test_a_threat_that_is_none_is_refused(norm: str, eps: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Threat(norm, eps)  # type: ignore[arg-type]
