"""The summary of a run for the report, and the results table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from adv_train.evaluation import Examples
from adv_train.tables import Cell, Figure, write_table

_TITLES: Final = {"pgd": "RA-PGD", "autoattack": "RA-AA"}


@dataclass(frozen=True)
class Picture:
    """An existing figure.

    Attributes:
        png: Content of its PNG file.
        told: Description of the figure, in sentences.
    """

    png: bytes
    told: str


@dataclass(frozen=True, eq=False)
class RunSummary:
    """One run, with everything that a report shows of it.

    Attributes:
        name: Name of the run in tables and legends, such as its method.
        config: Its configuration; the keys of nested mappings are shown with dots.
        evaluation: The evaluation that represents the run, as returned by `Evaluation.summary`: ``sa``, ``ra_pgd``,
            ``ra_aa`` (fractions or None), ``n``, ``eps`` and optional keys.
        metrics: Rows of its ``metrics.jsonl``, one for each epoch.
        records: All its evaluations, in the same form as `evaluation`.
        class_names: Names of the classes, in the order of the labels; empty if they are not known.
        seconds_per_epoch: Training time of an epoch in seconds on this machine, without validation. It includes the
            time of `accelerate` to capture or compile, divided by the number of epochs.
        forward_equivalents: Cost of a training step in forward passes of its model.
        implicit_share: Norm of the implicit part of the gradient over the norm of the direct part, averaged over
            training; None if the method has no implicit part.
        examples: Attacked samples to show.
        best_epoch: The epoch in its ``best.pt``.
        alarms: Problems of the training, in sentences.
        landscape: The loss landscape around test images; None if it was not drawn.
        landscape_command: The command line that draws the landscape; None if it cannot be drawn.
        published: Published figures as text (``"SA": "79.97 ± 0.12"``). The report shows them in a separate table,
            never beside measured ones.
    """

    name: str
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    records: Sequence[Mapping[str, Any]] = ()
    class_names: Sequence[str] = ()
    seconds_per_epoch: float | None = None
    forward_equivalents: float | None = None
    implicit_share: float | None = None
    examples: Examples | None = None
    best_epoch: int | None = None
    alarms: Sequence[str] = ()
    landscape: Picture | None = None
    landscape_command: str | None = None
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def judged_epoch(self) -> int | None:
        """The epoch whose weights were evaluated; None if it is not known."""
        return self.evaluation.get("epoch")

    @property
    def judged(self) -> str:
        """What was evaluated: ``best.pt (epoch 27), 360 images, linf, ε = 0.2``."""
        record = self.evaluation
        epoch = f" (epoch {record['epoch']})" if "epoch" in record else ""
        averaged = f", averaged weights ({record['averaged']})" if "averaged" in record else ""
        part = f"; the test set has {record['of']}" if record["n"] < record.get("of", 0) else ""
        return f"{record['checkpoint']}{epoch}{averaged}, {record['n']} images, {budget(record)}{part}"


def alike(runs: Sequence[RunSummary]) -> bool:
    """Return whether the accuracies of runs can be compared: they have the same threat and the same test images.

    Records without a digest of the images are compared by the name of the data set.
    """
    found = [run.evaluation for run in runs]
    return len({(budget(each), each["n"], each.get("images", each.get("data"))) for each in found}) <= 1


def accuracies(run: RunSummary) -> list[tuple[str, float, Sequence[float] | None]]:
    """Return title, fraction and interval of each measured accuracy, the clean one first."""
    found = run.evaluation
    intervals = found.get("intervals", {})
    robust = {"pgd": found.get("ra_pgd"), "autoattack": found.get("ra_aa")}
    robust |= {name: found.get("ra", {}).get(name) for name in _further([run])}
    listed = [("SA", found.get("sa"), intervals.get("sa"))]
    listed += [(accuracy_title(name), value, intervals.get("ra", {}).get(name)) for name, value in robust.items()]
    return [(title, value, ends) for title, value, ends in listed if value is not None]


def header(runs: Sequence[RunSummary]) -> tuple[str, ...]:
    """Return the columns of the results table; an attack other than PGD and AutoAttack has one if any run has it."""
    further = (accuracy_title(name) for name in _further(runs))
    return ("method", "SA", "RA-PGD", "RA-AA", *further, "s/epoch", "F/step", "implicit share")


def row(run: RunSummary, runs: Sequence[RunSummary]) -> list[Cell]:
    """Return a run's row of the results table, in the order of `header`."""
    known = {title: (value, ends) for title, value, ends in accuracies(run)}
    wanted = header(runs)[1:-3]
    return [
        run.name,
        *(measured(*known.get(title, (None, None))) for title in wanted),
        Figure(run.seconds_per_epoch, number(run.seconds_per_epoch, 2)),
        Figure(run.forward_equivalents, number(run.forward_equivalents, 1)),
        share(run.implicit_share),
    ]


def results_table(runs: Sequence[RunSummary], form: str = "markdown") -> str:
    """Format the measured results as ``markdown``, ``csv`` or ``latex``; see `write_table`."""
    return write_table(header(runs), [row(run, runs) for run in runs], form)


def class_rows(run: RunSummary) -> tuple[tuple[str, ...], list[list[Cell]]]:
    """Return header and rows of the table of accuracies of each class; no rows if they are not known."""
    classes = run.evaluation.get("per_class", [])
    attacks = list(dict.fromkeys(name for found in classes for name in found["ra"]))
    rows: list[list[Cell]] = [
        [
            found["name"],
            Figure(found["n"], str(found["n"])),
            share(found["sa"]),
            *(share(found["ra"].get(name)) for name in attacks),
        ]
        for found in classes
    ]
    return ("class", "images", "SA", *map(accuracy_title, attacks)), rows


def accuracy_title(attack: str) -> str:
    """Return the title of the accuracy under an attack."""
    return _TITLES.get(attack, f"RA-{attack}")


def budget(record: Mapping[str, Any]) -> str:
    """Format the threat of a record: ``linf, ε = 0.2``."""
    return f"{record.get('norm', 'linf')}, ε = {record['eps']:.4g}"


def share(fraction: float | None) -> Figure:
    """Make the cell of a fraction."""
    return Figure(fraction, percent(fraction))


def measured(fraction: float | None, interval: Sequence[float] | None) -> Figure:
    """Make the cell of an accuracy with its confidence interval, in percent: ``61.4 % [56.2, 66.3]``."""
    if fraction is None or interval is None:
        return share(fraction)
    low, high = (f"{100 * end:.1f}" for end in interval)
    return Figure(fraction, f"{percent(fraction)} [{low}, {high}]")


def percent(fraction: float | None) -> str:
    """Format a fraction as ``61.4 %``, a positive one that would round to zero as ``< 0.1 %``, and None as a dash."""
    if fraction is None:
        return "–"
    return "< 0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


def number(value: float | None, decimals: int) -> str:
    """Format a number with fixed decimals, and None as a dash."""
    return "–" if value is None else f"{value:.{decimals}f}"


def _further(runs: Sequence[RunSummary]) -> list[str]:
    met = [name for run in runs for name in run.evaluation.get("ra", {}) if name not in _TITLES]
    return list(dict.fromkeys(met))
