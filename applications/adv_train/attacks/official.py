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
from adv_train.attacks.package import NORMS, Run
from adv_train.errors import UserError
from adv_train.threat import Threat

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

_LEAST_SIDE = 5
"""Pixels that Square divides an image's height and width by, but for the maximum norm."""


@dataclass(frozen=True)
class OfficialAttack(Attack):
    """An attack that `pyautoattack` runs: each of its parts sees the samples that the earlier ones left.

    Only the verdict is ours: each returned image is checked against the budget and classified once more. Fewer classes
    than the parts have targets leave fewer targets.

    What costs the time is thousands of small passes in sequence, so the attack is made cheaper without being changed:
    large batches, constant parameters so that FAB's backward passes compute no gradient in the weights, and one thread
    for small models.

    Attributes:
        title: What it is called in errors and beside its bar.
        version: Of AutoAttack, by the package's name for it.
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
        """Attack every image, in float32; the global random state is left as it was.

        As in the original, random numbers depend on the batch size. What the memory holds is not done again.

        Warns:
            RuntimeWarning: What AutoAttack's own checks find, such as a randomised model or vanished gradients.

        Raises:
            UserError: When an argument is out of range or shape, for other ranges than [0, 1], for images below 5 x 5
                pixels in l2 and l1, which Square cannot divide, or when the model has too few classes.
            RuntimeError: When an image leaves the ball.
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
        """Attack with the verdicts of `judge`; each batch that a part has done is kept, and not done again."""
        return self.judge(model, x, y, threat, judging, Memory(folder))

    def check(self, x: Tensor, classes: int, threat: Threat) -> None:
        """Refuse other ranges than [0, 1], too few classes, and in l2 and l1 images that Square cannot divide.

        Raises:
            UserError: Says why.
        """
        if (threat.low, threat.high) != (0, 1):
            raise UserError(f"{self.title} attacks images in [0, 1] only, but the threat is {threat}. Leave it out.")
        if threat.norm != "linf" and min(x.shape[2:]) < _LEAST_SIDE:
            raise UserError(
                f"{self.title} in {threat.norm} needs images of at least {_LEAST_SIDE} x {_LEAST_SIDE} pixels, but "
                f"these have {x.shape[2]} x {x.shape[3]}. Judge them by PGD alone."
            )
        if classes < self.least_classes:
            raise UserError(
                f"{self.title}'s loss compares {self.least_classes} logits, but the model has {classes} classes. "
                "Judge it by PGD alone."
            )

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return version, norm, release of the package, options, and the batch size, which decides random numbers."""
        said = {"version": self.version, "norm": NORMS[threat.norm], "pyautoattack": version("pyautoattack")}
        return {**said, **self.chosen(), "batch_size": batch_size}

    def change(self, attack: AutoAttack) -> None:
        """Change the package's version into this attack, before it runs."""

    def verdicts(self, run: Run, x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and their classes; `before` are the classes of the clean images."""
        images = run(x, y, self.change)[0]
        return images, run.classify(images)

    def decide(self, clean: Tensor, after: Tensor, y: Tensor) -> Tensor:
        """Tell which samples are robust, from whether they were right before and their classes after."""
        return clean & (after == y)
