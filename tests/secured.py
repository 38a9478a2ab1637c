"""A small fleet's CA, certificates and brokers, made by the commands that an operator types; and a client that breaks rules."""

import contextlib
import os
import queue
import re
import signal
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as paho
from brokers import Mosquitto, free_port
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from emo.cli import main
from emo.config import Broker, Tls
from emo.security.pki import certificates, node_request, pem_files

FLEET = """\
cloud: cloud
edges:
  edge-1: [device-01, device-02]
  edge-2: [device-03]
observers: [watch, watch-2]
"""

LINKS = {"wan": None, "lan": "edge-1"}  # and whose broker it is


def emo(*words):
    code = main([str(word) for word in words])
    assert code == 0, f"emo {' '.join(map(str, words))}: {code}"


class Site:
    """`ca`: the CA's folder. `node` and `broker` make folders as they lie on the machines."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self._program = folder, program
        self.ca, self.fleet = folder / "ca", folder / "fleet.yaml"
        self.fleet.write_text(FLEET, encoding="utf-8")
        self._brokers: list[Daemon] = []
        emo("pki", "init", "--ca", self.ca)

    def node(self, name: str) -> Tls:
        place = self.folder / "nodes" / name
        if not place.exists():
            emo("pki", "request", "--dir", place, "--id", name)
            self._sign("issue", place, name)
            self.copy(place)
        return Tls(ca=place / "ca.crt", cert=place / "node.crt", key=place / "node.key")

    def renew(self, name: str) -> None:
        self._sign("renew", self.folder / "nodes" / name, name)

    def _sign(self, how: str, place: Path, name: str, *more: object) -> None:
        csr, out = place / "node.csr", place / "node.crt"
        emo("pki", how, "--ca", self.ca, "--id", name, "--csr", csr, "--out", out, *more)

    def copy(self, place: Path) -> None:
        """The CA's public part, as an operator would carry it."""
        for name in ("ca.crt", "crl.pem"):
            pem_files.write(place / name, (self.ca / name).read_bytes())

    def renew_brokers(self) -> None:
        for daemon in self._brokers:
            self._sign("renew", daemon.folder / "tls", daemon.folder.name, "--broker")
            daemon.reload()

    def rotate(self, *options: str) -> None:
        emo("pki", "rotate", "--ca", self.ca, *options)

    def revoke(self, name: str) -> None:
        """At every broker that runs, too."""
        emo("pki", "revoke", "--ca", self.ca, "--id", name)
        self.spread()

    def revoking(self, files: Tls) -> bytes:
        """A CRL of this one."""
        root, key = pem_files.certificate(self.ca / "ca.crt"), pem_files.keys(self.ca / "ca.key")[0]
        return pem_files.encoded(certificates.crl(root, key, None, [pem_files.certificate(files.cert).serial_number]))

    def spread(self) -> None:
        """CA and CRL to every node and broker, which reads it again."""
        for place in (self.folder / "nodes").glob("*"):
            self.copy(place)
        for daemon in self._brokers:
            self.copy(daemon.folder / "tls")
            daemon.reload()

    def members(self, name: str, there: bool) -> None:
        """A device or an observer leaves the fleet, or comes back: the access rules anew."""
        text = FLEET if there else re.sub(rf",? ?{name}", "", FLEET)
        self.fleet.write_text(text, encoding="utf-8")
        for daemon in self._brokers:
            self._configure(daemon.folder, daemon.port)
            daemon.reload()

    def _configure(self, out: Path, port: int) -> None:
        link = ("wan",) if out.name == "cloud" else ("lan", "--edge", out.name)
        user = ("--user", "root") if os.geteuid() == 0 else ()
        at = ("--port", port, "--bind", "127.0.0.1")
        emo("broker", *link, "--fleet", self.fleet, "--out", out, *at, *user)

    def made(self, name: str, kind: str = "node", start: int = -1, end: int = 1, like: "Site | None" = None) -> Tls:
        """A certificate that no command would issue: valid from day `start` to day `end`."""
        place = self.folder / "made" / f"{name}{kind}{start}{end}"
        node_request.request(place, name)
        ca, now = like or self, datetime.now(UTC)
        root, key = pem_files.certificate(ca.ca / "ca.crt"), pem_files.keys(ca.ca / "ca.key")[0]
        dates = now + timedelta(days=end), now + timedelta(days=start)
        hosts = ("127.0.0.1",) if kind == "broker" else ()
        made = certificates.leaf(pem_files.request(place / "node.csr"), name, kind, hosts, (root, key), *dates)
        pem_files.write(place / "node.crt", pem_files.encoded(made))
        self.copy(place)
        return Tls(ca=place / "ca.crt", cert=place / "node.crt", key=place / "node.key")

    def broker(self, edge: str | None = None, hosts: tuple[str, ...] = ("127.0.0.1",)) -> "Daemon":
        """The WAN broker, or an edge's; running."""
        name = edge or "cloud"
        out = self.folder / "brokers" / name
        emo("pki", "request", "--dir", out / "tls", "--id", name)
        self._sign("issue", out / "tls", name, "--broker", "--host", *hosts)
        self.copy(out / "tls")
        port = free_port()
        self._configure(out, port)
        self._brokers.append(Daemon(self._program, out, port))
        self._brokers[-1].start()
        return self._brokers[-1]

    def close(self) -> None:
        for broker in self._brokers:
            broker.stop()


