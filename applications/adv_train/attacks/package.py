"""One run of the package `pyautoattack`, with our bar, our warnings and a memory of finished batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from adv_train.attacks.base import GRADIENT
from adv_train.attacks.judging import Judging, predict, progress_bar
from adv_train.attacks.memory import Memory
from adv_train.attacks.narration import bar_mover, narrated, undisturbed
from adv_train.attacks.repeats import Repeats, repeats
from adv_train.attacks.room import Forward
from adv_train.attacks.shared_parts import run_parts
from adv_train.threat import Threat

if TYPE_CHECKING:
    from pyautoattack import AutoAttack

NORMS: Final = {"linf": "Linf", "l2": "L2", "l1": "L1"}

Change = Callable[["AutoAttack"], None]


@dataclass(frozen=True)
class Run:
    """Runs the package on images.

    Attributes:
        model: Maps images to logits, frozen.
        threat: The ball.
        judging: Seed of all parts, batch size and progress bar.
        title: Name of the attack beside the progress bar.
        version: Version of AutoAttack.
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
        """Attack images; return the perturbed images and the classes that the package found for them.

        Args:
            x: Images at full resolution.
            y: Labels.
            change: Modifies the package's attack before it runs.
            name: Name of this run among the runs of one attack.
        """

        def classified(z: Tensor) -> Tensor:
            logits = self.model(z.to(x.dtype))
            if z.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
                # The model detaches its output: connect it to the images with a zero gradient.
                logits = logits + 0 * z.flatten(1).sum(1, keepdim=True)
            return logits.float()

        def counted(model: Forward) -> Forward:
            def forward(z: Tensor) -> Tensor:
                bar.update()
                return model(z)

            return forward

        attack = build(
            counted(classified),
            self.threat,
            self.version,
            self.classes,
            change,
            seed=self.judging.seed,
            device=x.device,
        )
        if repeats(attack, x):
            attack.square.predict = counted(Repeats(classified))
        if self.memory is not None:
            _remember(attack, self.memory.under(name))
        batches = math.ceil(len(x) / self.judging.batch_size / self.judging.ranks.size)
        passes = {name: batches * count for name, count in _passes(attack).items()}
        bar = progress_bar(self.title, sum(passes.values()), "pass", self.judging.progress)
        with bar, narrated(attack.logger, bar_mover(bar, passes, self.title)), undisturbed(x.device):
            # Every part sets this seed itself, but only after the package's clean pass of a randomised model.
            torch.manual_seed(self.judging.seed)
            found, classes = run_parts(attack, x.float(), y, self.judging.batch_size, self.judging.ranks)
        return found.to(x.dtype), classes

    def classify(self, images: Tensor) -> Tensor:
        """Return the class of each image, -1 where the logits are not finite."""
        return predict(self.model, images, self.judging.batch_size)


def build(
    model: Forward,
    threat: Threat,
    version: str,
    classes: int,
    change: Change,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AutoAttack:
    """Make the package's attack, with at most as many targets as the model has wrong classes."""
    from pyautoattack import AutoAttack  # Not at the top: `import adv_train` works without it.

    norm = NORMS[threat.norm]
    attack = AutoAttack(model, eps=threat.eps, norm=norm, seed=seed, device=device, version=version)
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    change(attack)
    return attack


def costs(attack: AutoAttack, classes: int) -> list[float]:
    """Return the forward passes of each part, in their order, for an image that no part breaks."""
    apgd, targeted, fab = attack.apgd, attack.apgd_targeted, attack.fab
    ascent, aimed = (
        (part.n_iter + (3 if part.use_largereps else 1)) * part.eot_iter * GRADIENT for part in (apgd, targeted)
    )
    found = {
        "apgd-ce": ascent * apgd.n_restarts,
        "apgd-dlr": ascent * apgd.n_restarts,
        "apgd-t": aimed * targeted.n_target_classes,
        # Untargeted FAB needs the gradient of every logit, targeted FAB that of one difference.
        "fab": (1 + classes + 1) * fab.n_iter * fab.n_restarts,
        "fab-t": (GRADIENT + 1) * fab.n_iter * fab.n_target_classes,
        "square": attack.square.n_queries,
    }
    return [float(found[part]) for part in attack.attacks_to_run]


def _remember(attack: AutoAttack, memory: Memory) -> None:
    """Let each part keep the images that it makes from a batch."""
    apgd, fab, targeted, square = attack.apgd, attack.fab, attack.apgd_targeted, attack.square
    apgd.perturb = memory.remembering(apgd.perturb, lambda: f"apgd-{apgd.loss}")
    targeted.perturb = memory.remembering(targeted.perturb, lambda: "apgd-t")
    fab.perturb = memory.remembering(fab.perturb, lambda: "fab-t" if fab.targeted else "fab")
    square.perturb = memory.remembering(square.perturb, lambda: "square")


def _passes(attack: AutoAttack) -> dict[str, int]:
    """Return the number of forward passes of each part, in their order, on a batch of which no sample breaks.

    Only the progress bar uses it. It counts the iterations of APGD and FAB (two passes each), the queries of Square,
    and the passes at the start and the end of a part.
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
