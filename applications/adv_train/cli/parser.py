"""The commands and their help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

from adv_train.errors import UserError, unknown

_ABOUT = """\
Adversarially robust image classifiers, trained fast: Fast-AT, PGD-AT and Fast-BAT, with exact resume and a real
evaluation (PGD with restarts, AutoAttack)."""

_EXAMPLES = """\
start here:
  adv-train demo --out runs/demo                  four methods on handwritten digits, minutes on two cores
  adv-train fit --data digits --method fast-bat --eps 0.2 --out runs/a
  adv-train eval runs/a                           clean accuracy, PGD-50-10, AutoAttack
  adv-train fit --preset cifar10-8-fast-bat       a cell of the published tables (wants a GPU)
  adv-train list                                  methods, presets, models, data sets

exit status: 0 done, 1 training diverged, 2 something to put right (told in one line), 130 interrupted"""

_SHAPE: Final[dict[str, Any]] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}

#: Each command: its module, and a line about it.
COMMANDS = {
    "demo": ("demo", "train and attack four methods on handwritten digits; one table and a report"),
    "fit": ("fit", "train one model into a run folder, or go on where it was interrupted"),
    "eval": ("evaluation", "judge a trained model: clean accuracy, PGD with restarts, AutoAttack"),
    "bench": ("benchmark", "what each method costs: forward passes, milliseconds, memory"),
    "list": ("listing", "methods, presets, models, data sets, attacks"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(f"{message} (`{self.prog} --help` shows what there is)")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Args:
        words: The words after ``adv-train``.

    Returns:
        The flags of one command, and its function as ``run``.

    Raises:
        UserError: When there is no such command or flag.
    """
    parser = Parser(prog="adv-train", description=_ABOUT, epilog=_EXAMPLES, **_SHAPE)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    subparsers = {name: commands.add_parser(name, help=about, **_SHAPE) for name, (_, about) in COMMANDS.items()}
    if not words or words[0] in ("-h", "--help"):
        return parser.parse_args(["--help"])
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    # Only the command that is wanted: the others would bring seconds of imports with them.
    command = import_module(f"adv_train.cli.{COMMANDS[words[0]][0]}")
    chosen = subparsers[words[0]]
    chosen.description, _, chosen.epilog = (command.__doc__ or "").partition("\n\n")
    command.add_arguments(chosen)
    chosen.set_defaults(run=command.run)
    found, left = parser.parse_known_args(words)
    if left:
        flags = re.findall(r"--[a-z-]+", chosen.format_usage())
        raise unknown(f"argument of `adv-train {words[0]}`", left[0].partition("=")[0], flags)
    return found
