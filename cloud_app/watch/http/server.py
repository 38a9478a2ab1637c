"""Serves the page on a thread of its own, until it is stopped."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cloud_app.serving.auth import Keys, keys
from cloud_app.serving.fair_share import FairShare, Shares
from cloud_app.serving.http.connections import most_connections
from cloud_app.serving.http.listening import Tls, address, check_tls, listen, web_server
from cloud_app.watch.http.admission import Admission
from cloud_app.watch.http.app import Handler, WatchApp
from cloud_app.watch.watcher import Watcher
from emo.config import WatchConfig
from emo.errors import ServeError

_HELD = 64 << 20  # bytes of requests, and of answers that nobody takes
_START_S = 10.0


class Door:
    """Where the page is to be had: taken before anything is started, so that what is wrong with it is said at once.

    Raises ServeError: the address cannot be had, or TLS's files or the keys cannot be used."""

    def __init__(self, config: WatchConfig) -> None:
        self.tls: Tls = None
        if config.tls_cert is not None and config.tls_key is not None:
            self.tls = config.tls_cert, config.tls_key
        check_tls(self.tls)
        self.keys = Keys(keys(config.api_key_file))
        self.host = config.host
        try:
            self.socket = listen(config.host, config.port)
        except ServeError as error:
            raise ServeError(f"{error}; --port N takes another port, 0 any free one") from error

    @property
    def url(self) -> str:
        return address(self.host, self.socket, self.tls) + "/"

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    def close(self) -> None:
        self.socket.close()


@contextmanager
def serving(
    door: Door, watcher: Watcher, what: str, more: Mapping[tuple[str, str], Handler] | None = None
) -> Iterator[WatchApp]:
    """While the block runs. Prints `watching WHAT at URL` once it can be asked. `more`: as WatchApp."""
    shares = Shares(FairShare(most_connections(), oldest=True), FairShare(_HELD))
    admission = Admission(door.keys, door.host, door.port, secure=door.tls is not None)
    app = WatchApp(watcher, admission, shares, more or {})
    server = web_server(app, door.socket, shares, door.tls, drain_s=1)
    thread = threading.Thread(target=server.run, name="page", daemon=True)
    url = door.url
    thread.start()
    try:
        until = time.monotonic() + _START_S
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        if not server.started:
            raise ServeError(f"the page's server did not start at {url}")
        sys.stdout.write(f"watching {what} at {url}\n")
        sys.stdout.flush()
        yield app
    finally:
        server.should_exit = True
        app.stop()
        thread.join(timeout=5)
        door.close()
