"""The command ``adv-train``: one file a command, and what every way to end looks like."""

from __future__ import annotations

from adv_train.cli.entry import main

__all__ = ["main"]
