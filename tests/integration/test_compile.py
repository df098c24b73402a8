"""A compiled training step that calls `blo` breaks its graph there, and gives what it gives uncompiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import blo

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own

LOWER = blo.LowerProblem(lambda t, z: (z - t).square().sum())
Z0 = torch.zeros(3, dtype=torch.float64)
FIXED: dict[str, Any] = {
    "solver": blo.ProjectedGradient(0.5, max_steps=1, tol=None),
    "gradient": blo.Unrolled(),
}


def by_argmin(t: Tensor) -> Tensor:
    s = 2 * t
    lower = blo.LowerProblem(lambda s, z: (z - s).square().sum())
    return (s * blo.argmin(lower, s, Z0)).sum()  # 4 |t|^2


def by_unrolling(t: Tensor) -> Tensor:
    return (4 * t * blo.argmin(LOWER, t, Z0, **FIXED)).sum()


def by_first_derivatives(t: Tensor) -> Tensor:
    return 4 * blo.argmin(LOWER, t, Z0, gradient=blo.ValueFunction(two_sided=True)).square().sum()


def on_a_ball(t: Tensor) -> Tensor:
    lower = blo.LowerProblem(lambda t, z: (z - 3 * t).square().sum(), lambda t: blo.L2Ball(2 * t.norm()))
    return blo.argmin(lower, t, Z0).square().sum()


def with_its_own_backward_pass(t: Tensor) -> Tensor:
    s = t.detach().requires_grad_()
    blo.argmin(LOWER, s, Z0).square().sum().backward()
    assert s.grad is not None
    return 2 * (s.grad * t).sum()


def under_vmap(t: Tensor) -> Tensor:
    found = torch.vmap(lambda s: blo.argmin(LOWER, s * t, Z0))(torch.tensor([1.0, 1.0], dtype=torch.float64))
    return 2 * found.square().sum()


def by_fit(t: Tensor) -> Tensor:
    result = blo.fit(
        lambda t, z: z.sum(), LOWER, t.detach(), Z0, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), steps=1
    )
    return 4 * (result.z * t).sum()


def with_a_module(t: Tensor) -> Tensor:
    f = blo.functionalize(nn.Flatten(0), lambda out, z: (out - z).square().sum())
    lower = blo.LowerProblem(lambda t, z: f({}, t, z))
    return 4 * blo.argmin(lower, t, Z0).square().sum()


#: Each is 4 |t|^2; the derivative is 8 t, or 4 t where one factor is a constant.
STEPS: list[tuple[Callable[[Tensor], Tensor], float]] = [
    (by_argmin, 8.0),
    (by_unrolling, 8.0),
    (by_first_derivatives, 8.0),
    (on_a_ball, 8.0),
    (with_its_own_backward_pass, 4.0),
    (under_vmap, 8.0),
    (by_fit, 4.0),
    (with_a_module, 8.0),
]


def _differentiated(step: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    t = t.clone().requires_grad_()
    value = step(t)
    value.backward()
    assert t.grad is not None
    return value.detach(), t.grad


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("step", "slope"), STEPS)
def test_a_compiled_step_is_the_step(step: Callable[[Tensor], Tensor], slope: float, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend)
    for scale in (1.0, 2.0):
        t = scale * torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
        value, grad = _differentiated(compiled, t)
        torch.testing.assert_close(value, 4 * t.square().sum(), rtol=1e-8, atol=0)
        torch.testing.assert_close(grad, slope * t, rtol=1e-8, atol=0)


def test_what_stands_around_a_solve_is_compiled() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    _differentiated(torch.compile(by_argmin, backend=counter), torch.ones(3, dtype=torch.float64))
    assert counter.frame_count == 2  # before it and after it


def test_a_hypergradient_inside_a_compiled_step() -> None:
    torch._dynamo.reset()

    def step(t: Tensor) -> Tensor:
        grad: Tensor = blo.value_and_hypergrad(lambda t, z: z.square().sum(), LOWER, 2 * t, Z0).grad
        return grad + 1

    t = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(torch.compile(step, backend="eager")(t), 4 * t + 1, rtol=1e-10, atol=0)


def test_a_compiled_objective_stays_compiled() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    objective = torch.compile(lambda t, z: (z - t).square().sum(), backend=counter)
    out = blo.value_and_hypergrad(lambda t, z: z.sum(), blo.LowerProblem(objective), 1 + Z0, Z0)
    torch.testing.assert_close(out.grad, 1 + Z0, rtol=1e-10, atol=0)
    assert counter.frame_count >= 1


def test_nobody_waits_for_the_compiler_who_does_not_compile() -> None:
    program = (
        "import sys, torch, blo\n"
        "t = torch.ones(2, requires_grad=True)\n"
        "blo.argmin(blo.LowerProblem(lambda t, z: (z - t).square().sum()), t, torch.zeros(2)).sum().backward()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
