"""The command ``adv-train``: each subcommand has a module, and `entry` turns every outcome into an exit status."""

from __future__ import annotations

from adv_train.cli.entry import main

__all__ = ["main"]
