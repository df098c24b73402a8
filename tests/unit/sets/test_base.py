"""What every set promises, tried on all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import blo
from blo import tree
from blo._layout import Layout
from blo._multipliers import negligible
from tests import oracles
from tests.strategies import SEEDS, SETS, SetCase, make_set_case, normal, quadratic_cases, set_cases

NAMES = (*SETS, "product")
quick = settings(deadline=None, max_examples=50)


def within(name: str, least: float) -> dict[str, float]:
    """Return tolerances: a factorisation leaves a few more units of rounding than arithmetic on coordinates."""
    tolerance = max(least, 1e-12) if name in ("affine", "halfspaces") else least
    return {"rtol": tolerance, "atol": tolerance}


def solved(case: SetCase) -> tuple[Tensor, blo.sets.Tangent]:
    """Return the projection of the case's point, as the solution of `min |z - point|^2 / 2`, and its tangent."""
    z = case.set.project(case.point)
    return z, case.set.tangent(z, z - case.point)


@quick
@given(set_cases())
def test_the_projection_is_the_one_numpy_finds(case: SetCase) -> None:
    torch.testing.assert_close(case.set.project(case.point), case.nearest, rtol=1e-12, atol=1e-12)


@quick
@given(set_cases())
def test_members_stay_where_they_are(case: SetCase) -> None:
    torch.testing.assert_close(case.set.project(case.member), case.member, **within(case.name, 1e-13))


@quick
@given(set_cases())
def test_projecting_twice_is_projecting_once(case: SetCase) -> None:
    once = case.set.project(case.point)
    torch.testing.assert_close(case.set.project(once), once, **within(case.name, 1e-14))


