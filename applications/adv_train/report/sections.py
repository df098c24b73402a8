"""The sections of the report; each is a list of elements, empty where there is nothing to show."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from xml.etree.ElementTree import Element

from adv_train.report.curves import charts, legend
from adv_train.report.elements import Child, node, table
from adv_train.report.pictures import gallery
from adv_train.report.summary import HEADER, RunSummary, percent

_PACKAGES = ("torch-blo", "torch", "torchvision", "numpy", "pyautoattack")
_ACCURACIES = ("sa", "ra_pgd", "ra_aa")


@dataclass(frozen=True)
class NextStep:
    """A command to try next.

    Attributes:
        why: What it is good for, in a sentence.
        command: As typed in a terminal.
    """

    why: str
    command: str


def lead(runs: Sequence[RunSummary]) -> list[Element]:
    """Say which run withstands most, where the runs can be compared at all."""
    judged = [run for run in runs if run.evaluation.get("ra_aa") is not None]
    if not judged or len({(run.evaluation["eps"], run.evaluation["n"]) for run in runs}) > 1:
        return []
    best = max(judged, key=lambda run: run.evaluation["ra_aa"])
    strong = node("strong", f"{percent(best.evaluation['ra_aa'])} of {best.evaluation['n']} test images")
    told = f" under every part of AutoAttack at ε = {best.evaluation['eps']:.4g}"
    others = f", the most of {len(judged)} runs." if len(judged) > 1 else "."
    return [
        node("p", node("strong", best.name), " still classifies ", strong, " correctly", told, others, class_="lead")
    ]


def results(runs: Sequence[RunSummary]) -> list[Element]:
    """Table what was measured here, and explain its columns."""
    rows: list[list[Child]] = []
    for run in runs:
        name, *cells = run.cells()
        fractions = [run.evaluation.get(key) for key in _ACCURACIES]
        bars = [_bar(cell, fraction) for cell, fraction in zip(cells, fractions, strict=False)]
        rows.append([name, *bars, *cells[len(bars) :]])
    terms = {
        "SA": "standard accuracy: clean test images classified correctly.",
        "RA-PGD": f"robust accuracy: correct on the clean image and after each restart of {_pgd_name(runs)}.",
        "RA-AA": "robust accuracy under standard AutoAttack (APGD-CE, APGD-T, FAB-T, Square).",
        "s/epoch": "training time of an epoch on this machine.",
        "F/step": "cost of a training step, in forward passes of the model.",
        "implicit share": "size of the implicit gradient next to the direct one, averaged over training.",
    }
    pairs = [part for term, text in terms.items() for part in (node("dt", term), node("dd", text))]
    return [table(HEADER, rows, class_="results"), *_spread(runs), node("dl", *pairs)]


def published(runs: Sequence[RunSummary]) -> list[Element]:
    """Table the figures of the literature, apart from those measured here."""
    cited = [run for run in runs if run.published]
    columns = list(dict.fromkeys(column for run in cited for column in run.published))
    rows = [[run.name, *(run.published.get(column, "–") for column in columns)] for run in cited]
    note = "As printed in the literature, on its authors' hardware and training schedule; nothing here was measured."
    return [node("p", note), table(["method", *columns], rows)] if cited else []


def training(runs: Sequence[RunSummary]) -> list[Element]:
    """Draw the training curves."""
    drawn = charts(runs)
    return [legend(runs), node("div", *drawn, class_="charts")] if drawn else []


def examples(runs: Sequence[RunSummary]) -> list[Element]:
    """Show attacked samples of each run that has some."""
    shown = [gallery(run.name, run.examples, run.evaluation["eps"]) for run in runs if run.examples is not None]
    note = (
        "The first test images that each model classifies correctly, chosen before the attack. "
        "A perturbation is drawn on its whole range, from −ε to ε; where it is white nothing changed."
    )
    return [node("p", note), node("div", *shown, class_="galleries")] if shown else []


def configuration(runs: Sequence[RunSummary], versions: Mapping[str, str]) -> list[Element]:
    """Table every setting of every run, those in which the runs differ first, and the software."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    table_of = {key: [settings.get(key, "–") for settings in flat] for key in keys}
    differing = [key for key in keys if len(set(table_of[key])) > 1]
    common = [(key, table_of[key][0]) for key in keys if key not in differing]
    names = [run.name for run in runs]
    parts = []
    if differing:
        parts += [
            node("h3", "Where the runs differ"),
            table(["", *names], [[key, *table_of[key]] for key in differing]),
        ]
    if common:
        parts.append(_folded("Settings of every run" if len(runs) > 1 else "Settings", ["setting", "value"], common))
    if versions:
        parts.append(_folded("Software and machine", ["", ""], list(versions.items())))
    return parts


def next_steps(steps: Sequence[NextStep]) -> list[Element]:
    """List commands with their reasons."""
    return (
        [node("ol", *(node("li", step.why, node("pre", node("code", step.command))) for step in steps))]
        if steps
        else []
    )


def versions() -> dict[str, str]:
    """Give the versions of this process and the kind of machine it runs on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "machine": f"{platform.system()} {platform.machine()}"}


def _bar(text: str, fraction: float | None) -> Element:
    fill = node("span", class_="fill", style=f"width:{100 * (fraction or 0):.1f}%")
    return node("div", text, node("span", fill, class_="track", aria_hidden="true"), class_="bar")


def _pgd_name(runs: Sequence[RunSummary]) -> str:
    settings = [run.evaluation.get("attacks", {}).get("pgd") for run in runs]
    names = {f"PGD-{pgd['steps']}-{pgd['restarts']} (steps, restarts)" for pgd in settings if pgd}
    return names.pop() if len(names) == 1 else "PGD"


def _spread(runs: Sequence[RunSummary]) -> list[Element]:
    """Say how far the choice of test images alone moves an accuracy: sqrt(p (1 - p) / n), at its worst."""
    errors = [
        math.sqrt(fraction * (1 - fraction) / run.evaluation["n"])
        for run in runs
        for key in _ACCURACIES
        if (fraction := run.evaluation.get(key)) is not None
    ]
    if not errors:
        return []
    told = (
        f"One run, one seed a row. The choice of test images alone moves an accuracy by up to ±{100 * max(errors):.1f}"
    )
    return [node("p", f"{told} points (standard error).", class_="note")]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)))
    return pairs


def _folded(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Element:
    return node("details", node("summary", title), table(header, rows))
