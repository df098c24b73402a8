"""Terms whose parameters, functions of theta, become invalid: an error wherever they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import blo
from blo._autodiff import transforms_active
from blo._term import failing
from tests.integration.problems import EXACT

A = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]], dtype=torch.float64)
GROUPS = torch.tensor([0, 0, 1])
LOW = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
#: Terms that are valid for a positive number only.
TERMS: dict[str, Callable[[Tensor], Any]] = {
    "simplex": lambda t: blo.Simplex(t),
    "simplex with a negative cap": lambda t: blo.Simplex(0.1, cap=t.expand(3)),
    "simplex with small caps": lambda t: blo.Simplex(2 - t, cap=torch.ones(3).double()),
    "simplex with small caps in a tree": lambda t: blo.Simplex(0.5, cap=t.expand(3)),
    "l2 ball": lambda t: blo.L2Ball(t),
    "l2 ball far from its bounds": lambda t: blo.L2Ball(1.0, center=t.expand(3) + 0.5, low=0.0),
    "l1 ball": lambda t: blo.L1Ball(t),
    "l1 ball far from its bounds": lambda t: blo.L1Ball(1.0, center=t.expand(3) + 0.5, low=0.0),
    "box": lambda t: blo.Box(LOW, LOW + t),
    "box around": lambda t: blo.Box.around(t.expand(3), 0.1, 0.0, 2.0),
    "product": lambda t: blo.Product(blo.Box(LOW, LOW + t)),
    "affine": lambda t: blo.Affine(A, torch.stack([t + 1, 2 * (t + 1).clamp(min=1.0)])),
    "halfspaces": lambda t: blo.Halfspaces(torch.stack([A[0], -A[0]]), torch.stack([t, t])),
    "intersection": lambda t: blo.Intersection(blo.L2Ball(1.0), blo.Halfspaces(A[:1], 0.4 * t[None])),
    "l1": lambda t: blo.L1(t),
    "l1 of each coordinate": lambda t: blo.L1(t.expand(3)),
    "elastic net": lambda t: blo.ElasticNet(0.1, t),
    "group lasso": lambda t: blo.GroupLasso(t, GROUPS),
    "group lasso of each group": lambda t: blo.GroupLasso(t.expand(2), GROUPS),
}
ERRORS = (blo.InfeasibleError, ValueError)
Z0 = torch.full((3,), 0.1, dtype=torch.float64)
VALID, INVALID = torch.tensor([1.0, 0.7]).double(), torch.tensor([1.0, -5.0]).double()


def solved(name: str, captured: bool, gradient: blo.gradients.Strategy = EXACT) -> Callable[[Tensor], Tensor]:
    """Return the sum of the solution as a function of a number, which makes the term in the problem or before it."""

    def value(t: Tensor) -> Tensor:
        make = TERMS[name]
        given = make(t) if captured else make
        kind = "penalty" if "lasso" in name or name.startswith(("l1 of", "elastic")) or name == "l1" else "constraint"
        lower = blo.LowerProblem(lambda t, z: (z - t * LOW).square().sum(), **{kind: given})
        solver = blo.ProjectedGradient(0.25, max_steps=4, tol=None) if gradient is not EXACT else None
        return blo.argmin(lower, t, Z0, solver=solver, gradient=gradient).sum()

    return value


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "vmap": torch.vmap,
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(f)),
    "vmap of vmap": lambda f: lambda t: torch.vmap(torch.vmap(f))(t[:, None]),
    "grad": lambda f: lambda t: torch.stack([torch.func.grad(f)(one) for one in t]),
    "jacrev": lambda f: torch.func.jacrev(lambda t: torch.stack([f(one) for one in t])),
    "none": lambda f: lambda t: torch.stack([f(one) for one in t.clone().requires_grad_()]),
}
#: A transform, a strategy, and whether the problem captures the term.
WAYS = [
    ("vmap", EXACT, False),
    ("vmap", EXACT, True),
    ("vmap", blo.Unrolled(), False),
    ("vmap of grad", EXACT, False),
    ("vmap of vmap", EXACT, False),
    ("grad", EXACT, True),
    ("grad", blo.Unrolled(), False),
    ("jacrev", blo.Unrolled(), True),
    ("none", EXACT, False),
]


@pytest.mark.filterwarnings("ignore::blo.BloWarning")
@pytest.mark.parametrize(("transform", "gradient", "captured"), WAYS)
@pytest.mark.parametrize("name", TERMS)
def test_invalid_parameters_are_refused(
    name: str, transform: str, gradient: blo.gradients.Strategy, captured: bool
) -> None:
    function = TRANSFORMS[transform](solved(name, captured, gradient))
    assert torch.isfinite(function(VALID)).all()
    with pytest.raises(ERRORS, match=r"needs|at least"):
        function(INVALID)


def test_values_may_be_left_unread() -> None:
    lower = blo.LowerProblem(
        lambda t, z: (z - t * LOW).square().sum(), lambda t: blo.Simplex(t, validate=False), batched=False
    )
    torch.vmap(lambda t: blo.argmin(lower, t, Z0, on_failure="ignore"))(INVALID)


def test_derivatives_read_no_values_inside_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = []

    def counted(condition: Tensor) -> Tensor:
        inside.append(transforms_active())
        return failing(condition)

    monkeypatch.setattr("blo.sets._simplex.failing", counted)
    lower = blo.LowerProblem(lambda t, z: (z - t * LOW).square().sum(), lambda t: blo.Simplex(t))
    theta = VALID[0].clone().requires_grad_()
    solver = blo.ProjectedGradient(0.25, max_steps=3, tol=None)
    forward = blo.Implicit(blo.CG(), products="forward")
    options: dict[str, Any] = {"solver": solver, "on_failure": "ignore"}
    for gradient in (EXACT, forward, blo.Unrolled(), blo.Unrolled(mode="forward")):
        blo.value_and_hypergrad(lambda t, z: z.square().sum(), lower, theta, Z0, gradient=gradient, **options)
        assert inside == [False]
        inside.clear()
    z = blo.argmin(lower, theta, Z0, gradient=EXACT, **options)
    (slope,) = torch.autograd.grad(z.square().sum(), theta, create_graph=True)
    torch.autograd.grad(slope, theta)
    assert not any(inside)
