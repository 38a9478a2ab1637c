"""Attackers of an endpoint, from 127.0.0.2, in a process of their own: what they cost is not the endpoint's.

python attackers.py PORT     reads names of attacks, a line each; answers each with a line when it is over
"""

import contextlib
import functools
import gzip
import io
import json
import socket
import sys
import time

from PIL import Image
from serving import request

SECONDS = 0.4  # that an attack goes on
MIB = 1 << 20


class Attacker:
    """Opens connections and sends what it is told to, for SECONDS; reads what comes only if it is asked to."""

    def __init__(self, port):
        self.port, self.open = port, []
        self.end = 0.0

    def connect(self, timeout=0.2):
        if not self.open:
            self.end = time.monotonic() + SECONDS
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(timeout)
        made.bind(("127.0.0.2", 0))
        self.open.append(made)
        try:
            made.connect(("127.0.0.1", self.port))
        except OSError:  # refused: tried again
            time.sleep(0.001)
        return made

    def send(self, *parts, times=1):
        """On a new connection, until the endpoint takes no more of it."""
        made = self.connect()
        try:
            for part in parts:
                made.sendall(part)
            for _ in range(times - 1):
                made.sendall(parts[-1])
        except OSError:
            pass
        return made

    def answer(self, made, timeout=5):
        """Waits for its first bytes, if there will be any."""
        made.settimeout(timeout)
        with contextlib.suppress(OSError):
            made.recv(100)

    def goes_on(self):
        return not self.open or time.monotonic() < self.end

    def close(self):
        for each in self.open:
            each.close()


def post(path, body=b"", size=None, **headers):
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body) if size is None else size}"] if "Transfer_Encoding" not in headers else []
    return "\r\n".join([f"POST /v2/models/{path} HTTP/1.1", "Host: x", *lines, "", ""]).encode() + body


@functools.cache
def picture(width, height, kind="PNG", mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (width, height), 128).save(file, kind, progressive=True)
    return file.getvalue()


def progressive(width, height, scans):
    """A JPEG that goes so many times more over its pixels."""
    data = picture(width, height, "JPEG", "L")
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def values(of, inner, size):
    """JSON of `size` bytes at most whose data is `inner`, over and over."""
    head = json.dumps(request(shape=(1, 3, of, of), data=[]))[:-4].encode()
    return head + inner * ((size - len(head)) // len(inner)) + b"0]}]}"


def zipped(body):
    return {"body": gzip.compress(body), "Content_Encoding": "gzip"}


def bombs(attacker):
    large, fits = zipped(values(2, b"[],", 16 * MIB)), zipped(values(64, b"[],", 4_000_000))
    for _ in range(2):
        attacker.send(post("wide/infer", **fits))
        attacker.send(post("wide/infer", **large))
        attacker.answer(attacker.send(post("tiny/infer", **large)))


def scans(attacker):
    """Too many, and as many as are read, of so many pixels that it takes too long."""
    for times in (2000, 2000, 25):
        attacker.send(post("tiny/predict", progressive(5792, 5792, times)))


def pixels(attacker):
    wide = picture(4000, 4000)
    for made in [attacker.send(post("tiny/predict", wide)) for _ in range(2)]:
        attacker.answer(made)


def heads(attacker):
    field = b"a: " + b"b" * 8000 + b"\r\n"
    attacker.send(b"GET /v2 HTTP/1.1\r\n", field * 32, times=400)
    attacker.send(b"GET /v2 HTTP/1.1\r\na: ", b"b" * 8000 * 32, times=400)
    attacker.send(b"GET /v2 HTTP/1.1\r\n", b"a:\r\n" * 60_000, times=400)
    attacker.send(b"GET /" + b"b" * 8000 * 32, b"b" * 8000 * 32, times=400)
    start = post("tiny/infer", Transfer_Encoding="chunked") + b"1\r\n \r\n"
    attacker.send(start + b"0\r\n", field * 32, times=400)
    attacker.send(start + b"1;", b"e" * 8000 * 32, times=400)


def pipelined(attacker):
    for _ in range(20):
        attacker.send(b"GET /openapi.json HTTP/1.1\r\n\r\n" * 10_000, times=20)


def bodies(attacker):
    """All of what is set aside but a few bytes, then more."""
    for size in [4 * MIB - 8] * 8 + [MIB] * 8:
        attacker.send(post("tiny/predict", size=16 * MIB), bytes(size))


def readers(attacker):
    """Of their answers a few bytes."""
    body = json.dumps(request([1] * 768, (64, 3, 2, 2), parameters={"binary_data_output": True})).encode()
    for _ in range(40):
        attacker.answer(attacker.send(post("broad/infer", body) * 3), 0.2)


def answers(attacker):
    for rows in (26, 64, 64):
        body = json.dumps(request([1] * 12 * rows, (rows, 3, 2, 2))).encode()
        attacker.answer(attacker.send(post("broad/infer", body, Accept_Encoding="gzip")))


def refilled(attacker, *parts):
    """Thousands of connections a second; those that are lost are made again."""
    while attacker.goes_on():
        for _ in range(10):
            attacker.send(*parts)
        while len(attacker.open) > 300:
            attacker.open.pop(0).close()
        time.sleep(0.002)


def connections(attacker):
    refilled(attacker, b"")


def unfinished(attacker):
    refilled(attacker, post("tiny/infer", size=1000) + b"{")


def requests(attacker):
    refilled(attacker, post("tiny/infer", json.dumps(request()).encode()) * 8)


ATTACKS = {
    each.__name__: each
    for each in (
        bombs,
        scans,
        pixels,
        heads,
        pipelined,
        bodies,
        readers,
        answers,
        connections,
        unfinished,
        requests,
    )
}


def main():
    for line in sys.stdin:
        attacker = Attacker(int(sys.argv[1]))
        ATTACKS[line.strip()](attacker)
        time.sleep(max(0.0, attacker.end - time.monotonic()))
        attacker.close()
        print("over", flush=True)


if __name__ == "__main__":
    main()