@quick
@given(set_cases(), SEEDS)
def test_the_tangent_projector_is_symmetric_and_idempotent(case: SetCase, seed: int) -> None:
    _, tangent = solved(case)
    v, w = normal(seed, 2, *case.point.shape)
    once = tangent.project(v)
    torch.testing.assert_close(tangent.project(once), once, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((once * w).sum(-1), (v * tangent.project(w)).sum(-1), rtol=1e-12, atol=1e-12)


@quick
@given(set_cases(), SEEDS)
def test_the_curvature_commutes_with_the_projector(case: SetCase, seed: int) -> None:
    _, tangent = solved(case)
    v = normal(seed, *case.point.shape)
    expected = tangent.curvature * tangent.project(v)
    torch.testing.assert_close(tangent.project(tangent.curvature * v), expected, rtol=1e-10, atol=1e-10)


@quick
@given(set_cases())
def test_the_derivative_of_the_projection_is_the_inverse_on_the_tangent_space(case: SetCase) -> None:
    """Of `min |z - point|^2 / 2` the solution map has the derivative `P (I + K)^-1 P`."""
    z, tangent = solved(case)
    n = z.shape[-1]
    columns = [tangent.project(e.expand_as(z) / (1 + tangent.curvature)) for e in torch.eye(n, dtype=z.dtype)]
    formula = torch.stack(columns, dim=-1)
    for index in range(z[..., 0].numel()):
        one = case.lane(index)
        point = case.point.reshape(-1, n)[index]
        by_autodiff = torch.func.jacrev(one.project)(point)
        by_differences = oracles.central_difference(
            lambda p, one=one: one.project(torch.as_tensor(p)).numpy(), point.numpy(), step=1e-5
        )
        np.testing.assert_allclose(by_autodiff, by_differences, rtol=0, atol=1e-8)
        np.testing.assert_allclose(formula.reshape(-1, n, n)[index], by_differences, rtol=0, atol=1e-8)


@quick
@given(quadratic_cases())
def test_tangent_curvature_and_motion_assemble_the_derivative_of_the_solution(
    case: oracles.QuadraticCase,
) -> None:
    """`dz/dtheta = N - (P (H + K) P)^+ (B + H N)`, column by column, against a re-solved problem."""
    theta = case.theta
    z = torch.as_tensor(case.solution(theta))
    layout = Layout.of(z, batched=False)
    origin = case.constraint(case.start()).fit(layout)
    tangent = origin.tangent(z, torch.as_tensor(case.gradient(theta, z.numpy())))
    N = torch.func.jacrev(lambda t: case.constraint(t).fit(layout).motion(origin, z))(case.start()).numpy()
    P = torch.stack([tangent.project(e) for e in torch.eye(len(z), dtype=z.dtype)], dim=-1).numpy()
    K = np.asarray(tangent.curvature) * np.eye(len(z))
    H = case.hessian(theta)
    B = oracles.central_difference(lambda t: case.gradient(t, z.numpy()), theta)
    dz = N - np.linalg.pinv(P @ (H + K) @ P, rcond=1e-10) @ P @ (B + H @ N)
    np.testing.assert_allclose(dz, oracles.central_difference(case.solution, theta), rtol=0, atol=1e-9)


@quick
@given(set_cases())
def test_a_set_has_not_moved_from_itself(case: SetCase) -> None:
    z, _ = solved(case)
    assert torch.equal(case.set.motion(case.set, z), torch.zeros_like(z))


@quick
@given(quadratic_cases())
def test_counts_agree_with_the_rows_of_the_kkt_system(case: oracles.QuadraticCase) -> None:
    found = case.solve(case.theta)
    z = torch.as_tensor(found.z)
    slope = torch.as_tensor(case.gradient(case.theta, found.z))
    counts = case.constraint(case.start()).tangent(z, slope).counts()
    assert [int(count) for count in counts] == [len(z) - len(found.rows), len(found.rows), 0]


@quick
@given(set_cases())
def test_a_batch_is_as_good_as_a_loop(case: SetCase) -> None:
    if not case.lanes:
        return
    z, tangent = solved(case)
    v = normal(0, *z.shape)
    curved = torch.as_tensor(tangent.curvature) * torch.ones_like(z)
    for index in range(case.lanes[0]):
        one = case.lane(index)
        row = one.project(case.point[index])
        torch.testing.assert_close(z[index], row, **within(case.name, 1e-14))
        alone = one.tangent(row, row - case.point[index])
        torch.testing.assert_close(tangent.project(v)[index], alone.project(v[index]), **within(case.name, 1e-13))
        flat = torch.as_tensor(alone.curvature) * torch.ones_like(row)
        torch.testing.assert_close(curved[index], flat, rtol=1e-13, atol=1e-13)
        assert [int(c[index]) for c in tangent.counts()] == [int(c) for c in alone.counts()]


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_points_is_a_loop(name: str) -> None:
    case = make_set_case(name, (), 4, seed=1)
    points = torch.stack([case.point, case.member, -case.point])

    def pieces(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = case.set.project(point)
        return z, case.set.tangent(z, z - point).project(case.member), case.set.motion(case.set, z)

    for mapped, *rows in zip(torch.vmap(pieces)(points), *map(pieces, points), strict=True):
        torch.testing.assert_close(mapped, torch.stack(rows), **within(name, 1e-14))


@pytest.mark.parametrize("kind", ["box", "ball", "simplex"])
@pytest.mark.parametrize("batch", [None, 2])
def test_vmap_over_the_parameters_of_a_set_is_a_loop(kind: oracles.Kind, batch: int | None) -> None:
    case = oracles.draw(kind, 3, 2, seed=2)
    thetas = case.start() + normal(3, 4, 2, scale=0.1)
    point = normal(4, *([] if batch is None else [batch]), 3, scale=3.0)
    layout = Layout.of(point, batched=batch is not None)

    def project(theta: Tensor) -> Tensor:
        return case.constraint(theta).fit(layout).project(point)

    def parameters(theta: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree.flatten(case.constraint(theta).fit(layout))[0])

    # A set is a tree of its tensors: the mapped ones make a set with one more lane axis.
    spec = tree.flatten(case.constraint(case.start()).fit(layout))[1]
    mapped = tree.unflatten(torch.vmap(parameters)(thetas), spec)
    rows = torch.stack([project(theta) for theta in thetas])
    torch.testing.assert_close(torch.vmap(project)(thetas), rows, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(mapped.project(point.expand(4, *point.shape)), rows, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_projection_and_tangent_can_be_differentiated_twice(name: str, seed: int) -> None:
    case = make_set_case(name, (2,), 3, seed=seed)
    near = case.set.project(case.point)
    z, slope = near.clone().requires_grad_(), (near - case.point).requires_grad_()

    def bent(z: Tensor, gradient: Tensor) -> Tensor:
        tangent = case.set.tangent(z, gradient)
        return tangent.project(gradient * z) + tangent.curvature * z**2

    point = case.point.clone().requires_grad_()
    assert gradcheck(case.set.project, point) and gradgradcheck(case.set.project, point)
    # The step stays within the slack, so that the difference quotient does not change the active set.
    assert gradcheck(bent, (z, slope), eps=1e-8, atol=1e-5) and gradgradcheck(bent, (z, slope), eps=1e-8, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "halfspaces"])
def test_nothing_looks_at_values(name: str) -> None:
    """On the meta device there are none, so a host synchronisation would raise.

    `Halfspaces` must look at its search for active rows, as a solver looks at its convergence.
    """
    z = torch.empty(2, 3, device="meta")
    none = torch.empty(2, device="meta")
    sets = {
        "free": blo.Free(),
        "box": blo.Box(z, z, validate=False),
        "around": blo.Box.around(z, 0.1, 0.0, 1.0, validate=False),
        "nonnegative": blo.NonNegative(),
        "ball": blo.L2Ball(none, z, validate=False),
        "simplex": blo.Simplex(none, validate=False),
        "capped simplex": blo.Simplex(none, z, validate=False),
        "l1 ball": blo.L1Ball(none, z, validate=False),
        "cut ball": blo.L2Ball(none, z, z, z, validate=False),
        "cut l1 ball": blo.L1Ball(none, z, z, 1.0, validate=False),
        "affine": blo.Affine(z, none, validate=False),
        "product": blo.Product(blo.Simplex(none, validate=False), blo.Box(z, 2.0, validate=False)),
    }
    trees = (z, z) if name == "product" else z
    fitted = sets[name].fit(Layout.of(trees, batched=True))
    flat = torch.cat([z, z], -1) if name == "product" else z
    tangent = fitted.tangent(fitted.project(flat), flat)
    assert tangent.project(flat).shape == fitted.motion(fitted, flat).shape == flat.shape
    assert all(count.shape == (2,) for count in tangent.counts())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_z_is_kept(name: str, dtype: torch.dtype) -> None:
    z = torch.rand(2, 3).to(dtype)
    radius = torch.full((2,), 0.5, dtype=dtype)
    sets = {
        "free": blo.Free(),
        "box": blo.Box(-0.5, 0.5),
        "around": blo.Box.around(z, 0.1, 0.0, 1.0),
        "nonnegative": blo.NonNegative(),
        "ball": blo.L2Ball(radius),
        "simplex": blo.Simplex(radius),
        "capped simplex": blo.Simplex(radius, 0.4),
        "l1 ball": blo.L1Ball(radius),
        "cut ball": blo.L2Ball(radius, z, 0.0, 0.9),
        "cut l1 ball": blo.L1Ball(radius, z, 0.0, 0.9),
        "affine": blo.Affine(z, radius),
        "halfspaces": blo.Halfspaces(z, radius),
        "product": blo.Product(blo.L2Ball(0.1)),
    }
    fitted = sets[name].fit(Layout.of(z, batched=True))
    near = fitted.project(z)
    tangent = fitted.tangent(near, near - z)
    assert {near.dtype, tangent.project(z).dtype, fitted.motion(fitted, near).dtype} == {dtype}


def test_parameters_take_the_precision_of_z() -> None:
    z, wide = torch.randn(3), torch.ones(3, dtype=torch.float64)
    sets = blo.Box(-wide, wide), blo.L2Ball(wide[0], wide), blo.Simplex(wide[0]), blo.L1Ball(wide[0], wide)
    cut = blo.L2Ball(wide[0], wide, -wide, wide), blo.L1Ball(1.0, 0.0, -wide, wide), blo.Simplex(1.0, wide)
    for moving in (*sets, *cut, blo.Affine(wide[None], wide[0]), blo.Halfspaces(wide[None], wide[0])):
        assert moving.fit(Layout.of(z, batched=False)).project(z).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "Box.low",
        "L2Ball.radius",
        "L2Ball.center",
        "Simplex.total",
        "Simplex.cap",
        "L1Ball.radius",
        "L2Ball.low",
        "L1Ball.high",
    ],
)
def test_parameters_on_another_device_are_named(name: str) -> None:
    kind, field = name.split(".")
    away = torch.ones((), device="meta")
    others = {"Box": {"high": 1.0}, "L2Ball": {"radius": 1.0}, "L1Ball": {"radius": 1.0}, "Simplex": {}}[kind]
    moving = getattr(blo, kind)(**{**others, field: away}, validate=False)
    with pytest.raises(blo.StructureError, match=f"`{name}` must be on cpu"):
        moving.fit(Layout.of(torch.zeros(3), batched=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_stays_visible(name: str) -> None:
    case = make_set_case(name, (2,), 3, seed=0)
    z, tangent = solved(case)
    broken = case.point.clone()
    broken[0] = torch.nan
    assert case.set.project(broken)[0].isnan().all()
    assert tangent.project(broken)[0].isnan().all()
    torch.testing.assert_close(case.set.project(broken)[1], z[1], **within(name, 0))


def test_a_multiplier_is_negligible_next_to_rounding_or_to_the_residual() -> None:
    gradient = torch.tensor([[1.0, 1e-9, 1e-7], [1.0, 1e-7, 1e-3]], dtype=torch.float64)
    residual = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1e-6]], dtype=torch.float64)
    assert negligible(gradient, gradient, residual).tolist() == [[False, True, False], [False, True, False]]
    small = negligible(1e-12 * gradient, 1e-12 * gradient, 1e-12 * residual)  # relative, not absolute
    assert small.tolist() == [[False, True, False], [False, True, False]]


