"""The buffers of a module, such as running statistics: copies for an evaluation, and writing its changes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blo._torch import tensor_dicts
from blo._transforms import outside_transforms, spread, unwrapped
from blo.errors import StructureError


@dataclass(frozen=True)
class _Place:
    """The place of a buffer in the module. Tied buffers have one place and several names."""

    owner: nn.Module
    attribute: str
    names: list[str]

    @property
    def value(self) -> Tensor | None:
        found: Tensor | None = getattr(self.owner, self.attribute)
        return found


class Buffers:
    """The buffers of a module. They are read from it at each evaluation, unless values are pinned."""

    def __init__(self, module: nn.Module) -> None:
        found: dict[object, _Place] = {}
        for path, owner in module.named_modules(remove_duplicate=False):
            for attribute, buffer in tensor_dicts(owner)[1].items():
                # None is one object, whose id would tie all absent buffers to each other.
                key = (id(owner), attribute) if buffer is None else id(buffer)
                found.setdefault(key, _Place(owner, attribute, [])).names.append(f"{path}.{attribute}".lstrip("."))
        self._places = list(found.values())
        self._pinned: dict[str, Tensor] = {}

    @property
    def training(self) -> bool:
        """Whether any buffer belongs to a module in training mode."""
        return any(place.owner.training for place in self._places)

    @property
    def names(self) -> list[str]:
        """The first names of those buffers that are not None."""
        return [place.names[0] for place in self._places if place.value is not None]

    def copies(self, lanes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Return copies by name for an evaluation to write to.

        Args:
            lanes: level and size of each `vmap` whose lanes the evaluation may write different values for.
        """
        found: dict[str, Tensor] = {}
        for place in self._places:
            value = self._pinned.get(place.names[0], place.value)
            if value is not None:
                # Torch cannot write mapped values, such as the statistics of mapped inputs, to a tensor without the
                # mapped axis.
                copy = spread(value, lanes) if lanes and place.owner.training else value.clone()
                # One copy under all names: a write to a tied buffer must show under each of them.
                found.update(dict.fromkeys(place.names, copy))
        return found

    @contextlib.contextmanager
    def none_made(self) -> Iterator[None]:
        """Raise if an evaluation creates a buffer where the module has None: the next evaluation would see it.

        Raises:
            StructureError: with the names of the buffers.
        """
        absent = [place for place in self._places if place.value is None]
        try:
            yield
        finally:
            made = [place for place in absent if place.value is not None]
            for place in made:
                setattr(place.owner, place.attribute, None)
        if made:
            raise StructureError(
                f"all evaluations must be one function, but this one creates {[place.names[0] for place in made]}, "
                "which were None in the module. Call the module once on a batch first."
            )

    def update(self, written: Mapping[str, Tensor], *, pin: bool) -> None:
        """Write what an evaluation changed to the module, in place.

        Args:
            written: the buffers after the evaluation, by name.
            pin: later evaluations still start from the values before this one.

        Raises:
            StructureError: if the values differ between the lanes of a `vmap`.
        """
        pairs = []
        for place in self._places:
            name, present = place.names[0], place.value
            if name in written and present is not None:
                pairs.append((place, present, _one(written[name], name)))
        with torch.no_grad(), outside_transforms():
            for (place, present, value), changed in zip(pairs, _differ(pairs), strict=True):
                if not changed:
                    continue  # constants keep their version counters: graphs that saved them stay valid
                if pin:
                    self._pinned[place.names[0]] = present.clone()
                if (value.shape, value.dtype) == (present.shape, present.dtype):
                    # In place, as layers update their buffers themselves: other references see the change.
                    present.copy_(value)
                else:  # the module put another tensor in its place
                    setattr(place.owner, place.attribute, value.clone())

    def release(self) -> None:
        """Read every buffer from the module again."""
        self._pinned.clear()


def _differ(pairs: Sequence[tuple[_Place, Tensor, Tensor]]) -> list[bool]:
    """Return which of the second tensors are not equal to the first, with one host synchronisation."""
    if not pairs:
        return []
    target = pairs[0][1].device
    # Buffers may be on several devices; the flags go to one of them, so that the host waits once.
    flags = [
        (old != new).any().to(target) if old.shape == new.shape else torch.ones((), dtype=torch.bool, device=target)
        for _, old, new in pairs
    ]
    found: list[bool] = torch.stack(flags).tolist()
    return found


def _one(value: Tensor, name: str) -> Tensor:
    plain = unwrapped(value)
    if plain is None:
        raise StructureError(
            f"a single evaluation must update the buffers, but inside `vmap` each lane has its own {name!r}. "
            'Use buffers="freeze", or call `update_buffers(parameters, inputs)` before, outside `vmap`.'
        )
    return plain
