"""Decode an image file into RGB with 8 bits a channel, in the orientation that an image viewer shows."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

_ORIENTATION = 0x112  # EXIF
_BITS, _PHOTOMETRIC, _PLANAR = 258, 262, 284  # TIFF
# Pillow keeps only the first of the two bytes of a 16-bit colour; read in the other byte order, it keeps the second.
_NATIVE, _SWAPPED = ("L", "B") if sys.byteorder == "little" else ("B", "L")
_OTHER_BYTE = {"B": "L", "L": "B", "N": _SWAPPED}


_COLOUR_16 = {f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in "LBN"}


class Unreadable(Exception):
    """The file is not an image, or its pixel format is not supported; the message says why."""


def decode(file: Path, size: int | None = None, *, crop: bool = True) -> NDArray[np.uint8]:
    """Read one image.

    A 16-bit value becomes ``value // 257``, so that white, 65535, becomes 255. A floating-point value, which must lie
    in [0, 1], is first rounded to 16 bits. The EXIF orientation is applied, and transparency is dropped.

    Args:
        file: File in a format that Pillow reads.
        size: Resize the shorter side to so many pixels (bilinear, antialiased) and crop the centre.
        crop: Whether to crop; if False, both sides are resized to `size`, which distorts an image that is not square.

    Returns:
        Shape ``(height, width, 3)``.

    Raises:
        Unreadable: If the file is not an image, is too large, or has pixels that are neither 8-bit, 16-bit nor
            floating point in [0, 1].
    """
    try:
        content = file.read_bytes()
        with Image.open(BytesIO(content)) as opened:
            pixels = _eight_bits(opened, content).convert("RGB")
            # Not earlier: Pillow rotates a TIFF while it loads it, and the EXIF data of a PNG may follow its pixels.
            pixels = _turned(pixels, _orientation(opened))
        if size is not None:
            square, method = (size, size), Image.Resampling.BILINEAR
            pixels = ImageOps.fit(pixels, square, method) if crop else pixels.resize(square, method)
        return np.asarray(pixels)
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise Unreadable(f"it has more than {most:,} pixels, the most that Pillow reads; scale it down first") from None
    except UnidentifiedImageError:
        raise Unreadable("Pillow does not recognise its format") from None
    # The exceptions that Pillow's decoders raise for a damaged file.
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, MemoryError) as error:
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def _eight_bits(image: ImageFile, content: bytes) -> Image.Image:
    raw = _raw_mode(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and (image.format == "PPM" or raw == "I;16B")):
        levels = np.asarray(image).astype(np.uint16)
        if raw == "I;12":
            levels = levels * 16 + levels // 256  # 4095 is white
        return _from_levels(65535 - levels if _white_is_zero(image) else levels)
    if image.mode == "F":
        fractions = np.asarray(image)
        if not ((fractions >= 0) & (fractions <= 1)).all():
            raise Unreadable(
                "its floating-point pixels must lie in [0, 1], but range over "
                f"[{fractions.min():g}, {fractions.max():g}]; scale them first"
            )
        # First to 16 bits: float32 arithmetic in another program may have left a value just below a multiple of 1/255.
        levels = np.rint(fractions.astype(np.float64) * 65535).astype(np.uint16)
        return _from_levels(65535 - levels if _white_is_zero(image) else levels)
    if raw in _COLOUR_16 and not _planes_of_16_bits(image):
        high = np.asarray(image).astype(np.uint16)
        levels = high * 256 + _read_as(content, raw[:-1] + _OTHER_BYTE[raw[-1]])
        return _from_levels(levels[..., :3])
    if raw == "LA;16B":
        both_bytes = _read_as(content, "RGBA").astype(np.uint16)  # two bytes of grey, then two of transparency
        return _from_levels(both_bytes[..., 0] * 256 + both_bytes[..., 1])
    if image.mode == "I" or ";16" in raw or _planes_of_16_bits(image):
        raise Unreadable(
            f"its pixels ({raw or image.mode}) are neither 8-bit or 16-bit grey or colour nor "
            "floating point in [0, 1]; convert it first"
        )
    image.load()
    return image


def _raw_mode(image: ImageFile) -> str:
    """Return Pillow's name for the layout of the pixels in the file; empty if its decoder takes none."""
    if not image.tile:
        return ""
    args: Any = image.tile[0][3]
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _read_as(content: bytes, raw: str) -> NDArray[np.uint8]:
    """Read an image as if its pixels had another layout."""
    with Image.open(BytesIO(content)) as image:
        image.tile = [_described(tile, raw) for tile in image.tile]
        return np.asarray(image)


def _described(tile: Any, raw: str) -> Any:
    args = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
    make = getattr(tile, "_make", tuple)  # a plain tuple before Pillow 11
    return make((*tile[:3], args))


def _from_levels(levels: NDArray[np.uint16]) -> Image.Image:
    return Image.fromarray((levels // 257).astype(np.uint8))


def _white_is_zero(image: Image.Image) -> bool:
    # Pillow inverts such a TIFF only if it has 8 bits or fewer.
    return isinstance(image, TiffImageFile) and bool(image.tag_v2.get(_PHOTOMETRIC) == 0)


def _planes_of_16_bits(image: Image.Image) -> bool:
    # Pillow misreads such planes: it treats each byte as a pixel.
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(_PLANAR) != 2:
        return False
    return bool(max(image.tag_v2.get(_BITS, (1,))) > 8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Damaged EXIF data may raise anything, and the pixels are intact.
        return 1


def _turned(pixels: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return pixels
    plain = Image.fromarray(np.asarray(pixels))  # without the EXIF data of the file
    plain.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(plain)
