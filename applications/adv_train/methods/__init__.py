"""Training methods, each a few lines of composition over `blo`."""

from __future__ import annotations

import dataclasses
from typing import Any

from adv_train.errors import UserError, unknown
from adv_train.methods.base import Adversarial, Method, Step
from adv_train.methods.fast_at import FastAT
from adv_train.methods.fast_at_ga import FastATGA
from adv_train.methods.fast_bat import FastBAT
from adv_train.methods.pgd_at import PGDAT
from adv_train.methods.standard import Standard

_METHODS: dict[str, type[Method]] = {
    "standard": Standard,
    "fast-at": FastAT,
    "fast-at-ga": FastATGA,
    "pgd-at": PGDAT,
    "fast-bat": FastBAT,
}

__all__ = ["Adversarial", "Method", "Step", "create", "describe", "names", "options"]


def names() -> list[str]:
    """Return the names of all methods."""
    return list(_METHODS)


def describe(name: str) -> str:
    """Return one line on a method.

    Raises:
        UserError: for an unknown name.
    """
    return (_class(name).__doc__ or "").splitlines()[0]


def options(name: str) -> dict[str, Any]:
    """Return the options of a method with their defaults; None stands for a default that follows eps.

    Raises:
        UserError: for an unknown name.
    """
    return {f.name: f.default for f in dataclasses.fields(_class(name)) if f.name != "eps"}


def create(name: str, *, eps: float, **chosen: Any) -> Method:
    """Return a method at an attack budget.

    Raises:
        UserError: for an unknown name, an option that the method lacks, or a value it cannot take.
    """
    known = options(name)
    for option in chosen:
        if option not in known:
            raise UserError(
                f"method {name!r} has no option `{option}`; it has " + (", ".join(known) or "no options") + "."
            )
    return _class(name)(eps=eps, **chosen)


def _class(name: str) -> type[Method]:
    if name not in _METHODS:
        raise unknown("method", name, names())
    return _METHODS[name]
