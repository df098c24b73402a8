"""The parts that all attacks share: their settings, freezing a model, its precision, and predicted classes."""

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
    """The settings that every attack takes besides its own options.

    Attributes:
        seed: Seed of all random numbers of the attack.
        batch_size: Number of images in a batch; the random numbers of AutoAttack depend on it.
        progress: Show a bar; ``None`` shows it on a terminal only.
        ranks: The ranks that attack the images together; each of them gets the verdicts on all images.
        room: Finds the number of images that fit into one pass; None passes whole batches.
    """

    seed: int = 0
    batch_size: int = 512
    progress: bool | None = False
    ranks: Ranks = ALONE
    room: Room | None = None

    @classmethod
    def of(cls, seed: int, batch_size: BatchSize, progress: bool | None = False) -> Judging:
        """Make the settings for a batch size given by the user: a number, or ``"auto"``."""
        if batch_size == "auto":
            return cls(seed, progress=progress, room=Room())
        return cls(seed, batch_size, progress)

    def fitted(self, model: Forward, x: Tensor) -> tuple[Forward, int]:
        """Return a function equal to the model that does not run out of memory, and the number of images for a pass.

        Attacks whose random numbers depend on the batch use batches of `batch_size` and ignore this number.

        Args:
            model: Maps images to logits, frozen.
            x: Images ``(N, C, H, W)`` at full resolution.
        """
        if self.room is None:
            return model, self.batch_size
        return self.room.fitted(model, x), self.room.size

    def shared(self) -> Judging:
        """Return these settings for all ranks of this process group; only the first rank shows the bar."""
        ranks = current()
        return replace(self, ranks=ranks, progress=self.progress if ranks.first else False)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode with constant parameters; restore each module's mode and each flag afterwards.

    In train mode, BatchNorm's output for a sample would depend on the rest of the batch, and each pass of the attack
    would change the running statistics. With constant parameters, backward passes compute no gradients in the weights,
    and no call in an attack can change a ``.grad``.
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
    """Use one thread for a small model on the CPU, and in all other cases the number of threads that the caller set.

    An attack makes thousands of passes in sequence. A pass of a small model takes about a millisecond, in which threads
    wait for each other longer than they compute: with a second busy process on two cores, two threads took 16 times as
    long as one. The rule depends on the model and not on a timing, so results are reproducible.
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
    """Make a bar that is removed from the screen at the end; ``shown=None`` shows it on a terminal only."""
    return bars.progress_bar(shown=bars.are_shown(shown), total=total, desc=title, unit=unit, leave=False)


def full_resolution(x: Tensor) -> Tensor:
    """Convert images to single precision or wider: in half precision, an 8/255 budget has 8 levels or fewer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def adapted(model: nn.Module, x: Tensor) -> Forward:
    """Return a function that takes images at full resolution and calls a model of any precision.

    If the weights have the precision of the full-resolution images, or the model accepts such images because it
    converts them itself, the model is returned unchanged. For any other model, the function rounds the images to the
    precision of the weights, as happens when the model is used; gradients pass through this rounding unchanged.

    Args:
        model: The model, frozen.
        x: The caller's images ``(N, C, H, W)``; their precision is used for a model without weights.
    """
    weights = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    wanted, z = next(weights, x.dtype), full_resolution(x[:1])
    if wanted == z.dtype:
        return model
    try:
        with torch.no_grad():
            model(z)
    except RuntimeError:  # "expected scalar type Half but found Float"; the wording depends on the layer
        return lambda images: model(images.to(wanted))
    return model


def classes_of(logits: Tensor) -> Tensor:
    """Return the class of each row of logits; -1, which equals no label, if a logit of the row is not finite."""
    return logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1)


def deficit(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logsumexp of the other logits minus the label's logit, ``(batch,)``, in float32 or wider.

    The cross-entropy is the softplus of this value, so the gradients of both in an image have the same direction. The
    gradient of this value does not underflow if the model is confident and 1 - p_y is small.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, y[:, None]).squeeze(1)


@torch.no_grad()
def predict(model: Forward, x: Tensor, batch_size: int) -> Tensor:
    """Return the predicted class of each image; -1, which equals no label, if a logit is not finite.

    Args:
        model: Maps images to logits ``(batch, classes)``; its mode is not changed.
        x: Images ``(N, C, H, W)``.
        batch_size: Number of images in a forward pass.

    Returns:
        Classes ``(N,)``, int64.

    Raises:
        UserError: If the model does not return logits of at least two classes.
    """
    return torch.cat([classes_of(checked(model(batch), len(batch))) for batch in x.split(batch_size)])
