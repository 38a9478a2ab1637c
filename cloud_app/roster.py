"""Who is here, as the status messages say it, and when that is no longer to be believed.

Knows ids and seconds. Knows no round and no channel.

A status holds until another comes: the broker says the last word of who vanishes. It says none where it was itself
away meanwhile, or where nobody listened: then every device has to show itself within `patience_s`, or counts as gone.
"""

from collections.abc import Mapping

import numpy as np

from emo.journal import Journal
from emo.messages import Status


class Roster:
    """`devices`: those that are online, with their training samples; `edges`: likewise."""

    def __init__(self, patience_s: float, journal: Journal) -> None:
        self.devices: dict[str, int] = {}
        self.edges: set[str] = set()
        self._patience_s, self._journal = patience_s, journal
        self._doubted: set[str] = set()
        self._since: float | None = None

    def take(self, status: Status, number: int) -> None:
        """In round `number`."""
        if status.role == "edge":
            (self.edges.add if status.online else self.edges.discard)(status.node)
        elif status.role == "device":
            self._doubted.discard(status.node)
            if status.online:
                self.devices[status.node] = status.samples
            else:
                self._gone(status.node, number)

    def _gone(self, device: str, number: int) -> None:
        if self.devices.pop(device, None) is not None:
            self._journal.event("device_gone", device, device=device, round=number)

    def resume(self, devices: Mapping[str, int], edges: list[str]) -> None:
        """As another process had it."""
        self.devices, self.edges = dict(devices), set(edges)
        self.doubt()

    def doubt(self) -> None:
        """Something may have been missed."""
        self._doubted, self._since = set(self.devices), None

    def expire(self, now: float, number: int) -> None:
        """Whoever has not shown himself since is gone."""
        if not self._doubted:
            return
        self._since = now if self._since is None else self._since
        if now - self._since >= self._patience_s:
            for device in sorted(self._doubted):
                self._gone(device, number)
            self._doubted = set()

    def choose(self, count: int | None, seed: list[int]) -> list[str]:
        """So many of the devices, sorted; all of them where None is asked for. The same devices and seed, the same choice."""
        live = sorted(self.devices)
        rng = np.random.default_rng(seed)
        return sorted(
            live[i] for i in rng.choice(len(live), min(count or len(live), len(live)), replace=False)
        )

    def too_few(self, wanted: int) -> str:
        """For people."""
        text = f"{len(self.devices)} of {wanted} devices are here ({', '.join(sorted(self.devices))})"
        if self.devices:
            return text
        return (
            f"{text}. Are they running, with this broker and the same wan.root? A broker that gives retained messages to no "
            "wildcard shows those that came first half a minute late; `emo doctor --config` tries it"
        )
