"""The iterate with the smallest residual in each lane, at almost no cost as long as no lane needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from blo._torch import functorch

#: How many iterates are compared at once, and how many numbers they may hold together. Comparing each iterate with the
#: best one so far would cost a tenth of an iteration of a small problem.
_ITERATES, _NUMBERS = 128, 2**18


class Least:
    """Stores references to iterates until it has to compare them; later iterates must not overwrite earlier ones.

    Args:
        x: the first iterate, shape `(*lanes, n)`.
        rr: the squared norm of its residual, shape `(*lanes, 1)`, or `()` without lanes.
    """

    def __init__(self, x: Tensor, rr: Tensor) -> None:
        self._kept = [(x, rr)]
        self._most = max(2, min(_ITERATES, _NUMBERS // max(x.numel(), 1)))

    def see(self, x: Tensor, rr: Tensor) -> None:
        """Record an iterate."""
        self._kept.append((x, rr))
        if len(self._kept) >= self._most:
            self._kept = [(self.iterate(), self.least())]

    def least(self) -> Tensor:
        """Return the smallest squared norm of a residual of each lane."""
        return self._sizes().amin(0)

    def iterate(self) -> Tensor:
        """Return the iterate with that residual, the first if there are several."""
        first = self._sizes().argmin(0)
        known = first.device.type == "cpu" and not functorch.is_functorch_wrapped_tensor(first)
        start, *others = (first.unique().tolist() if known else range(len(self._kept))) or [0]  # there may be no lane
        best = self._kept[start][0]
        for index in others:
            best = torch.where(first == index, self._kept[index][0], best)
        return best

    def _sizes(self) -> Tensor:
        return torch.stack([rr for _, rr in self._kept]).nan_to_num(torch.inf, torch.inf)
