"""Make a published table again: train and judge its cells, and put what is measured beside what is published.

examples:
  adv-train table table-1 --scale smoke            (minutes: handwritten digits, to see that it runs)
  adv-train table table-1 --scale cpu --out runs/t (about an hour on two cores: CIFAR-10 alone, small networks)
  adv-train table table-1 --seeds 0-9              (as published; wants a GPU)
  adv-train table table-1 --only cifar10-8,fast-bat --seeds 0,1
  adv-train table table-1 --backend ray --ray-address auto  (on the GPUs and machines of a Ray cluster)
  adv-train table benchmark-8 --dry-run --price 3  (what would run, for how long, at 3 an hour)

A cell is a preset (`adv-train list presets`), so `adv-train fit --preset CELL` trains it alone. Each run is an ordinary
run folder OUT/CELL-seedS, so the same command goes on where it stopped, runs only what is missing, and a cell that
fails leaves the others alone. OUT/table.md, .csv, .tex and .json are rewritten as runs finish; OUT/report.html shows
the first seed of each cell. Flags change all cells, such as --data imagefolder:PATH or --epochs 40.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adv_train.attacks.named import named_attacks
from adv_train.cli.configured import configured
from adv_train.cli.several import Grid, finish, write_first_seeds
from adv_train.config import SECTIONS
from adv_train.errors import UserError
from adv_train.report import write_table
from adv_train.reproduction import Blocks, PublishedTable, Reproduction, Scale, costs, plan
from adv_train.values import Range, refused

_MOST_SEEDS = 1_000


@dataclass(frozen=True, kw_only=True)
class MakeTable(Grid):
    """Which table, and how much of it.

    Attributes:
        table: Name of the table: table-1, table-2 or benchmark-8.
        seeds: Such as 0-9 or 0,2,5; by default those of the scale.
        only: Parts of the names of the cells wanted, with commas between; * stands for any text.
        scale: full as published; cpu for two cores; smoke to see that it runs.
        out: Folder of the runs and of the table; by default runs/TABLE-SCALE.
        attacks: Names with commas between (see `adv-train list attacks`); by default those of the scale.
        pgd_steps: Steps of PGD; by default those of the scale.
        pgd_restarts: Random starts of PGD; by default those of the scale.
        limit: Judge by only so many test images, of all classes in proportion.
        form: Form of the table that is printed.
        dry_run: Only show the cells, and what they would take.
        price: Of an hour on this device, for the dry run.
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
    """Read the flags: those of the command, and those of the configuration of all cells."""
    sections = [section for section in SECTIONS if section != "method"]
    return configured(MakeTable, words, "adv-train table", __doc__ or "", sections, positional="table")


def run(words: Sequence[str]) -> int:
    """Do what is left to do, and show the table; 1 where a run failed."""
    command, flags = read(words)
    planned, out = _planned(command, flags)
    if command.dry_run:
        print(_estimate(planned, command.price))
        return 0
    failed = finish(
        planned.cells(),
        lambda failed: Reproduction(planned, failed).write(out),
        command,
    )
    shown = Reproduction(planned, failed)
    shown.write(out)
    plans = [block.plan for block in planned.blocks]
    write_first_seeds(plans, out, shown.title, [shown.section()], shown.figures(), ["table", *words])
    print(shown.text(command.form))
    return 1 if failed or planned.missing else 0


def _planned(command: MakeTable, flags: dict[str, Any]) -> tuple[Blocks, Path]:
    if not command.table:
        raise UserError("Say which table to make, such as `adv-train table table-1 --scale smoke`.")
    scale = Scale.find(command.scale)
    table = PublishedTable.find(command.table).only(scale.only if command.only is None else command.only)
    steps, restarts = command.pgd_steps or scale.pgd_steps, command.pgd_restarts or scale.pgd_restarts
    attacks = named_attacks(command.attacks or scale.attacks, steps=steps, restarts=restarts)
    if not attacks:
        raise UserError("--attacks names no attack: give at least one, such as pgd.")
    if "seed" in flags:
        raise UserError("A table has several seeds: give --seeds, not --seed.")
    out = command.out or Path("runs") / f"{table.name}-{command.scale}"
    planned = plan(
        table,
        command.scale,
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
    """Table the cells with what they would take."""
    header = ["cell", "runs left", "epochs", "training, 1e6 F", "judging, 1e6 F", "PFLOP", "hours"]
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
    told = [
        f"{planned.table.about}. Scale {planned.scale}: {Scale.find(planned.scale).about}",
        write_table(header, rows),
        f"About {hours:.3g} hours on this device, one run after another{_price(hours, price)}.",
        "F: a forward pass of one image. Judging is counted for models as robust as published, and for models that no "
        "attack breaks where nothing is.",
        *(f"{name}: {reason}" for name, reason in planned.missing.items()),
    ]
    return "\n\n".join(told)


def _price(hours: float, price: float | None) -> str:
    return "" if price is None else f", {hours * price:.2f} at {price:g} an hour"
