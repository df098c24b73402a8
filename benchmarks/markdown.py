"""Tables and goals as markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.registry import Cell, Goal, Outcome, Table


def render(title: str, outcome: Outcome) -> str:
    """Return a section: the tables, then the goals."""
    parts = [f"## {title}", *(_table(table) for table in outcome.tables)]
    if outcome.goals:
        parts.append("\n".join(_goal(goal) for goal in outcome.goals))
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    body = [[cell(value) for value in row] for row in table.rows]
    widths = [max(len(row[i]) for row in [list(table.columns), *body]) for i in range(len(table.columns))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)) + " |"

    lines = [f"**{table.title}**", "", line(table.columns), line(["-" * width for width in widths])]
    lines += [line(row) for row in body]
    lines += [f"\n{note}" for note in table.notes]
    return "\n".join(lines)


def cell(value: Cell) -> str:
    """Return the text of a table cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _goal(goal: Goal) -> str:
    verdict = "met" if goal.met else "MISSED"
    relation = "at least" if goal.at_least else "at most"
    off = f" ± {float(goal.off):.1g}" if goal.off else ""  # it is infinite after few rounds, and text in a record
    return f"* {verdict}: {goal.what}: {cell(goal.found)}{off} ({relation} {cell(goal.limit)})"
