"""The interface of a figure: it first computes its numbers, and then draws them."""

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
    """A figure of runs; its fields are its options, which are flags of `adv-train plot NAME`.

    Each subclass is in its own module of this package and is registered with `FIGURES.register`.

    Attributes:
        examples: Example command lines for the help.
    """

    examples: ClassVar[str]

    @abc.abstractmethod
    def measure(self, runs: Sequence[Run], progress: bool | None = False) -> Numbers:
        """Compute the numbers of the figure.

        Args:
            runs: At least one run.
            progress: Whether to show a progress bar on stderr; None shows it on a terminal only.

        Raises:
            UserError: If a run lacks something that the figure needs.
        """

    @abc.abstractmethod
    def rows(self, numbers: Numbers) -> list[Row]:
        """Return the numbers as the rows of a table; all rows have the same columns."""

    @abc.abstractmethod
    def draw(self, numbers: Numbers) -> Figure:
        """Draw the figure. The caller has set the style of `adv_train.plots.style`."""


FIGURES: Registry[Drawing[Any]] = Registry("figure", "adv_train.plots")
