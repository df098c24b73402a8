"""Reverse sweeps over the steps of a solver that keep some of its states and repeat the steps between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blo import tree
from blo._autodiff import add, all_true_on_cpu, in_lanes, live, pullback
from blo._problem_at_theta import ProblemAtTheta
from blo._types import Tree
from blo.gradients._base import Pulled, Snapshot, Solve, distance
from blo.gradients._once_differentiable import OnceDifferentiableRule


@dataclass
class Tail:
    """Keeps the states before the last steps of a solve; in each lane, those before its own last steps."""

    last: int
    states: list[tuple[int, Any]] = field(default_factory=list)

    def __call__(self, steps: int, state: Any) -> None:
        self.states.append((steps, state))
        if len(self.states) <= self.last:
            return
        if not state.endless and not all_true_on_cpu(~state.resting):
            self._move_on(state.resting)
        del self.states[0]

    def _move_on(self, resting: Tensor) -> None:
        """Move the states of resting lanes on by one place.

        They have made their last step already, and the deletion of the first state must not remove their first one.
        """
        pairs = zip(self.states[:-1], self.states[1:], strict=True)
        kept = [tree.map(lambda old, new: in_lanes(resting, old, new), old, new) for (_, old), (_, new) in pairs]
        self.states[1:] = [(at, merged) for (at, _), merged in zip(self.states[1:], kept, strict=True)]

    def solve(self, problem: ProblemAtTheta, z0: Tensor, solve: Solve) -> Tensor:
        """Return the solution as a function of the last steps alone."""
        z = solve(problem.detach(), z0, self)
        if not self.states:
            return z  # no step was made, and none is differentiated
        first, state = self.states[0]
        recorded = problem.record()
        state = solve.steps.advance(recorded, solve.steps.restart(recorded, state), first, len(self.states))
        return solve.steps.answer(state)


@dataclass
class Checkpoints:
    """Keeps the state before every `stride`-th step, and doubles the stride when there are more than `2 stride`."""

    stride: int = 1
    states: list[tuple[int, Any]] = field(default_factory=list)

    def __call__(self, steps: int, state: Any) -> None:
        if steps % self.stride == 0:
            self.states.append((steps, state))
        # The number of steps is not known in advance. After n steps the stride lies between sqrt(n / 2) and sqrt(2 n),
        # so that neither the kept states nor the steps of one segment exceed about sqrt(2 n).
        if len(self.states) > 2 * self.stride:
            self.stride *= 2
            self.states = [kept for kept in self.states if kept[0] % self.stride == 0]


@dataclass
class TapeRule(OnceDifferentiableRule):
    """Solves with checkpoints, and sweeps back over them."""

    solve: Solve
    last: int | None
    start: Callable[[Tree], Tree] | None = None
    #: The states and the number of steps of each solve, under the number of `vmap` levels around the problem.
    kept: dict[int, tuple[list[tuple[int, Any]], int]] = field(default_factory=dict)

    def forward(self, problem: ProblemAtTheta, z0: Tensor) -> Tensor:
        watch = Checkpoints() if self.last is None else Tail(self.last)
        count = 0

        def counted(steps: int, state: Any) -> None:
            nonlocal count
            count = steps + 1
            watch(steps, state)

        z = self.solve(problem.detach(), problem.place(self.start, z0).detach(), counted)
        # `Tail` keeps the state before each of the last steps. The sweep needs about the square root of their number.
        stride = max(1, round(len(watch.states) ** 0.5)) if self.last is not None else 1
        self.kept[problem.lifts] = watch.states[::stride], count
        return z

    def pull(self, problem: ProblemAtTheta, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        """Return `(dz/dtheta)^T v` for each leaf, by a reverse sweep over the segments between kept states."""
        states, end = self.kept[problem.lifts]
        leaves, steps = problem.leaves, self.solve.steps
        if not states and self.start is not None:
            states = [(0, None)]  # no step was made: the solution is the start
        if not states:
            return Pulled([leaf.new_zeros(leaf.shape) if leaf.is_floating_point() else None for leaf in leaves])
        own = live(leaves)
        inputs = [leaf for leaf in own if leaf.requires_grad]
        total: list[Tensor | None] = [None] * len(inputs)
        cotangents: list[Tensor | None] = []
        apart, place = torch.zeros_like(z[..., 0]), z
        for index in reversed(range(len(states))):
            first, state = states[index]
            with torch.enable_grad():
                recorded = problem.rebind(own).record()
                carried, start = _lift(state) if index else ([], self._first(recorded, z0, state))
                after = steps.advance(recorded, start, first, end - first)
                # `cotangents` are those of the state after this segment. There are none after the last segment, where
                # v is the cotangent of the answer.
                outputs = _floats(after) if cotangents else [steps.answer(after)]
            reached = after.z if cotangents else outputs[0]
            # If the repeated steps end elsewhere, the derivative is not that of the solution: report the distance.
            apart = torch.maximum(apart, distance(place, reached, z0))
            given = cotangents or [v]
            pairs = [(out, c) for out, c in zip(outputs, given, strict=True) if c is not None]
            found = pullback([out for out, _ in pairs], [*carried, *inputs], [c for _, c in pairs], last=True)
            cotangents, end = found[: len(carried)], first
            place = state.z if index else z0
            total = [add(a, b) for a, b in zip(total, found[len(carried) :], strict=True)]
        filled = iter(total)
        return Pulled([next(filled) if leaf.requires_grad else None for leaf in own], apart=apart)

    def _first(self, problem: ProblemAtTheta, z0: Tensor, state: Any) -> Snapshot:
        """Return the first state: with a constant point, or with a `start`, as a function of theta."""
        if self.start is None:
            return self.solve.steps.restart(problem, state)
        return self.solve.steps.begin(problem, problem.place(self.start, z0))


def _lift(state: Any) -> tuple[list[Tensor], Any]:
    """Return the floating point tensors of a state as inputs of a derivative, and the state made of them."""
    leaves, spec = tree.flatten(state)
    lifted = live(leaves)
    return [leaf for leaf in lifted if leaf.is_floating_point()], tree.unflatten(lifted, spec)


def _floats(state: Any) -> list[Tensor]:
    return [leaf for leaf in tree.flatten(state)[0] if leaf.is_floating_point()]
