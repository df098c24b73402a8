"""The scale of a reproduction: as published, for two cores, or a quick test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from adv_train.comparison import Contender
from adv_train.config import flat, resolve
from adv_train.config.layers import Folder
from adv_train.errors import unknown

#: The fields of each `Scale`, by name.
SCALES: Final = Folder("scales")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The changes that a scale makes to the cells of a table, and the settings of the evaluation.

    Attributes:
        name: Name of the scale, such as `cpu`.
        about: One line that describes the scale.
        seeds: Seeds of every cell, such as `0-9`.
        only: Cells to run by default: see `PublishedTable.only`.
        epochs: Epochs of every cell, to which schedules are stretched; None keeps those of the preset.
        config: Values of the configuration of every cell, by short name.
        models: By the name of a published network: the model, or options of the model, to use instead.
        attacks: Names of the attacks, separated by commas.
        pgd_steps: Steps of PGD.
        pgd_restarts: Random restarts of PGD.
        limit: Number of test images; None for all.
    """

    name: str
    about: str
    seeds: str
    only: str = ""
    epochs: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attacks: str = "pgd,autoattack"
    pgd_steps: int = 50
    pgd_restarts: int = 10
    limit: int | None = None

    @classmethod
    def find(cls, name: str, table: str = "") -> Scale:
        """Read one of `SCALES`.

        Args:
            name: Name of the scale.
            table: Name of the published table. A scale may have other values for single tables, under `tables`; those
                of `config` are added to its own, and all else is replaced.

        Raises:
            UserError: If there is no such scale.
        """
        if name not in SCALES:
            raise unknown("scale", name, SCALES)
        found: dict[str, Any] = SCALES[name]
        special = found.pop("tables", {}).get(table, {})
        config = {**found.pop("config", {}), **special.pop("config", {})}
        chosen = {**found, **special}
        return cls(**{**chosen, "name": name, "seeds": str(chosen["seeds"]), "config": config})

    def contender(self, preset: str) -> Contender:
        """Return a cell at this scale, as a method of a comparison.

        Settings of the preset that the scale does not change stay, even if the scale uses data with another recipe.
        """
        published = resolve({}, preset=preset)
        base = flat(published.to_mapping(), self.config)
        return Contender(preset, flat(base, self.models.get(published.model.name, {})), {})
