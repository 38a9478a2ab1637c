"""The page's files, out of the package: read once, with what a browser needs to ask for each only when it has changed."""

import gzip
import hashlib
from importlib.resources import files

from cloud_app.serving.http.body import Answer, Incoming
from cloud_app.serving.infer_request import Refused

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
    "png": b"image/png",
    "ico": b"image/x-icon",
    "woff2": b"font/woff2",
    "json": b"application/json",
    "txt": b"text/plain; charset=utf-8",
}
_LITTLE = 1024  # bytes


class Assets:
    def __init__(self) -> None:
        folder = files("cloud_app.watch").joinpath("page")
        self._files = {each.name: _File(each.name, each.read_bytes()) for each in folder.iterdir() if each.is_file()}

    def answer(self, request: Incoming, name: str) -> Answer:
        """Raises Refused (404)."""
        file = self._files.get(name)
        if file is None:
            raise Refused(404, f"{request}: no such file")
        headers = [(b"etag", file.tag), (b"cache-control", b"no-cache"), (b"vary", b"accept-encoding")]
        if file.tag in request.header(b"if-none-match").encode("latin-1"):
            return Answer(b"", 304, file.type, headers)
        if file.packed is not None and request.reads_gzip:
            return Answer(file.packed, type=file.type, headers=[*headers, (b"content-encoding", b"gzip")])
        return Answer(file.data, type=file.type, headers=headers)


class _File:
    def __init__(self, name: str, data: bytes) -> None:
        self.data, self.type = data, _TYPES.get(name.rpartition(".")[2], b"text/plain; charset=utf-8")
        self.tag = b'"%s"' % hashlib.sha256(data).hexdigest()[:32].encode()
        packed = gzip.compress(data, 9, mtime=0) if len(data) > _LITTLE else data
        self.packed = packed if len(packed) < len(data) else None
