"""A set for each part of z."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor

from blo import tree
from blo._layout import Layout
from blo._term import Carry, Counts, Strain, Tangent, expanded
from blo._types import Tree
from blo.errors import StructureError
from blo.sets._base import Set
from blo.sets._rows import Rows


@dataclass(frozen=True, eq=False, init=False)
class Product(Set):
    """`{ (z_1, ..., z_k) : z_i in C_i }`: one set for each entry of a tuple, list or dict z.

    `Product(a, b)` constrains a tuple or list of two, `Product({"w": a, "b": b})` a dict with these keys. An
    entry may be a tree itself; its set then constrains it as a whole.

    Attributes:
        sets: the parts, in the order given; after `fit`, in the order of z.
        keys: the keys of the mapping, None for a tuple.
        spans: the coordinates of each part, None before `fit`.
    """

    sets: tuple[Set, ...]
    keys: tuple[object, ...] | None
    spans: tuple[slice, ...] | None

    def __init__(self, *sets: Set | Mapping[str, Set]) -> None:
        """Take the sets, or one mapping of sets.

        Raises:
            StructureError: if there are no sets, or an argument is not a set; when the problem is solved, if z has
                other entries.
        """
        keys: tuple[object, ...] | None = None
        parts: tuple[object, ...] = sets
        if len(sets) == 1 and isinstance(sets[0], Mapping):
            keys, parts = tuple(sets[0]), tuple(sets[0].values())
        found = tuple(part for part in parts if isinstance(part, Set))
        if not parts or len(found) != len(parts):
            names = [type(part).__name__ for part in parts]
            raise StructureError(f"`Product` takes one or more sets, or one mapping of sets, but got {names}.")
        self._assign(found, keys, None)

    def fit(self, layout: Layout) -> Product:
        return self._fitted(layout, lambda part, child: cast(Set, part.fit(child)))

    def apart(self, layout: Layout) -> Product:
        return self._fitted(layout, lambda part, child: part.apart(child))

    def _fitted(self, layout: Layout, fit: Callable[[Set, Layout], Set]) -> Product:
        numbered = tree.unflatten(range(layout.spec.num_leaves), layout.spec)
        keys = tuple(numbered) if isinstance(numbered, Mapping) else None
        children = layout.children()
        parts = self.sets
        if keys is not None and self.keys is not None and set(keys) == set(self.keys):
            by_key = dict(zip(self.keys, self.sets, strict=True))
            parts = tuple(by_key[key] for key in keys)
        elif keys is not None or self.keys is not None or len(parts) != len(children):
            raise StructureError(
                f"`Product` has {_entries(self.keys, len(parts))}, but z has "
                f"{_entries(keys, len(children))}. Give one set for each entry of z, `Free()` where nothing "
                "constrains it; a mapping when z is a dict."
            )
        fitted = Product.__new__(Product)
        inner = tuple(fit(part, child) for part, (child, _) in zip(parts, children, strict=True))
        fitted._assign(inner, keys, tuple(span for _, span in children))
        return fitted

    def loosened(self, slack: float) -> Self:
        parts = tuple(part.loosened(slack) for part in self.sets)
        if all(new is old for new, old in zip(parts, self.sets, strict=True)):
            return self
        wider = type(self).__new__(type(self))
        wider._assign(parts, self.keys, self.spans)
        return wider

    def project(self, z: Tensor) -> Tensor:
        parts = zip(self.sets, self._split(z), strict=True)
        return torch.cat([part.project(block) for part, block in parts], dim=-1)

    def from_logarithms(self, logarithms: Tensor) -> Tensor | None:
        found = []
        for part, block in zip(self.sets, self._split(logarithms), strict=True):
            point = part.from_logarithms(block)
            if point is None:
                return None
            found.append(point)
        return torch.cat(found, dim=-1)

    def rows(self, layout: Layout) -> Rows | None:
        found = []
        for part, (child, span) in zip(self.sets, layout.children(), strict=True):
            rows = part.rows(child)
            if rows is None:
                return None
            whole = rows.normals.new_zeros((*rows.normals.shape[:-1], layout.size))
            place = torch.arange(span.start, span.stop, device=layout.device)
            found.append(rows._replace(normals=whole.index_copy(-1, place, rows.normals)))
        return Rows.joined(found)

    @property
    def extent(self) -> Tensor | float | None:
        found = [part.extent for part in self.sets]
        known = [extent for extent in found if extent is not None]
        if len(known) < len(found):
            return None
        # The parts are orthogonal, so the squares of their distances add up.
        squares: Tensor | float = sum(extent * extent for extent in known)
        return squares**0.5

    @property
    def rounds(self) -> bool:
        return any(part.rounds for part in self.sets)

    def retreat(self, z: Tensor, move: Tensor, step: Tensor | float) -> Tensor:
        parts = zip(self.sets, self._split(z), self._split(move), strict=True)
        return torch.cat([part.retreat(block, along, step) for part, block, along in parts], dim=-1)

    def bounds(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        low: list[Tensor] = []
        high: list[Tensor] = []
        for part, block in zip(self.sets, self._split(z), strict=True):
            found = part.bounds(block)
            if found is None:
                return None
            low.append(expanded(found[0], block))
            high.append(expanded(found[1], block))
        return torch.cat(low, dim=-1), torch.cat(high, dim=-1)

    def blocked(self, z: Tensor, gradient: Tensor) -> Tensor | None:
        triples = zip(self.sets, self._split(z), self._split(gradient), strict=True)
        found = [part.blocked(block, slope) for part, block, slope in triples]
        if all(part is None for part in found):
            return None
        none = torch.zeros_like(z, dtype=torch.bool)
        pairs = zip(found, self._split(none), strict=True)
        return torch.cat([block if part is None else part for part, block in pairs], dim=-1)

    def tangent(self, z: Tensor, gradient: Tensor) -> Tangent:
        blocks = self._split(z)
        triples = zip(self.sets, blocks, self._split(gradient), strict=True)
        tangents = [part.tangent(block, slope) for part, block, slope in triples]

        def projector(v: Tensor) -> Tensor:
            pairs = zip(tangents, self._split(v), strict=True)
            return torch.cat([tangent.project(block) for tangent, block in pairs], dim=-1)

        def count() -> Counts:
            free, active, degenerate = zip(*(tangent.counts() for tangent in tangents), strict=True)
            return Counts(*(torch.stack(column).sum(0) for column in (free, active, degenerate)))

        def bend(v: Tensor) -> Tensor:
            pairs = zip(tangents, self._split(v), strict=True)
            return torch.cat([t.bend(block) if t.bend else torch.zeros_like(block) for t, block in pairs], dim=-1)

        def force(term: Product, at: Tensor) -> Tensor:
            triples = zip(tangents, term.sets, self._split(at), strict=True)
            pulls = [t.force(part, block) if t.force else torch.zeros_like(block) for t, part, block in triples]
            return torch.cat(pulls, dim=-1)

        def motion(term: Product, at: Tensor) -> Tensor:
            rows = zip(tangents, self.sets, term.sets, self._split(at), strict=True)
            return torch.cat([t.carry(before, part, block) for t, before, part, block in rows], dim=-1)

        strains = [t.strain for t in tangents]

        def surplus() -> Tensor:
            return torch.stack([one.surplus() for one in strains if one is not None]).sum(0)

        def strain(term: Product, at: Tensor) -> tuple[Tensor, Tensor]:
            rows = zip(strains, term.sets, self._split(at), strict=True)
            moved, left = zip(*(one.of(part, block) for one, part, block in rows if one is not None), strict=True)
            return torch.cat(moved, dim=-1), torch.cat(left, dim=-1)

        def duals(layout: Layout) -> Tree:
            children = [child for child, _ in layout.children()]
            found = [t.duals(child) for t, child in zip(tangents, children, strict=True) if t.duals]
            return found if self.keys is None else dict(zip(self.keys, found, strict=True))

        curvature: Tensor | float = 0.0
        if any(isinstance(tangent.curvature, Tensor) for tangent in tangents):
            pairs = zip(tangents, blocks, strict=True)
            curvature = torch.cat([tangent.curvature * torch.ones_like(block) for tangent, block in pairs], dim=-1)
        return Tangent(
            projector,
            curvature,
            count,
            bend=bend if any(tangent.bend for tangent in tangents) else None,
            force=force if any(tangent.force for tangent in tangents) else None,
            motion=Carry(Product.motion, motion),
            strain=Strain(surplus, strain) if any(strains) else None,
            duals=duals if all(tangent.duals for tangent in tangents) else None,
        )

    def motion(self, origin: Self, z: Tensor) -> Tensor:
        triples = zip(self.sets, origin.sets, self._split(z), strict=True)
        return torch.cat([part.motion(before, block) for part, before, block in triples], dim=-1)

    def _assign(self, sets: tuple[Set, ...], keys: tuple[object, ...] | None, spans: tuple[slice, ...] | None) -> None:
        # The dataclass is frozen and its constructor takes the parts themselves, so the fields are set here.
        object.__setattr__(self, "sets", sets)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "spans", spans)

    def _split(self, flat: Tensor) -> list[Tensor]:
        if self.spans is None:
            raise StructureError(
                "`Product` does not know yet which coordinates belong to which part. Pass it to "
                "`LowerProblem`, or call `fit(layout)` first and use what it returns."
            )
        return [flat[..., span] for span in self.spans]


def _entries(keys: tuple[object, ...] | None, number: int) -> str:
    return f"{number} entries" if keys is None else f"the entries {list(keys)}"
