"""What a method remembers of each training image: it moves with the augmentation, and is forgotten after some epochs.

Memories lie as the images lie in the training split. They are written in place: a copy of those of all images in each
step would cost more than the step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adv_train.methods.losses import Losses
from adv_train.methods.moment import Sizes, State


def blank(model: nn.Module, sizes: Sizes, *names: str) -> State:
    """Return memories of the images' shape under these names, with nothing in them yet."""
    like = next(model.parameters())
    memories = {name: like.new_zeros(sizes.images) for name in names}
    # The number of the stretch of epochs in which an image was last remembered.
    return {**memories, "stretch": torch.full(sizes.images[:1], -1, device=like.device)}


def renew(losses: Losses, epochs: int, **fresh: Tensor) -> None:
    """Replace the memories of the batch's images that are older than the current stretch of so many epochs.

    An image is seen once an epoch, so this is a reset of all images at the start of each stretch.

    Args:
        losses: of the batch, with its state.
        epochs: length of a stretch.
        **fresh: by the name of a memory, what replaces it: as the images lie in the split, of their shape.
    """
    stretches, index = losses.state["stretch"], losses.index
    epoch = torch.zeros_like(index[0]) if losses.moment is None else losses.moment.epoch
    current = (epoch // epochs).expand_as(index)
    known = (stretches[index] == current).view(-1, *(1,) * (losses.x.ndim - 1))
    for name, value in fresh.items():
        memory = losses.state[name]
        memory.index_copy_(0, index, torch.where(known, memory[index], value))
    stretches.index_copy_(0, index, current)


def recall(losses: Losses, name: str) -> Tensor:
    """Return a memory of the batch's images, moved as these were; zero where augmentation brought black in."""
    return losses.motion.apply(losses.state[name][losses.index])


def keep(losses: Losses, **found: Tensor) -> None:
    """Store tensors of the batch's shape under their names; pixels that the crop left out keep their old value."""
    for name, value in found.items():
        memory = losses.state[name]
        memory.index_copy_(0, losses.index, losses.motion.undo(value, memory[losses.index]))
