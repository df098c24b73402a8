"""`accelerate: compile` without a compiler's minutes: the steps are those of the model as it is."""

from __future__ import annotations

import copy

import pytest
import torch

from adv_train import accelerate


def leave_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compiling give the function itself, in no time."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(accelerate, "compiled", copy.copy)
    monkeypatch.setattr(accelerate, "seconds_of_compiling", lambda: 0.0)
