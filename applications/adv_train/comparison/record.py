"""The record of a comparison: tables for people, programs and papers, rewritten whenever a run finishes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from adv_train.comparison import tables
from adv_train.comparison.doubts import doubts, told_of
from adv_train.comparison.figure import scatter
from adv_train.comparison.networks import networks
from adv_train.comparison.plan import CHECKPOINTS, Plan
from adv_train.comparison.results import Result, judges, measures, results
from adv_train.files import make_folder, replace_file
from adv_train.report import Scatter, Section, write_table
from adv_train.report.sections import versions
from adv_train.values import format_fraction

FORMAT: Final = 1
_FORMS: Final = {"markdown": "md", "csv": "csv", "latex": "tex"}


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison so far.

    Attributes:
        plan: The methods and their runs.
        baseline: Name of the method that the others are compared with.
        failed: The reason of each failure, by the name of the run.
    """

    plan: Plan
    baseline: str
    failed: Mapping[str, str]

    @cached_property
    def results(self) -> list[Result]:
        """The results of each method; they are read from the disk once."""
        return results(self.plan, self.failed)

    @property
    def title(self) -> str:
        """One line with data set, threat, network, number of test images, attacks and seeds.

        If there are several networks, each comes with its methods. All methods share everything else in it.
        """
        config, seeds, found = self.plan.methods[0].config, self.plan.seeds, self._networks
        told = [name if len(found) == 1 else f"{name} ({', '.join(methods)})" for name, methods in found.items()]
        return (
            f"{config.data.name}, {config.threat.norm}, eps {format_fraction(config.threat.eps)}, {', '.join(told)}: "
            f"{self.plan.images} test images, {judges(self.plan.attacks)}, seeds {', '.join(map(str, seeds))}"
        )

    @property
    def _networks(self) -> dict[str, list[str]]:
        return networks({method.name: method.config for method in self.plan.methods})

    def sections(self) -> list[Section]:
        """Return the tables for people, with their notes and alarms."""
        measured, found = measures(self.plan), self.results
        baseline = self._baseline()
        spread = "best: best.pt, chosen on the validation images; last: last.pt."
        if len(self.plan.seeds) > 1:
            spread = f"Mean ± sample standard deviation over the seeds; {spread}"
        notes = [f"{spread} F/batch: forward passes of the network that training spends on a batch."]
        if len(self._networks) > 1:
            notes += ["The networks differ: F/batch counts passes of each method's own network."]
        if self.plan.cost is not None:
            notes += [f"Equal cost: a method of F passes trained {self.plan.cost:g}/F times its epochs, rounded."]
        made = [Section("Accuracy", tables.accuracies(found, measured), notes, doubts(found))]
        if len(found) > 1:
            told = "Percentage points, paired by seed: mean [95 % interval] and p-value of a paired t-test."
            told += " The p-values are not corrected for multiple comparisons."
            if len(self.plan.seeds) == 1:
                told = "Percentage points. One seed gives no interval and no p-value."
            title, table = f"Difference to {self.baseline}", tables.differences(found, measured, baseline)
            made.append(Section(title, table, [told]))
        return made

    def figure(self) -> Scatter:
        """Return the main figure: robust and clean accuracy of best.pt of each method over the seeds."""
        return scatter(self.plan, self.results)

    def text(self, form: str = "markdown") -> str:
        """Format the tables as ``markdown``, ``latex``, or ``csv`` with a row for each accuracy."""
        if form == "csv":
            table = tables.tidy(self.results, measures(self.plan), self._baseline())
            return write_table(table.header, table.rows, form)
        made = []
        for section in self.sections():
            told = [section.title, write_table(section.table.header, section.table.rows, form), *told_of(section)]
            made += told if form == "markdown" else told[1:2]
        return "\n\n".join([self.title, *made] if form == "markdown" else made)

    def write(self, out: Path) -> None:
        """Write ``comparison.json`` and the tables; each file is replaced atomically.

        Raises:
            UserError: If a file cannot be written.
        """
        make_folder(out)
        for form, suffix in _FORMS.items():
            replace_file(out / f"comparison.{suffix}", (self.text(form) + "\n").encode())
        replace_file(out / "comparison.json", (json.dumps(self.record(), indent=1, allow_nan=False) + "\n").encode())

    def record(self) -> dict[str, Any]:
        """Return all results in plain values, for JSON."""
        plan, config = self.plan, self.plan.methods[0].config
        return {
            "format": FORMAT,
            "data": config.data.name,
            "threat": vars(config.threat),
            "images": plan.images,
            "attacks": {name: attack.chosen() for name, attack in zip(measures(plan)[1:], plan.attacks, strict=True)},
            "seeds": plan.seeds,
            "cost": plan.cost,
            "baseline": self.baseline,
            "versions": versions(),
            "methods": [self._method(result) for result in self.results],
        }

    def _method(self, result: Result) -> dict[str, Any]:
        keys, baseline = [(c, m) for c in CHECKPOINTS for m in measures(self.plan)], self._baseline()
        return {
            "name": result.name,
            "config": result.planned.config.to_mapping(),
            "epochs": result.planned.config.training.epochs,
            "forwards": result.planned.forwards,
            "seconds_per_epoch": result.seconds,
            "implicit_share": result.implicit_share,
            "accuracies": [
                {
                    "checkpoint": checkpoint,
                    "measure": measure,
                    "by_seed": result.accuracies[checkpoint, measure],
                    **asdict(result.spread(checkpoint, measure)),
                    "difference": None
                    if result is baseline
                    else asdict(result.difference(baseline, checkpoint, measure)),
                }
                for checkpoint, measure in keys
            ],
            "alarms": result.alarms,
            "failed": result.failed,
        }

    def _baseline(self) -> Result:
        return next(result for result in self.results if result.name == self.baseline)
