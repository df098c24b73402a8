"""The non-negative orthant, against scipy's non-negative least squares."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from scipy.optimize import nnls

from blo import NonNegative
from tests.strategies import SEEDS, normal


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_a_solution_of_non_negative_least_squares_is_stationary_on_the_tangent_space(seed: int) -> None:
    A, y = normal(seed, 6, 4), normal(seed + 1, 6)
    z = torch.as_tensor(nnls(A.numpy(), y.numpy())[0])
    slope = A.T @ (A @ z - y)
    orthant = NonNegative()
    tangent = orthant.tangent(z, slope)
    assert tangent.project(slope).abs().max() < 1e-12
    torch.testing.assert_close(orthant.project(z - slope), z, rtol=0, atol=1e-12)
    assert int(tangent.counts().free) == np.count_nonzero(z)


def test_the_slack_decides_what_is_free() -> None:
    z = torch.tensor([0.0, 0.05, 0.5])
    tangent = NonNegative(slack=0.1).tangent(z, torch.ones(3))
    assert tangent.project(torch.ones(3)).tolist() == [0.0, 0.0, 1.0]
