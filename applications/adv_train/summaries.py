"""Collect the results of a run for tables and reports."""

from __future__ import annotations

from pathlib import Path

from adv_train import evaluation
from adv_train.bench import step_cost
from adv_train.evaluation import Evaluation
from adv_train.loading import load_checkpoint
from adv_train.records import RunFolder, best_record
from adv_train.report import RunSummary, command
from adv_train.report.drawn import drawn_landscape


def summarise(path: Path, name: str | None = None) -> RunSummary:
    """Collect the configuration, metrics, evaluations and cost of a run for tables and reports.

    `adv_train.evaluation.headline` chooses the evaluation that represents the run.

    Args:
        path: A run folder with at least one evaluation.
        name: Name of the run in tables; by default its method.

    Raises:
        UserError: If the folder holds no run or no evaluation.
    """
    run = RunFolder(path)
    config = run.config()
    records = evaluation.read_all(path)
    outcome = evaluation.headline(records, config.threat)
    metrics = run.metrics()
    saved = load_checkpoint(run)
    seconds = [line["train_seconds"] for line in run.timing()]
    shares = [line["implicit_share"] for line in metrics if line.get("implicit_share")]
    judged = outcome.summary()
    best = best_record(config.training.select, metrics)["epoch"] if metrics else None
    overfitted = evaluation.overfitting(metrics) if config.method.attacks else None
    return RunSummary(
        name=name or config.method_name,
        config=config.to_mapping(),
        evaluation=judged,
        records=[record.summary() for record in records],
        class_names=outcome.class_names,
        metrics=metrics,
        seconds_per_epoch=sum(seconds) / len(seconds) if seconds else None,
        forward_equivalents=step_cost(saved.config, saved.model_arguments),
        implicit_share=sum(shares) / len(shares) if shares else None,
        examples=outcome.examples,
        best_epoch=best,
        alarms=() if overfitted is None else (overfitted,),
        landscape=drawn_landscape(run, judged),
        landscape_command=_draws_landscape(path, config.threat.eps or outcome.eps, config.threat.eps),
    )


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
