"""The order of samples, and the cuts of a data set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adv_train.data import Augment, Batch, Split, batch_bounds, batches, epoch_generator, ordered_batches
from adv_train.data.stratified import limited, stratified_head, stratified_holdout
from adv_train.errors import UserError


def numbered(n: int) -> Split:
    """A split whose k-th image is filled with k and has label k."""
    number = torch.arange(n)
    return Split(number.to(torch.uint8).view(n, 1, 1, 1).expand(n, 2, 3, 3).clone(), number)


@settings(deadline=None, max_examples=50)
@given(samples=st.integers(1, 200), batch_size=st.integers(2, 210))
def test_an_epoch_sees_every_sample_once_and_no_sample_alone(samples: int, batch_size: int) -> None:
    split = numbered(samples)
    seen = list(batches(split, batch_size, generator=epoch_generator(0, 0)))
    sizes = [len(batch.y) for batch in seen]
    assert sorted(torch.cat([batch.y for batch in seen]).tolist()) == list(range(samples))
    assert all(size == batch_size for size in sizes[:-1])
    assert sizes[-1] <= batch_size + 1
    assert 1 not in sizes or samples == 1
    assert len(sizes) == len(batch_bounds(samples, batch_size))
    for batch in seen:
        assert batch.x.dtype == torch.float32 and batch.index.dtype == torch.int64
        assert torch.equal(batch.x, (batch.y.float() / 255).view(-1, 1, 1, 1).expand(-1, 2, 3, 3))
        assert torch.equal(batch.index, batch.y)


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 1), (10, 0), (1, 0), (10, -3)])
def test_a_batch_of_one_is_refused(samples: int, batch_size: int) -> None:
    with pytest.raises(UserError, match="at least 2"):
        batch_bounds(samples, batch_size)


@pytest.mark.parametrize("augment", [None, Augment(), Augment(padding=0), Augment(rotation=10.0)])
@pytest.mark.parametrize("labels", ["own", "shared"])
def test_the_order_of_published_runs_is_kept_bit_for_bit(augment: Augment | None, labels: str) -> None:
    """The formula written out: one permutation, cut in a row; then each batch draws its augmentation."""
    g = torch.Generator().manual_seed(5)
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=g)
    split = Split(images, torch.arange(50) if labels == "own" else torch.arange(50) % 3)
    seen = list(batches(split, 7, generator=epoch_generator(3, 4), augment=augment))
    generator = epoch_generator(3, 4)
    order = torch.randperm(50, generator=generator)
    bounds = [(0, 7), (7, 14), (14, 21), (21, 28), (28, 35), (35, 42), (42, 50)]  # the lone 50th sample joins
    for (start, stop), batch in zip(bounds, seen, strict=True):
        assert isinstance(batch, Batch)
        chosen = order[start:stop]
        x = augment(images[chosen], generator) if augment else images[chosen].float() / 255
        assert torch.equal(batch.x, x) and batch.x.is_contiguous()
        assert torch.equal(batch.y, split.labels[chosen])
        assert torch.equal(batch.index, chosen)


def test_a_subset_keeps_the_names_of_its_files() -> None:
    split = Split(numbered(4).images, numbered(4).labels, ("a", "b", "c", "d"))
    assert split.subset(torch.tensor([3, 1])).names == ("d", "b")
    assert split.to("meta").names == split.names
    assert numbered(4).subset(torch.tensor([3, 1])).names is None


def test_epochs_and_seeds_do_not_repeat_each_other() -> None:
    generators = [epoch_generator(seed, number) for seed in range(6) for number in range(6)]
    orders = [
        tuple(torch.cat([batch.y for batch in batches(numbered(100), 7, generator=g)]).tolist()) for g in generators
    ]
    assert len(set(orders)) == len(orders)
    assert tuple(range(100)) not in orders


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_evaluation_goes_through_the_split_as_it_lies(batch_size: int) -> None:
    seen = list(ordered_batches(numbered(100), batch_size))
    assert torch.equal(torch.cat([labels for _, labels in seen]), torch.arange(100))
    images = torch.cat([images for images, _ in seen])
    assert torch.equal(images[:, 0, 0, 0], torch.arange(100) / 255)


# --- cuts that keep every class in proportion ---

labels_and_size = st.lists(st.integers(0, 4), min_size=2, max_size=80).flatmap(
    lambda labels: st.tuples(st.just(labels), st.integers(1, len(labels)))
)


@settings(deadline=None, max_examples=50)
@given(case=labels_and_size)
def test_a_cut_takes_the_first_of_each_class_in_proportion(case: tuple[list[int], int]) -> None:
    labels, size = case
    chosen = stratified_head(torch.tensor(labels), size).tolist()
    assert len(set(chosen)) == size and chosen == sorted(chosen)
    for name in set(labels):
        members = [i for i, label in enumerate(labels) if label == name]
        taken = [i for i in chosen if labels[i] == name]
        assert taken == members[: len(taken)]
        share = len(members) / len(labels)
        assert -len(set(labels)) * share - 1e-9 <= len(taken) - size * share <= 1 + 1e-9
        assert taken or size < len(set(labels))


def test_a_large_class_keeps_its_share() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    assert torch.bincount(labels[stratified_head(labels, 20)]).tolist() == [18, 2]


def test_a_cut_of_balanced_classes_is_balanced() -> None:
    labels = torch.arange(10).repeat(30)
    counts = torch.bincount(labels[stratified_head(labels, 47)])
    assert counts.min() == 4 and counts.max() == 5


@settings(deadline=None, max_examples=50)
@given(case=labels_and_size)
def test_what_is_held_out_is_disjoint_random_and_always_the_same(case: tuple[list[int], int]) -> None:
    labels, size = torch.tensor(case[0]), case[1]
    kept, held_out = stratified_holdout(labels, size)
    assert len(held_out) == size
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(len(labels)))
    assert all(torch.equal(a, b) for a, b in zip((kept, held_out), stratified_holdout(labels, size), strict=True))


def test_what_is_held_out_is_not_the_head() -> None:
    labels = torch.arange(10).repeat(30)
    _, held_out = stratified_holdout(labels, 30)
    assert torch.bincount(labels[held_out]).tolist() == [3] * 10
    assert held_out.double().mean().sub(149.5).abs() < 50
    assert not torch.equal(held_out, stratified_head(labels, 30))


def test_a_limit_counts_within_the_part_it_cuts() -> None:
    labels = torch.tensor([0] * 15 + [1] * 5)
    part = torch.arange(10, 20)
    assert limited(part, labels, 4).tolist() == [10, 11, 15, 16]
    assert torch.equal(limited(part, labels, None), part)
    assert torch.equal(limited(part, labels, 99), part)
