"""Lower solutions whose derivative is a procedure that can be run, mapped over, but not differentiated again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from blo._autocast import without
from blo._checkpoints import sound_checkpoints
from blo._entrance import outside_compile
from blo._failures import Checks
from blo._problem import FlatProblem
from blo.errors import StructureError
from blo.gradients._base import distance
from blo.gradients._function import alive, lanes_first
from blo.gradients._reverse_only import ReverseOnly

#: How far a solve made again under `vmap` may end from the first one, relatively.
_RESOLVED = 1e-2


class FirstOrderRule(Protocol):
    """A solve and its pullback, on plain tensors; `pull` is asked only about problems that `forward` has solved."""

    def forward(self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        """Return the solution, shape `(*lanes, n)`."""

    def pull(
        self, problem: FlatProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> Sequence[Tensor | None]:
        """Return the implicit part for each leaf."""


class FirstOrder(ReverseOnly):
    """`z*(theta)`, differentiable once, under every transform."""

    @staticmethod
    def solve(
        problem: FlatProblem, rule: FirstOrderRule, z0: Tensor, leaves: Sequence[Tensor], checks: Checks
    ) -> Tensor:
        """Return the solution, shape `(*lanes, n)`."""
        z: Tensor = FirstOrder.apply(problem, rule, checks, z0, *leaves)
        return z

    @staticmethod
    def forward(problem: FlatProblem, rule: FirstOrderRule, checks: Checks, z0: Tensor, *leaves: Tensor) -> Tensor:
        return rule.forward(problem, leaves, z0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.problem, ctx.rule, ctx.checks, *tensors = inputs
        ctx.save_for_backward(output, *tensors)

    @staticmethod
    @outside_compile
    @sound_checkpoints
    @without
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        FirstOrder.require_one(v)
        z, z0, *leaves = alive(ctx.saved_tensors)
        places = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]
        pulled = _Pull.apply(ctx.problem, ctx.rule, ctx.checks, places, z0, z, v, *leaves)
        found: list[Tensor | None] = [None] * len(leaves)
        for place, part in zip(places, pulled, strict=True):
            found[place] = part
        return None, None, None, None, *found

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        problem: FlatProblem,
        rule: FirstOrderRule,
        checks: Checks,
        *tensors: Tensor,
    ) -> tuple[Tensor, int]:
        z0, *leaves = lanes_first(info.batch_size, in_dims[3:], tensors)
        return FirstOrder.solve(problem.lift(info.randomness), rule, z0, leaves, checks), 0


class _Pull(ReverseOnly):
    """The pullback as a function, so that `vmap` can map over it."""

    @staticmethod
    def forward(
        problem: FlatProblem,
        rule: FirstOrderRule,
        checks: Checks,
        places: Sequence[int],
        z0: Tensor,
        z: Tensor,
        v: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        found = rule.pull(problem, [leaf.detach() for leaf in leaves], z0, z, v)
        checks.implicit(found)
        return tuple(leaves[i].new_zeros(leaves[i].shape) if (part := found[i]) is None else part for i in places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise StructureError(
            "this gradient strategy gives first derivatives only, but a derivative of the hypergradient was asked "
            "for. Use Implicit(), or Unrolled() without `checkpoint` and in reverse mode."
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        problem: FlatProblem,
        rule: FirstOrderRule,
        checks: Checks,
        places: Sequence[int],
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        z0, z, v, *leaves = lanes_first(info.batch_size, in_dims[4:], tensors)
        lifted = problem.lift(info.randomness)
        again = rule.forward(lifted, leaves, z0)
        # Solved to a tolerance: a batch of lanes takes other last steps than one alone.
        checks.repeated(distance(z, again, z0), _RESOLVED)
        return _Pull.apply(lifted, rule, checks, places, z0, z, v, *leaves), (0,) * len(places)
