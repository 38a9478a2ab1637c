"""The table of routes: for each kind of message its topic, link, size limit, who sends and who reads it, and what queues may
drop. The brokers' ACL (security/acl.py) is made from it.

LAN topics exist on an edge's own broker, WAN topics on the cloud's; one broker may play both parts.
"""

import re
from dataclasses import dataclass
from typing import Literal

from emo.config import ID
from emo.errors import TopicError
from emo.wire import messages
from emo.wire.messages import Message, Role

Link = Literal["wan", "lan"]
_NODES: tuple[Role, ...] = ("cloud", "edge", "device")
_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Route:
    """`topic`: begins with its link; its {fields} are fields of the message. A retained message has its chunk's number as the
    last level, because a broker keeps one message a topic. `limit`: bytes of the whole message. A node whose role is in
    `writers` or `readers` may write or read topics with its own id in the {field} of its role, in {node} to write, in
    {member} to read. `key`: fields that, with those of the topic, name one thing: in a queue a newer message replaces an
    older one of the same. `droppable`: the run can do without it, so a full queue gives it up first."""

    topic: str
    limit: int
    writers: tuple[Role, ...]
    readers: tuple[Role, ...]
    retain: bool = False
    key: tuple[str, ...] = ()
    droppable: bool = False

    @property
    def link(self) -> Link:
        return "lan" if self.topic.startswith("lan/") else "wan"


ROUTES: dict[type[Message], Route] = {
    messages.Status: Route("wan/status/{node}", 4 * _KIB, (*_NODES, "observer"), ("cloud", "observer"), retain=True),
    messages.GlobalModel: Route("wan/global", 1024 * _MIB, ("cloud",), ("device",), retain=True),
    messages.RunState: Route("wan/state", 4 * _KIB, ("cloud",), ("edge", "observer"), retain=True),
    messages.Update: Route("wan/update/{device}", 1024 * _MIB, ("device",), ("cloud",)),
    messages.Refused: Route("wan/refused/{device}", 16 * _KIB, ("cloud",), ("device",)),
    messages.OverlayWeights: Route("wan/overlay/{edge}", 1024 * _MIB, ("edge",), ("cloud",)),
    messages.ActivationBatch: Route(
        "lan/{edge}/activation/{device}", 64 * _MIB, ("device",), ("edge",), key=("batch",), droppable=True
    ),
    messages.TapReport: Route("lan/{edge}/report/{device}", 4 * _KIB, ("device",), ("edge",), droppable=True),
    messages.GlobalHead: Route("wan/head", 1024 * _MIB, ("cloud",), ("edge",), retain=True),
    messages.Interval: Route(
        "lan/{edge}/interval/{device}", 4 * _KIB, ("edge",), ("device",), key=("batch",), droppable=True
    ),
    messages.CannotTrain: Route("wan/cannot-train/{node}", 16 * _KIB, ("edge", "device"), ("cloud",)),
    messages.Unfit: Route("wan/unfit/{member}", 16 * _KIB, ("cloud",), ("edge", "device")),
    messages.Report: Route("wan/report/{node}", _KIB, _NODES, ("observer",), retain=True, droppable=True),
    messages.Event: Route("wan/event/{node}", 16 * _KIB, _NODES, ("observer",), key=("number",), droppable=True),
    messages.RunHistory: Route("wan/history", 128 * _KIB, ("cloud",), ("observer",), retain=True, droppable=True),
}


def key(message: Message) -> tuple[str, ...]:
    """Kind and ids: of messages with the same key a queue keeps only the newest."""
    route = ROUTES[type(message)]
    return (type(message).__name__, *(str(vars(message)[name]) for name in (*_fields(route), *route.key)))


def topic(root: str, message: Message, index: int = 0) -> str:
    """Where chunk `index` of `message` goes. Raises TopicError on an id that may not stand in a topic."""
    route = ROUTES[type(message)]
    name = route.topic.format_map({name: _checked(name, vars(message)[name]) for name in _fields(route)})
    return f"{root}/{name}/{index}" if route.retain else f"{root}/{name}"


def subscription(root: str, kind: type[Message], **ids: str) -> str:
    """The filter for messages of `kind`; a field that is not given matches any. Raises TopicError."""
    route = ROUTES[kind]
    if not set(ids) <= set(_fields(route)):
        raise TopicError(f"{kind.__name__}: its topic {route.topic} has no {', '.join(set(ids) - set(_fields(route)))}")
    return rule(root, route, **ids)


def filters(root: str, role: Role, link: Link, **ids: str) -> list[str]:
    """The filters for all that a node of `role` reads on `link`; `ids`: its own, for the fields of topics."""
    routes = [route for route in ROUTES.values() if route.link == link and role in route.readers]
    return [rule(root, route, **ids) for route in routes]


def check(root: str, name: str, message: Message, index: int) -> None:
    """Raises TopicError if `message` came by another topic than its own: the broker's ACL guards topics, fields are only
    claimed."""
    own = topic(root, message, index)
    if own != name:
        raise TopicError(f"{type(message).__name__} of {own} came by {name}")


def rule(root: str, route: Route, index: str = "+", **ids: str) -> str:
    """The filter of an ACL: as `subscription`, with `index` of a retained message's chunk."""
    name = route.topic.format_map({n: _checked(n, ids[n]) if n in ids else "+" for n in _fields(route)})
    return f"{root}/{name}/{index}" if route.retain else f"{root}/{name}"


def _fields(route: Route) -> list[str]:
    return re.findall(r"{(\w+)}", route.topic)


def _checked(name: str, value: str) -> str:
    if not ID.fullmatch(value):
        raise TopicError(f"{name} {value!r} may not stand in a topic: letters, digits, '.', '_', '-', at most 64")
    return value
