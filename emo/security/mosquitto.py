"""Mosquitto's configuration for one broker of a fleet: `emo broker wan|lan`. For Mosquitto 2.0, checked with 2.0.11.

TLS only. Every client needs a certificate of the fleet's CA, whose name is both its user and its client id: none can speak
for another or take over its session.
"""

from dataclasses import dataclass
from pathlib import Path

from emo import files
from emo.errors import ConfigError
from emo.security import acl
from emo.security.members import Members

_PACKET = (256 + 4) << 10  # a chunk of the default size, its frame and MQTT's own; CONNACK tells the nodes
_MESSAGES = 65536  # that wait for one client; of large ones max_queued_bytes lets fewer


@dataclass(frozen=True)
class Settings:
    """`here`: the folder of these files as Mosquitto sees it; `tls`: that of its ca.crt, node.crt, node.key and crl.pem.
    `bind`: empty for every interface. `queue_mib` may wait for one client, `memory_mib` for all. `user`: whom Mosquitto
    becomes when root starts it."""

    port: int
    here: Path
    tls: Path
    bind: str = ""
    root: str = "emo"
    queue_mib: int = 1024
    memory_mib: int = 4096
    user: str = ""


def write(folder: Path, members: Members, edge: str | None, settings: Settings) -> list[Path]:
    """Write mosquitto.conf and acl of `edge`'s broker, or of the WAN broker. Returns the changed files. Raises ConfigError."""
    texts = {"acl": acl.text(members, settings.root, edge), "mosquitto.conf": text(members, edge, settings)}
    changed = []
    for name, content in texts.items():
        path, data = folder / name, content.encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != data:
                files.write(path, data, public=True)
                changed.append(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return changed


def text(members: Members, edge: str | None, settings: Settings) -> str:
    """The text of mosquitto.conf."""
    own = len(members.edges) + len(members.devices) + len(members.observers)
    nodes = 1 + (own if edge is None else len(members.edges[edge]))
    whose = "the WAN broker, beside the cloud" if edge is None else f"the LAN broker of {edge}"
    user = f"user {settings.user}\n" if settings.user else ""
    # Only the WAN needs retained messages: the cloud's, and who is connected. Access rules cannot tell them from others.
    retain = "true" if edge is None else "false"
    return f"""\
# Written by `emo broker` for {whose}; to change it, write it anew.
# kill -HUP makes Mosquitto read acl, ca.crt, node.crt, node.key and crl.pem again. For anything else, restart it.
{user}listener {settings.port} {settings.bind}
cafile {settings.tls}/ca.crt
certfile {settings.tls}/node.crt
keyfile {settings.tls}/node.key
crlfile {settings.tls}/crl.pem
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {settings.here}/acl

# Nothing is kept over a restart: nodes see that they are forgotten, and say again what is not settled. From a file of
# some minutes ago the broker would seem to remember them. Nor do activations come to lie on this disk.
persistence false
persistent_client_expiration 1h

# Nodes have one connection each. The rest is for those that come back before the broker has missed them, and for
# strangers, who count until their handshake has failed.
max_connections {4 * nodes + 64}
max_packet_size {_PACKET}
retain_available {retain}
max_qos 1
max_topic_alias 0
max_inflight_messages 20
max_queued_messages {_MESSAGES}
max_queued_bytes {settings.queue_mib << 20}
memory_limit {settings.memory_mib << 20}
set_tcp_nodelay true
sys_interval 0

log_dest stderr
log_type error
log_type warning
log_type notice
"""
