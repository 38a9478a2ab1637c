"""`emo check`: can the configurations of a fleet work, and do they fit each other?

Reads files only; `emo doctor` asks the machine and the brokers of one node. Where no file of a tier is given, nothing is
checked against that tier.
"""

import functools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from emo import bounded_yaml
from emo.config import CloudConfig, DeviceConfig, EdgeConfig, Tier, WatchConfig
from emo.config_file import Node, any_tier, tier, tier_of
from emo.errors import ConfigError, nearest
from emo.security import members

_STDIN = Path("-")
_MOST = 64 << 20  # bytes of standard input
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
N = TypeVar("N", DeviceConfig, EdgeConfig, CloudConfig)


def count(nodes: Mapping[str, Node]) -> str:
    """As "1 cloud, 4 devices"."""
    kinds = Counter(map(tier, nodes.values()))
    return ", ".join(f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in sorted(kinds.items()))


def read(paths: Sequence[Path]) -> tuple[dict[str, Node], list[str]]:
    """(file -> node, what is wrong with the other files). "-": standard input, a configuration after each `---`, which is
    named by its id. EMO_* variables, which are for one process, are not applied."""
    nodes: dict[str, Node] = {}
    problems: list[str] = []
    for load in (load for path in paths for load in _inputs(path)):
        try:
            where, node = load()
        except ConfigError as error:
            problems += str(error).splitlines()
            continue
        if where in nodes:
            problems.append(f"{where}: is there twice")
        nodes[where] = node
    return nodes, _together(problems)


def _together(lines: Sequence[str]) -> list[str]:
    """The same line of several nodes becomes one: "NODE and 3 more: ..."."""
    places: dict[str, list[str]] = {}
    for line in lines:
        where, _, text = line.partition(": ")
        places.setdefault(text, []).append(where)
    more = {text: f" and {len(names) - 1} more" if len(names) > 1 else "" for text, names in places.items()}
    return [f"{names[0]}{more[text]}: {text}" for text, names in places.items()]


