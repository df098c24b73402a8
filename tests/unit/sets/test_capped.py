"""The simplex with caps: vertices, ties, infinite and tiny caps; the rest is tried in `test_base`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from blo import InfeasibleError, Simplex
from blo._layout import Layout
from tests import oracles
from tests.strategies import SEEDS, normal

INF = float("inf")


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_it_carries_z_like_the_projection_of_a_fixed_point(seed: int) -> None:
    point, cap = normal(seed, 5), 0.2 + normal(seed + 1, 5).abs()
    at = torch.cat([0.6 * cap.sum()[None], cap])
    simplex = Simplex(at[0], at[1:])
    z = simplex.project(point)
    by_autodiff = torch.func.jacrev(lambda p: Simplex(p[0], p[1:]).motion(simplex, z))(at)
    by_differences = oracles.central_difference(
        lambda p: oracles.project_capped_simplex(point.numpy(), p[0], p[1:]), at.numpy(), step=1e-6
    )
    np.testing.assert_allclose(by_autodiff, by_differences, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1e8, -1e8])
def test_a_common_shift_changes_nothing(shift: float) -> None:
    point = torch.tensor([0.5, 0.25, -3.0, 0.75], dtype=torch.float64)
    expected = torch.tensor([0.35, 0.25, 0.0, 0.4], dtype=torch.float64)  # the excess of 0.5 is 0.1 and 0.35 short
    simplex = Simplex(1.0, torch.tensor([0.35, 0.5, 0.3, 0.4], dtype=torch.float64))
    torch.testing.assert_close(simplex.project(point + shift), expected, rtol=0, atol=abs(shift) * 1e-15 + 1e-15)


def test_the_largest_coordinates_take_all_when_far_ahead() -> None:
    far = torch.tensor([1e20, 0.0, -1e20])
    assert torch.equal(Simplex(1.0, 0.75).project(far), torch.tensor([0.75, 0.25, 0.0]))


def test_infinite_caps_are_none() -> None:
    point = normal(0, 3, 6)
    plain = Simplex(0.7).project(point)
    torch.testing.assert_close(Simplex(0.7, INF).project(point), plain, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(Simplex(0.7, 0.7).project(point), plain, rtol=1e-14, atol=1e-15)
    cap = torch.tensor([0.1, INF, 0.2, INF, INF, 0.3], dtype=torch.float64).requires_grad_()
    near = Simplex(0.7, cap).project(point)
    capped = torch.where(torch.isfinite(cap), cap, 1e3).detach().numpy()
    truth = [oracles.project_capped_simplex(row, 0.7, capped) for row in point.numpy()]
    np.testing.assert_allclose(near.detach(), truth, rtol=0, atol=1e-14)
    (grad,) = torch.autograd.grad(near.square().sum(), cap)
    assert grad.isfinite().all() and grad.abs().max() > 0.01


def slope(cap: float, total: float, pull: list[float], weight: list[float]) -> blo.Hypergradient:
    """Return dF/dtheta at theta = 1 for caps `cap theta` and a total of `total theta`, one of which may stay."""
    aim, w = torch.tensor(pull, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64)
    lower = blo.LowerProblem(
        lambda t, z: 0.5 * (z - aim * t).square().sum(),
        lambda t: Simplex(total * t if total > 0 else -total, cap * t if cap > 0 else -cap),
    )
    one = torch.tensor(1.0, dtype=torch.float64)
    return blo.value_and_hypergrad(lambda t, z: w @ z, lower, one, torch.zeros(len(pull), dtype=torch.float64))


@pytest.mark.parametrize(
    ("cap", "total", "truth"),
    [(0.5, 1.0, 0.5 * 3 - 0.5), (-0.5, -1.0, 0.0), (0.4, -1.0, 0.4 * 3 - 0.4 - 0.8 * 2), (-0.4, 1.0, 2.0)],
    ids=["both at a vertex", "neither at a vertex", "the caps alone", "the total alone"],
)
def test_caps_and_total_carry_the_solution(cap: float, total: float, truth: float) -> None:
    out = slope(cap, total, [5.0, 4.5, -2.0], [3.0, -1.0, 2.0])
    assert out.grad.item() == pytest.approx(truth, abs=1e-12) and out.report.ok


@pytest.mark.parametrize(("cap", "total"), [(0.5, -1.0), (-0.5, 1.0)])
def test_a_vertex_that_theta_parts_is_degenerate(cap: float, total: float) -> None:
    """Two caps make up the total: with less of them a third coordinate leaves zero, with more one leaves its cap."""
    with pytest.warns(blo.errors.DegenerateWarning, match="depend on others"):
        assert slope(cap, total, [5.0, 4.5, -2.0], [3.0, -1.0, 2.0]).report.degenerate == 1


@pytest.mark.parametrize(
    ("gradient", "degenerate"), [([-1.0, 0.0, 0.5], 0), ([0.0, 0.0, 0.5], 1), ([0.0, 0.0, 0.0], 2)]
)
def test_a_bound_without_force_is_counted(gradient: list[float], degenerate: int) -> None:
    z = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64)
    tangent = Simplex(1.0, 0.6).tangent(z, torch.tensor(gradient, dtype=torch.float64))
    assert [int(c) for c in tangent.counts()] == [0, 3, degenerate]


def test_a_solver_that_stops_beside_a_cap_within_its_tolerance_does_not_hold_it_there() -> None:
    theta, vertex = torch.tensor(1e-9, dtype=torch.float64), torch.tensor([0.7, 0.3], dtype=torch.float64)
    lower = blo.LowerProblem(
        lambda t, z: 0.5 * ((z[0] - 0.7 + t) ** 2 + (z[1] - 0.3 - t) ** 2),
        Simplex(1.0, torch.tensor([0.7, 1.0], dtype=torch.float64)),
    )
    out = blo.value_and_hypergrad(lambda t, z: z[1], lower, theta, vertex, on_failure="raise")
    assert out.grad.item() == pytest.approx(1.0, rel=1e-12)  # z = (0.7 - theta, 0.3 + theta)


@pytest.mark.parametrize("total", [1e-5, 5e-8])
def test_a_set_smaller_than_its_slack_grows_with_its_total(total: float) -> None:
    aim, w = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64), torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    lower = blo.LowerProblem(lambda t, z: 0.5 * (z - aim).square().sum(), lambda t: Simplex(t, 0.6 * t))
    theta = torch.tensor(total, dtype=torch.float64)
    out = blo.value_and_hypergrad(lambda t, z: w @ z, lower, theta, torch.zeros(3).double(), on_failure="raise")
    assert out.grad.item() == pytest.approx(0.6 * 3 - 0.4, rel=1e-6)


def test_a_cap_of_zero_holds_its_coordinate() -> None:
    z, cap = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    tangent = Simplex(1.0, cap).tangent(z, torch.tensor([1.0, 1.0, -5.0], dtype=torch.float64))
    assert [int(c) for c in tangent.counts()] == [1, 2, 0]
    carried = torch.func.jacrev(
        lambda c: tangent.carry(Simplex(1.0, cap), Simplex(1.0, c, validate=False), z)  # it is pressed upwards
    )(cap)
    torch.testing.assert_close(carried, torch.tensor([[0, 0, -0.5], [0, 0, -0.5], [0, 0, 1.0]], dtype=torch.float64))


def test_caps_come_as_a_tree_and_for_each_lane() -> None:
    z = (torch.zeros(2, 3), torch.zeros(2, 1))
    cap = (torch.tensor([[0.2, 0.3, 0.4]]).expand(2, 3), torch.tensor([[0.5], [0.9]]))
    fitted = Simplex(torch.tensor([1.0, 1.2]), cap).fit(Layout.of(z, batched=True))
    near = fitted.project(torch.tensor([[0.0, 0.0, 0.0, 9.0], [0.0, 1.0, 1.0, 9.0]]))
    torch.testing.assert_close(
        near,
        torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0.5], [0.0, 0.0, 0.0, 0.0]])
        + torch.tensor([[0.0] * 4, [0.0, 0.15, 0.15, 0.9]]),
    )


@pytest.mark.parametrize("cap", [-0.1, float("nan"), torch.tensor([0.5, -1.0])])
def test_a_negative_cap_is_refused(cap: float | Tensor) -> None:
    with pytest.raises(InfeasibleError, match="`Simplex` needs cap >= 0"):
        Simplex(1.0, cap)


@pytest.mark.parametrize(
    ("total", "cap", "message"),
    [
        (1.0, 0.3, "add up to `total` at least, but in 1 of 1"),
        (torch.tensor(1.0), torch.tensor([0.3, 0.3, 0.3]), "in 1 of 1"),
        (1.0, (torch.tensor([0.9, -0.1]), torch.tensor([0.9])), "cap >= 0, but 1 of 3"),
    ],
    ids=["numbers", "tensors", "a tree"],
)
def test_caps_that_leave_no_room_are_refused_and_unvalidated_never_silent(
    total: Tensor | float, cap: object, message: str
) -> None:
    z = (torch.zeros(2), torch.zeros(1)) if isinstance(cap, tuple) else torch.zeros(3)
    with pytest.raises(InfeasibleError, match=message):
        Simplex(total, cap).fit(Layout.of(z, batched=False))
    empty = Simplex(total, cap, validate=False).fit(Layout.of(z, batched=False))
    assert empty.project(torch.zeros(3)).isnan().all()


def test_caps_that_make_up_the_total_to_rounding_are_one_point() -> None:
    simplex = Simplex(1.0, 0.1).fit(Layout.of(torch.zeros(10), batched=False))
    torch.testing.assert_close(simplex.project(normal(0, 10).float()), torch.full((10,), 0.1), rtol=0, atol=1e-7)


def test_a_cap_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(blo.StructureError, match=r"`Simplex.cap` must broadcast"):
        Simplex(1.0, torch.ones(4)).fit(Layout.of(torch.zeros(3), batched=False))
