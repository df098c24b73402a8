"""The parts of a configuration: their fields are the flags of `adv-train fit` and the keys of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from adv_train import values
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
        seed: Fixes weights, order, augmentation and attack noise.
        extended_from: Set by `fit` where a finished run of so many epochs was given more: the schedule is that of the
            longer run from there on.
    """

    epochs: Count
    batch_size: Count
    select: Literal["robust", "clean", "last"] = "robust"
    validation_steps: Count = 10
    seed: Annotated[int, Range(0)] = 0
    extended_from: Count | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """SGD and its schedule.

    Attributes:
        lr: Largest learning rate of the schedule.
        schedule: Shape of the learning rate over the steps.
        momentum: Of SGD.
        momentum_cycling: Lower the momentum by 0.1 where the learning rate is highest, and raise it again.
        weight_decay: Of SGD, on every parameter.
    """

    lr: NotNegative
    schedule: Literal["triangular", "cosine", "constant"] = "triangular"
    momentum: Annotated[float, Range(0, 0.9999)] = 0.9
    momentum_cycling: bool = False
    weight_decay: NotNegative = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum_cycling and self.momentum < 0.1:
            raise values.refused("momentum", "at least 0.1 where `momentum_cycling` takes 0.1 off it", self.momentum)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked):
    """What computes, and how exactly.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Arithmetic of training and validation.
        channels_last: Keep weights in the memory layout that a GPU's matrix units prefer.
    """

    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = False
