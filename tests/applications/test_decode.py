"""Pixels of one file, against the levels that were written into it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional
from torchvision.transforms import functional as tv

from adv_train.data.decode import Unreadable, decode
from tests.applications.image_files import Levels, png_16, tiff_16

# Levels on both sides of each border between two bytes, and everything else.
EDGES = np.array([0, 255, 256, 257, 258, 32767, 32768, 65279, 65280, 65534, 65535])


def levels(*shape: int) -> Levels:
    drawn = np.random.default_rng(0).integers(0, 65536, shape)
    drawn.reshape(-1)[: len(EDGES)] = EDGES
    return drawn.astype(np.uint16)


def decoded(tmp_path: Path, content: bytes, suffix: str) -> NDArray[np.uint8]:
    file = tmp_path / f"image.{suffix}"
    file.write_bytes(content)
    return decode(file)


def in_colour(grey_or_colour: Levels) -> NDArray[np.uint8]:
    eight = (grey_or_colour // 257).astype(np.uint8)
    return eight[..., :3] if eight.ndim == 3 and eight.shape[2] > 2 else np.stack([eight] * 3, axis=-1)


# --- 16 bits ---


@pytest.mark.parametrize("channels", [0, 2, 3, 4])
def test_a_png_of_16_bits_keeps_its_levels(tmp_path: Path, channels: int) -> None:
    written = levels(8, 6, channels) if channels else levels(8, 6)
    grey = written[..., 0] if channels == 2 else written
    np.testing.assert_array_equal(decoded(tmp_path, png_16(written), "png"), in_colour(grey))


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [0, 3, 4])
def test_a_tiff_of_16_bits_keeps_its_levels(tmp_path: Path, channels: int, order: str, deflated: bool) -> None:
    written = levels(8, 6, channels) if channels else levels(8, 6)
    content = tiff_16(written, order=order, deflated=deflated)
    np.testing.assert_array_equal(decoded(tmp_path, content, "tiff"), in_colour(written))


def test_a_tiff_whose_white_is_zero_is_inverted(tmp_path: Path) -> None:
    written = levels(8, 6)
    content = tiff_16(written, white_is_zero=True)
    np.testing.assert_array_equal(decoded(tmp_path, content, "tiff"), in_colour(65535 - written))


@pytest.mark.parametrize(("most", "exact"), [(65535, True), (1023, False)])
def test_a_pgm_of_more_than_8_bits_is_scaled_by_its_white(tmp_path: Path, most: int, exact: bool) -> None:
    written = (levels(8, 6) // (65536 // (most + 1))).astype(np.uint16)
    content = b"P5 6 8 %d\n" % most + written.astype(">u2").tobytes()
    expected = np.rint(written.astype(float) / most * 65535).astype(np.uint16)
    found = decoded(tmp_path, content, "pgm").astype(int)
    assert np.abs(found - in_colour(expected)).max() <= (0 if exact else 1)
    assert found.min() == 0 and found.max() == 255


def test_eight_bits_written_into_sixteen_come_back(tmp_path: Path) -> None:
    eight = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert (decoded(tmp_path, png_16(eight * 257), "png")[..., 0] == eight).all()


# --- floating point ---


def float_tiff(tmp_path: Path, pixels: NDArray[np.floating]) -> NDArray[np.uint8]:
    file = tmp_path / "image.tiff"
    Image.fromarray(pixels.astype(np.float32)).save(file)
    return decode(file)


def test_floating_point_pixels_are_fractions_of_white(tmp_path: Path) -> None:
    eight = np.arange(256).reshape(16, 16)
    assert (float_tiff(tmp_path, eight / 255)[..., 0] == eight).all()
    inverted = 1 - (255 - eight.astype(np.float32)) / np.float32(255)  # some lie below their level by the rounding
    assert (float_tiff(tmp_path, inverted)[..., 0] == eight).all()
    sixteen = levels(16, 16)
    np.testing.assert_array_equal(float_tiff(tmp_path, sixteen / 65535), in_colour(sixteen))


@pytest.mark.parametrize("wrong", [1.5, 255.0, -0.25, np.nan, np.inf])
def test_floating_point_pixels_outside_the_unit_range_are_refused(tmp_path: Path, wrong: float) -> None:
    pixels = np.linspace(0, 1, 16).reshape(4, 4)
    pixels[2, 1] = wrong
    with pytest.raises(Unreadable, match=r"must lie in \[0, 1\], but range over"):
        float_tiff(tmp_path, pixels)


# --- what has no known white ---


@pytest.mark.parametrize(
    "content",
    [
        lambda file: Image.fromarray(np.arange(16, dtype=np.int32).reshape(4, 4)).save(file),
        lambda file: file.write_bytes(tiff_16(levels(8, 6, 3), planes=True)),
        lambda file: file.write_bytes(tiff_16(levels(8, 6, 3), planes=True, deflated=True)),
    ],
    ids=["32-bit", "planes", "deflated planes"],
)
def test_pixels_of_unknown_scale_are_refused(tmp_path: Path, content: Callable[[Path], object]) -> None:
    content(tmp_path / "image.tiff")
    with pytest.raises(Unreadable, match="neither 8-bit or 16-bit"):
        decode(tmp_path / "image.tiff")


def test_a_signed_tiff_is_refused(tmp_path: Path) -> None:
    content = bytearray(tiff_16(levels(8, 6)))
    tag = content.index(struct.pack("<HHIH", 278, 3, 1, 8))  # rows in a strip: optional, so its place can be taken
    content[tag : tag + 12] = content[tag + 12 : tag + 24]
    content[tag + 12 : tag + 24] = content[tag + 24 : tag + 36]
    content[tag + 24 : tag + 36] = struct.pack("<HHIHH", 339, 3, 1, 2, 0)
    with pytest.raises(Unreadable, match="neither 8-bit or 16-bit"):
        decoded(tmp_path, bytes(content), "tiff")


# --- orientation ---

# What a viewer does with each value, on an array of rows and columns (EXIF 2.3, tag 0x0112).
TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "16.png"])
@pytest.mark.parametrize("orientation", TURNS)
def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    sixteen = suffix == "16.png"
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if sixteen else pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"image.{suffix}", exif=exif, **options)
    expected = TURNS[orientation](pixels[..., :1].repeat(3, axis=2) if sixteen else pixels)
    np.testing.assert_array_equal(decode(tmp_path / f"image.{suffix}"), expected)


def test_damaged_exif_data_leave_the_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=b"Exif\0\0nothing that is known")
    np.testing.assert_array_equal(decode(tmp_path / "image.png"), pixels)


# --- size ---


def test_a_smaller_size_is_the_antialiased_bilinear_one(tmp_path: Path) -> None:
    """Half the size: each pixel is the mean of 4 x 4 with the weights of a triangle, 1 3 3 1."""
    pixels = np.random.default_rng(2).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    weight = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    colour = torch.from_numpy(pixels).double().permute(2, 0, 1)[:, None, 1:-1, 1:-1]
    expected = functional.conv2d(colour, weight.outer(weight)[None, None], stride=2)[:, 0].permute(1, 2, 0)
    found = decode(tmp_path / "image.png", 10)
    assert found.shape == (10, 10, 3)
    # Without the outermost pixels, which see less than 4 x 4. Pillow rounds after each of its two passes.
    inner = torch.from_numpy(found.copy()).double()[1:-1, 1:-1]
    assert (inner - expected).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(30, 20), (20, 30), (24, 24), (7, 9)])
def test_the_centre_is_kept_as_torchvision_keeps_it(tmp_path: Path, height: int, width: int) -> None:
    """Smooth pictures, since the two differ by parts of a pixel where a side is not divided evenly."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 8, columns * 8, 255 - rows * 4 - columns * 4], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expected = np.asarray(tv.center_crop(tv.resize(Image.fromarray(pixels), 10), [10, 10])).astype(int)
    found = decode(tmp_path / "image.png", 10).astype(int)
    assert found.shape == (10, 10, 3)
    assert np.abs(found - expected).max() <= (0 if height == width else 14)
    assert np.abs((found - expected).mean((0, 1))).max() < 9


def test_the_size_counts_after_the_turn(tmp_path: Path) -> None:
    """A thin image on its side: the centre that is kept is the same as that of the image upright."""
    pixels = np.random.default_rng(3).integers(0, 256, (10, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "turned.png", 10), pixels[:, 15:25])
    np.testing.assert_array_equal(decode(tmp_path / "plain.png", 10), pixels[:, 15:25])


# --- no image ---


def test_a_huge_image_is_told_its_limit(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    with pytest.raises(Unreadable, match="more than 178,956,970 pixels"):
        decode(tmp_path / "huge.png")


def test_a_truncated_png_of_16_bits_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        decoded(tmp_path, png_16(levels(40, 40))[:-60], "png")
