"""Linear inequalities: dependent, repeated, open and contradicting rows; the rest is tried in `test_base`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import blo
from blo import Halfspaces, InfeasibleError
from blo._layout import Layout
from tests import oracles
from tests.strategies import SEEDS, normal


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 6), st.integers(1, 8), st.sampled_from(["general", "repeated", "integers", "touching"]))
@example(321, 3, 6, "touching")  # one point, of which an angle of 2e-4 leaves rounding
@example(16, 4, 5, "touching")
@example(507, 6, 7, "touching")
def test_the_projection_is_that_of_non_negative_least_squares(seed: int, n: int, k: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    A, member, point = rng.normal(size=(k, n)), rng.normal(size=n), 3 * rng.normal(size=n)
    if how == "repeated":
        A = np.vstack([A, 2 * A, A[:1] + A[-1:]])
    if how == "integers":
        A, member = np.round(A), np.round(member)
    room = rng.exponential(size=len(A)) * (how != "touching")
    found = Halfspaces(torch.as_tensor(A), torch.as_tensor(A @ member + room)).project(torch.as_tensor(point))
    np.testing.assert_allclose(found, oracles.project_polyhedron(point, A, A @ member + room), rtol=0, atol=1e-9)


def test_a_box_and_equations_written_as_inequalities() -> None:
    point, eye = normal(0, 4, scale=2.0), torch.eye(4, dtype=torch.float64)
    box = Halfspaces(torch.cat([eye, -eye]), 0.5)
    torch.testing.assert_close(box.project(point), point.clamp(-0.5, 0.5), rtol=1e-15, atol=1e-15)
    A, b = normal(1, 2, 4), normal(2, 2)
    both = Halfspaces(torch.cat([A, -A]), torch.cat([b, -b]))
    near = both.project(point)
    torch.testing.assert_close(near, blo.Affine(A, b).project(point), rtol=1e-13, atol=1e-13)
    tangent, v = both.tangent(near, near - point), normal(3, 4)
    torch.testing.assert_close(tangent.project(v), blo.Affine(A, b).tangent(near, v).project(v), rtol=1e-12, atol=1e-12)
    assert [int(c) for c in tangent.counts()] == [2, 2, 0]


def test_the_apex_of_a_pyramid_holds_everything() -> None:
    """Four planes meet in a point of three dimensions: their normals depend on each other."""
    A = torch.tensor([[1.0, 0, 1], [-1, 0, 1], [0, 1, 1], [0, -1, 1]], dtype=torch.float64)
    pyramid = Halfspaces(A, 1.0)
    z = pyramid.project(torch.tensor([0.1, -0.2, 5.0], dtype=torch.float64))
    torch.testing.assert_close(z, torch.tensor([0.0, 0, 1], dtype=torch.float64), rtol=1e-14, atol=1e-14)
    tangent = pyramid.tangent(z, torch.tensor([0.0, 0, -1], dtype=torch.float64))
    assert tangent.project(normal(0, 3)).abs().max() < 1e-14
    assert [int(c) for c in tangent.counts()] == [0, 3, 0]


def test_rows_that_do_not_hold_are_not_active() -> None:
    z = torch.tensor([0.0, 0.0], dtype=torch.float64)
    halves = Halfspaces(torch.eye(2, dtype=torch.float64), torch.tensor([0.0, 1e-3], dtype=torch.float64))
    tangent = halves.tangent(z, torch.tensor([-1.0, 0.0], dtype=torch.float64))
    assert tangent.project(torch.ones_like(z)).tolist() == [0.0, 1.0]
    assert [int(c) for c in tangent.counts()] == [1, 1, 0]


@pytest.mark.parametrize(("gradient", "degenerate"), [([-1.0, -2.0], 0), ([-1.0, 0.0], 1), ([0.0, 0.0], 2)])
def test_rows_without_force_are_counted(gradient: list[float], degenerate: int) -> None:
    z = torch.zeros(2, dtype=torch.float64)
    tangent = Halfspaces(torch.eye(2, dtype=torch.float64)).tangent(z, torch.tensor(gradient, dtype=torch.float64))
    assert int(tangent.counts().degenerate) == degenerate


def test_slack_is_a_distance_whatever_the_scale_of_a_row() -> None:
    z = torch.zeros(1, dtype=torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        row = torch.tensor([[scale]], dtype=torch.float64)
        near, far = Halfspaces(row, 0.9e-7 * scale), Halfspaces(row, 1.1e-7 * scale)
        assert (int(near.tangent(z, -row[0]).counts().active), int(far.tangent(z, -row[0]).counts().active)) == (1, 0)


def test_open_and_empty_rows_bind_nothing() -> None:
    A = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([float("inf"), 2.0, 1.0], dtype=torch.float64)
    z = torch.tensor([3.0, 3.0], dtype=torch.float64)
    halves = Halfspaces(A, b).fit(Layout.of(z, batched=False))
    near = halves.project(z)
    assert near.tolist() == [1.0, 3.0]
    assert [int(c) for c in halves.tangent(near, near - z).counts()] == [1, 1, 0]
    (grad,) = torch.autograd.grad(near.sum() + halves.motion(halves, near).sum(), A)
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("A", "b"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [0.0, -1.0]),
        ([[0.0, 0.0]], [-1.0]),
        ([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [0.0, 0.0, -0.1]),
        ([[1.0, 0.0]], [float("nan")]),
        ([[1.0, 0.0]], [-float("inf")]),
    ],
)
def test_an_empty_set_is_refused_and_unvalidated_never_silent(A: list[list[float]], b: list[float]) -> None:
    rows, right = torch.tensor(A, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    with pytest.raises(InfeasibleError, match="1 of 1 systems have none"):
        Halfspaces(rows, right)
    empty = Halfspaces(rows, right, validate=False)
    z0 = torch.ones(2, dtype=torch.float64)
    assert empty.project(z0).isnan().all()
    lower = blo.LowerProblem(lambda t, z: (z - t).square().sum(), empty)
    with pytest.raises(blo.NonFiniteError):
        blo.argmin(lower, z0.clone().requires_grad_(), z0)


def test_an_empty_lane_leaves_the_others_alone() -> None:
    A = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    z = torch.full((2, 1), 3.0, dtype=torch.float64)
    near = Halfspaces(A, b, validate=False).fit(Layout.of(z, batched=True)).project(z)
    assert near.isnan().tolist() == [[True], [False]] and near[1] == 1.0
    with pytest.raises(InfeasibleError, match="1 of 2 systems"):
        Halfspaces(A, b)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_rows_in_both_precisions(dtype: torch.dtype, scale: float) -> None:
    A, point = normal(0, 40, 20).to(dtype), scale * normal(1, 8, 20, scale=3.0).to(dtype)
    halves = Halfspaces(A, scale * normal(2, 40).abs().to(dtype)).fit(Layout.of(point, batched=True))
    z = halves.project(point)
    assert z.dtype == dtype and z.isfinite().all()
    counts = halves.tangent(z, z - point).counts()
    for row, near, active in zip(point.double().numpy(), z, counts.active, strict=True):
        truth = oracles.project_polyhedron(row, A.double().numpy(), halves.b[0].double().numpy())
        np.testing.assert_allclose(near, truth, rtol=0, atol=scale * (1e-4 if dtype == torch.float32 else 1e-12))
        norms = np.linalg.norm(A.double().numpy(), axis=1)
        held = (A.double().numpy() @ truth - halves.b[0].double().numpy()) / norms > -1e-9 * scale
        assert active == held.sum()


REPEATED = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
VERTEX = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
TIES = {  # rows, right-hand sides, the slopes of z[0] left and right of the tie
    "a row twice": (REPEATED, lambda t: torch.stack([1 + t, 1 + 0 * t]), (1.0, 0.0)),
    "a row both ways": (REPEATED, lambda t: torch.stack([1 + t, 1 - t]), (1.0, -1.0)),
    "a third row through a vertex": (VERTEX, lambda t: torch.stack([1 + 0 * t, 1 + 0 * t, 2 + t]), (0.5, 0.0)),
}


def slope_at(rows: torch.Tensor, right: Callable[[torch.Tensor], torch.Tensor], theta: float) -> blo.Hypergradient:
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - 5.0).square().sum(), lambda t: blo.Halfspaces(rows, right(t)))
    at, z0 = torch.tensor(theta, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    return blo.value_and_hypergrad(lambda t, z: z[0], lower, at, z0)


@pytest.mark.parametrize("distance", [1e-9, 9e-8])
@pytest.mark.parametrize("name", TIES)
def test_rows_that_depend_on_each_other_have_a_derivative_beside_their_tie(name: str, distance: float) -> None:
    rows, right, (before, behind) = TIES[name]
    for theta, truth in ((-distance, before), (distance, behind)):
        out = slope_at(rows, right, theta)
        assert out.grad.item() == pytest.approx(truth, abs=1e-9) and out.report.ok


@pytest.mark.parametrize("name", TIES)
def test_rows_that_theta_parts_are_degenerate_where_they_tie(name: str) -> None:
    with pytest.warns(blo.errors.DegenerateWarning, match="depend on others"):
        assert slope_at(*TIES[name][:2], 0.0).report.degenerate == 1


@pytest.mark.parametrize(
    ("rows", "right", "truth"),
    [
        (REPEATED, lambda t: torch.stack([1 + t, 1 + t]), 1.0),
        (REPEATED * torch.tensor([[1.0], [-1.0]]), lambda t: torch.stack([1 + t, -1 - t]), 1.0),
        (VERTEX, lambda t: torch.stack([1 + t, 1 + t, 2 + 2 * t]), 1.0),
    ],
    ids=["a row twice", "an equation by two rows", "a vertex as a whole"],
)
def test_rows_that_go_on_to_depend_on_each_other_have_a_derivative(
    rows: torch.Tensor, right: Callable[[torch.Tensor], torch.Tensor], truth: float
) -> None:
    out = slope_at(rows, right, 0.0)
    assert out.grad.item() == pytest.approx(truth, abs=1e-9) and out.report.ok


def test_a_complex_theta_moves_rows_that_depend_on_each_other() -> None:
    def at(*right: Callable[[torch.Tensor], torch.Tensor]) -> blo.Hypergradient:
        theta, z0 = torch.tensor(1 + 1j, dtype=torch.complex128), torch.zeros(2, dtype=torch.float64)
        lower = blo.LowerProblem(
            lambda t, z: 0.5 * (z - 5.0).square().sum(),
            lambda t: Halfspaces(REPEATED, torch.stack([part(t) for part in right])),
        )
        return blo.value_and_hypergrad(lambda t, z: z[0], lower, theta, z0)

    out = at(torch.real, torch.real)
    assert out.grad.item() == pytest.approx(1.0, abs=1e-9) and out.report.ok
    with pytest.warns(blo.errors.DegenerateWarning, match="depend on others"):
        at(torch.real, torch.imag)
