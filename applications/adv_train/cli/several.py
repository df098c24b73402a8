"""What the commands that train several runs have in common: flags, finishing them, a report on the first seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adv_train.cli.cluster import run_on_ray
from adv_train.cli.command_line import Progress
from adv_train.cli.processes import run_cells
from adv_train.comparison import Cell, Plan
from adv_train.errors import UserError
from adv_train.report import NextStep, Scatter, Section, command, write_report
from adv_train.summaries import summarise
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class Grid(Progress):
    """How runs are spread.

    Attributes:
        workers: Runs at a time; by default one a processor, and one on an accelerator; on Ray as many as fit.
        backend: local for processes on this machine; ray for the GPUs and machines of a Ray cluster, which share this
            folder, those of the runs and the data.
        ray_address: Of the cluster, as ray.init takes it; by default that of RAY_ADDRESS, or this machine.
    """

    workers: Annotated[int, Range(1)] | None = None
    backend: Literal["local", "ray"] = "local"
    ray_address: str | None = None

    def run_cells(self, cells: Sequence[Cell]) -> Generator[tuple[Cell, str | None], None, None]:
        """Train and judge the cells that are not done; yields each as it ends, and why it failed if it did.

        Raises:
            UserError: When Ray's address is given without Ray, or Ray cannot be used.
        """
        if self.backend == "ray":
            return run_on_ray(cells, progress=self.shown, workers=self.workers, address=self.ray_address)
        if self.ray_address is not None:
            raise UserError("--ray-address is for --backend ray: give both, or neither.")
        return run_cells(cells, progress=self.shown, workers=self.workers)


def finish(
    cells: Sequence[Cell],
    write: Callable[[Mapping[str, str]], None],
    grid: Grid,
) -> dict[str, str]:
    """Train and judge the cells that are not done, and name on stderr those that failed.

    Args:
        cells: In the order in which they are started.
        write: Called after each with why cells have failed so far, by their names.
        grid: How they are spread.

    Returns:
        Why cells failed, by their names.
    """
    failed: dict[str, str] = {}
    with closing(grid.run_cells(cells)) as ended:
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
