"""The lower solution as a function of theta that torch differentiates, in reverse mode."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blo._autodiff import live, transforms_active
from blo._entrance import backward_pass
from blo._parametric_problem import ParametricProblem
from blo._torch import functorch
from blo.gradients._base import Pulled, Rule
from blo.gradients._reverse_only import ReverseOnly


class FunctionRule(Rule, abc.ABC):
    """A rule whose solve is one autograd function with `pull` as its backward pass; torch does not record its steps.

    Such a rule holds no tensors of the caller.
    """

    def attach(self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        return Solved.by(self, problem, z0, leaves)

    @abc.abstractmethod
    def pull_again(
        self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> Sequence[Tensor | None]:
        """Return the implicit part for each leaf as a function that transforms may differentiate or map over."""


class Solved(ReverseOnly):
    """`z*(theta)`."""

    @staticmethod
    def by(rule: FunctionRule, problem: ParametricProblem, z0: Tensor, leaves: Sequence[Tensor]) -> Tensor:
        """Return the solution, shape `(*lanes, n)`, differentiable in the leaves."""
        z: Tensor = Solved.apply(problem, rule, z0, *leaves)
        return z

    @staticmethod
    def forward(problem: ParametricProblem, rule: FunctionRule, z0: Tensor, *leaves: Tensor) -> Tensor:
        return rule.forward(problem.bind(leaves), z0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.problem, ctx.rule, z0, *leaves = inputs
        ctx.save_for_backward(output, z0 if ctx.rule.uses_start else None, *leaves)

    @staticmethod
    @backward_pass
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        Solved.require_one(v)
        z, z0, *leaves = alive(ctx.saved_tensors)
        assert z is not None
        # Grad mode is on in a backward pass with create_graph=True, whose result may be differentiated again.
        if torch.is_grad_enabled() or transforms_active():
            found = ctx.rule.pull_again(ctx.problem, leaves, z0, z, v)
        else:
            # The common case: one retained graph serves the products and the cross term, and the objective may use
            # autograd itself or update the buffers of a module.
            found = pulled(ctx.rule, ctx.problem, leaves, z0, z, v).cotangents
        return None, None, None, *found

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        problem: ParametricProblem,
        rule: FunctionRule,
        *tensors: Tensor,
    ) -> tuple[Tensor, int]:
        z0, *leaves = lanes_first(info.batch_size, in_dims[2:], tensors)
        return Solved.by(rule, problem.lift(info.randomness), z0, leaves), 0


def pulled(
    rule: Rule, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
) -> Pulled:
    """Pull v back to the leaves, which are plain tensors, and report."""
    # Grad mode is off in an ordinary backward pass, but what the problem computes from theta, such as a moving set,
    # needs a graph for `pull`.
    with torch.enable_grad():
        at_theta = rule.bind(problem, live(leaves))
    found = rule.pull(at_theta, z0, z, v)
    rule.solve.report(at_theta, z, found)
    return found


def alive(tensors: Sequence[Any]) -> list[Any]:
    """Take tensors out of the wrappers of transforms that have ended.

    Torch itself removes one such wrapper, but fails an internal assertion on two, which a vjp through an ended
    transform produces.
    """
    return [None if tensor is None else functorch.unwrap_if_dead(tensor) for tensor in tensors]


def lanes_first(size: int, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Move the mapped axis of each tensor to the front, and expand tensors without a mapped axis along it."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
