"""What every linear solver promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blo.linsolve import CG, GMRES, MINRES, Auto, Direct, Identity, LinearSolver, Neumann, Nystrom
from blo.operators import Dense, Diagonal, Operator, ScaledIdentity
from tests.strategies import System, normal, spd, spd_systems

#: Solvers of any positive definite system.
SOLVERS: list[LinearSolver] = [
    Direct(),
    CG(max_iter=400),
    MINRES(max_iter=400),
    GMRES(max_iter=400),
    Auto(),
    Auto(max_iter=400, direct=0),
]


def dense(matrix: torch.Tensor) -> Operator:
    return Dense(matrix, symmetric=True, positive=True)


@pytest.mark.parametrize("solver", SOLVERS)
@settings(deadline=None, max_examples=40)
@given(system=spd_systems())
def test_the_solution_is_the_one_numpy_finds(solver: LinearSolver, system: System) -> None:
    found = solver.solve(dense(system.matrix), system.b)
    truth = system.truth()
    error = (found.x - truth).norm(dim=-1) / truth.norm(dim=-1)
    assert (error <= 1e-14 * system.condition + 1e-9 * system.condition**0.5).all()
    assert found.converged(1e-7).all()
    assert not found.indefinite.any()


@pytest.mark.parametrize("make", [Direct, CG, MINRES, GMRES, Auto, lambda damping: Auto(damping=damping, direct=0)])
@settings(deadline=None, max_examples=25)
@given(system=spd_systems(max_power=3), damping=st.sampled_from([0.1, 1.0, 11.4]))
def test_damping_is_in_the_step_and_in_the_residual(make: type, system: System, damping: float) -> None:
    found = make(damping=damping).solve(dense(system.matrix), system.b)
    torch.testing.assert_close(found.x, system.truth(damping), rtol=1e-8, atol=1e-9)
    assert found.converged(1e-9).all()


@pytest.mark.parametrize(
    "solver",
    [
        *(make(damping=damping) for make in (Direct, CG, MINRES, GMRES, Auto, Neumann) for damping in (0.0, 0.5)),
        *(make(max_iter=1, damping=0.5) for make in (CG, MINRES, GMRES)),
        Nystrom(rank=2, damping=0.1),
        Nystrom(rank=9, damping=0.1),
        Neumann(terms=20, step=3.0),  # diverges
    ],
    ids=str,
)
def test_the_residual_is_that_of_the_damped_system(solver: Any) -> None:
    matrix, b = spd(0, (3,), 5, 1e3), normal(1, 3, 5)
    found = solver.solve(dense(matrix), b)
    defect = b - (matrix @ found.x[..., None])[..., 0] - solver.damping * found.x
    expected = defect.norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(found.residual, expected, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("solver", [*SOLVERS, Identity(2.0), Neumann(), Nystrom(damping=1e-12)], ids=str)
@pytest.mark.parametrize("shape", [(1,), (4,), (3, 1), (2, 3, 4), (0, 4)])
def test_shapes(solver: LinearSolver, shape: tuple[int, ...]) -> None:
    found = solver.solve(ScaledIdentity(2.0), normal(0, *shape))
    torch.testing.assert_close(found.x, normal(0, *shape) / 2)
    assert found.x.shape == shape
    assert found.residual.shape == found.iterations.shape == found.indefinite.shape == shape[:-1]
    assert found.iterations.dtype == torch.int64 and found.indefinite.dtype == torch.bool


@pytest.mark.parametrize(
    "solver", [*SOLVERS, Identity(2.0), CG(damping=1.0), Neumann(1000, damping=1.0), Nystrom(3, 0.1)]
)
def test_zero_takes_no_iteration_and_gives_zero(solver: LinearSolver) -> None:
    matrix = torch.stack([spd(0, (), 3, 10.0), torch.zeros(3, 3, dtype=torch.float64), spd(1, (), 3, 10.0)])
    b = torch.stack([torch.zeros(3), torch.zeros(3), torch.ones(3)]).double()
    found = solver.solve(dense(matrix), b, x0=torch.ones_like(b))
    assert not found.x[:2].any() and not found.residual[:2].any() and not found.iterations[:2].any()
    assert found.x[2].any() and found.converged(1e-9)[2]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_the_size_of_the_right_hand_side_does_not_matter(solver: LinearSolver, size: float) -> None:
    matrix, b = spd(0, (2,), 4, 100.0), normal(1, 2, 4)
    unit, found = solver.solve(dense(matrix), b), solver.solve(dense(matrix), size * b)
    torch.testing.assert_close(found.x / size, unit.x, rtol=1e-8, atol=0)
    assert found.converged(1e-9).all()


@pytest.mark.parametrize("solver", [*SOLVERS, Nystrom(3, 1e-12)], ids=str)
def test_an_indefinite_lane_is_flagged_and_the_others_are_solved(solver: LinearSolver) -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    q, _ = torch.linalg.qr(normal(0, 3, 3, 3))
    matrix, b = (q * values[:, None]) @ q.mT, normal(1, 3, 3)
    found = solver.solve(dense(matrix), b)
    assert found.indefinite.tolist() == [False, True, False]
    truth = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(found.x[[0, 2]], truth[[0, 2]], rtol=1e-9, atol=1e-9)
    assert found.x.isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_singular_lane_never_counts_as_converged(solver: LinearSolver) -> None:
    diagonal = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    found = solver.solve(Diagonal(diagonal), torch.ones(2, 2, dtype=torch.float64))
    assert found.converged(1e-3).tolist() == [False, True]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_nan_never_counts_as_converged(solver: LinearSolver) -> None:
    b = torch.tensor([[1.0, torch.nan], [1.0, 1.0]], dtype=torch.float64)
    assert solver.solve(ScaledIdentity(2.0), b).converged(1e-3).tolist() == [False, True]
    broken = Diagonal(torch.tensor([[1.0, torch.nan], [1.0, 1.0]], dtype=torch.float64))
    found = solver.solve(broken, torch.ones_like(b))
    assert found.converged(1e-3).tolist() == [False, True]


@pytest.mark.parametrize("solver", [*SOLVERS, Identity(0.5), Neumann(30), Nystrom(3, 0.1)], ids=str)
def test_vmap_gives_what_a_batch_gives(solver: LinearSolver) -> None:
    matrix, b = spd(0, (3,), 4, 10.0), normal(1, 3, 4)
    matrix[1] -= 0.5 * torch.eye(4)  # indefinite
    batch = solver.solve(Dense(matrix, symmetric=True), b)

    def alone(matrix: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = solver.solve(Dense(matrix, symmetric=True), b)
        return found.x, found.residual, found.iterations, found.indefinite

    x, residual, iterations, indefinite = torch.vmap(alone)(matrix, b)
    torch.testing.assert_close(x, batch.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(residual, batch.residual, rtol=1e-3, atol=1e-9)
    assert torch.equal(iterations, batch.iterations) and torch.equal(indefinite, batch.indefinite)


def test_a_tolerance_below_rounding_is_taken_as_rounding() -> None:
    matrix, b = spd(0, (5,), 6, 1.5).float(), normal(1, 5, 6).float()
    found = CG(tol=1e-10).solve(dense(matrix), b)
    assert found.converged(1e-10).all()
    assert not CG(max_iter=1).solve(dense(matrix), b).converged(1e-10).any()


@pytest.mark.parametrize("make", [Direct, CG, MINRES, GMRES, Neumann, Nystrom, Auto, Identity])
@pytest.mark.parametrize("damping", [-1.0, float("nan")])
def test_a_negative_damping_is_refused(make: type, damping: float) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__}\.damping"):
        make(damping=damping)


WRONG = (("max_iter", 0), ("max_iter", 2.5), ("tol", -1.0), ("tol", float("nan")))


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        *((make, *wrong) for make in (CG, MINRES, GMRES, Auto) for wrong in WRONG),
        *((Neumann, *wrong) for wrong in (("terms", 0), ("step", 0.0), ("step", -1.0), ("tol", -1.0))),
        *((Nystrom, *wrong) for wrong in (("rank", 0), ("damping", 0.0), ("tol", -1.0))),
        (Auto, "direct", -1),
    ],
)
def test_settings_out_of_range_are_named(make: type, field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{make.__name__}\.{field}"):
        make(**{field: value})
