"""What the report knows of a run, and the results table in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adv_train.evaluation import Examples

HEADER = ("method", "SA", "RA-PGD", "RA-AA", "s/epoch", "F/step", "implicit share")


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One run, as far as a report shows it.

    Attributes:
        name: What the run is called in tables and legends, such as its method.
        config: Its configuration; nested mappings are shown with dotted names.
        evaluation: Content of its ``eval.json``: ``sa``, ``ra_pgd``, ``ra_aa`` (fractions or None), ``n``, ``eps``.
        metrics: Rows of its ``metrics.jsonl``, one an epoch.
        seconds_per_epoch: Training time of an epoch on this machine, validation left out.
        forward_equivalents: Cost of a training step in forward passes of its model.
        implicit_share: Norm of the implicit part of the gradient over that of the direct part, averaged over
            training; None where the method has no implicit part.
        examples: Attacked samples to show.
        published: Figures from the literature as printed there (``"SA": "79.97 ± 0.12"``). They are shown in a
            table of their own, never beside what was measured.
    """

    name: str
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    seconds_per_epoch: float | None = None
    forward_equivalents: float | None = None
    implicit_share: float | None = None
    examples: Examples | None = None
    published: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        """Give the run's row of the results table, in the order of `HEADER`."""
        accuracies = [percent(self.evaluation.get(key)) for key in ("sa", "ra_pgd", "ra_aa")]
        return (
            self.name,
            *accuracies,
            number(self.seconds_per_epoch, 2),
            number(self.forward_equivalents, 1),
            percent(self.implicit_share),
        )


def percent(fraction: float | None) -> str:
    """Write a fraction as ``61.4 %``, a dash where there is none, and what rounds to zero without being it as such."""
    if fraction is None:
        return "–"
    return "< 0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


def number(value: float | None, decimals: int) -> str:
    """Write a number with fixed decimals, and a dash where there is none."""
    return "–" if value is None else f"{value:.{decimals}f}"


def markdown_table(runs: Sequence[RunSummary]) -> str:
    """Lay out the measured results as a Markdown table, padded so that it reads as well on a terminal.

    Args:
        runs: In the order of the rows.

    Returns:
        Lines without a trailing newline.
    """
    rows = [HEADER, *(tuple(_one_line(cell) for cell in run.cells()) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    # The colon sets numbers to the right where the Markdown is rendered.
    rule = tuple("-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths))
    lines = []
    for row in (rows[0], rule, *rows[1:]):
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
