"""The top of the page: alarms, facts about the evaluation, and the main figure with its legend."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adv_train.report import main_figure
from adv_train.report.drawing import Chart
from adv_train.report.main_figure import Point, Scatter
from adv_train.report.sections import NextStep, Section, effort
from adv_train.report.summary import RunSummary, accuracies, measured


@dataclass(frozen=True)
class Main:
    """A main figure.

    Attributes:
        chart: The drawing.
        key: Number, colour and method of each of its points.
        note: A sentence that explains its error bars.
    """

    chart: Chart
    key: Sequence[tuple[int, int, Point]]
    note: str


def alarms(runs: Sequence[RunSummary], first: Sequence[Section]) -> list[tuple[str, str]]:
    """List the warnings about the results, each once, with the name of the run."""
    listed = [alarm for section in first for alarm in section.alarms]
    known = [text for _, text in listed]
    for run in runs:
        texts = [*run.alarms, *run.evaluation.get("warnings", []), *_rolled_back(run)]
        listed += [(run.name, text) for text in texts if text not in known]
    return listed


def _rolled_back(run: RunSummary) -> Iterator[str]:
    back = [(row["epoch"], row["rolled_back_to"]) for row in run.metrics if "rolled_back_to" in row]
    if back:
        told = ", ".join(f"{epoch} to {before}" for epoch, before in back)
        yield f"Rolled back after overfitting to its attack: from epoch {told}."


def mains(runs: Sequence[RunSummary], figures: Sequence[Scatter]) -> list[Main]:
    """Draw the main figures: `figures`, or by default the accuracies of a single run or the comparison of several."""
    if len(runs) == 1 and not figures:
        chart = main_figure.of_run(runs[0])
        note = "Bars: 95 % Wilson intervals; they measure the choice of the test images only."
        return [] if chart is None else [Main(chart, (), note)]
    found = main_figure.of_runs(runs) if not figures and runs else None
    shown = figures or ([] if found is None else [found])
    drawn = [scatter for scatter in shown if scatter.points]
    return [Main(scatter.chart(place), scatter.key, scatter.caption) for place, scatter in enumerate(drawn, start=1)]


def tiles(runs: Sequence[RunSummary]) -> list[tuple[str, str, str]]:
    """Return title, value and interval of each accuracy of a single run; nothing for several runs."""
    if len(runs) != 1:
        return []
    cells = [(title, measured(value, ends).text) for title, value, ends in accuracies(runs[0])]
    return [(title, *_split(text)) for title, text in cells]


def _split(text: str) -> tuple[str, str]:
    value, _, interval = text.partition(" [")
    return value, f"[{interval}" if interval else ""


def facts(runs: Sequence[RunSummary]) -> dict[str, str]:
    """Return facts about the training and the evaluation of a single run; nothing for several runs."""
    if len(runs) != 1:
        return {}
    (run,) = runs
    found, config = run.evaluation, run.config
    told = {"judged": run.judged} if "checkpoint" in found else {}
    if "data" in found:
        told["data set"] = f"{found['data']}, {found.get('split', 'test')} split"
    if "attacks" in found:
        told["attacks"] = effort(found["attacks"]) + (f" (seed {found['seed']})" if "seed" in found else "")
    told |= {"trained": trained} if (trained := _trained(config)) else {}
    if run.best_epoch is not None:
        told["best epoch"] = f"{run.best_epoch} of {len(run.metrics)}, on the validation images"
    software = [f"{name} {found[name]}" for name in ("torch", "blo") if name in found]
    if software:
        told["evaluated with"] = ", ".join([*software, *([found["device"]] if "device" in found else [])])
    return told


def _trained(config: Any) -> str:
    """Summarise a configuration in one line; empty if it is not the configuration of a run."""
    try:
        method, model, training, threat = (config[part] for part in ("method", "model", "training", "threat"))
        budget = f"{threat['norm']}, ε = {threat['eps']:.4g}"
        return f"{method['name']}, {model['name']}, {training['epochs']} epochs, {budget}, seed {training['seed']}"
    except (KeyError, TypeError):
        return ""


def command(*words: str | Path) -> str:
    """Return the command line of a command, quoted for a shell."""
    return shlex.join(["adv-train", *map(str, words)])


def once_more(folder: Path, words: Sequence[str], extended_from: Sequence[int] = ()) -> list[NextStep]:
    """Return the commands that train a run again and write its report again.

    Args:
        folder: Folder of the run.
        words: The words after ``adv-train`` of the command that wrote the report.
        extended_from: Numbers of epochs of the run each time before it was given more.
    """
    again = folder.with_name(f"{folder.resolve().name}-again")
    train = ("fit", "--config", folder / "config.yaml", "--out", again)
    shorter = [command(*train, "--epochs", str(epochs)) for epochs in extended_from]
    first = [NextStep("Train it again up to the epoch from which it was given more.", each) for each in shorter]
    return [
        *first,
        NextStep("Train it again, into another folder." if not first else "Give it more epochs.", command(*train)),
        NextStep(
            "Evaluate it and write this page again; finished evaluations are read from their records.", command(*words)
        ),
    ]
