"""What every Krylov solver promises: the best of its space at every step, its lanes alone, its guess, its flags."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from blo import StructureError
from blo.linsolve import CG, GMRES, MINRES, Auto, LinearSolver, Neumann, Nystrom
from blo.operators import Dense, Diagonal, Hessian, ScaledIdentity
from tests.strategies import SEEDS, normal, spd
from tests.unit.linsolve.krylov import Array, Counted, least_error, least_residual, symmetric, tensor

KRYLOV: list[Callable[..., Any]] = [CG, MINRES, GMRES]
ITERATIVE = [*KRYLOV, lambda **options: Auto(direct=0, **options)]
quick = settings(deadline=None, max_examples=15)


def best(make: Callable[..., Any], matrix: Array, b: Array, steps: int, inverse: Array | None = None) -> Array:
    if make is CG:
        return least_error(matrix, b, steps, inverse)
    # Preconditioned MINRES is the method for the system with roots of M^-1 on both sides; GMRES has it on the right.
    return least_residual(matrix, b, steps, inverse, inverse if make is MINRES else None)


@pytest.mark.parametrize("make", KRYLOV)
@pytest.mark.parametrize("preconditioned", [False, True])
@quick
@given(seed=SEEDS, n=st.integers(1, 7), data=st.data())
def test_every_iterate_is_the_best_of_its_krylov_space(
    make: Callable[..., Any], preconditioned: bool, seed: int, n: int, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(1, n))
    matrix, b = symmetric(seed, n), np.random.default_rng(seed + 1).normal(size=n)
    inverse = symmetric(seed + 2, n) if preconditioned else None
    preconditioner = None if inverse is None else Dense(tensor(inverse))
    solver = make(max_iter=steps, tol=0.0, preconditioner=preconditioner)
    found = solver.solve(Dense(tensor(matrix), symmetric=True), tensor(b))
    expected = best(make, matrix, b, steps, inverse)
    if make is not CG and np.linalg.norm(b - matrix @ expected) >= np.linalg.norm(b):
        # Best in another norm, but the residual has grown: nothing worse than zero is returned.
        assert float(found.residual) <= 1
        expected = 0 * b if make is MINRES else found.x.numpy()
    np.testing.assert_allclose(found.x, expected, rtol=1e-8, atol=1e-9)
    assert int(found.iterations) == steps


@pytest.mark.parametrize("make", [MINRES, GMRES])
@quick
@given(seed=SEEDS, n=st.integers(2, 7), data=st.data())
def test_so_it_is_where_the_matrix_is_indefinite(
    make: Callable[..., Any], seed: int, n: int, data: st.DataObject
) -> None:
    steps, negative = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    matrix, b = symmetric(seed, n, negative=negative), np.random.default_rng(seed + 1).normal(size=n)
    found = make(max_iter=steps, tol=0.0).solve(Dense(tensor(matrix), symmetric=True), tensor(b))
    np.testing.assert_allclose(found.x, least_residual(matrix, b, steps), rtol=1e-7, atol=1e-8)


@quick
@given(seed=SEEDS, n=st.integers(1, 7), data=st.data())
def test_gmres_is_the_best_of_its_space_without_symmetry(seed: int, n: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, n))
    rng = np.random.default_rng(seed)
    matrix, b = np.eye(n) + 0.5 * rng.normal(size=(n, n)) / n**0.5, rng.normal(size=n)
    found = GMRES(max_iter=steps, tol=0.0).solve(Dense(tensor(matrix)), tensor(b))
    np.testing.assert_allclose(found.x, least_residual(matrix, b, steps), rtol=1e-8, atol=1e-9)
    assert not found.indefinite.any()


@pytest.mark.parametrize("power", [1, 3, 5])
@pytest.mark.parametrize("make", [*ITERATIVE, lambda **options: MINRES(preconditioner=Nystrom(20, 1e-4), **options)])
def test_scipy_finds_the_same(make: Callable[..., Any], power: int) -> None:
    matrix, b = symmetric(0, 40, condition=10.0**power), np.random.default_rng(1).normal(size=40)
    options = {"restart": 40} if make is GMRES else {}
    found = make(max_iter=4000, tol=1e-12, **options).solve(Dense(tensor(matrix), symmetric=True), tensor(b))
    reference, flag = scipy.sparse.linalg.cg(matrix, b, rtol=1e-13, atol=0.0, maxiter=4000)
    assert flag == 0 and found.converged(1e-11)
    assert np.linalg.norm(found.x.numpy() - reference) <= 1e-11 * 10**power * np.linalg.norm(reference)


@pytest.mark.parametrize("make", ITERATIVE)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_a_scalar_unknown_takes_one_iteration(make: Callable[..., Any], damping: float) -> None:
    found = make(damping=damping).solve(ScaledIdentity(2.0), torch.tensor([[3.0], [0.0], [-5.0]]).double())
    torch.testing.assert_close(found.x, torch.tensor([[3.0], [0.0], [-5.0]]).double() / (2 + damping))
    assert found.iterations.tolist() == [1, 0, 1]
    alone = make(damping=damping).solve(ScaledIdentity(2.0), torch.tensor([3.0]).double())
    torch.testing.assert_close(alone.x, torch.tensor([3.0]).double() / (2 + damping))
    assert int(alone.iterations) == 1 and alone.residual <= 1e-15


@pytest.mark.parametrize("make", ITERATIVE)
@quick
@given(seed=SEEDS)
@example(seed=23777)  # conjugate gradients leap across a curvature near zero
def test_a_batch_is_its_lanes_in_any_order(make: Callable[..., Any], seed: int) -> None:
    """Numbers of steps included: each lane stops by itself and rests."""
    n, conditions = 24, [2.0, 5.0, 10.0]
    negative = 0 if make is CG else 2  # far from n steps, so that rounding does not decide when a lane stops
    matrices = np.stack([symmetric(seed + i, n, condition=c, negative=negative) for i, c in enumerate(conditions)])
    b, guess = normal(seed, 3, n), 0.1 * normal(seed + 1, 3, n)
    scale = torch.tensor([1.0, 1e-3, 1.0], dtype=torch.float64)[:, None]
    b, guess = scale * b, scale * guess
    solver = make(tol=1e-4)

    def solve(lanes: Any) -> Any:
        return solver.solve(Dense(tensor(matrices[lanes]), symmetric=True), b[lanes], guess[lanes])

    batch = solve([0, 1, 2])
    truth = np.linalg.solve(matrices, b.numpy()[..., None])[..., 0]
    assert (np.linalg.norm(batch.x.numpy() - truth, axis=-1) <= 1e-2 * np.linalg.norm(truth, axis=-1)).all()
    for lane in range(3):
        alone = solve(lane)
        torch.testing.assert_close(batch.x[lane] / scale[lane], alone.x / scale[lane], rtol=0, atol=1e-6)
        assert batch.iterations[lane] == alone.iterations and batch.indefinite[lane] == alone.indefinite
    swapped = solve([2, 0, 1])
    torch.testing.assert_close((swapped.x / scale[[2, 0, 1]]), (batch.x / scale)[[2, 0, 1]], rtol=0, atol=1e-6)
    assert torch.equal(swapped.iterations, batch.iterations[[2, 0, 1]])


@pytest.mark.parametrize("make", ITERATIVE)
def test_a_solved_lane_rests_while_others_go_on(make: Callable[..., Any]) -> None:
    easy, hard = torch.eye(6, dtype=torch.float64), spd(0, (), 6, 1e4)
    b = normal(1, 6)
    alone = make().solve(Dense(easy[None], symmetric=True), b[None])
    both = make().solve(Dense(torch.stack([easy, hard]), symmetric=True), torch.stack([b, b]))
    torch.testing.assert_close(both.x[0], alone.x[0], rtol=0 if make is CG else 1e-15, atol=0)
    assert both.iterations[0] == 1 < both.iterations[1] and both.converged(1e-9).all()


@pytest.mark.parametrize("make", ITERATIVE)
def test_a_good_guess_saves_steps(make: Callable[..., Any]) -> None:
    operator, b = Dense(spd(0, (2,), 20, 50.0), symmetric=True), normal(1, 2, 20)
    first = make(tol=1e-9).solve(operator, b)
    again = make(tol=1e-9).solve(operator, b, x0=first.x)
    assert not again.iterations.any() and torch.equal(again.x, first.x)
    guess = first.x + 1e-7 * normal(2, 2, 20)
    kept = guess.clone()
    near = make(tol=1e-9).solve(operator, b, x0=guess)
    assert torch.equal(guess, kept)
    assert (near.iterations < first.iterations).all() and near.iterations.all() and near.converged(1e-9).all()


@pytest.mark.parametrize(("make", "condition"), [*itertools.product(ITERATIVE, [1.0, 1e2, 1e5]), (CG, 1e6)])
def test_steps_beyond_convergence_do_no_harm_in_single_precision(make: Callable[..., Any], condition: float) -> None:
    matrix, b = spd(0, (4,), 8, condition).float(), normal(1, 4, 8).float()
    found = make(max_iter=1000, tol=0.0).solve(Dense(matrix, symmetric=True), b)
    assert found.x.isfinite().all() and found.x.dtype == torch.float32
    # The residual that rounding of x alone leaves; |A| = 1.
    floor = torch.finfo(b.dtype).eps * (1 + found.x.norm(dim=-1) / b.norm(dim=-1))
    assert (found.residual <= 20 * floor).all()


@pytest.mark.parametrize("make", ITERATIVE)
def test_under_vmap_it_stops_when_the_last_lane_is_done(make: Callable[..., Any]) -> None:
    matrix, b = spd(0, (3,), 5, 10.0), normal(1, 3, 5)
    products: list[int] = []

    def alone(matrix: Tensor, b: Tensor) -> Tensor:
        product = Counted(matrix)
        found = make(max_iter=500).solve(product, b)
        products.append(product.calls)
        return found.iterations

    iterations = torch.vmap(alone)(matrix, b)
    assert products == [int(iterations.max()) + 1]


@pytest.mark.parametrize("make", KRYLOV)
def test_under_vmap_any_of_its_inputs_may_be_mapped(make: Callable[..., Any]) -> None:
    matrix, b, x0 = spd(0, (3,), 5, 10.0), normal(1, 3, 5), normal(2, 3, 5)

    def alone(matrix: Tensor, b: Tensor, x0: Tensor) -> Tensor:
        return make().solve(Dense(matrix, symmetric=True), b, x0).x

    for dims in [(0, None, None), (None, 0, None), (None, None, 0), (0, None, 0)]:
        args = [t if dim == 0 else t[0] for t, dim in zip((matrix, b, x0), dims, strict=True)]
        truth = torch.linalg.solve(args[0], args[1].expand(3, 5)[..., None])[..., 0]
        torch.testing.assert_close(torch.vmap(alone, dims)(*args), truth, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [MINRES, GMRES, lambda **options: Auto(direct=0, **options)])
@quick
@given(seed=SEEDS, n=st.integers(2, 8), data=st.data())
def test_an_indefinite_lane_is_solved_and_flagged(
    make: Callable[..., Any], seed: int, n: int, data: st.DataObject
) -> None:
    matrices = np.stack([symmetric(seed, n, negative=data.draw(st.integers(0, n)), condition=50.0) for _ in range(3)])
    b = normal(seed + 1, 3, n)
    found = make(max_iter=200).solve(Dense(tensor(matrices), symmetric=True), b)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrices, b.numpy()[..., None])[..., 0], rtol=1e-7, atol=1e-7)
    assert found.converged(1e-9).all()
    if make is not GMRES:  # which looks along the directions it takes only
        assert found.indefinite.tolist() == (np.linalg.eigvalsh(matrices).min(-1) < 0).tolist()


@pytest.mark.parametrize("make", [MINRES, GMRES])
def test_a_symmetric_matrix_that_bends_back_at_once_is_flagged(make: Callable[..., Any]) -> None:
    diagonal = torch.tensor([[1.0, -1.0], [1.0, -0.5], [-1.0, -2.0]], dtype=torch.float64)
    found = make().solve(Diagonal(diagonal), torch.ones(3, 2, dtype=torch.float64))
    assert found.indefinite.tolist() == [True, make is MINRES, True]
    torch.testing.assert_close(found.x, 1 / diagonal, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [MINRES, GMRES])
def test_a_singular_lane_stops_and_does_not_blow_up(make: Callable[..., Any]) -> None:
    diagonal = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    found = make(max_iter=50).solve(Diagonal(diagonal), torch.ones(3, 3, dtype=torch.float64))
    assert found.converged(1e-8).tolist() == [False, False, True]
    # The least residual in sight: 1/sqrt(3) where one entry of b is out of reach.
    torch.testing.assert_close(found.residual[:2], torch.tensor([3**-0.5, 1.0], dtype=torch.float64), rtol=1e-8, atol=0)
    assert found.x.abs().max() <= 10
    consistent = make().solve(Diagonal(diagonal[0]), torch.tensor([2.0, 3.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(consistent.x, torch.tensor([1.0, 3.0, 0.0]).double(), rtol=1e-12, atol=1e-12)


def test_gmres_breaks_down_happily() -> None:
    """The Krylov space of a permutation closes after n steps, not sooner; that of an eigenvector after one."""
    shift = torch.roll(torch.eye(5, dtype=torch.float64), 1, 0)
    b = torch.stack([torch.eye(5)[0], torch.ones(5)]).double()
    found = GMRES().solve(Dense(shift), b)
    torch.testing.assert_close(found.x, b @ shift, rtol=0, atol=1e-14)
    assert found.iterations.tolist() == [5, 1]


def test_gmres_restarts_and_says_when_it_stagnates() -> None:
    rng = np.random.default_rng(0)
    matrix, b = np.eye(30) + 0.6 * rng.normal(size=(30, 30)) / 30**0.5, rng.normal(size=30)
    product = Counted(tensor(matrix), symmetric=False)
    found = GMRES(max_iter=400, restart=6).solve(product, tensor(b))
    assert found.converged(1e-9) and found.iterations > 6
    assert product.calls == found.iterations + -(-int(found.iterations) // 6)  # one true residual a cycle
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, b), rtol=1e-8, atol=1e-8)
    shift = Counted(torch.roll(torch.eye(5, dtype=torch.float64), 1, 0), symmetric=False)
    stuck = GMRES(max_iter=400, restart=4).solve(shift, torch.eye(5, dtype=torch.float64)[0])
    assert not stuck.converged(0.5) and stuck.residual == 1.0 and shift.calls == 5


def test_minres_starts_again_where_rounding_left_a_residual() -> None:
    matrix, b = symmetric(0, 30, negative=10, condition=1e7), np.random.default_rng(1).normal(size=30)
    found = MINRES(max_iter=20_000, tol=1e-12).solve(Dense(tensor(matrix), symmetric=True), tensor(b))
    # What rounding of x leaves: eps |A| |x|, with |A| = 1.
    floor = 2.3e-16 * np.linalg.norm(found.x) / np.linalg.norm(b)
    assert found.residual <= 10 * floor + 1e-12


@pytest.mark.parametrize("make", [CG, MINRES, Nystrom])
def test_an_operator_that_is_not_symmetric_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(StructureError, match=rf"`{make.__name__}` needs .* Hessian is not declared symmetric"):
        make().solve(Hessian(lambda v: v, symmetric=False), torch.ones(2))


@pytest.mark.parametrize("solver", [CG(), MINRES(), GMRES(), Neumann(), Nystrom()], ids=str)
def test_each_solver_gives_its_name(solver: LinearSolver) -> None:
    found = solver.solve(ScaledIdentity(1.0), torch.ones(2))
    assert found.method == type(solver).__name__


@pytest.mark.parametrize("make", [*ITERATIVE, lambda **options: Neumann(terms=600, **options)])
def test_looking_seldom_as_on_an_accelerator_changes_nothing(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks, lanes that are done rest."""
    operator, b = Dense(spd(0, (3,), 12, 20.0), symmetric=True), torch.cat([normal(1, 2, 12), torch.zeros(1, 12)])
    solver = make(tol=1e-6)
    often = solver.solve(operator, b)
    for name in ("_conjugate", "_minres", "_gmres", "_neumann"):
        monkeypatch.setattr(importlib.import_module(f"blo.linsolve.{name}"), "stride", lambda b: 8)
    seldom = solver.solve(operator, b)
    torch.testing.assert_close(seldom.x, often.x, rtol=1e-12, atol=1e-14)
    assert torch.equal(seldom.iterations, often.iterations) and seldom.iterations[:2].all()
    assert seldom.converged(1e-6).all() and not seldom.x[2].any()


