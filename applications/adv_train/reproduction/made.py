"""The table of measured and published figures, rewritten whenever a run finishes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from adv_train.comparison import Plan, tables
from adv_train.comparison.doubts import doubts, told_of
from adv_train.comparison.figure import scatter
from adv_train.comparison.plan import CHECKPOINTS
from adv_train.comparison.results import Result, judges, measures, results
from adv_train.files import make_folder, replace_file
from adv_train.report import Figure, Scatter, Section, Table, number, write_table
from adv_train.report.sections import versions
from adv_train.reproduction.planned import Blocks
from adv_train.reproduction.published import Published
from adv_train.reproduction.scale import Scale
from adv_train.tables import Cell

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

    @property
    def title(self) -> str:
        """One line that describes the table and the scale."""
        table, scale = self.planned.table, self.planned.scale
        return f"{table.about}. Scale {scale}: {Scale.find(scale).about}"

    def section(self) -> Section:
        """Return the table for people, with its notes and alarms."""
        notes = [
            "Mean ± sample standard deviation over the seeds; best: best.pt, chosen on the validation images; last: "
            "last.pt. A published figure with ? is hard to read in its source.",
            *dict.fromkeys(_judged(block.plan) for block in self.planned.blocks),
        ]
        if self.planned.scale != "full":
            notes.append(f"The published figures are for the full scale, not for {self.planned.scale}.")
        notes += [f"{name}: {reason}" for name, reason in self.planned.missing.items()]
        found = doubts([result for result, _ in self.results])
        return Section(self.planned.table.name, self._table(), notes, found)

    def figures(self) -> list[Scatter]:
        """Return a main figure for each block of cells with the same data and threat."""
        found = {result.name: result for result, _ in self.results}
        plans = [block.plan for block in self.planned.blocks]
        return [scatter(plan, [found[m.name] for m in plan.methods if m.name in found]) for plan in plans]

    def text(self, form: str = "markdown") -> str:
        """Format the table as ``markdown`` with its notes, ``csv`` or ``latex``."""
        section = self.section()
        table = write_table(section.table.header, section.table.rows, form)
        return "\n\n".join([self.title, table, *told_of(section)]) if form == "markdown" else table

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
        """Return all results in plain values, for JSON."""
        return {
            "format": FORMAT,
            "table": self.planned.table.name,
            "scale": self.planned.scale,
            "versions": versions(),
            "missing": dict(self.planned.missing),
            "cells": [self._cell(result, published) for result, published in self.results],
        }

    def _cell(self, result: Result, published: Mapping[str, Published]) -> dict[str, Any]:
        return {
            "name": result.name,
            "config": result.planned.config.to_mapping(),
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

    def _table(self) -> Table:
        measured = list(dict.fromkeys(m for block in self.planned.blocks for m in measures(block.plan)))
        measured += [m for m in self._published_measures() if m not in measured]
        header = ["cell", "seeds"]
        for measure in measured:
            header += [f"{tables.title(measure)} {column}" for column in (*CHECKPOINTS, "published")]
        header += ["s/epoch", "s/epoch published", "F/batch", "alarms"]
        return Table(header, [list(_row(result, published, measured)) for result, published in self.results])

    def _published_measures(self) -> list[str]:
        found = dict.fromkeys(measure for row in self.planned.table.cells.values() for measure in row)
        return [measure for measure in found if measure != "seconds"]


def _row(result: Result, published: Mapping[str, Published], measured: list[str]) -> Iterator[Cell]:
    yield result.name
    yield tables.seeds(result)
    for measure in measured:
        for checkpoint in CHECKPOINTS:
            known = (checkpoint, measure) in result.accuracies
            yield tables.spread(result.spread(checkpoint, measure)) if known else Figure(None, "–")
        yield _percent(published.get(measure))
    yield Figure(result.seconds, number(result.seconds, 2))
    seconds = published.get("seconds")
    yield Figure(None, "–") if seconds is None else Figure(seconds.mean, f"{seconds.mean:g}")
    yield Figure(result.planned.forwards, number(result.planned.forwards, 1))
    yield Figure(result.doubtful, str(result.doubtful))


def _percent(figure: Published | None) -> Figure:
    if figure is None:
        return Figure(None, "–")
    told = f"{figure.mean:.2f}{'?' if figure.doubtful else ''}"
    return Figure(figure.mean / 100, f"{told} %" if figure.std is None else f"{told} ± {figure.std:.2f} %")


def _judged(plan: Plan) -> str:
    config = plan.methods[0].config
    return (
        f"{config.data.name}: {plan.facts.train} training images, {plan.images} test images, {judges(plan)}; "
        f"{config.training.epochs} epochs."
    )
