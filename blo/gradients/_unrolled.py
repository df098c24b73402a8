"""The derivative of the algorithm instead of the solution."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blo import _autodiff
from blo._norms import third_derivatives
from blo._parametric_problem import ParametricProblem
from blo._problem_at_theta import ProblemAtTheta
from blo._settings import require_count
from blo._types import Tree
from blo.errors import StructureError
from blo.gradients._base import Pulled, Rule, Solve, Strategy
from blo.gradients._forward_unroll import ForwardUnrollRule
from blo.gradients._once import once
from blo.gradients._still import Still
from blo.gradients._tape import Tail, TapeRule


@dataclass(frozen=True)
class Unrolled(Strategy):
    """Differentiates through the steps of the lower solver.

    It is the exact derivative of what the solver computed, converged or not. By default memory grows with the number
    of steps; `checkpoint` and `mode="forward"` give the same derivative in less memory, `last` a truncated one. A solve
    that starts at the solution makes no step, so its derivative is zero: do not pass the `state` of an earlier solve.

    Args:
        last: differentiate through only this many last steps, and treat the point before them as a constant
            (Shaban et al., AISTATS 2019, truncated back-propagation). In a batch, these are the last steps of each
            problem. None: all steps.
        checkpoint: keep about the square root of the number of states and repeat the steps between them when
            differentiating: one more solve for memory of about `2 sqrt(steps)` states and `sqrt(steps)` steps
            (Griewank and Walther, 2000, with one level). Differentiable once.
        mode: `"reverse"` or `"forward"`. Forward mode computes dz/dtheta along with z and stores no step. It costs the
            time and memory of one more solve for each coordinate of theta, so it suits a theta with few coordinates
            (Franceschi et al., ICML 2017). Differentiable once.
        start: a function of theta that returns the start of the solver, a tree like z0. It replaces `z0` and the start
            stored in `state`, and is differentiated with the steps (Finn et al., ICML 2017, MAML: `start=lambda
            theta: theta`). None: start from `z0`, a constant.

    Under `torch.func` transforms, `checkpoint` and `mode` give the same derivatives, but save no memory if there is a
    `start`.

    Raises:
        StructureError: when the problem is solved, if the steps of the solver cannot be differentiated; with `last` or
            `checkpoint`, if they cannot be repeated (`OneStep`); if `start` does not return a tree like z0.
        ValueError: if `last` is below 1, `mode` is unknown, forward mode is combined with `last` or `checkpoint`, or
            `last` with `start`.
    """

    unrolls = True
    reads_theta_late = False

    last: int | None = None
    checkpoint: bool = False
    mode: Literal["reverse", "forward"] = "reverse"
    start: Callable[[Tree], Tree] | None = None

    def __post_init__(self) -> None:
        if self.last is not None:
            require_count(self.last, "last", "Use None for all steps, or Zero() for none.")
        if self.mode not in ("reverse", "forward"):
            raise ValueError(f"`mode` must be 'reverse' or 'forward', but is {self.mode!r}.")
        if self.mode == "forward" and (self.checkpoint or self.last is not None):
            raise ValueError("mode='forward' stores no step, so it cannot be combined with `last` or `checkpoint`.")
        if self.start is not None and not callable(self.start):
            raise StructureError(
                f"`start` must be a function of theta that returns a tree like z0, but is of type "
                f"{type(self.start).__name__}. Pass a constant start as the argument `z0`."
            )
        if self.start is not None and self.last is not None:
            raise ValueError(
                "`last` treats the point before the last steps as a constant, so it cannot be combined with `start`."
            )

    @property
    def recorded(self) -> bool:
        """Whether torch records the steps; otherwise the solve is one autograd function."""
        sparing = self.checkpoint or self.mode == "forward"
        # Under transforms, that function would not see the tensors that `start` captures.
        return not sparing or (self.start is not None and _autodiff.transforms_active())

    @property
    def allows_random(self) -> bool:
        """Whether torch has recorded every step, so that the derivative needs no second evaluation."""
        return self.recorded and self.last is None

    def rule(self, problem: ParametricProblem, solve: Solve) -> Rule:
        if self.recorded:
            return RecordedRule(solve, self.last, self.start)
        return TapeRule(solve, self.last, self.start) if self.checkpoint else ForwardUnrollRule(solve, self.start)


@dataclass(frozen=True)
class RecordedRule(Rule):
    """Lets torch record and differentiate the steps, or the last ones."""

    solve: Solve
    last: int | None
    start: Callable[[Tree], Tree] | None
    keeps_graph = True

    def forward(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        if self.last is None:
            return self.solve(problem.record(), problem.place(self.start, z0))
        return Tail(self.last).solve(problem, z0, self.solve)

    def attach(self, problem: ParametricProblem, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        twice = not torch.compiler.is_compiling() and _autodiff.recordings(leaves) > 1
        with third_derivatives.on() if twice else contextlib.nullcontext():
            z = self.forward(self.bind(problem, self.solve.checks.watched(leaves)), z0)
        if problem.searched.normalizes and not (twice or third_derivatives):
            z = once(z)
        return Still.attach(z, leaves) if self.solve.idle and not _autodiff.transforms_active() else z

    def pull(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        found = iter(_autodiff.pullback([z], [leaf for leaf in problem.leaves if leaf.requires_grad], [v]))
        return Pulled([next(found) if leaf.requires_grad else None for leaf in problem.leaves])
