"""Makes mutated copies of the package and runs tests against them, each in a process of its own (POSIX: by fork)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.mutations.catalogue import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]

#: What is done to a copy of the checkout.
Edit: TypeAlias = Callable[[Path], None]

#: What a copy of the checkout holds, where there is such a thing.
_COPIED = (
    *("blo", "applications", "benchmarks", "docs", "results", "tests", ".ci", ".github", "Makefile", "pyproject.toml"),
    *("README.md", "CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md"),
    *(".gitignore", ".pre-commit-config.yaml"),
)

#: Pytest says that it cannot rewrite the asserts of what is imported already.
_AS_IMPORTED = "ignore::pytest.PytestAssertRewriteWarning"

#: Runs pytest in a fork for each folder, so that torch is imported once, and Hypothesis, whose asserts pytest would
#: otherwise rewrite in every fork. Each fork makes sure that it is the copy that is tested, and so do the processes
#: that a test starts. A fork leads a process group, which is ended with it. Hypothesis draws the same examples each
#: time, and does not look for the smallest that fails. A test beyond the limit ends its fork by SIGALRM, whatever code
#: it is in; imports have a minute more. Writes a line with index, exit status and seconds for each fork.
_SERVER = """
import json, os, pathlib, signal, sys, time, traceback
import hypothesis.strategies, numpy, pytest, scipy.optimize, torch
torch.set_num_threads(1)
jobs, workers, limit = json.load(sys.stdin)

class Fixed:
    def pytest_configure(self):
        from hypothesis import Phase, settings
        settings.register_profile("fixed", derandomize=True, database=None, phases=[Phase.generate])
        settings.load_profile("fixed")

    def pytest_runtest_logstart(self):
        signal.alarm(limit)

    def pytest_runtest_logfinish(self):
        signal.alarm(limit and limit + 60)

def work(folder, arguments):
    os.chdir(folder)
    with open("output.txt", "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    roots = [root for root in (folder, os.path.join(folder, "applications")) if os.path.isdir(root)]
    sys.path[:0] = roots
    os.environ["PYTHONPATH"] = os.pathsep.join(roots)
    signal.alarm(limit and limit + 60)
    for root, name in zip(roots, ("blo", "adv_train")):
        found = __import__(name).__file__
        assert pathlib.Path(found).is_relative_to(root), found
    return int(pytest.main(arguments, plugins=[Fixed()]))

def end(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass

def finish():
    pid, status = os.wait()
    end(pid)
    index, begin = running.pop(pid)
    print(json.dumps((index, os.waitstatus_to_exitcode(status), time.monotonic() - begin)), flush=True)

running = {}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
try:
    for index, (folder, arguments) in enumerate(jobs):
        if len(running) == workers:
            finish()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.setpgid(0, 0)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                code = work(folder, arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        running[pid] = index, time.monotonic()
    while running:
        finish()
finally:
    for pid in running:
        end(pid)
"""


@dataclass(frozen=True)
class Outcome:
    """What the tests said of one copy.

    Attributes:
        code: pytest's exit status: 0 all passed, 1 some failed, 2 a test file could not be imported; 70 the package
            could not; negative: ended by that signal.
        failed: the tests that failed and the files that could not be imported, with the first line of the reason.
        output: all that was printed.
        seconds: how long it took.
    """

    code: int
    failed: tuple[str, ...]
    output: str
    seconds: float

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

    def edited(mutation: Mutation | None) -> Edit | None:
        return None if mutation is None else lambda folder: mutate(folder, mutation)

    outcomes = dict(stream([(edited(mutation), tests) for mutation, tests in jobs], workers=workers))
    return [outcomes[index] for index in range(len(jobs))]


def stream(
    jobs: Sequence[tuple[Edit | None, Sequence[str]]], *, root: Path = ROOT, workers: int = 2, limit: int = 0
) -> Generator[tuple[int, Outcome], None, None]:
    """Run tests against copies of a checkout; gives the index of a job and its outcome whenever one has ended.

    Args:
        jobs: what to do to a copy, or None, and the tests; an edited copy stops at the first failure.
        root: the checkout.
        workers: how many run at a time.
        limit: seconds that a test may take before its copy is ended; 0 for as long as it likes.
    """
    with tempfile.TemporaryDirectory() as name:
        orders = []
        for index, (edit, tests) in enumerate(jobs):
            folder = Path(name).resolve() / str(index)
            _copy(root, folder)
            if edit is not None:
                edit(folder)
            options = ["-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-W", _AS_IMPORTED]
            options += [] if edit is None else ["-x"]
            orders.append((str(folder), [*options, *tests]))
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with server:
            assert server.stdin is not None and server.stdout is not None
            try:
                json.dump((orders, workers, limit), server.stdin)
                server.stdin.close()
                for line in server.stdout:
                    index, code, seconds = json.loads(line)
                    output = Path(orders[index][0], "output.txt").read_text(encoding="utf-8", errors="replace")
                    failed = tuple(re.findall(r"^(?:FAILED|ERROR) (.+)$", output, re.MULTILINE))
                    yield index, Outcome(code, failed, output, seconds)
            finally:
                server.terminate()
        if server.returncode != 0:
            raise RuntimeError(f"the process that runs the tests ended with status {server.returncode}")


def _copy(root: Path, folder: Path) -> None:
    folder.mkdir()
    for part in _COPIED:
        if (root / part).is_dir():
            shutil.copytree(root / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / part).is_file():
            shutil.copy(root / part, folder)


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
