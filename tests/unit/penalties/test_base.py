"""What every penalty promises: the proximal operator against a minimiser found by SciPy, the face at the solution."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import blo
from blo._layout import Layout
from blo.penalties import Penalty
from tests.strategies import normal

GROUPS = torch.tensor([0, 1, 0, 2, -1, 1])
NAMES = ("l1", "elastic net", "group lasso")


def make(name: str, seed: int, lanes: tuple[int, ...] = ()) -> tuple[Penalty, Tensor]:
    """Return a penalty with a weight a lane and coordinate (or group), and a point of six coordinates."""
    point = normal(seed, *lanes, 6, scale=2.0)
    weight = normal(seed + 1, *lanes, 6).exp()
    penalty = {
        "l1": lambda: blo.L1(weight),
        "elastic net": lambda: blo.ElasticNet(weight, normal(seed + 2, *lanes, 6).exp()),
        "group lasso": lambda: blo.GroupLasso(weight[..., :3], GROUPS),
    }[name]()
    return penalty.fit(Layout.of(point, batched=bool(lanes))), point


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_the_proximal_point_is_the_minimiser_that_scipy_finds(name: str, seed: int) -> None:
    penalty, point = make(name, seed)
    step = 0.7

    def objective(z: np.ndarray) -> float:
        at = torch.as_tensor(z)
        return float(0.5 * (at - point).square().sum() + step * penalty.value(at))

    near = penalty.prox(point, step)
    best = objective(near.numpy())
    found = scipy.optimize.minimize(objective, near.numpy() + 0.1, method="Powell", options={"xtol": 1e-9, "ftol": 0})
    assert best <= found.fun + 1e-13
    np.testing.assert_allclose(near, found.x, rtol=0, atol=1e-6)
    for scale in (1e-3, 1e-2, 0.1, 1.0):  # strongly convex: away from the minimiser it grows by half the square
        move = scale * normal(seed + 9, 6)
        assert objective((near + move).numpy()) >= best + 0.5 * float(move.square().sum()) - 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_as_good_as_a_loop(name: str) -> None:
    penalty, point = make(name, 3, (4,))
    slope, v = normal(5, 4, 6), normal(6, 4, 6)
    step = normal(7, 4, 1).exp()
    z = penalty.prox(point, step)
    tangent = penalty.tangent(z, slope)
    weights = normal(4, 4, 6).exp()
    ridges = normal(5, 4, 6).exp()
    for i in range(4):
        alone = {
            "l1": lambda i=i: blo.L1(weights[i]),
            "elastic net": lambda i=i: blo.ElasticNet(weights[i], ridges[i]),
            "group lasso": lambda i=i: blo.GroupLasso(weights[i, :3], GROUPS),
        }[name]()
        one = alone.fit(Layout.of(point[i], batched=False))
        row = one.prox(point[i], float(step[i]))
        its = one.tangent(row, slope[i])
        for found, expected in [
            (z[i], row),
            (penalty.value(z)[i], one.value(row)),
            (tangent.project(v)[i], its.project(v[i])),
            (tangent.curve(tangent.project(v))[i], its.curve(its.project(v[i]))),
            (tangent.force(penalty, point)[i], its.force(one, point[i])),
        ]:
            torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
        assert [int(c[i]) for c in tangent.counts()] == [int(c) for c in its.counts()]


@pytest.mark.parametrize("name", NAMES)
def test_vmap_is_a_loop(name: str) -> None:
    penalty, point = make(name, 1)
    points = torch.stack([point, -0.1 * point, 3 * point])

    def pieces(point: Tensor) -> tuple[Tensor, ...]:
        z = penalty.prox(point, 0.5)
        tangent = penalty.tangent(z, point)
        return z, tangent.project(point), tangent.curve(tangent.project(point)), penalty.value(z), *tangent.counts()

    for mapped, *rows in zip(torch.vmap(pieces)(points), *map(pieces, points), strict=True):
        torch.testing.assert_close(mapped, torch.stack(rows), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_the_force_and_the_curvature_are_the_derivatives_of_the_value_along_the_face(name: str) -> None:
    penalty, point = make(name, 2, (2,))
    z = penalty.prox(point, 0.7).requires_grad_()
    tangent = penalty.tangent(z.detach(), point)
    v = tangent.project(normal(3, 2, 6))
    (slope,) = torch.autograd.grad(penalty.value(z).sum(), z, create_graph=True)
    (bent,) = torch.autograd.grad((slope * v).sum(), z)
    assert v.any()
    torch.testing.assert_close(tangent.project(tangent.force(penalty, z)), tangent.project(slope))
    torch.testing.assert_close(tangent.project(tangent.curve(v)), tangent.project(bent), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_everything_can_be_differentiated_twice(name: str) -> None:
    penalty, point = make(name, 4, (2,))
    z = penalty.prox(point, 0.7).detach().requires_grad_()

    def bent(z: Tensor) -> Tensor:
        tangent = penalty.tangent(z, point)
        return tangent.curve(tangent.project(point * z)) + tangent.force(penalty, z)

    live = point.clone().requires_grad_()
    assert gradcheck(lambda p: penalty.prox(p, 0.7), live) and gradgradcheck(lambda p: penalty.prox(p, 0.7), live)
    # The step stays within the slack, so that the difference quotient does not change the support.
    assert gradcheck(bent, z, eps=1e-8, atol=1e-5) and gradgradcheck(bent, z, eps=1e-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_z_is_kept_and_zero_has_derivatives(dtype: torch.dtype) -> None:
    one = torch.ones((), dtype=torch.float64)
    for penalty in (blo.L1(one), blo.ElasticNet(one, one), blo.GroupLasso(one.expand(3), GROUPS), blo.L1(0.5)):
        z = torch.zeros(6, dtype=dtype, requires_grad=True)
        fitted = penalty.fit(Layout.of(z, batched=False))
        (grad,) = torch.autograd.grad(fitted.value(z) + fitted.prox(z, 0.1).sum(), z)
        assert fitted.prox(z, 0.1).dtype == fitted.value(z).dtype == grad.dtype == dtype
        assert grad.isfinite().all()


def test_nothing_looks_at_values() -> None:
    """On the meta device there are none, so a host synchronisation would raise."""
    z = torch.empty(2, 6, device="meta")
    lane = torch.empty(2, device="meta")
    groups = torch.empty(6, dtype=torch.long, device="meta")
    for penalty in (
        blo.L1(lane, validate=False),
        blo.ElasticNet(z, lane, validate=False),
        blo.GroupLasso(torch.empty(3, device="meta"), groups, validate=False),
    ):
        fitted = penalty.fit(Layout.of(z, batched=True))
        tangent = fitted.tangent(fitted.prox(z, 1.0), z)
        assert tangent.curve(tangent.project(z)).shape == z.shape
        assert fitted.value(z).shape == (2,)
        assert all(count.shape == (2,) for count in tangent.counts())


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_stays_visible(name: str) -> None:
    penalty, point = make(name, 0, (2,))
    broken = point.clone()
    broken[0] = torch.nan
    assert penalty.prox(broken, 1.0)[0].isnan().all()
    assert penalty.prox(broken, 1.0)[1].isfinite().all()
    assert penalty.value(broken).isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("penalty", "kept"),
    [
        (blo.L1(0.0), [1, 1, 1, 1]),
        (blo.L1(torch.tensor([0.5, 0.0, 0.5, 0.0]).double()), [0, 1, 0, 1]),
        (blo.ElasticNet(torch.tensor([0.5, 0.0, 0.5, 0.0]).double(), 2.0), [0, 1 / 1.2, 0, 1 / 1.2]),
        (blo.GroupLasso(0.5, torch.tensor([0, 0, 1, -1])), [0, 0, 0, 1]),
        (blo.GroupLasso(torch.tensor([0.5, 0.0]).double(), torch.tensor([0, 0, 1, 1])), [0, 0, 1, 1]),
    ],
)
def test_the_derivative_of_the_proximal_point_of_zero(penalty: Penalty, kept: list[float]) -> None:
    """Solvers start at zero. The norms of a penalty have no derivative there, but the proximal operator has one."""
    zero, step = torch.zeros(4, dtype=torch.float64), 0.1
    fitted = penalty.fit(Layout.of(zero, batched=False))
    truth = torch.diag(torch.tensor(kept, dtype=torch.float64))
    shifts = 1e-6 * torch.eye(4, dtype=torch.float64)
    numeric = torch.stack([(fitted.prox(d, step) - fitted.prox(-d, step)) / 2e-6 for d in shifts], -1)
    torch.testing.assert_close(numeric, truth, rtol=1e-9, atol=1e-9)
    found = torch.func.jacrev(lambda z: fitted.prox(z, step))(zero)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)

    def solution(theta: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: (z - t * a).square().sum() / 2, penalty=penalty)
        solver = blo.ProjectedGradient(step, max_steps=3, tol=None)
        found: Tensor = blo.argmin(lower, theta, zero, solver=solver, gradient=blo.Unrolled())
        return found

    a, origin, h = torch.tensor([1.0, 2.0, -3.0, 4.0]).double(), zero[0], 1e-5
    with torch.no_grad():
        slope = (solution(origin + h) - solution(origin - h)) / (2 * h)
    torch.testing.assert_close(torch.func.jacrev(solution)(origin), slope, rtol=1e-9, atol=1e-9)
