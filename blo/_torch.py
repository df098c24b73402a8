"""The private parts of torch that `blo` needs; no other module uses one, except `blo.tree` for the pytree library.

Where releases of torch differ, the difference is handled here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    "argument_of",
    "attention_choice",
    "attention_kernels",
    "backward_hooks",
    "compiler_loaded",
    "custom_function_call",
    "default_generator",
    "embedding_operators",
    "forward_mode",
    "forward_pre_hooks",
    "functorch",
    "fused_weight_norm",
    "generator_key",
    "generators",
    "in_backward",
    "load_forward_mode",
    "storage_key",
    "temporarily_clear_interpreter_stack",
    "tensor_dicts",
    "transforms_active",
    "versions",
    "weight_norm_operator",
    "with_generator",
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
#: The operator by which attention chooses a kernel. Torch tags it as random, but it draws nothing.
attention_choice = torch.ops.aten._fused_sdp_choice.default


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


def default_generator(device: torch.device) -> torch.Generator | None:
    """Return the default generator of a device, None if the device has none, as `meta`."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type in ("cuda", "xpu"):
        module = torch.get_device_module(device)
        found: torch.Generator = module.default_generators[
            module.current_device() if device.index is None else device.index
        ]
        return found
    return torch.mps._get_default_mps_generator() if device.type == "mps" else None


def generators(devices: Iterable[torch.device]) -> Iterator[torch.Generator]:
    """Yield the default generators of the CPU and of these devices."""
    yield torch.default_generator
    for device in set(devices) - {torch.device("cpu")}:
        found = default_generator(device)
        if found is not None:
            yield found


def generator_key(generator: torch.Generator) -> int:
    """Return a key of a generator: a dispatch mode gets another Python object for it than the caller has."""
    key: int = generator._cdata  # type: ignore[attr-defined]
    return key


@functools.cache
def with_generator(operator: Any) -> tuple[Any, int] | None:
    """Return an operator that does the same and takes a generator, and the generator's position; None without one."""
    packet = operator._overloadpacket
    arguments = [argument.name for argument in operator._schema.arguments if argument.name != "generator"]
    for candidate in (operator, *(getattr(packet, name) for name in packet.overloads())):
        names = [argument.name for argument in candidate._schema.arguments]
        if "generator" in names and [name for name in names if name != "generator"] == arguments:
            return candidate, names.index("generator")
    return None


def argument_of(operator: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return an argument of a call of an operator, as given or by default; None if it has none of this name."""
    place = _arguments(operator).get(name)
    if place is None:
        return None
    index, default = place
    return args[index] if index < len(args) else kwargs.get(name, default)


@functools.cache
def _arguments(operator: Any) -> dict[str, tuple[int, Any]]:
    """Return the position and the default value of each argument of an operator; the keys are the names."""
    return {a.name: (index, a.default_value) for index, a in enumerate(operator._schema.arguments)}


def in_backward() -> bool:
    """Return whether the caller runs inside a backward pass, for which torch may use threads of its own."""
    return torch._C._current_graph_task_id() != -1


class _AttentionKernels:
    """The kernels of attention that are enabled in the process, as the entry "enabled". `math` has all derivatives."""

    def __init__(self) -> None:
        names = ("cudnn", "flash", "mem_efficient", "math", "overrideable")  # older releases lack some
        self._get = {name: getattr(torch._C, f"_get_{name}_sdp_enabled", None) for name in names}
        self._set = {name: getattr(torch._C, f"_set_sdp_use_{name}", None) for name in names}

    def get(self, key: str, default: object = None) -> Any:
        return {name for name, enabled in self._get.items() if enabled is not None and enabled()}

    def __setitem__(self, key: str, enabled: Any) -> None:
        for name, switch in self._set.items():
            if switch is not None:
                switch(name in enabled)


attention_kernels = _AttentionKernels()


def backward_hooks(owner: Tensor | torch.nn.Module) -> int:
    """Return the number of functions that a backward pass calls with the gradient of a tensor or a module."""
    return len(owner._backward_hooks or ()) + len(getattr(owner, "_backward_pre_hooks", ()))


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
