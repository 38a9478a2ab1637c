"""An image file's bytes -> the pixels that a model takes.

Knows Pillow and the limits of what it is given to read. Knows no HTTP and no model.
"""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cloud_app.request import Refused, Signature

MAX_PIXELS = 32 << 20
# Not all that Pillow knows: some of it starts other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pixels(data: bytes, takes: Signature) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], tuple[int, int]]:
    """uint8 (1, C, H, W) as `takes.sample` says, and the image's own (width, height).

    Turned as its EXIF says, converted to the model's channels and resized to its height and width (bilinear).
    Raises Refused: the model takes no images (400), `data` is no image of FORMATS that can be read, is not of 8
    bits a channel (400), or has over MAX_PIXELS pixels (413).
    """
    if takes.datatype != "UINT8" or len(takes.sample) != 3 or takes.sample[0] not in _MODES:
        raise Refused(
            400,
            f"model {takes.name!r} takes {takes.datatype} {list(takes.sample)}; an image file can be sent where it "
            "takes UINT8 and [1, 3 or 4 channels, height, width]. Send its own arrays by the protocol's infer call",
        )
    channels, height, width = takes.sample
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            size = opened.size
            _check(opened)
            image = ImageOps.exif_transpose(opened).convert(_MODES[channels])
    except Refused:
        raise
    except Exception as error:  # a decoder raises whatever the damage leads it to
        raise Refused(
            400, f"this is no {', '.join(FORMATS)} image that can be read: {str(error)[:200]}"
        ) from error
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(image, np.uint8).reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values), size


def _check(image: Image.Image) -> None:
    # Before anything is decoded: a few bytes may announce gigabytes.
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Refused(413, f"the image has {width}x{height} pixels, at most {MAX_PIXELS:,} are read")
    if image.mode.startswith(("I", "F")):
        raise Refused(400, f"the image has mode {image.mode}; save it with 8 bits a channel")
