"""The flags that name the model to evaluate: a run, or a model that was not trained here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adv_train.cli.command_line import Progress
from adv_train.errors import UserError
from adv_train.models import TORCHVISION
from adv_train.threat import Norm
from adv_train.values import Range, Seed


@dataclass(frozen=True, kw_only=True)
class JudgedModel(Progress):
    """The model, and the data to evaluate it on.

    Attributes:
        run: Run folder, as given to `adv-train fit --out`.
        checkpoint: Checkpoint of RUN: the best on validation (the default), or the last.
        norm: Norm of the attacks; by default the norm of training, and linf for a model not trained here.
        limit: Evaluate only so many test images; each class keeps its proportion.
        seed: Seed of the attacks.
        batch_size: Images in a forward pass; auto: as many as memory holds, found by trial (512 on the CPU).
        device: auto, cpu, cuda, cuda:1 or mps.
        data_root: Folder that holds the data sets; by default the folder that training used, or `data` for a model not
            trained here.
        checkpoint_file: Weights of a model that was not trained here, as torch.save writes them.
        model: Network of that model: a name of `adv-train list models`, with options as in
            "wrn-28-10(activation=silu)", or package.module:factory.
        normalisation: For weights without mean and standard deviation: use those of the data, or none.
        data: Data set to evaluate that model on; for RUN, the folder that its images moved to (imagefolder:PATH).
        out: Folder for the record of that model; by default runs/NAME-eval.
    """

    run: Path | None = None
    checkpoint: Literal["best", "last"] | None = None
    norm: Norm | None = None
    limit: Annotated[int, Range(1)] | None = None
    seed: Seed = 0
    batch_size: Annotated[int, Range(1)] | Literal["auto"] = "auto"
    device: str = "auto"
    data_root: str | None = None
    checkpoint_file: Path | None = None
    model: str | None = None
    normalisation: Literal["data", "none"] | None = None
    data: str | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Foreign:
    """A model that was not trained here.

    Attributes:
        model: Name of its network, or of its factory.
        data: Name of the data set that it is evaluated on.
        weights: File of its weights; None if the factory returns a trained model.
        name: Name of the model in its records.
        folder: Folder for its records.
    """

    model: str
    data: str
    weights: Path | None
    name: str
    folder: Path


def check_run_alone(command: JudgedModel) -> None:
    """Check that the command line does not combine RUN with flags of a model that was not trained here.

    Raises:
        UserError: If it does; the message names the flag.
    """
    for flag in ("checkpoint_file", "model", "normalisation", "out"):
        if getattr(command, flag) is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} is for a model that was not trained here: leave out RUN or this flag."
            )


def foreign(command: JudgedModel, name: str, eps: object) -> Foreign:
    """Return the model that the flags name.

    Args:
        command: The flags.
        name: Name of the command, for the error.
        eps: Value of ``--eps``; None if it was not given.

    Raises:
        UserError: If a flag that such a model needs is missing, or the flags contradict each other.
    """
    needed = {"--model": command.model, "--data": command.data, "--eps": eps}
    missing = [flag for flag, value in needed.items() if value is None]
    if command.model is None or command.data is None or eps is None:
        raise UserError(
            f"Give the RUN folder to evaluate, or for a model that was not trained here also {', '.join(missing)} "
            f"(`adv-train {name} --help` has examples)."
        )
    if command.checkpoint is not None:
        raise UserError("--checkpoint chooses a checkpoint of RUN; give a file of weights with --checkpoint-file.")
    weights = command.checkpoint_file
    if weights is None and (":" not in command.model or command.model.startswith(TORCHVISION)):
        raise UserError(f"`{command.model}` does not come with trained weights: give them with --checkpoint-file.")
    called = weights.stem if weights else command.model.replace(":", ".")
    return Foreign(command.model, command.data, weights, called, command.out or Path("runs") / f"{called}-eval")
