"""Objectives that checkpoint activations: the hypergradient is that without a checkpoint, of either kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

import blo

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in forward mode
Objective = Callable[[Tensor, Tensor], Tensor]
RANDOM = torch.Generator().manual_seed(0)
X, Y = (torch.randn(shape, generator=RANDOM, dtype=torch.float64) for shape in ((12, 4), (12,)))
Z0 = torch.zeros(4, dtype=torch.float64)
THETA = torch.tensor(-1.0, dtype=torch.float64)


def data(t: Tensor, z: Tensor) -> Tensor:
    return ((X @ z).tanh() - Y * t.exp()).square().mean()


def upper(t: Tensor, z: Tensor) -> Tensor:
    return (z - 1).square().sum() + t.square()


def again(function: Callable[..., Any], *arguments: Any, reentrant: bool = True) -> Tensor:
    found: Tensor = checkpoint(function, *arguments, use_reentrant=reentrant)
    return found


WAYS: dict[str, Objective] = {
    "arguments": lambda t, z: again(data, t, z),
    "captured": lambda t, z: again(lambda: data(t, z)),
    "dict": lambda t, z: again(lambda d: data(d["t"], d["z"]), {"t": t, "z": z}),
    "z captured": lambda t, z: again(lambda t: data(t, z), t),
    "theta captured": lambda t, z: again(lambda z: data(t, z), z),
    "nested": lambda t, z: again(lambda: 1.0 * again(lambda z: data(t, z), z)),
    "sequential": lambda t, z: (
        (checkpoint_sequential([lambda z: X @ z, torch.tanh], 2, z, use_reentrant=True) - Y * t.exp()).square().mean()
    ),
    "not re-entrant": lambda t, z: again(data, t, z, reentrant=False),
}
STEPS: dict[str, Any] = {"solver": blo.ProjectedGradient(0.3, 40, tol=None)}
STRATEGIES: dict[str, dict[str, Any]] = {
    "reverse": {},
    "forward": {"gradient": blo.Implicit(products="forward")},
    "finite-difference": {"gradient": blo.Implicit(products="finite-difference")},
    "Unrolled": {"gradient": blo.Unrolled(), **STEPS},
    "Unrolled checkpoint": {"gradient": blo.Unrolled(checkpoint=True), **STEPS},
    "Unrolled forward": {"gradient": blo.Unrolled(mode="forward"), **STEPS},
    "ValueFunction": {"gradient": blo.ValueFunction(1e3, two_sided=True)},
}


def lower(part: Objective) -> blo.LowerProblem:
    return blo.LowerProblem(lambda t, z: part(t, z) + 0.5 * t.exp() * z.square().sum())


def hypergradient(part: Objective, above: Objective, options: dict[str, Any]) -> Tensor:
    found: Tensor = blo.value_and_hypergrad(above, lower(part), THETA, Z0, **options).grad
    return found


@pytest.mark.parametrize(
    ("way", "strategy"), [(way, "reverse") for way in WAYS] + [("captured", name) for name in STRATEGIES]
)
def test_the_hypergradient_is_that_without_a_checkpoint(way: str, strategy: str) -> None:
    options = STRATEGIES[strategy]
    truth = hypergradient(data, upper, options)
    for found in (
        hypergradient(WAYS[way], upper, options),
        hypergradient(data, lambda t, z: again(lambda: upper(t, z)), options),
    ):
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_backward_pass_and_transforms_agree_or_refuse(way: str) -> None:
    truth = hypergradient(data, upper, {})
    theta = THETA.clone().requires_grad_()
    upper(theta, blo.argmin(lower(WAYS[way]), theta, Z0)).backward()
    torch.testing.assert_close(theta.grad, truth, rtol=1e-12, atol=0)

    def total(t: Tensor) -> Tensor:
        return upper(t, blo.argmin(lower(WAYS[way]), t, Z0))

    if way == "not re-entrant":
        with pytest.raises(blo.StructureError, match="checkpoints activations"):
            torch.func.grad(total)(THETA)
    else:
        torch.testing.assert_close(torch.func.grad(total)(THETA), truth, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.vmap(torch.func.grad(total))(THETA[None])[0], truth, rtol=1e-10, atol=0)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_backward_hooks_are_named_where_torch_has_none() -> None:
    layer = torch.nn.Linear(4, 1).double()
    layer.register_full_backward_hook(lambda *given: None)
    hooked = lower(lambda t, z: layer(X * z).square().mean())
    assert torch.isfinite(blo.value_and_hypergrad(upper, hooked, THETA, Z0).grad)
    with pytest.raises(blo.StructureError, match="backward hooks"):
        blo.value_and_hypergrad(upper, hooked, THETA, Z0, gradient=blo.Implicit(products="forward"))


def test_a_solve_inside_a_checkpoint_is_differentiated_as_torch_does() -> None:
    theta = THETA.clone().requires_grad_()
    again(lambda t: upper(t, blo.argmin(lower(data), t, Z0)), theta).backward()
    torch.testing.assert_close(theta.grad, hypergradient(data, upper, {}), rtol=1e-12, atol=0)


def test_stochastic_steps_see_through_checkpoints() -> None:
    algorithm = blo.stochastic.SOBA(lower_step=0.1, upper_step=0.1)

    def theta(part: Objective) -> Tensor:
        objective = lower(part).objective
        state = blo.stochastic.run(
            algorithm,
            algorithm.init(THETA, Z0),
            lambda t, z, _: upper(t, z),
            lambda t, z, _: objective(t, z),
            steps=3,
        )
        found: Tensor = state["theta"]
        return found

    torch.testing.assert_close(theta(WAYS["captured"]), theta(data), rtol=1e-12, atol=0)


def test_torchs_own_checkpoints_are_back_afterwards() -> None:
    def fails(t: Tensor, z: Tensor) -> Tensor:
        assert "apply" in vars(CheckpointFunction)
        raise KeyError

    with pytest.raises(KeyError):
        blo.argmin(lower(fails), THETA.clone().requires_grad_(), Z0)
    assert "apply" not in vars(CheckpointFunction)


@pytest.mark.parametrize(
    "gradient", [blo.ValueFunction(), blo.ValueFunction(two_sided=True), blo.Implicit(products="finite-difference")]
)
def test_first_derivatives_keep_no_graph(gradient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module compiled by inductor gives its buffers away, and refuses a backward pass that keeps the graph."""
    own = torch.autograd.grad

    def spied(*arguments: Any, **options: Any) -> Any:
        assert not options.get("retain_graph")
        assert not options.get("create_graph")
        return own(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", spied)
    blo.value_and_hypergrad(upper, lower(data), THETA, Z0, gradient=gradient)
    if isinstance(gradient, blo.ValueFunction):
        ball = blo.LowerProblem(lower(data).objective, lambda t: blo.L2Ball(0.1 * t.exp()))
        blo.value_and_hypergrad(upper, ball, THETA, Z0, gradient=gradient)
