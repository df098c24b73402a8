"""The content of each section of the report, in plain values for the templates; a section without content is empty."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adv_train.report.pictures import address
from adv_train.report.summary import (
    RunSummary,
    accuracy_title,
    alike,
    budget,
    class_rows,
    header,
    measured,
    percent,
    row,
)
from adv_train.tables import Cell
from adv_train.values import format_fraction

_PACKAGES = ("torch-blo", "torch", "torchvision", "numpy", "pyautoattack")
_ACCURACIES = ("sa", "ra_pgd", "ra_aa")


@dataclass(frozen=True)
class NextStep:
    """A command to try next.

    Attributes:
        why: A sentence that says what the command does.
        command: The command line.
    """

    why: str
    command: str


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        header: Title of each column.
        rows: The rows of cells; the first cell names its row.
        bars: Indices of columns of fractions that are also drawn as bars.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    bars: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A table under a heading, with notes and alarms.

    Attributes:
        title: The heading.
        table: The table.
        notes: Notes, one paragraph each.
        alarms: Names of runs with warnings about their results; the page shows them at the top.
    """

    title: str
    table: Table
    notes: Sequence[str] = ()
    alarms: Sequence[tuple[str, str]] = ()


def lead(runs: Sequence[RunSummary]) -> dict[str, Any] | None:
    """Return the run with the highest accuracy under AutoAttack; None if the runs cannot be compared."""
    judged = [run for run in runs if run.evaluation.get("ra_aa") is not None]
    if not judged or not alike(runs):
        return None
    best = max(judged, key=lambda run: run.evaluation["ra_aa"])
    found = best.evaluation
    return {
        "name": best.name,
        "share": percent(found["ra_aa"]),
        "n": found["n"],
        "budget": budget(found),
        "of": len(judged),
    }


