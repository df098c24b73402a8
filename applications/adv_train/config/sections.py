"""The sections of a configuration: their fields are the flags of `adv-train fit` and the keys of its YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from adv_train import values
from adv_train.errors import UserError
from adv_train.values import Checked, Count, NotNegative, Range, Seed


@dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """The images to train on.

    Attributes:
        name: Data set, or `imagefolder:PATH` for your own images, with one folder for each class.
        root: Folder that holds the data sets and receives downloads; a run does not depend on its path.
        limit: Use only so many training images; each class keeps its proportion.
        size: For an image folder: resize the shorter side to so many pixels and crop the centre.
        augment: Augmentation of the training images; by default that of the data set.
        mixup: Blend each training image with another one of its batch (mixup): the share of the image and of its loss
            is drawn from Beta(mixup, mixup) for each batch. Papers use 0.2 to 1; 0 does not mix.
        skip_unreadable: For an image folder: leave out files that cannot be read, instead of stopping with an error.
    """

    name: str
    root: str = "data"
    limit: Annotated[int, Range(2)] | None = None
    size: Count | None = None
    augment: Literal["none", "flip", "crop", "flip-crop"] | None = None
    mixup: Annotated[float, Range(0, 100)] = 0.0
    skip_unreadable: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """The network to train.

    Attributes:
        name: Network (see `adv-train list models`).
        init: File of weights to start from, such as best.pt of another run.
        init_normalisation: For a file without mean and standard deviation: use those of the data, or none.
        options: Options of the network.
    """

    name: str
    init: str | None = None
    init_normalisation: Literal["data", "none"] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_normalisation is not None and self.init is None:
            raise values.refused("init_normalisation", "left out if `init` is not given", self.init_normalisation)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
    """Length of the training, its validation, and the averaging of its weights.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a training step.
        select: How best.pt is chosen: by robust or clean accuracy on the validation images, or always the last epoch.
        validation_steps: Steps of PGD on the validation images after each epoch.
        validation_images: Validate on at most so many images, the same ones after each epoch; each class keeps its
            proportion. None: all validation images.
        seed: Seed of the initial weights, the order of the images, their augmentation and the noise of attacks.
        ema: Decay of an exponential moving average of the weights, updated after each step, such as 0.9995; the decay
            is smaller in the first steps. Validation, best.pt and evaluation use the average.
        average_from: Average the weights after each step from the end of this epoch on, with equal weights; an
            alternative to ema.
        eps_warmup: Number of epochs over which eps rises linearly from 0. Each epoch uses one value, the mean of the
            line over that epoch, which also sets the defaults of the method that depend on eps. Validation uses the
            full eps.
        weight_perturbation: Perturb the weights in the direction that increases the loss before each step (AWP), each
            tensor by this fraction of its norm; papers use 0.005 to 0.01.
        rollback: After an epoch that overfits to the attack of training, resume from the last epoch that did not.
            Without this flag, `fit` warns only.
        extended_from: Set by `fit` if a finished run is given more epochs: the numbers of epochs that it had so far,
            such as 20,30. From each of them on, the schedule is that of a run of the next number, or in the end of
            `epochs`. Numbers that are not below `epochs` are dropped.
    """

    epochs: Count
    batch_size: Count
    select: Literal["robust", "clean", "last"] = "robust"
    validation_steps: Count = 5
    validation_images: Count | None = 500
    seed: Seed = 0
    ema: Annotated[float, Range(0, 1)] | None = None
    average_from: Annotated[int, Range(0)] | None = None
    eps_warmup: Annotated[int, Range(0)] = 0
    weight_perturbation: NotNegative = 0.0
    rollback: bool = False
    extended_from: tuple[Count, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema is not None and self.average_from is not None:
            raise UserError("`ema` and `average_from` cannot be combined: set one of them to none.")
        stages = self.extended_from or ()
        if list(stages) != sorted(set(stages)):
            raise values.refused("extended_from", "increasing", self.extended_from)
        object.__setattr__(self, "extended_from", tuple(n for n in stages if n < self.epochs) or None)
        for name in ("average_from", "eps_warmup"):
            if (getattr(self, name) or 0) >= self.epochs:
                raise values.refused(name, f"below `epochs`, which is {self.epochs}", getattr(self, name))

    def average_after(self, epoch: int) -> str | None:
        """Name the average that is evaluated after an epoch, such as `ema 0.9995`; None if weights are not averaged."""
        if self.average_from is None:
            return None if self.ema is None else f"ema {self.ema:g}"
        return f"mean from epoch {self.average_from + 1}" if epoch > self.average_from else None


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked):
    """The device and its arithmetic.

    Attributes:
        device: `auto` (the fastest available), `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Arithmetic of training and validation.
        channels_last: Use the channels-last memory layout, which is faster on GPU matrix units.
        accelerate: `graph` captures each training step as one CUDA graph; `compile` compiles the model's forward pass
            (torch.compile), for methods that differentiate it only once. Weights agree with `off` up to rounding.
        sync_batchnorm: On several processes: compute BatchNorm statistics over the whole batch in training, instead of
            over the part of each process.
    """

    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = False
    accelerate: Literal["off", "graph", "compile"] = "off"
    sync_batchnorm: bool = False
