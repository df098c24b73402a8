"""Adapters of other libraries, each written in the style of its library."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import cast

from benchmarks.peers._base import Adapter, Prepared, Unsupported
from benchmarks.record import version

__all__ = ["Adapter", "Peer", "Prepared", "Unsupported", "load"]

_MODULES = ("blo", "torchopt", "betty", "hypertorch", "boat", "higher", "jaxopt")


@dataclass(frozen=True)
class Peer:
    """A library, or the reason why it is absent.

    Attributes:
        name: its name in the tables.
        version: None if absent or unknown.
        adapter: None if absent.
        absent: the reason in a few words; None if present.
    """

    name: str
    version: str | None = None
    adapter: Adapter | None = None
    absent: str | None = None


def load() -> list[Peer]:
    """Import every adapter; blo comes first."""
    return [_load(name) for name in _MODULES]


def _load(name: str) -> Peer:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old releases warn about newer Pythons
            adapter = cast(Adapter, importlib.import_module(f"benchmarks.peers._{name}"))
    except Exception as error:
        reason = "not installed" if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: {error}"
        return Peer(name, absent=reason)
    found = None if adapter.DISTRIBUTION is None else version(adapter.DISTRIBUTION)
    return Peer(adapter.NAME, found, adapter)
