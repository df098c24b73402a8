"""The layout of a pytree in one flat tensor of shape `(*lanes, n)`.

The last axis numbers coordinates. A batched problem has one leading axis whose entries, the lanes, are independent
problems; an unbatched one has none. All linear algebra of `blo` happens on flat tensors, so it is written once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import tree
from blo._types import Tree
from blo.errors import StructureError


@dataclass(frozen=True)
class Layout:
    """The structure of a lower variable, without its values.

    Attributes:
        spec: structure of the tree.
        shapes: shape of each leaf, its lane axis left out.
        lanes: `()`, or `(batch,)` for a batched problem.
        dtype: the dtype that all leaves share.
        device: the device that all leaves share.
    """

    spec: tree.TreeSpec
    shapes: tuple[torch.Size, ...]
    lanes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, z: Tree, *, batched: bool, name: str = "z0") -> Layout:
        """Return the layout of `z`.

        Raises:
            StructureError: if there is no leaf, a leaf is empty or lacks the lane axis, or leaves differ in batch size,
                dtype or device.
        """
        leaves, spec = tree.flatten(z, name)
        if not leaves:
            raise StructureError(f"`{name}` must hold at least one tensor, but it is empty.")
        first = leaves[0]
        for index, leaf in enumerate(leaves):
            if not leaf.is_floating_point():
                remedy = " Pass real and imaginary parts: torch.view_as_real(leaf)." if leaf.is_complex() else ""
                raise StructureError(f"`{name}` must be floating point, but leaf {index} is {leaf.dtype}.{remedy}")
            if (leaf.dtype, leaf.device) != (first.dtype, first.device):
                raise StructureError(
                    f"the leaves of `{name}` must share dtype and device, but leaf 0 is {first.dtype} on "
                    f"{first.device} and leaf {index} is {leaf.dtype} on {leaf.device}. Convert one with `.to`."
                )
            if leaf.numel() == 0:
                raise StructureError(f"`{name}` must not be empty, but has {[tuple(each.shape) for each in leaves]}.")
            if batched and (leaf.ndim == 0 or leaf.shape[0] != first.shape[0]):
                raise StructureError(
                    f"with batched=True the first axis of each leaf of `{name}` numbers the problems, but leaf 0 "
                    f"has shape {tuple(first.shape)} and leaf {index} has {tuple(leaf.shape)}."
                )
        lanes = (first.shape[0],) if batched else ()
        shapes = tuple(leaf.shape[len(lanes) :] for leaf in leaves)
        return cls(spec, shapes, lanes, first.dtype, first.device)

    @property
    def sizes(self) -> list[int]:
        """Number of coordinates of each leaf."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Number of coordinates n of one lane."""
        return sum(self.sizes)

    def ravel(self, z: Tree, name: str = "z") -> Tensor:
        """Return the tree as one tensor of shape `(*lanes, n)`; a view when there is a single leaf.

        Raises:
            StructureError: if structure, shapes, dtype or device differ from the layout's.
        """
        flat = self.spec.is_leaf() and len(self.shapes[0]) == 1
        own = ((*self.lanes, *self.shapes[0]), self.dtype, self.device) if flat else None
        if isinstance(z, Tensor) and own == (z.shape, z.dtype, z.device):
            return z
        leaves, spec = tree.flatten(z, name)
        expected = [self.lanes + tuple(shape) for shape in self.shapes]
        found = [tuple(leaf.shape) for leaf in leaves]
        if spec != self.spec or found != expected:
            structure = "" if spec == self.spec else f" in the structure {spec}, where `z0` has {self.spec}"
            raise StructureError(f"`{name}` must have the structure of `z0`, {expected}, but has {found}{structure}.")
        for leaf in leaves:
            if (leaf.dtype, leaf.device) != (self.dtype, self.device):
                raise StructureError(
                    f"`{name}` must be {self.dtype} on {self.device} like `z0`, but is {leaf.dtype} on {leaf.device}."
                )
        return self._join([leaf.reshape(*self.lanes, -1) for leaf in leaves])

    def unravel(self, flat: Tensor) -> Tree:
        """Return the tree with the entries of a flat tensor of shape `(*lanes, n)`."""
        # One leaf is the common case on hot paths, and needs no split. One axis needs no view, which would be another
        # operation to differentiate.
        if len(self.shapes) == 1 and len(self.shapes[0]) == 1:
            return tree.unflatten([flat], self.spec)
        pieces = (flat,) if len(self.shapes) == 1 else flat.split(self.sizes, dim=-1)
        # Leave out a view that changes nothing: it would be differentiated like the others.
        leaves = [
            p if len(s) == 1 else p.reshape(self.lanes + tuple(s)) for p, s in zip(pieces, self.shapes, strict=True)
        ]
        return tree.unflatten(leaves, self.spec)

    def ravel_parameter(self, value: Tree | float, name: str) -> Tensor | float:
        """Flatten a set's parameter: a Python number passes through, a tensor or tree is broadcast to the shapes of z.

        Returns:
            The number, or a tensor that broadcasts against `(*lanes, n)`.

        Raises:
            StructureError: if it does not fit; the message names `name`.
        """
        if isinstance(value, int | float):
            return value
        if isinstance(value, Tensor) and value.ndim == 0:
            return value.reshape(1)  # so that it still broadcasts when vmap puts a lane axis in front
        leaves, spec = tree.flatten(value, name)
        if isinstance(value, Tensor):
            leaves = leaves * len(self.shapes)
        elif spec != self.spec:
            raise StructureError(f"`{name}` must have the structure of `z0`, {self.spec}, but has {spec}.")
        try:
            wide = [
                leaf.expand(self.lanes + tuple(shape)).reshape(*self.lanes, -1)
                for leaf, shape in zip(leaves, self.shapes, strict=True)
            ]
        except RuntimeError:
            expected = [self.lanes + tuple(shape) for shape in self.shapes]
            found = [tuple(leaf.shape) for leaf in leaves]
            raise StructureError(
                f"`{name}` must broadcast to the leaves of `z0`, {expected}, but has {found}."
            ) from None
        return self._join(wide)

    def children(self) -> tuple[tuple[Layout, slice], ...]:
        """Return the layout of each child of the root with the coordinates it occupies."""
        offsets = [0]
        for size in self.sizes:
            offsets.append(offsets[-1] + size)
        result = []
        for numbers, spec in tree.children(self.spec):
            shapes = tuple(self.shapes[i] for i in numbers)
            span = slice(offsets[numbers[0]], offsets[numbers[-1] + 1]) if numbers else slice(0, 0)
            result.append((Layout(spec, shapes, self.lanes, self.dtype, self.device), span))
        return tuple(result)

    @staticmethod
    def _join(pieces: list[Tensor]) -> Tensor:
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
