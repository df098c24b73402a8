"""Write tables for people (Markdown), programs (CSV) and papers (LaTeX)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from adv_train.errors import unknown


@dataclass(frozen=True)
class Figure:
    """A number in a table.

    Attributes:
        value: The number, for programs; None if it was not measured.
        text: The number as text, for people.
    """

    value: float | None
    text: str


Cell: TypeAlias = str | Figure


def write_table(header: Sequence[str], rows: Sequence[Sequence[Cell]], form: str = "markdown") -> str:
    """Format a table.

    Args:
        header: Title of each column; the first column names the rows.
        rows: The rows, with a cell for each column.
        form: ``markdown`` (padded, so that it is readable on a terminal too), ``csv`` (numbers in full precision,
            accuracies as fractions) or ``latex`` (a ``tabular`` that needs no package).

    Returns:
        The table as text, without a trailing newline.

    Raises:
        UserError: If there is no such form.
    """
    if form not in _WRITERS:
        raise unknown("table format", form, _WRITERS)
    return _WRITERS[form](header, rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    texts = [[_one_line(_text(cell)).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    # The colon aligns the column to the right in rendered Markdown.
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = []
    for row in (texts[0], rule, *texts[1:]):
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([cell.value if isinstance(cell, Figure) else cell for cell in row])
    return text.getvalue().rstrip("\n")


_LATEX: Final = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "–": "--",
    "ε": r"$\varepsilon$",
    "±": r"$\pm$",
}


def _latex(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    def line(row: Sequence[Cell]) -> str:
        texts = ("".join(_LATEX.get(character, character) for character in _one_line(_text(cell))) for cell in row)
        return " & ".join(texts) + r" \\"

    columns = "l" + "r" * (len(header) - 1)
    body = [r"\hline", line(header), r"\hline", *map(line, rows), r"\hline"]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])


def _text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Figure) else cell


def _one_line(text: str) -> str:
    return " ".join(text.split())


_WRITERS: Final[dict[str, Callable[[Sequence[str], Sequence[Sequence[Cell]]], str]]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
FORMATS: Final = tuple(_WRITERS)
