"""Asks an endpoint: for the label of an image file, or what it says of itself. Needs the standard library only, and takes no
notice of proxies in the environment."""

import http.client
import json
import logging
import math
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cloud_app.serving import auth
from emo.errors import ServeError

MAX_IMAGE = 16 << 20
MAX_ANSWER = 16 << 20
TIMEOUT_S = 30.0
_KINDS: dict[str, Callable[..., http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}

log = logging.getLogger("emo")


Labels = list[tuple[str, float]]  # with their probabilities, of every class, the most probable first


@dataclass(frozen=True)
class Prediction:
    """What version `version` of the model answers; `members`: what each of them answers for itself, by its name, as far as the
    version tells. `had`, `has`: width and height of the image, and of what the model was given."""

    version: str
    labels: Labels
    members: Sequence[tuple[str, Labels]]
    had: tuple[int, ...]
    has: tuple[int, ...]


def predict(
    url: str, name: str, image: Path, key: str | None = None, ca: Path | None = None, *, members: bool = False
) -> Prediction:
    """As `answers`, of an image file; that it was resized is noted in the log. Raises ServeError, also where the file cannot be
    read."""
    try:
        with image.open("rb") as file:
            data = file.read(MAX_IMAGE + 1)
    except FileNotFoundError as error:
        raise ServeError(f"{image}: no such file") from error
    except OSError as error:
        raise ServeError(f"{image}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_IMAGE:
        raise ServeError(f"{image}: is over {MAX_IMAGE:,} bytes; an endpoint takes no larger image")
    found = answers(url, name, data, str(image), key, ca, members=members)
    if found.had != found.has:
        had, has = ("x".join(map(str, size)) for size in (found.had, found.has))
        log.warning("%s: resized from %s to the model's %s", image, had, has)
    return found


def answers(
    url: str,
    name: str,
    image: bytes,
    what: str,
    key: str | None = None,
    ca: Path | None = None,
    *,
    members: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Prediction:
    """What the model `name` says of an image file's content; with `members`, what each of them says, too. The endpoint converts
    the image to the model's channels and resizes it. `what`: the image, in words; the rest as `ask` has it.

    Raises ServeError: as `ask`; no model `name`, no usable image, or a model that does not take images.
    """
    path = f"/v2/models/{quote(name, safe='')}/predict{'?members=1' * members}"
    answer = ask(url, path, image, key, ca, what, timeout_s)
    try:
        labels = _labels(answer)
        own = [(str(each["name"]), _labels(each)) for each in answer.get("members", ())]
        sizes = tuple(map(int, answer["image"])), tuple(map(int, answer["input"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ServeError(f"{url}: the answer of {name!r} does not hold one probability a label") from error
    return Prediction(str(answer.get("model_version", "")), labels, own, *sizes)


def _labels(answer: Mapping[str, Any]) -> Labels:
    labels = [(str(each["label"]), float(each["probability"])) for each in answer["probabilities"]]
    if not labels or not all(math.isfinite(probability) for _, probability in labels):
        raise ValueError
    return labels


def first_key(file: Path | None) -> str | None:
    """The first of `auth.keys`; None where there is none."""
    known = auth.keys(file)
    return known[0].decode("latin-1") if known else None


def _believing(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ServeError(f"{ca}: no PEM certificates can be read: {error.strerror or error}") from error


def ask(
    url: str,
    path: str,
    body: bytes | None,
    key: str | None = None,
    ca: Path | None = None,
    what: str = "",
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """The object in the answer to a POST of `body`, or to a GET without one.

    `key`: an API key, where the endpoint asks for one. `ca`: PEM certificates to believe in place of the system's. `timeout_s`:
    how long the endpoint may say nothing. Raises ServeError: no endpoint at `url`, or one that is not believed; one that
    refuses, for `what`, or that answers no object.
    """
    try:
        parts = urlsplit(url)
        options = {"context": _believing(ca)} if parts.scheme == "https" else {}
        connection = _KINDS[parts.scheme](parts.hostname or "", parts.port, timeout=timeout_s, **options)
    except (KeyError, ValueError) as error:
        raise ServeError(f"{url!r} is not an endpoint's address, such as http://127.0.0.1:8000") from error
    headers = {"Content-Type": "application/octet-stream"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request("GET" if body is None else "POST", parts.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
        text = response.read(MAX_ANSWER + 1)
    except ssl.SSLCertVerificationError as error:
        raise ServeError(
            f"{url}: its certificate is not believed: {error.verify_message}. --ca FILE names the CA that signed it"
        ) from error
    except ssl.SSLError as error:
        raise ServeError(f"{url}: no TLS connection: {error.reason}. Does it speak https?") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServeError(f"no endpoint answers at {url}: {error}. `emo serve --models DIR` starts one") from error
    finally:
        connection.close()
    try:
        answer = json.loads(text) if len(text) <= MAX_ANSWER else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ServeError(f"{url}: answered {response.status}, and not in JSON; is it another server?")
    if response.status != http.HTTPStatus.OK:
        raise ServeError(f"{what + ': ' * bool(what)}{url}: {str(answer.get('error', response.reason))[:500]}")
    return answer
