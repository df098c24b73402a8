"""Hypergradients in single and half precision, with theta coarser than z and under autocast, against closed forms."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo._layout import Layout

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
C = torch.tensor([3.0, 2.0], dtype=F64)
#: Strategies that subtract gradients in theta.
DIFFERENCES = {
    "direct": blo.Implicit(products="finite-difference"),
    "cg": blo.Implicit(blo.CG(), products="finite-difference"),
    "value function": blo.ValueFunction(two_sided=True),
}


def gradient_of(
    entry: str, theta: Tensor, z0: Tensor, gradient: Any, *, moving: bool = False, batched: bool = False
) -> Tensor:
    """Return the gradient of `<c, z*>` where `exp(z*) = theta^2`, or where the bound `log(theta) <= z` holds z*.

    The closed form is `2 c / theta`, or `c / theta` on the bound; of each row of a batch.
    """

    def objective(t: Tensor, z: Tensor) -> Tensor:
        values = z.exp() - t.square() * z
        return values.sum(-1) if batched else values.sum()

    def upper(t: Tensor, z: Tensor) -> Tensor:
        return (C.to(z) * z).sum()

    # Above theta = 1 the bound lies below the solution 2 log(theta), which it holds: z* = log(theta).
    constraint: Any = (lambda t: blo.Box(-5.0, t.to(z0.dtype).log())) if moving else blo.Free()
    lower = blo.LowerProblem(objective, constraint, batched=batched)
    if entry == "argmin":
        theta = theta.clone().requires_grad_()
        upper(theta, blo.argmin(lower, theta, z0, gradient=gradient)).backward()
        assert theta.grad is not None
        return theta.grad
    out = blo.value_and_hypergrad(upper, lower, theta, z0, gradient=gradient)
    assert out.report.ok
    grad: Tensor = out.grad
    return grad


@pytest.mark.parametrize("moving", [False, True], ids=["free", "moving"])
@pytest.mark.parametrize("batched", [False, True], ids=["one", "batched"])
@pytest.mark.parametrize("entry", ["value_and_hypergrad", "argmin"])
@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("dtypes", [(BF16, F32), (F16, F32), (BF16, F64), (F32, F64)], ids=str)
def test_differences_bear_a_theta_that_is_coarser_than_z(
    dtypes: tuple[torch.dtype, torch.dtype], name: str, entry: str, batched: bool, moving: bool
) -> None:
    """The gradients that are subtracted differ by less than the rounding of theta."""
    coarse, fine = dtypes
    theta = torch.tensor([1.25, 2.5], dtype=coarse)
    z0 = torch.zeros(3, 2, dtype=fine) if batched else torch.zeros(2, dtype=fine)
    found = gradient_of(entry, theta, z0, DIFFERENCES[name], moving=moving, batched=batched)  # without a warning
    truth = (3 if batched else 1) * (1 if moving else 2) * C / theta.double()
    assert found.dtype is coarse
    limit = 2 * torch.finfo(coarse).eps + (1e-3 if fine is F32 else 1e-6)
    torch.testing.assert_close(found.double(), truth, rtol=limit, atol=0)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_an_objective_that_takes_theta_in_its_own_dtype_alone_is_refused(name: str) -> None:
    data = torch.ones(2, 2, dtype=BF16)
    lower = blo.LowerProblem(lambda t, z: (data @ t).float().sum() * z.sum() + z.square().sum())
    theta = torch.ones(2, dtype=BF16)
    with pytest.raises(blo.StructureError, match=r"need theta in the precision of z, torch.float32, but theta"):
        blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, torch.zeros(2), gradient=DIFFERENCES[name])


@pytest.mark.parametrize("dtypes", [(BF16, F32), (F16, F32), (BF16, F64), (F32, F64)], ids=str)
def test_a_check_moves_a_theta_that_is_coarser_than_z(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """A step of 1e-3 does not move a theta of bfloat16."""
    coarse, fine = dtypes
    lower = blo.LowerProblem(lambda t, z: (z.exp() - t.square() * z).sum())
    theta, z0 = torch.tensor([1.25, 2.5], dtype=coarse), torch.zeros(2, dtype=fine)
    assert blo.check_hypergrad(lambda t, z: (C.to(z) * z).sum(), lower, theta, z0).ok
    wrong = blo.check_hypergrad(lambda t, z: (C.to(z) * z).sum(), lower, theta, z0, gradient=blo.HessianFree())
    assert not wrong.ok


X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=F64), torch.linspace(-1, 1, 40, dtype=F64)
SOLVED: dict[str, dict[str, Any]] = {
    "default": {},
    "reverse": {"gradient": blo.Implicit(blo.CG())},
    "forward": {"gradient": blo.Implicit(products="forward")},
    "differences": {"gradient": blo.Implicit(products="finite-difference")},
    "unrolled": {"gradient": blo.Unrolled()},
    "checkpoint": {"gradient": blo.Unrolled(checkpoint=True)},
    "value function": {"gradient": blo.ValueFunction(two_sided=True)},
    "newton": {"solver": blo.Newton(tol=1e-5)},
    "fista": {"solver": blo.FISTA(tol=1e-5)},
}


def ridge(dtype: torch.dtype, *, batched: bool = False) -> blo.LowerProblem:
    """Minimise `sum w (X z - Y)^2 / 2 + |z|^2 / 20`, where `w = exp(theta)` weighs the data."""
    x, y = X.to(dtype), Y.to(dtype)

    def objective(t: Tensor, z: Tensor) -> Tensor:
        fit = torch.nn.functional.linear(z, x)
        return 0.5 * (t.exp() * (fit - y).square()).sum(-1) + 0.05 * z.square().sum(-1)

    return blo.LowerProblem(objective, batched=batched)


def slopes_of_ridge() -> Tensor:
    """Return the gradient of `sum z*` at theta = 0: each entry is minus the residual of a datum times `q . x`."""
    inverse = torch.linalg.inv(X.T @ X + 0.1 * torch.eye(6, dtype=F64))
    return (Y - X @ inverse @ X.T @ Y) * (X @ inverse.sum(-1))


@pytest.mark.parametrize("batched", [False, True], ids=["one", "batched"])
@pytest.mark.parametrize("entry", ["value_and_hypergrad", "argmin"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("name", SOLVED)
def test_a_solve_with_a_tolerance_is_made_and_differentiated_without_autocast(
    name: str, dtype: torch.dtype, entry: str, batched: bool
) -> None:
    """Autocast neither hinders it nor blurs its derivative, in which residuals are small beside their terms."""
    theta, z0 = torch.zeros(40), torch.zeros((3, 6) if batched else 6)
    lower = ridge(F32, batched=batched)
    with torch.autocast("cpu", dtype):
        if entry == "argmin":
            theta.requires_grad_()
            total = blo.argmin(lower, theta, z0, **SOLVED[name]).sum()
        else:
            out = blo.value_and_hypergrad(lambda t, z: z.sum(), lower, theta, z0, **SOLVED[name])
            assert out.report.ok
            found = out.grad
    if entry == "argmin":
        total.backward()
        assert theta.grad is not None
        found = theta.grad
    truth = (3 if batched else 1) * slopes_of_ridge()
    assert (found - truth).norm() <= 2e-3 * truth.norm()


def test_an_objective_that_runs_under_autocast_alone_is_solved_under_it() -> None:
    """Data in half precision and weights in single precision need autocast; a warning names the lost precision."""
    lower, upper, theta, z0 = ridge(BF16), (lambda t, z: z.sum()), torch.zeros(40), torch.zeros(6)
    with torch.autocast("cpu", BF16):
        with pytest.warns(blo.ConvergenceWarning, match="the rounding of the gradient, in the precision in which"):
            out = blo.value_and_hypergrad(upper, lower, theta, z0)
        assert not out.report.ok
        assert (out.grad - slopes_of_ridge()).norm() <= 0.1 * slopes_of_ridge().norm()
        for name in DIFFERENCES:
            with (
                warnings.catch_warnings(),
                pytest.raises(blo.StructureError, match="evaluate the objective without autocast"),
            ):
                warnings.simplefilter("ignore")
                blo.value_and_hypergrad(upper, lower, theta, z0, gradient=DIFFERENCES[name])


def test_a_fixed_number_of_steps_is_made_under_autocast() -> None:
    seen = set()

    def objective(t: Tensor, z: Tensor) -> Tensor:
        product = X.float() @ z
        seen.add(product.dtype)
        return (product.float() - t).square().mean()

    with torch.autocast("cpu", BF16):
        blo.argmin(
            blo.LowerProblem(objective),
            torch.zeros(40, requires_grad=True),
            torch.zeros(6),
            solver=blo.ProjectedGradient(0.1, max_steps=5, tol=None),
            gradient=blo.Unrolled(),
        ).sum().backward()
    assert seen == {BF16}


def test_a_check_leaves_autocast() -> None:
    with torch.autocast("cpu", BF16):
        assert blo.check_hypergrad(lambda t, z: z.sum(), ridge(F32), torch.zeros(40), torch.zeros(6)).ok


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("name", ["LBFGS", "GMRES", "Nystrom", "Direct"])
def test_what_factorises_refuses_half_precision_by_name(name: str, dtype: torch.dtype) -> None:
    lower = blo.LowerProblem(lambda t, z: (z - t).square().sum())
    steps = blo.ProjectedGradient(0.25, max_steps=20, tol=None)
    linear = {"GMRES": blo.GMRES(), "Nystrom": blo.Nystrom(rank=2, damping=0.1), "Direct": blo.Direct()}.get(
        name, blo.CG()
    )
    solver = blo.LBFGS(tol=1e-2) if name == "LBFGS" else steps
    with pytest.raises(blo.StructureError, match=f"`{name}` factorises in float32 or float64, but got {dtype}"):
        blo.value_and_hypergrad(
            lambda t, z: z.sum(),
            lower,
            torch.ones(3, dtype=dtype),
            torch.zeros(3, dtype=dtype),
            solver=solver,
            gradient=blo.Implicit(linear),
        )


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_value_function_is_right_in_half_precision_or_says_that_it_is_not(two_sided: bool) -> None:
    """The residual that it asks for is below the least positive number of float16."""
    lower = blo.LowerProblem(lambda t, z: (z.float() - t.float()).square().sum() + z.float().pow(4).sum() / 4)
    theta, z0 = torch.tensor([0.5, 1.5], dtype=F16), torch.zeros(2, dtype=F16)
    root = torch.tensor([0.4533977, 1.0], dtype=F64)  # of z^3 + 2 z = 2 theta
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = blo.value_and_hypergrad(
            lambda t, z: 1e-2 * z.float().sum(),
            lower,
            theta,
            z0,
            solver=blo.ProjectedGradient(0.2, max_steps=200, tol=1e-3),
            gradient=blo.ValueFunction(two_sided=two_sided),
        )
    truth = 1e-2 * 2 / (2 + 3 * root.square())
    right = bool((out.grad.double() - truth).norm() <= 2e-2 * truth.norm())
    assert right or [one.category for one in caught] == [blo.ConvergenceWarning] * len(caught) != []
    assert out.report.ok == (not caught)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize(
    "constraint",
    [
        blo.Simplex(),
        blo.Simplex(100.0),
        blo.Simplex(cap=0.01),
        blo.L1Ball(100.0),
        blo.L1Ball(10.0, low=-0.01, high=0.02),
        blo.L2Ball(10.0),
        blo.L2Ball(1.0, low=-0.01, high=0.02),
        blo.Box(-0.3, 0.3),
        blo.L1(0.1),
        blo.GroupLasso(0.5, torch.arange(3000) % 10),
    ],
    ids=str,
)
def test_a_projection_of_thousands_of_coordinates_is_right_to_the_rounding_of_half_precision(
    constraint: Any, scale: float, dtype: torch.dtype
) -> None:
    """Also the total of a simplex: sums in half precision would move the point off it by 20 units of rounding."""
    z = (scale * torch.randn(3000, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = constraint.fit(Layout.of(z, batched=False)).prox(z, 0.5)
    truth = constraint.fit(Layout.of(z.double(), batched=False)).prox(z.double(), 0.5)
    assert found.dtype is dtype
    assert (found.double() - truth).norm() <= torch.finfo(dtype).eps * truth.norm()


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda one: blo.Halfspaces(one),
        lambda one: blo.Affine(one),
        lambda one: blo.Intersection(blo.L2Ball(1.0), blo.Box(-0.1, 0.1)),
        lambda one: blo.SmoothConstraints(inequalities=lambda z: z.square().sum() - 1),
    ],
    ids=["Halfspaces", "Affine", "Intersection", "SmoothConstraints"],
)
def test_sets_that_factorise_refuse_half_precision(make: Any, dtype: torch.dtype) -> None:
    def solve(rows: Tensor) -> None:
        lower = blo.LowerProblem(lambda t, z: (z - t).square().sum(), make(rows))
        blo.value_and_hypergrad(
            lambda t, z: z.sum(),
            lower,
            torch.ones(3),
            torch.zeros(3, dtype=dtype),
            solver=blo.ProjectedGradient(0.1, 5, tol=None),
        )

    for rows in (torch.ones(1, 3, dtype=dtype), torch.ones(1, 3)):
        with pytest.raises(blo.StructureError, match=r"` factorises in float32 or float64, but got torch.*float16"):
            solve(rows)
