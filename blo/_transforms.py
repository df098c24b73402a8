"""The active transforms (`torch.func.grad`, `vmap` and similar ones) as a stack of levels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from blo._torch import functorch, temporarily_clear_interpreter_stack


def outside_transforms() -> contextlib.AbstractContextManager[object]:
    """Suspend all transforms, for computations that are not part of the transformed function."""
    return temporarily_clear_interpreter_stack()


@contextlib.contextmanager
def random_in_vmap() -> Iterator[None]:
    """Let each active `vmap` that forbids random operations draw the same numbers for every lane.

    This is right if the random state is set before, since a loop over the lanes would then do the same. A transform
    fixes its choice when it starts (and `jacrev` has no such option), so each such level is replaced by an equal one.
    Tensors refer to their level by its number, which does not change.
    """
    levels = functorch.get_interpreter_stack() or []
    lanes = [functorch.CVmapInterpreterPtr(level) if _is_vmap(level) else None for level in levels]
    refusing = [lane is not None and lane.randomness() == functorch.RandomnessType.Error for lane in lanes]
    if not any(refusing):
        yield
        return
    layers = [functorch.pop_dynamic_layer_stack() for _ in levels][::-1]
    try:
        for layer, lane, refuses in zip(layers, lanes, refusing, strict=True):
            if refuses and lane is not None:
                functorch._vmap_increment_nesting(lane.batchSize(), "same")
            else:
                functorch.push_dynamic_layer_stack(layer)
        yield
    finally:
        for refuses in reversed(refusing):
            if refuses:
                functorch._vmap_decrement_nesting()
            else:
                functorch.pop_dynamic_layer_stack()
        for layer in layers:
            functorch.push_dynamic_layer_stack(layer)


def lanes_of(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Return level and size of each active `vmap` that maps over one of these tensors, outermost first."""
    levels = functorch.get_interpreter_stack() or []
    sizes = {level.level(): functorch.CVmapInterpreterPtr(level).batchSize() for level in levels if _is_vmap(level)}
    found: set[int] = set()
    for tensor in tensors if sizes else ():
        while functorch.is_functorch_wrapped_tensor(tensor):
            if functorch.is_batchedtensor(tensor):
                found.add(functorch.maybe_get_level(tensor))
            tensor = functorch.get_unwrapped(tensor)
    return [(level, sizes[level]) for level in sorted(found & sizes.keys())]


def spread(value: Tensor, lanes: list[tuple[int, int]]) -> Tensor:
    """Return a copy of a plain tensor for every lane, so that each may be written to."""
    if has_torch_function((value,)):  # modes, such as those that look for captured tensors, see one call
        result: Tensor = handle_torch_function(spread, (value,), value, lanes)
        return result
    with outside_transforms():
        wide = value.expand(*(size for _, size in lanes), *value.shape)
    # Outermost first, since each level takes the first of the axes that are left.
    for level, _ in lanes:
        wide = functorch._add_batch_dim(wide, 0, level)
    # Until it is copied, an expanded tensor has one memory for all lanes.
    return wide.clone()


def unwrapped(value: Tensor) -> Tensor | None:
    """Return the plain tensor inside the wrappers of `grad` and similar transforms; None inside a `vmap` over it."""
    while functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return None
        value = functorch.get_unwrapped(value)
    return value.detach()


def _is_vmap(level: functorch.CInterpreter) -> bool:
    return level.key() == functorch.TransformType.Vmap
