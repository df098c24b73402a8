"""boat-torch: a `Problem` from dictionaries, with the operations NGD below and CG above."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import boat_torch
import torch
from torch import Tensor, nn

from benchmarks.peers._base import Prepared, Unsupported
from benchmarks.smooth import Smooth

NAME = "boat"
DISTRIBUTION = "boat-torch"
METHOD = 'Problem, na_op=["CG"]'
ITERATES = True


class _Variable(nn.Module):
    """A variable as a module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone())

    def forward(self, params: Any = None) -> Tensor:
        return self.value


def lower_loss(feed: Any, upper: Any, lower: Any, params: Any = None, problem: Any = None) -> Any:
    """Found by name, as the library wants it."""
    z = lower() if params is None else params[0]
    return problem.inner(upper(), z)


def upper_loss(feed: Any, upper: Any, lower: Any, params: Any = None, problem: Any = None) -> Any:
    """Found by name, as the library wants it."""
    z = lower() if params is None else params[0]
    return problem.outer(upper(), z)


def prepare(problem: Smooth, products: int, damping: float = 0.0) -> Prepared:
    """Return one iteration, with one lower step from the solution (the minimum), that returns the gradient."""
    if damping:
        raise Unsupported("no damping")
    upper, lower = _Variable(problem.theta), _Variable(problem.z)
    settings = {
        "fo_op": None,
        "gm_op": ["NGD"],
        "na_op": ["CG"],
        "lower_level_model": lower,
        "upper_level_model": upper,
        "lower_level_var": list(lower.parameters()),
        "upper_level_var": list(upper.parameters()),
        "lower_level_opt": torch.optim.SGD(lower.parameters(), lr=1 / problem.curvature),
        "upper_level_opt": torch.optim.SGD(upper.parameters(), lr=0.0),
        "lower_iters": 1,
        "device": problem.z.device.type,
        "loss_log_path": str(Path(tempfile.mkdtemp(prefix="boat-")) / "loss.json"),
        "accumulate_grad": False,
        "return_grad": True,
        "copy_last_param": False,
        "CG": {"tolerance": 0.0, "k": products},
        "GDA": {"alpha_init": 0.0, "alpha_decay": 0.0},
        "RGT": {"truncate_iter": 0},
    }
    losses = {
        "lower_level_loss": {"function": f"{__name__}.lower_loss", "params": {"problem": problem}},
        "upper_level_loss": {"function": f"{__name__}.upper_loss", "params": {"problem": problem}},
    }
    solver = boat_torch.Problem(settings, losses)
    solver.build_ll_solver()
    solver.build_ul_solver()

    def run() -> Tensor:
        upper.value.grad = None
        (found,), _ = solver.run_iter({}, {}, 0)
        return found  # type: ignore[no-any-return]

    return Prepared(run, lambda found: found)
