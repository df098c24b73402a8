"""A short attack, and the whole of AutoAttack on the samples that survive it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from torch import Tensor

from adv_train.attacks.autoattack import LEAST_CLASSES
from adv_train.attacks.base import ATTACKS
from adv_train.attacks.checks import check_budget
from adv_train.attacks.official import OfficialAttack
from adv_train.attacks.package import Run
from adv_train.values import Count, Range

if TYPE_CHECKING:
    from pyautoattack import AutoAttack


@ATTACKS.register("cascade")
@dataclass(frozen=True)
class Cascade(OfficialAttack):
    """Short APGD-CE and APGD-T first, then the whole of standard AutoAttack on the samples that survive these.

    The targets of a sample are its most probable wrong classes, the most probable one first. A sample that the short
    part breaks is broken: its image is checked against the ball and classified once more, and the accuracy is lower by
    those among them that AutoAttack does not break. Every survivor gets the verdict of the official attack, run on the
    survivors alone; one that falls to some random numbers only may go either way, as with another batch size of
    AutoAttack, since random numbers depend on the place in a batch. It saves little or no time on the models measured
    (`python -m benchmarks.cascade`): nearly all of it goes into survivors.

    Attributes:
        steps: Iterations of each short APGD, at least 3; the official one has 100.
        targets: Targets of the short APGD-T, at least 1; the official one has 9.

    Raises:
        UserError: When an option is out of its range.
    """

    title: ClassVar[str] = "cascade"
    least_classes: ClassVar[int] = LEAST_CLASSES

    steps: Annotated[int, Range(3)] = 10
    targets: Count = 2

    def verdicts(self, run: Run, x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and their classes: those of the short part where it broke a sample."""
        images = run(x, y, self._shorten, "short")[0]
        check_budget(images, x, run.threat)
        after = run.classify(images)
        left = (after == y).nonzero().squeeze(1)
        if len(left) > 0:
            images[left] = run(x[left], y[left], self.change)[0]
            after[left] = run.classify(images[left])
        return images, after

    def _shorten(self, attack: AutoAttack) -> None:
        """Make APGD short; its schedule follows from the number of iterations when it is made."""
        attack.attacks_to_run = ["apgd-ce", "apgd-t"]
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter = part.n_iter_orig = self.steps
            part.n_iter_2, part.n_iter_min, part.size_decr = (
                max(int(share * self.steps), 1) for share in (0.22, 0.06, 0.03)
            )
        attack.apgd.n_restarts = 1
        attack.apgd_targeted.n_target_classes = min(attack.apgd_targeted.n_target_classes, self.targets)
