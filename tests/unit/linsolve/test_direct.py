"""Factorisation: the cases Cholesky does not take."""

from __future__ import annotations

import torch

from blo.linsolve import Direct
from blo.operators import Dense
from tests.strategies import normal, spd


def test_an_indefinite_system_is_solved_all_the_same() -> None:
    matrix, b = spd(0, (3,), 4, 10.0), normal(1, 3, 4)
    matrix[1] *= -1.0
    found = Direct().solve(Dense(matrix, symmetric=True), b)
    assert found.indefinite.tolist() == [False, True, False]
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix, b), rtol=1e-12, atol=1e-12)
    assert found.converged(1e-12).all()


def test_a_matrix_that_is_not_symmetric_is_not_called_indefinite() -> None:
    matrix, b = normal(0, 3, 4, 4), normal(1, 3, 4)
    found = Direct().solve(Dense(matrix), b)
    torch.testing.assert_close(found.x, torch.linalg.solve(matrix, b), rtol=1e-11, atol=1e-11)
    assert not found.indefinite.any()


def test_damping_can_make_it_definite() -> None:
    found = Direct(damping=2.0).solve(Dense(-torch.eye(3), symmetric=True), torch.ones(3))
    assert not found.indefinite and torch.equal(found.x, torch.ones(3))
