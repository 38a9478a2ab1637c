"""Mosquitto's acl_file, from the table of topics (emo/wire/topics.py) and fleet.yaml: who may read and write what.

    user device-01
    topic write emo/wan/update/device-01
    topic read emo/wan/global/+

Everything else is forbidden, the topics of the other link included. That a user is who it claims to be is the listener's
part (mosquitto.py).
"""

from collections.abc import Iterator

from emo.errors import ConfigError, nearest
from emo.security.members import Members
from emo.wire.topics import ROUTES, Link, Route, rule


def text(members: Members, root: str, edge: str | None = None) -> str:
    """The acl_file of `edge`'s LAN broker, or of the WAN broker. Raises ConfigError: no such edge."""
    lines = ["# Written by `emo broker` from fleet.yaml and EMO's table of topics: change those, and write it anew."]
    for name, rules in grants(members, root, edge).items():
        lines += ["", f"user {name}", *(f"topic {access} {topic}" for access, topic in rules)]
    return "\n".join(lines) + "\n"


def grants(members: Members, root: str, edge: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """User -> ("write" or "read", filter), ... Raises as `text`."""
    if edge is None:
        link: Link = "wan"
        places = [(members.cloud, "cloud", "")]
        places += [(name, "edge", name) for name in members.edges]
        places += [(device, "device", name) for name, devices in members.edges.items() for device in devices]
        places += [(name, "observer", "") for name in members.observers]
    elif edge in members.edges:
        link = "lan"
        places = [(edge, "edge", edge), *((device, "device", edge) for device in members.edges[edge])]
    else:
        raise ConfigError(f"--edge {edge}: is no edge of this fleet; {nearest(edge, members.edges)}")
    routes = [route for route in ROUTES.values() if route.link == link]
    return {name: list(_rules(root, routes, name, role, of)) for name, role, of in places}


def _rules(root: str, routes: list[Route], name: str, role: str, edge: str) -> Iterator[tuple[str, str]]:
    ids = {"edge": edge} if edge else {}
    if role == "device":
        ids["device"] = name
    if role != "cloud":
        ids["member"] = name
    for route in routes:
        if role in route.writers:
            # One topic of each kind, or a node could fill the broker with retained messages: what nodes retain fits
            # into one chunk. Rules cannot forbid that an update or overlay is retained; nobody would read it.
            index = "+" if role == "cloud" else "0"
            yield "write", rule(root, route, index, **ids, node=name)
        if role in route.readers:
            yield "read", rule(root, route, **ids)
