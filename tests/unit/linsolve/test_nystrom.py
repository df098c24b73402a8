"""The Nystrom approximation: exact at full rank, honest below it, the same for the same seed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blo.linsolve import CG, Nystrom
from blo.operators import Dense, Diagonal, Restricted, ScaledIdentity
from blo.sets import Box
from tests.strategies import SEEDS, normal, spd
from tests.unit.linsolve.krylov import Counted, tensor

quick = settings(deadline=None, max_examples=20)


def low_rank(seed: int, n: int, rank: int) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(n, rank))
    return factor @ factor.T / n


@quick
@given(seed=SEEDS, n=st.integers(2, 12), data=st.data())
def test_it_is_exact_for_a_matrix_of_its_rank(seed: int, n: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, n))
    matrix, b = low_rank(seed, n, rank), np.random.default_rng(seed + 1).normal(size=n)
    drawn = np.random.default_rng(0).standard_normal((rank, n))
    assume(np.linalg.cond(drawn @ matrix @ drawn.T) < 1e5)  # few vectors may by chance all but miss the range
    product = Counted(tensor(matrix))
    found = Nystrom(rank, 0.1).solve(product, tensor(b))
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix + 0.1 * np.eye(n), b), rtol=1e-8, atol=1e-8)
    assert found.residual <= 1e-8 and product.calls == rank + 1 and int(found.iterations) == rank
    assert not found.indefinite


def test_below_the_rank_it_is_the_inverse_of_its_approximation_and_its_residual_says_how_far_off() -> None:
    matrix, b = low_rank(0, 8, 8), np.random.default_rng(1).normal(size=8)
    found = Nystrom(3, 0.1, seed=5).solve(Dense(tensor(matrix), symmetric=True), tensor(b))
    # Hataya and Yamada's formula, with the same random vectors: A W (W' A W)^-1 W' A.
    drawn = np.random.default_rng(5).standard_normal((3, 8)).T
    image = matrix @ drawn
    approximation = image @ np.linalg.solve(drawn.T @ image, image.T)
    x = np.linalg.solve(approximation + 0.1 * np.eye(8), b)
    np.testing.assert_allclose(found.x, x, rtol=1e-9, atol=1e-9)
    off = np.linalg.norm(b - matrix @ x - 0.1 * x) / np.linalg.norm(b)
    np.testing.assert_allclose(found.residual, off, rtol=1e-8)
    assert off > 0.1 and Nystrom().tol is None


def test_lanes_are_approximated_apart() -> None:
    matrix, b = spd(0, (3,), 6, 100.0), normal(1, 3, 6)
    matrix[1] *= 40
    batch = Nystrom(2, 0.1).solve(Dense(matrix, symmetric=True), b)
    for lane in range(3):
        alone = Nystrom(2, 0.1).solve(Dense(matrix[lane], symmetric=True), b[lane])
        torch.testing.assert_close(batch.x[lane], alone.x, rtol=1e-10, atol=1e-10)


def test_the_seed_decides_and_the_global_random_state_is_left_alone() -> None:
    operator, b = Dense(spd(0, (), 6, 100.0), symmetric=True), normal(1, 6)
    np.random.seed(0)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (Nystrom(2, 0.1, seed).solve(operator, b).x for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(numpys, np.random.get_state()[1])
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_on_a_tangent_space_the_rank_is_spent_on_it() -> None:
    """Rank 2 is exact for two free coordinates, however many are held; what b has beside them is solved too."""
    z = torch.tensor([0.0, 0.5, 1.0, 0.3, 0.0, 1.0], dtype=torch.float64)
    H, b = spd(0, (), 6, 10.0), normal(1, 6)
    free = [1, 3]
    system = Restricted(Dense(H, symmetric=True), Box(0.0, 1.0).tangent(z, 1 - 2 * z))  # pressed against its bounds
    found = Nystrom(2, 0.1).solve(system, b)
    expected = b / 1.1
    expected[free] = torch.linalg.solve(H[free][:, free] + 0.1 * torch.eye(2, dtype=H.dtype), b[free])
    torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-9)


def test_a_sketch_that_bends_back_is_flagged_in_its_lane() -> None:
    diagonal = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = Nystrom(2, 0.1).solve(Diagonal(diagonal), torch.ones(3, 3, dtype=torch.float64))
    assert found.indefinite.tolist() == [False, True, False] and found.x.isfinite().all()
    torch.testing.assert_close(found.x[2], torch.full((3,), 10.0).double(), rtol=1e-12, atol=0)


def test_as_a_preconditioner_it_saves_steps_and_leaves_the_solution() -> None:
    q, _ = torch.linalg.qr(normal(0, 100, 100))
    values = torch.cat([torch.logspace(0, -3, 20), torch.full((80,), 1e-6)]).double()
    operator, b = Dense((q * values) @ q.T, symmetric=True), normal(1, 100)
    plain = CG(max_iter=500).solve(operator, b)
    fast = CG(max_iter=500, preconditioner=Nystrom(25, 1e-6)).solve(operator, b)
    assert fast.converged(1e-10) and int(fast.iterations) <= 12 < 30 < int(plain.iterations)
    torch.testing.assert_close(fast.x, torch.linalg.solve((q * values) @ q.T, b), rtol=1e-6, atol=1e-4)


def test_single_precision_stays_finite() -> None:
    found = Nystrom(4, 1e-3).solve(Dense(spd(0, (3,), 6, 1e6).float(), symmetric=True), normal(1, 3, 6).float())
    assert found.x.dtype == torch.float32 and found.x.isfinite().all() and found.residual.isfinite().all()
    nothing = Nystrom(2, 1e-3).solve(ScaledIdentity(0.0), torch.ones(4))
    torch.testing.assert_close(nothing.x, torch.full((4,), 1e3))


def test_a_matrix_that_is_not_finite_spoils_its_own_lane_alone() -> None:
    matrices = torch.stack([tensor(low_rank(seed, 4, 4)) for seed in range(3)])
    broken = matrices.clone()
    broken[1, 0, 0] = torch.inf
    b = tensor(np.random.default_rng(1).normal(size=(3, 4)))
    operator = Dense(broken, symmetric=True)
    for solver in (Nystrom(4, 1e-9), CG(preconditioner=Nystrom(2))):
        found, whole = solver.solve(operator, b), solver.solve(Dense(matrices, symmetric=True), b)
        np.testing.assert_allclose(found.x[[0, 2]], whole.x[[0, 2]], rtol=1e-9)
        assert not torch.isfinite(found.residual[1])
