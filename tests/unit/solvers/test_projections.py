"""How often a solver projects: projections may cost far more than gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo.sets import Set
from tests.lower import Counted, quadratic
from tests.lower import solve as solved

N, ROWS = 20, 6


class Watched(Set):
    """Another set that counts its projections."""

    def __init__(self, inner: Set) -> None:
        self.inner = inner
        self.projections = Counted(inner.project)

    def project(self, z: Tensor) -> Tensor:
        found: Tensor = self.projections(z)
        return found

    def tangent(self, z: Tensor, gradient: Tensor) -> blo.sets.Tangent:
        return self.inner.tangent(z, gradient)


@pytest.mark.parametrize(("scale", "relative"), [(1.0, False), (1.0, True), (1e-4, True)])
@pytest.mark.parametrize("step", [None, 1.0])
def test_a_step_takes_one_projection_and_the_answer_is_that_of_the_dense_kkt_system(
    scale: float, step: float | None, relative: bool
) -> None:
    matrix, b = (scale * part for part in quadratic(0, N, 1e3))
    rng = np.random.default_rng(1)
    A, room = rng.normal(size=(ROWS, N)), rng.uniform(0.1, 0.5, size=ROWS)
    watched = Watched(blo.Halfspaces(torch.as_tensor(A), torch.as_tensor(room)))
    lower = blo.LowerProblem(lambda theta, z: 0.5 * z @ matrix @ z - b @ z, watched)
    solver = blo.FISTA(None if step is None else step / scale, tol=1e-11, relative=relative, max_steps=5000)
    found = solved(lower, torch.zeros(N).double(), solver)
    assert found.residual is not None and found.tol is not None and found.residual <= found.tol
    assert found.steps > 100 and watched.projections.calls <= 1.2 * found.steps + 20

    z = found.z.numpy()
    held = A @ z > room - 1e-7
    k = int(held.sum())
    system = np.block([[matrix.numpy(), A[held].T], [A[held], np.zeros((k, k))]])
    truth, y = np.split(np.linalg.solve(system, np.concatenate([b, room[held]])), [N])
    assert 0 < k < ROWS and (y > 0).all() and (A @ truth <= room + 1e-9).all()
    np.testing.assert_allclose(z, truth, rtol=0, atol=2e-8 * max(1.0, np.abs(truth).max()))


@pytest.mark.parametrize("max_steps", [2, 5, 17])
def test_a_solve_that_is_cut_short_returns_what_it_looked_at_last(max_steps: int) -> None:
    """There the residual decides, which is measured for no other step."""
    matrix, b = quadratic(0, N, 1e3)
    watched = Watched(blo.L2Ball(50.0))
    lower = blo.LowerProblem(lambda theta, z: 0.5 * z @ matrix @ z - b @ z, watched)
    found = solved(lower, torch.zeros(N).double(), blo.FISTA(tol=1e-12, max_steps=max_steps))
    assert found.steps == max_steps and watched.projections.calls <= 2 * max_steps + 10
    away = found.z - blo.L2Ball(50.0).project(found.z - (matrix @ found.z - b))
    torch.testing.assert_close(found.residual, away.norm(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_sparing_residuals_does_not_delay_the_end(tol: float) -> None:
    """A loop in NumPy that measures the residual at every base knows where a look can first be good enough."""
    tensor, vector = quadratic(0, N, 1e3)
    matrix, b = tensor.numpy(), vector.numpy()

    def near(z: np.ndarray) -> np.ndarray:
        moved: np.ndarray = z - (matrix @ z - b)
        return moved.clip(-3.0, 3.0)

    base = last = np.zeros(N)
    age, first = 1.0, 0
    while np.linalg.norm(base - near(base)) > tol:
        now = near(base)
        age = 1.0 if (base - now) @ (now - last) > 0 else age
        older = (1 + np.sqrt(1 + 4 * age**2)) / 2
        base, last, age, first = now + (age - 1) / older * (now - last), now, older, first + 1
    lower = blo.LowerProblem(lambda theta, z: 0.5 * z @ tensor @ z - vector @ z, blo.Box(-3.0, 3.0))
    found = solved(lower, torch.zeros(N).double(), blo.FISTA(1.0, tol=tol, max_steps=5000))
    assert first > 10 and found.steps == first + 1
