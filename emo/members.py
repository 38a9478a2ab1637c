"""Who belongs to a fleet, and which devices to which edge: `fleet.yaml`.

    cloud: cloud
    edges:
      edge-1: [device-01, device-02]
      edge-2: [device-03]

The access rules of every broker (emo/acl.py) and the roles of certificates come from it. Knows no address and
no configuration of a tier.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from emo.config import Id, Section
from emo.errors import ConfigError, nearest
from emo.settings import parse
from emo.topics import Role


class Members(Section):
    cloud: Id = "cloud"
    edges: dict[Id, tuple[Id, ...]]

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(device for devices in self.edges.values() for device in devices)

    def role(self, name: str) -> Role:
        """Raises ConfigError when `name` is not of this fleet."""
        if name == self.cloud:
            return "cloud"
        if name in self.edges:
            return "edge"
        if name in self.devices:
            return "device"
        known = nearest(name, (self.cloud, *self.edges, *self.devices))
        raise ConfigError(f"no node {name!r} in this fleet; {known}")

    def places(self) -> Iterator[tuple[str, str]]:
        """(id, what it is) of every node, in the file's order."""
        yield self.cloud, "the cloud"
        for edge, devices in self.edges.items():
            yield edge, "an edge"
            for device in devices:
                yield device, f"a device of {edge}"


class _Loader(yaml.SafeLoader):
    """YAML whose mappings hold no key twice: of two lines for one edge, the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                place = f"line {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"{place}: {name!r} stands there twice; write its devices in one list")
            seen.add(name)
        return super().construct_mapping(node, deep)


def load(path: Path) -> Members:
    """Raises ConfigError: file, key, and what would be right."""
    try:
        # A subclass of SafeLoader: plain values only.
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML as a fleet has it: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `cloud:` and `edges:`, found a {type(values).__name__}")
    members = parse(Members, values, str(path), environ={})
    places: dict[str, str] = {}
    for name, place in members.places():
        if name in places:
            also = "twice" if places[name] == place else f"and {places[name]}"
            raise ConfigError(
                f"{path}: {name} is {place} {also}; a node has an id of its own, and a device one edge"
            )
        places[name] = place
    return members
