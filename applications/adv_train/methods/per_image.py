"""Memories of a method for each training image: they follow its augmentation, and are reset after some epochs.

A memory is stored in the layout of the training split, without augmentation. It is written in place, because a copy of
the memory of all images in each step would cost more than the step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adv_train.methods.losses import Losses
from adv_train.methods.moment import Sizes, State


def blank(model: nn.Module, sizes: Sizes, *names: str) -> State:
    """Return memories of zeros under these names, each with the shape of all training images."""
    like = next(model.parameters())
    memories = {name: like.new_zeros(sizes.images) for name in names}
    # For each image, the index of the stretch of epochs in which its memory was last written; -1 if never.
    return {**memories, "stretch": torch.full(sizes.images[:1], -1, device=like.device)}


def renew(losses: Losses, epochs: int, **fresh: Tensor) -> None:
    """Reset the memories of the batch's images that were last written before the current stretch of epochs.

    A training image is seen once an epoch, so this resets all images in the first epoch of each stretch.

    Args:
        losses: losses of the batch, with the memory in `state`.
        epochs: length of a stretch in epochs.
        **fresh: new contents by name of the memory, of the batch's shape, in the layout of the training split.
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
    """Return a memory of the batch's images, augmented like the images; zero where augmentation padded them."""
    return losses.motion.apply(losses.state[name][losses.index])


def keep(losses: Losses, **found: Tensor) -> None:
    """Store tensors of the batch's shape in the memories of these names, without the augmentation.

    Pixels that the crop left out keep their old value.
    """
    for name, value in found.items():
        memory = losses.state[name]
        memory.index_copy_(0, losses.index, losses.motion.undo(value, memory[losses.index]))