class Daemon(Mosquitto):
    """Mosquitto with the files that `emo broker` wrote into `folder`."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._program, self._config = program, folder / "mosquitto.conf"
        self.broker = Broker(port=port)
        self._process: subprocess.Popen[bytes] | None = None

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def log(self) -> str:
        return self._config.with_suffix(".log").read_text(encoding="utf-8")


class Rogue:
    """A bare MQTT 5 client: says what it likes, and keeps what it gets. `refused` names why there is no connection."""

    def __init__(
        self,
        daemon: Daemon,
        context: ssl.SSLContext | None,
        client_id: str,
        will: str | None = None,
        user: str | None = None,
    ) -> None:
        self.got: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._acks: dict[int, int] = {}
        self._change, self.refused, self.connected = threading.Condition(), "", False
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        if context is not None:
            self._client.tls_set_context(context)
        if user is not None:
            self._client.username_pw_set(user, "guess")
        if will is not None:
            self._client.will_set(will, b"will", qos=1, retain=True)
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.on_publish = lambda _c, _d, mid, reason, _p: self._ack(mid, reason.value)
        self._client.on_subscribe = lambda _c, _d, mid, reasons, _p: self._ack(mid, reasons[0].value)
        self._client.on_message = lambda _c, _d, packet: self.got.put((packet.topic, packet.payload))
        try:
            self._client.connect("127.0.0.1", daemon.port, keepalive=10)
        except OSError as error:
            self.refused = f"{type(error).__name__}: {error}"
            return
        self._client.loop_start()
        with self._change:
            assert self._change.wait_for(lambda: self.connected or self.refused, 10)

    def publish(self, topic: str, data: bytes = b"x", retain: bool = False) -> int:
        """MQTT 5's reason code: 0 and 0x10 let it in, 0x87 is "not authorised"."""
        return self._reason(self._client.publish(topic, data, qos=1, retain=retain).mid)

    def subscribe(self, name: str) -> int:
        result, mid = self._client.subscribe(name, qos=1)
        assert result == 0
        return self._reason(mid)

    def vanish(self) -> None:
        """As a machine that loses its power."""
        self._client.socket().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.disconnect()
            self._client.loop_stop()

    def __enter__(self):
        assert self.connected, self.refused
        return self

    def __exit__(self, *_):
        self.close()

    def _reason(self, mid: int) -> int:
        with self._change:
            assert self._change.wait_for(lambda: mid in self._acks or not self.connected, 10)
            return self._acks.get(mid, -1)

    def _ack(self, mid: int, reason: int) -> None:
        with self._change:
            self._acks[mid] = reason
            self._change.notify_all()

    def _on_connect(self, _client, _data, _flags, reason, _properties) -> None:
        with self._change:
            self.connected, self.refused = not reason.is_failure, str(reason) if reason.is_failure else ""
            self._change.notify_all()

    def _on_disconnect(self, _client, _data, _flags, reason, _properties) -> None:
        with self._change:
            self.refused = self.refused or f"disconnected: {reason}"
            self.connected = False
            self._change.notify_all()
