"""The parts of a configuration: their fields are the flags of `adv-train fit` and the keys of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from adv_train import values
from adv_train.errors import UserError
from adv_train.values import Checked, Count, NotNegative, Range


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """What to train on.

    Attributes:
        name: Data set, or `imagefolder:PATH` for your own images, one folder a class.
        root: Folder that holds the data sets, or receives them; where data lie does not change a run.
        limit: Use only so many training images, of all classes in proportion.
        size: For an image folder: resize the shorter side to so many pixels and crop the centre.
        augment: In place of the data set's own augmentation.
        skip_unreadable: For an image folder: leave out the files that cannot be read, instead of refusing them.
    """

    name: str
    root: str = "data"
    limit: Annotated[int, Range(2)] | None = None
    size: Count | None = None
    augment: Literal["none", "flip", "crop", "flip-crop"] | None = None
    skip_unreadable: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """What to train.

    Attributes:
        name: Network.
        init: File of weights to start from, such as best.pt of another run.
        init_normalisation: For a file without mean and standard deviation: those of the data, or none.
        options: Its options.
    """

    name: str
    init: str | None = None
    init_normalisation: Literal["data", "none"] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_normalisation is not None and self.init is None:
            raise values.refused("init_normalisation", "left out where no `init` is given", self.init_normalisation)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """How long, and what is kept of it.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        select: What chooses best.pt: robust or clean accuracy on the validation images, or the last epoch.
        validation_steps: Steps of PGD on the validation images after each epoch.
        validation_images: Validate on at most so many images, always the same, of all classes in proportion; none for
            all of them.
        seed: Fixes weights, order, augmentation and attack noise.
        ema: Decay of an exponential moving average of the weights after each step, such as 0.9995; it warms up. The
            average is what is validated, selected and judged.
        average_from: Instead: the mean of the weights after each step, from the end of so many epochs on.
        eps_warmup: Epochs over which eps rises linearly from 0, with one value for each epoch: the mean of its stretch
            of the line. Validation uses the whole eps.
        weight_perturbation: Train at weights moved against the loss, each tensor by so much of its norm (AWP); 0.005 to
            0.01 are published.
        rollback: After an epoch that has overfitted to the attack of training, go on from the last one before it that
            had not. Otherwise there is a warning.
        extended_from: Set by `fit` where a finished run of so many epochs was given more: the schedule is that of the
            longer run from there on.
    """

    epochs: Count
    batch_size: Count
    select: Literal["robust", "clean", "last"] = "robust"
    validation_steps: Count = 5
    validation_images: Count | None = 500
    seed: Annotated[int, Range(0)] = 0
    ema: Annotated[float, Range(0, 1)] | None = None
    average_from: Annotated[int, Range(0)] | None = None
    eps_warmup: Annotated[int, Range(0)] = 0
    weight_perturbation: NotNegative = 0.0
    rollback: bool = False
    extended_from: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema is not None and self.average_from is not None:
            raise UserError("`ema` and `average_from` are two averages of the weights: set one of them to none.")
        for name in ("average_from", "eps_warmup"):
            if (getattr(self, name) or 0) >= self.epochs:
                raise values.refused(name, f"below `epochs`, which is {self.epochs}", getattr(self, name))

    def average_after(self, epoch: int) -> str | None:
        """Name the average that is judged after so many epochs, as `ema 0.9995`; None for the weights themselves."""
        if self.average_from is None:
            return None if self.ema is None else f"ema {self.ema:g}"
        return f"mean from epoch {self.average_from + 1}" if epoch > self.average_from else None


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked):
    """What computes, and how exactly.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Arithmetic of training and validation.
        channels_last: Keep weights in the memory layout that a GPU's matrix units prefer.
        accelerate: `graph` captures each training step as one CUDA graph; `compile` compiles the model's forward pass
            (torch.compile), for methods that take one derivative of it. Weights agree with `off` within rounding.
        sync_batchnorm: On several processes: BatchNorm sees the whole batch in training, and not each its part.
    """

    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = False
    accelerate: Literal["off", "graph", "compile"] = "off"
    sync_batchnorm: bool = False
