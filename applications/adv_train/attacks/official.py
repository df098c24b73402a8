"""The attacks of AutoAttack's authors, run by their code (the package `pyautoattack`) and checked by ours."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adv_train.attacks.base import Attack, Verdicts
from adv_train.attacks.checks import check_budget, check_labels, check_samples, checked
from adv_train.attacks.judging import Judging, adapted, frozen, full_resolution, predict, suitable_threads
from adv_train.attacks.memory import Memory
from adv_train.attacks.package import NORMS, Change, Run, build, costs
from adv_train.errors import UserError
from adv_train.threat import Threat

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

_LEAST_SIDE = 5
"""Smallest side of an image that Square supports in l2 and l1, where it starts from tiles of a fifth of a side."""


@dataclass(frozen=True)
class OfficialAttack(Attack):
    """An attack that `pyautoattack` runs: each of its parts attacks the samples that the earlier parts did not break.

    Only the verdict is ours: we check each returned image against the budget and classify it once more. If a part has
    more targets than the model has wrong classes, it attacks all wrong classes.

    The time goes into thousands of small passes in sequence. Three changes make them cheaper without changing the
    attack: large batches; constant parameters, so that FAB's backward passes compute no gradient in the weights; and
    one thread for small models.

    Attributes:
        title: Name of the attack in errors and beside the progress bar.
        version: Version of AutoAttack, by the package's name for it.
    """

    title: ClassVar[str] = "AutoAttack"
    version: ClassVar[Literal["standard", "plus", "rand"]] = "standard"

    def judge(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        judging: Judging,
        memory: Memory | None = None,
    ) -> Verdicts:
        """Attack every image, in float32; the global random state is the same afterwards.

        As in the original, random numbers depend on the batch size. Batches that `memory` holds are not attacked again.

        Warns:
            RuntimeWarning: If AutoAttack's own checks find, say, a randomised model or vanished gradients.

        Raises:
            UserError: If an argument has the wrong range or shape, the threat's range is not [0, 1], the images are
                below 5 x 5 pixels in l2 and l1, which Square does not support, or the model has too few classes.
            RuntimeError: If an image leaves the ball.
        """
        check_samples(x, y, threat)
        settings = self.settings(threat, judging.batch_size)
        given, x = x, full_resolution(x)
        with frozen(model), suitable_threads(model, x):
            shown, size = judging.fitted(adapted(model, given), x)
            with torch.no_grad():
                classes = checked(shown(x[:1]), 1).shape[1]
            self.check(x, classes, threat)
            check_labels(y, classes)
            before = predict(shown, x, size)
            clean = before == y
            if threat.eps == 0 or not clean.any():
                return Verdicts(clean, x.clone(), before, settings)
            run = Run(shown, threat, judging, self.title, self.version, classes, memory)
            images, after = self.verdicts(run, x, y, before)
            check_budget(images, x, threat)
            return Verdicts(self.decide(clean, after, y), images, after, settings)

    def resume(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging, folder: Path
    ) -> Verdicts:
        """Return the verdicts of `judge`; batches that a part has finished are kept, and not attacked again."""
        return self.judge(model, x, y, threat, judging, Memory(folder))

    def check(self, x: Tensor, classes: int, threat: Threat) -> None:
        """Check the range of images, the number of classes, and in l2 and l1 the size of the images.

        Raises:
            UserError: If AutoAttack does not support them; the message gives the reason.
        """
        if (threat.low, threat.high) != (0, 1):
            raise UserError(
                f"{self.title} attacks images in [0, 1] only, but the threat is {threat}. Leave this attack out."
            )
        if threat.norm != "linf" and min(x.shape[2:]) < _LEAST_SIDE:
            raise UserError(
                f"{self.title} in {threat.norm} needs images of at least {_LEAST_SIDE} x {_LEAST_SIDE} pixels, but "
                f"these have {x.shape[2]} x {x.shape[3]}. Evaluate the model with PGD alone."
            )
        if classes < self.least_classes:
            raise UserError(
                f"{self.title}'s loss compares {self.least_classes} logits, but the model has {classes} classes. "
                "Evaluate it with PGD alone."
            )

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return version, norm, release of the package, options, and the batch size, which changes random numbers."""
        said = {"version": self.version, "norm": NORMS[threat.norm], "pyautoattack": version("pyautoattack")}
        return {**said, **self.chosen(), "batch_size": batch_size}

    def cost(self, clean: float, robust: float, classes: int, threat: Threat) -> float:
        """Return the forward passes for each image: all parts but the first attack what the first one leaves."""
        return self._cost(clean, robust, classes, threat, self.change)

    def _cost(self, clean: float, robust: float, classes: int, threat: Threat, change: Change) -> float:
        first, *others = costs(build(lambda z: z, threat, self.version, classes, change), classes)
        return clean * first + robust * sum(others)

    def change(self, attack: AutoAttack) -> None:
        """Modify the package's attack, before it runs, into the attack of this class."""

    def verdicts(self, run: Run, x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Run the attack and return images and their classes; `before` are the classes of the clean images."""
        images = run(x, y, self.change)[0]
        return images, run.classify(images)

    def decide(self, clean: Tensor, after: Tensor, y: Tensor) -> Tensor:
        """Return which samples are robust, from whether the clean image is classified correctly and the class after."""
        return clean & (after == y)
