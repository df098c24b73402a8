"""The lasso: scikit-learn's solutions, weights of every shape, undecided zeros."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

import blo
from blo._layout import Layout
from tests.integration.problems import EXACT, TIGHT


def test_the_lasso_is_the_one_scikit_learn_finds() -> None:
    rng = np.random.default_rng(0)
    X, truth = rng.normal(size=(30, 8)), np.array([2.0, -1.0, 0.5, 0, 0, 0, 0, 0])
    y = X @ truth + 0.1 * rng.normal(size=30)
    expected = Lasso(alpha=0.1, fit_intercept=False, tol=1e-15, max_iter=100_000).fit(X, y).coef_
    data, labels = torch.as_tensor(X), torch.as_tensor(y)
    lower = blo.LowerProblem(lambda t, z: (data @ z - labels).square().mean() / 2, penalty=lambda t: blo.L1(t))
    theta, z0 = torch.tensor(0.1, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, z0, solver=TIGHT, gradient=EXACT)
    np.testing.assert_allclose(out.z, expected, rtol=0, atol=1e-10)
    # On the support S the solution is linear in the weight: dz/dweight = -(X_S' X_S / 30)^-1 sign(z_S).
    S = expected != 0
    assert 0 < S.sum() < 8
    slope = -np.linalg.solve(X[:, S].T @ X[:, S] / 30, np.sign(expected[S])).sum()
    np.testing.assert_allclose(out.grad, slope, rtol=1e-10)
    assert out.report.active == 8 - S.sum()


def test_soft_thresholding_by_hand() -> None:
    z = torch.tensor([3.0, -3.0, 0.5, -0.5, 0.0, 1.0])
    assert blo.L1(2.0).prox(z, 0.5).tolist() == [2.0, -2.0, 0.0, 0.0, 0.0, 0.0]
    assert blo.L1(2.0).value(z) == 16.0


def test_weights_of_every_shape() -> None:
    z = torch.ones(2, 3)
    layout = Layout.of(z, batched=True)
    for weight, value in [
        (2.0, [6.0, 6.0]),
        (torch.tensor(2.0), [6.0, 6.0]),
        (torch.tensor([1.0, 2.0]), [3.0, 6.0]),  # one a problem
        (torch.tensor([1.0, 2.0, 3.0]), [6.0, 6.0]),  # one a coordinate
        (torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), [6.0, 1.0]),
        (torch.tensor([[1.0], [2.0]]), [3.0, 6.0]),
    ]:
        assert blo.L1(weight).fit(layout).value(z).tolist() == value
    pair = {"a": torch.ones(2), "b": torch.ones(1)}
    by_leaf = blo.L1({"a": torch.tensor(1.0), "b": torch.tensor(5.0)}).fit(Layout.of(pair, batched=False))
    assert by_leaf.value(torch.ones(3)) == 7.0


def test_a_weight_that_may_be_read_in_two_ways_is_refused() -> None:
    layout = Layout.of(torch.ones(3, 3), batched=True)
    with pytest.raises(blo.StructureError, match=r"`L1\.weight` has shape \(3,\), which may mean"):
        blo.L1(torch.ones(3)).fit(layout)
    assert blo.L1(torch.ones(3, 1)).fit(layout).value(torch.ones(3, 3)).tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("weight", [-1.0, float("nan"), torch.tensor([1.0, -1.0])])
def test_a_negative_weight_is_refused(weight: float | torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`L1\.weight` must be at least 0"):
        blo.L1(weight)


def test_a_weight_of_another_shape_is_named() -> None:
    with pytest.raises(blo.StructureError, match=r"`L1\.weight` must broadcast"):
        blo.L1(torch.ones(5)).fit(Layout.of(torch.ones(3), batched=False))


def test_a_zero_at_the_edge_of_its_weight_is_counted() -> None:
    z = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    gradient = torch.tensor([-2.0, 2.0, -2.0 + 1e-12, 1.9], dtype=torch.float64)
    assert [int(c) for c in blo.L1(2.0).tangent(z, gradient).counts()] == [1, 3, 2]


def test_a_coordinate_without_weight_is_free_at_zero() -> None:
    z = torch.zeros(2, dtype=torch.float64)
    tangent = blo.L1(torch.tensor([0.0, 1.0])).tangent(z, torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert tangent.project(torch.ones(2)).tolist() == [1.0, 0.0]
    assert [int(c) for c in tangent.counts()] == [1, 1, 0]


@pytest.mark.parametrize("penalty", [blo.L1(1e-10), blo.GroupLasso(1e-10, torch.tensor([0, 1]))])
def test_a_zero_that_a_solver_leaves_too_early_is_counted(penalty: blo.L1 | blo.GroupLasso) -> None:
    z, gradient = torch.zeros(2, dtype=torch.float64), torch.tensor([-1e-9, 1e-9], dtype=torch.float64)
    counts = penalty.fit(Layout.of(z, batched=False)).tangent(z, gradient).counts()
    assert int(counts.degenerate) == 2
