"""What belongs to the pixels of an image moves as augmentation moves the image, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adv_train.data import Augment, Motion, Split, batches
from adv_train.data.motion import rotate


@settings(deadline=None, max_examples=25)
@given(height=st.integers(1, 6), width=st.integers(1, 6), padding=st.integers(0, 7), seed=st.integers(0, 2**32))
def test_undoing_a_shift_and_a_flip_puts_every_pixel_where_it_came_from(
    height: int, width: int, padding: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 2, height, width, generator=generator)
    motion = Augment(padding=padding).draw(images, generator)
    moved = torch.rand(images.shape, generator=generator)
    old = -torch.rand(images.shape, generator=generator)
    expected = old.clone()
    assert motion.shift is not None and motion.mirror is not None
    for k, ((down, right), mirrored) in enumerate(zip(motion.shift.tolist(), motion.mirror.tolist(), strict=True)):
        for i in range(height):
            for j in range(width):
                row, column = i + down, (width - 1 - j if mirrored else j) + right
                if 0 <= row < height and 0 <= column < width:
                    expected[k, :, row, column] = moved[k, :, i, j]
    assert torch.equal(motion.undo(moved, old), expected)


def test_moving_back_what_was_moved_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(50, 3, 8, 8, generator=generator)
    motion = Augment().draw(images, generator)
    assert torch.equal(motion.undo(motion.apply(images), images), images)


def test_a_turn_is_undone_to_the_nearest_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(20, 1, 32, 32)
    motion = Augment(rotation=15.0).draw(smooth, generator)
    assert motion.degrees is not None and motion.degrees.abs().max() > 10
    back = motion.undo(motion.apply(smooth), torch.full_like(smooth, -1))
    known = back >= 0
    assert known.float().mean() > 0.6 and (motion.apply(torch.ones_like(smooth)) == 0).any()
    # Black from outside comes back where the two nearest pixels are not each other's.
    assert ((back - smooth).abs()[known] < 3 / 31).float().mean() > 0.98


def test_without_augmentation_nothing_moves() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert Motion().apply(images) is images
    assert torch.equal(Motion().undo(images, -images), images)


@pytest.mark.parametrize("augment", [None, Augment(), Augment(padding=0), Augment(rotation=20.0)])
def test_a_batch_tells_how_its_images_were_moved(augment: Augment | None) -> None:
    generator = torch.Generator().manual_seed(1)
    split = Split(torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(30))
    for batch in batches(split, 7, generator=generator, augment=augment):
        lying = split.images[batch.index].float() / 255
        assert torch.equal(batch.motion.apply(lying), batch.x)


def test_a_turn_needs_no_bytes() -> None:
    images, degrees = torch.randint(256, (2, 1, 5, 5), dtype=torch.uint8), torch.tensor([10.0, -20.0])
    assert torch.equal(Motion(degrees=degrees).apply(images), rotate(images.float() / 255, degrees))
