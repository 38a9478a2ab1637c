"""Where something is, as people write it: a host, a file. From a configuration and from the command line."""

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
    """`text` is a host name or an IP address; without the brackets that IPv6 has in a URL. Raises ValueError."""
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(bare)
        return bare
    said = "has to be a host name or an IP address"
    url = _URL.fullmatch(text)
    if url and url["host"] != text:
        port = f" and port: {url['port']}" if url["port"] else ""
        said += f", nothing else: write host: {url['host']}{port}"
    try:
        if not _HOST.fullmatch(text):
            raise ValueError(said)
        text.encode("idna")  # as a socket does
    except UnicodeError as error:
        raise ValueError(said) from error
    return text


def home(path: Path) -> Path:
    """`path`, a leading `~` expanded as a shell does. Raises ValueError: no such user, or no name that a file can have."""
    try:
        if b"\0" in os.fsencode(path):
            msg = "no file's name holds a NUL"
            raise ValueError(msg)
        return path.expanduser()
    except (RuntimeError, UnicodeEncodeError) as error:
        msg = f"is no file's name here: {error}"
        raise ValueError(msg) from error
