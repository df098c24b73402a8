"""What an attack is to the judge: images and labels in, a verdict on each sample out."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from adv_train.attacks.judging import Judging
from adv_train.attacks.room import BatchSize
from adv_train.registry import Registry
from adv_train.threat import Threat
from adv_train.values import Checked


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What an attack made of N samples.

    Attributes:
        robust: Whether each sample is still classified correctly, bool ``(N,)``; a sample that is wrong on its clean
            image is not robust.
        images: For a broken sample an image that broke it, for a robust one the last that was tried, ``(N, C, H, W)``.
        predicted: Class of each of these images ``(N,)``, -1 where the logits are not finite.
        settings: How hard the attack tried, in plain values.
    """

    robust: Tensor
    images: Tensor
    predicted: Tensor
    settings: Mapping[str, Any]


class Attack(Checked, abc.ABC):
    """An attack with its options, which are the fields of a frozen dataclass.

    Subclasses define `judge`, stand in files of their own in this package and are registered with `ATTACKS.register`.

    Attributes:
        least_classes: Logits that a model must have for the attack to be defined.
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
        """Attack every image within the threat, and hand the model back as it was.

        Args:
            model: Maps images to logits ``(batch, classes)``, with its normalisation inside.
            x: Images ``(N, C, H, W)`` in the threat's range, on the model's device.
            y: Labels ``(N,)``, int64.
            threat: What may be done to an image.
            seed: Of all random numbers of the attack.
            batch_size: Images in a forward pass; ``"auto"`` takes as many as memory holds.
            progress: Show a bar; ``None`` shows it on a terminal only.

        Warns:
            RuntimeWarning: When the attack itself finds that its verdict overstates robustness.

        Raises:
            UserError: When an argument is out of range or shape, or the attack does not know the norm.
            RuntimeError: When an image leaves the budget.
        """
        return self.judge(model, x, y, threat, Judging.of(seed, batch_size, progress))

    @abc.abstractmethod
    def judge(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging) -> Verdicts:
        """Attack as a call does, with its settings in one object."""

    def resume(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, judging: Judging, folder: Path
    ) -> Verdicts:
        """Attack with the verdicts of `judge`; keep in a folder what is done, and go on from there if interrupted.

        An attack that has nothing to keep leaves the folder alone. The folder belongs to this attack, model, images,
        seed and batch size alone.
        """
        return self.judge(model, x, y, threat, judging)

    def check(self, x: Tensor, classes: int, threat: Threat) -> None:
        """Refuse, before any work, what this attack cannot judge: images ``(N, C, H, W)``, number of logits, threat.

        Raises:
            UserError: Says why.
        """

    def bound(self, load: Callable[[str], nn.Module]) -> Attack:
        """Return this attack with the models loaded that its options name; `load` takes a run folder or a file."""
        return self

    def chosen(self) -> dict[str, Any]:
        """Return the options in plain values, those left out that follow from the rest."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in options.items()
            if value is not None
        }

    def settings(self, threat: Threat, batch_size: int) -> dict[str, Any]:
        """Return how hard it will try, as far as it is known beforehand: an earlier verdict with these is as good."""
        return self.chosen()


ATTACKS: Registry[Attack] = Registry("attack", "adv_train.attacks")
