"""A short attack, followed by standard AutoAttack on the samples that survive it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from torch import Tensor

from adv_train.attacks.autoattack import LEAST_CLASSES
from adv_train.attacks.base import ATTACKS
from adv_train.attacks.checks import check_budget
from adv_train.attacks.official import OfficialAttack
from adv_train.attacks.package import Run
from adv_train.threat import Threat
from adv_train.values import Count, Range

if TYPE_CHECKING:
    from pyautoattack import AutoAttack


@ATTACKS.register("cascade")
@dataclass(frozen=True)
class Cascade(OfficialAttack):
    """Short APGD-CE and APGD-T first, then standard AutoAttack on the samples that survive them.

    The targets of a sample are its most probable wrong classes, the most probable one first. A sample that the short
    attack breaks counts as broken, after its image has been checked against the ball and classified once more.
    AutoAttack alone might not break some of these samples, so the accuracy can be lower than that of AutoAttack. The
    survivors get the verdict of AutoAttack, run on the survivors alone. Random numbers depend on the place of a sample
    in its batch, so the verdict on a sample that AutoAttack breaks only sometimes may differ, as it may with another
    batch size. On the models measured (`python -m benchmarks.cascade`) the cascade saves little or no time, because
    nearly all of the time is spent on survivors.

    Attributes:
        steps: Iterations of each short APGD, at least 3; standard AutoAttack has 100.
        targets: Targets of the short APGD-T, at least 1; standard AutoAttack has 9.

    Raises:
        UserError: If an option is out of its range.
    """

    title: ClassVar[str] = "cascade"
    least_classes: ClassVar[int] = LEAST_CLASSES

    steps: Annotated[int, Range(3)] = 10
    targets: Count = 2

    def verdicts(self, run: Run, x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and their classes: those of the short attack for the samples that it broke."""
        images = run(x, y, self._shorten, "short")[0]
        check_budget(images, x, run.threat)
        after = run.classify(images)
        left = (after == y).nonzero().squeeze(1)
        if len(left) > 0:
            images[left] = run(x[left], y[left], self.change)[0]
            after[left] = run.classify(images[left])
        return images, after

    def cost(self, clean: float, robust: float, classes: int, threat: Threat) -> float:
        """Return the forward passes for each image: the short attack, then AutoAttack on what it leaves."""
        short = self._cost(clean, robust, classes, threat, self._shorten)
        return short + self._cost(robust, robust, classes, threat, self.change)

    def _shorten(self, attack: AutoAttack) -> None:
        """Shorten APGD, and compute the schedule that APGD derives from the number of iterations when it is built."""
        attack.attacks_to_run = ["apgd-ce", "apgd-t"]
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = self.steps
            part.n_iter_2, part.n_iter_min, part.size_decr = (
                max(int(share * self.steps), 1) for share in (0.22, 0.06, 0.03)
            )
        attack.apgd.n_restarts = 1
        attack.apgd_targeted.n_target_classes = min(attack.apgd_targeted.n_target_classes, self.targets)
