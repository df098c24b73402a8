"""The parts that the commands for several runs share: their flags, running the cells, and the report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adv_train.cli.cluster import run_on_ray
from adv_train.cli.command_line import Progress
from adv_train.cli.processes import run_cells
from adv_train.comparison import Cell, Plan, Result
from adv_train.errors import UserError
from adv_train.report import NextStep, Scatter, Section, command, write_report
from adv_train.summaries import summarise
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class Grid(Progress):
    """Where the runs are executed, and how many at a time.

    Attributes:
        workers: Runs at a time; by default one for each processor core, one on an accelerator, and on Ray as many as
            fit into the cluster.
        backend: local: processes on this machine; ray: the GPUs and machines of a Ray cluster, all of which need
            access to the working directory, the run folders and the data.
        ray_address: Address of the cluster, as for ray.init; by default $RAY_ADDRESS, or a new cluster on this machine.
    """

    workers: Annotated[int, Range(1)] | None = None
    backend: Literal["local", "ray"] = "local"
    ray_address: str | None = None

    def run_cells(self, cells: Sequence[Cell]) -> Generator[tuple[Cell, str | None], None, None]:
        """Train and evaluate the cells that are not done; yield each cell when it ends, with the reason if it failed.

        Raises:
            UserError: If Ray's address is given without `--backend ray`, or Ray cannot be used.
        """
        if self.backend == "ray":
            return run_on_ray(cells, progress=self.shown, workers=self.workers, address=self.ray_address)
        if self.ray_address is not None:
            raise UserError("--ray-address is for --backend ray: give both or neither.")
        return run_cells(cells, progress=self.shown, workers=self.workers)


def finish(
    cells: Sequence[Cell],
    write: Callable[[Mapping[str, str]], None],
    grid: Grid,
) -> dict[str, str]:
    """Train and evaluate the cells that are not done.

    Args:
        cells: The cells, in the order in which they start.
        write: Called after each cell with a dict from the names of the failed cells to the reasons.
        grid: The flags that say where the cells run.

    Returns:
        A dict from the names of the failed cells to the reasons.
    """
    failed: dict[str, str] = {}
    with closing(grid.run_cells(cells)) as ended:
        for cell, failure in ended:
            if failure is not None:
                failed[cell.name] = failure
            write(failed)
    return failed


def print_failures(found: Iterable[Result]) -> bool:
    """Print on stderr which runs have failed, or have damaged records, and why; return whether there is one."""
    failed = {name: reason for result in found for name, reason in result.failed.items()}
    for name, reason in failed.items():
        print(f"adv-train: error: {name}: {reason}", file=sys.stderr)
    return bool(failed)


def write_first_seeds(
    plans: Sequence[Plan],
    out: Path,
    title: str,
    first: Sequence[Section],
    figures: Sequence[Scatter],
    words: Sequence[str],
) -> None:
    """Write report.html if a run is done: the tables, and the curves and images of the first seed of each method.

    A run whose `best.pt` is gone (records may be kept without weights) appears in the tables only, and so does one with
    a damaged file, of which a line on stderr warns.

    Args:
        plans: The plans whose runs the page shows.
        out: Folder of the page.
        title: Heading of the page.
        first: The tables.
        figures: The main figures.
        words: The words after ``adv-train`` of the command that trained and evaluated the runs.
    """
    methods = [(method, plan.seeds[0]) for plan in plans for method in plan.methods]
    cells = [(method.name, method.cells[seed]) for method, seed in methods]
    runs = []
    for name, cell in cells:
        if cell.is_done() and cell.run.best.is_file():
            try:
                runs.append(summarise(cell.out, name))
            except UserError as error:
                print(f"adv-train: warning: report.html does not show {cell.name}: {error}", file=sys.stderr)
    if runs:
        again = [NextStep("Train what is missing, evaluate it and write this page again.", command(*words))]
        write_report(out / "report.html", runs, title=title, first=first, figures=figures, again=again)
