"""PGD towards each of the most probable wrong classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adv_train.attacks.ascent import Aim, Loss, Steps, ascend
from adv_train.attacks.base import ATTACKS, GRADIENT, Attack, Verdicts
from adv_train.attacks.judging import Judging
from adv_train.threat import Threat
from adv_train.values import Count, Positive


@ATTACKS.register("pgd-targeted")
@dataclass(frozen=True)
class TargetedPGD(Attack):
    """PGD on the logit of a wrong class minus that of the label, one target after the other (Gowal et al., 2019).

    The targets of a sample are its most probable wrong classes on the clean image, the most probable one first. A
    sample is broken as soon as the model predicts any wrong class, not only the target; it is not attacked again then.

    Attributes:
        targets: Number of wrong classes to try, at most all; `none` tries all of them.
        steps: Steps towards each target, at least 1.
        restarts: Random starts for each target, at least 1.
        step: Length of a step, as for `PGD`.

    Raises:
        UserError: If an option is out of its range.
    """

    targets: Count | None = 9
    steps: Count = 50
    restarts: Count = 1
    step: Positive | None = None

    def judge(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging) -> Verdicts:
        """Attack every image."""
        steps = Steps(self.steps, self.step)
        found = ascend(model, x, y, threat, steps, self._aims, judging, title="targeted PGD")
        return Verdicts(*found, self.settings(threat, judging.batch_size))

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return the options, the length of a step, and in l1 the radii of the balls."""
        targets = "all" if self.targets is None else self.targets
        return {"targets": targets, "steps": self.steps, "restarts": self.restarts, "loss": "margin"} | Steps(
            self.steps, self.step
        ).told(threat)

    def cost(self, clean: float, robust: float, classes: int, threat: Threat) -> float:
        """Return the forward passes for each image, as for `PGD`, with a run for each target and start."""
        return (clean + (len(self._aims(classes)) - 1) * robust) * (1 + GRADIENT * self.steps)

    def _aims(self, classes: int) -> list[Aim]:
        targets = classes - 1 if self.targets is None else min(self.targets, classes - 1)
        return [aim for rank in range(targets) for aim in [towards(rank)] * self.restarts]


def towards(rank: int) -> Aim:
    """Return the aim that raises the logit of a wrong class over the label's logit.

    Rank 0 is the wrong class with the largest logit on the clean image, rank 1 the next one, and so on.
    """

    def aim(y: Tensor, clean: Tensor) -> Loss:
        others = clean.scatter(1, y[:, None], -torch.inf)
        target = others.sort(dim=1, descending=True, stable=True).indices[:, rank : rank + 1]

        def loss(logits: Tensor) -> Tensor:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return (logits.gather(1, target) - logits.gather(1, y[:, None])).sum()

        return loss

    return aim
