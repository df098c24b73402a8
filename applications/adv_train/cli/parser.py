"""The commands and their help."""

from __future__ import annotations

import argparse
from typing import NoReturn

from adv_train.cli import benchmark, demo, evaluation, fit, listing
from adv_train.errors import UserError

_ABOUT = """\
Adversarially robust image classifiers, trained fast: Fast-AT, PGD-AT and Fast-BAT, with exact resume and a real
evaluation (PGD with restarts, AutoAttack)."""

_EXAMPLES = """\
start here:
  adv-train demo --out runs/demo                  four methods on handwritten digits, minutes on two cores
  adv-train fit --data digits --method fast-bat --eps 0.2 --out runs/a
  adv-train eval runs/a                           clean accuracy, PGD-50-10, AutoAttack
  adv-train fit --preset cifar10-8-fast-bat       a cell of the published tables (wants a GPU)
  adv-train list                                  methods, presets, models, data sets"""

_COMMANDS = {"demo": demo, "fit": fit, "eval": evaluation, "bench": benchmark, "list": listing}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UserError(f"{message} (`{self.prog} --help` shows what there is)")


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; the result of parsing has a function ``run`` that takes it."""
    parser = Parser(
        prog="adv-train",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        about, _, examples = (command.__doc__ or "").partition("\n\n")
        sub = commands.add_parser(
            name,
            help=about.rstrip("."),
            description=about,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser
