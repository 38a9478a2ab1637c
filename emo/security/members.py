"""`fleet.yaml`: who belongs to a fleet, and which devices to which edge.

    cloud: cloud
    edges:
      edge-1: [device-01, device-02]
      edge-2: [device-03]
    observers: [watch]        # `emo watch`; may be left out

The access rules of every broker (acl.py) and the roles of certificates come from it.
"""

from collections.abc import Iterator
from pathlib import Path

from emo import bounded_yaml
from emo.config import Id, Section
from emo.config_file import parse
from emo.errors import ConfigError, nearest
from emo.wire.messages import Role


class Members(Section):
    cloud: Id = "cloud"
    edges: dict[Id, tuple[Id, ...]]
    observers: tuple[Id, ...] = ()

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
        if name in self.observers:
            return "observer"
        known = nearest(name, (self.cloud, *self.edges, *self.devices, *self.observers))
        raise ConfigError(f"no node {name!r} in this fleet; {known}")

    def places(self) -> Iterator[tuple[str, str]]:
        """(id, what it is) of every node, in the file's order."""
        yield self.cloud, "the cloud"
        for edge, devices in self.edges.items():
            yield edge, "an edge"
            for device in devices:
                yield device, f"a device of {edge}"
        for observer in self.observers:
            yield observer, "an observer"


def load(path: Path) -> Members:
    """Raises ConfigError: file, key, and what would be right."""
    values = bounded_yaml.read(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `cloud:` and `edges:`, found a {type(values).__name__}")
    members = parse(Members, values, str(path), environ={})
    places: dict[str, str] = {}
    for name, place in members.places():
        if name in places:
            also = "twice" if places[name] == place else f"and {places[name]}"
            raise ConfigError(f"{path}: {name} is {place} {also}; a node has an id of its own, and a device one edge")
        places[name] = place
    return members
