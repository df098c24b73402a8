"""The definition of a benchmark, and the registry of all benchmarks."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

Cell: TypeAlias = str | float | int | bool | None


@dataclass(frozen=True)
class Setting:
    """The settings of a run.

    Attributes:
        device: device of the tensors.
        dtype: dtype of the tensors; a benchmark that needs double precision uses it instead, and says so.
        rounds: minimum number of timings of each contestant in a race.
        quick: whether to use sizes that are small enough for a test; the figures are then meaningless.
        seed: seed of the data.
        log: function that is called with each line of progress.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float64
    rounds: int = 15
    quick: bool = False
    seed: int = 0
    log: Callable[[str], None] = lambda line: None

    def generator(self) -> torch.Generator:
        """Return a new generator on the CPU: data are drawn there, so that every device gets the same data."""
        return torch.Generator().manual_seed(self.seed)

    def randn(self, *shape: int, generator: torch.Generator) -> torch.Tensor:
        """Draw standard normal numbers in double precision and return them in the run's dtype, on its device."""
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)


@dataclass(frozen=True)
class Table:
    """One table of figures; a float is printed with four significant digits, None as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Goal:
    """A figure with a goal: to be at most `limit`, or at least `limit`.

    Attributes:
        off: uncertainty of the figure; 0 if it is exact.
    """

    what: str
    found: float
    limit: float
    at_least: bool = False
    off: float = 0.0

    @property
    def met(self) -> bool:
        """Whether the goal is met; NaN never meets it."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit


@dataclass(frozen=True)
class Outcome:
    """The result of a benchmark; `extra` is JSON that goes into the record and not into a table."""

    tables: Sequence[Table]
    goals: Sequence[Goal] = ()
    extra: dict[str, Any] = field(default_factory=dict)


Run: TypeAlias = Callable[[Setting], Outcome]


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark."""

    name: str
    title: str
    run: Run


_FOUND: dict[str, Benchmark] = {}


def benchmark(name: str, title: str) -> Callable[[Run], Run]:
    """Register a function `Setting -> Outcome` under a name for the command line.

    Raises:
        ValueError: if the name is taken.
    """

    def register(run: Run) -> Run:
        known = _FOUND.get(name)
        if known is not None and known.run.__module__ != run.__module__:
            raise ValueError(f"two benchmarks are called {name!r}: {known.run.__module__} and {run.__module__}.")
        _FOUND[name] = Benchmark(name, title, run)
        return run

    return register


def discover() -> dict[str, Benchmark]:
    """Import all modules of `benchmarks.answers` and `benchmarks.against`; return the registry."""
    for package in ("benchmarks.answers", "benchmarks.against"):
        try:
            folder = importlib.import_module(package)
        except ModuleNotFoundError as missing:
            if missing.name != package:
                raise
            continue
        for module in pkgutil.iter_modules(folder.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{package}.{module.name}")
    return dict(sorted(_FOUND.items()))


def stderr(line: str) -> None:
    """Write a line of progress."""
    print(line, file=sys.stderr, flush=True)
