"""Serves a model repository over HTTP.

Knows the web server, addresses, TLS and signals; what is answered is `cloud_app.routes`'. The only file that imports
a web framework.
"""

import signal
import socket
import ssl
import sys
from asyncio import AbstractEventLoop, BaseTransport, TimerHandle, Transport
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cloud_app.access import AccessLog, Keys, keys
from cloud_app.batching import Limits
from cloud_app.loading import Models
from cloud_app.repository import Repository
from cloud_app.routes import Endpoint
from emo.errors import ServeError

DRAIN_SECONDS = 10
IDLE_SECONDS = 65  # over the minute after which load balancers drop a connection: they close it, not we
HEAD_SECONDS = 20.0


@dataclass(frozen=True)
class Options:
    """`threads`: onnxruntime's (the container's processors when None). `api_key_file`: as `access.keys` says.
    `tls`: files of the certificate chain and its key, PEM. `access_log`: a file, or - for stdout. `poll_s`: how often
    the repository is looked at for another version; 0: never."""

    threads: int | None = None
    limits: Limits = field(default_factory=Limits)
    api_key_file: Path | None = None
    tls: tuple[Path, Path] | None = None
    access_log: str | None = None
    poll_s: float = 2.0


class _Joined:
    """A transport that sends what is written in one turn of the loop together: uvicorn writes a head, then a body,
    and each would be a call of the system and a packet of its own."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # one of two classes, by what is installed
    """Ends a connection whose request line and headers are not complete in HEAD_SECONDS; uvicorn waits for ever."""

    _head: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(_Joined(cast("Transport", transport), self.loop))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_is_here()
        elif self._head is None and not self.transport.is_closing():
            self._await_head()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _head_is_here(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def app(models: Path, options: Options | None = None) -> tuple[Endpoint, Models]:
    """The endpoint over the current version of every model in `models`, as an ASGI application, and what it has
    loaded. Raises ServeError: no model, one that cannot be served, or unusable keys."""
    options = options or Options()
    known = Keys(keys(options.api_key_file))
    access = AccessLog(options.access_log) if options.access_log is not None else None
    loaded = Models(Repository(models), options.limits, options.threads)
    loaded.start()
    return Endpoint(loaded, known, access, options.poll_s), loaded


def serve(models: Path, host: str = "127.0.0.1", port: int = 8000, options: Options | None = None) -> None:
    """Serve `models` until SIGTERM or Ctrl-C; requests under way are answered first. For a process's main thread.

    Port 0 takes a free one. Prints `serving NAME version V at http://HOST:PORT` (https with TLS) once it can be asked.
    Raises ServeError as `app` does, and when the address cannot be had or the files for TLS do not fit.
    """
    options = options or Options()
    certificate, key = options.tls or (None, None)
    _check_tls(options.tls)
    api, loaded = app(models, options)
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except (OSError, OverflowError) as error:
        raise ServeError(
            f"cannot listen at {host}, port {port}: {error}; is another endpoint there?"
        ) from error
    server = uvicorn.Server(
        uvicorn.Config(
            api,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,  # ours (emo.logs)
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )

    def stop(*_: object) -> None:
        server.should_exit = True

    # Also after uvicorn's own handlers: it raises the signal again when it has drained, and we exit with 0.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    there = ", ".join(
        f"{slot.served.signature.name} version {slot.served.signature.version}" for slot in loaded.loaded()
    )
    scheme, shown = "https" if options.tls else "http", f"[{host}]" if ":" in host else host
    sys.stdout.write(f"serving {there} at {scheme}://{shown}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run(sockets=[listener])


def _check_tls(files: tuple[Path, Path] | None) -> None:
    if files is None:
        return
    try:
        # An empty password: without one it would ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files, password="")
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"TLS: {files[0]} and {files[1]} are no PEM certificate chain and its key without a password: {error}"
        ) from error
