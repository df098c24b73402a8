"""Combine the ranks' parts of a training step, and the parts of a method's memory that the ranks hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adv_train.errors import UserError
from adv_train.methods import State, Step
from adv_train.methods.moment import Keeps
from adv_train.ranks import ALONE, Ranks, Share

_STATISTICS = ("running_mean", "running_var")


def met(step: Step, share: Share, model: nn.Module) -> Step:
    """Return the step of the whole batch, from each rank's step on its part, with one exchange.

    Gradient, implicit part and loss become means over all samples. The running statistics of the model become such
    means in place, so all ranks hold the same model after each step.

    Args:
        step: The step on this rank's part of the batch.
        share: The part of the batch that this rank has.
        model: The model that was trained on.
    """
    if share.alone:
        return step
    statistics = [value for name, value in model.named_buffers() if name.endswith(_STATISTICS)]
    dtype = torch.promote_types(next(iter(step.grads.values())).dtype, torch.float32)
    found = iter(share.means([x.to(dtype) for x in (step.loss, *step.grads.values(), *step.implicit, *statistics)]))
    loss, grads = next(found), {name: next(found).to(part.dtype) for name, part in step.grads.items()}
    implicit = [next(found).to(part.dtype) for part in step.implicit]
    for value in statistics:
        value.copy_(next(found))
    direct = [whole - part for whole, part in zip(grads.values(), implicit, strict=True)] if implicit else ()
    return replace(step, loss=loss, grads=grads, direct=direct, implicit=implicit)


@dataclass(frozen=True)
class Spread:
    """How the memory of a method is distributed over the ranks; a checkpoint holds the memory of a single process.

    Attributes:
        keeps: What the rows of the memory belong to.
        places: Number of samples in the largest batch.
        ranks: The ranks that share the memory.
    """

    keeps: Keeps
    places: int
    ranks: Ranks = ALONE

    def exchange(self, memory: State, seen: Tensor) -> None:
        """Give every rank the rows of all images, in place, after an epoch.

        Args:
            memory: Memory of this rank.
            seen: Positions of the images that this rank has seen in the epoch; the other ranks have seen the rest.
        """
        if self.keeps == "images" and self.ranks.size > 1:
            for value in memory.values():
                own = torch.zeros_like(value).index_copy_(0, seen, value[seen])
                value.copy_(self.ranks.add(own))

    def whole(self, memory: State) -> dict[str, Tensor]:
        """Return the whole memory, collected from all ranks."""
        if self.keeps != "places":
            return dict(memory)
        return {name: self.ranks.rows_of_all(value, self.places) for name, value in memory.items()}

    def own(self, memory: State) -> dict[str, Tensor]:
        """Return this rank's part of the whole memory.

        Raises:
            UserError: If the memory belongs to batches of another size.
        """
        if self.keeps != "places":
            return dict(memory)
        if any(len(value) != self.places for value in memory.values()):
            raise UserError(
                f"the memory of the method lacks a row for each of the {self.places} samples of the largest batch, "
                "whose size depends on the number of processes: use the same number as before"
            )
        return {name: value[Share(self.places, self.ranks).rows].contiguous() for name, value in memory.items()}
