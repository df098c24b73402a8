"""The interface of a form of export."""

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
    """Writes a model in one form, and reads it back.

    A subclass is a frozen dataclass whose fields are its options. It is in its own module of this package and is
    registered with `FORMS.register`.

    Attributes:
        suffix: Suffix of the file name; empty for a folder.
        tolerance: Largest allowed difference between the logits of the written model and those of the original, in
            units of the largest absolute logit or of 1, whichever is larger.
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
            Notes for the user, one sentence each.

        Raises:
            UserError: If the model cannot be written in this form.
        """

    @abstractmethod
    def read(self, source: Source, path: Path) -> Logits:
        """Read a written model back; only the architecture may come from the original model.

        Returns:
            A function from images ``(batch, channels, height, width)`` in [0, 1], float32 on the CPU, to logits
            ``(batch, classes)``.
        """


FORMS: Registry[Form] = Registry("form", "adv_train.export")
