"""Intersections, against the same sets written otherwise, dense optimality systems, and what cannot be told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blo
from blo import Affine, Box, Free, Halfspaces, InfeasibleError, Intersection, L1Ball, L2Ball, NonNegative, Simplex
from blo._layout import Layout
from blo.sets import Set
from blo.testing import check_set
from tests import oracles
from tests.strategies import normal

THETA = torch.tensor([0.3, -0.2], dtype=torch.float64)
ZERO = torch.zeros(4, dtype=torch.float64)
SUM = torch.ones(1, 4, dtype=torch.float64)
ONE = torch.tensor(1e-6, dtype=torch.float64)
ROW = torch.tensor([[0.6, -0.3, 0.2, 0.7]], dtype=torch.float64)


def balls(theta: Tensor, z: Tensor) -> Tensor:
    """Return what the two balls below demand to be at most zero."""
    first = (z - theta[1]).square().sum(-1) - (1 + theta[0]) ** 2
    return torch.stack([first, (z - 0.3 - theta[0]).square().sum(-1) - (0.7 + theta[1]) ** 2], -1)


def ball_and_row(theta: Tensor, z: Tensor) -> Tensor:
    ball = (z - theta[1]).square().sum(-1) - (0.8 + theta[0]) ** 2
    return torch.stack([ball, ((1 + theta[0]) * ROW[0] * z).sum(-1) - 0.1 - theta[1]], -1)


def at_most(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Set]:
    return lambda t: blo.SmoothConstraints(inequalities=function, theta=t)


#: Sets that move with theta, and the same in one piece.
PAIRS: dict[str, tuple[Callable[[Tensor], Set], Callable[[Tensor], Set]]] = {
    "a box and a sum": (
        lambda t: Intersection(Box(0.0, 0.4 + t[0]), Affine(SUM, 1 + t[1])),
        lambda t: Simplex(1 + t[1], 0.4 + t[0]),
    ),
    "a simplex and a box": (
        lambda t: Intersection(Simplex(1 + t[1]), Free(), Intersection(Box(-1.0, 0.4 + t[0]))),
        lambda t: Simplex(1 + t[1], 0.4 + t[0]),
    ),
    "half spaces and the orthant": (
        lambda t: Intersection(Halfspaces(ROW * (1 + t[0]), 0.2 + t[1]), NonNegative()),
        lambda t: Halfspaces(torch.cat([ROW * (1 + t[0]), -torch.eye(4).double()]), torch.cat([0.2 + t[1:], ZERO])),
    ),
    "a ball in a box": (
        lambda t: Intersection(L2Ball(0.5 + t[0], 0.1), Box(-0.3 + t[1], 0.4)),
        lambda t: L2Ball(0.5 + t[0], 0.1, -0.3 + t[1], 0.4),
    ),
    "a cross in a box": (
        lambda t: Intersection(L1Ball(0.5 + t[0]), Box(-0.3 + t[1], 0.45)),
        lambda t: L1Ball(0.5 + t[0], 0.0, -0.3 + t[1], 0.45),
    ),
    "a cross in the orthant": (
        lambda t: Intersection(L1Ball(0.5 + t[0]), NonNegative()),
        lambda t: Halfspaces(torch.cat([SUM, -torch.eye(4).double()]), torch.cat([0.5 + t[:1], ZERO])),
    ),
    "two balls": (
        lambda t: Intersection(L2Ball(1 + t[0], t[1]), L2Ball(0.7 + t[1], 0.3 + t[0])),
        at_most(balls),
    ),
    "a ball and a half space": (
        lambda t: Intersection(L2Ball(0.8 + t[0], t[1]), Halfspaces(ROW * (1 + t[0]), 0.1 + t[1])),
        at_most(ball_and_row),
    ),
    "smooth constraints and a half space": (
        lambda t: Intersection(
            blo.SmoothConstraints(inequalities=lambda t, z: ball_and_row(t, z)[..., :1], theta=t),
            Halfspaces(ROW * (1 + t[0]), 0.1 + t[1]),
        ),
        at_most(ball_and_row),
    ),
}
FAST = [name for name in PAIRS if not name.startswith("smooth")]


def problem(constraint: Callable[[Tensor], Set], seed: int) -> blo.LowerProblem:
    root = normal(seed, 4, 4)
    matrix, slopes, offset = root @ root.mT / 4 + 0.5 * torch.eye(4).double(), normal(seed + 1, 4, 2), normal(seed, 4)

    def objective(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * z @ matrix @ z - (slopes @ theta + 2 * offset) @ z

    return blo.LowerProblem(objective, constraint)


def weight(z: Tensor) -> Tensor:
    return (z * torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)).sum() + z.square().sum()


@pytest.mark.parametrize("name", PAIRS)
def test_projections_are_those_of_the_set_in_one_piece(name: str) -> None:
    points = torch.cat([normal(0, 6, 4, scale=2.0), normal(1, 2, 4, scale=0.1)])
    found, truth = (made(THETA).fit(Layout.of(points, batched=True)) for made in PAIRS[name])
    near = found.project(points)
    torch.testing.assert_close(near, truth.project(points), rtol=0, atol=1e-10)
    assert (near - points).norm(dim=-1).max() > 0.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAST)
def test_hypergradients_are_those_of_the_set_in_one_piece(name: str, seed: int) -> None:
    """The solution is found in one piece, so that only the derivatives differ."""
    outs = []
    start = ZERO
    for constraint in reversed(PAIRS[name]):
        start = blo.argmin(problem(constraint, seed), THETA, start, gradient=blo.Zero())
        outs.append(
            blo.value_and_hypergrad(lambda t, z: weight(z), problem(constraint, seed), THETA, start, on_failure="raise")
        )
    torch.testing.assert_close(outs[1].z, outs[0].z, rtol=0, atol=1e-9)
    torch.testing.assert_close(outs[1].grad, outs[0].grad, rtol=1e-8, atol=1e-8)
    counts = [[int(count) for count in (out.report.free, out.report.active, out.report.degenerate)] for out in outs]
    assert counts[0] == counts[1] and counts[0][1] > 0


@pytest.mark.parametrize("name", FAST)
def test_argmin_is_differentiated_twice(name: str) -> None:
    def value(theta: Tensor, constraint: Callable[[Tensor], Set], start: Tensor) -> Tensor:
        return weight(blo.argmin(problem(constraint, 1), theta, start))

    made, whole = PAIRS[name]
    start = blo.argmin(problem(whole, 1), THETA, ZERO, gradient=blo.Zero())
    found, truth = (
        torch.autograd.functional.hessian(lambda t, each=each: value(t, each, start), THETA) for each in (made, whole)
    )
    torch.testing.assert_close(found, truth, rtol=1e-7, atol=1e-7)


def test_the_derivative_is_that_of_the_dense_optimality_system() -> None:
    """Two balls and a plane hold four unknowns: the multipliers weigh the curvature of each ball."""
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    pull = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    centers, radii = np.array([[0.0, 0, 0, 0], [0.6, -0.8, 0, 0]]), np.array([1.0, 1.2])

    def lower(t: Tensor) -> Set:
        sets = [L2Ball(radii[i] * t[i], torch.as_tensor(centers[i])) for i in range(2)]
        return Intersection(*sets, Affine(ROW, 0.2 * t[2]))

    theta = torch.ones(3, dtype=torch.float64, requires_grad=True)
    made = blo.LowerProblem(lambda t, z: 0.5 * z @ matrix @ z - 2 * pull @ z + 0 * t.sum(), lower)
    z = blo.argmin(made, theta, ZERO, on_failure="raise")
    found = torch.stack([torch.autograd.grad(z[i], theta, retain_graph=True)[0] for i in range(4)])

    x, row = z.detach().numpy(), ROW[0].numpy()
    offsets = x - centers
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), radii, rtol=1e-12)
    rows = np.vstack([offsets, row])
    y = np.linalg.lstsq(rows.T, -(matrix.numpy() @ x - 2 * pull.numpy()), rcond=None)[0]
    assert (y[:2] > 0.1).all()
    system = np.block([[matrix.numpy() + y[:2].sum() * np.eye(4), rows.T], [rows, np.zeros((3, 3))]])
    right = np.vstack([np.zeros((4, 3)), np.diag([radii[0] ** 2, radii[1] ** 2, 0.2])])
    np.testing.assert_allclose(found, np.linalg.solve(system, right)[:4], rtol=0, atol=1e-9)


CONFORM: dict[str, Any] = {
    "a ball and a simplex": lambda t: Intersection(L2Ball(0.9 + t[0], t[1]), Simplex(1 + t[0])),
    "a ball and a box": lambda t: Intersection(L2Ball(0.7 + t[0], 0.1), Box(-0.3 + 0.1 * t[1], 0.5 + t[1])),
    "a cross and the orthant": lambda t: Intersection(L1Ball(1 + t[0]), NonNegative()),
}


@pytest.mark.parametrize("name", CONFORM)
def test_intersections_conform(name: str) -> None:
    assert "the face moves as the motion says" in check_set(CONFORM[name], ZERO, theta=THETA, cases=2).properties


def test_a_batch_is_a_loop_and_so_is_vmap() -> None:
    points = normal(3, 5, 4, scale=2.0)
    radius = torch.linspace(0.4, 1.2, 5, dtype=torch.float64)
    made = Intersection(L2Ball(radius), Box(-0.3, 0.5)).fit(Layout.of(points, batched=True))
    near = made.project(points)
    for lane in range(5):
        alone = Intersection(L2Ball(float(radius[lane])), Box(-0.3, 0.5)).fit(Layout.of(points[lane], batched=False))
        torch.testing.assert_close(near[lane], alone.project(points[lane]), rtol=0, atol=1e-12)
    one = Intersection(L2Ball(0.6), Box(-0.3, 0.5)).fit(Layout.of(points[0], batched=False))
    mapped = torch.vmap(torch.func.jacrev(one.project))(points[:2])
    rows = [
        oracles.central_difference(lambda p: one.project(torch.as_tensor(p)).numpy(), p.numpy(), 1e-4)
        for p in points[:2]
    ]
    np.testing.assert_allclose(mapped, np.stack(rows), rtol=0, atol=1e-8)


def test_parts_of_a_tree_are_products() -> None:
    z = {"a": torch.tensor([2.0, -1.0]), "b": torch.tensor([0.5])}
    split = blo.Product({"a": Box(0.0, 1.0), "b": Free()})
    both = Intersection(split, Halfspaces(torch.ones(1, 3), 1.0)).fit(Layout.of(z, batched=False))
    assert isinstance(both, Halfspaces)
    near = both.project(torch.tensor([2.0, -1.0, 0.5]))
    torch.testing.assert_close(near, torch.tensor([1.0, 0.0, 0.0]))


def test_single_precision_stays_single() -> None:
    points = normal(0, 3, 4).float()
    made = Intersection(L2Ball(0.5), NonNegative()).fit(Layout.of(points, batched=True))
    near = made.project(points)
    truth = L2Ball(0.5, low=0.0).fit(Layout.of(points, batched=True)).project(points)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, truth, rtol=0, atol=1e-5)
    assert made.tangent(near, near - points).project(points).dtype == torch.float32


@pytest.mark.parametrize(
    "made",
    [
        Intersection(L2Ball(1.0), L2Ball(1.0, 2.0)),
        Intersection(L2Ball(0.4), Affine(SUM, 1.0)),
        Intersection(Box(0.0, 0.2), Affine(SUM, 1.0)),
        Intersection(
            L2Ball(5.0), Halfspaces(torch.cat([SUM, -SUM]), torch.tensor([0.0, -1.0]).double(), validate=False)
        ),
    ],
    ids=["balls", "a ball and a plane", "a box and a plane", "a part"],
)
def test_an_empty_intersection_is_refused_and_unvalidated_never_silent(made: Intersection) -> None:
    layout = Layout.of(ZERO, batched=False)
    with pytest.raises(InfeasibleError, match="`Intersection` needs a point that lies in all its sets, but in 1 of 1"):
        made.fit(layout)
    assert Intersection(*made.sets, max_cycles=20, validate=False).fit(layout).project(ZERO).isnan().all()


def test_an_empty_lane_leaves_the_others_alone() -> None:
    z = torch.zeros(2, 2, dtype=torch.float64)
    center = torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    made = Intersection(L2Ball(1.0), L2Ball(1.0, center), max_cycles=50, validate=False)
    near = made.fit(Layout.of(z, batched=True)).project(z + torch.tensor([0.5, 2.0]))
    assert near[0].isnan().all()
    torch.testing.assert_close(near[1], torch.tensor([0.5, 0.75**0.5], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_too_few_cycles_are_reported_and_never_silent() -> None:
    made = Intersection(L2Ball(1.0), Simplex(1.5), max_cycles=1, validate=False)
    lower = blo.LowerProblem(lambda t, z: (z - t * ROW[0]).square().sum(), made)
    with pytest.raises(blo.NonFiniteError, match="`Intersection`"):
        blo.argmin(lower, torch.tensor(5.0, requires_grad=True).double(), ZERO + 3.0)


def test_balls_that_touch_at_the_solution_are_degenerate() -> None:
    """One lies in the other and they share a normal: only the smaller one bends the face, but nothing tells so."""
    both = Intersection(L2Ball(1.0), L2Ball(2.0, torch.tensor([-1.0, 0.0], dtype=torch.float64)))
    z = torch.tensor([1.0, 0.0], dtype=torch.float64)
    tangent = both.fit(Layout.of(z, batched=False)).tangent(z, torch.tensor([-3.0, 0.0], dtype=torch.float64))
    assert [int(count) for count in tangent.counts()] == [1, 1, 2]


def test_faces_that_theta_parts_are_degenerate_where_they_tie() -> None:
    def out(shift: float) -> blo.Hypergradient:
        lower = blo.LowerProblem(
            lambda t, z: 0.5 * (z - 5.0).square().sum(),
            lambda t: Intersection(L1Ball(1.0 + 0 * t), Halfspaces(torch.ones(1, 2).double(), 1.0 + t)),
        )
        at, z0 = torch.tensor(shift, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        return blo.value_and_hypergrad(lambda t, z: z[0], lower, at, z0)

    with pytest.warns(blo.errors.DegenerateWarning, match="depend on others"):
        assert out(0.0).report.degenerate >= 1
    assert out(-0.05).grad.item() == pytest.approx(0.5, abs=1e-9) and out(0.05).grad.item() == pytest.approx(
        0, abs=1e-9
    )


def test_faces_that_are_nearly_parallel_take_few_cycles() -> None:
    """Without momentum each cycle shifts 1e-3 of a force of 4 from one face to the other."""
    both = Intersection(L1Ball(1.0), Halfspaces(torch.ones(1, 2).double(), 1.001), max_cycles=300)
    near = both.fit(Layout.of(ZERO[:2], batched=False)).project(torch.tensor([5.0, 4.5], dtype=torch.float64))
    torch.testing.assert_close(near, torch.tensor([0.75, 0.25], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", [(), (Free(), 3), (blo.L1(1.0),), (Box,)])
def test_anything_but_sets_is_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(blo.StructureError, match="`Intersection` takes one or more sets"):
        Intersection(*parts)


@pytest.mark.parametrize("cycles", [0, 1.5, -3])
def test_a_number_of_cycles_is_whole_and_positive(cycles: Any) -> None:
    with pytest.raises(ValueError, match="`max_cycles` must be at least 1"):
        Intersection(Free(), max_cycles=cycles)


def test_of_what_has_no_bounds_everything_is_left() -> None:
    assert isinstance(Intersection(Free(), Box(-float("inf"), float("inf"))).fit(Layout.of(ZERO, batched=False)), Free)


def test_an_intersection_is_as_small_as_its_smallest_part() -> None:
    layout = Layout.of(ZERO, batched=False)
    for parts in ((L2Ball(1.0), L2Ball(1e-6, 0.1)), (L2Ball(1e-6, 0.1), L2Ball(1.0))):
        extent = Intersection(*parts).fit(layout).extent
        assert extent is not None and float(extent) == pytest.approx(2e-6)


def test_flat_sets_in_one_piece_keep_the_extent_of_the_smallest() -> None:
    """In a small set every point is near every other, so the residual is measured in a unit that the extent gives."""
    slope = torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    sets = (Simplex(1e-6), Intersection(Simplex(1e-6), Box(0.0, 1.0)), Intersection(Simplex(ONE), Box(0.0, 1.0)))
    wrong = torch.tensor([1e-6, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = [
        blo.value_and_hypergrad(
            lambda t, z: z.sum() + 0 * t,
            blo.LowerProblem(lambda t, z: z @ slope, each),
            THETA[0],
            wrong,
            solver=blo.Given(),
            gradient=blo.Zero(),
        ).report
        for each in sets
    ]
    assert found[0].lower_residual is not None and found[0].lower_residual > 0.1
    assert [each.lower_residual for each in found[1:]] == pytest.approx([found[0].lower_residual] * 2, rel=1e-9)


def test_the_extent_of_each_problem_is_mapped_over() -> None:
    def residual(total: Tensor) -> Tensor:
        made = Intersection(Simplex(total), Box(0.0, 3.0), validate=False).fit(Layout.of(ZERO, batched=False))
        assert made.extent is not None
        return torch.as_tensor(made.extent)

    totals = torch.tensor([1e-6, 2.0], dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(residual)(totals), (2**0.5 * totals).unsqueeze(-1))


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-9])
def test_a_part_that_z_does_not_touch_does_not_move_it(size: float) -> None:
    """Without a gradient, z follows the parts that it touches, also where it is close to others in a small set."""
    at, layout = torch.tensor([0.6, 0.8], dtype=torch.float64), Layout.of(torch.zeros(2).double(), batched=False)

    def made(theta: Tensor) -> Set:
        return Intersection(L2Ball(size * (1 + theta[0])), L2Ball(size * (1 + theta[1]), 0.6 * size * at)).fit(layout)

    def moved(theta: Tensor) -> Tensor:
        return made(theta).motion(made(torch.zeros_like(theta)), size * at)

    found = torch.autograd.functional.jacobian(moved, torch.zeros(2).double())
    torch.testing.assert_close(found / size, torch.stack([at, torch.zeros_like(at)], -1), rtol=0, atol=1e-6)


def test_what_is_loose_enough_is_not_loosened() -> None:
    layout = Layout.of(ZERO, batched=False)
    fitted = Intersection(L2Ball(1.0), Box(0.0, 0.4)).fit(layout)
    assert fitted.loosened(0.0) is fitted
    assert fitted.loosened(1e-3) is not fitted
