"""An MQTT broker of our own on a free loopback port: Mosquitto where it is installed, else amqtt in this process.

For demo, tests and benches: anybody on this machine may connect, and nothing outlives it. amqtt speaks MQTT 3.1.1 only and redelivers nothing: never for a fleet.
"""

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import logging
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from emo.config import Broker
from emo.errors import BrokerError
from emo.mqtt.probe import probe
from testbed.processes.child import Child

log = logging.getLogger("emo")

Kind = Literal["mosquitto", "amqtt"]
_START_S, _STOP_S, _TRIES = 10.0, 5.0, 3

# max_queued: a client that is away, or slow, may have 1 GiB of chunks (a message's limit) wait for it.
CONFIGURATION = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
max_inflight_messages 20
max_queued_messages 16384
max_queued_bytes 1073741824
log_dest stderr
log_type error
log_type warning
log_type notice
"""


class LocalBroker:
    """`with LocalBroker(folder) as broker`: runs inside the block; `folder` takes its configuration and log.

    config: where it listens. kind: name and version, "mosquitto 2.0.11" or "amqtt 0.12.1".
    """

    config: Broker
    kind: str

    def __init__(self, folder: Path, prefer: Kind | None = None) -> None:
        """`prefer`: this one or none. Left out, Mosquitto if it is on the PATH or in /usr/sbin, else amqtt."""
        self._folder, self._prefer = folder, prefer
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        """Returns when it answers. Raises BrokerError: not installed, or it does not start (with its log's end)."""
        try:
            self._start()
        except BaseException:  # Ctrl-C too: what runs by then must not stay
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        for left in reversed(range(_TRIES)):
            port = free_port()
            self.config = Broker(port=port)
            self._server = self._make(port)
            if self._answers(self._server):
                return
            text = self._server.tail()
            self._end()
            # The port was free a moment ago; somebody else may have been quicker.
            if not left or "address already in use" not in text.lower():
                raise BrokerError(f"{self.kind} does not start on 127.0.0.1:{port}: {text or 'no word'}")

    def _make(self, port: int) -> "_Server":
        binary = mosquitto()
        if self._prefer == "mosquitto" and binary is None:
            raise BrokerError("Mosquitto is not installed: on Debian and Ubuntu, apt-get install mosquitto")
        if binary is not None and self._prefer != "amqtt":
            self.kind = f"mosquitto {_version(binary)}"
            return _Mosquitto(binary, self._folder, port)
        if importlib.util.find_spec("amqtt") is None:
            raise BrokerError(
                "neither Mosquitto nor amqtt is installed: apt-get install mosquitto, or pip install amqtt"
            )
        self.kind = f"amqtt {importlib.metadata.version('amqtt')}"
        return _Amqtt(port)

    def _answers(self, server: "_Server") -> bool:
        until = time.monotonic() + _START_S
        while time.monotonic() < until and server.alive():
            try:
                probe(self.config, timeout_s=1.0, messages=False)
            except BrokerError:
                time.sleep(0.02)
            else:
                return server.alive()  # or was it somebody else who answered?
        return False

    def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()


class _Server(Protocol):
    def alive(self) -> bool: ...

    def tail(self) -> str:
        """What it said last, one line."""

    def stop(self) -> None: ...


class _Mosquitto:
    def __init__(self, binary: str, folder: Path, port: int) -> None:
        self._log = folder / "mosquitto.log"
        config = folder / "mosquitto.conf"
        try:
            config.write_text(CONFIGURATION.format(port=port), encoding="utf-8")
            # Started as root it becomes another user, who may not write here: we open the log, not it.
            self._process = Child([binary, "-c", str(config)], self._log)
        except OSError as error:
            raise BrokerError(f"{binary} cannot be started in {folder}: {error}") from error

    def alive(self) -> bool:
        return self._process.poll() is None

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            return "; ".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        return ""

    def stop(self) -> None:
        self._process.stop(_STOP_S)


class _Amqtt:
    """On a thread and an event loop of its own."""

    def __init__(self, port: int) -> None:
        # It warns of every client that is gone, with tracebacks; here clients come and go.
        self._levels = {name: logging.getLogger(name).level for name in ("amqtt", "transitions")}
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._port, self._error = port, ""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, context: log.debug("amqtt: %s", context["message"]))
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="amqtt", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except Exception as error:  # noqa: BLE001 - the thread's last words; tail() reports them
            self._error = f"{type(error).__name__}: {error}"

    async def _serve(self) -> None:
        # Not everybody who imports this file has it.
        from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter  # noqa: PLC0415
        from amqtt.broker import Broker as Amqtt  # noqa: PLC0415

        # It knows no limit on a packet's size; the plugins that it would add log every packet.
        broker = Amqtt(
            {
                "listeners": {"default": {"type": "external"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        writers: set[asyncio.StreamWriter] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            try:
                await broker.external_connected(StreamReaderAdapter(reader), StreamWriterAdapter(writer), "default")
            finally:
                writers.discard(writer)
                writer.close()

        await broker.start()
        # The sockets are ours: its own shutdown waits for ever for a client that stays connected.
        server = await asyncio.start_server(connected, "127.0.0.1", self._port)
        await self._stop.wait()
        server.close()
        for writer in writers:
            writer.close()
        with contextlib.suppress(TimeoutError):  # what is left then is cancelled with the loop
            await asyncio.wait_for(broker.shutdown(), _STOP_S)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def tail(self) -> str:
        return self._error

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(2 * _STOP_S)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)


def mosquitto() -> str | None:
    """Where Mosquitto is installed."""
    # Debian's package puts it where only root's PATH looks.
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _version(binary: str) -> str:
    try:
        text = subprocess.run(  # noqa: S603 - as above
            [binary, "-h"], capture_output=True, text=True, timeout=_START_S, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"{binary} cannot be run: {error}") from error
    version = re.search(r"version (\S+)", text)
    return version[1] if version else "of an unknown version"


def free_port(among: range | None = None) -> int:
    """Any of 127.0.0.1, or one of `among`, drawn at random."""
    while True:
        with socket.socket() as asked:
            try:
                asked.bind(("127.0.0.1", random.choice(among) if among else 0))  # noqa: S311 - any that is free
            except OSError:
                if not among:
                    raise
            else:
                return int(asked.getsockname()[1])
