"""The attacks of AutoAttack's authors, run by their code (the package `pyautoattack`) and checked by ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from adv_train.attacks.base import Attack, Verdicts
from adv_train.attacks.judging import (
    Forward,
    Judging,
    adapted,
    check_budget,
    check_labels,
    check_samples,
    checked,
    frozen,
    full_resolution,
    predict,
    progress_bar,
    suitable_threads,
)
from adv_train.attacks.memory import Memory
from adv_train.attacks.narration import bar_mover, narrated, undisturbed
from adv_train.errors import UserError
from adv_train.threat import Threat

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

_LEAST_SIDE = 5
"""Pixels that Square divides an image's height and width by, but for the maximum norm."""

_NORMS: Final = {"linf": "Linf", "l2": "L2", "l1": "L1"}

Change = Callable[["AutoAttack"], None]


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
            shown = adapted(model, given)
            with torch.no_grad():
                classes = checked(shown(x[:1]), 1).shape[1]
            self.check(x, classes, threat)
            check_labels(y, classes)
            before = predict(shown, x, judging.batch_size)
            clean = before == y
            if threat.eps == 0 or not clean.any():
                return Verdicts(clean, x.clone(), before, settings)
            run = Run(shown, threat, judging, self.title, self.version, classes, memory)
            images, after = self.verdicts(run, x, y, before)
            check_budget(images, x, threat)
            return Verdicts(self.decide(clean, after, y), images, after, settings)

    def resume(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, folder: Path, **judging: Any
    ) -> Verdicts:
        """Attack with the verdicts of a call; each batch that a part has done is kept, and not done again."""
        return self.judge(model, x, y, threat, Judging(**judging), Memory(folder))

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
        said = {"version": self.version, "norm": _NORMS[threat.norm], "pyautoattack": version("pyautoattack")}
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


@dataclass(frozen=True)
class Run:
    """Runs the package on images.

    Attributes:
        model: Maps images to logits, frozen.
        threat: The ball.
        judging: Seed of all parts, batch size and bar.
        title: Beside the bar.
        version: Of AutoAttack.
        classes: Number of logits.
        memory: Keeps finished batches; None keeps nothing.
    """

    model: Forward
    threat: Threat
    judging: Judging
    title: str
    version: str
    classes: int
    memory: Memory | None = None

    def __call__(self, x: Tensor, y: Tensor, change: Change, name: str = "whole") -> tuple[Tensor, Tensor]:
        """Attack images and give back images and their classes as the package saw them.

        Args:
            x: Images at full resolution.
            y: Labels.
            change: What to change of the package's version.
            name: Of this run among those of one attack.
        """
        from pyautoattack import AutoAttack  # Not at the top: `import adv_train` works without it.

        def forward(z: Tensor) -> Tensor:
            bar.update()
            logits = self.model(z.to(x.dtype))
            if z.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
                logits = logits + 0 * z.flatten(1).sum(1, keepdim=True)  # Without a graph the gradient is zero.
            return logits.float()

        norm = _NORMS[self.threat.norm]
        attack = AutoAttack(
            forward, eps=self.threat.eps, norm=norm, seed=self.judging.seed, device=x.device, version=self.version
        )
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(part.n_target_classes, self.classes - 1)
        change(attack)
        if self.memory is not None:
            _remember(attack, self.memory.under(name))
        batches = math.ceil(len(x) / self.judging.batch_size)
        passes = {name: batches * count for name, count in _passes(attack).items()}
        bar = progress_bar(self.title, sum(passes.values()), "pass", self.judging.progress)
        with bar, narrated(attack.logger, bar_mover(bar, passes, self.title)), undisturbed(x.device):
            # Every part sets this seed itself; the clean pass of a randomised model comes before.
            torch.manual_seed(self.judging.seed)
            found, classes = attack.run_standard_evaluation(x.float(), y, batch_size=self.judging.batch_size)
        return found.to(x.dtype), classes

    def classify(self, images: Tensor) -> Tensor:
        """Give the class of each image, -1 where the logits are not finite."""
        return predict(self.model, images, self.judging.batch_size)


def _remember(attack: AutoAttack, memory: Memory) -> None:
    """Let each part keep what it makes of a batch."""
    apgd, fab, targeted, square = attack.apgd, attack.fab, attack.apgd_targeted, attack.square
    apgd.perturb = memory.remembering(apgd.perturb, lambda: f"apgd-{apgd.loss}")
    targeted.perturb = memory.remembering(targeted.perturb, lambda: "apgd-t")
    fab.perturb = memory.remembering(fab.perturb, lambda: "fab-t" if fab.targeted else "fab")
    square.perturb = memory.remembering(square.perturb, lambda: "square")


def _passes(attack: AutoAttack) -> dict[str, int]:
    """Count the forward passes each part makes on a batch of which nothing breaks, in the order they run.

    It steers the progress bar only: iterations of APGD and FAB (two passes each), queries of Square, and the passes
    that start and finish a part.
    """
    apgd, targeted, fab = attack.apgd, attack.apgd_targeted, attack.fab
    each = (apgd.n_iter + (3 if apgd.use_largereps else 1)) * apgd.eot_iter
    toward = targeted.n_iter + (3 if targeted.use_largereps else 1) + 1
    counts = {
        "apgd-ce": 2 + each * apgd.n_restarts,
        "apgd-dlr": 2 + each * apgd.n_restarts,
        "apgd-t": 2 + toward * targeted.n_target_classes,
        "fab": 2 + 203 * fab.n_restarts,
        "fab-t": 2 + 203 * fab.n_target_classes,
        "square": 4 + attack.square.n_queries,
    }
    return {part: counts[part] for part in attack.attacks_to_run}
