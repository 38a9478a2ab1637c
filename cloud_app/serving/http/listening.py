"""A web server's address and TLS, checked before anything is started."""

import socket
import ssl
from pathlib import Path
from typing import Any

import uvicorn

from cloud_app.serving.fair_share import Shares
from cloud_app.serving.http.connections import Server
from emo.errors import ServeError

IDLE_SECONDS = 65  # over the minute after which load balancers drop a connection: they close it, not we

Tls = tuple[Path, Path] | None  # the certificate chain and its key, PEM


def listen(host: str, port: int) -> socket.socket:
    """Port 0: any free one. Raises ServeError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ServeError(f"cannot listen at {host}, port {port}: {error}") from error


def address(host: str, listener: socket.socket, tls: Tls) -> str:
    """Of what listens, as a URL without a slash at its end."""
    scheme, shown = "https" if tls else "http", f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def web_server(app: Any, listener: socket.socket, shares: Shares, tls: Tls, drain_s: int) -> Server:
    """`app`: an ASGI application; `drain_s`: how long requests that are under way may take at the end."""
    certificate, key = tls or (None, None)
    return Server(
        uvicorn.Config(
            app,
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
            timeout_graceful_shutdown=drain_s,
        ),
        listener,
        shares,
    )


def check_tls(files: Tls) -> None:
    """Raises ServeError."""
    if files is None:
        return
    try:
        # An empty password: without one it would ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files, password="")
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"TLS: {files[0]} and {files[1]} are no PEM certificate chain and its key without a password: {error}"
        ) from error
