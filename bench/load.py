"""Clients that ask an endpoint without a pause, in one process, with as little of their own cost as possible.

    python -m bench.load http://HOST:PORT/PATH BODY_FILE [HEADER:VALUE ...] --clients 32 --requests 10000

Each client has one connection and sends its next request when it has the answer to the last. Prints one JSON object:
requests, errors (answers other than 200), seconds, its own seconds of processor, and milliseconds p50, p99, max.
"""

import json
import re
import selectors
import socket
import time
from array import array
from pathlib import Path
from urllib.parse import urlsplit

from emo.parser import Parser

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_GOOD = b"HTTP/1.1 200 "
_ANSWER = 1 << 20
_SILENCE_S = 60.0


class _Client:
    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self.answer = b""
        self.size = 0  # of the last answer: the next is most likely as long

    def send(self, request: bytes) -> None:
        self.answer = b""
        self.sent = time.perf_counter()
        self.socket.sendall(request)

    def complete(self) -> bool:
        """Reads what is there; is the answer whole?"""
        data = self.socket.recv(65536)
        if not data or len(self.answer) > _ANSWER:
            raise ConnectionError(f"the endpoint broke off after {self.answer[:200]!r}")
        self.answer = self.answer + data if self.answer else data
        if len(self.answer) == self.size and self.answer.startswith(_GOOD):
            return True
        head, end, body = self.answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n") if end else None
        if length is None or len(body) < int(length[1]):
            return False
        self.size = len(self.answer)
        return True


def ask(url: str, body: bytes, headers: list[str], clients: int, requests: int) -> dict[str, float]:
    """What the module says, as a dict."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}", *headers]
    request = "\r\n".join([*lines, "\r\n"]).encode() + body
    took = array("d")
    errors = 0
    with selectors.DefaultSelector() as selector:
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(min(clients, requests)):
            client = _Client(parts.hostname, parts.port)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(request)
        left = requests - min(clients, requests)
        while len(took) < requests:
            ready = selector.select(_SILENCE_S)
            if not ready:
                raise TimeoutError(f"no answer for {_SILENCE_S:.0f} s")
            for key, _ in ready:
                client = key.data
                if not client.complete():
                    continue
                took.append(time.perf_counter() - client.sent)
                errors += not client.answer.startswith(_GOOD)
                if left:
                    left -= 1
                    client.send(request)
        seconds, cpu = time.perf_counter() - began, time.process_time() - busy
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    ordered = sorted(took)
    return {
        "requests": requests,
        "errors": errors,
        "seconds": round(seconds, 3),
        "rps": round(requests / seconds, 1),
        "cpu_seconds": round(cpu, 3),
        "p50_ms": round(1e3 * ordered[len(ordered) // 2], 2),
        "p99_ms": round(1e3 * ordered[int(len(ordered) * 0.99)], 2),
        "max_ms": round(1e3 * ordered[-1], 2),
    }


def main() -> None:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of the endpoint's model")
    parser.add_argument("body", type=Path, help="a file: what every request sends")
    parser.add_argument("headers", nargs="*", help="NAME:VALUE of every request")
    parser.add_argument("--clients", type=int, default=32, help="connections at a time")
    parser.add_argument("--requests", type=int, default=10_000, help="in all")
    args = parser.parse_args()
    print(json.dumps(ask(args.url, args.body.read_bytes(), args.headers, args.clients, args.requests)))


if __name__ == "__main__":
    main()
