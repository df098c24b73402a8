"""The flags that name a model to judge: a run, or a model that was not trained here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adv_train.cli.command_line import Progress
from adv_train.errors import UserError
from adv_train.models import TORCHVISION
from adv_train.threat import Norm
from adv_train.values import Range


@dataclass(frozen=True, kw_only=True)
class JudgedModel(Progress):
    """Which model, on what.

    Attributes:
        run: Run folder, as given to `adv-train fit --out`.
        checkpoint: Of the run: best on validation (the default), or last.
        norm: Of the attacks: linf, l2 or l1; by default that of training, and linf for a model not trained here.
        limit: Judge only so many test images, of all classes in proportion.
        seed: Of the attacks.
        batch_size: Images in a forward pass; auto: as many as memory holds, found by trying (512 on the CPU).
        device: auto, cpu, cuda, cuda:1, mps.
        data_root: Where the data sets are, if no longer where they were.
        checkpoint_file: Weights of a model that was not trained here, as torch.save writes them.
        model: What that model is: a name of `adv-train list`, with options as in "wrn-28-10(activation=silu)", or
            package.module:factory.
        normalisation: For weights without mean and standard deviation: those of the data, or none.
        data: What that model is judged on; for RUN, where its images are now (imagefolder:PATH).
        out: Where the record of that model goes; by default runs/NAME-eval.
    """

    run: Path | None = None
    checkpoint: Literal["best", "last"] | None = None
    norm: Norm | None = None
    limit: Annotated[int, Range(1)] | None = None
    seed: Annotated[int, Range(0)] = 0
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
        model: Its name.
        data: What it is judged on.
        weights: File of its weights; None where the factory brings them.
        name: What it is called.
        folder: Where its records go.
    """

    model: str
    data: str
    weights: Path | None
    name: str
    folder: Path


def check_run_alone(command: JudgedModel) -> None:
    """Refuse flags of a model that was not trained here beside a run.

    Raises:
        UserError: Names the flag.
    """
    for flag in ("checkpoint_file", "model", "normalisation", "out"):
        if getattr(command, flag) is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} is for a model that was not trained here: leave out RUN, or it."
            )


def foreign(command: JudgedModel, name: str, eps: object) -> Foreign:
    """Return the model that the flags name.

    Args:
        command: The flags.
        name: Of the command, for the error.
        eps: As it was given; None where it was not.

    Raises:
        UserError: When something is missing that such a model needs, or the flags do not fit together.
    """
    needed = {"--model": command.model, "--data": command.data, "--eps": eps}
    missing = [flag for flag, value in needed.items() if value is None]
    if command.model is None or command.data is None or eps is None:
        raise UserError(
            f"Give the RUN folder to judge, or for a model that was not trained here also {', '.join(missing)} "
            f"(`adv-train {name} --help` has examples)."
        )
    if command.checkpoint is not None:
        raise UserError("--checkpoint chooses a checkpoint of RUN; a weights file is given by --checkpoint-file.")
    weights = command.checkpoint_file
    if weights is None and (":" not in command.model or command.model.startswith(TORCHVISION)):
        raise UserError(f"`{command.model}` has no trained weights of its own: give them by --checkpoint-file.")
    called = weights.stem if weights else command.model.replace(":", ".")
    return Foreign(command.model, command.data, weights, called, command.out or Path("runs") / f"{called}-eval")
