"""Whether an image survives a single attack step, as it may if training has overfitted to such steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adv_train.attacks.geometry import GEOMETRIES
from adv_train.attacks.judging import adapted, classes_of, frozen, full_resolution
from adv_train.measures.slope import slope
from adv_train.threat import Threat


def survives_one_step(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Return for each image whether it is still classified correctly after one step of length eps along the gradient.

    In linf the step is that of FGSM (Goodfellow, Shlens and Szegedy, ICLR 2015); in l2 and l1 it follows the gradient.
    A model that withstands this step but not PGD has overfitted to it. The cost is that of 3 forward passes over these
    images.

    Args:
        model: Maps images to logits, with its normalisation inside. Its state is the same afterwards.
        x: Images, shape `(batch, channels, height, width)`, floating point, on the model's device.
        y: Labels, shape `(batch,)`, int64.
        threat: Norm and radius of the ball.

    Returns:
        Shape `(batch,)`, bool.

    Raises:
        UserError: If the model does not return logits.
    """
    shape, images = GEOMETRIES[threat.norm], full_resolution(x)
    with frozen(model):
        forward = adapted(model, x)
        moved = images + threat.eps * shape.step(slope(forward, images, y))
        with torch.no_grad():
            return classes_of(forward(shape.project(moved, images, threat))) == y
