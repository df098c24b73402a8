"""Builds a model from its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adv_train.errors import UserError
from adv_train.models import factory, torchvision_models
from adv_train.models.size import check_size
from adv_train.registry import Registry

MODELS: Registry[nn.Module] = Registry("model", "adv_train.models")


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
        name: One of `MODELS.names()`, ``torchvision:NETWORK``, or ``package.module:factory`` for the user's own code.
        channels: Channels of the images: 1 for grey, 3 for colour.
        classes: Number of logits, at least 2.
        image_size: Side of the square images in pixels.
        mean: Mean of each channel over the training images in [0, 1].
        std: Standard deviation of each channel, above zero.
        seed: Seed of the weights, which leaves the global random state unchanged; without it the weights depend on
            ``torch.manual_seed``. Weights are drawn on the CPU, so they do not depend on the device that trains.
        options: The model's own options, such as ``activation="silu"``.

    Returns:
        A module that maps images ``(batch, channels, image_size, image_size)`` in [0, 1] to logits.

    Raises:
        UserError: If the name or an option is unknown, a number is out of its range, or training the model would need
            more memory than is available.
    """
    _check_data(channels, classes, image_size, mean, std)
    from_torchvision = name.startswith(torchvision_models.PREFIX)

    def build() -> nn.Module:
        if ":" in name:
            make = torchvision_models.make if from_torchvision else factory.make
            return make(name, options, channels=channels, classes=classes, image_size=image_size, mean=mean, std=std)
        return MODELS.create(name, channels, classes, image_size, mean, std, **options)

    if from_torchvision:
        check_size(name, torchvision_models.parameters(name), image_size)
    elif ":" not in name:
        with torch.device("meta"):  # shapes only: nothing is allocated and no random number is drawn
            check_size(name, sum(parameter.numel() for parameter in build().parameters()), image_size)
    if seed is None:
        return build()
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which would also reseed every GPU, and `fork_rng` would not restore that.
        torch.default_generator.manual_seed(seed)
        return build()


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
