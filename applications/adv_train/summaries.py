"""Collect the results of a run for tables and reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adv_train import evaluation
from adv_train.bench import step_cost
from adv_train.evaluation import Evaluation
from adv_train.judged_weights import of_weights
from adv_train.loading import load_checkpoint
from adv_train.records import RunFolder, best_record
from adv_train.report import RunSummary, command
from adv_train.report.drawn import drawn_landscape

_EARLIER: Final = "earlier "


def summarise(path: Path, name: str | None = None) -> RunSummary:
    """Collect the configuration, metrics, evaluations and cost of a run for tables and reports.

    `adv_train.evaluation.headline` chooses the evaluation that represents the run, of those of the present weights in
    ``best.pt`` if there are any. A record of weights that its checkpoint file no longer has says ``earlier best.pt``.

    Args:
        path: A run folder with at least one evaluation.
        name: Name of the run in tables; by default its method.

    Raises:
        UserError: If the folder holds no run or no evaluation.
    """
    run = RunFolder(path)
    config = run.config()
    records = evaluation.read_all(path)
    outcome = evaluation.headline(of_weights(records, run.best) or records, config.threat)
    metrics = run.metrics()
    saved = load_checkpoint(run)
    seconds = [line["train_seconds"] for line in run.timing()]
    shares = [line["implicit_share"] for line in metrics if line.get("implicit_share")]
    judged = _shown(outcome, path)
    best = best_record(config.training.select, metrics)["epoch"] if metrics else None
    overfitted = evaluation.overfitting(metrics) if config.method.attacks else None
    outdated = _outdated(path, judged)
    return RunSummary(
        name=name or config.method_name,
        config=config.to_mapping(),
        evaluation=judged,
        records=[_shown(record, path) for record in records],
        class_names=outcome.class_names,
        metrics=metrics,
        seconds_per_epoch=sum(seconds) / len(seconds) if seconds else None,
        forward_equivalents=step_cost(saved.config, saved.model_arguments),
        implicit_share=sum(shares) / len(shares) if shares else None,
        examples=outcome.examples,
        best_epoch=best,
        alarms=tuple(alarm for alarm in (overfitted, outdated) if alarm is not None),
        landscape=drawn_landscape(run, judged),
        landscape_command=_draws_landscape(path, config.threat.eps or outcome.eps, config.threat.eps),
    )


def _shown(record: Evaluation, run: Path) -> dict[str, Any]:
    """Return the figures of a record; its checkpoint is an ``earlier`` one if the file has other weights by now."""
    found = record.summary()
    name = str(found.get("checkpoint", ""))
    return found if of_weights([record], run / name) else {**found, "checkpoint": f"{_EARLIER}{name}"}


def _outdated(run: Path, judged: Mapping[str, Any]) -> str | None:
    """Return the alarm that the weights of an evaluation are no longer in the run; None if they are."""
    _, earlier, name = str(judged.get("checkpoint", "")).rpartition(_EARLIER)
    if not earlier:
        return None
    again = ("--checkpoint", "last") if name == "last.pt" else ()
    return f"{name} has other weights than those evaluated: evaluate it again by `{command('eval', run, *again)}`."


def _draws_landscape(path: Path, eps: float, trained: float) -> str | None:
    """Return the command that draws the loss landscape; None if there is no positive radius to draw it with."""
    if eps == 0:
        return None
    return command("plot", "landscape", path, *(() if trained else ("--eps", f"{eps:.6g}")))


def summarise_record(outcome: Evaluation, name: str) -> RunSummary:
    """Summarise a single evaluation, of a model that was not trained here.

    Args:
        outcome: The evaluation.
        name: Name of the model in tables.
    """
    summary = outcome.summary()
    config = dict(outcome.about)
    return RunSummary(
        name,
        config=config,
        evaluation=summary,
        records=[summary],
        class_names=outcome.class_names,
        metrics=(),
        examples=outcome.examples,
    )
