"""The pytree algebra."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import blo
from blo import tree
from tests.strategies import SEEDS, normal

Pair = namedtuple("Pair", ["left", "right"])

TREES = st.recursive(
    st.integers(1, 3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=6,
)


def leaves_of(structure: Any) -> list[int]:
    """Return the sizes in a structure, depth first, without the pytree library."""
    if isinstance(structure, int):
        return [structure]
    items = structure.values() if isinstance(structure, dict) else structure
    return [leaf for item in items for leaf in leaves_of(item)]


def filled(structure: Any, seed: int) -> Any:
    """Return the structure with each size replaced by that many numbers."""
    if isinstance(structure, int):
        return normal(seed, structure)
    if isinstance(structure, dict):
        return {key: filled(value, seed + i) for i, (key, value) in enumerate(structure.items())}
    items = [filled(item, seed + i) for i, item in enumerate(structure)]
    return type(structure)(*items) if isinstance(structure, Pair) else type(structure)(items)


@settings(deadline=None, max_examples=50)
@given(TREES, SEEDS)
def test_leaves_come_depth_first_and_go_back_into_their_places(structure: Any, seed: int) -> None:
    original = filled(structure, seed)
    leaves, spec = tree.flatten(original)
    assert [leaf.numel() for leaf in leaves] == leaves_of(structure)
    back = tree.unflatten(leaves, spec)
    assert type(back) is type(original)
    assert all(a is b for a, b in zip(tree.flatten(back)[0], leaves, strict=True))
    doubled = tree.map(lambda a, b: a + b, original, original)
    assert all(torch.equal(a, 2 * b) for a, b in zip(tree.flatten(doubled)[0], leaves, strict=True))


@settings(deadline=None, max_examples=50)
@given(TREES)
def test_children_are_the_entries_of_the_root(structure: Any) -> None:
    _, spec = tree.flatten(filled(structure, 0))
    found = tree.children(spec)
    if isinstance(structure, int):
        entries = [structure]
    else:
        entries = list(structure.values()) if isinstance(structure, dict) else list(structure)
    assert [len(numbers) for numbers, _ in found] == [len(leaves_of(entry)) for entry in entries]
    assert [number for numbers, _ in found for number in numbers] == list(range(len(leaves_of(structure))))
    for (_, child), entry in zip(found, entries, strict=True):
        assert child == tree.flatten(filled(entry, 0))[1]


def test_the_dot_product_runs_over_all_leaves() -> None:
    left = {"a": torch.tensor([1.0, 2.0]), "b": (torch.tensor([[3.0]]),)}
    right = {"a": torch.tensor([4.0, 5.0]), "b": (torch.tensor([[6.0]]),)}
    assert tree.dot(left, right) == 4 + 10 + 18
    assert tree.dot(left, right).shape == ()


def test_detaching_cuts_the_graph_and_shares_the_numbers() -> None:
    leaf = torch.ones(2, requires_grad=True)
    (cut,) = tree.detach((leaf * 1,))
    assert not cut.requires_grad
    assert tree.detach(leaf).data_ptr() == leaf.data_ptr()


@pytest.mark.parametrize(("bad", "found"), [((1.0,), "leaf 0 is float"), ([torch.ones(1), None], "leaf 1 is NoneType")])
def test_a_leaf_that_is_no_tensor_is_refused_with_its_place(bad: Any, found: str) -> None:
    with pytest.raises(blo.StructureError, match=f"`theta` must hold tensors only, but {found}"):
        tree.flatten(bad, "theta")


@dataclass(frozen=True)
class Holder:
    inner: Any
    label: str


tree.register(Holder, lambda value: isinstance(value, torch.Tensor))


def test_instances_of_a_registered_class_are_trees_of_their_chosen_attributes() -> None:
    leaves, spec = tree.flatten(Holder(torch.ones(3), "kept"))
    assert len(leaves) == 1
    assert tree.unflatten(["new"], spec) == Holder("new", "kept")


def test_transforms_map_over_registered_instances_in_and_out() -> None:
    numbers = torch.arange(3.0)
    mapped = torch.vmap(lambda holder: Holder(2 * holder.inner, "made inside"))(Holder(numbers, "given"))
    assert torch.equal(mapped.inner, 2 * numbers) and mapped.label == "made inside"
    slopes = torch.func.grad(lambda holder: holder.inner.square().sum())(Holder(numbers, "given"))
    assert torch.equal(slopes.inner, 2 * numbers)


def test_vmap_maps_over_sets_within_sets() -> None:
    ones = torch.ones(4)
    radius = torch.tensor([0.5, 2.0, 4.0])
    sets = blo.Product(blo.L2Ball(radius), blo.Box(-radius, 1.0))
    made = torch.vmap(lambda r: blo.Product(blo.L2Ball(r), blo.Box(-r, 1.0)))(radius)
    for product in (sets, made):
        ball, box = torch.vmap(lambda part: (part.sets[0].project(ones), part.sets[1].project(-3 * ones)))(product)
        assert torch.allclose(ball.norm(dim=-1), radius.clamp(max=2.0))
        assert torch.allclose(box, -radius.clamp(max=3.0).unsqueeze(-1).expand(3, 4))
