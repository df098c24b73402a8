"""Makes mutated copies of the package and runs tests against them, each in a process of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.catalogue import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]

#: Runs pytest, having made sure that it is the copy that is tested. Hypothesis draws the same examples each time, and
#: does not look for the smallest that fails.
_CHILD = """
import pathlib, sys
here = pathlib.Path.cwd()
sys.path.insert(0, str(here))
import blo, pytest, torch
assert pathlib.Path(blo.__file__).is_relative_to(here), blo.__file__
torch.set_num_threads(1)
class Fixed:
    def pytest_configure(self):
        from hypothesis import Phase, settings
        settings.register_profile("fixed", derandomize=True, database=None, phases=[Phase.generate])
        settings.load_profile("fixed")
sys.exit(pytest.main(sys.argv[1:], plugins=[Fixed()]))
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


def run(mutation: Mutation | None, tests: Sequence[str]) -> Outcome:
    """Run tests against a copy of the checkout, mutated if there is a mutation."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for part in ("blo", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if mutation is not None:
            mutate(folder, mutation)
        options = ["-q", "-rf", "--tb=no", "-p", "no:cacheprovider"]
        options += [] if mutation is None else ["-x"]
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, *options, *tests], cwd=folder, capture_output=True, text=True, check=False
        )
    failed = re.findall(r"^FAILED (.+)$", child.stdout, re.MULTILINE)
    return Outcome(child.returncode, tuple(failed), child.stdout + child.stderr)


def run_all(workers: int = 2) -> tuple[Outcome, dict[str, Outcome]]:
    """Return the outcome of all selected tests without a mutation, and of each mutation."""
    selected = sorted({test for mutation in MUTATIONS for test in mutation.tests})
    with ThreadPoolExecutor(workers) as pool:
        control = pool.submit(run, None, selected)
        mutants = {mutation.name: pool.submit(run, mutation, mutation.tests) for mutation in MUTATIONS}
        return control.result(), {name: future.result() for name, future in mutants.items()}
