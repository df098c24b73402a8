"""The share of a batch that a rank holds: sample i of the batch is on rank `i % ranks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adv_train.ranks.group import ALONE, Ranks


@dataclass(frozen=True)
class Share:
    """Which samples of a batch this rank holds, with sums and means over the samples of all ranks.

    Attributes:
        whole: Number of samples of the batch on all ranks together.
        ranks: The ranks that share the batch.
        before: Number of samples before these in the batch that the ranks have shared out; not 0 for a `tail`.
    """

    whole: int
    ranks: Ranks = ALONE
    before: int = 0

    @property
    def alone(self) -> bool:
        """Whether this rank holds the whole batch."""
        return self.ranks.size == 1

    def __len__(self) -> int:
        return len(range(self.rows.start, self.whole, self.ranks.size))

    @property
    def rows(self) -> slice:
        """The samples of this rank, as an index of the batch."""
        return slice((self.ranks.rank - self.before) % self.ranks.size, self.whole, self.ranks.size)

    @property
    def weight(self) -> float:
        """Weight of the mean over this rank's samples in the mean over the batch."""
        return len(self) / self.whole

    def head(self, samples: int) -> Share:
        """Return this rank's share of the first `samples` samples; they come first among the rank's samples."""
        return Share(samples, self.ranks, self.before)

    def tail(self, first: int) -> Share:
        """Return this rank's share of the samples from index `first` on."""
        return Share(self.whole - first, self.ranks, self.before + first)

    def sum(self, found: Tensor) -> Tensor:
        """Return the sum of a term over the ranks.

        The backward pass reaches this rank's term alone, divided by `weight`. The mean of the ranks' gradients with the
        weights `weight` is then the gradient of a function of the sum. This holds for first derivatives only.
        """
        if self.alone:
            return found
        total = self.ranks.add(found.detach().clone())
        return total + (found - found.detach()) / self.weight if found.requires_grad else total

    def mean(self, found: Tensor) -> Tensor:
        """Return the mean over the batch, a constant, from the mean over this rank's samples."""
        return found if self.alone else self.ranks.add(found.detach() * self.weight)

    def means(self, found: Sequence[Tensor]) -> list[Tensor]:
        """Return `mean` of several tensors of one dtype, in one exchange."""
        if self.alone or not found:
            return list(found)
        flat = self.ranks.add(torch.cat([tensor.detach().reshape(-1) for tensor in found]).mul_(self.weight))
        parts = flat.split([tensor.numel() for tensor in found])
        return [part.view(tensor.shape) for part, tensor in zip(parts, found, strict=True)]

    def whole_of(self, own: Tensor) -> Tensor:
        """Return the rows of all samples in their order, a constant, from the rows of this rank's samples."""
        assert self.before == 0
        return own if self.alone else self.ranks.rows_of_all(own.detach(), self.whole)