@pytest.mark.parametrize("make", [*ITERATIVE, lambda **options: CG(preconditioner=Nystrom(3, 0.1), **options)])
@pytest.mark.parametrize("tol", [1e-10, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_answer_is_worse_than_zero(make: Callable[..., Any], tol: float | None, dtype: torch.dtype) -> None:
    """Whatever the signs of the eigenvalues, and however far off the guess."""
    for seed in range(6):
        n = 4 + 2 * seed
        matrices = np.stack([symmetric(seed + i, n, negative=n // 2, condition=10.0**i) for i in range(3)])
        b = normal(seed + 3, 3, n)
        for guess in (None, 30 * normal(seed + 4, 3, n).to(dtype)):
            for steps in (1, 3, 100):
                operator = Dense(tensor(matrices).to(dtype), symmetric=True)
                found = make(max_iter=steps, tol=tol).solve(operator, b.to(dtype), guess)
                left = b.numpy() - (matrices @ found.x.double().numpy()[..., None])[..., 0]
                truth = np.linalg.norm(left, axis=-1) / np.linalg.norm(b.numpy(), axis=-1)
                assert (truth <= 1 + 1e-5).all() and (found.residual <= 1).all()
                np.testing.assert_allclose(
                    found.residual, truth, rtol=1e-5, atol=1e-3 if dtype == torch.float32 else 1e-9
                )


@pytest.mark.parametrize("make", ITERATIVE)
def test_a_stale_guess_costs_nothing_but_its_product(make: Callable[..., Any]) -> None:
    matrix, b = symmetric(0, 12), normal(1, 12)
    fresh = make().solve(Dense(tensor(matrix), symmetric=True), b)
    stale = make().solve(Dense(tensor(matrix), symmetric=True), b, 1e6 * normal(2, 12))
    assert torch.equal(stale.x, fresh.x) and torch.equal(stale.iterations, fresh.iterations)


@pytest.mark.parametrize("make", ITERATIVE)
def test_without_a_tolerance_the_number_of_iterations_is_fixed(make: Callable[..., Any]) -> None:
    matrix, b = symmetric(0, 20, condition=1e4), normal(1, 3, 20)
    for steps in (1, 4):
        solver = make(max_iter=steps, tol=None)
        found = solver.solve(Dense(tensor(matrix), symmetric=True), b)
        assert found.iterations.tolist() == [steps] * 3 and solver.tol is None
        assert found.converged(None).all() and not found.converged(1e-6).any()
    solved = make(max_iter=500, tol=None).solve(Dense(tensor(matrix), symmetric=True), b)
    assert (solved.residual <= 1e-12).all() and (solved.iterations < 500).all()
