"""The private parts of torch that `blo` needs; no other module uses one, except `blo.tree` for the pytree library.

Where releases of torch differ, the difference is handled here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as transforms_active
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
    "compiler_loaded",
    "forward_mode",
    "functorch",
    "fused_weight_norm",
    "generators",
    "load_forward_mode",
    "temporarily_clear_interpreter_stack",
    "transforms_active",
    "versions",
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


def forward_mode() -> bool:
    """Return whether the caller is differentiated in forward mode, by `torch.func.jvp` or by dual numbers."""
    return torch.autograd.forward_ad._current_level >= 0


def generators(devices: Iterable[torch.device]) -> Iterator[torch.Generator]:
    """Yield the default generators of the CPU and of these devices."""
    yield torch.default_generator
    for device in set(devices):
        if device.type in ("cuda", "xpu"):
            module = torch.get_device_module(device)
            yield module.default_generators[module.current_device() if device.index is None else device.index]
        elif device.type == "mps":
            yield torch.mps._get_default_mps_generator()


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """Return the number of writes to each tensor that torch has recorded."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


@functools.cache
def load_forward_mode() -> None:
    """Import the derivatives that torch scripts on the first use of forward mode, which warns of deprecation."""
    with warnings.catch_warnings(), contextlib.suppress(ImportError):  # a release without them has no such warning
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")
