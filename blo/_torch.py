"""The private parts of torch that `blo` needs; no other module uses one, except `blo.tree` for the pytree library.

Where releases of torch differ, the difference is handled here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings

import torch
from torch._C import _are_functorch_transforms_active as are_functorch_transforms_active
from torch._C import _functorch as functorch
from torch._C import _is_any_autocast_enabled as any_autocast
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.utils.parametrizations import _SpectralNorm as SpectralNormRule
from torch.nn.utils.parametrizations import _WeightNorm as WeightNormRule
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "DispatchMode",
    "SpectralNormRule",
    "WeightNormRule",
    "any_autocast",
    "are_functorch_transforms_active",
    "compiler_loaded",
    "forward_level",
    "functorch",
    "fused_weight_norm",
    "load_forward_mode",
    "mps_generator",
    "temporarily_clear_interpreter_stack",
]


fused_weight_norm = torch._weight_norm


class DispatchMode(TorchDispatchMode):
    """A dispatch mode inside which torch does not guard each operation against its compiler."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports the compiler, which takes seconds


def compiler_loaded() -> bool:
    """Return whether this process has imported the compiler, which takes seconds."""
    return "torch._dynamo" in sys.modules


def forward_level() -> int:
    """Return the level of forward mode that the caller runs in; -1 outside it."""
    level: int = torch.autograd.forward_ad._current_level
    return level


def mps_generator() -> torch.Generator:
    """Return the default generator of Apple's accelerator."""
    return torch.mps._get_default_mps_generator()


@functools.cache
def load_forward_mode() -> None:
    """Import the derivatives that torch scripts on the first use of forward mode, which warns of deprecation."""
    with warnings.catch_warnings(), contextlib.suppress(ImportError):  # a release without them has no such warning
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")
