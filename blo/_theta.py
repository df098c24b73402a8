"""The upper variable as a list of real tensors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo import tree
from blo._types import Tree
from blo.errors import BloError, StructureError

#: Torch's error messages for operations on tensors of different dtypes.
_DTYPES = re.compile("dtype|scalar type|same type")


@dataclass(frozen=True)
class Structure:
    """The structure of theta, without its values.

    A complex leaf is differentiated as the pair of its real and imaginary parts, on a last axis of length 2. The two
    derivatives together are the gradient of the complex leaf by torch's convention, `dF/dRe + i dF/dIm`.

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
            StructureError: if a leaf is not a tensor.
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
    # `view_as_complex` rejects the strides of a pair after a transform has moved one of its axes.
    return torch.complex(*pair.unbind(-1))


def _split(leaf: Tensor) -> Tensor:
    # `view_as_real` refuses a tensor that is conjugated lazily.
    return torch.view_as_real(leaf.resolve_conj())


def coarse(leaf: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a leaf is less precise than a real dtype."""
    inexact = leaf.is_floating_point() or leaf.is_complex()
    return inexact and torch.finfo(leaf.dtype).eps > torch.finfo(dtype).eps


def refined(leaves: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the leaves, with those that are less precise than this dtype converted to it, as constants."""
    fine = [dtype.to_complex() if leaf.is_complex() else dtype for leaf in leaves]
    return [leaf.detach().to(to) if coarse(leaf, dtype) else leaf for leaf, to in zip(leaves, fine, strict=True)]


@contextlib.contextmanager
def taking(leaves: Sequence[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Explain the error of an objective that does not accept theta in another precision than its own.

    Raises:
        StructureError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        found = sorted({str(leaf.dtype) for leaf in leaves if coarse(leaf, dtype)})
        if not found or isinstance(error, BloError) or not _DTYPES.search(str(error)):
            raise
        raise StructureError(
            f"differences in theta need theta in the precision of z, {dtype}, but theta holds leaves of "
            f"{', '.join(found)}, and the objective fails with these in {dtype}: {str(error).splitlines()[0]}. Keep "
            f"theta in {dtype} and cast it inside the objective, or use Implicit(products='reverse')."
        ) from error
