"""Whether a run without noise comes to rest."""

from __future__ import annotations

import torch
from torch import Tensor

from blo import tree
from blo._types import Tree

#: Steps below which nothing can be told.
_FEWEST = 40


class Watch:
    """Compares how far theta goes in the third and in the last quarter of a run; waits for no device before its end.

    A run that converges takes shorter and shorter steps, or goes straight on. One that cycles does neither.
    """

    def __init__(self, steps: int) -> None:
        """Watch a run of so many steps."""
        self._steps = steps
        self._paths: list[Tensor | float] = [0.0, 0.0]
        self._began: list[Tensor] = []

    def see(self, made: int, before: Tree, after: Tree) -> None:
        """Take note of step number `made`, counted from 1."""
        quarter = 4 * (made - 1) // self._steps
        if self._steps < _FEWEST or quarter < 2:
            return
        if quarter == 3 and not self._began:
            self._began = tree.leaves(before)
        self._paths[quarter - 2] = self._paths[quarter - 2] + _distance(before, after)

    def unsettled(self, theta: Tree) -> bool:
        """Tell whether theta, at the end of the run, has gone round without coming to rest."""
        if not self._began:
            return False
        before, path = (float(part) for part in self._paths)
        size = max(1.0, sum(float(leaf.double().square().sum()) for leaf in tree.leaves(theta)) ** 0.5)
        eps = torch.finfo(tree.leaves(theta)[0].dtype).eps
        moving = path > 1e3 * eps * size * self._steps / 4
        return moving and path >= 0.9 * before and float(_distance(self._began, theta)) < 0.5 * path


def _distance(a: Tree, b: Tree) -> Tensor:
    squares = [(y - x).square().sum() for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True)]
    return torch.stack(squares).sum().sqrt()
