"""What `Auto` picks, and that it says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from blo.linsolve import CG, Auto
from blo.operators import Dense
from tests.oracles import Array
from tests.strategies import normal, spd
from tests.unit.linsolve.krylov import Counted, symmetric, tensor


def test_a_small_system_is_factorised() -> None:
    matrix, b = symmetric(0, 12), normal(1, 12)
    for declared in (True, False):
        product = Counted(tensor(matrix), symmetric=declared)
        found = Auto().solve(product, b)
        assert found.method == "Auto: Direct (n = 12)" and product.calls == 13
        np.testing.assert_allclose(found.x, np.linalg.solve(matrix, b), rtol=1e-12, atol=1e-12)


def test_many_lanes_are_not_factorised_where_their_matrices_would_fill_the_memory() -> None:
    n, lanes = 256, 257  # one lane too many for 2^24 entries
    scale = torch.arange(1, lanes + 1, dtype=torch.float64)[:, None]
    calls: list[int] = []

    class Scaled(Counted):
        def __call__(self, v: Tensor) -> Tensor:
            calls.append(1)
            return scale * v

    found = Auto().solve(Scaled(torch.empty(0)), torch.ones(lanes, n, dtype=torch.float64))
    assert found.method == "Auto: CG (n = 256)" and len(calls) == 2
    torch.testing.assert_close(found.x, torch.ones(lanes, n).double() / scale)


def test_a_large_system_without_symmetry_goes_to_gmres() -> None:
    matrix = 3 * np.eye(30) + 0.9 * np.random.default_rng(0).normal(size=(30, 30)) / 30**0.5
    b = normal(1, 30)
    found = Auto(direct=0).solve(Dense(tensor(matrix)), b)
    assert found.method == "Auto: GMRES (n = 30, not symmetric)"
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8)


def equilibrium(seed: int, n: int, radius: float) -> Array:
    """Return `I - J` for a Jacobian J of this spectral radius."""
    jacobian = np.random.default_rng(seed).normal(size=(n, n))
    return np.eye(n) - radius * jacobian / np.abs(np.linalg.eigvals(jacobian)).max()


def test_the_system_of_a_contraction_is_summed_up_as_a_series() -> None:
    matrices, b = np.stack([equilibrium(0, 100, 0.4), equilibrium(1, 100, 0.2)]), normal(2, 2, 100)
    truth = np.linalg.solve(matrices, b.numpy()[..., None])[..., 0]
    product = Counted(tensor(matrices), symmetric=False)
    found = Auto().solve(product, b)
    assert found.method == "Auto: Neumann (n = 100, not symmetric)"
    assert product.calls == found.iterations.max() < 35 and found.iterations[1] < found.iterations[0]
    left = np.linalg.norm(b.numpy() - (matrices @ found.x.numpy()[..., None])[..., 0], axis=-1)
    np.testing.assert_allclose(found.residual, left / np.linalg.norm(b, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(found.x, truth, rtol=1e-8, atol=1e-8)
    again = Auto().solve(product, b, found.x)
    assert again.iterations.max() == 0 and torch.equal(again.x, found.x)
    single = Auto().solve(Dense(tensor(matrices).float()), b.float())
    assert "Neumann" in single.method and single.residual.max() < 2e-6
    np.testing.assert_allclose(single.x, truth, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("radius", [0.95, 1.0, 3.0])
def test_one_lane_that_does_not_contract_sends_all_to_gmres_from_where_they_are(radius: float) -> None:
    matrices, b = np.stack([equilibrium(0, 60, 0.3), equilibrium(1, 60, radius)]), normal(2, 2, 60)
    product = Counted(tensor(matrices), symmetric=False)
    found = Auto().solve(product, b)
    assert "GMRES (n = 60, not symmetric)" in found.method and found.converged(1e-10).all()
    assert product.calls < 160
    truth = np.linalg.solve(matrices, b.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(found.x, truth, rtol=1e-8, atol=1e-8 * np.abs(truth).max())


def test_a_series_of_products_that_are_not_finite_is_reported() -> None:
    matrix = equilibrium(0, 60, 0.3)
    matrix[3, 4] = np.nan
    found = Auto(direct=0).solve(Dense(tensor(matrix)), normal(0, 60))
    assert not found.converged(1e-10)


def test_a_right_hand_side_of_zero_has_the_solution_zero() -> None:
    found = Auto().solve(Dense(tensor(equilibrium(0, 60, 0.3))), torch.zeros(60).double())
    assert not found.x.any() and found.residual == 0 and found.iterations == 0


def test_a_large_positive_system_goes_to_conjugate_gradients() -> None:
    operator, b, guess = Dense(spd(0, (2,), 20, 50.0), symmetric=True), normal(1, 2, 20), normal(2, 2, 20)
    found = Auto(tol=1e-6, damping=0.1, direct=19).solve(operator, b, guess)
    expected = CG(tol=1e-6, damping=0.1).solve(operator, b, guess)
    assert found.method == "Auto: CG (n = 20)"
    assert torch.equal(found.x, expected.x) and torch.equal(found.iterations, expected.iterations)


def test_lanes_that_bend_back_are_finished_by_minres_and_still_flagged() -> None:
    matrices = np.stack([symmetric(0, 20), symmetric(1, 20, negative=5), symmetric(2, 20)])
    b = normal(1, 3, 20)
    product = Counted(tensor(matrices))
    found = Auto(direct=0).solve(product, b)
    cg = CG().solve(Dense(tensor(matrices), symmetric=True), b)
    assert found.method == "Auto: CG, then MINRES where it is indefinite (n = 20)"
    assert found.indefinite.tolist() == [False, True, False] and found.converged(1e-9).all()
    np.testing.assert_allclose(found.x, np.linalg.solve(matrices, b.numpy()[..., None])[..., 0], rtol=1e-7, atol=1e-7)
    assert torch.equal(found.x[[0, 2]], cg.x[[0, 2]]) and torch.equal(found.iterations[[0, 2]], cg.iterations[[0, 2]])
    assert found.iterations[1] > cg.iterations[1]


@pytest.mark.parametrize("symmetric_", [True, False])
def test_lanes_that_iterations_do_not_solve_are_factorised(symmetric_: bool) -> None:
    matrices = np.stack([symmetric(0, 60), symmetric(1, 60, condition=1e5)])
    if not symmetric_:
        matrices[1, 0, 1] += 1e-3
    b = normal(1, 2, 60)
    found = Auto(direct=8).solve(Dense(tensor(matrices), symmetric=symmetric_), b)
    name = "CG (n = 60)" if symmetric_ else "GMRES (n = 60, not symmetric)"
    assert found.method == f"Auto: {name}, then Direct where it did not converge"
    assert found.converged(1e-10).all() and not found.indefinite.any()
    truth = np.linalg.solve(matrices, b.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(found.x, truth, rtol=1e-8, atol=1e-8 * np.abs(truth).max())
    np.testing.assert_allclose(found.x[0], truth[0], rtol=1e-8, atol=1e-8)
    easy = Auto(direct=8).solve(Dense(tensor(matrices[0]), symmetric=True), b[0])
    assert "Direct" not in easy.method
    assert "Direct" not in Auto(direct=7).solve(Dense(tensor(matrices), symmetric=symmetric_), b).method


def test_what_no_solver_solves_is_told() -> None:
    singular = tensor(np.diag([0.0] + [1.0] * 39))
    found = Auto(direct=8).solve(Dense(singular, symmetric=True), torch.ones(40).double())
    assert not found.converged(1e-10) and not found.residual <= 0.1


def test_it_hands_on_the_preconditioner() -> None:
    matrix, b = symmetric(0, 30, condition=1e4), normal(1, 30)
    exact = Dense(tensor(np.linalg.inv(matrix)))
    for solver in (Auto(direct=0, preconditioner=exact), Auto(direct=0, damping=1e-9, preconditioner=exact)):
        assert solver.solve(Dense(tensor(matrix), symmetric=True), b).iterations <= 3
        assert solver.solve(Dense(tensor(matrix)), b).iterations <= 3
