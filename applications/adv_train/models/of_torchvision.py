"""Models of torchvision, with the normalisation inside."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn

from adv_train.errors import UserError, unknown
from adv_train.models.layers import Normalise

PREFIX: Final = "torchvision:"
#: For plain classifiers: no second head in training, and torch's own initial weights, which do not take minutes.
_PLAIN = {"aux_logits": False, "init_weights": False}


def make(
    name: str,
    options: Mapping[str, Any],
    *,
    channels: int,
    classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Build a classifier of torchvision with fresh weights.

    Args:
        name: ``torchvision:`` and a name such as ``resnet18``. Most have a stem for images of 224 pixels, which makes
            small images tiny.
        options: Further arguments of torchvision's builder.
        channels: Of the images: 3.
        classes: Number of logits.
        image_size: Side of the images in pixels.
        mean: Of each channel.
        std: Of each channel.

    Raises:
        UserError: When there is no such classifier, an option does not fit, or the images are not in colour.
    """
    from torchvision import models  # Not at the top: it takes seconds, and other models need it not.

    kind = name.removeprefix(PREFIX)
    known = models.list_models(module=models)
    if kind not in known:
        raise unknown("model of torchvision", kind, known)
    if channels != 3:
        raise UserError(f"`{name}` needs images with 3 channels, but these have {channels}.")
    arguments: dict[str, Any] = {"image_size": image_size} if kind.startswith("vit_") else {}
    if kind in ("googlenet", "inception_v3"):
        arguments = _PLAIN
    try:
        network = models.get_model(kind, weights=None, num_classes=classes, **arguments, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"`{name}` could not be made ({type(error).__name__}: {error}).") from error
    return nn.Sequential(OrderedDict(normalise=Normalise(mean, std), network=network))
