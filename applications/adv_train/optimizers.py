"""The optimisers of torch, by their names in lower case."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from adv_train.errors import UserError, unknown
from adv_train.steady_sgd import SteadySGD
from adv_train.values import refused

#: Parameters that are no options: the weights, and those with configuration keys of their own.
_KEYS: Final = ("params", "lr", "weight_decay")
_KINDS: Final[dict[str, type[torch.optim.Optimizer]]] = {
    name.lower(): kind
    for name, kind in sorted(vars(torch.optim).items())
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}


def names() -> list[str]:
    """Return all names."""
    return list(_KINDS)


def options(name: str) -> list[str]:
    """Return the names of the options of an optimiser, beyond learning rate, weight decay and the momentum of sgd.

    Raises:
        UserError: For an unknown name, with the nearest one.
    """
    return [key for key in _parameters(name) if key not in _KEYS and (name, key) != ("sgd", "momentum")]


def check(name: str, weight_decay: float, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as torch expects them: texts such as `1e-6` become numbers, and lists become tuples.

    Raises:
        UserError: If the name is unknown, the optimiser has no such option or no weight decay, or a value is neither
            plain nor finite.
    """
    known = options(name)
    for key in chosen:
        if key not in known:
            own = f"`{key}` has a key of its own" if key in _parameters(name) else f"`{name}` has no option `{key}`"
            raise UserError(f"In `optimizer_options`: {own}; {name} has {', '.join(known)}.")
    if weight_decay != 0 and "weight_decay" not in _parameters(name):
        raise UserError(f"The optimizer `{name}` has no weight decay: set `weight_decay` to 0.")
    found = {key: _plain(value, key) for key, value in chosen.items()}
    for key, value in found.items():
        # torch takes any value for true that is not zero, such as the word `no`.
        default, hint = _parameters(name)[key].default, str(_parameters(name)[key].annotation)
        if (isinstance(default, bool) or "bool" in hint) and not (isinstance(value, bool) or value is default is None):
            raise refused(key, "true or false", value)
    return found


def check_captured(name: str) -> None:
    """Check that a CUDA graph can capture the step of an optimiser.

    Raises:
        UserError: If it cannot; the message names the optimisers whose step can be captured.
    """
    able = [kind for kind in _KINDS if kind == "sgd" or "capturable" in _parameters(kind)]
    if name not in able:
        raise UserError(f"`accelerate` graph cannot capture the optimizer `{name}`: use one of {', '.join(able)}.")


def create(
    name: str, parameters: Iterable[Tensor], *, lr: float, weight_decay: float, captured: bool = False, **chosen: Any
) -> torch.optim.Optimizer:
    """Return an optimiser of these parameters.

    Args:
        name: One of `names`.
        parameters: The parameters to update.
        lr: Learning rate.
        weight_decay: Weight decay of every parameter.
        captured: Whether a CUDA graph will capture the step; learning rate and momentum are then tensors.
        **chosen: Further options.

    Raises:
        UserError: If torch refuses a value, or the optimiser needs more than dense gradients for a step.
    """
    named = {"lr": lr, **chosen}
    parameters = list(parameters)
    if "weight_decay" in _parameters(name):
        named["weight_decay"] = weight_decay
    kind: Any = SteadySGD if captured and name == "sgd" else _KINDS[name]
    if captured and parameters[0].is_cuda and "capturable" in _parameters(name):
        named["capturable"] = True
    try:
        made: torch.optim.Optimizer = kind(parameters, **named)
        # Some optimisers fail only at their first step: one needs a closure, another needs sparse gradients.
        probe = torch.zeros_like(parameters[0], requires_grad=True)
        probe.grad = torch.zeros_like(probe)
        kind([probe], **named).step()
    except (TypeError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The optimizer `{name}` cannot train with these options: {reason}") from error
    return made


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    if name not in _KINDS:
        raise unknown("optimizer", name, _KINDS)
    return inspect.signature(_KINDS[name]).parameters


def _plain(value: object, name: str) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(part, name) for part in value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if not (value is None or (isinstance(value, (bool, int, float)) and math.isfinite(value))):
        raise refused(name, "a number, true, false, a text, or a list of these", value)
    return value
