"""What a figure is: numbers that are measured first, and a drawing of them."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from adv_train.plots.runs import Run
from adv_train.registry import Registry
from adv_train.values import Checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = TypeVar("Numbers")
Row: TypeAlias = dict[str, str | float | None]


@dataclass(frozen=True, kw_only=True)
class Drawing(Checked, abc.ABC, Generic[Numbers]):
    """A figure of runs; its fields are its options, and the flags of `adv-train plot NAME`.

    Subclasses stand in files of their own in this package and are registered with `FIGURES.register`.

    Attributes:
        examples: Command lines, for the help.
    """

    examples: ClassVar[str]

    @abc.abstractmethod
    def measure(self, runs: Sequence[Run], progress: bool | None = False) -> Numbers:
        """Compute all that is drawn.

        Args:
            runs: At least one.
            progress: Whether to show a bar on stderr; None shows it on a terminal only.

        Raises:
            UserError: When a run does not hold what is needed.
        """

    @abc.abstractmethod
    def rows(self, numbers: Numbers) -> list[Row]:
        """Give what is drawn as the rows of a table, all with the same columns."""

    @abc.abstractmethod
    def draw(self, numbers: Numbers) -> Figure:
        """Draw it. Called within the style of `adv_train.plots.style`."""


FIGURES: Registry[Drawing[Any]] = Registry("figure", "adv_train.plots")
