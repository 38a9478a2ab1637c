"""Reads a picture: the same pixels for training, for the endpoint and so for `emo predict`.

They are what a viewer shows: turned as EXIF says, what is transparent on white, the first frame of several, the upper
eight bits of sixteen. Imports no torch: the serving image reads with it too.
"""

import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from emo.errors import DataError, ImageTooLarge

# Decoder -> names of its files. Not all that Pillow knows: some of it starts other programs.
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
MAX_PIXELS = 32 << 20

# Of damage that does not keep it from reading, in words that the sender of an image can choose.
warnings.filterwarnings("ignore", module=r"PIL\.")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = {"1", "L", "LA", "La"}


class Picture(NamedTuple):
    """pixels: uint8 (C, H, W). size: (width, height) of the picture as it is shown, before it was resized."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    size: tuple[int, int]


def read(source: Path | BinaryIO, channels: int | None = None, size: tuple[int, int] | None = None) -> Picture:
    """`channels`: 1, 3 or 4 (with alpha); None: 1 for a grey picture, 3 for any other. `size`: (width, height) to resize
    to, bilinear.

    Raises ImageTooLarge over MAX_PIXELS, before anything is decoded; DataError: none of FORMATS, damaged, or of more than
    16 bits. The text has no file name in it.
    """
    try:
        with Image.open(source, formats=tuple(FORMATS)) as opened:
            _judge(*opened.size)
            ImageOps.exif_transpose(opened, in_place=True)  # decodes it
            image, grey = _eight_bits(opened), opened.mode in _GREY or opened.mode.startswith("I;16")
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{error}; at most {MAX_PIXELS:,} are read: make it smaller") from error
    except Exception as error:  # a decoder raises whatever the damage leads it to
        kinds = ", ".join(FORMATS)
        # Pillow names the source, which is an object in memory for the endpoint.
        why = "" if isinstance(error, UnidentifiedImageError) else f": {str(error)[:200]}"
        raise DataError(f"no {kinds} image that can be read{why}") from error
    shown = image.size
    image = _as(image, _MODES[channels or (1 if grey else 3)])
    if size is not None and size != shown:
        image = image.resize(size, Image.Resampling.BILINEAR)
    rows = np.asarray(image, np.uint8).reshape(image.height, image.width, -1)
    return Picture(np.ascontiguousarray(rows.transpose(2, 0, 1)), shown)


def _judge(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageTooLarge(f"{width}x{height} pixels; at most {MAX_PIXELS:,} are read: make it smaller")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts all above 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise DataError(f"an image of mode {image.mode}, whose range is not known; save it with 8 or 16 bits a channel")
    return image


def _as(image: Image.Image, mode: str) -> Image.Image:
    if mode != "RGBA" and image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image.convert("RGBA"))
    if mode == "L" and image.mode != "L":
        image = image.convert("RGB")  # some modes become grey by this way only
    return image if image.mode == mode else image.convert(mode)
