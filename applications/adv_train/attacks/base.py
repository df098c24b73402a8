"""The interface of an attack, which takes images and labels and returns a verdict on each sample."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final

from torch import Tensor, nn

from adv_train.attacks.judging import Judging
from adv_train.attacks.room import BatchSize
from adv_train.registry import Registry
from adv_train.threat import Threat
from adv_train.values import Checked

_INCIDENTAL: Final = ("batch_size", "pyautoattack")
GRADIENT: Final = 2
"""Cost of a gradient with respect to the images, in forward passes: one forward, and one backward of equal cost."""


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The result of an attack on N samples.

    Attributes:
        robust: Whether each sample is still classified correctly, bool ``(N,)``; a sample whose clean image is
            misclassified is not robust.
        images: Images ``(N, C, H, W)``: one that broke the sample, or the last one tried if the sample is robust.
        predicted: Class of each of these images ``(N,)``, -1 where the logits are not finite.
        settings: Settings of the attack, in plain values.
    """

    robust: Tensor
    images: Tensor
    predicted: Tensor
    settings: Mapping[str, Any]


class Attack(Checked, abc.ABC):
    """An attack with its options, which are the fields of a frozen dataclass.

    A subclass defines `judge`, has a file of its own in this package, and is registered with `ATTACKS.register`.

    Attributes:
        least_classes: Smallest number of logits for which the attack is defined.
    """

    least_classes: ClassVar[int] = 2

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int,
        batch_size: BatchSize = 512,
        progress: bool | None = False,
    ) -> Verdicts:
        """Attack every image within the threat; the model's state is the same afterwards.

        Args:
            model: Maps images to logits ``(batch, classes)``, with its normalisation inside.
            x: Images ``(N, C, H, W)`` in the threat's range, on the model's device.
            y: Labels ``(N,)``, int64.
            threat: The perturbations that the attack may choose from.
            seed: Seed of all random numbers of the attack.
            batch_size: Number of images in a forward pass; ``"auto"`` takes as many as memory holds.
            progress: Show a bar; ``None`` shows it on a terminal only.

        Warns:
            RuntimeWarning: When the attack itself finds that its verdict overstates robustness.

        Raises:
            UserError: If an argument has the wrong range or shape, or the attack does not support the norm.
            RuntimeError: If an image leaves the budget.
        """
        return self.judge(model, x, y, threat, Judging.of(seed, batch_size, progress))

    @abc.abstractmethod
    def judge(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging) -> Verdicts:
        """Attack every image, as a call does; `judging` has the settings that all attacks share."""

    def resume(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging, folder: Path
    ) -> Verdicts:
        """Return the verdicts of `judge`; keep finished work in `folder`, and continue from it after an interruption.

        An attack that keeps no finished work does not touch the folder. No attack with another model, other images,
        another seed or another batch size may use the same folder.
        """
        return self.judge(model, x, y, threat, judging)

    def check(self, x: Tensor, classes: int, threat: Threat) -> None:
        """Check, before any work, that the attack supports images ``(N, C, H, W)``, number of classes and threat.

        Raises:
            UserError: If it does not; the message gives the reason.
        """

    def cost(self, clean: float, robust: float, classes: int, threat: Threat) -> float | None:
        """Estimate the forward passes for each image, where a gradient counts `GRADIENT`; None if it is not known.

        Args:
            clean: Share of the images that the model classifies correctly; the others are not attacked.
            robust: Share of the images that the first start or part of an attack leaves; only these are attacked again.
            classes: Number of logits.
            threat: The threat of the attack.
        """
        return None

    def bound(self, load: Callable[[str], nn.Module]) -> Attack:
        """Return this attack with the models loaded that its options name; `load` takes a run folder or a file."""
        return self

    def chosen(self) -> dict[str, Any]:
        """Return the options in plain values, without those that are None."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in options.items()
            if value is not None
        }

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return the settings known before the attack runs; a record with equal settings makes a new run needless."""
        return self.chosen()

    def defining(self, threat: Threat) -> dict[str, Any]:
        """Return the settings that make it this attack: all but the batch size and the releases of packages."""
        return {name: value for name, value in self.settings(threat, 1).items() if name not in _INCIDENTAL}


ATTACKS: Registry[Attack] = Registry("attack", "adv_train.attacks")
