"""The commands, and the help that stands above them all."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from adv_train.errors import UserError, unknown

#: Each command: its module, and a line about it.
COMMANDS = {
    "demo": ("demo", "train and attack four methods on handwritten digits; one table and a report"),
    "fit": ("fit", "train one model into a run folder, or go on where it was interrupted"),
    "eval": ("evaluation", "judge a trained model: clean accuracy, PGD with restarts, AutoAttack"),
    "doctor": ("doctor", "find the classic mistakes of evaluating robustness in a model and its records"),
    "compare": ("compare", "train several methods with paired seeds, at equal cost, and compare them"),
    "table": ("table", "make a published table again, measured beside published"),
    "export": ("export", "write a trained model as ONNX, torch.export, safetensors, state dict, for RobustBench"),
    "plot": ("plot", "figures of runs: loss landscape, strength of training, gradient alignment, curves"),
    "bench": ("benchmark", "what each method costs: forward passes, milliseconds, memory"),
    "list": ("listing", "methods, presets, models, data sets, attacks, forms"),
}
_LINES = "\n".join(f"  {name:<7} {about}" for name, (_, about) in COMMANDS.items())
HELP = f"""\
usage: adv-train COMMAND ...       (`adv-train COMMAND --help` tells more)

Adversarially robust image classifiers, trained fast: Fast-AT, PGD-AT and Fast-BAT, with exact resume and a real
evaluation (PGD with restarts, AutoAttack).

commands:
{_LINES}

start here:
  adv-train demo --out runs/demo                  four methods on handwritten digits, minutes on two cores
  adv-train fit --data digits --method fast-bat --eps 0.2 --out runs/a
  adv-train eval runs/a                           clean accuracy, PGD-50-10, AutoAttack
  adv-train fit --preset cifar10-8-fast-bat       a cell of the published tables (wants a GPU)
  adv-train list                                  methods, presets, models, data sets

with any command:
  --trust package.module:factory    run this code where a run folder or a checkpoint names it as its model

exit status: 0 done, 1 training diverged or the doctor found something, 2 something to put right (told in one line),
130 interrupted"""


def run(words: Sequence[str]) -> int:
    """Run the command that the words name.

    Args:
        words: The words after ``adv-train``.

    Returns:
        The exit status.

    Raises:
        UserError: When there is no such command.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] == "--version":
        print(_version())
        return 0
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    words = _trusting(words)
    # Only the command that is wanted: the others would bring seconds of imports with them.
    status: int = import_module(f"adv_train.cli.{COMMANDS[words[0]][0]}").run(words[1:])
    return status


def _trusting(words: Sequence[str]) -> list[str]:
    """Trust the factories that `--trust` names, and return the other words.

    Raises:
        UserError: For what is not the name of a factory.
    """
    rest, waiting = [], False
    for word in words:
        flag, equals, value = word.partition("=")
        if waiting or (flag == "--trust" and equals):
            _trust(word if waiting else value)
            waiting = False
        elif word == "--trust":
            waiting = True
        else:
            rest.append(word)
    if waiting:
        _trust("")
    return rest


def _trust(name: str) -> None:
    place, colon, factory = name.partition(":")
    if not (place and colon and factory):
        raise UserError(f"--trust takes a name such as package.module:factory, but was given `{name}`.")
    from adv_train.models import trust  # imports torch, which most errors need not wait for

    trust(name)


def _version() -> str:
    try:
        return version("torch-blo")
    except PackageNotFoundError:  # used from a source tree that is not installed
        return "not installed"
