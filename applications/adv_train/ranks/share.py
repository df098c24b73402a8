"""The part of a batch that a rank has: sample i of the batch is on rank `i % ranks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adv_train.ranks.group import ALONE, Ranks


@dataclass(frozen=True)
class Share:
    """Which samples of a batch a rank has, and what it learns of the others.

    Attributes:
        whole: Samples of the batch.
        ranks: Those that share it.
        before: Samples before the batch in one that was dealt out.
    """

    whole: int
    ranks: Ranks = ALONE
    before: int = 0

    @property
    def alone(self) -> bool:
        """Whether the part is the whole."""
        return self.ranks.size == 1

    def __len__(self) -> int:
        return len(range(self.rows.start, self.whole, self.ranks.size))

    @property
    def rows(self) -> slice:
        """Those samples, as an index of the batch."""
        return slice((self.ranks.rank - self.before) % self.ranks.size, self.whole, self.ranks.size)

    @property
    def weight(self) -> float:
        """Weight of a mean over the part in the mean over the batch."""
        return len(self) / self.whole

    def head(self, samples: int) -> Share:
        """Return the part of the first samples of the batch, which this rank has at the head of its own."""
        return Share(samples, self.ranks, self.before)

    def tail(self, first: int) -> Share:
        """Return the part of the samples from the first one given on."""
        return Share(self.whole - first, self.ranks, self.before + first)

    def sum(self, found: Tensor) -> Tensor:
        """Return the sum of a term over the ranks.

        Its gradient is that of this rank's term, so weighed that the mean of the ranks' gradients by `weight` is the
        gradient of a function of the sum. It is right where derivatives are taken once.
        """
        if self.alone:
            return found
        total = self.ranks.add(found.detach().clone())
        return total + (found - found.detach()) / self.weight if found.requires_grad else total

    def mean(self, found: Tensor) -> Tensor:
        """Return the mean over the batch from that over the part, a constant."""
        return found if self.alone else self.ranks.add(found.detach() * self.weight)

    def means(self, found: Sequence[Tensor]) -> list[Tensor]:
        """Return the same of several tensors, of one dtype, in one exchange."""
        if self.alone or not found:
            return list(found)
        flat = self.ranks.add(torch.cat([tensor.detach().reshape(-1) for tensor in found]).mul_(self.weight))
        parts = flat.split([tensor.numel() for tensor in found])
        return [part.view(tensor.shape) for part, tensor in zip(parts, found, strict=True)]

    def whole_of(self, own: Tensor) -> Tensor:
        """Return the rows of all samples in their order, a constant, from those of the part."""
        assert self.before == 0
        return own if self.alone else self.ranks.rows_of_all(own.detach(), self.whole)
