"""`python -m tests.mutations.sample 40 --seed 1`: which defects of a random sample no test notices."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutations.draw import PACKAGES, Mutant, draw
from tests.mutations.runner import ROOT, Outcome, stream

#: Where the tests of each package are.
_AREAS = {"blo": ("tests/unit", "tests/integration"), "adv_train": ("tests/applications",)}
#: These run all the others.
_LEFT_OUT = ("test_mutations.py", "test_mutants.py")
#: These take minutes, so they run last.
_SLOW = ("test_resume.py", "test_demo_command.py", "test_distributed.py")


def selected(path: str, root: Path = ROOT) -> list[str]:
    """Return the test files of a module's package, those first that are most likely to notice a defect of it.

    First comes the file named after the module; then, with the slow files last, those in the folder named after the
    subpackage, those that name the module, those that name the subpackage, and the rest.

    Args:
        path: The module's file below the checkout.
        root: The checkout.
    """
    part = "adv_train" if path.startswith(PACKAGES["adv_train"]) else "blo"
    *folders, stem = Path(path).relative_to(PACKAGES[part]).with_suffix("").parts
    module = ".".join([part, *folders, stem])
    own, package = f"test_{stem.strip('_')}.py", ".".join([part, *folders])

    def rank(file: Path) -> tuple[Any, ...]:
        text = file.read_text(encoding="utf-8")
        here = [folder.strip("_") for folder in folders] == list(file.relative_to(root).parts[2:-1])
        return (
            not (file.name == own and (here or part == "adv_train")),
            file.name in _SLOW,
            not (here and folders),
            module not in text,
            package not in text,
            file,
        )

    files = [file for area in _AREAS[part] for file in (root / area).rglob("test_*.py") if file.name not in _LEFT_OUT]
    return [file.relative_to(root).as_posix() for file in sorted(files, key=rank)]


def verdict(outcome: Outcome) -> str:
    """Say in a word or two what the tests said of a mutant; empty where none noticed it."""
    if outcome.code == 0:
        return ""
    if outcome.code < 0:
        return "hang or crash"
    return outcome.failed[0].split(" - ")[0] if outcome.failed else "cannot be imported"


def sample(
    mutants: Sequence[Mutant],
    *,
    root: Path = ROOT,
    workers: int = 2,
    limit: int = 300,
    tell: Callable[[str], None] = print,
) -> list[tuple[Mutant, Outcome]]:
    """Run the tests on each mutant, and first on the code as it is.

    Args:
        mutants: Drawn from this checkout.
        root: The checkout.
        workers: How many run at a time.
        limit: Seconds for a single test; a test beyond it has noticed the mutant.
        tell: Shows a line of progress.

    Returns:
        Each mutant with what the tests said of it, in the order given.

    Raises:
        RuntimeError: When a test fails on the code as it is: then a failure on a mutant says nothing.
    """
    if not mutants:
        return []  # else pytest, given no files, would run them all
    orders = {mutant: selected(mutant.path, root) for mutant in mutants}
    control = sorted({test for tests in orders.values() for test in tests})
    jobs = [(None, control), *((mutant.apply, orders[mutant]) for mutant in mutants)]
    outcomes: dict[int, Outcome] = {}
    with contextlib.closing(stream(jobs, root=root, workers=workers, limit=limit)) as running:
        for index, outcome in running:
            if index == 0:
                if outcome.code != 0:
                    raise RuntimeError(f"the tests fail without a mutant:\n{outcome.output}")
                tell(f"[     ] {outcome.seconds:5.0f} s  all tests pass without a mutant")
                continue
            outcomes[index] = outcome
            mutant = mutants[index - 1]
            said = verdict(outcome) or "NOT NOTICED"
            tell(f"[{len(outcomes):2}/{len(mutants)}] {outcome.seconds:5.0f} s  {mutant.path}:{mutant.line}  {said}")
    return [(mutant, outcomes[index]) for index, mutant in enumerate(mutants, 1)]


def summary(results: Sequence[tuple[Mutant, Outcome]]) -> str:
    """List what no test noticed, and count by package."""
    survivors = [mutant for mutant, outcome in results if not verdict(outcome)]
    lines = [f"{mutant.path}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}" for mutant in survivors]
    every = Counter(_package(mutant) for mutant, _ in results)
    missed = Counter(_package(mutant) for mutant in survivors)
    counts = ", ".join(f"{every[part] - missed[part]} of {every[part]} in {part}" for part in PACKAGES if every[part])
    return "\n".join([*lines, f"noticed: {counts or 'nothing was drawn'}"])


def record(results: Sequence[tuple[Mutant, Outcome]], **settings: Any) -> dict[str, Any]:
    """Return the sample with its verdicts, ready for JSON."""
    rows = [
        {**asdict(mutant), "noticed_by": verdict(outcome) or None, "seconds": round(outcome.seconds, 1)}
        for mutant, outcome in results
    ]
    return {"settings": settings, "mutants": rows}


def _package(mutant: Mutant) -> str:
    return next(part for part, folder in PACKAGES.items() if mutant.path.startswith(f"{folder}/"))


def main(words: Sequence[str] | None = None) -> int:
    """Draw, run, print; return 0 when every mutant was noticed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations.sample", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=40, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1, help="of the draw")
    parser.add_argument("--parts", nargs="+", choices=list(PACKAGES), default=list(PACKAGES), help="packages")
    parser.add_argument("--workers", type=int, default=2, help="how many run at a time")
    parser.add_argument("--limit", type=int, default=300, help="seconds for a single test; beyond it, it has failed")
    parser.add_argument("--out", type=Path, help="also write the sample and its verdicts as JSON")
    given = parser.parse_args(words)
    mutants = draw(ROOT, given.count, given.seed, given.parts)

    def tell(line: str) -> None:
        print(line, flush=True)

    results = sample(mutants, workers=given.workers, limit=given.limit, tell=tell)
    print(f"\n{summary(results)}")
    if given.out:
        settings = {"count": given.count, "seed": given.seed, "parts": sorted(given.parts)}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record(results, **settings), indent=2) + "\n", encoding="utf-8")
    return 0 if all(verdict(outcome) for _, outcome in results) else 1


if __name__ == "__main__":
    sys.exit(main())
