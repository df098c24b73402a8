"""Finds the tensors that functions capture and on which `torch.func` transforms act."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from blo import tree
from blo._torch import custom_function_call, functorch
from blo._types import Tree
from blo.errors import StructureError


class Finder(TorchFunctionMode):
    """Records the tensors of a transform that enter torch functions but are not results of one: the captured ones.

    Attributes:
        found: these tensors, under their ids.
        wrapped: for those that belong to a level of transforms above the given one, what is inside their wrappers, and
            whether all of these belong to a `vmap`.
        custom: whether an `autograd.Function` was called, such as that of a nested `argmin`.
    """

    custom = False

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level
        # Tensors are kept alive here, since an id is unique among living objects only.
        self._known: dict[int, Tensor] = {}
        self.found: dict[int, Tensor] = {}
        self.wrapped: dict[int, list[tuple[Tensor, bool]]] = {}

    def know(self, arguments: Tree) -> None:
        """Take the leaves of a tree for arguments or results, which are not captured."""
        self._known.update({id(leaf): leaf for leaf in tree.tensors(arguments)})

    def note(self, used: Tree) -> None:
        """Record what is captured among the leaves of a tree."""
        for leaf in tree.tensors(used):
            if id(leaf) in self._known or id(leaf) in self.found or not transformed(leaf):
                continue
            self.found[id(leaf)] = leaf
            # A wrapper tells its level only until the transform ends.
            if inside := list(_inside(leaf, self._level)):
                self.wrapped[id(leaf)] = inside

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.custom = self.custom or function is custom_function_call
        self.note((args, kwargs))
        result = function(*args, **kwargs)
        self.know(result)
        return result


def captured(run: Callable[[Finder], None]) -> dict[int, Tensor]:
    """Return the tensors that functions capture, under their ids.

    Args:
        run: calls the functions with a finder entered, to which it has made their arguments known. The arguments are
            new objects in each run: a function may capture the very tensors that are also its arguments.

    Raises:
        StructureError: if a captured tensor is handed to a derivative of `torch.func` inside a function.
    """
    level = len(functorch.get_interpreter_stack() or ())
    first, second = Finder(level), Finder(level)
    run(first)
    if not first.wrapped:
        return first.found
    # The functions use transforms themselves, which wrap tensors, captured or not, out of sight of a mode. A second run
    # tells them apart: what exists before a run is the same object in both.
    run(second)
    same = {key: leaf for key, leaf in first.found.items() if key in second.found}
    before = {id(inside) for wrapped in first.wrapped.values() for inside, _ in wrapped}
    for key, wrapped in second.wrapped.items():
        for inside, mapped in () if key in same else wrapped:
            if id(inside) not in before or not transformed(inside):
                continue
            if not mapped:
                raise StructureError(
                    "the objective, or another function of the problem, captures a tensor on which a torch.func "
                    "transform acts, and hands it to torch.func.grad or another derivative inside, where it cannot be "
                    "followed. Hand over `tensor.clone()`, or pass the tensor in theta."
                )
            same[id(inside)] = inside
            break
    return same


def _inside(leaf: Tensor, level: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield what is inside the wrappers of transforms above a level, and whether all of these belong to a `vmap`."""
    mapped = True
    while transformed(leaf) and functorch.maybe_get_level(leaf) > level:
        mapped = mapped and bool(functorch.is_batchedtensor(leaf))
        leaf = functorch.get_unwrapped(leaf)
        yield leaf, mapped


def transformed(leaf: Any) -> bool:
    """Return whether a `torch.func` transform acts, or acted, on this tensor."""
    return isinstance(leaf, Tensor) and bool(functorch.is_functorch_wrapped_tensor(leaf))
