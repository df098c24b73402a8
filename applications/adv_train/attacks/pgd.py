"""PGD: projected gradient ascent on the cross-entropy, with random restarts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adv_train.attacks.ascent import Steps, ascend, untargeted
from adv_train.attacks.base import ATTACKS, GRADIENT, Attack, Verdicts
from adv_train.attacks.judging import Judging
from adv_train.threat import Norm, Threat
from adv_train.values import Count, Positive


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent on the cross-entropy, with random restarts (Madry et al., ICLR 2018).

    The defaults are those of PGD-50-10 in the published tables. In linf, a step follows the sign of the gradient; in l2
    and l1, the gradient. In l1, the radius of the ball shrinks from 3 eps to eps during the ascent.

    Attributes:
        steps: Number of steps of each restart, at least 1.
        restarts: Number of random starts, at least 1.
        step: Length of a step: in linf the change of a pixel, in l2 and l1 the Euclidean length. ``None`` takes a
            quarter of the ball's radius.

    Raises:
        UserError: If an option is out of its range.
    """

    steps: Count = 50
    restarts: Count = 10
    step: Positive | None = None

    def judge(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        judging: Judging,
        generator: torch.Generator | None = None,
    ) -> Verdicts:
        """Attack every image, from starts drawn with the seed, or from a generator if one is given."""
        steps, aims = Steps(self.steps, self.step), [untargeted] * self.restarts
        found = ascend(model, x, y, threat, steps, lambda classes: aims, judging, generator=generator)
        return Verdicts(*found, self.settings(threat, judging.batch_size))

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return the options, the length of a step, and in l1 the radii of the balls."""
        told = {"loss": "cross-entropy", **Steps(self.steps, self.step).told(threat)}
        return {"steps": self.steps, "restarts": self.restarts, **told}

    def cost(self, clean: float, robust: float, classes: int, threat: Threat) -> float:
        """Return the forward passes for each image: each restart has a gradient a step and a pass at its end."""
        return (clean + (self.restarts - 1) * robust) * (1 + GRADIENT * self.steps)


PGDSettings = PGD  # An older name, for scripts that use it.


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 50,
    restarts: int = 10,
    step: float | None = None,
    generator: torch.Generator,
    batch_size: int = 512,
    progress: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """Attack every image within [0, 1] in the ball of radius eps, from random starts.

    Args:
        model: Maps images in [0, 1] to logits ``(batch, classes)``, with its normalisation inside.
        x: Images ``(N, C, H, W)`` in [0, 1], on the model's device.
        y: Labels ``(N,)``, int64.
        eps: Radius of the ball, in units of images in [0, 1].
        norm: Norm of the ball.
        steps: Number of steps of each restart.
        restarts: Number of random starts, uniform in the ball.
        step: Length of a step; ``None`` takes a quarter of the radius.
        generator: Source of the starts; they are drawn on its device.
        batch_size: Number of images in a forward pass; the result does not depend on it, beyond rounding.
        progress: Show a bar; ``None`` shows it on a terminal only.

    Returns:
        Whether each sample is robust, ``(N,)`` bool, and images of the shape of x: the image that broke a broken
        sample (the clean image if the model misclassifies it), and the last iterate of the last restart for a robust
        sample.

    Warns:
        RuntimeWarning: If the model gives PGD no usable gradient (see `adv_train.attacks.masking`).

    Raises:
        UserError: If an argument has the wrong range or shape.
        RuntimeError: If a gradient is not finite, or an image leaves the ball.
    """
    judging = Judging(batch_size=batch_size, progress=progress)
    found = PGD(steps, restarts, step).judge(model, x, y, Threat(norm, eps), judging, generator)
    return found.robust, found.images
