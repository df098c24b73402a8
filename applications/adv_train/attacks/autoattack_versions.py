"""AutoAttack in its other two versions: with more parts, and for models that are randomised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from adv_train.attacks.autoattack import LEAST_CLASSES
from adv_train.attacks.base import ATTACKS, Verdicts
from adv_train.attacks.judging import Judging
from adv_train.attacks.memory import Memory
from adv_train.attacks.narration import undisturbed
from adv_train.attacks.official import OfficialAttack
from adv_train.attacks.package import Run
from adv_train.threat import Threat


@ATTACKS.register("autoattack-plus")
@dataclass(frozen=True)
class PlusAutoAttack(OfficialAttack):
    """AutoAttack, version plus: also APGD-DLR and untargeted FAB, with five restarts each.

    APGD-CE, APGD-DLR, FAB, Square, APGD-T and FAB-T in this order (Croce and Hein, ICML 2020). It takes several times
    as long as the standard version. In l1 it does not shrink the ball.
    """

    title: ClassVar[str] = "AutoAttack plus"
    version: ClassVar[Literal["standard", "plus", "rand"]] = "plus"
    least_classes: ClassVar[int] = LEAST_CLASSES


@ATTACKS.register("autoattack-rand")
@dataclass(frozen=True)
class RandAutoAttack(OfficialAttack):
    """AutoAttack, version rand, for randomised models: APGD-CE and APGD-DLR on gradients averaged over 20 passes.

    A randomised model answers differently each time, so the verdict is that of the package itself: the pass that it
    makes over the images of each part, and before the first part over the clean images. Samples that are wrong in that
    clean pass are not robust. The model's random numbers follow from the seed where it takes them from torch's global
    state, which is put back. A pass of a model that answers anew each time is not repeated, so an interrupted run
    starts anew.
    """

    title: ClassVar[str] = "AutoAttack rand"
    version: ClassVar[Literal["standard", "plus", "rand"]] = "rand"
    least_classes: ClassVar[int] = 3

    def judge(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        judging: Judging,
        memory: Memory | None = None,
    ) -> Verdicts:
        """Attack every image and remember nothing; passes of the model leave the random state alone too."""
        with undisturbed(x.device):
            torch.manual_seed(judging.seed)
            return super().judge(model, x, y, threat, judging)

    def verdicts(self, run: Run, x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and the classes that the package saw; -1 where the clean logits are not finite."""
        images, classes = run(x, y, self.change)
        return images, classes.masked_fill(before < 0, -1)

    def decide(self, clean: Tensor, after: Tensor, y: Tensor) -> Tensor:
        """Take the package's verdict: our clean pass is another draw."""
        return after == y
