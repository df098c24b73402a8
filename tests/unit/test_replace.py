"""`dataclasses.replace` of every public dataclass gives what a fresh construction gives."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import torchopt
from torch import Tensor

import blo
from blo._layout import Layout
from tests.strategies import normal

THETA, Z = normal(1, 3), normal(2, 3)
A, B = normal(3, 2, 3), normal(4, 2).abs()
FIXED = blo.ProjectedGradient(0.1, 3, None)


def plain(theta: Tensor, z: Tensor, weight: float = 1.0) -> Tensor:
    return weight * (z - theta).square().sum(-1) + z.square().square().sum(-1)


def steeper(theta: Tensor, z: Tensor, weight: float = 1.0) -> Tensor:
    return 2 * plain(theta, z, weight)


def both(theta: Tensor, z: Tensor, weight: float = 1.0) -> tuple[Tensor, str]:
    return plain(theta, z, weight), "aux"


SQUARES = blo.LowerProblem.least_squares(lambda theta, z: z - theta).objective
LOWER: dict[str, dict[str, Any]] = {
    "plain": {"objective": plain},
    "batches": {"objective": plain, "batches": [1.0, 3.0]},
    "aux": {"objective": both, "has_aux": True},
    "batches and aux": {"objective": both, "has_aux": True, "batches": [1.0, 3.0]},
    "least squares": {"objective": SQUARES},
}
CHANGES: dict[str, list[Any]] = {
    "objective": [steeper, both, SQUARES],
    "constraint": [blo.Box(-0.1, 0.1)],
    "penalty": [blo.L1(0.1)],
    "batched": [True],
    "strong_convexity": [2.0, None],
    "batches": [[5.0, 7.0], lambda step: 2.0, None],
    "has_aux": [True, False],
}


def outcome(arguments: dict[str, Any], before: blo.LowerProblem | None = None) -> Any:
    """Return the problem and what three steps give from a fresh construction, or from `replace`; or the error."""
    try:
        lower = blo.LowerProblem(**arguments) if before is None else dataclasses.replace(before, **arguments)
        start = torch.stack([Z, 2 * Z]) if lower.batched else Z
        return lower, blo.argmin(lower, THETA, start, solver=FIXED, gradient=blo.Zero()).tolist()
    except (blo.StructureError, TypeError) as error:
        return str(error).splitlines()[0]


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("kind", LOWER)
def test_a_lower_problem_with_another_field_is_a_fresh_one(kind: str, field: str) -> None:
    before = blo.LowerProblem(**LOWER[kind])
    assert dataclasses.replace(before) == before
    for value in CHANGES[field]:
        assert outcome({field: value}, before) == outcome({**LOWER[kind], field: value})


def test_a_linearised_problem_takes_the_shape_of_lanes_and_knows_only_its_own_convexity() -> None:
    batch = torch.stack([Z, 2 * Z])
    for objective in (plain, SQUARES):
        lower = blo.LowerProblem(objective, batched=True, strong_convexity=1.5)
        model = lower.linearize(batch, 2.0)
        assert model.modulus == dataclasses.replace(model, constraint=blo.NonNegative()).modulus == 2.0
        assert dataclasses.replace(model, objective=plain).modulus is None
        assert dataclasses.replace(model, objective=plain, strong_convexity=1.5).modulus == 1.5
        late = dataclasses.replace(blo.LowerProblem(objective).linearize(batch, 2.0), batched=True)
        assert outcome({}, late)[1] == outcome({}, lower.linearize(batch, 2.0))[1]


def test_residuals_take_the_shape_of_lanes() -> None:
    residual = lambda theta, z: z - theta  # noqa: E731
    for batched in (True, False):
        before = blo.LowerProblem.least_squares(residual, batched=not batched)
        assert dataclasses.replace(before, batched=batched) == blo.LowerProblem.least_squares(residual, batched=batched)


def test_a_set_that_was_fitted_forgets_what_it_prepared_for_other_rows() -> None:
    layout = Layout.of(Z, batched=False)
    for kind in (blo.Affine, blo.Halfspaces):
        again = dataclasses.replace(kind(A, B).fit(layout), A=-2 * A, b=-B)
        torch.testing.assert_close(
            again.fit(layout).project(5 * Z), kind(-2 * A, -B).fit(layout).project(5 * Z), rtol=1e-12, atol=1e-12
        )


ADAM = functools.partial(torch.optim.Adam, lr=0.1)
#: What the constructors need, and what their fields with the default None take.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AmIGO": {"lower_step": 0.1, "upper_step": 0.2},
    "BOME": {"lower_step": 0.1, "upper_step": 0.2},
    "Affine": {"A": A, "b": B, "rtol": 1e-9},
    "Box": {"low": -1.0, "high": 2.0},
    "CG": {"preconditioner": blo.Nystrom()},
    "ElasticNet": {"weight": 0.1, "ridge": 0.2},
    "External": {"function": lambda theta, z: z},
    "F2SA": {"lower_step": 0.1, "upper_step": 0.2, "multiplier": 3.0},
    "GroupLasso": {"weight": 0.1, "groups": torch.tensor([0, 0, 1])},
    "Halfspaces": {"A": A, "b": B},
    "HessianFree": {"curvature": 2.0},
    "Identity": {"scale": 2.0},
    "L1": {"weight": 0.1},
    "L1Ball": {"radius": 0.5, "low": -0.1, "high": 0.2},
    "L2Ball": {"radius": 0.5, "low": -0.1, "high": 0.2},
    "LevenbergMarquardt": {"linear_solver": blo.CG()},
    "Implicit": {"linear_solver": blo.CG()},
    "MASOBA": {"lower_step": 0.1, "upper_step": 0.2, "mixing": 0.3},
    "MirrorDescent": {"step": 0.1},
    "Newton": {"linear_solver": blo.CG()},
    "OneStep": {"step": 0.1},
    "Power": {"scale": 0.1, "exponent": -0.5},
    "ProjectedGradient": {"step": 0.1, "max_steps": 3, "tol": None, "carry": True, "transform": torch.sign},
    "SABA": {"lower_step": 0.1, "upper_step": 0.2, "upper_count": 2, "lower_count": 3},
    "SAMA": {"preconditioner": 2.0},
    "SOBA": {"lower_optimizer": ADAM, "upper_step": 0.2},
    "Simplex": {"total": 1.0, "cap": 0.7},
    "StocBiO": {"lower_step": 0.1, "upper_step": 0.2},
    "TorchOpt": {"optimizer": torchopt.adam(0.1), "steps": 2, "tol": None},
    "TorchOptim": {"factory": ADAM, "steps": 2},
    "Unrolled": {"last": 3},
    "ValueFunction": {"penalty": 1e-3},
}
#: Their constructors take the parts by position, so that `replace` raises TypeError.
BY_POSITION = {
    "Intersection": blo.Intersection(blo.Box(-1.0, 1.0), blo.L2Ball(1.0)),
    "Product": blo.Product(blo.Box(-1.0, 1.0)),
    "SmoothConstraints": blo.SmoothConstraints(lambda z: z.sum()),
}
MODULES = ("blo", "blo.sets", "blo.penalties", "blo.solvers", "blo.linsolve", "blo.gradients", "blo.stochastic")
PUBLIC = {
    name: kind
    for module in map(import_module, (*MODULES, "blo.testing"))
    for name in module.__all__
    if isinstance(kind := getattr(module, name), type) and dataclasses.is_dataclass(kind)
}


def another(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 0.9 * value if isinstance(value, float) else copy.copy(value)


def held(make: Callable[[], Any]) -> Any:
    """Return what the fields of an instance hold, as objects; or the error."""
    try:
        made = make()
    except (blo.StructureError, ValueError) as error:
        return str(error)
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.init}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    return all(a is b or (isinstance(a, float) and a == b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - BY_POSITION.keys() - {"LowerProblem"}))
def test_a_copy_with_another_field_is_a_fresh_construction(name: str) -> None:
    kind = PUBLIC[name]
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    if hasattr(kind, "__post_init__"):
        arguments = ARGUMENTS.get(name, {})
    else:  # any values will do
        arguments = {**{field: object() for field in fields}, **ARGUMENTS.get(name, {})}
    before = kind(**arguments)
    assert all(getattr(before, field) is value for field, value in arguments.items())
    assert same(held(lambda: dataclasses.replace(before)), held(lambda: before))
    for field in fields:
        change = {field: another(getattr(before, field))}
        found = held(lambda change=change: dataclasses.replace(before, **change))  # type: ignore[misc]
        assert same(found, held(lambda change=change: kind(**{**arguments, **change})))  # type: ignore[misc]


@pytest.mark.parametrize("name", BY_POSITION)
def test_a_set_made_of_parts_by_position_has_no_silent_copy(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        dataclasses.replace(BY_POSITION[name])
