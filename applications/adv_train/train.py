"""Training into a run folder; a run killed at any moment can be resumed and ends with the same weights."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adv_train import accelerate, averaging, checkpoint, models, ranks
from adv_train.attacks.judging import suitable_threads
from adv_train.checkpoint import Checkpoint
from adv_train.config import RunConfig
from adv_train.devices import own_device
from adv_train.digests import digest
from adv_train.errors import Diverged, UserError
from adv_train.evaluation import overfitted, sound, stayed
from adv_train.loading import load_data
from adv_train.observers import Observer, Progress
from adv_train.observers.alarm import Alarm
from adv_train.observers.steps import StepClock, Steps
from adv_train.records import RunFolder, best_record, measured_record, score
from adv_train.trainer import Trainer


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes:
        run: The run folder.
        resumed_after: Number of epochs that earlier processes had finished; all epochs if nothing was left to do.
        best: Record of the epoch in ``best.pt``. With ``select="last"`` the last epoch may have been rolled back; then
            its ``epoch`` and ``rolled_back_to`` come with the accuracies of the restored weights.
        classes: Number of classes of the model.
    """

    run: RunFolder
    resumed_after: int
    best: dict[str, Any]
    classes: int


def fit(
    config: RunConfig,
    out: Path | str,
    *,
    progress: bool | None = True,
    observers: Sequence[Observer] = (),
    log_every: int | None = None,
) -> FitResult:
    """Train a model into a run folder; if the folder holds a part of the same run, resume it exactly.

    All random numbers of an epoch depend on the seed and the epoch alone, and ``last.pt`` holds everything else. So on
    a CPU the weights and records of a run do not depend on where it was interrupted.

    A finished run continues if the configuration has more epochs; from there on, its learning rate is that of the
    longer run.

    If `torch.distributed` is initialised, all processes must call `fit` together. They train one model, and the first
    process writes.

    Args:
        config: Configuration of the run.
        out: The run folder; it is made if it does not exist.
        progress: Whether to show a bar on stderr; ``None`` shows it on a terminal and in a notebook, and prints
            a line per epoch elsewhere.
        observers: Further observers, besides the bar and the alarm.
        log_every: Number of steps between measurements within an epoch, for observers and for RUN/steps.jsonl; by
            default there are none.

    Raises:
        UserError: If a name, an option, the data or the folder is not usable. Nothing is overwritten.
        Diverged: If the loss or a weight is no longer finite. The last good checkpoint is kept.
    """
    models.trust(config.model.name)
    run = RunFolder(Path(out))
    together, device = ranks.current(), own_device(config.compute.device)
    config = run.extended(config)
    run.check(config)
    saved = _saved(run, config)
    if saved is None and (stages := config.training.extended_from) is not None:
        first = ", then ".join(f"--epochs {shorter}" for shorter in stages)
        raise UserError(
            f"This configuration belongs to a run of {stages[0]} epochs that was given more, but `{run.path}` holds no "
            f"such run: train it with {first} first, and then give the same command without --epochs."
        )
    together.agree((config.to_mapping(), saved.epoch if saved else 0), "The configuration and the epochs done")
    if saved and saved.epoch == config.training.epochs and run.holds_metrics(saved.history):
        return _result(run, saved, resumed_after=saved.epoch)
    accelerate.check(config.compute.accelerate, device)
    with together.in_turn():
        dataset = load_data(config, run.split(), device=device)
    if saved:
        run.check_split(dataset)
    config.threat.check_images(dataset.train.images.shape[1:])
    config.method.check_classes(dataset.classes)
    trainer = Trainer(config, dataset, device, together)
    fresh = Checkpoint(config, dataset.model_arguments(), epoch=0, model={})
    state = replace(saved, config=config) if saved else fresh
    if saved:
        _restore(trainer, saved, run)
    if together.size > 1:
        together.agree(_likeness(trainer), "Images, labels and weights")
    # The first write is here: a configuration that cannot be trained must not occupy the folder.
    with (
        run.claim(config) if together.first else nullcontext(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        suitable_threads(trainer.state.model, dataset.train.images),
        ExitStack() as ends,
    ):
        watching: list[Observer] = []
        clock = None
        if together.first:
            watching = [Progress(progress), *([Steps()] if log_every else []), *observers]
            watching.append(alarm := Alarm(state.history))
            alarm.listeners = watching
            clock = StepClock(log_every, first=state.epoch * trainer.steps) if log_every else None
        else:
            ends.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # the first rank warns
        for observer in watching:
            ends.callback(observer.close)
            observer.start(config, dataset, run.path, steps=trainer.steps, done=state.epoch)
        if together.first and dataset.record and not run.split_file.exists():
            run.write_split(dataset.record.to_mapping())
        if saved and together.first:
            _write_what_follows(run, saved)
        elif together.first:
            run.sound.unlink(missing_ok=True)  # Left by an earlier run; this one has no epoch yet.
        while state.epoch < config.training.epochs:
            state = _next_epoch(trainer, state, run, watching, clock)
        for observer in watching:
            observer.finish(trainer.state.judged.eval())
    together.wait()  # all ranks return only after the first has written its files
    return _result(run, state, resumed_after=saved.epoch if saved else 0)


def _next_epoch(
    trainer: Trainer, state: Checkpoint, run: RunFolder, watching: Sequence[Observer], clock: StepClock | None
) -> Checkpoint:
    epoch = state.epoch + 1
    start, prepared = time.perf_counter(), trainer.prepared()

    def count_step() -> None:
        for observer in watching:
            observer.step()

    # Counted from the history, which last.pt has, so that a resumed run counts alike.
    discarded = averaging.discarded(state.history, trainer.config.training.average_from or 0)
    measured = _measured(clock, epoch, trainer, watching)
    trained = trainer.train_epoch(state.epoch, count_step, **measured, discarded=discarded)
    if not (math.isfinite(trained["loss"]) and trainer.state.is_finite()):
        raise Diverged(_divergence(run, state, trained["loss"]))
    middle = time.perf_counter()
    # All ranks use the record of the first, so that they take the same decisions although their devices may round
    # differently.
    record = trainer.ranks.every({"epoch": epoch, **trained, **trainer.validate()})[0]
    seconds = {"epoch": epoch, "train_seconds": middle - start, "validation_seconds": time.perf_counter() - middle}
    if trainer.config.compute.accelerate != "off":
        seconds["prepare_seconds"] = trainer.prepared() - prepared  # included in train_seconds
    if trainer.ranks.size > 1:
        seconds["ranks"] = trainer.ranks.size
    if trainer.config.training.rollback and trainer.config.method.attacks:
        record |= _rolled_back(trainer, state, record, run)
    # Chosen after the rollback, so that best.pt never holds other weights than those its record describes.
    history, select = (*state.history, record), trainer.config.training.select
    best = best_record(select, history)
    state = replace(
        state,
        epoch=epoch,
        **trainer.state.state_dict(),
        history=history,
        best_epoch=best["epoch"],
        best_score=score(select, best),
    )
    if not trainer.ranks.first:
        return state
    # Written before the checkpoint: if the process is killed in between, the epoch is repeated and replaces its line.
    run.write_timing([*(line for line in run.timing() if line["epoch"] < epoch), seconds])
    checkpoint.save(run.last, state)
    _write_what_follows(run, state)
    for observer in watching:
        observer.epoch(record, middle - start)
    return state


def _rolled_back(trainer: Trainer, before: Checkpoint, record: Mapping[str, Any], run: RunFolder) -> dict[str, int]:
    """Save the state if the epoch is sound; if it has overfitted, restore the trainer to the last sound epoch."""
    best = max(stayed(before.history), key=lambda each: each["val_ra"], default=None)
    if overfitted(record, best) is not None and run.sound.exists():
        kept = checkpoint.load(run.sound)
        trainer.state.load_state_dict(vars(kept))
        return {"rolled_back_to": kept.epoch}
    if sound(record, before.history):
        # Written before last.pt: if the process is killed in between, the epoch is repeated.
        kept = replace(before, epoch=record["epoch"], **trainer.state.state_dict())
        if trainer.ranks.first:
            checkpoint.save(run.sound, kept)
        trainer.ranks.wait()  # so that in the next epoch all ranks find the same file, or none
    return {}


def _measured(
    clock: StepClock | None, epoch: int, trainer: Trainer, watching: Sequence[Observer]
) -> dict[str, Callable[[Tensor, int], None]]:
    """Return the argument of `train_epoch` that measures if parts of an epoch are logged."""
    if clock is None:
        return {}
    clock.start_epoch()

    def measure(losses: Tensor, images: int) -> None:
        if (part := clock.step(losses, images)) is not None:
            for observer in watching:
                observer.part({"epoch": epoch, **part, "lr": trainer.lr})

    return {"measure": measure}


def _write_what_follows(run: RunFolder, state: Checkpoint) -> None:
    # last.pt is the only source of truth and is written first. If the process is killed before these two files agree
    # with it, the next process calls this again. metrics.jsonl is written last, so it shows that both are complete.
    if state.best_epoch == state.epoch:
        checkpoint.save(run.best, state.for_evaluation())
    run.write_metrics(state.history)


def _saved(run: RunFolder, config: RunConfig) -> Checkpoint | None:
    if not run.last.exists():
        return None
    saved = checkpoint.load(run.last)
    differences = config.differences(saved.config, of_checkpoint=True)
    least = max(config.training.extended_from or (1,))
    if differences or not least <= saved.epoch <= config.training.epochs or not saved.history:
        raise UserError(
            f"`{run.last}` does not belong to the configuration beside it"
            f"{': it differs in ' + ', '.join(differences) if differences else ''}. Give --out another folder."
        )
    return saved


def _restore(trainer: Trainer, saved: Checkpoint, run: RunFolder) -> None:
    try:
        trainer.state.load_state_dict(vars(saved))
    except UserError as error:
        raise UserError(
            f"`{run.last}` does not fit the configuration beside it: {error}. Give --out another folder."
        ) from error


def _likeness(trainer: Trainer) -> str:
    """Return a digest of the data and the weights, to check that all ranks have the same."""
    splits = [[split.images, split.labels] for split in (trainer.dataset.train, trainer.dataset.validation)]
    return digest([splits, trainer.state.model.state_dict()])


def _divergence(run: RunFolder, state: Checkpoint, loss: float) -> str:
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a weight is not a finite number"
    kept = f"`{run.last}` keeps epoch {state.epoch}" if state.epoch else "no checkpoint was written yet"
    return f"Training diverged in epoch {state.epoch + 1}: {what}; {kept}. Try a smaller --lr."


def _result(run: RunFolder, state: Checkpoint, *, resumed_after: int) -> FitResult:
    record, classes = state.history[state.best_epoch - 1], state.model_arguments["classes"]
    accuracies = {key: value for key, value in measured_record(record, state.history).items() if key.startswith("val_")}
    best = {**record, **accuracies}
    return FitResult(run, resumed_after, best, classes)
