"""What a form of a trained model is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeAlias

from torch import Tensor

from adv_train.export.source import Source
from adv_train.registry import Registry

Logits: TypeAlias = Callable[[Tensor], Tensor]


class Form(ABC):
    """Writes a model, and reads what it wrote.

    Subclasses are frozen dataclasses whose fields are options, stand in files of their own in this package, and are
    registered with `FORMS.register`.

    Attributes:
        suffix: How the name of the file ends; empty for a folder.
        tolerance: How far the logits of what is read back may lie from those of the model, in units of the largest of
            them, or of 1 where that is larger.
    """

    suffix: ClassVar[str]
    tolerance: ClassVar[float]

    @abstractmethod
    def write(self, source: Source, path: Path) -> tuple[str, ...]:
        """Write a model.

        Args:
            source: The model.
            path: A file or folder that does not exist yet.

        Returns:
            What the user should know of it, a sentence each.

        Raises:
            UserError: When the model cannot be written in this form.
        """

    @abstractmethod
    def read(self, source: Source, path: Path) -> Logits:
        """Read back what was written, with no help of the model but for its architecture.

        Returns:
            From images ``(batch, channels, height, width)`` in [0, 1], float32 on the CPU, to logits
            ``(batch, classes)``.
        """


FORMS: Registry[Form] = Registry("form", "adv_train.export")
