"""On an accelerator: no tensor is made on another device, and a solve of a fixed number of steps never waits for it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blo
from blo import stochastic
from tests.accelerator import DEVICE, Accelerator, there

STEPS = 4
MARCH = blo.ProjectedGradient(0.1, STEPS, tol=None)
TERMS: dict[str, Callable[[], blo.sets.Set | blo.penalties.Penalty]] = {
    "free": blo.Free,
    "box": lambda: blo.Box(-1.0, there(3)),
    "l2": lambda: blo.L2Ball(1.0),
    "l1": lambda: blo.L1Ball(1.0),
    "cut l2": lambda: blo.L2Ball(1.0, there(3), -0.5, 0.5, validate=False),
    "cut l1": lambda: blo.L1Ball(there(2), 0.1, -0.5, there(3), validate=False),
    "simplex": blo.Simplex,
    "affine": lambda: blo.Affine(there(1, 3), there(1)),
    "halfspaces": lambda: blo.Halfspaces(there(2, 3), there(2)),
    "smooth": lambda: blo.SmoothConstraints(inequalities=lambda z: z.square().sum(-1, keepdim=True) - 1, max_steps=1),
    "lasso": lambda: blo.L1(there(3)),
    "elastic": lambda: blo.ElasticNet(0.1, 0.1),
    "group": lambda: blo.GroupLasso(0.1, torch.empty(3, dtype=torch.int64, device=DEVICE)),
}
SOLVERS: dict[str, blo.solvers.Solver] = {
    "projected gradient": blo.ProjectedGradient(max_steps=STEPS),
    "fista": blo.FISTA(max_steps=STEPS),
    "lbfgs": blo.LBFGS(max_steps=STEPS),
    "newton": blo.Newton(max_steps=STEPS),
    "fixed point": blo.FixedPoint(0.1, max_steps=STEPS),
    "one step": blo.OneStep(0.1),
}
RATES: dict[str, Any] = {"lower_step": 0.1, "upper_step": 0.1}
ALGORITHMS = {
    "SOBA": stochastic.SOBA(**RATES),
    "MA-SOBA": stochastic.MASOBA(**RATES, mixing=0.1),
    "SABA": stochastic.SABA(**RATES, upper_count=2, lower_count=2),
    "stocBiO": stochastic.StocBiO(**RATES),
    "AmIGO": stochastic.AmIGO(**RATES),
    "F2SA": stochastic.F2SA(**RATES),
    "BOME": stochastic.BOME(**RATES),
}
STRATEGIES: dict[str, blo.gradients.Strategy] = {
    "zero": blo.Zero(),
    "unrolled": blo.Unrolled(),
    "last": blo.Unrolled(last=2),
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "start": blo.Unrolled(start=lambda theta: theta),
    "implicit": blo.Implicit(),
    "cg": blo.Implicit(blo.CG(max_iter=4)),
    "preconditioned": blo.Implicit(blo.CG(max_iter=4, preconditioner=blo.Nystrom(rank=2))),
    "minres": blo.Implicit(blo.MINRES(max_iter=4)),
    "gmres": blo.Implicit(blo.GMRES(max_iter=4)),
    "neumann": blo.Implicit(blo.Neumann(4)),
    "nystrom": blo.Implicit(blo.Nystrom(rank=2)),
    "direct": blo.Implicit(blo.Direct()),
    "forward products": blo.Implicit(blo.CG(max_iter=4), products="forward"),
    "differences": blo.Implicit(blo.CG(max_iter=4), products="finite-difference"),
    "hessian-free": blo.HessianFree(1.0),
    "closed form": blo.KKTClosedForm(),
    "value function": blo.ValueFunction(10.0),
    "sama": blo.SAMA(),
}


def objective(theta: Tensor, z: Tensor) -> Tensor:
    return ((z - theta).square() * (1 + z.square())).sum(-1)


def problem(term: blo.sets.Set | blo.penalties.Penalty, *, batched: bool) -> blo.LowerProblem:
    if isinstance(term, blo.penalties.Penalty):
        return blo.LowerProblem(objective, penalty=term, batched=batched)
    return blo.LowerProblem(objective, term, batched=batched)


def both(lower: blo.LowerProblem, solver: blo.solvers.Solver, gradient: blo.gradients.Strategy) -> None:
    """Differentiate with both functions, and see that the results are where theta is."""
    shape = (2, 3) if lower.batched else (3,)
    theta, z0 = there(*shape).requires_grad_(), there(*shape)
    z = blo.argmin(lower, theta, z0, solver=solver, gradient=gradient, on_failure="ignore")
    assert z.device == DEVICE
    if not isinstance(gradient, blo.Zero):
        assert torch.autograd.grad(z.sum(), theta)[0].device == DEVICE

    def upper(theta: Tensor, z: Tensor) -> Tensor:
        return (z - theta).square().sum()

    out = blo.value_and_hypergrad(upper, lower, theta, z0, solver=solver, gradient=gradient, on_failure="ignore")
    assert {out.value.device, out.grad.device, out.z.device} == {DEVICE}


def test_the_device_of_these_tests_refuses_to_meet_the_cpu() -> None:
    with Accelerator() as accelerator:
        with pytest.raises(RuntimeError):
            there(3) + torch.ones(3)
        assert not bool((there(3) > 0).all())
    assert accelerator.waits == 1


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("term", ["box", "lasso"])
def test_every_strategy_stays_on_the_device(term: str, name: str) -> None:
    for batched in (False, True):
        with Accelerator():
            both(problem(TERMS[term](), batched=batched), MARCH, STRATEGIES[name])


@pytest.mark.parametrize("term", TERMS)
def test_every_term_stays_on_the_device(term: str) -> None:
    # The projections of these are solves of their own, which here make all their steps.
    slow = term in ("halfspaces", "smooth")
    for gradient in (STRATEGIES["cg"],) if slow else (STRATEGIES["cg"], blo.Unrolled()):
        with Accelerator():
            both(problem(TERMS[term](), batched=True), blo.OneStep(0.1) if slow else MARCH, gradient)


@pytest.mark.parametrize("term", ["box", "l2", "lasso"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_stays_on_the_device(name: str, term: str) -> None:
    if name in ("lbfgs", "newton") and term != "box":
        term = "free"
    for gradient in (blo.Unrolled(), blo.HessianFree(1.0)):
        with Accelerator():
            both(problem(TERMS[term](), batched=True), SOLVERS[name], gradient)


@pytest.mark.parametrize("name", ["zero", "unrolled", "start", "hessian-free", "closed form"])
@pytest.mark.parametrize(
    "term", ["free", "box", "l2", "l1", "cut l2", "cut l1", "simplex", "affine", "lasso", "elastic"]
)
def test_a_fixed_number_of_steps_never_waits(term: str, name: str) -> None:
    with Accelerator() as accelerator:
        lower = problem(TERMS[term](), batched=True)
        before = accelerator.waits
        both(lower, MARCH, STRATEGIES[name])
    assert accelerator.waits == before


def test_conjugate_gradients_wait_once_in_eight_iterations() -> None:
    for iterations, waits in ((8, 1), (9, 2), (16, 2), (17, 3)):
        with Accelerator() as accelerator:
            lower = blo.LowerProblem(objective, blo.Box(-1.0, 1.0), batched=True)
            theta = there(2, 3).requires_grad_()
            gradient = blo.Implicit(blo.CG(max_iter=iterations))
            z = blo.argmin(lower, theta, there(2, 3), solver=MARCH, gradient=gradient, on_failure="ignore")
            torch.autograd.grad(z.sum(), theta)
        assert accelerator.waits == waits


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_stochastic_algorithm_never_waits(name: str) -> None:
    def mean(theta: Tensor, z: Tensor, batch: Tensor) -> Tensor:
        return objective(theta * batch, z).mean()

    algorithm = ALGORITHMS[name]
    batch = (0, there(5, 3)) if name == "SABA" else there(5, 3)
    with Accelerator() as accelerator:
        state = algorithm.init(there(3), there(3))
        for _ in range(3):
            state = algorithm.step(state, mean, mean, repeat(batch), repeat(batch))
    assert {leaf.device for leaf in blo.tree.leaves(state) if isinstance(leaf, Tensor)} == {DEVICE}
    assert accelerator.waits == 0


def test_a_module_that_is_fitted_stays_on_the_device() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2)).to(DEVICE)
    with Accelerator():
        x, y = torch.empty(5, 3, device=DEVICE), torch.empty(5, dtype=torch.int64, device=DEVICE)
        f = blo.functionalize(net, nn.functional.cross_entropy, buffers="update-once")
        theta = torch.empty((), device=DEVICE)
        lower = blo.LowerProblem(lambda t, z: f(z, x, y) + t.exp() * sum(leaf.square().sum() for leaf in z.values()))
        for gradient in (blo.Unrolled(), blo.Implicit(blo.CG(max_iter=3)), blo.ValueFunction(10.0)):
            fitted = blo.fit(
                lambda t, z: f(z, x, y),
                lower,
                theta,
                f.parameters,
                optimizer=torch.optim.SGD,
                steps=2,
                solver=MARCH,
                gradient=gradient,
                on_failure="ignore",
            )
            assert {fitted.theta.device, *(leaf.device for leaf in fitted.z.values())} == {DEVICE}
