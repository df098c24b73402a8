"""Pytree algebra: the only module that uses the pytree library.

A tree is a tensor, or a tuple, list, dict or named tuple of trees. Functions here accept trees whose leaves are
tensors and keep structure, dtype and device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from blo._types import Tree
from blo.errors import StructureError

TreeSpec = pytree.TreeSpec

#: The structure of a bare tensor: the common case on hot paths, which the functions below test for first.
_LEAF = pytree.tree_structure(0)


def flatten(tree: Tree, name: str = "tree") -> tuple[list[Tensor], TreeSpec]:
    """Return the leaves in depth-first order and the structure.

    Raises:
        StructureError: if a leaf is not a tensor; the message names `name` and the index of the leaf.
    """
    if isinstance(tree, Tensor):
        return [tree], _LEAF
    if (values := _values(tree)) is not None:
        return values, TreeSpec(dict, list(tree), [_LEAF] * len(values))
    leaves, spec = pytree.tree_flatten(tree)
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise StructureError(
                f"`{name}` must hold tensors only, but leaf {index} is {type(leaf).__name__}. "
                "Wrap numbers with torch.as_tensor, and pass a module as dict(module.named_parameters())."
            )
    return leaves, spec


def structure(tree: Tree) -> tuple[list[Any], TreeSpec]:
    """Return the leaves, of any type, and the structure."""
    return ([tree], _LEAF) if isinstance(tree, Tensor) else pytree.tree_flatten(tree)


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves, of any type."""
    return [tree] if isinstance(tree, Tensor) else pytree.tree_leaves(tree)


def tensors(tree: Tree) -> list[Tensor]:
    """Return the leaves that are tensors."""
    if isinstance(tree, Tensor):
        return [tree]
    if (values := _values(tree)) is not None:
        return values
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def unflatten(leaves: Sequence[Any], spec: TreeSpec) -> Tree:
    """Rebuild the tree whose structure is `spec` from its leaves."""
    if spec is _LEAF:
        return leaves[0]
    if spec.type is dict and spec.num_nodes == spec.num_leaves + 1:  # All children are leaves.
        return dict(zip(spec.context, leaves, strict=True))
    return pytree.tree_unflatten(list(leaves), spec)


def map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` leaf by leaf to trees of equal structure."""
    return function(tree, *others) if isinstance(tree, Tensor) else pytree.tree_map(function, tree, *others)


def detach(tree: Tree) -> Tree:
    """Return the tree with detached leaves, without a copy."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if (values := _values(tree)) is not None:
        return dict(zip(tree, [value.detach() for value in values], strict=True))
    leaves, spec = pytree.tree_flatten(tree)
    return unflatten([leaf.detach() for leaf in leaves], spec) if leaves else tree


def _values(tree: Tree) -> list[Tensor] | None:
    """Return the values of a dict of tensors, such as the parameters of a module; None for any other tree.

    The pytree library makes several Python calls for each leaf. This is the common case of theta on hot paths.
    """
    # Subclasses of dict are nodes of other kinds in the pytree library.
    if type(tree) is not dict:
        return None
    values = list(tree.values())
    for value in values:
        if not isinstance(value, Tensor):
            return None
    return values


def children(spec: TreeSpec) -> list[tuple[list[int], TreeSpec]]:
    """Return the leaf indices and the structure of each tree one level below the root.

    The only child of a bare leaf is the leaf itself.
    """
    numbered = unflatten(range(spec.num_leaves), spec)
    # With every node but the root taken for a leaf, flattening stops one level below it.
    below = [numbered] if spec.is_leaf() else pytree.tree_flatten(numbered, is_leaf=lambda n: n is not numbered)[0]
    return [pytree.tree_flatten(child) for child in below]


def dot(left: Tree, right: Tree) -> Tensor:
    """Return the inner product over all leaves, shape `()`."""
    a, _ = flatten(left, "left")
    b, _ = flatten(right, "right")
    products = [(x * y).sum() for x, y in zip(a, b, strict=True)]
    return sum(products[1:], products[0])


def register(cls: type, is_child: Callable[[Any], bool]) -> None:
    """Register a class as a node: attributes for which `is_child` is true are its children, the others its structure.

    `torch.func` transforms then map over instances as they do over tuples.
    """

    def take_apart(instance: Any) -> tuple[list[Any], tuple[Any, ...]]:
        rest = dict(vars(instance))
        # Torch also rebuilds instances with placeholders for children, which `is_child` would not recognise. So an
        # instance that was rebuilt stores the names of its children.
        names = rest.pop("_children", None)
        if names is None:
            names = tuple(name for name, value in rest.items() if is_child(value))
        return [rest.pop(name) for name in names], (names, rest)

    def put_together(children: Any, context: tuple[Any, ...]) -> Any:
        names, rest = context
        instance: Any = object.__new__(cls)
        for name, value in [*zip(names, children, strict=True), *rest.items(), ("_children", names)]:
            object.__setattr__(instance, name, value)
        return instance

    pytree.register_pytree_node(cls, take_apart, put_together)
