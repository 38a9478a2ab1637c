"""Decodes an image file to the pixels that a model takes, as training reads them (emo/data/image.py)."""

import io
from typing import Any

import numpy as np

from cloud_app.serving.infer_request import Refused, Signature
from emo.data import image
from emo.errors import DataError, ImageTooLarge

# A progressive JPEG goes over all pixels once a scan, for which 51 bytes are enough. Encoders write 10, two pictures 20.
MAX_SCANS = 40
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"


def pixels(data: bytes, takes: Signature) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], tuple[int, int]]:
    """uint8 (1, C, H, W) as `takes.sample` says, and the image's own (width, height).

    Converted to the model's channels and resized to its height and width (bilinear). Raises Refused: the model takes no
    images, or `data` is none that can be read (400), or has too many pixels or scans (413).
    """
    if takes.datatype != "UINT8" or len(takes.sample) != 3 or takes.sample[0] not in {1, 3, 4}:
        raise Refused(
            400,
            f"model {takes.name!r} takes {takes.datatype} {list(takes.sample)}; an image file can be sent where it "
            "takes UINT8 and [1, 3 or 4 channels, height, width]. Send its own arrays by the protocol's infer call",
        )
    channels, height, width = takes.sample
    if data.startswith(_JPEG) and data.count(_SCAN) > MAX_SCANS:  # nowhere else may these bytes stand in its values
        raise Refused(413, f"this JPEG has over {MAX_SCANS} scans; save it again, as any program writes it")
    try:
        picture = image.read(io.BytesIO(data), channels, (width, height))
    except ImageTooLarge as error:
        raise Refused(413, f"this has {error}") from error
    except DataError as error:
        raise Refused(400, f"this is {error}") from error
    return picture.pixels[None], picture.size
