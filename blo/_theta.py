"""The upper variable as a list of real tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import tree
from blo._types import Tree


@dataclass(frozen=True)
class Structure:
    """The structure of theta, without its numbers.

    A complex leaf is differentiated as the pair of its real and imaginary parts, on a last axis of length 2. The
    derivatives in the pair, put together again, are the gradient of the complex leaf by torch's convention,
    `dF/dRe + i dF/dIm`.

    Attributes:
        spec: structure of the tree.
        pairs: which leaves are complex.
    """

    spec: tree.TreeSpec
    pairs: tuple[bool, ...]

    @classmethod
    def of(cls, theta: Tree) -> tuple[Structure, list[Tensor]]:
        """Return the structure of theta and its leaves as real tensors, views that keep the graph.

        Raises:
            StructureError: if a leaf is no tensor.
        """
        leaves, spec = tree.flatten(theta, "theta")
        pairs = tuple(leaf.is_complex() for leaf in leaves)
        return cls(spec, pairs), [_split(leaf) if pair else leaf for leaf, pair in zip(leaves, pairs, strict=True)]

    def tree(self, leaves: Sequence[Tensor]) -> Tree:
        """Return the theta, or a gradient in theta, that has these real leaves."""
        if any(self.pairs):
            leaves = [join(leaf) if pair else leaf for leaf, pair in zip(leaves, self.pairs, strict=True)]
        return tree.unflatten(leaves, self.spec)


def join(pair: Tensor) -> Tensor:
    """Return the complex tensor of real and imaginary parts on a last axis of length 2."""
    # `view_as_complex` refuses the strides of a pair that a transform has moved an axis of.
    return torch.complex(*pair.unbind(-1))


def _split(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf.resolve_conj())
