"""Plan the runs of a table: its cells are grouped by data set and threat, and each group is planned as a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adv_train import comparison
from adv_train.attacks import Attack
from adv_train.comparison import Cell, Contender, Plan
from adv_train.config import RunConfig
from adv_train.data import PUBLISHED_FACTS
from adv_train.errors import UserError
from adv_train.reproduction.published import Published, PublishedTable
from adv_train.reproduction.scale import Scale


@dataclass(frozen=True)
class Block:
    """The cells that are evaluated on the same images under the same threat.

    Attributes:
        plan: Their runs.
        published: The published figures of each cell, by measure.
    """

    plan: Plan
    published: Mapping[str, Mapping[str, Published]]


@dataclass(frozen=True)
class Blocks:
    """A table before its first run.

    Attributes:
        table: The published table.
        scale: The scale of its runs.
        blocks: Groups of cells, in the order of the table.
        missing: The reason why a cell cannot be run, by its name.
    """

    table: PublishedTable
    scale: Scale
    blocks: tuple[Block, ...]
    missing: Mapping[str, str]

    @property
    def title(self) -> str:
        """One line that describes the table and the scale."""
        return f"{self.table.about}. Scale {self.scale.name}: {self.scale.about}"

    @property
    def gaps(self) -> list[str]:
        """A line for each reason in `missing`, with all cells that it keeps from running."""
        reasons = dict.fromkeys(self.missing.values())
        return [f"{', '.join(name for name in self.missing if self.missing[name] == why)}: {why}" for why in reasons]

    def cells(self) -> list[Cell]:
        """Return all runs: all cells with the first seed, then with the next."""
        runs = [block.plan.cells() for block in self.blocks]
        seeds = max((len(block.plan.seeds) for block in self.blocks), default=0)
        each = [(made, len(made) // seeds) for made in runs]
        return [cell for seed in range(seeds) for made, n in each for cell in made[seed * n : (seed + 1) * n]]


def plan(
    table: PublishedTable,
    scale: Scale,
    flags: Mapping[str, Any],
    *,
    out: Path,
    seeds: Sequence[int],
    attacks: Sequence[Attack],
    limit: int | None,
    epochs: int | None = None,
    dry: bool = False,
) -> Blocks:
    """Plan a table; nothing is written.

    Args:
        table: The table, with the cells to run.
        scale: The scale of the runs.
        flags: Values for all cells from the command line, by short name.
        out: Folder of the run folders.
        seeds: Seeds of the runs of every cell.
        attacks: The attacks that evaluate every checkpoint.
        limit: Number of test images; None for all.
        epochs: Epochs of every run; by default those of the scale.
        dry: Use the known sizes of the published data sets, and neither load nor download them.

    Raises:
        UserError: If a configuration is invalid, or a folder holds another run.
    """
    groups: dict[tuple[Any, ...], list[tuple[Contender, RunConfig]]] = {}
    for preset in table.cells:
        contender = scale.contender(preset)
        config = contender.config({}, flags, seeds[0])
        key = (config.data.name, *vars(config.threat).values())
        groups.setdefault(key, []).append((contender, config))
    blocks: list[Block] = []
    missing: dict[str, str] = {}
    for members in groups.values():
        (_, config), names = members[0], [contender.name for contender, _ in members]
        facts = PUBLISHED_FACTS.get(config.data.name) if dry else None
        try:
            made = comparison.plan(
                [contender for contender, _ in members],
                flags,
                out=out,
                seeds=seeds,
                attacks=attacks,
                epochs=epochs or scale.epochs,
                limit=limit,
                facts=None if facts is None else facts.limited(config.data.limit),
            )
        except UserError as error:
            if len(groups) == 1:
                raise
            missing |= dict.fromkeys(names, str(error))
            continue
        blocks.append(Block(made, {name: table.cells[name] for name in names}))
    return Blocks(table, scale, tuple(blocks), missing)
