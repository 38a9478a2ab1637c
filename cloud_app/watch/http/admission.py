"""Who may ask: by the name that a browser asked for, by the origin of the page that asks, by key.

A page of strangers whose name is made to point at 127.0.0.1 (DNS rebinding) asks by that name: where we listen on the loopback
only, no other name than the loopback's is answered.
"""

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from cloud_app.serving.auth import Keys
from cloud_app.serving.http.body import Answer
from cloud_app.serving.infer_request import Refused
from emo.places import is_loopback

_QUERY = 4096  # bytes
Headers = Mapping[bytes, bytes]


def query(text: bytes) -> dict[str, str]:
    """Of a URL, by name; of those given twice the last. Raises Refused (414, 400)."""
    if len(text) > _QUERY:
        raise Refused(414, f"the query of the URL is over {_QUERY:,} bytes")
    try:
        return dict(parse_qsl(text.decode("ascii"), keep_blank_values=True, max_num_fields=32))
    except ValueError as error:
        raise Refused(400, "the query of the URL cannot be read") from error


class Admission:
    """`host`, `port`: where the server listens; `secure`: by TLS."""

    def __init__(self, keys: Keys, host: str, port: int, secure: bool) -> None:
        self._keys, self._only_loopback = keys, is_loopback(host)
        self._cookie, self._secure = f"emo-watch-{port}", secure  # cookies know no ports

    def check_names(self, method: str, headers: Headers) -> None:
        """Raises Refused (403)."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self._only_loopback and not is_loopback(_without_port(host)):
            raise Refused(403, "this page is for this machine only: ask for it at localhost or 127.0.0.1")
        origin = headers.get(b"origin")
        if origin is not None and method not in {"GET", "HEAD"} and urlsplit(origin.decode("latin-1")).netloc != host:
            raise Refused(403, "another page's script may not ask here")

    def check_key(self, headers: Headers) -> None:
        """Raises Refused (401)."""
        if self._keys and not self._keys.fit(headers) and not self._keys.admits(self._ticket(headers)):
            text = "a key is needed: `Authorization: Bearer KEY`, `X-API-Key: KEY`, or open /?key=KEY once in a browser"
            raise Refused(401, text)

    def enter(self, path: str, asked: dict[str, str]) -> Answer | None:
        """The answer to a URL with ?key=: a cookie, and the way to the same place without it. None: there is no key in it, or
        nobody needs one. Raises Refused (401)."""
        key = asked.pop("key", None)
        if key is None:
            return None
        rest = f"?{urlencode(asked)}" if asked else ""
        # A path that begins with two slashes would be another host.
        headers = [(b"location", ("/" + path.lstrip("/") + rest).encode("ascii", "ignore"))]
        if self._keys:
            ticket = self._keys.ticket(key.encode())
            if ticket is None:
                raise Refused(401, "this is none of the keys")
            more = "; Secure" if self._secure else ""
            cookie = f"{self._cookie}={ticket.decode()}; Path=/; HttpOnly; SameSite=Strict{more}"
            headers.append((b"set-cookie", cookie.encode()))
        return Answer(b"", 303, b"text/plain", headers)

    def _ticket(self, headers: Headers) -> bytes:
        try:
            cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return b""
        found = cookies.get(self._cookie)
        return found.value.encode("latin-1", "replace") if found is not None else b""


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host
