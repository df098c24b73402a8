"""A test whether a run converges."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from blo import tree
from blo._types import Tree
from blo.stochastic._base import State

#: A run of fewer steps than `_FEWEST` is not tested. A run of fewer steps than `_ENOUGH` may be the beginning of a
#: longer one, so a constant pace is not reported.
_FEWEST, _ENOUGH = 40, 200
#: The distance that a converging variable covers falls by at least this share from quarter to quarter.
_SLOWER = 0.05
#: A run diverges, with or without noise, if the last quarter covers `_FARTHER` times the largest distance of the
#: earlier quarters, or if each quarter covers `_GROWTH` times the distance of the previous one.
_FARTHER, _GROWTH = 100, 4


class ConvergenceTest:
    """Compares the distances that theta and z cover in the four quarters of a run.

    The steps of a converging run become shorter. Those of a run that cycles do not. Those of a diverging run become
    longer. A run with too small steps moves straight on. The test does not wait for the device before the run ends.
    """

    def __init__(self, steps: int, *, noisy: bool) -> None:
        """Prepare for a run of `steps` steps. If its batches make it noisy, only divergence is tested."""
        self._steps, self._noisy = steps, noisy
        self._paths: list[Tensor | float] = [0.0, 0.0]
        self._marks: list[State] = []

    def see(self, made: int, before: State, after: State) -> None:
        """Record the step number `made`, counted from 1."""
        if self._steps < _FEWEST:
            return
        quarter = 4 * (made - 1) // self._steps
        if quarter == len(self._marks):
            # The state itself: numbers are computed from it after the run, so that no step waits for the device.
            self._marks.append(before)
        if quarter >= 2 and not self._noisy:
            self._paths[quarter - 2] = self._paths[quarter - 2] + _distance(before["theta"], after["theta"])

    def findings(self, last: State) -> str | None:
        """Return the reason why the run that ended in this state has not converged; None if there is no sign of it."""
        if len(self._marks) < 4:
            return None
        places = [_points(state) for state in (*self._marks, last)]
        ways = {name: [float(_distance(a[name], b[name])) for a, b in pairwise(places)] for name in places[0]}
        for name, way in ways.items():
            # z follows theta, with the rounding errors of both.
            if self._longer(way, _size(places[0][name]), max(_rounding(last["theta"]), _rounding(places[4][name]))):
                return (
                    f"the steps of {name} become longer and longer. Lower `lower_step` or `upper_step`; possibly "
                    "`lower` has no minimiser in z, or F has none in theta"
                )
        if self._noisy:
            return None
        if self._cycles(last["theta"]):
            return (
                "theta oscillates, and its steps do not become shorter. Lower `upper_step` relative to `lower_step`, "
                "or raise `inner_steps`"
            )
        if self._steps < _ENOUGH:
            return None
        # A run that continues another may rest at its solution.
        if self._marks[0]["step"] == 0 and not any(ways["theta"]):
            return (
                "theta has not moved: either its direction is zero, or `upper_step` times the direction is below the "
                "rounding error of theta. Raise `upper_step`, or use float64"
            )
        straight = [name for name, way in ways.items() if _straight(way, [place[name] for place in places])]
        if not straight:
            return None
        return (
            f"{', '.join(straight)} moved in one direction without slowing down, so the solution is still far away. "
            "Raise `upper_step`, also `lower_step` if z or q is among them, or make many times as many steps"
        )

    def _longer(self, way: list[float], start: float, rounding: float) -> bool:
        # At a solution all ways are rounding errors, whose ratios mean nothing, so the last way must also be longer
        # than the vector at the start.
        if not math.isfinite(way[3]) or way[3] > max(start, _FARTHER * max(way[:3])):
            return True
        # With noise, and at the beginning of a longer run, the steps of a converging run may grow as well.
        growth = _GROWTH if self._noisy or self._steps < _ENOUGH else 1 + _SLOWER
        return way[3] > 10 * rounding and all(b > growth * a for a, b in pairwise(way))

    def _cycles(self, theta: Tree) -> bool:
        before, path = (float(part) for part in self._paths)
        # A cycle covers a path that is long relative to the distance between its ends. A path of the length of the
        # rounding errors of the steps is not a cycle.
        moving = path > 1e3 * _eps(theta) * max(1.0, _size(theta)) * self._steps / 4
        return moving and path >= 0.9 * before and float(_distance(self._marks[3]["theta"], theta)) < 0.5 * path


def _points(state: State) -> dict[str, Tree]:
    """Return theta, z and the vectors in the memory of an algorithm."""
    kept = {name: value for name, value in state["memory"].items() if isinstance(value, Tensor)}
    return {"theta": state["theta"], "z": state["z"], **kept}


def _straight(way: list[float], places: list[Tree]) -> bool:
    """Return whether a variable moved in one direction at a constant pace after the first quarter."""
    # Rounding errors move a converged variable as well.
    if way[3] <= 10 * _rounding(places[4]):
        return False
    # The distance between the ends is the sum of the ways only if the ways lie on one line.
    steady = all(abs(b - a) <= _SLOWER * a for a, b in pairwise(way[1:]))
    return steady and float(_distance(places[1], places[4])) >= (1 - _SLOWER) * sum(way[1:])


def _eps(point: Tree) -> float:
    return torch.finfo(tree.leaves(point)[0].dtype).eps


def _rounding(point: Tree) -> float:
    return _eps(point) * _size(point)


def _size(point: Tree) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(leaf)) for leaf in tree.leaves(point)))


def _distance(a: Tree, b: Tree) -> Tensor:
    parts = [torch.linalg.vector_norm((y - x).reshape(-1)) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True)]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return whole
