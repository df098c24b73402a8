"""Makes mutated copies of the package and runs tests against them, each in a process of its own (POSIX: by fork)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.catalogue import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]

#: Runs pytest in a fork for each folder, so that torch is imported once. Each fork makes sure that it is the copy that
#: is tested. Hypothesis draws the same examples each time, and does not look for the smallest that fails.
_SERVER = """
import json, os, pathlib, sys, traceback
import numpy, pytest, scipy.optimize, torch
torch.set_num_threads(1)

class Fixed:
    def pytest_configure(self):
        from hypothesis import Phase, settings
        settings.register_profile("fixed", derandomize=True, database=None, phases=[Phase.generate])
        settings.load_profile("fixed")

def work(folder, arguments):
    os.chdir(folder)
    with open("output.txt", "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.path.insert(0, folder)
    import blo
    assert pathlib.Path(blo.__file__).is_relative_to(folder), blo.__file__
    return int(pytest.main(arguments, plugins=[Fixed()]))

def finish():
    pid, status = os.wait()
    codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)

jobs, workers = json.load(sys.stdin)
running, codes = {}, {}
for folder, arguments in jobs:
    if len(running) == workers:
        finish()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = work(folder, arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    running[pid] = folder
while running:
    finish()
json.dump([codes[folder] for folder, _ in jobs], sys.stdout)
"""


@dataclass(frozen=True)
class Outcome:
    """What the tests said of one copy.

    Attributes:
        code: pytest's exit status: 0 all passed, 1 some failed, else it did not get that far.
        failed: the tests that failed, with the first line of the reason.
        output: all that was printed.
    """

    code: int
    failed: tuple[str, ...]
    output: str

    @property
    def killed(self) -> bool:
        """Whether a test ran and failed; a copy that cannot be imported has not been noticed by a test."""
        return self.code == 1 and bool(self.failed)


def mutate(folder: Path, mutation: Mutation) -> None:
    """Apply the patches to a copy of the checkout.

    Raises:
        LookupError: if a text is not there exactly once: the code has moved, and the mutation must follow.
    """
    for patch in mutation.patches:
        file = folder / patch.path
        text = file.read_text(encoding="utf-8")
        if text.count(patch.old) != 1:
            raise LookupError(
                f"mutation {mutation.name!r}: {patch.path} holds the text below {text.count(patch.old)} times, not "
                f"once. Let tests/mutations/catalogue.py follow the code.\n{patch.old}"
            )
        file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")


def run(jobs: Sequence[tuple[Mutation | None, Sequence[str]]], workers: int = 2) -> list[Outcome]:
    """Run tests against copies of the checkout, each with its mutation if it has one.

    Args:
        jobs: a mutation or None, and the tests.
        workers: how many run at a time.

    Raises:
        LookupError: if a mutation does not fit the code.
    """
    with tempfile.TemporaryDirectory() as name:
        orders = []
        for index, (mutation, tests) in enumerate(jobs):
            folder = Path(name).resolve() / str(index)
            for part in ("blo", "tests"):
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", folder)
            if mutation is not None:
                mutate(folder, mutation)
            options = ["-q", "-rf", "--tb=no", "-p", "no:cacheprovider", *([] if mutation is None else ["-x"])]
            orders.append((str(folder), [*options, *tests]))
        server = subprocess.run(
            [sys.executable, "-c", _SERVER],
            input=json.dumps((orders, workers)),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        outputs = [Path(folder, "output.txt").read_text(encoding="utf-8") for folder, _ in orders]
    return [
        Outcome(code, tuple(re.findall(r"^FAILED (.+)$", output, re.MULTILINE)), output)
        for code, output in zip(json.loads(server.stdout), outputs, strict=True)
    ]


def run_all() -> tuple[Outcome, dict[str, Outcome]]:
    """Return the outcome of the selected tests without a mutation, and of each mutation.

    Without a mutation those run whose examples are drawn: here they are others than in the suite, which runs all tests
    without a mutation anyway.
    """
    every = sorted({test for mutation in MUTATIONS for test in mutation.tests})
    selected = [
        test for test in every if "import given" in (ROOT / test.partition("::")[0]).read_text(encoding="utf-8")
    ]
    control, *mutants = run([(None, selected), *((mutation, mutation.tests) for mutation in MUTATIONS)])
    return control, {mutation.name: outcome for mutation, outcome in zip(MUTATIONS, mutants, strict=True)}
