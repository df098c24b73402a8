"""The table of measured and published figures, rewritten whenever a run finishes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from adv_train.comparison import Plan, Result
from adv_train.comparison.doubts import doubts, told_of
from adv_train.comparison.figure import scatter
from adv_train.comparison.results import judges, measures, results
from adv_train.files import make_folder, replace_file
from adv_train.report import Scatter, Section, write_table
from adv_train.report.sections import versions
from adv_train.reproduction import tables
from adv_train.reproduction.planned import Blocks
from adv_train.reproduction.published import Published

FORMAT: Final = 1
_FORMS: Final = {"markdown": "md", "csv": "csv", "latex": "tex"}


@dataclass(frozen=True)
class Reproduction:
    """The results of a table so far.

    Attributes:
        planned: Its cells and their runs.
        failed: The reason of each failure, by the name of the run.
    """

    planned: Blocks
    failed: Mapping[str, str]

    @cached_property
    def results(self) -> list[tuple[Result, Mapping[str, Published]]]:
        """The measured and the published figures of each cell; they are read from the disk once."""
        found = {
            result.name: (result, block.published[result.name])
            for block in self.planned.blocks
            for result in results(block.plan, self.failed)
        }
        return [found[name] for name in self.planned.table.cells if name in found]

    def section(self) -> Section:
        """Return the table for people, with its notes and alarms."""
        notes = [
            "Mean ± sample standard deviation over the seeds; best: best.pt, chosen on the validation images; last: "
            "last.pt. A published figure with ? is hard to read in its source.",
            *self._judged(),
            *self.planned.table.notes,
        ]
        if self.planned.scale.name != "full":
            notes.append(f"The published figures are for the full scale, not for {self.planned.scale.name}.")
        notes += self.planned.gaps
        found = doubts([result for result, _ in self.results])
        return Section(self.planned.table.name, tables.wide(self.results, self._measures()), notes, found)

    def figures(self) -> list[Scatter]:
        """Return a main figure for each block of cells with the same data and threat."""
        found = {result.name: result for result, _ in self.results}
        plans = [block.plan for block in self.planned.blocks]
        return [scatter(plan, [found[m.name] for m in plan.methods if m.name in found]) for plan in plans]

    def text(self, form: str = "markdown") -> str:
        """Format the table as ``markdown``, ``latex``, or ``csv`` with a row for each cell, checkpoint and measure.

        Below it, Markdown has notes and alarms. Above it, LaTeX has comments that name the scale, data and attacks.
        """
        if form == "csv":
            tidy = tables.tidy(self.results, self._measures())
            return write_table(tidy.header, tidy.rows, form)
        section = self.section()
        table = write_table(section.table.header, section.table.rows, form)
        if form == "latex":
            return "\n".join([*(f"% {line}" for line in (self.planned.title, *self._judged())), table])
        return "\n\n".join([self.planned.title, table, *told_of(section)])

    def write(self, out: Path) -> None:
        """Write ``table.md``, ``.csv``, ``.tex`` and ``.json``; each file is replaced atomically.

        Raises:
            UserError: If a file cannot be written.
        """
        make_folder(out)
        for form, suffix in _FORMS.items():
            replace_file(out / f"table.{suffix}", (self.text(form) + "\n").encode())
        replace_file(out / "table.json", (json.dumps(self.record(), indent=1, allow_nan=False) + "\n").encode())

    def record(self) -> dict[str, Any]:
        """Return all results in plain values, for JSON.

        Older records lack ``notes``, ``seeds``, and of each cell ``training_images``, ``images`` and ``attacks``.
        """
        table, blocks = self.planned.table, self.planned.blocks
        return {
            "format": FORMAT,
            "table": table.name,
            "notes": list(table.notes),
            "scale": self.planned.scale.name,
            "seeds": list(blocks[0].plan.seeds) if blocks else [],
            "versions": versions(),
            "missing": dict(self.planned.missing),
            "cells": [self._cell(result, published) for result, published in self.results],
        }

    def _cell(self, result: Result, published: Mapping[str, Published]) -> dict[str, Any]:
        (plan,) = (block.plan for block in self.planned.blocks if result.name in block.published)
        return {
            "name": result.name,
            "config": result.planned.config.to_mapping(),
            "training_images": plan.facts.train,
            "images": plan.images,
            "attacks": {name: attack.chosen() for name, attack in zip(measures(plan)[1:], plan.attacks, strict=True)},
            "forwards": result.planned.forwards,
            "seconds_per_epoch": result.seconds,
            "implicit_share": result.implicit_share,
            "published": {measure: asdict(figure) for measure, figure in published.items()},
            "measured": [
                {
                    "checkpoint": checkpoint,
                    "measure": measure,
                    "by_seed": by_seed,
                    **asdict(result.spread(checkpoint, measure)),
                }
                for (checkpoint, measure), by_seed in result.accuracies.items()
            ],
            "alarms": result.alarms,
            "failed": result.failed,
        }

    def _judged(self) -> list[str]:
        """Describe what each data set was used for, in a line each."""
        return list(dict.fromkeys(_judged(block.plan) for block in self.planned.blocks))

    def _measures(self) -> list[str]:
        """Return the names of all accuracies: the measured ones, then those that are only published."""
        plans = [block.plan for block in self.planned.blocks]
        published = [measure for row in self.planned.table.cells.values() for measure in row if measure != "seconds"]
        return list(dict.fromkeys([*(measure for plan in plans for measure in measures(plan)), *published]))


def _judged(plan: Plan) -> str:
    config = plan.methods[0].config
    return (
        f"{config.data.name}: {plan.facts.train} training images, {plan.images} test images, {judges(plan.attacks)}; "
        f"{config.training.epochs} epochs."
    )
