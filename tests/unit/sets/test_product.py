"""One set for each part of z."""

from __future__ import annotations

import pytest
import torch

from blo import Box, Free, L2Ball, NonNegative, Product, Simplex, StructureError
from blo._layout import Layout

Z = {"w": torch.tensor([3.0, 4.0]), "p": torch.tensor([1.0, 1.0, -5.0])}


def test_a_mapping_is_matched_by_key_in_any_order() -> None:
    layout = Layout.of(Z, batched=False)
    near = Product({"p": Simplex(), "w": L2Ball(1.0)}).fit(layout).project(layout.ravel(Z))
    torch.testing.assert_close(near, torch.tensor([0.6, 0.8, 0.5, 0.5, 0.0]))


@pytest.mark.parametrize("make", [tuple, list])
def test_a_sequence_is_matched_by_position(make: type) -> None:
    z = make(Z.values())
    layout = Layout.of(z, batched=False)
    near = Product(Box(0.0, 3.5), NonNegative()).fit(layout).project(layout.ravel(z))
    assert torch.equal(near, torch.tensor([3.0, 3.5, 1.0, 1.0, 0.0]))


def test_a_part_may_be_a_tree_and_a_product() -> None:
    z = (torch.tensor([[3.0]]), {"a": torch.tensor([[6.0]]), "b": torch.tensor([[8.0, 0.0]])})
    layout = Layout.of(z, batched=True)
    whole = Product(Box(0.0, 1.0), L2Ball(1.0)).fit(layout).project(layout.ravel(z))
    torch.testing.assert_close(whole, torch.tensor([[1.0, 0.6, 0.8, 0.0]]))
    nested = Product(Free(), Product({"a": Box(0.0, 1.0), "b": L2Ball(2.0)})).fit(layout).project(layout.ravel(z))
    torch.testing.assert_close(nested, torch.tensor([[3.0, 1.0, 2.0, 0.0]]))


def test_parts_do_not_see_each_other() -> None:
    layout = Layout.of(Z, batched=False)
    product = Product({"w": L2Ball(5.0), "p": Free()}).fit(layout)
    z = layout.ravel(Z)
    tangent = product.tangent(z, -2 * z)
    assert torch.equal(torch.as_tensor(tangent.curvature), torch.tensor([2.0, 2.0, 0.0, 0.0, 0.0]))
    assert [int(c) for c in tangent.counts()] == [4, 1, 0]


def test_flat_parts_have_no_curvature() -> None:
    layout = Layout.of(Z, batched=False)
    z = layout.ravel(Z)
    assert Product({"w": Free(), "p": NonNegative()}).fit(layout).tangent(z, z).curvature == 0.0


def test_before_it_meets_z_it_refuses() -> None:
    product = Product(Free(), Free())
    z = torch.zeros(2)
    for use in (lambda: product.project(z), lambda: product.tangent(z, z), lambda: product.motion(product, z)):
        with pytest.raises(StructureError, match="LowerProblem"):
            use()


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (Product(Free(), Free()), r"2 entries, but z has the entries \['w', 'p'\]"),
        (Product({"w": Free()}), r"\['w'\], but z has the entries \['w', 'p'\]"),
        (Product({"w": Free(), "q": Free()}), r"\['w', 'q'\]"),
    ],
)
def test_parts_that_do_not_match_z_are_named(product: Product, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        product.fit(Layout.of(Z, batched=False))


def test_a_mapping_does_not_fit_a_tuple() -> None:
    with pytest.raises(StructureError, match="2 entries"):
        Product({"a": Free(), "b": Free()}).fit(Layout.of(tuple(Z.values()), batched=False))


@pytest.mark.parametrize("parts", [(), ({},), (Free(), 3), ({"a": None},)])
def test_anything_but_sets_is_refused(parts: tuple[object, ...]) -> None:
    with pytest.raises(StructureError, match="`Product` takes"):
        Product(*parts)
