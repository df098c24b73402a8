"""Whether an image survives a single step of an attack: what masked gradients make it do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adv_train.attacks.geometry import GEOMETRIES
from adv_train.attacks.judging import adapted, classes_of, frozen, full_resolution
from adv_train.measures.slope import slope
from adv_train.threat import Threat


def survives_one_step(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Say of each image whether it is still classified correctly after one step from it to the edge of the ball.

    In linf the step is that of FGSM (Goodfellow, Shlens and Szegedy, ICLR 2015), and in l2 and l1 it follows the
    gradient. A model that withstands it and not PGD has overfitted to it. It costs 3 F for these images.

    Args:
        model: Maps images to logits, with its normalisation inside. It is handed back as it was.
        x: Images, shape `(batch, channels, height, width)`, floating point, on the model's device.
        y: Labels, shape `(batch,)`, int64.
        threat: Norm and radius of the ball.

    Returns:
        Shape `(batch,)`, bool.

    Raises:
        UserError: When the model returns no logits.
    """
    shape, images = GEOMETRIES[threat.norm], full_resolution(x)
    with frozen(model):
        forward = adapted(model, x)
        moved = images + threat.eps * shape.step(slope(forward, images, y))
        with torch.no_grad():
            return classes_of(forward(shape.project(moved, images, threat))) == y
