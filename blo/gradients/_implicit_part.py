"""The implicit part from the adjoint, as a function that torch differentiates, in reverse mode, to any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blo._entrance import backward_pass
from blo._norms import third_derivatives
from blo._parametric_problem import ParametricProblem
from blo.gradients._adjoint import Adjoint, AdjointRule, pull
from blo.gradients._function import alive, lanes_first
from blo.gradients._reverse_only import ReverseOnly


def implicit_part(
    rule: AdjointRule, problem: ParametricProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor
) -> list[Tensor | None]:
    """Return the implicit part for each leaf, differentiable to any order."""
    q = Adjoint.of(rule, problem, leaves, z, v)
    if not problem.searched.normalizes:
        found = _part(problem, leaves, z, v, q)
        # This may be the first evaluation that has a graph of theta to search.
        if not problem.searched.normalizes:
            return found
    # The third derivatives of formulas are correct.
    return _part(problem, leaves, z, v, q) if third_derivatives else _Part.of(problem, leaves, z, v, q)


def _part(problem: ParametricProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor, q: Tensor) -> list[Tensor | None]:
    """Return the implicit part for each leaf from the adjoint q."""
    # Record the graph: in an outer differentiation the multipliers in the force depend on z and theta.
    here = problem.bind(leaves).record()
    tangent = here.tangent(here.term, z, here.gradient(z))
    force = tangent.force

    def optimality(*live: Tensor) -> tuple[Tensor, Tensor]:
        # `tangent` and `z` are constants of this product. An outer differentiation goes through their own graphs, so no
        # dependence on theta is counted twice.
        at_theta = problem.bind(live)
        motion = at_theta.motion(here.term, tangent, z)
        slope = at_theta.gradient(z + motion)
        return motion, slope if force is None else slope + force(at_theta.term, z + motion)

    # With the cotangents (v, -q), the motion contributes N^T v, and gradient and force at z + motion contribute
    # -(B + G)^T q - N^T H q: together the implicit part -(B + G)^T q + N^T (v - H q).
    return pull(optimality, leaves, (v, -q))


class _Part(ReverseOnly):
    """`_part` for objectives whose third derivative is wrong in torch.

    The values are the same. Its backward pass, which needs that derivative, evaluates the objective again by formulas.
    """

    @staticmethod
    def of(
        problem: ParametricProblem, leaves: Sequence[Tensor], z: Tensor, v: Tensor, q: Tensor
    ) -> list[Tensor | None]:
        places = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]
        found: list[Tensor | None] = [None] * len(leaves)
        for place, part in zip(places, _Part.apply(problem, places, z, v, q, *leaves), strict=True):
            found[place] = part
        return found

    @staticmethod
    def forward(problem: ParametricProblem, places: Sequence[int], *tensors: Tensor) -> tuple[Tensor | None, ...]:
        z, v, q, *leaves = (tensor.detach() for tensor in tensors)
        found = _part(problem, leaves, z, v, q)
        return tuple(found[place] for place in places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.problem, ctx.places, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @backward_pass
    @third_derivatives.on()
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        problem, places = ctx.problem, ctx.places

        def part(z: Tensor, v: Tensor, q: Tensor, *leaves: Tensor) -> tuple[Tensor | None, ...]:
            found = _part(problem, leaves, z, v, q)
            return tuple(found[place] for place in places)

        return None, None, *pull(part, alive(ctx.saved_tensors), cotangents)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], problem: ParametricProblem, places: Sequence[int], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        lanes = lanes_first(info.batch_size, in_dims[2:], tensors)
        return _Part.apply(problem.lift(info.randomness), places, *lanes), (0,) * len(places)
