"""How trees lie in flat tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import blo
from blo._layout import Layout
from tests.strategies import SEEDS, normal

SHAPES = st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=4)
quick = settings(deadline=None, max_examples=50)


def leaves(shapes: list[tuple[int, ...]], seed: int, lanes: tuple[int, ...] = ()) -> tuple[Tensor, ...]:
    return tuple(normal(seed + i, *lanes, *shape) for i, shape in enumerate(shapes))


@quick
@given(SHAPES, SEEDS, st.sampled_from([(), (1,), (4,)]))
def test_flattening_is_concatenation_and_unflattening_undoes_it(
    shapes: list[tuple[int, ...]], seed: int, lanes: tuple[int, ...]
) -> None:
    z = leaves(shapes, seed, lanes)
    layout = Layout.of(z, batched=bool(lanes))
    flat = layout.ravel(z)
    rows = [torch.cat([leaf[i].flatten() for leaf in z]) for i in range(lanes[0])] if lanes else []
    assert torch.equal(flat, torch.stack(rows) if lanes else torch.cat([leaf.flatten() for leaf in z]))
    assert (layout.lanes, layout.size) == (lanes, flat.shape[-1])
    assert all(torch.equal(a, b) for a, b in zip(layout.unravel(flat), z, strict=True))


@quick
@given(SHAPES, SEEDS)
def test_the_lanes_of_a_flat_tensor_are_the_flat_tensors_of_the_lanes(shapes: list[tuple[int, ...]], seed: int) -> None:
    z = leaves(shapes, seed, (3,))
    flat = Layout.of(z, batched=True).ravel(z)
    for lane in range(3):
        one = tuple(leaf[lane] for leaf in z)
        assert torch.equal(flat[lane], Layout.of(one, batched=False).ravel(one))


@quick
@given(SHAPES, SEEDS)
def test_a_parameter_is_flattened_as_z_is(shapes: list[tuple[int, ...]], seed: int) -> None:
    z = leaves(shapes, seed, (2,))
    layout = Layout.of(z, batched=True)
    assert torch.equal(layout.ravel_parameter(z, "p"), layout.ravel(z))
    shared = tuple(leaf[0] for leaf in z)
    assert torch.equal(
        layout.ravel_parameter(shared, "p"), layout.ravel(tuple(leaf.expand(2, *leaf.shape) for leaf in shared))
    )


def test_numbers_pass_and_single_tensors_broadcast_to_every_leaf() -> None:
    layout = Layout.of({"a": torch.zeros(2), "b": torch.zeros(3, 2)}, batched=False)
    assert layout.ravel_parameter(0.5, "p") == 0.5
    assert layout.ravel_parameter(torch.tensor(0.5), "p").tolist() == [0.5]
    assert layout.ravel_parameter(torch.tensor([1.0, 2.0]), "p").tolist() == [1, 2] * 4


def test_a_single_leaf_is_not_copied() -> None:
    z = torch.zeros(4, 3)
    layout = Layout.of(z, batched=True)
    assert layout.ravel(z).data_ptr() == layout.unravel(z).data_ptr() == z.data_ptr()


def test_children_have_the_layout_and_the_coordinates_of_their_entry() -> None:
    z = {"first": (torch.zeros(5, 2), torch.zeros(5, 3, 1)), "second": torch.zeros(5, 4)}
    (first, where), (second, rest) = Layout.of(z, batched=True).children()
    assert (where, rest) == (slice(0, 5), slice(5, 9))
    assert first == Layout.of(z["first"], batched=True) and second == Layout.of(z["second"], batched=True)


def test_flattening_is_differentiable() -> None:
    z = leaves([(2,), (1, 2)], 0)
    layout = Layout.of(z, batched=False)
    weights = normal(9, 4)
    grads = torch.func.grad(lambda z: weights @ layout.ravel(z))(z)
    assert torch.equal(layout.ravel(grads), weights)


REFUSED: dict[str, tuple[Any, bool, str]] = {
    "empty": ((), False, "`start` must hold at least one tensor"),
    "integers": (torch.zeros(2, dtype=torch.int64), False, "`start` must be floating point, but leaf 0 is torch.int64"),
    "precisions": (
        (torch.zeros(1), torch.zeros(1).double()),
        False,
        "leaf 0 is torch.float32.*leaf 1 is torch.float64",
    ),
    "no lane axis": ((torch.zeros(2, 1), torch.tensor(0.0)), True, r"leaf 1 has \(\)"),
    "other batch": ((torch.zeros(2, 1), torch.zeros(3, 1)), True, r"leaf 0 has shape \(2, 1\) and leaf 1 has \(3, 1\)"),
}


@pytest.mark.parametrize(("z", "batched", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_start_without_a_layout_is_refused_by_name(z: Any, batched: bool, message: str) -> None:
    with pytest.raises(blo.StructureError, match=message):
        Layout.of(z, batched=batched, name="start")


@pytest.mark.parametrize(
    "other",
    [(torch.zeros(2),), torch.zeros(3), (torch.zeros(3), torch.zeros(1)), (torch.zeros(3).double(),)],
    ids=["shape", "structure", "length", "precision"],
)
def test_a_tree_of_another_layout_is_refused_by_name(other: Any) -> None:
    layout = Layout.of((torch.zeros(3),), batched=False)
    with pytest.raises(blo.StructureError, match="`found`"):
        layout.ravel(other, "found")


@pytest.mark.parametrize("other", [torch.zeros(2), (torch.zeros(3),), torch.zeros(4, 3)], ids=["size", "tree", "axes"])
def test_a_parameter_that_does_not_fit_is_refused_by_name(other: Any) -> None:
    layout = Layout.of(torch.zeros(3), batched=False)
    with pytest.raises(blo.StructureError, match=r"`Box\.low` must"):
        layout.ravel_parameter(other, "Box.low")
