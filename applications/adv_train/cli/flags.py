"""Flags that several commands share."""

from __future__ import annotations

import argparse


def add_progress_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say whether there are progress bars; without them a terminal gets bars."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--quiet", dest="progress", action="store_false", default=None, help="no progress on stderr")
    group.add_argument("--progress", dest="progress", action="store_true", help="bars even where stderr is no terminal")
