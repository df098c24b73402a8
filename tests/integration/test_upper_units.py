"""The hypergradient scales with the upper objective, however large or small its unit is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import blo
from blo.gradients import Strategy
from tests.integration.problems import assert_near

#: Powers of two near the ends of the range of each dtype: multiplying by them rounds nothing.
UNITS = {torch.float32: (2.0**-110, 2.0**-70, 2.0**70, 2.0**110), torch.float64: (2.0**-990, 2.0**-560, 2.0**990)}
STRATEGIES: dict[str, Strategy] = {
    "kkt": blo.KKTClosedForm(),
    "hessian-free": blo.HessianFree(3.0),
    "direct": blo.Implicit(blo.Direct()),
    "auto": blo.Implicit(blo.Auto(direct=0)),
    "cg": blo.Implicit(blo.CG()),
    "cg, 2 iterations": blo.Implicit(blo.CG(max_iter=2, tol=None)),
    "minres": blo.Implicit(blo.MINRES()),
    "gmres": blo.Implicit(blo.GMRES()),
    "neumann": blo.Implicit(blo.Neumann(step=0.2)),
    "nystrom": blo.Implicit(blo.Nystrom()),
    "preconditioned": blo.Implicit(blo.CG(preconditioner=blo.Nystrom())),
    "forward": blo.Implicit(blo.CG(), products="forward"),
    "differences": blo.Implicit(blo.CG(), products="finite-difference"),
    "sama": blo.SAMA(0.3),
    "value function": blo.ValueFunction(),
    "two-sided": blo.ValueFunction(two_sided=True),
    "unrolled": blo.Unrolled(),
}
TERMS: dict[str, blo.sets.Set] = {
    "free": blo.Free(),
    "box": blo.Box(-0.05, 1.0),
    "ball": blo.L2Ball(0.12),
    "simplex": blo.Simplex(),
}


def hypergradient(unit: float, strategy: str, term: str, dtype: torch.dtype) -> Tensor:
    """Return the gradient in units of the upper objective; nothing may be reported."""
    theta = torch.tensor([0.5, 0.45, -0.4], dtype=dtype)
    w = torch.tensor([1.0, 2.0, -1.0], dtype=dtype)
    curved = 0.0 if strategy in ("kkt", "hessian-free") else 0.2
    # The slopes of the lower objective are the tilts of `theta`; the diagonal is 3 where the strategy needs that.
    diagonal = 3.0 + curved * torch.tensor([0.0, 1.0, 4.0], dtype=dtype)
    lower = blo.LowerProblem(lambda t, z: (0.5 * diagonal * z.square() - t * z).sum(-1), TERMS[term])
    solver = blo.ProjectedGradient(0.2, max_steps=60, tol=None if strategy == "unrolled" else 1e-5)
    out = blo.value_and_hypergrad(
        lambda t, z: unit * (w * z).sum(),
        lower,
        theta,
        torch.full((3,), 0.1, dtype=dtype),
        solver=solver,
        gradient=STRATEGIES[strategy],
        on_failure="raise",
    )
    assert isinstance(out.grad, Tensor)
    return (out.grad / unit).double()


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_unit_of_the_upper_objective_does_not_matter(strategy: str, term: str, dtype: torch.dtype) -> None:
    expected = hypergradient(1.0, strategy, term, dtype)
    assert expected.abs().max() > 0.01
    rounding = 1e-4 if dtype == torch.float32 else 1e-8
    for unit in UNITS[dtype]:
        # The value function chooses its penalty by the size of v, so only its accuracy is the same.
        close = 2e-2 if isinstance(STRATEGIES[strategy], blo.ValueFunction) else rounding
        assert_near(hypergradient(unit, strategy, term, dtype), expected, close)
