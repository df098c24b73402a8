"""What one training run is: a frozen record, checked on construction, that lives in the run folder as YAML."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adv_train import values
from adv_train.errors import UserError, unknown
from adv_train.precision import PRECISIONS
from adv_train.values import Option, format_fraction, parse_fraction

__all__ = ["SCHEDULES", "SELECTIONS", "RunConfig", "check_values", "parse_fraction", "read_yaml", "to_yaml"]

SCHEDULES: Final = ("triangular", "cosine", "constant")
SELECTIONS: Final = ("robust", "clean", "last")

_READERS: Final[dict[str, values.Reader]] = {
    "data": values.text,
    "method": values.text,
    "model": values.text,
    "activation": values.text,
    "eps": parse_fraction,
    "epochs": values.whole(1),
    "batch_size": values.whole(1),
    "lr": values.number(0),
    "schedule": values.one_of(SCHEDULES),
    "momentum": values.number(0, 0.9999),
    "momentum_cycling": values.flag,
    "weight_decay": values.number(0),
    "select": values.one_of(SELECTIONS),
    "validation_steps": values.whole(1),
    "seed": values.whole(0),
    "device": values.text,
    "precision": values.one_of(PRECISIONS),
    "channels_last": values.flag,
    "data_root": values.text,
    "train_limit": values.optional(values.whole(1)),
    "size": values.optional(values.whole(1)),
    "augment": values.optional(values.text),
    "skip_unreadable": values.flag,
    "options": values.options,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the weights a run ends with.

    Attributes:
        data: Name of the data set, or ``imagefolder:PATH``.
        method: Name of the training method.
        model: Name of the model.
        eps: Radius of the attack in the maximum norm, for images in [0, 1].
        epochs: Passes over the training split.
        batch_size: Images a step.
        lr: Largest learning rate of the schedule.
        activation: Non-linearity of the model.
        schedule: Shape of the learning rate over the steps, one of `SCHEDULES`.
        momentum: Of SGD.
        momentum_cycling: Lower the momentum by 0.1 where the learning rate is highest, and raise it again.
        weight_decay: Of SGD, on every parameter.
        select: What chooses ``best.pt``: ``robust`` or ``clean`` accuracy on the validation split, or ``last``.
        validation_steps: Steps of the PGD attack on the validation split after each epoch.
        seed: Fixes weights, order, augmentation and attack noise.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: Arithmetic of training and validation, one of `PRECISIONS`.
        channels_last: Keep the weights in the memory layout that matrix units prefer.
        data_root: Folder that holds (or receives) the data sets; where data lie does not change a run.
        train_limit: Keep only so many training images; ``None`` keeps all.
        size: Side that the images of a folder are resized and cropped to; ``None`` takes them as they are.
        augment: One of `adv_train.data.AUGMENTATIONS`; ``None`` is the data set's own.
        skip_unreadable: Leave out the files of a folder that are no images, instead of refusing them.
        options: The method's own options.

    Raises:
        UserError: When a value breaks its rule.
    """

    data: str
    method: str
    model: str
    eps: float
    epochs: int
    batch_size: int
    lr: float
    activation: str = "relu"
    schedule: str = "triangular"
    momentum: float = 0.9
    momentum_cycling: bool = False
    weight_decay: float = 5e-4
    select: str = "robust"
    validation_steps: int = 10
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    channels_last: bool = False
    data_root: str = "data"
    train_limit: int | None = None
    size: int | None = None
    augment: str | None = None
    skip_unreadable: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in check_values({name: getattr(self, name) for name in _READERS}).items():
            object.__setattr__(self, name, value)
        if self.momentum_cycling and self.momentum < 0.1:
            raise values.refused("momentum", "at least 0.1 where `momentum_cycling` takes 0.1 off it", self.momentum)

    def to_mapping(self) -> dict[str, Any]:
        """Give plain values only, as a checkpoint or YAML can hold them."""
        return {name: getattr(self, name) for name in _READERS} | {"options": dict(self.options)}

    def with_values(self, found: Mapping[str, Any]) -> RunConfig:
        """Give the configuration with other values for some keys; options that are not named stay."""
        values_found = check_values(found)
        options = {**self.options, **values_found.get("options", {})}
        return RunConfig(**{**self.to_mapping(), **values_found, "options": options})

    def differences(self, other: RunConfig) -> tuple[str, ...]:
        """Name each key by which the two runs would end with different weights: ``epochs (30, not 20)``."""
        ours, theirs = _flat(self), _flat(other)
        return tuple(
            f"{key} ({ours.get(key, 'unset')}, not {theirs.get(key, 'unset')})"
            for key in ours | theirs
            if key != "data_root" and (key not in ours or key not in theirs or ours[key] != theirs[key])
        )


def _flat(config: RunConfig) -> dict[str, Any]:
    mapping = config.to_mapping()
    mapping["eps"] = format_fraction(config.eps)
    return mapping | {f"options.{key}": value for key, value in mapping.pop("options").items()}


def check_values(found: Mapping[Any, object]) -> dict[str, Any]:
    """Check some or all values of a configuration, each by its own rule.

    Raises:
        UserError: Names the first key that does not exist or whose value breaks its rule.
    """
    for key in found:
        if key not in _READERS:
            raise unknown("configuration key", reprlib.repr(key).strip("'"), _READERS)
    return {key: _READERS[key](value, key) for key, value in found.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read some or all values of a configuration from a YAML file.

    Raises:
        UserError: When the file is missing, is not YAML, is not a mapping, or a key or value is wrong.
    """
    import yaml  # Not at the top: `import adv_train` works without the packages that only the command line needs.

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no configuration file `{path}`.") from None
    except OSError as error:
        raise UserError(f"Cannot read the configuration `{path}`: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The configuration `{path}` is not valid YAML: {reason}") from None
    if not isinstance(found, Mapping):
        what = "is empty" if found is None else f"holds {reprlib.repr(found)}"
        raise UserError(f"The configuration `{path}` must hold lines such as `epochs: 20`, but it {what}.")
    try:
        return check_values(found)
    except UserError as error:
        raise UserError(f"In the configuration `{path}`: {error}") from None


def to_yaml(config: RunConfig) -> str:
    """Write a configuration as YAML that `read_yaml` reads back to the same values."""
    import yaml

    plain = config.to_mapping() | {"eps": format_fraction(config.eps)}
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
