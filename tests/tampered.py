"""A strategy's rule whose pullback is changed on its way out, while what torch attaches to it stays right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blo.gradients import Pulled, Rule


@dataclass(frozen=True)
class TamperedRule(Rule):
    solve: Any
    right: Rule
    change: Callable[[Pulled], Pulled]
    keeps_graph = True

    def forward(self, problem: Any, z0: Tensor) -> Tensor:
        return self.right.forward(problem, z0)

    def pull(self, problem: Any, z0: Tensor, z: Tensor, v: Tensor, guess: Tensor | None = None) -> Pulled:
        return self.change(self.right.pull(problem, z0, z, v, guess))

    def attach(self, problem: Any, leaves: Sequence[Tensor], z0: Tensor) -> Tensor:
        return self.right.attach(problem, leaves, z0)
