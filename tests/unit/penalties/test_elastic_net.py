"""The elastic net: scikit-learn's solutions, and the lasso and ridge it lies between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet

import blo
from tests import oracles
from tests.integration.problems import EXACT, TIGHT
from tests.strategies import normal


def sklearn_solution(X: np.ndarray, y: np.ndarray, weight: float, ridge: float) -> np.ndarray:
    total = weight + ridge
    model = ElasticNet(alpha=total, l1_ratio=weight / total, fit_intercept=False, tol=1e-15, max_iter=100_000)
    return model.fit(X, y).coef_


def test_solution_and_derivative_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(30, 8))
    y = X @ np.array([2.0, -1.0, 0.5, 0, 0, 0, 0, 0]) + 0.1 * rng.normal(size=30)
    data, labels = torch.as_tensor(X), torch.as_tensor(y)
    lower = blo.LowerProblem(
        lambda t, z: (data @ z - labels).square().mean() / 2, penalty=lambda t: blo.ElasticNet(t[0], t[1])
    )
    theta, z0 = torch.tensor([0.1, 0.3], dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: z.pow(3).sum(), lower, theta, z0, solver=TIGHT, gradient=EXACT)
    np.testing.assert_allclose(out.z, sklearn_solution(X, y, 0.1, 0.3), rtol=0, atol=1e-10)
    truth = oracles.central_difference(lambda t: np.array([np.sum(sklearn_solution(X, y, *t) ** 3)]), theta.numpy())
    np.testing.assert_allclose(out.grad, truth[0], rtol=0, atol=1e-8)
    assert 0 < out.report.active < 8


def test_without_ridge_it_is_the_lasso_and_without_weight_the_ridge() -> None:
    z = normal(0, 3, 5)
    torch.testing.assert_close(blo.ElasticNet(0.3, 0.0).prox(z, 0.5), blo.L1(0.3).prox(z, 0.5), rtol=0, atol=0)
    torch.testing.assert_close(blo.ElasticNet(0.0, 2.0).prox(z, 0.5), z / 2.0, rtol=1e-15, atol=0)
    torch.testing.assert_close(blo.ElasticNet(0.3, 2.0).value(z), 0.3 * z.abs().sum(-1) + z.square().sum(-1))


@pytest.mark.parametrize("field", ["weight", "ridge"])
def test_negative_parameters_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"`ElasticNet\.{field}` must be at least 0"):
        blo.ElasticNet(**{"weight": 1.0, "ridge": 1.0, field: -1.0})
