"""Hosts and paths as people write them, in a configuration or on the command line."""

import contextlib
import ipaddress
import os
import re
from pathlib import Path

_HOST = re.compile(r"[\w](?:[\w.-]{0,251}[\w.])?")
_URL = re.compile(
    r"(?:[\w.+-]+://)?(?:[^@/]*@)?\[?(?P<host>(?<=\[)[0-9a-fA-F:.]+|[\w.-]+)\]?(?::(?P<port>\d+))?(?:/.*)?"
)


def host(text: str) -> str:
    """`text`, a host name or an IP address, without the brackets of IPv6 in a URL. Raises ValueError: what to write."""
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(bare)
        return bare
    expected = "has to be a host name or an IP address"
    url = _URL.fullmatch(text)
    if url and url["host"] != text:
        port = f" and port: {url['port']}" if url["port"] else ""
        expected += f", nothing else: write host: {url['host']}{port}"
    try:
        if not _HOST.fullmatch(text):
            raise ValueError(expected)
        text.encode("idna")  # as a socket does
    except UnicodeError as error:
        raise ValueError(expected) from error
    return text


def is_loopback(host: str) -> bool:
    """Whether a host name or an address, with or without brackets, is this machine and nothing else."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def home(path: Path) -> Path:
    """`path`, a leading `~` expanded as by a shell. Raises ValueError: no such user, or not a file name."""
    try:
        if b"\0" in os.fsencode(path):
            msg = "no file's name holds a NUL"
            raise ValueError(msg)
        return path.expanduser()
    except (RuntimeError, UnicodeEncodeError) as error:
        msg = f"is no file's name here: {error}"
        raise ValueError(msg) from error
