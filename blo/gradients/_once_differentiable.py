"""Rules whose pullback can be run and mapped over by `vmap`, but not differentiated again."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blo._parametric_problem import ParametricProblem
from blo.errors import StructureError
from blo.gradients._base import distance
from blo.gradients._function import FunctionRule, lanes_first, pulled
from blo.gradients._reverse_only import ReverseOnly

#: Largest relative distance allowed between the solution and that of a solve repeated under `vmap`.
_RESOLVED = 1e-2


class OnceDifferentiableRule(FunctionRule, abc.ABC):
    """A rule that can be differentiated once, under every transform."""

    def pull_again(
        self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor, z: Tensor, v: Tensor
    ) -> Sequence[Tensor | None]:
        places = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]
        parts = _Pull.apply(problem, self, places, z0, z, v, *leaves)
        found: list[Tensor | None] = [None] * len(leaves)
        for place, part in zip(places, parts, strict=True):
            found[place] = part
        return found


class _Pull(ReverseOnly):
    """The pullback as an autograd function, so that `vmap` can map over it."""

    @staticmethod
    def forward(
        problem: ParametricProblem,
        rule: OnceDifferentiableRule,
        places: Sequence[int],
        z0: Tensor,
        z: Tensor,
        v: Tensor,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        found = pulled(rule, problem, leaves, z0, z, v).cotangents
        return tuple(leaves[i].new_zeros(leaves[i].shape) if (part := found[i]) is None else part for i in places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise StructureError(
            "this gradient strategy gives first derivatives only, but a derivative of the hypergradient was "
            "requested. Use Implicit(), or Unrolled() without `checkpoint` and in reverse mode."
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        problem: ParametricProblem,
        rule: OnceDifferentiableRule,
        places: Sequence[int],
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        z0, z, v, *leaves = lanes_first(info.batch_size, in_dims[3:], tensors)
        lifted = problem.lift(info.randomness)
        again = rule.forward(rule.bind(lifted, leaves), z0)
        # A solve to a tolerance is not repeated exactly: a batch of lanes takes other last steps than a single lane.
        rule.solve.checks.repeated(distance(z, again, z0), _RESOLVED)
        return _Pull.apply(lifted, rule, places, z0, z, v, *leaves), (0,) * len(places)
