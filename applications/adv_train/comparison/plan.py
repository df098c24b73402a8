"""Plan a comparison: its runs, and the number of epochs of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adv_train.attacks import Attack
from adv_train.bench import step_cost
from adv_train.comparison.cell import Cell, Judgement
from adv_train.comparison.contenders import Contender
from adv_train.comparison.networks import check_passes
from adv_train.config import RunConfig
from adv_train.data import Facts
from adv_train.errors import UserError
from adv_train.evaluate_run import check_classes
from adv_train.loading import load_data
from adv_train.values import format_fraction

CHECKPOINTS = ("best", "last")


@dataclass(frozen=True)
class Planned:
    """A method of the comparison with its runs.

    Attributes:
        name: Its name in tables.
        forwards: Forward passes that its training spends on a batch.
        cells: Its runs, by seed.
    """

    name: str
    forwards: float
    cells: Mapping[int, Cell]

    @property
    def config(self) -> RunConfig:
        """The configuration of the run with the first seed; those of the other runs differ only in the seed."""
        return next(iter(self.cells.values())).config


@dataclass(frozen=True)
class Plan:
    """A comparison before its first run.

    Attributes:
        methods: The methods, in the order of the table.
        seeds: Seeds of the runs of every method.
        cost: The budget of each method, in forward passes a batch; epochs are scaled to it. None leaves epochs as they
            are.
        attacks: The attacks that evaluate every checkpoint.
        images: Number of test images.
        facts: Sizes of the data set and shape of its images.
    """

    methods: tuple[Planned, ...]
    seeds: tuple[int, ...]
    cost: float | None
    attacks: tuple[Attack, ...]
    images: int
    facts: Facts

    def cells(self) -> list[Cell]:
        """Return all runs, seed by seed; the runs of a seed are in order of their cost, the most expensive first."""
        longest = sorted(self.methods, key=lambda method: -method.forwards * method.config.training.epochs)
        return [method.cells[seed] for seed in self.seeds for method in longest]


def plan(
    chosen: Sequence[Contender],
    flags: Mapping[str, Any],
    *,
    out: Path,
    seeds: Sequence[int],
    attacks: Sequence[Attack],
    common: Mapping[str, Any] = MappingProxyType({}),
    epochs: int | None = None,
    cost: float | None = None,
    limit: int | None = None,
    facts: Facts | None = None,
) -> Plan:
    """Plan a comparison; nothing is written.

    Args:
        chosen: The methods.
        flags: Values for all methods; they override the base of a method, and its options override them.
        out: Folder of the run folders.
        seeds: Seeds of the runs of every method.
        attacks: The attacks that evaluate every checkpoint.
        common: Values for all methods, such as those of a file; the base of a method overrides them.
        epochs: Epochs of every method, before they are scaled to the cost; schedules are stretched to them.
        cost: Forward passes a batch: a method that spends F gets `round(epochs * cost / F)` epochs.
        limit: Evaluate on only so many test images; each class keeps its proportion.
        facts: Sizes of the data set and shape of its images; by default the data set is loaded, and if necessary
            downloaded, to find them.

    Raises:
        UserError: If a configuration or the cost is invalid, the methods differ in data set, image size or threat, or
            a folder holds another run; if there is a cost and a forward pass costs more on some networks.
    """
    configs = {contender.name: contender.config(common, flags, seeds[0]) for contender in chosen}
    _check_shared(configs)
    facts = facts or Facts.of(load_data(next(iter(configs.values())), None))
    arguments = facts.arguments
    check_classes(attacks, arguments["classes"])
    forwards = {name: config.full_method.replays() * step_cost(config, arguments) for name, config in configs.items()}
    if cost is not None:
        check_passes(configs, arguments)
        _check_cost(cost, forwards)
    images = facts.test if limit is None else min(limit, facts.test)
    judgements = tuple(Judgement(checkpoint, tuple(attacks), images) for checkpoint in CHECKPOINTS)

    def cell(contender: Contender, seed: int) -> Cell:
        config, name = contender.config(common, flags, seed), f"{contender.folder}-seed{seed}"
        if epochs is not None:
            config = config.stretched(epochs / config.training.epochs)
        if cost is not None:
            config = _stretched(config, contender.name, cost / forwards[contender.name])
        made = Cell(name, out / name, config, judgements)
        made.run.check(config)
        return made

    methods = [Planned(c.name, forwards[c.name], {seed: cell(c, seed) for seed in seeds}) for c in chosen]
    return Plan(tuple(methods), tuple(seeds), cost, tuple(attacks), images, facts)


def _check_shared(configs: Mapping[str, RunConfig]) -> None:
    """Check that all methods are evaluated on the same data under the same threat."""
    (first, ours), *others = configs.items()
    for name, theirs in others:
        for key, value in _judged_on(ours).items():
            if value != (found := _judged_on(theirs)[key]):
                raise UserError(
                    f"All methods of a comparison need the same data and threat, but they differ in {key}: "
                    f"{_shown(value)} for {first}, {_shown(found)} for {name}."
                )


def _judged_on(config: RunConfig) -> dict[str, Any]:
    return {"data": config.data.name, "size": config.data.size, **vars(config.threat)}


def _shown(value: Any) -> Any:
    return format_fraction(value) if isinstance(value, float) else value


def _stretched(config: RunConfig, name: str, factor: float) -> RunConfig:
    epochs = factor * config.training.epochs
    if round(epochs) == 0:
        raise UserError(f"At this `cost` {name} would get {epochs:.2f} epochs: raise `epochs`.")
    return config.stretched(factor)


def _check_cost(cost: float, forwards: Mapping[str, float]) -> None:
    cheapest = min(forwards, key=lambda name: forwards[name])
    if cost < forwards[cheapest]:
        raise UserError(
            f"`cost` must be at least the {forwards[cheapest]:.2f} F that {cheapest}, the cheapest method, spends on a "
            f"batch, but is {cost:g} F."
        )
