"""Autocast acts on objectives, wherever they are evaluated, and on nothing else."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from blo._flag import Flag
from blo._torch import any_autocast
from blo.errors import BloError, StructureError

F = TypeVar("F", bound=Callable[..., Any])
#: On where objectives are evaluated without autocast, for finite differences: their small step would amplify its
#: rounding.
suspended = Flag("autocast is suspended")
_DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True)
class Autocast:
    """The state of autocast, with one setting for each device type.

    A user leaves `torch.autocast` before calling `.backward()`, but the products made there are derivatives of what was
    computed inside it. So the state is restored for objectives. It is not restored for projections and linear solves,
    which low precision would spoil.

    Attributes:
        settings: whether autocast is on, and its dtype.
    """

    settings: tuple[tuple[bool, torch.dtype], ...]

    @classmethod
    def current(cls) -> Autocast:
        """Return the state in force."""
        return cls(tuple((torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in _DEVICE_TYPES))

    def eps(self, kind: str) -> float | None:
        """Return the eps of the dtype of autocast on devices of this type; None where autocast is off."""
        of_type = dict(zip(_DEVICE_TYPES, self.settings, strict=True))
        enabled, dtype = of_type.get(kind, (False, torch.float32))
        return torch.finfo(dtype).eps if enabled else None

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the state inside the context."""
        present = Autocast.current().settings
        with contextlib.ExitStack() as stack:
            for kind, setting, now in zip(_DEVICE_TYPES, self.settings, present, strict=True):
                if setting != now:
                    enabled, dtype = setting
                    stack.enter_context(torch.autocast(kind, dtype, enabled))
            yield


@dataclass(frozen=True)
class Under:
    """A function that is always evaluated under this state of autocast."""

    function: Callable[..., Any]
    autocast: Autocast

    def __call__(self, *arguments: Any) -> Any:
        if suspended:
            with _named():
                return self.function(*arguments)
        with self.autocast.restored():
            return self.function(*arguments)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Explain the error of an objective that runs only under autocast.

    Raises:
        StructureError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, BloError):
            raise
        raise StructureError(
            "products='finite-difference' and `ValueFunction` evaluate the objective without autocast, because their "
            "small steps would amplify its rounding errors, but the objective fails without autocast: "
            f"{str(error).splitlines()[0]}. Let captured data and theta have the dtype of z, or use "
            "Implicit(products='reverse')."
        ) from error


def without(function: F) -> F:
    """Run a function without autocast."""

    @functools.wraps(function)
    def plain(*arguments: Any, **options: Any) -> Any:
        with bare():
            return function(*arguments, **options)

    return plain  # type: ignore[return-value]


def bare() -> contextlib.AbstractContextManager[None]:
    """Return a context without autocast."""
    if not any_autocast():
        return contextlib.nullcontext()
    # With the dtypes in force, only devices on which autocast is on differ from the present state and get a context.
    return Autocast(tuple((False, dtype) for _, dtype in Autocast.current().settings)).restored()
