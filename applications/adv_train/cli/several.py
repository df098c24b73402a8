"""What the commands that train several runs have in common: finishing them, and a report on the first seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from adv_train.cli.processes import run_cells
from adv_train.comparison import Cell, Plan
from adv_train.report import NextStep, Scatter, Section, command, write_report
from adv_train.summaries import summarise


def finish(
    cells: Sequence[Cell],
    write: Callable[[Mapping[str, str]], None],
    *,
    progress: bool | None,
    workers: int | None,
) -> dict[str, str]:
    """Train and judge the cells that are not done, and name on stderr those that failed.

    Args:
        cells: In the order in which they are started.
        write: Called after each with why cells have failed so far, by their names.
        progress: As for `run_cells`.
        workers: As for `run_cells`.

    Returns:
        Why cells failed, by their names.
    """
    failed: dict[str, str] = {}
    with closing(run_cells(cells, progress=progress, workers=workers)) as ended:
        for cell, failure in ended:
            if failure is not None:
                failed[cell.name] = failure
            write(failed)
    for name, failure in failed.items():
        print(f"adv-train: error: {name}: {failure}", file=sys.stderr)
    return failed


def write_first_seeds(
    plans: Sequence[Plan],
    out: Path,
    title: str,
    first: Sequence[Section],
    figures: Sequence[Scatter],
    words: Sequence[str],
) -> None:
    """Write report.html once a run is done: the tables, and curves and images of the first seed of each method.

    A run whose `best.pt` is gone (records may be kept without weights) appears in the tables only.

    Args:
        plans: Those whose runs are shown.
        out: Folder of the page.
        title: Its heading.
        first: The tables.
        figures: The main figures.
        words: After ``adv-train``, of the command that trained and judged it all.
    """
    methods = [(method, plan.seeds[0]) for plan in plans for method in plan.methods]
    cells = [(method.name, method.cells[seed]) for method, seed in methods]
    done = [(name, cell) for name, cell in cells if cell.is_done() and cell.run.best.is_file()]
    if done:
        again = [NextStep("Train what is missing, judge it and write this page again.", command(*words))]
        runs = [summarise(cell.out, name) for name, cell in done]
        write_report(out / "report.html", runs, title=title, first=first, figures=figures, again=again)
