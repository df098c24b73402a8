"""The direction in which the cross-entropy of an image rises."""

from __future__ import annotations

import torch
from torch import Tensor

from adv_train.attacks.checks import checked
from adv_train.attacks.judging import deficit
from adv_train.attacks.room import Forward


def slope(forward: Forward, x: Tensor, y: Tensor) -> Tensor:
    """Return a positive multiple of the gradient of each image's cross-entropy in its pixels, of the shape of x.

    It is the gradient of `attacks.judging.deficit`; the gradient of the cross-entropy is `1 - p_y` times as long, and
    underflows where p_y is near 1. It is zero if the output does not depend on the image. The `.grad` of the weights
    does not change.

    Args:
        forward: Maps images to logits `(batch, classes)`; the logits of an image must not depend on other images, as in
            eval mode.
        x: Images, shape `(batch, ...)`, floating point.
        y: Labels, shape `(batch,)`, int64.

    Raises:
        UserError: If the model does not return logits.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        logits = checked(forward(point), len(x))
        rise = deficit(logits, y).sum()
        (found,) = torch.autograd.grad(rise, point, allow_unused=True) if rise.requires_grad else (None,)
    return torch.zeros_like(x) if found is None else found


def scaled(gradient: Tensor) -> Tensor:
    """Scale each image's gradient to a largest absolute entry of 1, so that no norm underflows; zero stays zero."""
    largest = gradient.flatten(1).abs().amax(1).view(-1, *(1,) * (gradient.ndim - 1))
    return gradient / torch.where(largest > 0, largest, torch.ones_like(largest))
