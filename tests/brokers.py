"""A real Mosquitto on a free loopback port, for tests."""

import os
import socket
import subprocess
import time
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
