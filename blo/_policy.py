"""How one call reports problems: by an error, a warning or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from blo._autodiff import plain, whole
from blo._remedies import LOOK
from blo._types import OnFailure
from blo._warned import warn
from blo.errors import BloError, BloWarning, ConvergenceWarning, NonFiniteError, StructureError


@dataclass(frozen=True)
class Policy:
    """The policy of one call.

    Args:
        on_failure: `"raise"`: every problem is an error. `"warn"`: every problem is a warning. None (the default of
            the library): values that are not finite are an error, other problems a warning. `"ignore"`: nothing is
            measured, so the host never waits for the device.
        measured: whether the lower solver reports its own residual; otherwise implicit strategies measure it.
        tol: the tolerance of that residual; None: `10 sqrt(eps)`.

    Raises:
        ValueError: for any other value.
    """

    on_failure: OnFailure | None = None
    measured: bool = False
    tol: Tensor | float | None = None

    def __post_init__(self) -> None:
        if self.on_failure not in (None, "raise", "warn", "ignore"):
            raise ValueError(f"`on_failure` must be 'raise', 'warn' or 'ignore', but is {self.on_failure!r}.")

    @property
    def off(self) -> bool:
        """Whether nothing is to be measured."""
        return self.on_failure == "ignore"

    def finite(self, tensor: Tensor, what: str, remedy: str = LOOK) -> None:
        """Report entries that are NaN or infinite."""
        if self.off:
            return
        infinite = plain(~torch.isfinite(tensor))
        bad = int(infinite.sum())
        if bad:
            message = f"{what} holds {bad} of {infinite.numel()} entries that are NaN or infinite. {remedy}"
            if self.on_failure == "warn":
                warn(message, ConvergenceWarning)
            else:
                raise NonFiniteError(message)

    def all_finite(self, parts: Iterable[tuple[Tensor | None, str]], remedy: Callable[[], str] = lambda: LOOK) -> None:
        """Report entries of several tensors that are NaN or infinite; one host synchronisation if there are none."""
        known = [(tensor, what) for tensor, what in parts if tensor is not None]
        if self.off or not known:
            return
        for tensor, what in known:
            if tensor.is_sparse:
                raise StructureError(
                    f"{what} must be a dense tensor, but is sparse, as embeddings with sparse=True make it. Use "
                    "sparse=False, or `functionalize`, which does so."
                )
        if not whole(tensor for tensor, _ in known):
            for tensor, what in known:
                self.finite(tensor, what, remedy())

    def found(self, message: str, error: type[BloError], warning: type[BloWarning]) -> None:
        if self.on_failure == "raise":
            raise error(message)
        warn(message, warning)
