"""Bilevel problems that use every set, penalty, linear solver, product, lower solver and strategy of `blo`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

import blo
from adv_train.precision import computed_in

#: Draws a tensor of random numbers of a shape, on the device and in the dtype of a run.
Draw: TypeAlias = Callable[..., Tensor]

UNKNOWNS, LANES = 6, 3


@dataclass(frozen=True)
class Case:
    """One way to compute a hypergradient.

    Attributes:
        name: name in the output.
        term: function of a Draw that makes the constraint or penalty; some hold tensors.
        solver: the lower solver; None for the default.
        gradient: the strategy; None for the default.
        batched: whether the problem has `LANES` lanes.
    """

    name: str
    term: Callable[[Draw], Any]
    solver: blo.solvers.Solver | None = None
    gradient: blo.gradients.Strategy | None = None
    batched: bool = True


TERMS: dict[str, Callable[[Draw], Any]] = {
    "Free": lambda draw: blo.Free(),
    "Box": lambda draw: blo.Box(-0.3, 0.4),
    "NonNegative": lambda draw: blo.NonNegative(),
    "L2Ball": lambda draw: blo.L2Ball(0.5),
    "L1Ball": lambda draw: blo.L1Ball(0.7),
    "L2Ball, cut": lambda draw: blo.L2Ball(0.5, low=-0.2, high=0.3),
    "L1Ball, cut": lambda draw: blo.L1Ball(0.7, low=-0.2, high=0.3),
    "Product": lambda draw: blo.Product(blo.Box(-0.3, 0.4), blo.L2Ball(0.5)),
    "Simplex": lambda draw: blo.Simplex(),
    "Affine": lambda draw: blo.Affine(draw(2, UNKNOWNS), draw(2)),
    "Halfspaces": lambda draw: blo.Halfspaces(draw(3, UNKNOWNS), draw(3).square() + 0.1),
    "SmoothConstraints": lambda draw: blo.SmoothConstraints(
        inequalities=lambda z: z.square().sum(-1, keepdim=True) - 0.3
    ),
    "L1": lambda draw: blo.L1(0.2),
    "ElasticNet": lambda draw: blo.ElasticNet(0.2, 0.1),
    "GroupLasso": lambda draw: blo.GroupLasso(0.2, draw(UNKNOWNS).gt(0).long()),
}
LINEAR: dict[str, blo.linsolve.LinearSolver] = {
    "Auto": blo.Auto(),
    "Direct": blo.Direct(),
    "CG": blo.CG(),
    "CG, preconditioned": blo.CG(preconditioner=blo.Nystrom(rank=2)),
    "MINRES": blo.MINRES(),
    "GMRES": blo.GMRES(),
    "Neumann": blo.Neumann(200),
    "Nystrom": blo.Nystrom(rank=UNKNOWNS),
    "Identity": blo.Identity(2.0),
}
SOLVERS: dict[str, blo.solvers.Solver] = {
    "OneStep": blo.OneStep(0.05),
    "OneStep, sign": blo.OneStep(0.05, "sign"),
    "OneStep, normalized": blo.OneStep(0.05, "normalized"),
    "OneStep, coordinate": blo.OneStep(0.05, "coordinate"),
    "ProjectedGradient": blo.ProjectedGradient(),
    "FISTA": blo.FISTA(),
    "LBFGS": blo.LBFGS(),
    "Newton": blo.Newton(),
    "FixedPoint": blo.FixedPoint(0.1, max_steps=2000),
    "TorchOptim": blo.TorchOptim(lambda params: torch.optim.SGD(params, lr=0.1), steps=50),
    "External": blo.External(lambda theta, z0: 0.3 * theta.tanh().expand_as(z0), tol=math.inf),
}
MARCH = blo.ProjectedGradient(0.1, 50, tol=None)
UNROLLED: dict[str, blo.gradients.Strategy] = {
    "Unrolled": blo.Unrolled(),
    "Unrolled(last=10)": blo.Unrolled(last=10),
    "Unrolled(checkpoint)": blo.Unrolled(checkpoint=True),
    "Unrolled(forward)": blo.Unrolled(mode="forward"),
}
STRATEGIES: dict[str, blo.gradients.Strategy] = {
    "Zero": blo.Zero(),
    "Implicit, reverse": blo.Implicit(products="reverse"),
    "Implicit, forward": blo.Implicit(products="forward"),
    "Implicit, finite-difference": blo.Implicit(products="finite-difference"),
    "HessianFree": blo.HessianFree(2.0),
    "KKTClosedForm": blo.KKTClosedForm(),
    "ValueFunction": blo.ValueFunction(),
    "SAMA": blo.SAMA(),
}


def cases() -> Iterator[Case]:
    """Yield every case."""
    for batched in (False, True):
        shape = "lanes" if batched else "single"
        for name, term in TERMS.items():
            yield Case(f"{name}, default, {shape}", term, batched=batched)
        for name, linear in LINEAR.items():
            yield Case(f"Box, {name}, {shape}", TERMS["Box"], gradient=blo.Implicit(linear), batched=batched)
        for name, solver in SOLVERS.items():
            term = TERMS["Free" if name in ("Newton", "LBFGS", "TorchOptim") else "Box"]
            yield Case(f"{name}, {shape}", term, solver, blo.HessianFree(2.0), batched)
        for name, gradient in UNROLLED.items():
            yield Case(f"Box, {name}, {shape}", TERMS["Box"], MARCH, gradient, batched)
        for name, gradient in STRATEGIES.items():
            yield Case(f"Box, {name}, {shape}", TERMS["Box"], gradient=gradient, batched=batched)


def hypergradient(
    case: Case, device: torch.device, dtype: torch.dtype, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Return the lower solution and the hypergradient of a case; the same data for every device.

    Args:
        case: the case.
        device: device of the tensors.
        dtype: dtype of the tensors.
        precision: precision of the products inside the objectives, see `adv_train.precision`.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    lanes = (LANES,) if case.batched else ()
    basis = draw(*lanes, UNKNOWNS, UNKNOWNS) / UNKNOWNS**0.5
    target, theta, z0 = draw(*lanes, UNKNOWNS), draw(UNKNOWNS), 0.1 * draw(*lanes, UNKNOWNS)
    term = case.term(draw)

    def lower(theta: Tensor, z: Tensor) -> Tensor:
        fit: Tensor = (basis @ (z - theta.tanh()).unsqueeze(-1)).squeeze(-1).square().sum(-1)
        return fit + 0.5 * z.square().sum(-1) + 0.1 * z.pow(4).sum(-1)

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return 0.5 * (z - target).square().sum() + 0.1 * theta.square().sum()

    problem = (
        blo.LowerProblem(lower, penalty=term, batched=case.batched)
        if isinstance(term, blo.penalties.Penalty)
        else blo.LowerProblem(lower, term, batched=case.batched)
    )
    start: Any = z0
    if isinstance(term, blo.Product):  # holds the two halves of z
        problem = blo.LowerProblem(lambda t, z: lower(t, torch.cat(z, -1)), term, batched=case.batched)
        start = z0.chunk(2, -1)
    options: dict[str, Any] = {"solver": case.solver} if case.solver is not None else {}
    options |= {"gradient": case.gradient} if case.gradient is not None else {}
    with computed_in(precision, device):
        out = blo.value_and_hypergrad(
            lambda t, z: upper(t, _joined(z)), problem, theta, start, on_failure="ignore", **options
        )
    return _joined(out.z), out.grad


def _joined(z: Any) -> Tensor:
    return z if isinstance(z, Tensor) else torch.cat(z, -1)
