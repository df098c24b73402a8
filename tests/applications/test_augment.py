"""Augmentation of a batch, against one image at a time by torchvision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import functional as tv

from adv_train.data import Augment
from adv_train.data.motion import rotate, shift_and_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 10),
    seed=st.integers(0, 2**32),
)
def test_shift_and_flip_is_the_padded_crop_of_each_image(
    n: int, channels: int, height: int, width: int, padding: int, seed: int
) -> None:
    images = random_bytes(n, channels, height, width, seed=seed)
    shift = torch.randint(-padding, padding + 1, (n, 2), generator=generator(seed))
    mirror = torch.rand(n, generator=generator(seed)) < 0.5
    expected = []
    for image, (down, right), flipped in zip(images, shift.tolist(), mirror.tolist(), strict=True):
        image = tv.crop(tv.pad(image, [padding]), padding + down, padding + right, height, width)
        expected.append(tv.hflip(image) if flipped else image)
    result = shift_and_flip(images, shift, mirror)
    assert result.dtype == torch.uint8 and result.is_contiguous()
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (16, 24)])
def test_rotation_is_torchvisions_of_each_image(height: int, width: int) -> None:
    images = torch.rand(20, 3, height, width, generator=generator())
    degrees = torch.rand(20, generator=generator(1)) * 60 - 30
    expected = torch.stack([tv.rotate(image, float(d)) for image, d in zip(images, degrees, strict=True)])
    result = rotate(images, degrees)
    # The nearest pixel is undecided where a source point falls midway between two: allow a few of those.
    assert (result != expected).float().mean() < 1e-3


def test_no_turn_is_no_change() -> None:
    images = torch.rand(3, 2, 8, 8, generator=generator())
    assert torch.equal(rotate(images, torch.zeros(3)), images)


def test_bytes_become_fractions_and_fractions_stay() -> None:
    as_bytes = random_bytes(6, 3, 8, 8)
    augmented = Augment()(as_bytes, generator(2))
    assert augmented.dtype == torch.float32
    assert torch.equal(augmented, Augment()(as_bytes.float() / 255, generator(2)))
    assert augmented.min() == 0 and augmented.max() <= 1


def test_every_sample_gets_its_own_draw_and_every_draw_occurs() -> None:
    """The shifts and flips of many copies of one image are uniform over the 81 x 2 possibilities."""
    image = random_bytes(1, 1, 8, 8).clamp(min=1)
    n = 81 * 2 * 50
    augmented = Augment()(image.expand(n, 1, 8, 8), generator(3)).flatten(1)
    _, counts = augmented.unique(dim=0, return_counts=True)
    assert len(counts) == 162
    chi_square = float(((counts - 50) ** 2 / 50).sum())
    assert abs(chi_square - 161) < 5 * (2 * 161) ** 0.5


def test_rotations_stay_within_their_range_and_fill_it() -> None:
    line = torch.zeros(1, 1, 65, 65)
    line[:, :, 32, 32:] = 1
    turned = Augment(padding=0, flip=False, rotation=15.0)(line.expand(500, 1, 65, 65), generator(4))
    weight = turned[:, 0, :, 33:]
    rise = (weight * (32.0 - torch.arange(65)).view(1, 65, 1)).sum((1, 2))
    run = (weight * torch.arange(1.0, 33).view(1, 1, 32)).sum((1, 2))
    degrees = torch.rad2deg(torch.atan2(rise, run))
    assert degrees.abs().max() < 15.5
    assert degrees.min() < -14 and degrees.max() > 14 and abs(degrees.mean()) < 1.5


def test_parts_can_be_switched_off() -> None:
    images = random_bytes(50, 3, 8, 8)
    still = Augment(padding=0, flip=False)(images, generator())
    assert torch.equal(still, images.float() / 255)
    flipped = Augment(padding=0)(images, generator())
    mirrored = (flipped != images.float() / 255).flatten(1).any(1)
    assert 10 < int(mirrored.sum()) < 40
    assert torch.equal(flipped[mirrored], images[mirrored].flip(-1).float() / 255)


def test_the_generator_is_the_only_randomness_and_the_images_are_left_alone() -> None:
    images = random_bytes(10, 3, 8, 8)
    before, augment = images.clone(), Augment(rotation=15.0)
    torch.manual_seed(0)
    first = augment(images, generator(5))
    torch.manual_seed(1)
    assert torch.equal(augment(images, generator(5)), first)
    assert not torch.equal(augment(images, generator(6)), first)
    assert torch.equal(images, before)
