"""Checks of an attack's input (images, labels, logits), and that its images keep the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from adv_train.errors import UserError
from adv_train.threat import Threat

TOLERANCE = 1e-6
"""How far a float32 image may lie outside the range or a ball of radius up to 1: a few rounding errors near 1."""

_ROUNDING = 2.0**-24
"""Rounding error of a float32 pixel near 1: half of the spacing 2^-23."""


def checked(logits: object, n: int) -> Tensor:
    """Return the logits after checking that they can be those of a classifier.

    Raises:
        UserError: If they are not floating point of shape ``(n, classes)`` with at least two classes.
    """
    found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or not logits.is_floating_point():
        raise UserError(f"A model must return logits of shape ({n}, classes) for {n} images, but returns {found}.")
    if logits.shape[1] < 2:
        raise UserError(
            f"A classifier needs at least 2 logits an image, but the model returns {found}: with one logit, every "
            "image is of class 0. Turn a single logit z into two by `torch.cat([-z, z], 1)`."
        )
    return logits


def check_samples(x: Tensor, y: Tensor, threat: Threat) -> None:
    """Check the images and labels that an attack is given.

    Raises:
        UserError: If the images are not floats ``(N, C, H, W)`` in the threat's range with N >= 1, the labels are not
            int64 classes ``(N,)``, or the budget is so large that it allows every image.
    """
    if x.ndim != 4 or not x.is_floating_point() or len(x) == 0:
        raise UserError(
            f"An attack needs floating-point images of shape (N, C, H, W) with N >= 1, but got {x.dtype} of shape "
            f"{tuple(x.shape)}. Divide uint8 images by 255."
        )
    threat.check_images(x.shape[1:])
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise UserError(
            f"An attack needs one int64 label an image, so shape ({len(x)},), but got {y.dtype} of shape "
            f"{tuple(y.shape)}."
        )
    if bool((y < 0).any()):
        raise UserError(f"Labels are classes counted from 0, but the smallest is {int(y.min())}.")
    span = f"[{threat.low:g}, {threat.high:g}]"
    if not bool(((x >= threat.low) & (x <= threat.high)).all()):
        raise UserError(
            f"An attack needs images in {span}, but their range is [{x.min().item():.3g}, {x.max().item():.3g}]. "
            "Normalise inside the model, not before it."
        )


def check_labels(y: Tensor, classes: int) -> None:
    """Check that every label is the index of a logit.

    Raises:
        UserError: If a label is not below the number of classes.
    """
    if int(y.max()) >= classes:
        raise UserError(f"The largest label is {int(y.max())}, but the model has {classes} logits, counted from 0.")


def check_budget(adversarial: Tensor, x: Tensor, threat: Threat) -> None:
    """Check that an attack's images keep the budget and the range of images, up to rounding.

    In l2 and l1 the rounding errors of all pixels, and those of the sum over them, add up: with a budget of 12 in l1,
    to 1.9e-4 on CIFAR.

    Raises:
        RuntimeError: If an image is outside or not finite, which is an error in the attack and voids its verdict.
    """
    distance = threat.distance(adversarial - x)
    slack = TOLERANCE * max(1.0, threat.eps) + threat.largest(x.shape[1:], _ROUNDING)
    in_range = ((adversarial >= threat.low - TOLERANCE) & (adversarial <= threat.high + TOLERANCE)).flatten(1).all(1)
    inside = in_range & (distance <= threat.eps + slack)
    if not bool(inside.all()):
        farthest = distance.max().item()
        raise RuntimeError(
            f"The attack left its budget: {int((~inside).sum())} of {len(x)} images are outside the {threat.norm} ball "
            f"of radius {threat.eps:.6g} or outside [{threat.low:g}, {threat.high:g}]; the farthest moved by "
            f"{farthest:.6g}."
        )
