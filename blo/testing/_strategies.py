"""Conformance of gradient strategies: correct where they claim to be, and equal through every entry point."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blo import tree
from blo._argmin import argmin
from blo._check import check_hypergrad
from blo._hypergrad import Hypergradient, value_and_hypergrad
from blo._lower import LowerProblem
from blo._types import Tree
from blo.gradients import Strategy
from blo.sets import Box, L2Ball
from blo.solvers import ProjectedGradient, Solver
from blo.testing._suite import Conformance, Suite, normal

#: The constraint set of each problem for each theta.
_MOVES = {
    "no constraint": None,
    "a box that moves": lambda theta: Box(-0.4 - 0.1 * theta["a"][0] ** 2, 0.3 + 0.1 * theta["b"].square()),
    "a ball that moves": lambda theta: L2Ball(0.5 + 0.1 * theta["b"].square()),
}


def check_strategy(
    strategy: Strategy,
    *,
    exact: bool = True,
    solver: Solver | None = None,
    problems: Sequence[str] = tuple(_MOVES),
    seed: int = 0,
) -> Conformance:
    """Check a gradient strategy on small smooth problems.

    Args:
        strategy: the strategy.
        exact: whether it claims to give the derivative of the solution. Then it must agree with differences of a
            re-solved problem, be adjoint to the linearised solution map, and not depend on the scale of the lower
            objective.
        solver: the lower solver to use; one that solves to rounding by default.
        problems: which of "no constraint", "a box that moves" and "a ball that moves" it is made for.
        seed: of the random problems.

    Raises:
        AssertionError: if a property fails; the message names it.
    """
    suite = Suite(type(strategy).__name__)
    options: dict[str, Any] = {"gradient": strategy, "on_failure": "ignore"}
    options["solver"] = ProjectedGradient(tol=1e-12, max_steps=5000) if solver is None else solver
    for name in problems:
        case = _Case(seed, _MOVES[name])
        if exact:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = check_hypergrad(
                    case.upper, case.lower(), case.theta, case.z0, solver=options["solver"], gradient=strategy
                )
            title = "the hypergradient agrees with differences, is adjoint and free of scale"
            suite.require(title, found.ok, f"on {name}: {found.culprit}\n{found}")
        _entrances(suite, case, options, name)
        _linear(suite, case, options)
        _lanes(suite, case, options)
    return suite.report()


class _Case:
    """`min 1/2 |D z|^2 + sum log cosh(W z - V a) + b sum z`, three problems that share theta = {a, b, index}."""

    def __init__(self, seed: int, constraint: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.W, self.V = 0.5 * normal(generator, 3, 4, 4), normal(generator, 3, 4, 2)
        self.target, self.constraint = normal(generator, 3, 4), constraint
        a, b = 0.5 * normal(generator, 2), 0.5 * normal(generator, 1)[0]
        self.theta = {"a": a, "b": b, "index": torch.tensor([0, 1])}
        self.z0 = torch.zeros(3, 4, dtype=torch.float64)

    def objective(self, lanes: Any) -> Any:
        W, V = self.W[lanes], self.V[lanes]

        def objective(theta: Tree, z: Tensor) -> Tensor:
            inner = (W @ z.unsqueeze(-1)).squeeze(-1) - V @ theta["a"][theta["index"]]
            value: Tensor = 0.5 * z.square().sum(-1) + torch.cosh(inner).log().sum(-1) + theta["b"] * z.sum(-1)
            return value

        return objective

    def lower(self, lanes: Any = slice(None), factor: float = 1.0) -> LowerProblem:
        made = {} if self.constraint is None else {"constraint": self.constraint}
        return LowerProblem(self.objective(lanes), batched=isinstance(lanes, slice), **made)

    def upper(self, theta: Tree, z: Tensor) -> Tensor:
        value: Tensor = (z - self.target).square().sum() + theta["a"].square().sum() + (theta["b"] * z).sum()
        return value


def _entrances(suite: Suite, case: _Case, options: dict[str, Any], name: str) -> None:
    """Check that `value_and_hypergrad` agrees with a backward pass through `argmin`, and leaves no `.grad` behind."""
    live = tree.map(lambda p: p.clone().requires_grad_(p.is_floating_point()), case.theta)
    out: Hypergradient = suite.untouched(
        "arguments are not modified",
        lambda theta, z0: value_and_hypergrad(case.upper, case.lower(), theta, z0, **options),
        (live, case.z0),
    )
    clean = all(leaf.grad is None for leaf in tree.leaves(live))
    suite.require("no .grad is left behind", clean, "theta has a .grad after value_and_hypergrad")
    constant = not any(leaf.requires_grad for leaf in [out.value, *tree.leaves(out.grad), *tree.leaves(out.z)])
    suite.require("results are constants", constant, "a result requires grad")
    case.upper(live, argmin(case.lower(), live, case.z0, **options)).backward()
    for key in ("a", "b"):
        found = torch.zeros_like(live[key]) if live[key].grad is None else live[key].grad
        text = f"the gradient in theta[{key!r}] on {name}, through argmin,"
        suite.near("both entrances give the same gradient", found, out.grad[key], 1e-8, text)
    suite.require("data in theta has no gradient", not bool(out.grad["index"].any()), "an integer leaf has one")


def _linear(suite: Suite, case: _Case, options: dict[str, Any]) -> None:
    out = value_and_hypergrad(case.upper, case.lower(), case.theta, case.z0, **options)

    def twice(theta: Tree, z: Tensor) -> Tensor:
        return 2.0 * case.upper(theta, z)

    double = value_and_hypergrad(twice, case.lower(), case.theta, case.z0, **options)
    for key in ("a", "b"):
        text = f"the implicit part in theta[{key!r}]"
        suite.near("f -> 2 f doubles the gradient", double.implicit[key], 2.0 * out.implicit[key], 1e-6, text)


def _lanes(suite: Suite, case: _Case, options: dict[str, Any]) -> None:
    """The gradient of a batch is the sum over its lanes."""
    total: dict[str, Tensor] = {"a": torch.zeros(2).double(), "b": torch.zeros(()).double()}
    for lane in range(3):

        def upper(theta: Tree, z: Tensor, lane: int = lane) -> Tensor:
            value: Tensor = (z - case.target[lane]).square().sum() + (theta["b"] * z).sum()
            return value

        one = value_and_hypergrad(upper, case.lower(lane), case.theta, case.z0[lane], **options)
        total = {key: total[key] + one.implicit[key] for key in total}
    out = value_and_hypergrad(case.upper, case.lower(), case.theta, case.z0, **options)
    for key, truth in total.items():
        suite.near("a batch is a loop", out.implicit[key], truth, 1e-7, f"the implicit part in theta[{key!r}]")