def _inputs(path: Path) -> Iterator[Callable[[], tuple[str, Node]]]:
    """A call for each configuration in `path`. Raises ConfigError when their number cannot be told."""
    if path != _STDIN:
        yield lambda: (str(path), _whole(any_tier(path, {}), path))
        return
    data = sys.stdin.buffer.read(_MOST + 1)
    if len(data) > _MOST:
        raise ConfigError(f"standard input: has more than the {_MOST:,} bytes that are read")
    try:
        parts = re.split(r"(?m)^---[ \t]*$", data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError("standard input: is not UTF-8 text") from error
    for number, part in enumerate((part for part in parts if part.strip()), 1):
        yield functools.partial(_part, f"standard input, part {number}", part)


def _whole(node: Node, path: Path) -> Node:
    """With the file that it names; those in a configuration from standard input lie on other machines."""
    if isinstance(node, WatchConfig) and node.fleet is not None:
        try:
            role = members.load(node.fleet).role(node.id)
        except ConfigError as error:
            raise ConfigError(f"{path}: fleet: {error}") from error
        if role != "observer":
            raise ConfigError(
                f"{path}: id: {node.id!r} is a node of tier {role} in {node.fleet}, no observer: give it another"
            )
    return node


def _part(where: str, text: str) -> tuple[str, Node]:
    values = bounded_yaml.parse(text, where)
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected `key: value` lines, found a {type(values).__name__}")
    name = values.get("id")
    where = name if isinstance(name, str) else where
    return where, tier_of(values, where, {})


def wrong(nodes: Mapping[str, Node], own_brokers: bool = False) -> Iterator[str]:
    """A line for each way in which they do not fit. `own_brokers`: the cloud and each edge have a broker of their own, as
    `emo broker` writes them, which lets in no other nodes."""
    clouds, edges, devices = _of(nodes, CloudConfig), _of(nodes, EdgeConfig), _of(nodes, DeviceConfig)
    for name, number in Counter(node.id for node in nodes.values()).items():
        if number > 1:
            yield f"id: {number} nodes are called {name!r} ({_where(nodes, name)}); each needs a name of its own"
    if len(clouds) > 1:
        yield f"{', '.join(clouds)}: a fleet has one cloud"
    yield from _alike(nodes)
    for where, cloud in clouds.items():
        yield from _cloud(where, cloud, edges, devices)
    for where, edge in edges.items():
        yield from _edge(where, edge, devices)
    for where, device in devices.items():
        yield from _device(where, device, edges)
    yield from _shares(devices)
    yield from _brokers(clouds, edges, own_brokers)


def _of(nodes: Mapping[str, Node], kind: type[N]) -> dict[str, N]:
    return {where: node for where, node in nodes.items() if isinstance(node, kind)}


def _where(nodes: Mapping[str, Node], name: str) -> str:
    return ", ".join(where for where, node in nodes.items() if node.id == name)


def _alike(nodes: Mapping[str, Node]) -> Iterator[str]:
    """What has to be the same on every node that has it: the model, the topics' first level, encryption at one broker."""
    first: dict[str, tuple[str, Any]] = {}
    for where, node in sorted(nodes.items(), key=lambda item: not isinstance(item[1], CloudConfig)):
        model = node.model.model_dump(mode="json") if isinstance(node, Tier) else {}  # an observer has none
        has = {f"model.{key}": value for key, value in model.items()}
        has |= {"wan.root": node.wan.root, f"wan.port at {node.wan.host}": node.wan.port}
        for broker in (node.wan, getattr(node, "lan", node.wan)):
            if broker.host not in _LOOPBACK:
                has[f"tls of {broker.host}:{broker.port}"] = "set" if broker.tls else "not set"
        for key, value in has.items():
            where_first, other = first.setdefault(key, (where, value))
            if value != other:
                yield f"{where}: {key} is {value}, {where_first} has {other}: it must be the same on every node"


def _taps(device: DeviceConfig) -> bool:
    return device.edge is not None and device.tap.enabled


def _cloud(
    where: str, cloud: CloudConfig, edges: Mapping[str, EdgeConfig], devices: Mapping[str, DeviceConfig]
) -> Iterator[str]:
    if devices and cloud.rounds.min_devices > len(devices):
        yield (
            f"{where}: rounds.min_devices is {cloud.rounds.min_devices}, there are {len(devices)} devices: no round "
            "would ever begin"
        )
    if cloud.overlays.fit != "none" and not cloud.data.heldout:
        yield f"{where}: overlays.fit is {cloud.overlays.fit}, which needs data.heldout (0.1, say)"
    for place, device in devices.items():
        for key in ("seed", "heldout"):
            mine, other = getattr(cloud.data, key), getattr(device.data, key)
            if device.partition and device.data.name == cloud.data.name and mine != other:
                yield f"{place}: data.{key} is {other}, {where} has {mine}: they share a dataset"
    names = {edge.id: (place, edge) for place, edge in edges.items()}
    for name in cloud.overlays.edges if edges else ():
        if name not in names:
            yield f"{where}: overlays.edges names {name!r}, which is no edge here; {nearest(name, names)}"
    for name, (place, edge) in names.items():
        if name not in cloud.overlays.edges:
            yield f"{where}: overlays.edges does not name {name!r} ({place}): its overlay would be refused"
        elif edge.overlay.finish_s >= cloud.overlays.wait_s:
            yield (
                f"{place}: overlay.finish_s is {edge.overlay.finish_s:g}, {where} waits for overlays.wait_s = "
                f"{cloud.overlays.wait_s:g} only: make it less"
            )


def _edge(where: str, edge: EdgeConfig, devices: Mapping[str, DeviceConfig]) -> Iterator[str]:
    names = {device.id: (place, device) for place, device in devices.items()}
    if not edge.devices:
        yield f"{where}: devices is empty: nobody would send it activations"
    for name in edge.devices if devices else ():
        if name not in names:
            yield f"{where}: devices names {name!r}, which is no device here; {nearest(name, names)}"
        elif _taps(names[name][1]) and names[name][1].edge != edge.id:
            yield f"{where}: devices names {name!r}, whose edge is {names[name][1].edge!r} ({names[name][0]})"


def _device(where: str, device: DeviceConfig, edges: Mapping[str, EdgeConfig]) -> Iterator[str]:
    if not edges or not _taps(device):
        return
    names = {edge.id: (place, edge) for place, edge in edges.items()}
    if device.edge not in names:
        yield f"{where}: edge is {device.edge!r}, which is no edge here; {nearest(str(device.edge), names)}"
        return
    place, edge = names[device.edge]
    if device.id not in edge.devices:
        yield f"{where}: edge is {device.edge!r}, whose devices ({place}) do not name {device.id!r}"
    if device.lan.host == edge.lan.host and device.lan.port != edge.lan.port:
        yield f"{where}: lan.port is {device.lan.port}, {place} has {edge.lan.port}: they would never meet"
    if device.lan.root != edge.lan.root:
        yield f"{where}: lan.root is {device.lan.root}, {place} has {edge.lan.root}: they would never meet"


def _shares(devices: Mapping[str, DeviceConfig]) -> Iterator[str]:
    """One dataset is dealt out by one rule, and no share goes to two devices."""
    taken: dict[int, str] = {}
    first: tuple[str, Any] | None = None
    for where, device in devices.items():
        if device.partition is None:
            continue
        rule = device.partition.model_dump(exclude={"index"})
        rule["data"] = device.data.model_dump(exclude={"dir"})
        where_first, other = first = first or (where, rule)
        differ = [key for key in rule if rule[key] != other[key]]
        if differ:
            yield f"{where}: partition and data deal out another dataset than {where_first}: {', '.join(differ)} differ"
        index = device.partition.index
        if index in taken:
            yield f"{where}: partition.index {index} is {taken[index]}'s too: both would train on the same samples"
        taken.setdefault(index, where)


def _brokers(clouds: Mapping[str, CloudConfig], edges: Mapping[str, EdgeConfig], own: bool) -> Iterator[str]:
    owners: dict[tuple[str, int], str] = {}
    brokers = [(where, cloud.wan) for where, cloud in clouds.items()]
    brokers += [(where, edge.lan) for where, edge in edges.items()]
    for where, broker in brokers if own else ():
        owner = owners.setdefault((broker.host, broker.port), where)
        if owner != where:
            yield f"{where}: its broker is at {broker.host}:{broker.port}, and so is that of {owner}: each has its own"
