"""The interface of an objective."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor

from adv_train.errors import UserError
from adv_train.registry import Registry
from adv_train.values import Checked

Reduction: TypeAlias = Literal["none", "mean"]


@dataclass(frozen=True)
class Objective(Checked, abc.ABC):
    """A loss that grows as the perturbed image is classified worse.

    Attributes:
        looks_at_clean: Whether it needs the logits of the clean images.
        least_classes: Smallest number of classes for which it is defined.
    """

    looks_at_clean: ClassVar[bool] = False
    least_classes: ClassVar[int] = 2

    @classmethod
    def read(cls, value: object, name: str) -> Objective:
        """Read an objective as it is written, such as `margin` or `cross-entropy(smoothing=0.1)`.

        Raises:
            UserError: If there is no such objective.
        """
        return value if isinstance(value, Objective) else OBJECTIVES.read(value, name)

    def check_classes(self, classes: int) -> None:
        """Check that the objective is defined for so many classes.

        Raises:
            UserError: If it is not.
        """
        if classes < self.least_classes:
            raise UserError(
                f"The objective `{self}` needs at least {self.least_classes} classes, but there are {classes}: choose "
                "another one, such as `margin`."
            )

    def __str__(self) -> str:
        return OBJECTIVES.written(self)

    @abc.abstractmethod
    def __call__(self, logits: Tensor, y: Tensor, clean: Tensor | None, reduction: Reduction = "none") -> Tensor:
        """Return the loss.

        Args:
            logits: Logits of the perturbed images, shape `(batch, classes)`.
            y: Labels, shape `(batch,)`.
            clean: Logits of the clean images if `looks_at_clean`, else None.
            reduction: `"none"` returns the loss of each sample, shape `(batch,)`; `"mean"` their mean, shape `()`.
        """


OBJECTIVES: Registry[Objective] = Registry("objective", "adv_train.objectives")


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Return the losses, or their mean."""
    return losses.mean() if reduction == "mean" else losses
