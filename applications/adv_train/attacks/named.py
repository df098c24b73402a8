"""Attacks by their names: at most one of a kind, as an evaluation holds them."""

from __future__ import annotations

from collections.abc import Sequence

from adv_train.attacks.base import ATTACKS, Attack
from adv_train.errors import UserError
from adv_train.written import items


def named(attacks: Sequence[Attack | str]) -> dict[str, Attack]:
    """Map names to attacks.

    Raises:
        UserError: When a name is unknown, an option is wrong, or two attacks are of a kind.
    """
    if isinstance(attacks, str):
        attacks = [attacks]
    built = [ATTACKS.read(attack, "attacks") if isinstance(attack, str) else attack for attack in attacks]
    named: dict[str, Attack] = {}
    for attack in built:
        name = ATTACKS.name_of(attack)
        if name in named:
            raise UserError(f"An evaluation holds one attack of a kind, but `{name}` is given twice: evaluate twice.")
        named[name] = attack
    return named


def named_attacks(names: str, *, steps: int, restarts: int) -> list[Attack]:
    """Make the attacks of a list of names with options, PGD by default with so many steps and restarts.

    Raises:
        UserError: When a name is unknown, or an option is wrong.
    """
    made = []
    for item in items(names):
        name, options = ATTACKS.parsed(item, "attacks")
        defaults = {"steps": steps, "restarts": restarts} if name == "pgd" else {}
        made.append(ATTACKS.create(name, **{**defaults, **options}))
    named(made)
    return made
