"""What one training run is: a frozen record of checked parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adv_train import optimizers
from adv_train.config.optimizer import OptimizerConfig
from adv_train.config.sections import ComputeConfig, DataConfig, ModelConfig, TrainingConfig
from adv_train.config.tree import INIT, fields, flat, nested, plain
from adv_train.errors import UserError
from adv_train.methods import METHODS, Adversarial, Method
from adv_train.methods.weight_perturbation import WeightPerturbed
from adv_train.threat import Threat
from adv_train.values import format_fraction


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the weights a run ends with.

    Attributes:
        data: What to train on.
        model: What to train.
        threat: What the attack may do.
        method: How to train.
        training: How long, and what is kept.
        optimizer: Optimiser and its schedule.
        compute: Device and arithmetic.

    Raises:
        UserError: When parts do not go together.
    """

    data: DataConfig
    model: ModelConfig
    threat: Threat
    method: Method
    training: TrainingConfig
    optimizer: OptimizerConfig
    compute: ComputeConfig

    def __post_init__(self) -> None:
        self.method.check_norm(self.threat.norm)
        if self.threat.eps == 0 and isinstance(self.method, Adversarial):
            raise UserError(
                f"`eps` must be above 0 for {self.method_name}: an attack of radius 0 is --method standard."
            )
        if self.compute.accelerate == "compile":
            self.method.check_differentiates_once()
        if self.compute.accelerate == "graph":
            optimizers.check_captured(self.optimizer.name)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RunConfig:
        """Make a configuration from its values, nested or by their short names, as text or typed.

        Raises:
            UserError: For an unknown name, a value that breaks its rule, or one that is missing.
        """
        parts = nested(found)
        threat = {"norm": "linf", **parts["threat"]}
        if "eps" not in threat:
            raise UserError(f"Say how far the attack may go, by --eps NUMBER in {threat['norm']}.")
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
        """The method as it is called in lists and tables."""
        return METHODS.name_of(self.method)

    @property
    def full_method(self) -> Method:
        """The method as it trains, with what the other sections put around it."""
        return WeightPerturbed(base=self.method, gamma=self.training.weight_perturbation)

    def to_mapping(self) -> dict[str, dict[str, Any]]:
        """Give nested plain values, as a checkpoint or YAML can hold them; `of` makes the configuration again."""
        return plain(self)

    def changed(self, found: Mapping[str, Any]) -> RunConfig:
        """Give the configuration with other values for some keys; options that are not named stay, if the method does.

        Raises:
            UserError: As in `of`.
        """
        return RunConfig.of(flat(self.to_mapping(), found))

    def stretched(self, factor: float) -> RunConfig:
        """Give the run over `factor` times as many epochs, rounded; all that a schedule counts in epochs moves along.

        Raises:
            UserError: When no epoch is left.
        """
        training, epochs = self.training, round(factor * self.training.epochs)
        counted = {"eps_warmup": training.eps_warmup, "average_from": training.average_from}
        moved = {key: min(round(factor * count), epochs - 1) for key, count in counted.items() if count}
        milestones = tuple(max(1, round(factor * milestone)) for milestone in self.optimizer.milestones)
        return self.changed({"epochs": epochs, "milestones": milestones, **moved})

    def differences(self, other: RunConfig) -> tuple[str, ...]:
        """Name each key by which the two runs would end with different weights: ``epochs (30, not 20)``.

        A run that extends the other does not differ from it in its length.
        """
        free = {"data_root"}
        if self.training.extended_from == other.training.epochs:
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
