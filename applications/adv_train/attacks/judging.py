"""What the judging attacks share: a frozen model, the verdict on a sample, and the check of the budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adv_train.errors import UserError

TOLERANCE = 1e-6
"""By how much a float32 image may leave the eps ball or [0, 1]: a few roundings of numbers near 1."""

_SMALL_MODEL = 1_000_000


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


def progress_bar(title: str, total: int, unit: str, shown: bool | None) -> tqdm[NoReturn]:
    """Make a bar that leaves the screen when it is done; ``shown=None`` shows it on a terminal only."""
    return tqdm(total=total, desc=title, unit=unit, disable=None if shown is None else not shown, leave=False)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Give the predicted class of each image, and -1 where a logit is not finite, which no label equals.

    Args:
        model: Maps images to logits ``(batch, classes)``; its mode is left as it is.
        x: Images ``(N, C, H, W)``.
        batch_size: Images in a forward pass.

    Returns:
        Classes ``(N,)``, int64.
    """
    predictions = []
    for batch in x.split(batch_size):
        logits = model(batch)
        predictions.append(logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1))
    return torch.cat(predictions)


def check_samples(x: Tensor, y: Tensor, eps: float) -> None:
    """Refuse images, labels or a budget that an attack in [0, 1] cannot take.

    Raises:
        UserError: When images are not floats ``(N, C, H, W)`` in [0, 1] with N >= 1, when labels are not int64
            ``(N,)``, or when eps is outside [0, 1].
    """
    if x.ndim != 4 or not x.is_floating_point() or len(x) == 0:
        raise UserError(
            f"An attack needs floating-point images of shape (N, C, H, W) with N >= 1, but got {x.dtype} of shape "
            f"{tuple(x.shape)}. Divide uint8 images by 255."
        )
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise UserError(
            f"An attack needs one int64 label an image, so shape ({len(x)},), but got {y.dtype} of shape "
            f"{tuple(y.shape)}."
        )
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise UserError(
            f"An attack needs images in [0, 1], but their range is [{x.min().item():.3g}, {x.max().item():.3g}]. "
            "Normalise inside the model, not before it."
        )
    if not 0 <= eps <= 1:
        raise UserError(f"`eps` must lie in [0, 1], the range of the images, but is {eps}. Try 8/255.")


def check_budget(adversarial: Tensor, x: Tensor, eps: float) -> None:
    """Refuse to judge by images outside the eps ball or [0, 1], by more than `TOLERANCE`.

    Raises:
        RuntimeError: When some image is outside or not finite: the attack is broken, and so is its verdict.
    """
    moved = (adversarial - x).abs().flatten(1).amax(1)
    inside = (moved <= eps + TOLERANCE) & ((adversarial - 0.5).abs().flatten(1).amax(1) <= 0.5 + TOLERANCE)
    # Written so that NaN, for which every comparison is false, counts as outside.
    if not bool(inside.all()):
        raise RuntimeError(
            f"The attack left its budget: {int((~inside).sum())} of {len(x)} images are outside the ball of radius "
            f"{eps:.6g} or outside [0, 1]; the farthest moved by {moved.max().item():.6g}."
        )
