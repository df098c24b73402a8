"""Truncated, checkpointed and forward-mode unrolls, against a loop written out and differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import blo
from tests.accelerator import Recorder
from tests.strategies import SEEDS, normal

quick = settings(deadline=None, max_examples=10)
MODES = {
    "checkpoint": blo.Unrolled(checkpoint=True),
    "forward": blo.Unrolled(mode="forward"),
    "plain": blo.Unrolled(),
}


class Loop:
    """A smooth lower problem on a moving box, with its projected gradient iteration by hand."""

    def __init__(self, seed: int, steps: int, momentum: float = 0.5) -> None:
        self.weights, self.z0, self.target = normal(seed, 3, 3), normal(seed + 1, 4, 3), normal(seed + 2, 4, 3)
        self.theta, self.steps, self.momentum = normal(seed + 3, 3), steps, momentum
        self.solver = blo.ProjectedGradient(0.2, max_steps=steps, tol=None, momentum=momentum)
        self.lower = blo.LowerProblem(self.objective, lambda theta: blo.Box(-self.edge(theta), 0.8), batched=True)

    def edge(self, theta: Tensor) -> Tensor:
        return 0.5 + 0.1 * theta.square()

    def objective(self, theta: Tensor, z: Tensor) -> Tensor:
        inner = z @ self.weights.T + theta
        return torch.logaddexp(inner, -inner).sum(-1) + 0.05 * z.square().sum(-1)

    def upper(self, theta: Tensor, z: Tensor) -> Tensor:
        return (z - self.target).square().sum() + theta.square().sum()

    def solve(self, theta: Tensor, last: int | None = None) -> Tensor:
        z, velocity = self.z0, torch.zeros_like(self.z0)
        for step in range(self.steps):
            if last is not None and step == self.steps - last:
                z, velocity = z.detach(), velocity.detach()
            slope = torch.tanh(z @ self.weights.T + theta) @ self.weights + 0.1 * z
            velocity = self.momentum * velocity + slope
            z = torch.minimum(
                torch.maximum(z - 0.2 * velocity, -self.edge(theta)), torch.tensor(0.8, dtype=torch.float64)
            )
        return z

    def truth(self, last: int | None = None) -> tuple[Tensor, Tensor]:
        theta = self.theta.clone().requires_grad_()
        z = self.solve(theta, last)
        return z.detach(), torch.autograd.grad(self.upper(theta, z), theta)[0]

    def run(self, gradient: blo.gradients.Strategy, **options: Any) -> blo.Hypergradient:
        options = {"solver": self.solver, **options}
        return blo.value_and_hypergrad(self.upper, self.lower, self.theta, self.z0, gradient=gradient, **options)


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("mode", MODES)
@quick
@given(seed=SEEDS)
def test_every_mode_is_autodiff_through_the_loop(mode: str, steps: int, seed: int) -> None:
    loop = Loop(seed, steps)
    z, truth = loop.truth()
    out = loop.run(MODES[mode])
    torch.testing.assert_close(out.z, z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.grad, truth, rtol=1e-10, atol=1e-10)
    theta = loop.theta.clone().requires_grad_()
    attached = blo.argmin(loop.lower, theta, loop.z0, solver=loop.solver, gradient=MODES[mode])
    (found,) = torch.autograd.grad(loop.upper(theta, attached), theta)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("last", [1, 3, 12, 50])
@quick
@given(seed=SEEDS)
def test_a_truncated_unroll_sees_the_last_steps_alone(last: int, checkpoint: bool, seed: int) -> None:
    loop = Loop(seed, 12)
    strategy = blo.Unrolled(last=last, checkpoint=checkpoint)
    _, truth = loop.truth(last)
    torch.testing.assert_close(loop.run(strategy).grad, truth, rtol=1e-10, atol=1e-10)
    theta = loop.theta.clone().requires_grad_()
    z = blo.argmin(loop.lower, theta, loop.z0, solver=loop.solver, gradient=strategy)
    (found,) = torch.autograd.grad(loop.upper(theta, z), theta)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["checkpoint", "forward"])
@pytest.mark.parametrize("tol", [1e-4, 1e-7])
def test_a_solve_that_stops_by_itself_is_repeated_to_the_same_step(mode: str, tol: float) -> None:
    """Lanes stop at different steps; the plain unroll, whose graph is that of the solve itself, is the reference."""
    loop = Loop(5, 300, momentum=0.0)
    solver = blo.ProjectedGradient(0.2, max_steps=300, tol=tol)
    plain, other = loop.run(blo.Unrolled(), solver=solver), loop.run(MODES[mode], solver=solver)
    assert 5 < plain.report.lower_steps < 300
    torch.testing.assert_close(other.z, plain.z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(other.grad, plain.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["checkpoint", "forward"])
@pytest.mark.parametrize("transform", ["grad", "jacrev", "vmap", "vmap of grad"])
def test_transforms_give_the_same_derivatives(mode: str, transform: str) -> None:
    loop = Loop(3, 9)
    thetas = torch.stack([loop.theta, loop.theta + 0.3, -loop.theta])

    def value(solve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda theta: loop.upper(theta, solve(theta))

    def found(theta: Tensor) -> Tensor:
        z: Tensor = blo.argmin(loop.lower, theta, loop.z0, solver=loop.solver, gradient=MODES[mode])
        return z

    if transform == "grad":
        a, b = torch.func.grad(value(found))(loop.theta), torch.func.grad(value(loop.solve))(loop.theta)
    elif transform == "jacrev":
        a, b = torch.func.jacrev(found)(loop.theta), torch.func.jacrev(loop.solve)(loop.theta)
    elif transform == "vmap":
        a, b = torch.func.vmap(found)(thetas), torch.func.vmap(loop.solve)(thetas)
    else:
        a = torch.func.vmap(torch.func.grad(value(found)))(thetas)
        b = torch.func.vmap(torch.func.grad(value(loop.solve)))(thetas)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_checkpoints_keep_a_tenth_of_the_tape_of_a_thousand_steps() -> None:
    def peak(gradient: blo.gradients.Strategy) -> int:
        """Return the most bytes of tensors saved for a backward pass that were alive at one time."""
        alive: dict[int, int] = {}
        most = 0

        class Handle:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal most
                self.tensor = tensor
                alive[id(self)] = tensor.nbytes
                most = max(most, sum(alive.values()))

            def __del__(self) -> None:
                alive.pop(id(self), None)

        with torch.autograd.graph.saved_tensors_hooks(Handle, lambda handle: handle.tensor):
            loop.run(gradient)
        return most

    loop = Loop(0, 1000)
    assert peak(blo.Unrolled(checkpoint=True)) < 0.1 * peak(blo.Unrolled())


@pytest.mark.parametrize("mode", ["checkpoint", "forward"])
def test_a_second_derivative_is_refused(mode: str) -> None:
    loop = Loop(0, 4)
    theta = loop.theta.clone().requires_grad_()
    z = blo.argmin(loop.lower, theta, loop.z0, solver=loop.solver, gradient=MODES[mode])
    (slope,) = torch.autograd.grad(z.square().sum(), theta, create_graph=True)
    with pytest.raises(blo.StructureError, match="first derivatives only"):
        torch.autograd.grad(slope.sum(), theta)


def test_a_truncated_unroll_has_exact_second_derivatives() -> None:
    loop = Loop(2, 6)

    def value(solve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda theta: loop.upper(theta, solve(theta))

    found = torch.func.hessian(
        value(lambda t: blo.argmin(loop.lower, t, loop.z0, solver=loop.solver, gradient=blo.Unrolled(last=3)))
    )(loop.theta)
    truth = torch.autograd.functional.hessian(value(lambda t: loop.solve(t, 3)), loop.theta)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strategy", [blo.Unrolled(last=2), blo.Unrolled(checkpoint=True)], ids=["last", "checkpoint"])
def test_a_solver_without_steps_is_refused(strategy: blo.Unrolled) -> None:
    loop = Loop(0, 4)
    with pytest.raises(blo.StructureError, match="OneStep has none that can be repeated"):
        loop.run(strategy, solver=blo.OneStep(0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 0}, "`last` must be at least 1"),
        ({"mode": "sideways"}, "`mode` must be 'reverse' or 'forward'"),
        ({"mode": "forward", "checkpoint": True}, "cannot be combined with `last` or `checkpoint`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blo.Unrolled(**options)


@pytest.mark.parametrize("last", [1, 2, 7, 200])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("solver", [blo.ProjectedGradient(0.5), blo.ProjectedGradient(), blo.FISTA(0.5)], ids=str)
def test_each_problem_of_a_batch_has_its_own_last_steps(
    solver: blo.solvers.Solver, checkpoint: bool, last: int
) -> None:
    """One problem arrives long before the other."""
    curvature = torch.tensor([[1.9], [0.2]], dtype=torch.float64)
    theta, z0 = normal(0, 2, 3), torch.zeros(2, 3, dtype=torch.float64)
    strategy = blo.Unrolled(last=last, checkpoint=checkpoint)

    def objective(c: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return (c * (0.5 * (z - t).square() + 0.02 * (z - t).pow(4))).sum(-1)

    def slope(c: Tensor, t: Tensor, start: Tensor, batched: bool) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: objective(c, t, z), batched=batched)
        options: dict[str, Any] = {"solver": solver, "gradient": strategy}
        return blo.value_and_hypergrad(lambda t, z: z.square().sum(), lower, t, start, **options).grad

    alone = torch.stack([slope(*each, False) for each in zip(curvature, theta, z0, strict=True)])
    torch.testing.assert_close(slope(curvature, theta, z0, True), alone, rtol=1e-10, atol=1e-12)

    def mapped(c: Tensor, t: Tensor, start: Tensor) -> Tensor:
        lower = blo.LowerProblem(lambda t, z: objective(c, t, z))
        found = torch.func.grad(lambda t: blo.argmin(lower, t, start, solver=solver, gradient=strategy).square().sum())
        return found(t)

    torch.testing.assert_close(torch.func.vmap(mapped)(curvature, theta, z0), alone, rtol=1e-10, atol=1e-12)


def test_where_nothing_is_measured_no_lane_is_looked_at() -> None:
    # Tensors on the meta device are an accelerator's: what they hold cannot be seen without waiting.
    theta, z0 = torch.empty(4, 3, device="meta", requires_grad=True), torch.empty(4, 3, device="meta")
    lower = blo.LowerProblem(lambda theta, z: (z - theta).square().sum(-1), batched=True)
    solver = blo.ProjectedGradient(0.3, max_steps=6, tol=None)
    with Recorder() as recorder:
        z = blo.argmin(lower, theta, z0, solver=solver, gradient=blo.Unrolled(last=2), on_failure="ignore")
        z.sum().backward()
    assert torch.ops.aten.where.self not in recorder.seen  # by which lanes that rest are told from others
