"""API keys, the origins of web pages that may ask (CORS), and the access log.

Keys are compared in constant time and never logged; nor is what a request holds.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from emo.errors import ServeError

VARIABLE = "EMO_API_KEY"
_SHORTEST = 16
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_READABLE = b"inference-header-content-length, retry-after"
_SENT = b"authorization, content-encoding, content-type, inference-header-content-length, x-api-key"
_LARGEST_FILE = 64 << 10


def keys(file: Path | None, environ: Mapping[str, str] = os.environ) -> list[bytes]:
    """One key a line of `file` (empty lines and # do not count), then that of EMO_API_KEY; none where neither is given.

    Raises ServeError: no such file, none in it, or one shorter than 16 characters."""
    known = []
    if file is not None:
        try:
            with file.open("rb") as opened:
                text = opened.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise ServeError(f"{file}: cannot read the API keys: {error.strerror}") from error
        if len(text) > _LARGEST_FILE:
            raise ServeError(f"{file}: is over {_LARGEST_FILE:,} bytes; is it the file of API keys?")
        lines = [line.strip() for line in text.splitlines()]
        known = [line for line in lines if line and not line.startswith(b"#")]
        if not known:
            raise ServeError(f"{file}: holds no API key; write one a line")
    if environ.get(VARIABLE):
        known.append(environ[VARIABLE].encode())
    if any(len(key) < _SHORTEST for key in known):
        raise ServeError(f"an API key needs {_SHORTEST} characters or more: `openssl rand -hex 16` makes one")
    return known


class Keys:
    """The API keys, one of which has to come with a request; false where there are none and everybody may ask."""

    def __init__(self, known: list[bytes]) -> None:
        self._digests = [hashlib.sha256(key).digest() for key in known]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def fit(self, headers: Mapping[bytes, bytes]) -> bool:
        """Does `Authorization: Bearer KEY` or `X-API-Key: KEY` (names in lower case) hold one of the keys?"""
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        return self.ticket(bearer if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")) is not None

    def ticket(self, key: bytes) -> bytes | None:
        """What stands for `key` in a browser's cookie, which tells nobody the key; None: it is none of them."""
        digest = hashlib.sha256(key.strip()).digest()
        return self._ticket(digest) if _among(digest, self._digests) else None

    def admits(self, ticket: bytes) -> bool:
        return _among(ticket, [self._ticket(digest) for digest in self._digests])

    @staticmethod
    def _ticket(digest: bytes) -> bytes:
        return hmac.new(digest, b"emo: a browser's ticket", hashlib.sha256).hexdigest().encode()


def _among(this: bytes, known: Sequence[bytes]) -> bool:
    # All of them, whatever the first comparison says, so that the time tells nothing.
    return sum([hmac.compare_digest(this, each) for each in known]) > 0


class Origins:
    """The web pages whose scripts may ask: `known` origins, as https://HOST[:PORT], or * for all. Raises ServeError.
    Source: fetch.spec.whatwg.org, CORS protocol."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        for each in known:
            if each != "*" and not _ORIGIN.fullmatch(each):
                raise ServeError(f"{each!r:.80} is no origin of web pages: https://HOST or https://HOST:PORT, or *")
        self._known = frozenset(each.encode() for each in known)

    def __bool__(self) -> bool:
        return bool(self._known)

    def headers(self, asked: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The headers of an answer to a request with the headers `asked`."""
        vary = [] if b"*" in self._known else [(b"vary", b"origin")]
        origin = asked.get(b"origin")
        if origin is None or not self._known & {origin, b"*"}:
            return vary
        shown = b"*" if b"*" in self._known else origin
        return [
            *vary,
            (b"access-control-allow-origin", shown),
            (b"access-control-expose-headers", _READABLE),
        ]

    def preflight(self, asked: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The headers of an answer to a browser's preflight request; empty where it is none, or the page may not ask."""
        allowed = self.headers(asked)
        if b"access-control-request-method" not in asked or len(allowed) < 2:
            return []
        return [
            *allowed,
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            (b"access-control-allow-headers", _SENT),
            (b"access-control-max-age", b"600"),
        ]


class AccessLog:
    """One JSON object a line, to a file (opened again when it was rotated away) or, for `-`, to stdout."""

    def __init__(self, where: str) -> None:
        try:
            handler = logging.StreamHandler(sys.stdout) if where == "-" else WatchedFileHandler(where, encoding="utf-8")
        except OSError as error:
            raise ServeError(f"{where}: cannot write the access log: {error.strerror}") from error
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._handler = handler

    def write(self, **fields: object) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **fields})
        self._handler.handle(logging.LogRecord("emo.access", logging.INFO, "", 0, line, None, None))
