"""Type aliases that all of `blo` uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor

#: A tensor, or a tuple, list or dict of trees: for example a module's parameters by name.
Tree: TypeAlias = Any
#: `objective(theta, z)`: a scalar, or one value per lane when the problem is batched.
Objective: TypeAlias = Callable[[Tree, Tree], Tensor]
#: What to do when something did not converge, is degenerate or is not finite.
OnFailure: TypeAlias = Literal["raise", "warn", "ignore"]
