"""The gradient of a training step with a compiled forward pass, compared with the eager one on the same device."""

from __future__ import annotations

import torch
from torch import Tensor

from adv_train import accelerate
from benchmarks.gpu import steps
from benchmarks.gpu.stages import Row
from benchmarks.measure import relative_error

#: A first-order method whose attack follows the gradient itself: signs would turn rounding into whole steps.
TITLE = "fast-bat, shifted, 1 step"
#: The largest relative error by dtype.
GOALS = {"float64": (torch.float64, 1e-10), "float32": (torch.float32, 2e-3)}


def against_eager(model: str, dtype: str, device: torch.device) -> Row:
    """Compare the gradient on 16 images; `prepare_seconds` are those of compilation, which is a part of neither step.

    Args:
        model: a name from `adv-train list`.
        dtype: one of `GOALS`.
        device: device of both steps.

    Raises:
        UserError: if `torch.compile` does not work here.
    """
    accelerate.check("compile", device)
    torch.compiler.reset()  # dynamo stops compiling a function after several models
    kind, goal = GOALS[dtype]
    before = accelerate.seconds_of_compiling()
    eager, compiled = (
        _flat(steps.prepared(model, TITLE, device, batch=16, dtype=kind, compiled=compiled)())
        for compiled in (False, True)
    )
    error = relative_error(compiled, eager)
    return {
        "error": error,
        "goal": goal,
        "met": error <= goal,
        "prepare_seconds": accelerate.seconds_of_compiling() - before,
    }


def _flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grad.detach().cpu().double().flatten() for grad in grads.values()])
