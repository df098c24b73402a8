"""The commands that a remedy names, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adv_train.attacks import ATTACKS
from adv_train.doctor.patient import Patient
from adv_train.evaluation import Outcome
from adv_train.threat import Threat
from adv_train.values import format_fraction


def evaluating(words: list[str | Path], flags: Mapping[str, object]) -> str:
    """Return the command `adv-train eval` with these words, and with the flags that are not None."""
    given = [str(word) for flag, value in flags.items() if value is not None for word in (flag, value)]
    return shlex.join(["adv-train", "eval", *map(str, words), *given])


def evaluate_again(patient: Patient, threat: Threat, attacks: Mapping[str, Outcome] = MappingProxyType({})) -> str:
    """Return the command that evaluates a patient on all test images.

    Args:
        patient: The patient.
        threat: The threat of the attacks.
        attacks: The recorded attacks to run again with their options; by default those of `adv-train eval`.
    """
    told = f"{patient.judge or 'adv-train eval'} --norm {threat.norm} --eps {format_fraction(threat.eps)}"
    if not attacks:
        return told
    written = ",".join(_written(name, outcome.settings, threat) for name, outcome in attacks.items())
    return f"{told} --attacks {shlex.quote(written)}"


def _written(name: str, settings: Mapping[str, Any], threat: Threat) -> str:
    """Write a recorded attack with its options, without those that have their default."""
    if name not in ATTACKS.names():
        return name  # of a package that is not imported here
    chosen = {key: settings[key] for key in ATTACKS.options(name) if key in settings}
    # Records hold the length of a step and "all" targets where the option is None.
    if chosen.get("step") == threat.eps / 4:
        del chosen["step"]
    if chosen.get("targets") == "all":
        chosen["targets"] = None
    return ATTACKS.written(ATTACKS.create(name, **chosen))
