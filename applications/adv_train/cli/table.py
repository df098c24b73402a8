"""Reproduce a published table: train and evaluate its cells, and show measured beside published figures.

examples:
  adv-train table table-1 --scale smoke            (minutes: handwritten digits, a check that it runs)
  adv-train table table-1 --scale cpu --out runs/t (about an hour on two cores: CIFAR-10, small networks)
  adv-train table table-1 --seeds 0-9              (as published; needs a GPU)
  adv-train table table-1 --only cifar10-8,fast-bat --seeds 0,1  (cells whose names contain one of these texts)
  adv-train table table-1 --backend ray --ray-address auto  (on the GPUs and machines of a Ray cluster)
  adv-train table benchmark-8 --dry-run --price 3  (lists the cells, their hours, and the cost at 3 an hour)

A cell is a preset (`adv-train list presets`): --only CELL makes one cell, and `adv-train fit --preset CELL` trains it
at full scale. Each run is an ordinary run folder OUT/CELL-seedS, so the same command resumes an interrupted table and
runs only what is missing. If a cell fails, the others still run; one whose process is killed resumes at most twice.
After each run, the command rewrites OUT/table.md, .csv, .tex and .json. OUT/report.html shows the first seed of each
cell. Flags such as --data imagefolder:PATH or --epochs 40 change all cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adv_train.attacks.named import named_attacks
from adv_train.cli.configured import configured
from adv_train.cli.several import Grid, finish, print_failures, write_first_seeds
from adv_train.config import SECTIONS
from adv_train.errors import UserError
from adv_train.files import make_folder
from adv_train.report import write_table
from adv_train.reproduction import Blocks, PublishedTable, Reproduction, Scale, costs, plan
from adv_train.values import Range, refused

_MOST_SEEDS = 1_000


@dataclass(frozen=True, kw_only=True)
class MakeTable(Grid):
    """The table to reproduce, and how much of it.

    Attributes:
        table: Name of the table: table-1, table-2 or benchmark-8.
        seeds: Seeds of each cell, such as 0-9 or 0,2,5; the default depends on the scale.
        only: Run only the cells whose names contain one of these parts, separated by commas; * matches any text, and
            the whole name of a cell matches only this cell.
        scale: full: as published; cpu: for two cores; smoke: a check that it runs.
        out: Folder for the runs and the table; by default runs/TABLE-SCALE.
        attacks: Attacks, separated by commas (see `adv-train list attacks`); the default depends on the scale.
        pgd_steps: Number of steps of PGD; the default depends on the scale.
        pgd_restarts: Number of random starts of PGD; the default depends on the scale.
        limit: Evaluate on only so many test images; each class keeps its proportion.
        form: Format of the printed table.
        dry_run: List the cells with their estimated cost, and train none.
        price: Price of an hour on this device, for the estimate of --dry-run.
    """

    table: str = ""
    seeds: str | None = None
    only: str | None = None
    scale: str = "full"
    out: Path | None = None
    attacks: str | None = None
    pgd_steps: Annotated[int, Range(1)] | None = None
    pgd_restarts: Annotated[int, Range(1)] | None = None
    limit: Annotated[int, Range(1)] | None = None
    form: Literal["markdown", "csv", "latex"] = "markdown"
    dry_run: bool = False
    price: Annotated[float, Range(0)] | None = None


def read(words: Sequence[str]) -> tuple[MakeTable, dict[str, Any]]:
    """Read the flags of the command, and the flags that set the configuration of all cells."""
    sections = [section for section in SECTIONS if section != "method"]
    return configured(MakeTable, words, "adv-train table", __doc__ or "", sections, positional="table")


def run(words: Sequence[str]) -> int:
    """Run what is not done yet, and print the table; return 1 if a run failed or a cell cannot be run."""
    command, flags = read(words)
    planned, out = _planned(command, flags)
    if command.dry_run:
        print(_estimate(planned, command.price))
        return 0
    make_folder(out)
    failed = finish(
        planned.cells(),
        lambda failed: Reproduction(planned, failed).write(out),
        command,
    )
    shown = Reproduction(planned, failed)
    shown.write(out)
    bad = print_failures(result for result, _ in shown.results)
    plans = [block.plan for block in planned.blocks]
    write_first_seeds(plans, out, planned.title, [shown.section()], shown.figures(), ["table", *words])
    print(shown.text(command.form))
    return 1 if bad or planned.missing else 0


def _planned(command: MakeTable, flags: dict[str, Any]) -> tuple[Blocks, Path]:
    if not command.table:
        raise UserError("Say which table to reproduce, such as `adv-train table table-1 --scale smoke`.")
    table, scale = PublishedTable.find(command.table), Scale.find(command.scale, command.table)
    table = table.only(scale.only if command.only is None else command.only)
    steps, restarts = command.pgd_steps or scale.pgd_steps, command.pgd_restarts or scale.pgd_restarts
    attacks = named_attacks(command.attacks or scale.attacks, steps=steps, restarts=restarts)
    if not attacks:
        raise UserError("--attacks names no attack: give at least one, such as pgd.")
    if "seed" in flags:
        raise UserError("A table has several seeds: give --seeds, not --seed.")
    out = command.out or Path("runs") / f"{table.name}-{command.scale}"
    planned = plan(
        table,
        scale,
        {key: value for key, value in flags.items() if key != "epochs"},
        out=out,
        seeds=_seeds(command.seeds or scale.seeds),
        attacks=attacks,
        limit=command.limit or scale.limit,
        epochs=flags.get("epochs"),
        dry=command.dry_run,
    )
    return planned, out


def _seeds(text: str) -> list[int]:
    """Read `0-9`, `3` or `0,2,5`."""
    found: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise refused("seeds", "a list such as 0-9 or 0,2,5", text)
        if int(ends[2] or ends[1]) - int(ends[1]) >= _MOST_SEEDS:
            raise refused("seeds", f"at most {_MOST_SEEDS} of them", text)
        found |= dict.fromkeys(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return list(found)


def _estimate(planned: Blocks, price: float | None) -> str:
    """Return a table of the cells with their estimated costs."""
    header = ["cell", "runs left", "epochs", "training, 1e6 F", "evaluation, 1e6 F", "PFLOP", "hours"]
    epochs = {method.name: method.config.training.epochs for block in planned.blocks for method in block.plan.methods}
    found = costs(planned)
    rows = [
        [
            cost.name,
            str(cost.runs),
            str(epochs[cost.name]),
            f"{cost.runs * cost.training / 1e6:.3g}",
            f"{cost.runs * cost.judging / 1e6:.3g}",
            f"{cost.runs * (cost.training + cost.judging) * cost.flops / 1e15:.3g}",
            f"{cost.hours:.3g}",
        ]
        for cost in found
    ]
    hours = sum(cost.hours for cost in found)
    uncounted = dict.fromkeys(name for cost in found for name in cost.uncounted)
    told = [
        planned.title,
        write_table(header, rows),
        f"About {hours:.3g} hours on this device, one run after another{_price(hours, price)}.",
        "F: a forward pass of one image. The cost of evaluation assumes the published robust accuracy; if none is "
        "published, it assumes that no attack succeeds.",
        *([f"Not counted, because its cost is not known: {', '.join(uncounted)}."] if uncounted else []),
        *planned.gaps,
    ]
    return "\n\n".join(told)


def _price(hours: float, price: float | None) -> str:
    return "" if price is None else f", {hours * price:.2f} at {price:g} an hour"
