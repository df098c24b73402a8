"""The optional progress bar of `fit`."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

import torch

from blo import tree
from blo._hypergrad import Hypergradient
from blo._status import Status

_FINE = (Status.CONVERGED, Status.UNCHECKED, Status.UNUSED)


@contextlib.contextmanager
def bar(shown: bool, done: int, steps: int) -> Iterator[Callable[[Hypergradient], None]]:
    """Yield a function to be called with the hypergradient of each step.

    Args:
        shown: whether to show a tqdm bar on the standard error.
        done: number of steps of earlier calls.
        steps: number of steps of this call.

    Raises:
        ModuleNotFoundError: if the bar is to be shown and tqdm is not installed.
    """
    if not shown:
        yield lambda out: None
        return
    try:
        from tqdm import tqdm  # imported here because tqdm is optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`progress=True` needs the package tqdm: pip install tqdm, or pass a `callback` instead.", name="tqdm"
        ) from error
    latest: list[Hypergradient] = []
    with tqdm(total=done + steps, initial=done, desc="fit", unit="step", file=sys.stderr) as line:

        def show(out: Hypergradient) -> None:
            latest[:] = [out]
            if line.update():  # read values only when the bar redraws: reading waits for the device
                line.set_postfix_str(describe(out))

        yield show
        if latest:
            line.set_postfix_str(describe(latest[0]))


def describe(out: Hypergradient) -> str:
    """Return the value, the gradient norm and the status as one line."""
    lengths = [float(torch.linalg.vector_norm(leaf)) for leaf in tree.leaves(out.grad) if not _whole(leaf)]
    # `hypot` scales its arguments, so that the squares of large norms do not overflow.
    return f"value {float(out.value):.4g}, gradient norm {math.hypot(*lengths):.2e}, {status(out)}"


def status(out: Hypergradient) -> str:
    """Return the status of each of the two solves that has a problem, or that of the lower solve if neither has."""
    parts = {"lower solve": out.report.lower_status, "adjoint": out.report.linear_status}
    bad = [f"{name} {found.name.lower().replace('_', ' ')}" for name, found in parts.items() if found not in _FINE]
    return ", ".join(bad) or out.report.lower_status.name.lower()


def _whole(leaf: torch.Tensor) -> bool:
    return not (leaf.is_floating_point() or leaf.is_complex())
