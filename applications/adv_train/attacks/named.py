"""Attacks by their names. An evaluation holds at most one attack of each kind."""

from __future__ import annotations

from collections.abc import Sequence

from adv_train.attacks.base import ATTACKS, Attack
from adv_train.errors import UserError
from adv_train.written import items


def named(attacks: Sequence[Attack | str]) -> dict[str, Attack]:
    """Map names to attacks.

    Raises:
        UserError: If a name is unknown, an option is wrong, or two attacks are of the same kind.
    """
    if isinstance(attacks, str):
        attacks = [attacks]
    built = [ATTACKS.read(attack, "attacks") if isinstance(attack, str) else attack for attack in attacks]
    named: dict[str, Attack] = {}
    for attack in built:
        name = ATTACKS.name_of(attack)
        if name in named:
            raise UserError(
                f"An evaluation holds one attack of a kind, but `{name}` is given twice: make two evaluations."
            )
        named[name] = attack
    return named


def named_attacks(names: str, *, steps: int, restarts: int) -> list[Attack]:
    """Make attacks from a list of names with options.

    Args:
        names: The list, such as `pgd(steps=20),square`.
        steps: Default number of steps of PGD.
        restarts: Default number of restarts of PGD.

    Raises:
        UserError: If a name is unknown, an option is wrong, or two attacks are of the same kind.
    """
    made = []
    for item in items(names):
        name, options = ATTACKS.parsed(item, "attacks")
        defaults = {"steps": steps, "restarts": restarts} if name == "pgd" else {}
        made.append(ATTACKS.create(name, **{**defaults, **options}))
    named(made)
    return made
