"""Projected gradient descent with random restarts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adv_train.attacks.ascent import Steps, ascend, untargeted
from adv_train.attacks.base import ATTACKS, Attack, Verdicts
from adv_train.attacks.judging import Judging
from adv_train.threat import Norm, Threat
from adv_train.values import Count, Positive


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent on the cross-entropy, with random restarts (Madry et al., ICLR 2018).

    The default is PGD-50-10 of the published tables. In linf steps follow the sign of the gradient, in l2 and l1 the
    gradient; in l1 the ball shrinks from 3 eps to eps on the way.

    Attributes:
        steps: Steps of each restart, at least 1.
        restarts: Random starts, at least 1.
        step: Largest change of a pixel in a step in linf, its Euclidean length in l2 and l1; ``None`` is a quarter of
            the ball's radius.

    Raises:
        UserError: When an option is out of its range.
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
        """Attack every image, from starts that the seed or a given generator draws."""
        steps, aims = Steps(self.steps, self.step), [untargeted] * self.restarts
        found = ascend(model, x, y, threat, steps, lambda classes: aims, judging, generator=generator)
        return Verdicts(*found, self.settings(threat, judging.batch_size))

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return the options, with the step's length and in l1 the radii of the balls."""
        told = {"loss": "cross-entropy", **Steps(self.steps, self.step).told(threat)}
        return {"steps": self.steps, "restarts": self.restarts, **told}


PGDSettings = PGD  # The name that scripts know.


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
    """Attack every image in the ball of radius eps in [0, 1], from starts that a given generator draws.

    Args:
        model: Maps images in [0, 1] to logits ``(batch, classes)``, with its normalisation inside.
        x: Images ``(N, C, H, W)`` in [0, 1], on the model's device.
        y: Labels ``(N,)``, int64.
        eps: Radius in units of images in [0, 1].
        norm: Of the ball.
        steps: Steps of each restart.
        restarts: Random starts, uniform in the ball.
        step: Length of a step; ``None`` is a quarter of the radius.
        generator: Draws the starts, on its own device.
        batch_size: Images in a forward pass; it does not change the result beyond rounding.
        progress: Show a bar; ``None`` shows it on a terminal only.

    Returns:
        Whether each sample is robust, ``(N,)`` bool, and images like x: for a broken sample the one that broke
        it (x itself where that was misclassified), for a robust one the last iterate of the last restart.

    Warns:
        RuntimeWarning: When the model gives PGD nothing to climb by (see `adv_train.attacks.masking`).

    Raises:
        UserError: When an argument is out of range or shape.
        RuntimeError: When a gradient is not finite, or an image leaves the ball.
    """
    judging = Judging(batch_size=batch_size, progress=progress)
    found = PGD(steps, restarts, step).judge(model, x, y, Threat(norm, eps), judging, generator)
    return found.robust, found.images
