"""A real Mosquitto on a free loopback port, and a TCP proxy that makes it misbehave."""

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from emo.config import Broker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """A broker of one's own, to start, stop and start again on the same port."""

    def __init__(self, program: str, folder: Path, options: str = "") -> None:
        self.broker = Broker(port=free_port())
        self._program, self._config = program, folder / "mosquitto.conf"
        lines = [f"listener {self.broker.port} 127.0.0.1", "allow_anonymous true", options]
        if os.geteuid() == 0:
            lines.append("user root")  # it would become somebody who may not write here
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._config.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", self._config], stdout=log, stderr=log)
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.broker.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < until, self._config.with_suffix(".log").read_text(encoding="utf-8")
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def whole_packets(buffer: bytearray) -> Iterator[bytes]:
    """Those of MQTT that `buffer` begins with; they are taken out of it."""
    while True:
        size = at = 0
        for at, byte in enumerate(buffer[1:5], 1):
            size |= (byte & 0x7F) << 7 * (at - 1)
            if byte < 0x80:
                break
        else:
            return
        if len(buffer) <= at + size:
            return
        yield bytes(buffer[: at + 1 + size])
        del buffer[: at + 1 + size]


class Proxy:
    """TCP between client and broker. `hangs_up` decides by the protocol level of CONNECT; `deaf` keeps the
    broker's answers from the client, `drops` single packets of it; `delay_s` before anything goes through."""

    def __init__(self, target):
        self.broker, self.hangs_up, self.polite = (
            target.model_copy(update={"port": free_port()}),
            lambda _: False,
            False,
        )
        self.deaf, self.delay_s, self.refused = False, 0.0, 0
        self.drops = lambda _packet: False
        self._target, self._open = target, []
        self._listen = socket.create_server(("127.0.0.1", self.broker.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listen.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, contextlib.suppress(OSError):
            first = client.recv(65536)
            level = first[first.index(b"MQTT") + 4]
            if self.hangs_up(level):
                self.refused += 1
                if self.polite:
                    client.sendall(b"\x20\x02\x00\x01")  # CONNACK: unacceptable protocol version
                return
            time.sleep(self.delay_s)
            with socket.create_connection((self._target.host, self._target.port)) as server:
                server.sendall(first)
                self._open.append(client)
                buffer = bytearray()
                while True:
                    for ready in select.select([client, server], [], [], 10)[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        if ready is client:
                            server.sendall(data)
                        elif not self.deaf or data[0] >> 4 == 2:
                            buffer += data
                            for packet in whole_packets(buffer):
                                if not self.drops(packet):
                                    client.sendall(packet)

    def cut(self):
        for client in self._open:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self):
        self._listen.close()
        self.cut()
