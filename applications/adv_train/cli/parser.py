"""The commands, and the help of `adv-train` itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from adv_train.errors import UserError, unknown
from adv_train.launched import launched

#: The module of each command, and a line that describes it.
COMMANDS = {
    "demo": ("demo", "train and attack four methods on handwritten digits; one table and a report"),
    "fit": ("fit", "train one model into a run folder, or resume an interrupted run"),
    "eval": ("evaluation", "evaluate a trained model: clean accuracy, PGD with restarts, AutoAttack"),
    "doctor": ("doctor", "check a model and its records for the classic mistakes of evaluating robustness"),
    "compare": ("compare", "train several methods with paired seeds, at equal cost, and compare them"),
    "table": ("table", "reproduce a published table, with measured beside published figures"),
    "export": ("export", "write a trained model as ONNX, torch.export, safetensors, state dict, for RobustBench"),
    "plot": ("plot", "draw figures of runs: loss landscape, accuracy over eps, gradient alignment, curves"),
    "bench": ("benchmark", "measure the cost of each method: forward passes, milliseconds, memory"),
    "list": ("listing", "list methods, presets, models, data sets, attacks, forms"),
}
#: The commands that several processes can run together.
SHARED = ("fit", "eval")
_LINES = "\n".join(f"  {name:<7} {about}" for name, (_, about) in COMMANDS.items())
HELP = f"""\
usage: adv-train COMMAND ...       (`adv-train COMMAND --help` explains a command)

Adversarially robust image classifiers, trained fast: Fast-AT, PGD-AT and Fast-BAT, with exact resume and a real
evaluation (PGD with restarts, AutoAttack).

commands:
{_LINES}

start here:
  adv-train demo --out runs/demo                  four methods on handwritten digits, minutes on two cores
  adv-train fit --data digits --method fast-bat --eps 0.2 --out runs/a
  adv-train eval runs/a                           clean accuracy, PGD-50-10, AutoAttack
  adv-train fit --preset cifar10-8-fast-bat       a cell of the published tables (needs a GPU)
  adv-train list                                  methods, presets, models, data sets

with any command:
  --trust package.module:factory    allow a run folder or a checkpoint to run this code as its model

exit status: 0 success, 1 training diverged or the doctor found a problem, 2 an error that you can fix (the last line
on stderr says how), 130 interrupted"""


def run(words: Sequence[str]) -> int:
    """Run the command that the words name.

    Args:
        words: The words after ``adv-train``.

    Returns:
        The exit status.

    Raises:
        UserError: If there is no such command.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] == "--version":
        print(_version())
        return 0
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    if words[0] not in SHARED and launched()[1] > 1:
        shared = " and ".join(SHARED)
        raise UserError(f"Only {shared} run on several processes: start `{words[0]}` without torchrun.")
    words = _trusting(words)
    # Import only the module of this command: the others would add seconds of imports.
    status: int = import_module(f"adv_train.cli.{COMMANDS[words[0]][0]}").run(words[1:])
    return status


def _trusting(words: Sequence[str]) -> list[str]:
    """Trust the factories that `--trust` names, and return the other words.

    Raises:
        UserError: If a value of `--trust` is not the name of a factory.
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
    from adv_train.models import trust  # Not at the top: it imports torch, which most errors do not need.

    trust(name)


def _version() -> str:
    try:
        return version("torch-blo")
    except PackageNotFoundError:  # the code runs from a source tree that is not installed
        return "not installed"