SMALL = {
    "ball": (blo.L2Ball, lambda p, r: r * p / p.norm()),
    "l1 ball": (blo.L1Ball, lambda p, r: r * torch.tensor([1.0, 0.0, 0.0]).to(p)),
    "simplex": (blo.Simplex, lambda p, r: r * torch.tensor([1.0, 0.0, 0.0]).to(p)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [1e-5, 5e-8, 1e-12])
@pytest.mark.parametrize("name", SMALL)
def test_a_set_smaller_than_its_slack_grows_with_its_radius(name: str, radius: float, dtype: torch.dtype) -> None:
    made, solution = SMALL[name]
    point, v = torch.tensor([1.0, 0.2, -0.5], dtype=dtype), torch.tensor([3.0, -1.0, 2.0], dtype=dtype)
    lower = blo.LowerProblem(lambda r, z: 0.5 * (z - point).square().sum(), lambda r: made(r))
    theta = torch.tensor(radius, dtype=dtype)
    out = blo.value_and_hypergrad(lambda r, z: v @ z, lower, theta, torch.zeros(3, dtype=dtype), on_failure="raise")
    truth = v.double() @ solution(point.double(), 1.0)  # far beside the set, the nearest point is linear in the radius
    assert out.grad.item() == pytest.approx(
        float(truth), rel=5e-5 if radius == 1e-5 or dtype is torch.float32 else 1e-6
    )
