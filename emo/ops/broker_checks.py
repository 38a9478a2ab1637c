"""What `emo doctor` says of a broker: what its probe found (emo/mqtt/probe.py), or why there was none."""

from collections.abc import Iterator
from typing import Literal

from emo.config import Broker
from emo.errors import ConfigError, EmoError, LoginError
from emo.mqtt import connection
from emo.mqtt.probe import Probe

Finding = tuple[Literal["ok", "warn", "FAIL"], str, str]  # level, detail, advice

_LEAST_PACKET = 4 << 10
_FEW = 4
_OTHERS = "for a fleet take Mosquitto 2, EMQX or VerneMQ"


def findings(broker: Broker, probe: Probe, wan: bool = True) -> Iterator[Finding]:
    """`wan`: the cloud uses it too. One that only an edge uses has nothing to retain."""
    place = f"{broker.host}:{broker.port}"
    detail = f"{place}: MQTT {probe.version}, answers in {1000 * probe.seconds:.0f} ms"
    yield ("ok", detail, "") if probe.version == "5" else ("warn", detail, f"good enough to try; {_OTHERS}")
    needed = {
        "QoS 1": probe.max_qos >= 1,
        "retained messages": probe.retain or not wan,
        "wildcards": probe.wildcards,
    }
    for feature, supported in needed.items():
        if not supported:
            yield "FAIL", f"{place} does not support {feature}", "allow it in its configuration"
    if wan and probe.retain and not probe.retained_by_wildcard:
        late = "a node that starts late is seen, and told of a round, later than others"
        yield "warn", f"{place} gives retained messages to no wildcard, as RabbitMQ does: {late}", _OTHERS
    if probe.window is not None:
        detail = f"{place} keeps {probe.window} packets on their way to a client"
        if probe.window < _FEW:
            yield "warn", f"{detail}: one round trip a packet", "raise it: in Mosquitto max_inflight_messages"
        else:
            yield "ok", detail, ""
    secret = broker.password_file
    if secret is not None and secret.stat().st_mode & 0o077:
        yield "warn", f"{secret} can be read by others", f"chmod 600 {secret}"
    if probe.max_packet is None:
        return
    limit, chunk = f"takes packets of {probe.max_packet} bytes", broker.chunk_kib << 10
    if probe.max_packet < _LEAST_PACKET:
        yield "FAIL", limit, "raise its max_packet_size to 256 KiB or more"
    elif probe.max_packet < chunk + 1024:
        yield "warn", f"{limit}, below chunk_kib {broker.chunk_kib}", "raise it, or lower chunk_kib"
    else:
        yield "ok", f"{limit}; chunk_kib {broker.chunk_kib} fits", ""


def remedy(error: EmoError, broker: Broker) -> str:
    """Advice on an error that the probe raised."""
    if isinstance(error, LoginError):
        return connection.login(broker)
    if isinstance(error, ConfigError):
        return "correct it"
    other = "path" if broker.transport == "websockets" else "transport"
    return f"start it, open its port in the firewall, or correct host, port and {other}"
