"""The record of a run: its figures, and the machine, versions and settings that produced them."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import blo
from benchmarks.registry import Goal, Outcome, Setting, Table

ROOT = Path(__file__).resolve().parent.parent
#: Distributions whose versions affect the figures; the version of a missing one is recorded as null.
DISTRIBUTIONS = ("torch", "numpy", "scipy", "scikit-learn", "torchopt", "higher", "betty-ml", "jaxopt", "jax",
                 "boat-torch")  # fmt: skip


def environment(setting: Setting) -> dict[str, Any]:
    """Return versions, machine and settings."""
    return {
        "format": 1,
        "settings": {
            "device": setting.device.type,
            "dtype": str(setting.dtype).removeprefix("torch."),
            "rounds": setting.rounds,
            "quick": setting.quick,
            "seed": setting.seed,
            "threads": torch.get_num_threads(),
        },
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": _gpu(setting.device), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            "blo": blo.__version__,
            "commit": _commit(),
            **{name: version(name) for name in DISTRIBUTIONS},
        },
        "benchmarks": {},
    }


def entry(outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Return a benchmark's part of the record."""
    goals = [asdict(goal) | {"met": goal.met} for goal in outcome.goals]
    return {
        "seconds": round(seconds, 1),
        "tables": [asdict(table) for table in outcome.tables],
        "goals": goals,
        "extra": outcome.extra,
    }


def outcome(entry: dict[str, Any]) -> Outcome:
    """Return the outcome from which `entry` was made."""
    goals = [Goal(**{name: value for name, value in goal.items() if name != "met"}) for goal in entry["goals"]]
    return Outcome([Table(**table) for table in entry["tables"]], goals, entry["extra"])


def continued(begun: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the successful benchmarks of a record, if machine, versions and settings are the same."""
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old.get(part) != begun[part] for part in ("format", "settings", "machine", "versions")):
        return {}
    return {name: found for name, found in old["benchmarks"].items() if "error" not in found}


def write(record: dict[str, Any], path: Path) -> None:
    """Write the record; NaN and infinity, which JSON lacks, are written as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def version(name: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout
    return found.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
