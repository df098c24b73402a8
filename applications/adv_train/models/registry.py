"""From a model's name to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from adv_train.errors import UserError
from adv_train.models import factory, of_torchvision
from adv_train.registry import Registry

MODELS: Registry[nn.Module] = Registry("model", "adv_train.models")
# Of networks that grow with the images. Without a limit, a dense layer on large images makes the system kill the
# process.
_MOST_PARAMETERS = 64_000_000


def create(
    name: str,
    *,
    channels: int,
    classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model with fresh weights, on the CPU, in float32 and in train mode.

    Args:
        name: One of `MODELS.names()`, ``torchvision:NAME``, or ``package.module:factory`` for one of the user's own.
        channels: Of the images: 1 for grey, 3 for colour.
        classes: Number of logits, at least 2.
        image_size: Side of the square images in pixels.
        mean: Mean of each channel over the training images in [0, 1].
        std: Standard deviation of each channel, above zero.
        seed: Fixes the weights without touching the global random state; without it they follow
            ``torch.manual_seed``. Weights are drawn on the CPU, so they are the same whatever device trains
            them.
        options: The model's own options, such as ``activation="silu"``.

    Returns:
        A module from images ``(batch, channels, image_size, image_size)`` in [0, 1] to logits.

    Raises:
        UserError: When the name or an option is unknown, a number is out of its range, or the images are so large
            that the model would have more than 64 million parameters.
    """
    _check_data(channels, classes, image_size, mean, std)

    def build(size: int = image_size) -> nn.Module:
        described: dict[str, Any] = {
            "channels": channels,
            "classes": classes,
            "image_size": size,
            "mean": mean,
            "std": std,
        }
        if name.startswith(of_torchvision.PREFIX):
            return of_torchvision.make(name, options, **described)
        if ":" in name:
            return factory.make(name, options, **described)
        return MODELS.create(name, channels, classes, size, mean, std, **options)

    if ":" not in name:
        _check_parameters(name, image_size, build)
    if seed is None:
        return build()
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which would reseed every GPU too, for good.
        torch.default_generator.manual_seed(seed)
        return build()


def _check_parameters(name: str, image_size: int, build: Callable[[int], nn.Module]) -> None:
    count = _parameters(build, image_size)
    if count > _MOST_PARAMETERS and count > _parameters(build, 1):
        raise UserError(
            f"Model `{name}` would have {count:,} parameters for images of {image_size}x{image_size} pixels; at most "
            f"{_MOST_PARAMETERS:,} are allowed. Resize the images (`size`, such as size=224)."
        )


def _parameters(build: Callable[[int], nn.Module], image_size: int) -> int:
    with torch.device("meta"):  # shapes only: nothing is allocated and no random number is drawn
        return sum(parameter.numel() for parameter in build(image_size).parameters())


def _check_data(channels: int, classes: int, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if channels < 1 or image_size < 1:
        raise UserError(
            f"A model needs images with channels and pixels, but got {channels} x {image_size} x {image_size}."
        )
    if classes < 2:
        raise UserError(f"A classifier needs at least 2 classes, but the data have {classes}.")
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"`mean` and `std` need one number for each of the {channels} channels, "
            f"but hold {len(mean)} and {len(std)}."
        )
    if min(std) <= 0:
        raise UserError(f"`std` must be above zero in every channel, but its smallest value is {min(std)}.")
