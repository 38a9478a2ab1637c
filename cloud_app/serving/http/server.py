"""Serves a model repository over HTTP: the web server with its addresses, TLS and signals."""

import signal
import socket
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from cloud_app.serving.auth import AccessLog, Keys, Origins, keys
from cloud_app.serving.batching import Limits
from cloud_app.serving.fair_share import FairShare, Shares
from cloud_app.serving.http.app import Endpoint
from cloud_app.serving.http.connections import Server, most_connections
from cloud_app.serving.registry import Models
from cloud_app.serving.repository import Repository
from emo.errors import ServeError

DRAIN_SECONDS = 10
MAX_HELD = 256 << 20
IDLE_SECONDS = 65  # over the minute after which load balancers drop a connection: they close it, not we


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
    certificate, key = options.tls or (None, None)
    _check_tls(options.tls)
    api, loaded = app(models, options)
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
        )
    except (OSError, OverflowError) as error:
        raise ServeError(f"cannot listen at {host}, port {port}: {error}; is another endpoint there?") from error
    server = Server(
        uvicorn.Config(
            api,
            ws="none",
            lifespan="on",
            log_config=None,  # ours (emo.logs)
            log_level="error",  # what is below strangers can cause as often as they like
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        ),
        listener,
        api.shares,
    )

    def stop(*_: object) -> None:
        server.should_exit = True

    # Also after uvicorn's own handlers: it raises the signal again when it has drained, and we exit with 0.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    versions = ", ".join(
        f"{slot.served.signature.name} version {slot.served.signature.version}" for slot in loaded.loaded()
    )
    scheme, shown = "https" if options.tls else "http", f"[{host}]" if ":" in host else host
    sys.stdout.write(f"serving {versions} at {scheme}://{shown}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run()


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
