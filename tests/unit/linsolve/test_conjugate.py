"""One vector on the CPU has a loop of its own: it must end where a lane of a batch ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blo.linsolve import CG
from blo.operators import Dense, ScaledIdentity
from tests.strategies import normal, spd


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["definite", "indefinite", "singular", "non-finite"])
@pytest.mark.parametrize("tol", [1e-10, None, 0.0])
@pytest.mark.parametrize("steps", [1, 4, 200])
def test_one_vector_ends_where_a_lane_does(dtype: torch.dtype, kind: str, tol: float | None, steps: int) -> None:
    n, inverse = 8, (0.1 + normal(9, 8).abs()).to(dtype)
    for seed in range(4):
        matrix = spd(seed, (), n, 50.0)
        if kind == "indefinite":
            matrix = matrix - 0.3 * matrix.diagonal().max() * torch.eye(n, dtype=torch.float64)
        elif kind == "singular":
            matrix[:, 0] = matrix[0] = 0.0
        elif kind == "non-finite":
            matrix[2, 3] = torch.nan if seed % 2 else torch.inf
        b, guess = normal(seed + 20, n).to(dtype), normal(seed + 30, n).to(dtype)
        operator = Dense(matrix.to(dtype), symmetric=True)
        for preconditioner in (None, lambda v: inverse * v):
            for start in (None, guess):
                solver = CG(max_iter=steps, tol=tol, preconditioner=preconditioner)
                one = solver.solve(operator, b, start)
                lane = solver.solve(operator, b[None], None if start is None else start[None])
                rtol = 1e-9 if dtype is torch.float64 else 2e-2
                torch.testing.assert_close(one.x, lane.x[0], rtol=rtol, atol=rtol, equal_nan=True)
                assert one.residual.shape == one.iterations.shape == one.indefinite.shape == ()
                assert (one.residual.dtype, one.iterations.dtype) == (dtype, torch.int64)
                torch.testing.assert_close(one.residual, lane.residual[0], rtol=0.1, atol=rtol, equal_nan=True)
                assert bool(one.indefinite) == bool(lane.indefinite) or kind == "singular"  # rounding decides there
                assert abs(int(one.iterations) - int(lane.iterations)) <= (0 if steps < 10 else 3)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e30])
def test_a_step_out_of_range_is_no_crash(size: float) -> None:
    """In single precision the step overflows, or the curvature does."""
    b = normal(0, 4).float()
    operator = ScaledIdentity(size)
    one, lane = CG().solve(operator, b), CG().solve(operator, b[None])
    torch.testing.assert_close(one.x, lane.x[0], rtol=1e-5, atol=0.0)
    assert float(one.residual) <= 1


def test_a_negative_step_out_of_range_is_no_crash() -> None:
    """A preconditioner that is not positive definite makes steps backwards."""
    found = CG(max_iter=3, preconditioner=torch.neg).solve(ScaledIdentity(1e-40), torch.ones(4))
    assert float(found.residual) <= 1


def test_a_default_device_is_left_alone() -> None:
    operator, b = Dense(spd(0, (), 4, 10.0), symmetric=True), normal(0, 4)
    with torch.device("meta"):
        found = CG().solve(operator, b)
    assert {found.x.device.type, found.residual.device.type, found.iterations.device.type} == {"cpu"}


def test_a_preconditioner_of_zero_is_no_crash() -> None:
    found = CG(preconditioner=torch.zeros_like).solve(ScaledIdentity(2.0), normal(0, 4))
    assert not found.x.any() and float(found.residual) == 1


@pytest.mark.parametrize("carrier", ["matrix", "b", "inverse"])
def test_the_graph_of_a_solve_is_kept(carrier: str) -> None:
    """Python numbers would cut it, and leave a gradient that is wrong without a word."""
    matrix, b, inverse = spd(0, (), 5, 10.0), normal(1, 5), torch.ones(5, dtype=torch.float64)
    live = {"matrix": matrix, "b": b, "inverse": inverse}[carrier].requires_grad_()

    def answer(steps: int) -> Tensor:
        solver = CG(max_iter=steps, tol=None, preconditioner=lambda v: inverse * v)
        return solver.solve(Dense(matrix, symmetric=True), b).x.square().sum()

    (found,) = torch.autograd.grad(answer(2), live)
    step, direction = 1e-6, normal(2, *live.shape)
    if carrier == "matrix":
        direction = direction + direction.T
    with torch.no_grad():
        live += step * direction
        above = answer(2)
        live -= 2 * step * direction
        slope = (above - answer(2)) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), slope, rtol=1e-6, atol=1e-8)
