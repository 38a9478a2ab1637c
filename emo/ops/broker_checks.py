"""What `emo doctor` says of a broker that was asked (probe.py), and what to do about one that could not be."""

from collections.abc import Iterator
from typing import Literal

from emo.config import Broker
from emo.errors import ConfigError, EmoError, LoginError
from emo.mqtt import connection
from emo.mqtt.probe import Probe

Finding = tuple[Literal["ok", "warn", "FAIL"], str, str]  # level, what there is, what to do

_LEAST_PACKET = 4 << 10
_FEW = 4
_OTHERS = "for a fleet take Mosquitto 2, EMQX or VerneMQ"


def findings(broker: Broker, found: Probe, wan: bool = True) -> Iterator[Finding]:
    """`wan`: it is the cloud's too. A broker that is an edge's only has nothing to retain."""
    place = f"{broker.host}:{broker.port}"
    detail = f"{place}: MQTT {found.version}, answers in {1000 * found.seconds:.0f} ms"
    yield ("ok", detail, "") if found.version == "5" else ("warn", detail, f"good enough to try; {_OTHERS}")
    lacks = {
        "QoS 1": found.max_qos >= 1,
        "retained messages": found.retain or not wan,
        "wildcards": found.wildcards,
    }
    for feature, there in lacks.items():
        if not there:
            yield "FAIL", f"{place} does not support {feature}", "allow it in its configuration"
    if wan and found.retain and not found.retained_by_wildcard:
        late = "a node that starts late is seen, and told of a round, later than others"
        yield "warn", f"{place} gives retained messages to no wildcard, as RabbitMQ does: {late}", _OTHERS
    if found.window is not None:
        few, detail = found.window < _FEW, f"{place} keeps {found.window} packets on their way to a client"
        yield (
            ("warn", f"{detail}: one round trip a packet", "raise it: in Mosquitto max_inflight_messages")
            if few
            else ("ok", detail, "")
        )
    secret = broker.password_file
    if secret is not None and secret.stat().st_mode & 0o077:
        yield "warn", f"{secret} can be read by others", f"chmod 600 {secret}"
    if found.max_packet is None:
        return
    limit, chunk = f"takes packets of {found.max_packet} bytes", broker.chunk_kib << 10
    if found.max_packet < _LEAST_PACKET:
        yield "FAIL", limit, "raise its max_packet_size to 256 KiB or more"
    elif found.max_packet < chunk + 1024:
        yield "warn", f"{limit}, below chunk_kib {broker.chunk_kib}", "raise it, or lower chunk_kib"
    else:
        yield "ok", f"{limit}; chunk_kib {broker.chunk_kib} fits", ""


def remedy(error: EmoError, broker: Broker) -> str:
    """Of what `probe` raised."""
    if isinstance(error, LoginError):
        return connection.login(broker)
    if isinstance(error, ConfigError):
        return "correct it"
    other = "path" if broker.transport == "websockets" else "transport"
    return f"start it, open its port in the firewall, or correct host, port and {other}"
