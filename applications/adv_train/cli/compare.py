"""Train several methods with the same seeds, optionally at equal cost, evaluate them alike, and compare them.

examples:
  adv-train compare --methods fast-at,pgd-at,fast-bat --data digits --eps 0.2 --seeds 5 --out runs/digits
  adv-train compare --methods "fast-at, pgd-at(steps=3), fast-bat(ig_weight=0)" --cost 7F --data digits --out runs/7F
  adv-train compare --methods cifar10-8-fast-at,cifar10-8-fast-bat,mine.yaml --attacks pgd,autoattack --out runs/c
  adv-train compare --methods fast-at,fast-bat --data digits --cost 7F --dry-run     (lists the runs and trains none)

A method is a name from `adv-train list methods`, a preset or a YAML file. Options in parentheses apply to that method,
and flags apply to all methods. Runs with the same seed start from the same weights and see the same images in the same
order with the same augmentation. Each run is an ordinary run folder OUT/METHOD-seedS, so the same command resumes an
interrupted comparison, and a later command can add methods or seeds to the same OUT. After each run, the command
rewrites OUT/comparison.md, .csv, .tex and .json. OUT/report.html shows the first seed of each method. With --backend
ray, the runs are distributed over the GPUs and machines of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adv_train import values
from adv_train.attacks.named import named_attacks
from adv_train.cli.configured import configured
from adv_train.cli.several import Grid, finish, print_failures, write_first_seeds
from adv_train.comparison import Comparison, Plan, contenders, plan
from adv_train.config import SECTIONS, read_yaml
from adv_train.errors import UserError, unknown
from adv_train.files import make_folder
from adv_train.report import number, write_table
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class Compare(Grid):
    """The methods to compare, and how to evaluate them.

    Attributes:
        methods: Methods, presets or YAML files, separated by commas, with options as in `fast-bat(ig_weight=0)`.
        seeds: Number of runs of each method, with consecutive seeds from --seed on.
        cost: Equal cost, such as 7F: a method of F forward passes per batch trains for round(epochs * 7 / F) epochs.
        baseline: Method to compare the others with; by default the first.
        config: YAML file for all methods; the preset or file of a method, its options, and flags override it.
        out: Folder for the runs and tables.
        attacks: Attacks, separated by commas (see `adv-train list attacks`).
        pgd_steps: Number of steps of PGD.
        pgd_restarts: Number of random starts of PGD.
        limit: Evaluate on only so many test images; each class keeps its proportion.
        table: Format of the printed table.
        dry_run: List the runs and their epochs, and train none.
    """

    methods: str = ""
    seeds: Annotated[int, Range(1)] = 5
    cost: str | None = None
    baseline: str | None = None
    config: Path | None = None
    out: Path = Path("runs/comparison")
    attacks: str = "pgd"
    pgd_steps: Annotated[int, Range(1)] = 50
    pgd_restarts: Annotated[int, Range(1)] = 10
    limit: Annotated[int, Range(1)] | None = None
    table: Literal["markdown", "csv", "latex"] = "markdown"
    dry_run: bool = False


def read(words: Sequence[str]) -> tuple[Compare, dict[str, Any]]:
    """Read the flags of the command, and the flags that set the configuration of all methods."""
    sections = [section for section in SECTIONS if section != "method"]
    return configured(Compare, words, "adv-train compare", __doc__ or "", sections)


def run(words: Sequence[str]) -> int:
    """Run what is not done yet, and print the comparison; return 1 if a run failed."""
    command, flags = read(words)
    chosen = contenders(command.methods)
    names = [contender.name for contender in chosen]
    baseline = names[0] if command.baseline is None else _found(command.baseline, names)
    first = values.reader(values.Seed)(flags.pop("seed", 0), "seed")
    attacks = named_attacks(command.attacks, steps=command.pgd_steps, restarts=command.pgd_restarts)
    if not attacks:
        raise UserError("--attacks names no attack: give at least one, such as pgd.")
    planned = plan(
        chosen,
        flags,
        out=command.out,
        seeds=range(first, first + command.seeds),
        attacks=attacks,
        common={} if command.config is None else read_yaml(command.config),
        cost=None if command.cost is None else _forwards(command.cost),
        limit=command.limit,
    )
    if command.dry_run:
        print(_cells(planned))
        return 0
    make_folder(command.out)
    failed = finish(
        planned.cells(),
        lambda failed: Comparison(planned, baseline, failed).write(command.out),
        command,
    )
    shown = Comparison(planned, baseline, failed)
    shown.write(command.out)
    bad = print_failures(shown.results)
    write_first_seeds([planned], command.out, shown.title, shown.sections(), [shown.figure()], ["compare", *words])
    print(shown.text(command.table))
    return 1 if bad else 0


def _found(baseline: str, names: Sequence[str]) -> str:
    """Return the name of the baseline in the table; its spacing on the command line may differ."""
    (wanted,) = contenders(baseline)
    if wanted.name not in names:
        raise unknown("baseline", wanted.name, names)
    return wanted.name


def _forwards(cost: str) -> float:
    try:
        return float(values.parse_fraction(cost.strip().removesuffix("F"), "cost", Range(0, open=True)))
    except UserError:
        raise values.refused("cost", "a number of forward passes a batch, such as 7F", cost) from None


def _cells(planned: Plan) -> str:
    """Return the table of the runs."""
    forwards = {cell.name: method.forwards for method in planned.methods for cell in method.cells.values()}
    rows: list[list[str]] = []
    for cell in planned.cells():
        epochs, done = cell.config.training.epochs, cell.epochs_done()
        state = "done" if cell.is_done() else f"epoch {done} of {epochs}" if done else "to do"
        rows.append([cell.name, str(epochs), number(forwards[cell.name], 1), state])
    return write_table(("run", "epochs", "F/batch", "state"), rows)
