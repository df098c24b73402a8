"""`python -m tests.mutations`: a table of the defects and the tests that notice them."""

from __future__ import annotations

import sys

from tests.mutations.runner import run_all


def main() -> int:
    """Print the table; return 0 if the tests pass on the code as it is and notice every defect."""
    control, mutants = run_all()
    width = max(map(len, mutants))
    print(f"{'without a mutation':<{width}}  {'all tests pass' if control.code == 0 else 'TESTS FAIL'}")
    for name, outcome in mutants.items():
        by = outcome.failed[0].split(" - ")[0] if outcome.killed else "NOT NOTICED"
        print(f"{name:<{width}}  {by}")
    return 0 if control.code == 0 and all(outcome.killed for outcome in mutants.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
