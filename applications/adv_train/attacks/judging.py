"""What the judging attacks share: their settings, a frozen model at its own precision, the verdict on a sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adv_train import bars
from adv_train.attacks.checks import checked
from adv_train.attacks.room import BatchSize, Forward, Room
from adv_train.ranks import ALONE, Ranks, current

if TYPE_CHECKING:
    from tqdm import tqdm

_SMALL_MODEL = 1_000_000


@dataclass(frozen=True)
class Judging:
    """The settings that every attack takes, whatever its options.

    Attributes:
        seed: Of all random numbers of the attack.
        batch_size: Images in a batch; the random numbers of AutoAttack depend on it.
        progress: Show a bar; ``None`` shows it on a terminal only.
        ranks: Those that attack the same images together; each gets the verdicts on all of them.
        room: How many images fit into a pass, where that is to be found out; None takes whole batches.
    """

    seed: int = 0
    batch_size: int = 512
    progress: bool | None = False
    ranks: Ranks = ALONE
    room: Room | None = None

    @classmethod
    def of(cls, seed: int, batch_size: BatchSize, progress: bool | None = False) -> Judging:
        """Make the settings from what a user says of the batch size: a number, or ``"auto"``."""
        if batch_size == "auto":
            return cls(seed, progress=progress, room=Room())
        return cls(seed, batch_size, progress)

    def fitted(self, model: Forward, x: Tensor) -> tuple[Forward, int]:
        """Give a function like the model that does not run out of memory, and how many images suit it at once.

        Attacks whose random numbers depend on the batch take batches of `batch_size` all the same.

        Args:
            model: Maps images to logits, frozen.
            x: Images ``(N, C, H, W)`` at full resolution.
        """
        if self.room is None:
            return model, self.batch_size
        return self.room.fitted(model, x), self.room.size

    def shared(self) -> Judging:
        """Return these settings for all ranks there are; the first one shows the bar."""
        ranks = current()
        return replace(self, ranks=ranks, progress=self.progress if ranks.first else False)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with constant parameters, and put back every submodule's mode and every flag.

    In train mode BatchNorm would classify a sample by its neighbours and the attack would move the running
    statistics. Constant parameters spare each backward pass the gradients in the weights, and leave ``.grad``
    alone whatever the attack calls.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def suitable_threads(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Use one thread for a small model on the CPU, and the number of threads the caller chose for all else.

    An attack is thousands of passes in sequence. One pass of a small model takes about a millisecond, and then
    threads wait for each other longer than they work: with a second busy process on two cores, two threads took
    16 times as long as one. The rule depends on the model alone, not on a timing, so results stay reproducible.
    """
    threads = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in model.parameters()) < _SMALL_MODEL
    if x.device.type != "cpu" or not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def progress_bar(title: str, total: int, unit: str, shown: bool | None) -> tqdm[Any]:
    """Make a bar that leaves the screen when it is done; ``shown=None`` shows it on a terminal only."""
    return bars.progress_bar(shown=bars.are_shown(shown), total=total, desc=title, unit=unit, leave=False)


def full_resolution(x: Tensor) -> Tensor:
    """Give images in single precision or wider: half precision has 8 levels of an 8/255 budget, or fewer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def adapted(model: nn.Module, x: Tensor) -> Forward:
    """Make the function that shows images at full resolution to a model of any precision.

    A model whose weights have the images' precision is called as it is, and so is one that takes full-resolution
    images all the same, because it converts them itself. For any other, images are rounded to the precision of its
    weights on the way in, as they are in use; gradients pass that rounding unchanged.

    Args:
        model: The model, frozen.
        x: The images as the caller gave them ``(N, C, H, W)``: a model without weights gets their precision.
    """
    weights = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    wanted, z = next(weights, x.dtype), full_resolution(x[:1])
    if wanted == z.dtype:
        return model
    try:
        with torch.no_grad():
            model(z)
    except RuntimeError:  # "expected scalar type Half but found Float", in as many wordings as there are layers
        return lambda images: model(images.to(wanted))
    return model


def classes_of(logits: Tensor) -> Tensor:
    """Give the class of each row of logits, and -1 where a logit is not finite, which no label equals."""
    return logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1)


def deficit(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logsumexp of the other logits minus that of the label, shape ``(batch,)``, in float32 or wider.

    The cross-entropy is its softplus, so both rise in the same direction in each image. This one's gradient does not
    underflow where the model is sure and 1 - p_y is small.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, y[:, None]).squeeze(1)


@torch.no_grad()
def predict(model: Forward, x: Tensor, batch_size: int) -> Tensor:
    """Give the predicted class of each image, and -1 where a logit is not finite, which no label equals.

    Args:
        model: Maps images to logits ``(batch, classes)``; its mode is left as it is.
        x: Images ``(N, C, H, W)``.
        batch_size: Images in a forward pass.

    Returns:
        Classes ``(N,)``, int64.

    Raises:
        UserError: When the model does not return logits of at least two classes.
    """
    return torch.cat([classes_of(checked(model(batch), len(batch))) for batch in x.split(batch_size)])
