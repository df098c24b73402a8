"""The Neumann series: exactly its terms, its step, and what it says when it diverges."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blo.linsolve import Neumann
from blo.operators import Dense, Diagonal, ScaledIdentity
from tests.strategies import SEEDS, normal, spd
from tests.unit.linsolve.krylov import Counted, symmetric, tensor

quick = settings(deadline=None, max_examples=20)


@quick
@given(seed=SEEDS, n=st.integers(1, 6), terms=st.integers(1, 12), step=st.floats(0.1, 1.5), guessed=st.booleans())
def test_it_is_the_sum_of_its_terms(seed: int, n: int, terms: int, step: float, guessed: bool) -> None:
    damping, matrix, b = 0.2, symmetric(seed, n), np.random.default_rng(seed + 1).normal(size=n)
    guess = np.random.default_rng(seed + 2).normal(size=n) * guessed
    damped = matrix + damping * np.eye(n)
    power = [np.linalg.matrix_power(np.eye(n) - step * damped, k) for k in range(terms + 1)]
    product = Counted(tensor(matrix))
    solver = Neumann(terms, step, damping)
    found = solver.solve(product, tensor(b), tensor(guess) if guessed else None)
    np.testing.assert_allclose(found.x, power[terms] @ guess + step * sum(power[:terms]) @ b, rtol=1e-12, atol=1e-12)
    left = np.linalg.norm(power[terms] @ (b - damped @ guess)) / np.linalg.norm(b)
    np.testing.assert_allclose(found.residual, left, rtol=1e-9, atol=1e-14)
    assert product.calls == terms + guessed and int(found.iterations) == terms


@quick
@given(seed=SEEDS, n=st.integers(1, 6))
def test_the_estimated_step_is_the_inverse_of_the_largest_eigenvalue(seed: int, n: int) -> None:
    """Each lane has its own; an underestimate by power iterations is within what the series bears."""
    scale = torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64)[:, None]
    matrix, b = spd(seed, (3,), n, 10.0) * scale[..., None], normal(seed + 1, 3, n)
    found = Neumann(terms=400).solve(Dense(matrix, symmetric=True), b)
    truth = torch.linalg.solve(matrix, b[..., None])[..., 0]
    torch.testing.assert_close(found.x * scale, truth * scale, rtol=1e-8, atol=1e-8)


def test_with_a_tolerance_each_lane_stops_by_itself() -> None:
    diagonal = torch.tensor([[1.0, 1.0], [1.0, 0.5], [1.0, 0.1]], dtype=torch.float64)
    b = torch.ones(3, 2, dtype=torch.float64)
    b[:, 0] = 0
    found = Neumann(terms=100, step=1.0, tol=1e-3).solve(Diagonal(diagonal), b)
    # The residual after k terms is (1 - eigenvalue)^k.
    assert found.iterations.tolist() == [1, 10, 66] and found.converged(1e-3).all()
    torch.testing.assert_close(found.x[:, 1], (1 - (1 - diagonal[:, 1]) ** found.iterations) / diagonal[:, 1])
    assert Neumann(tol=1e-3).tol == 1e-3 and Neumann().tol is None


def test_divergence_shows_in_the_residual() -> None:
    found = Neumann(terms=30, step=3.0).solve(Diagonal(torch.ones(2)), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found.residual, torch.tensor(2.0**30), rtol=1e-3, atol=0)
    assert not found.converged(None) and Neumann(5, 1.0).solve(Diagonal(torch.ones(2)), torch.ones(2)).converged(None)
    overflow = Neumann(terms=200, step=30.0).solve(Diagonal(torch.ones(2)), torch.ones(2))
    assert not overflow.converged(None)


def test_curvature_that_is_not_positive_is_flagged_in_its_lane() -> None:
    diagonal = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    found = Neumann(step=0.1).solve(Diagonal(diagonal), torch.ones(2, 2, dtype=torch.float64))
    assert found.indefinite.tolist() == [False, True] and found.converged(None).tolist() == [True, False]
    vanishing = Neumann(terms=300, step=900.0).solve(ScaledIdentity(1e-3), torch.ones(2, dtype=torch.float64))
    assert not vanishing.indefinite  # its terms' squares underflow
    turn = Dense(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert not Neumann().solve(turn, torch.ones(2)).indefinite
