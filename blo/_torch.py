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
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _functorch as functorch
from torch._C import _is_any_autocast_enabled as any_autocast
from torch._functorch.autograd_function import custom_function_call
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
    "custom_function_call",
    "embedding_operators",
    "forward_mode",
    "forward_pre_hooks",
    "functorch",
    "fused_weight_norm",
    "generators",
    "load_forward_mode",
    "storage_key",
    "temporarily_clear_interpreter_stack",
    "tensor_dicts",
    "transforms_active",
    "versions",
    "weight_norm_operator",
    "writes",
    "written_arguments",
]


fused_weight_norm = torch._weight_norm
#: The operator behind `fused_weight_norm`, and those behind embeddings, as a dispatch mode sees them.
weight_norm_operator = torch.ops.aten._weight_norm_interface.default
embedding_operators = (
    torch.ops.aten.embedding.default,
    torch.ops.aten._embedding_bag.default,
    torch.ops.aten._embedding_bag_forward_only.default,
)


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


def forward_pre_hooks(module: torch.nn.Module) -> Iterable[Any]:
    """Return the functions that a module calls before its forward pass."""
    return module._forward_pre_hooks.values()


def generators(devices: Iterable[torch.device]) -> Iterator[torch.Generator]:
    """Yield the default generators of the CPU and of these devices."""
    yield torch.default_generator
    for device in set(devices):
        if device.type in ("cuda", "xpu"):
            module = torch.get_device_module(device)
            yield module.default_generators[module.current_device() if device.index is None else device.index]
        elif device.type == "mps":
            yield torch.mps._get_default_mps_generator()


def storage_key(tensor: Tensor) -> int:
    """Return a key of the memory of a strided tensor: equal for two tensors if they share it."""
    key: int = tensor.untyped_storage()._cdata
    return key


def tensor_dicts(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the dicts in which a module itself keeps its parameters and its buffers, None where one is not set."""
    return module._parameters, module._buffers


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """Return the number of writes to each tensor that torch has recorded."""
    # Reading the version of an inference tensor raises an error.
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def writes(operator: Any) -> bool:
    """Return whether an operator, as a dispatch mode sees it, writes to an argument."""
    return bool(operator._schema.is_mutable)


def written_arguments(operator: Any) -> list[tuple[int, str]]:
    """Return the position and the name of each argument to which an operator writes."""
    arguments = enumerate(operator._schema.arguments)
    return [(index, one.name) for index, one in arguments if one.alias_info is not None and one.alias_info.is_write]


@functools.cache
def load_forward_mode() -> None:
    """Import the derivatives that torch scripts on the first use of forward mode, which warns of deprecation."""
    with warnings.catch_warnings(), contextlib.suppress(ImportError):  # a release without them has no such warning
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")
