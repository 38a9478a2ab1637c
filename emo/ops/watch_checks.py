"""What `emo doctor` says of an observer: its page's address, who is let in there, the files and the endpoint that it names."""

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from emo.config import Served, WatchConfig
from emo.errors import ConfigError
from emo.places import is_loopback
from emo.security import members

Finding = tuple[Literal["ok", "warn", "FAIL"], str, str, str]  # level, what, detail, advice

_WAIT_S = 5.0
_SHORTEST = 16  # characters of a key


def findings(config: WatchConfig, running: bool) -> Iterator[Finding]:
    """`running`: it listens already."""
    yield _port(config.host, config.port, running)
    yield from _who_is_let_in(config)
    if config.fleet is not None:
        yield _fleet(config.fleet, config.id)
    if config.endpoint is not None:
        yield _endpoint(config.endpoint)


def _port(host: str, port: int, running: bool) -> Finding:
    place = f"{host}:{port}"
    if running:
        return "ok", "page", f"{place}: this observer runs, and has it", ""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        return "FAIL", "page", f"{place} cannot be listened at: {error.strerror}", "correct host, or name another port"
    return "ok", "page", f"{place} is free", ""


def _who_is_let_in(config: WatchConfig) -> Iterator[Finding]:
    if config.tls_cert is not None and config.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert, config.tls_key, lambda: b"")
        except OSError as error:  # an SSLError is one
            detail = f"{config.tls_cert} and {config.tls_key} are no certificate and its unencrypted key: {error}"
            yield "FAIL", "page tls", detail, "correct tls_cert and tls_key, or who may read them"
        else:
            yield "ok", "page tls", f"{config.tls_cert}", ""
    keys = config.api_key_file
    if keys is not None:
        advice = "write one key a line there: `openssl rand -hex 16` makes one"
        try:
            lines = [line.strip() for line in keys.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            yield "FAIL", "page keys", f"{keys}: cannot be read: {error}", advice
            return
        known = [line for line in lines if line and not line.startswith("#")]
        if min(map(len, known), default=0) < _SHORTEST:
            detail = f"{keys} holds {f'a key of less than {_SHORTEST} characters' if known else 'no key'}"
            yield "FAIL", "page keys", detail, advice
        elif keys.stat().st_mode & 0o077:
            yield "warn", "page keys", f"{keys} can be read by others", f"chmod 600 {keys}"
    if not is_loopback(config.host) and (keys is None or config.tls_cert is None):
        lacks = "everybody who reaches it sees the fleet" if keys is None else "its keys can be read on the way"
        advice = "set api_key_file, tls_cert and tls_key, unless a proxy before it does that"
        yield "warn", "page", f"listens at {config.host}, not at loopback only, and {lacks}", advice


def _fleet(path: Path, name: str) -> Finding:
    try:
        role = members.load(path).role(name)
    except ConfigError as error:
        return "FAIL", "fleet", str(error), "correct fleet or id; `observers:` of fleet.yaml names who may watch"
    if role != "observer":
        return "FAIL", "fleet", f"{name} is a node of tier {role} in {path}", "an observer needs an id of its own"
    return "ok", "fleet", f"{path}: {name} may watch it", ""


def _endpoint(served: Served) -> Finding:
    """Whether it answers. Until a run has exported its first model nothing has to."""
    url = f"{served.url.rstrip('/')}/v2/health/live"
    try:
        context = ssl.create_default_context(cafile=served.ca)
        with urllib.request.urlopen(url, timeout=_WAIT_S, context=context):  # noqa: S310 - http or https, says its pattern
            pass
    except (OSError, ValueError) as error:
        advice = "start it (`emo serve`; it needs a first model), or correct endpoint.url and endpoint.ca"
        return "warn", "endpoint", f"{served.url} does not answer: {error}", advice
    return "ok", "endpoint", f"{served.url} answers", ""
