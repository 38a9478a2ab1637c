"""Serves a model repository over HTTP until a signal comes."""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cloud_app.serving.auth import AccessLog, Keys, Origins, keys
from cloud_app.serving.batching import Limits
from cloud_app.serving.fair_share import FairShare, Shares
from cloud_app.serving.http.app import Endpoint
from cloud_app.serving.http.connections import most_connections
from cloud_app.serving.http.listening import address, check_tls, listen, web_server
from cloud_app.serving.registry import Models
from cloud_app.serving.repository import Repository
from emo.errors import ServeError

DRAIN_SECONDS = 10
MAX_HELD = 256 << 20


@dataclass(frozen=True)
class Options:
    """`threads`: onnxruntime's (the container's processors when None). `api_key_file`: as `auth.keys` says.
    `tls`: files of the certificate chain and its key, PEM. `access_log`: a file, or - for stdout. `poll_s`: how often
    the repository is looked at for another version; 0: never. `origins`: as `auth.Origins`."""

    threads: int | None = None
    limits: Limits = field(default_factory=Limits)
    api_key_file: Path | None = None
    tls: tuple[Path, Path] | None = None
    access_log: str | None = None
    poll_s: float = 2.0
    origins: tuple[str, ...] = ()


def app(models: Path, options: Options | None = None) -> tuple[Endpoint, Models]:
    """The endpoint over the current version of every model in `models`, as an ASGI application, and what it has
    loaded. Raises ServeError: no model, one that cannot be served, or unusable keys."""
    options = options or Options()
    known, origins = Keys(keys(options.api_key_file)), Origins(options.origins)
    access = AccessLog(options.access_log) if options.access_log is not None else None
    loaded = Models(Repository(models), options.limits, options.threads)
    loaded.start()
    shares = Shares(FairShare(most_connections(), oldest=True), FairShare(MAX_HELD))
    return Endpoint(loaded, known, shares, access, options.poll_s, origins), loaded


def serve(models: Path, host: str = "127.0.0.1", port: int = 8000, options: Options | None = None) -> None:
    """Serve `models` until SIGTERM or Ctrl-C; requests under way are answered first. For a process's main thread.

    Port 0 takes a free one. Prints `serving NAME version V at http://HOST:PORT` (https with TLS) once it can be asked.
    Raises ServeError as `app` does, and when the address cannot be had or the files for TLS do not fit.
    """
    options = options or Options()
    check_tls(options.tls)
    api, loaded = app(models, options)
    try:
        listener = listen(host, port)
    except ServeError as error:
        raise ServeError(f"{error}; is another endpoint there?") from error
    server = web_server(api, listener, api.shares, options.tls, DRAIN_SECONDS)

    def stop(*_: object) -> None:
        server.should_exit = True

    # Also after uvicorn's own handlers: it raises the signal again when it has drained, and we exit with 0.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    versions = ", ".join(
        f"{slot.served.signature.name} version {slot.served.signature.version}" for slot in loaded.loaded()
    )
    sys.stdout.write(f"serving {versions} at {address(host, listener, options.tls)}\n")
    sys.stdout.flush()
    server.run()
