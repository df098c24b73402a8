"""Whether a run comes to rest."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from blo import tree
from blo._types import Tree
from blo.stochastic._base import State

#: Steps below which nothing can be told, and below which a run may be no more than the beginning of one.
_FEWEST, _ENOUGH = 40, 200
#: Share by which the pace of a variable that is on its way falls from quarter to quarter.
_SLOWER = 0.05
#: Times the longest earlier way that the last quarter leads where a run diverges, noise or not; and times the one
#: before that each quarter leads.
_FARTHER, _GROWTH = 100, 4


class Watch:
    """Compares how far theta and z go in the quarters of a run; waits for no device before its end.

    A run that converges takes shorter and shorter steps. One that cycles does not; one that diverges takes longer ones;
    one whose steps are too short goes straight on.
    """

    def __init__(self, steps: int, *, noisy: bool) -> None:
        """Watch a run of so many steps; with noise it is only told whether it diverges."""
        self._steps, self._noisy = steps, noisy
        self._paths: list[Tensor | float] = [0.0, 0.0]
        self._marks: list[State] = []

    def see(self, made: int, before: State, after: State) -> None:
        """Take note of step number `made`, counted from 1."""
        if self._steps < _FEWEST:
            return
        quarter = 4 * (made - 1) // self._steps
        if quarter == len(self._marks):
            self._marks.append(before)
        if quarter >= 2 and not self._noisy:
            self._paths[quarter - 2] = self._paths[quarter - 2] + _distance(before["theta"], after["theta"])

    def findings(self, last: State) -> str | None:
        """Return why the run that ended in this state has not come to rest; None where nothing tells."""
        if len(self._marks) < 4:
            return None
        places = [_points(state) for state in (*self._marks, last)]
        ways = {name: [float(_distance(a[name], b[name])) for a, b in pairwise(places)] for name in places[0]}
        for name, way in ways.items():
            if self._longer(way, _size(places[0][name]), _eps(last["theta"]) * _size(last["theta"])):
                return (
                    f"the steps of {name} become longer and longer. Lower `lower_step` or `upper_step`; it may also be "
                    "that `lower` has no minimiser in z, or F none in theta"
                )
        if self._noisy:
            return None
        if self._cycles(last["theta"]):
            return (
                "theta goes back and forth, and its steps do not become shorter. Lower `upper_step` against "
                "`lower_step`, or raise `inner_steps`"
            )
        if self._steps < _ENOUGH:
            return None
        if self._marks[0]["step"] == 0 and not any(ways["theta"]):
            return (
                "theta has not moved: either its direction is zero, or `upper_step` times that is below the rounding "
                "of theta. Raise `upper_step`, or use float64"
            )
        straight = [name for name, way in ways.items() if _straight(way, [place[name] for place in places])]
        if not straight:
            return None
        return (
            f"{', '.join(straight)} went straight on at one pace, far from where that leads. Raise `upper_step`, or "
            "`lower_step` where theta is not the only one, or make many times as many steps"
        )

    def _longer(self, way: list[float], start: float, rounding: float) -> bool:
        if not math.isfinite(way[3]) or way[3] > max(start, _FARTHER * max(way[:3])):
            return True
        growth = _GROWTH if self._noisy or self._steps < _ENOUGH else 1 + _SLOWER
        return way[3] > 10 * rounding and all(b > growth * a for a, b in pairwise(way))

    def _cycles(self, theta: Tree) -> bool:
        before, path = (float(part) for part in self._paths)
        moving = path > 1e3 * _eps(theta) * max(1.0, _size(theta)) * self._steps / 4
        return moving and path >= 0.9 * before and float(_distance(self._marks[3]["theta"], theta)) < 0.5 * path


def _points(state: State) -> dict[str, Tree]:
    """Return theta, z and the vectors that an algorithm keeps."""
    kept = {name: value for name, value in state["memory"].items() if isinstance(value, Tensor)}
    return {"theta": state["theta"], "z": state["z"], **kept}


def _straight(way: list[float], places: list[Tree]) -> bool:
    """Tell whether a variable went the same way in each quarter but the first, which may be another."""
    if way[3] <= 10 * _eps(places[4]) * _size(places[4]):
        return False
    steady = all(abs(b - a) <= _SLOWER * a for a, b in pairwise(way[1:]))
    return steady and float(_distance(places[1], places[4])) >= (1 - _SLOWER) * sum(way[1:])


def _eps(point: Tree) -> float:
    return torch.finfo(tree.leaves(point)[0].dtype).eps


def _size(point: Tree) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(leaf)) for leaf in tree.leaves(point)))


def _distance(a: Tree, b: Tree) -> Tensor:
    parts = [torch.linalg.vector_norm((y - x).reshape(-1)) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True)]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return whole
