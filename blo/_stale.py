"""Which buffers an evaluation writes to and then computes with, so that a derivative is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from blo._autodiff import plain
from blo._torch import storage_key


class Stale:
    """Tracks, operation by operation, values computed from parameters that enter an output as constants, by a buffer.

    Args:
        moving: the tensors to differentiate in.
        buffers: by name; kept alive, so that no other tensor gets their memory.
    """

    def __init__(self, moving: Iterable[Tensor], buffers: Mapping[str, Tensor]) -> None:
        self._kept = dict(buffers)
        self._buffers = {memory(tensor): name for name, tensor in buffers.items()}
        #: Memory whose contents depend on `moving`.
        self._derived = {memory(tensor) for tensor in moving}
        #: The buffer from which the contents of memory come, where autograd treats them as constants.
        self._source: dict[int | None, str] = {}
        #: Memory of constants that were combined with tensors that have a derivative.
        self._used: set[int | None] = set()
        self.found: set[str] = set()

    def see(self, given: list[Tensor], results: list[Tensor], writes: set[int | None]) -> None:
        """Record one operation.

        Args:
            given: its arguments.
            results: the tensors that it returned.
            writes: the memory that it wrote to.
        """
        places = {memory(tensor): tensor.requires_grad for tensor in given}
        made = bool(places.keys() & self._derived)
        constants = {place for place, live in places.items() if not live} - writes
        # A derivative is lost only where constants meet tensors that autograd follows.
        if torch.is_grad_enabled() and any(places.values()):
            self.found |= {self._source[place] for place in constants & self._source.keys()}
            self._used |= constants & self._derived
        source = next((self._source[place] for place in constants if place in self._source), None)
        for place in {memory(tensor) for tensor in results} | writes:
            # Memory that has been freed may come back with other contents.
            (self._derived.add if made else self._derived.discard)(place)
            if made and place in writes and place in self._buffers:
                self._source[place] = self._buffers[place]
            elif source is not None and not any(places.values()):
                self._source[place] = source
            elif place not in self._buffers:
                self._source.pop(place, None)

    def put(self, after: Mapping[str, Tensor]) -> None:
        """Record which tensors have replaced buffers."""
        for name, tensor in after.items():
            if name in self._kept and tensor is not self._kept[name] and memory(tensor) in self._used:
                self.found.add(name)


def memory(tensor: Tensor) -> int | None:
    """Return a key of the memory of a tensor."""
    bare = plain(tensor)
    return storage_key(bare) if bare.layout is torch.strided else None


def unseen(names: Iterable[str]) -> str:
    """Return the message about buffers that were found."""
    return (
        f"`module` writes values computed from parameters or inputs to its buffers {sorted(names)}, and computes its "
        "output with them: autograd treats buffers as constants, so the derivative is not that of the value. Compute "
        "with the buffers as they were before the forward pass, or with a tensor that autograd records, or use "
        "evaluation mode."
    )
