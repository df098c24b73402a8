"""Torch's default device is for the tensors that users make; those of a solve stay on the device of theta and z."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import blo

N = 4


def inner(theta: Tensor, z: Tensor) -> Tensor:
    return (z - theta).square().sum(-1) + 0.1 * z.pow(4).sum(-1)


TERMS: dict[str, Callable[[], blo.sets.Set | blo.penalties.Penalty]] = {
    "free": blo.Free,
    "box": lambda: blo.Box(-0.5, 0.5),
    "nonnegative": blo.NonNegative,
    "simplex": blo.Simplex,
    "capped": lambda: blo.Simplex(cap=0.4),
    "l1-ball": lambda: blo.L1Ball(0.7),
    "l2-ball": lambda: blo.L2Ball(0.6),
    "intersection": lambda: blo.Intersection(blo.L2Ball(0.6), blo.Box(-0.5, 0.5)),
    "l1": lambda: blo.L1(0.1),
    "elastic-net": lambda: blo.ElasticNet(0.1, 0.2),
    "group-lasso": lambda: blo.GroupLasso(0.1, torch.tensor([0, 0, 1, 1], device="cpu")),
}
STRATEGIES: dict[str, Callable[[], blo.gradients.Strategy]] = {
    "implicit": blo.Implicit,
    "cg": lambda: blo.Implicit(blo.CG()),
    "gmres": lambda: blo.Implicit(blo.GMRES()),
    "neumann": lambda: blo.Implicit(blo.Neumann()),
    "nystrom": lambda: blo.Implicit(blo.Nystrom(rank=4)),
    "unrolled": blo.Unrolled,
    "finite": lambda: blo.Implicit(products="finite-difference"),
    "value-function": blo.ValueFunction,
}
SOLVERS: dict[str, Callable[[], blo.solvers.Solver | None]] = {
    "default": lambda: None,
    "gradient": lambda: blo.ProjectedGradient(tol=1e-10),
    "rate": lambda: blo.ProjectedGradient(step=lambda theta: 0.1 + 0 * theta.sum(), max_steps=50, tol=None),
    "fista": lambda: blo.FISTA(tol=1e-10),
}


@pytest.mark.parametrize("batched", [False, True], ids=["one", "batched"])
@pytest.mark.parametrize(
    ("term", "strategy", "solver"),
    [
        *((term, "implicit", "gradient") for term in TERMS),
        *(("box", strategy, "gradient") for strategy in STRATEGIES),
        *(("box", "implicit", solver) for solver in SOLVERS),
        ("box", "unrolled", "rate"),
        ("l2-ball", "nystrom", "gradient"),
    ],
)
def test_another_default_device_changes_nothing(term: str, batched: bool, strategy: str, solver: str) -> None:
    theta = torch.linspace(-1, 1, N, dtype=torch.float64)
    theta, z0 = (torch.stack([theta, 0.3 - theta]) if batched else theta), theta.new_zeros(*((2,) * batched), N)

    def run() -> blo.Hypergradient:
        made = TERMS[term]()
        where = {"penalty" if isinstance(made, blo.penalties.Penalty) else "constraint": made}
        lower = blo.LowerProblem(inner, batched=batched, **where)  # type: ignore[arg-type]
        return blo.value_and_hypergrad(
            lambda theta, z: z.square().sum(),
            lower,
            theta,
            z0,
            solver=SOLVERS[solver](),
            gradient=STRATEGIES[strategy](),
            on_failure="ignore",
        )

    wanted = run()
    with torch.device("meta"):  # any tensor made on the default device has no values
        found = run()
        report = str(found.report)
    assert torch.equal(found.grad, wanted.grad)
    assert report == str(wanted.report)
