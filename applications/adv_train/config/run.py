"""The configuration of one training run: a frozen dataclass of validated sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adv_train import optimizers
from adv_train.config.optimizer import OptimizerConfig
from adv_train.config.sections import ComputeConfig, DataConfig, ModelConfig, TrainingConfig
from adv_train.config.tree import INIT, fields, flat, nested, plain
from adv_train.errors import UserError
from adv_train.methods import METHODS, Method
from adv_train.methods.weight_perturbation import WeightPerturbed
from adv_train.threat import Threat
from adv_train.values import format_fraction


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings that determine the trained weights.

    Attributes:
        data: The data set and its augmentation.
        model: The network and its initial weights.
        threat: Norm and radius of the attack, and the range of the images.
        method: The training method with its options.
        training: Length, validation, and averaging of the weights.
        optimizer: The optimiser and its schedule.
        compute: Device and arithmetic.

    Raises:
        UserError: If two sections contradict each other.
    """

    data: DataConfig
    model: ModelConfig
    threat: Threat
    method: Method
    training: TrainingConfig
    optimizer: OptimizerConfig
    compute: ComputeConfig

    def __post_init__(self) -> None:
        self.method.check_threat(self.threat)
        if self.data.mixup > 0:
            self.method.check_mixes()
        if self.compute.accelerate == "compile":
            self.method.check_differentiates_once()
        if self.compute.accelerate == "graph":
            optimizers.check_captured(self.optimizer.name)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RunConfig:
        """Make a configuration from its values, by section or by short name, as text or typed.

        Raises:
            UserError: If a name is unknown, or a value is invalid or missing.
        """
        parts = nested(found)
        threat = {"norm": "linf", **parts["threat"]}
        if "eps" not in threat:
            raise UserError(f"Give the radius of the attack: --eps NUMBER in {threat['norm']}.")
        method, model = parts["method"], parts["model"]
        own = [leaf for leaf in fields("model", model["name"]) if leaf.field not in ("name", *INIT)]
        options = {leaf.field: model.get(leaf.field, leaf.default) for leaf in own}
        try:
            return cls(
                data=DataConfig(**parts["data"]),
                model=ModelConfig(name=model["name"], options=options, **{key: model.get(key) for key in INIT}),
                threat=Threat(**threat),
                method=METHODS.create(**method),
                training=TrainingConfig(**parts["training"]),
                optimizer=OptimizerConfig(**parts["optimizer"]),
                compute=ComputeConfig(**parts["compute"]),
            )
        except TypeError as error:
            raise UserError(f"The configuration is incomplete: {error}.") from error

    @property
    def method_name(self) -> str:
        """Name of the method, as in `adv-train list methods`."""
        return METHODS.name_of(self.method)

    @property
    def full_method(self) -> Method:
        """The method wrapped in the weight perturbation that `training` asks for."""
        return WeightPerturbed(base=self.method, gamma=self.training.weight_perturbation)

    def to_mapping(self) -> dict[str, dict[str, Any]]:
        """Return plain values by section, for a checkpoint or YAML; `of` makes the same configuration from them."""
        return plain(self)

    def changed(self, found: Mapping[str, Any]) -> RunConfig:
        """Return the configuration with other values for some keys.

        All other values stay, except that a new method, model, optimizer, schedule or norm drops the options of the
        old one.

        Raises:
            UserError: As in `of`.
        """
        return RunConfig.of(flat(self.to_mapping(), found))

    def stretched(self, factor: float) -> RunConfig:
        """Return the configuration with `factor` times as many epochs, rounded.

        Milestones, the warm-up of eps and the start of averaging are scaled by the same factor.

        Raises:
            UserError: If the number of epochs is rounded to zero.
        """
        training, epochs = self.training, round(factor * self.training.epochs)
        counted = {"eps_warmup": training.eps_warmup, "average_from": training.average_from}
        moved = {key: min(round(factor * count), epochs - 1) for key, count in counted.items() if count}
        milestones = tuple(max(1, round(factor * milestone)) for milestone in self.optimizer.milestones)
        return self.changed({"epochs": epochs, "milestones": milestones, **moved})

    def differences(self, other: RunConfig, *, of_checkpoint: bool = False) -> tuple[str, ...]:
        """Name each key whose value differs and can change the weights, as in ``epochs (30, not 20)``.

        The number of epochs does not count as a difference if this run extends the other, which had the same stages.

        Args:
            other: The other configuration.
            of_checkpoint: It is that of a checkpoint of this run, which may be older than the last extension.
        """
        free, stages = {"data_root"}, self.training.extended_from or ()
        extends = (other.training.extended_from or ()) + (other.training.epochs,) == stages
        if extends or (of_checkpoint and other.training.epochs <= max(stages, default=0)):
            free |= {"epochs", "extended_from"}
        ours, theirs = flat(self.to_mapping()), flat(other.to_mapping())
        return tuple(
            f"{key} ({_shown(ours, key)}, not {_shown(theirs, key)})"
            for key in ours | theirs
            if key not in free and (key not in ours or key not in theirs or ours[key] != theirs[key])
        )


def _shown(found: Mapping[str, Any], key: str) -> Any:
    value = found.get(key, "unset")
    return format_fraction(value) if isinstance(value, float) else value