def results(runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Make the table of the measured results, and explain its columns."""
    titles = header(runs)
    terms = {
        "SA": "standard accuracy: clean test images classified correctly.",
        "RA-PGD": f"robust accuracy: correct on the clean image and after each restart of {_pgd_name(runs)}.",
        "RA-AA": "robust accuracy under standard AutoAttack (APGD-CE, APGD-T, FAB-T, Square).",
        "brackets": "95 % Wilson interval, in percent: the uncertainty that comes from the choice of the test images.",
        "s/epoch": "training time of an epoch on this machine; it includes capture or compilation by --accelerate.",
        "F/step": "cost of a training step, in forward passes of the model.",
        "implicit share": "norm of the implicit gradient over that of the direct one, averaged over training.",
    }
    bars = frozenset(range(1, titles.index("s/epoch")))
    table = Table(titles, [row(run, runs) for run in runs], bars)
    judged = [(run.name, _judged(run)) for run in runs if "checkpoint" in run.evaluation]
    return {"table": table, "judged": judged, "spread": _spread(runs), "terms": terms}


def classes(runs: Sequence[RunSummary]) -> list[tuple[str, Table]]:
    """Make the table of the accuracies of each class, for each run."""
    found = [(run.name, *class_rows(run)) for run in runs]
    return [(name, Table(titles, rows, frozenset(range(2, len(titles))))) for name, titles, rows in found if rows]


def records(runs: Sequence[RunSummary]) -> Table | None:
    """Make the table of all evaluations of all runs; None if no run has more than one."""
    if all(len(run.records) < 2 for run in runs):
        return None
    attacks = list(dict.fromkeys(name for run in runs for found in run.records for name in found.get("ra", {})))
    rows: list[list[Cell]] = []
    for run in runs:
        for found in run.records:
            accuracies = [found.get("sa"), *(found.get("ra", {}).get(name) for name in attacks)]
            epoch = f", epoch {found['epoch']}" if "epoch" in found else ""
            norm, intervals = found.get("norm", "linf"), found.get("intervals", {})
            ends = [intervals.get("sa"), *(intervals.get("ra", {}).get(name) for name in attacks)]
            rows.append(
                [
                    run.name,
                    f"{found.get('checkpoint', '–')}{epoch}",
                    f"{found['eps']:.4g}{'' if norm == 'linf' else f' in {norm}'}",
                    str(found["n"]),
                    effort(found.get("attacks", {})),
                    *map(measured, accuracies, ends),
                ]
            )
    return Table(("run", "checkpoint", "ε", "images", "attacks", "SA", *map(accuracy_title, attacks)), rows)


def landscapes(runs: Sequence[RunSummary]) -> dict[str, Any] | None:
    """Return the loss landscapes that were drawn, and the commands that draw those of the other runs."""
    shown = [(run.name, address(run.landscape.png), run.landscape.told) for run in runs if run.landscape is not None]
    missing = [run.landscape_command for run in runs if run.landscape is None and run.landscape_command]
    return {"shown": shown, "missing": missing} if shown or missing else None


def published(runs: Sequence[RunSummary]) -> Table | None:
    """Make the table of published figures, separate from the measured ones; None if there are none."""
    cited = [run for run in runs if run.published]
    columns = list(dict.fromkeys(column for run in cited for column in run.published))
    rows = [[run.name, *(run.published.get(column, "–") for column in columns)] for run in cited]
    return Table(["method", *columns], rows) if cited else None


def configuration(runs: Sequence[RunSummary], versions: Mapping[str, str]) -> dict[str, Table]:
    """Make the tables of the settings, those in which the runs differ first, and of the software."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    table_of = {key: [settings.get(key, "–") for settings in flat] for key in keys}
    differing = [key for key in keys if len(set(table_of[key])) > 1]
    common = [(key, table_of[key][0]) for key in keys if key not in differing]
    names = [run.name for run in runs]
    tables = {}
    if differing:
        tables["Where the runs differ"] = Table(["", *names], [[key, *table_of[key]] for key in differing])
    if common:
        tables["Settings of every run" if len(runs) > 1 else "Settings"] = Table(["setting", "value"], common)
    if versions:
        tables["Software and machine"] = Table(["", ""], list(versions.items()))
    return tables


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages of this process, and the kind of machine."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "machine": f"{platform.system()} {platform.machine()}"}


def _judged(run: RunSummary) -> str:
    found = run.evaluation
    data = f", {found.get('split', 'test')} split of {found['data']}" if "data" in found else ""
    return f"{run.judged}{data}; attacks: {effort(found.get('attacks', {}))}"


def effort(attacks: Mapping[str, Mapping[str, Any]]) -> str:
    """Name the attacks with steps, restarts and the length of a step: ``pgd 50 × 10 of 2/255, autoattack``."""
    told = []
    for name, settings in attacks.items():
        tried = f" {settings['steps']} × {settings['restarts']}" if {"steps", "restarts"} <= settings.keys() else ""
        length = f" of {format_fraction(settings['step'])}" if tried and "step" in settings else ""
        told.append(f"{name}{tried}{length}")
    return ", ".join(told) or "none"


def _pgd_name(runs: Sequence[RunSummary]) -> str:
    settings = [run.evaluation.get("attacks", {}).get("pgd") for run in runs]
    names = {f"PGD-{pgd['steps']}-{pgd['restarts']} (steps, restarts)" for pgd in settings if pgd}
    return names.pop() if len(names) == 1 else "PGD"


def _spread(runs: Sequence[RunSummary]) -> str:
    """Return the largest standard error of an accuracy over test images, sqrt(p (1 - p) / n), in percentage points."""
    errors = [
        math.sqrt(fraction * (1 - fraction) / run.evaluation["n"])
        for run in runs
        for key in _ACCURACIES
        if (fraction := run.evaluation.get(key)) is not None
    ]
    return f"{100 * max(errors):.1f}" if errors else ""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)))
    return pairs
