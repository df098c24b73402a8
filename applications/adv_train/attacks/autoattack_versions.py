"""AutoAttack in its other two versions: plus, which has more parts, and rand, which is for randomised models."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from adv_train.ranks import ALONE
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

    A randomised model can classify the same image differently in each pass. The verdict is therefore that of the
    package, which makes one pass over the clean images and one over the images of each part; a sample that the model
    misclassifies in the clean pass is not robust. If the model draws its random numbers from torch's global state, they
    follow from the seed; this state is restored afterwards. Finished batches of a randomised model are not kept, so an
    interrupted run starts again from the beginning.
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
        """Attack every image without keeping finished batches, and restore the global random state."""
        with undisturbed(x.device):
            torch.manual_seed(judging.seed)
            # The verdict depends on random numbers, which would differ between ranks that share the images.
            return super().judge(model, x, y, threat, replace(judging, ranks=ALONE))

    def verdicts(self, run: Run, x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and the classes that the package found; -1 where the clean logits are not finite."""
        images, classes = run(x, y, self.change)
        return images, classes.masked_fill(before < 0, -1)

    def decide(self, clean: Tensor, after: Tensor, y: Tensor) -> Tensor:
        """Return the package's verdict; our clean pass used other random numbers."""
        return after == y
