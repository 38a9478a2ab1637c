"""Asks an endpoint for the label of an image file.

Knows Pillow and the Open Inference Protocol's JSON; knows neither onnxruntime nor torch, so it runs anywhere.
The endpoint says what the image has to look like. It is asked directly: proxies in the environment do not count.
"""

import http.client
import json
import logging
import math
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image

from emo.errors import ServeError

MAX_PIXELS = 64 << 20
MAX_ANSWER = 16 << 20
TIMEOUT_S = 30.0
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

log = logging.getLogger("emo")


def predict(url: str, name: str, image: Path) -> list[tuple[str, float]]:
    """(label, probability) of every class, the most probable first.

    The image is converted to the model's channels and, with a note in the log, resized to its height and width;
    its pixels are sent as uint8. Raises ServeError: no endpoint at `url`, no model `name`, no usable image, or a
    model that does not take images.
    """
    metadata = _ask(url, "GET", f"/v2/models/{quote(name, safe='')}")
    try:
        (tensor,) = metadata["inputs"]
        sample = tuple(int(size) for size in tensor["shape"][1:])
        key, datatype, labels = tensor["name"], tensor["datatype"], list(metadata["parameters"]["labels"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServeError(f"{url}: the metadata of {name!r} is not an EMO endpoint's") from error
    if datatype != "UINT8" or len(sample) != 3 or sample[0] not in _MODES:
        raise ServeError(
            f"model {name!r} takes {datatype} {list(sample)}; an image file can be sent where it takes UINT8 and "
            "[1, 3 or 4 channels, height, width]. Send its own arrays by the protocol's infer call"
        )
    data = pixels(image, sample)
    request = {
        "inputs": [{"name": key, "shape": [1, *sample], "datatype": datatype, "data": data.ravel().tolist()}],
        "outputs": [{"name": "probabilities"}],
    }
    answer = _ask(url, "POST", f"/v2/models/{quote(name, safe='')}/infer", json.dumps(request))
    try:
        values = [float(value) for value in answer["outputs"][0]["data"]]
        pairs = list(zip(labels or map(str, range(len(values))), values, strict=True))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServeError(f"{url}: the answer of {name!r} does not hold one probability a label") from error
    return sorted(pairs, key=lambda pair: -pair[1])


def pixels(image: Path, sample: tuple[int, ...]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The file as uint8 (C, H, W) = `sample`. Raises ServeError when it is no image, too large or not of 8 bits."""
    channels, height, width = sample
    try:
        with Image.open(image) as opened:
            if math.prod(opened.size) > MAX_PIXELS:
                raise ServeError(f"{image}: {opened.width}x{opened.height} is over {MAX_PIXELS:,} pixels")
            if opened.mode.startswith(("I", "F")):
                raise ServeError(f"{image}: has mode {opened.mode}; save it with 8 bits a channel")
            converted = opened.convert(_MODES[channels])
    except FileNotFoundError as error:
        raise ServeError(f"{image}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ServeError(f"{image}: is no image that can be read: {error}") from error
    if converted.size != (width, height):
        log.warning("%s: resized from %dx%d to the model's %dx%d", image, *converted.size, width, height)
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(converted, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def _ask(url: str, method: str, path: str, body: str | None = None) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    except (KeyError, ValueError) as error:
        raise ServeError(f"{url!r} is not an endpoint's address, such as http://127.0.0.1:8000") from error
    try:
        connection.request(method, parts.path.rstrip("/") + path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read(MAX_ANSWER + 1)
    except (OSError, http.client.HTTPException) as error:
        raise ServeError(
            f"no endpoint answers at {url}: {error}. `emo serve --models DIR` starts one"
        ) from error
    finally:
        connection.close()
    try:
        answer = json.loads(text) if len(text) <= MAX_ANSWER else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ServeError(f"{url}: answered {response.status}, and not in JSON; is it another server?")
    if response.status != http.HTTPStatus.OK:
        raise ServeError(f"{url}: {str(answer.get('error', response.reason))[:500]}")
    return answer
