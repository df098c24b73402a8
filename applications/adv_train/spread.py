"""What ranks bring together: the gradient of a step, and what a method remembers."""

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
    """Return the step of the whole batch, from those of its parts, by one exchange.

    Gradient, implicit part and loss become the means over all samples, and so do the running statistics of the model,
    in place: after each step all ranks hold the same model.

    Args:
        step: Of this rank's part.
        share: Which part that is.
        model: In which the step was made.
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
    """How the memory of a method lies on the ranks; a checkpoint holds it as one process would.

    Attributes:
        keeps: What its rows belong to.
        places: Samples of the largest batch.
        ranks: Those that share it.
    """

    keeps: Keeps
    places: int
    ranks: Ranks = ALONE

    def exchange(self, memory: State, seen: Tensor) -> None:
        """Give every rank the rows of all images, in place, after an epoch.

        Args:
            memory: Of this rank.
            seen: Positions of the images that this rank has seen in the epoch; the others have seen the rest.
        """
        if self.keeps == "images" and self.ranks.size > 1:
            for value in memory.values():
                own = torch.zeros_like(value).index_copy_(0, seen, value[seen])
                value.copy_(self.ranks.add(own))

    def whole(self, memory: State) -> dict[str, Tensor]:
        """Return the memory of all ranks from that of this one."""
        if self.keeps != "places":
            return dict(memory)
        return {name: self.ranks.rows_of_all(value, self.places) for name, value in memory.items()}

    def own(self, memory: State) -> dict[str, Tensor]:
        """Return the memory of this rank from that of all.

        Raises:
            UserError: When it was made with batches of another size.
        """
        if self.keeps != "places":
            return dict(memory)
        if any(len(value) != self.places for value in memory.values()):
            raise UserError(
                f"what the method remembers belongs to other places than the {self.places} of the largest batch; the "
                "last two batches may be one on another number of processes: use as many as before"
            )
        return {name: value[Share(self.places, self.ranks).rows].contiguous() for name, value in memory.items()}
