"""At which scale a table is made: as published, on two cores, or just to see that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from adv_train.comparison import Contender
from adv_train.config import flat, resolve
from adv_train.config.layers import Folder
from adv_train.errors import unknown

#: By name; the fields of `Scale`.
SCALES: Final = Folder("scales")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a scale changes in the cells of a table, and how they are judged.

    Attributes:
        about: A line on it.
        seeds: Such as `0-9`.
        only: Which cells, where nobody says otherwise: see `PublishedTable.only`.
        epochs: Of every cell; None for those of the preset. Schedules are stretched.
        config: Values of a configuration, by short name.
        models: By the name of a network: what its options, or the network in its place, are.
        attacks: Names with commas between.
        pgd_steps: Steps of PGD.
        pgd_restarts: Random starts of PGD.
        limit: Number of test images; None for all.
    """

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
    def find(cls, name: str) -> Scale:
        """Read one of `SCALES`.

        Raises:
            UserError: When there is no such scale.
        """
        if name not in SCALES:
            raise unknown("scale", name, SCALES)
        found: dict[str, Any] = SCALES[name]
        return cls(**{**found, "seeds": str(found["seeds"])})

    def contender(self, preset: str) -> Contender:
        """Return a cell at this scale, of which flags may change more.

        All that the preset is published with stays as it is on other data, whose own recipe says something else.
        """
        published = resolve({}, preset=preset)
        base = flat(published.to_mapping(), self.config)
        return Contender(preset, flat(base, self.models.get(published.model.name, {})), {})
