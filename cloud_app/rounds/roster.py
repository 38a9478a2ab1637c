"""Who is here, as the status messages say it, and when that is no longer to be believed.

Knows ids and seconds. Knows no round and no channel.

A status holds until another comes: the broker says the last word of who vanishes. It says none where it was itself
away meanwhile, or where nobody listened: then every device has to show itself within `patience_s`, or counts as gone.
"""

from collections.abc import Mapping

import numpy as np

from emo.journal import Journal
from emo.runtime.agreement import differences
from emo.wire.messages import Facts, Status

_NAMED = 5  # in a sentence


class Roster:
    """`devices`: those that are online and take part, with their training samples; `edges`: all that are online. `out`: of
    both, who is online and takes no part, and why. `facts`: what a node must have alike (agreement.py)."""

    def __init__(self, patience_s: float, journal: Journal, facts: Facts) -> None:
        self.devices: dict[str, int] = {}
        self.edges: set[str] = set()
        self.out: dict[str, str] = {}
        self._facts = facts
        self._patience_s, self._journal = patience_s, journal
        self._doubted: set[str] = set()
        self._since: float | None = None

    def take(self, status: Status, number: int) -> str:
        """In round `number`. How the node differs from the cloud, for itself to hear; empty where it does not."""
        differs = differences(self._facts, status.facts) if status.online else ""
        why = differs or (status.trouble if status.online else "")
        if status.role == "edge":
            (self.edges.add if status.online else self.edges.discard)(status.node)
        elif status.role == "device":
            self._doubted.discard(status.node)
            if status.online and not why:
                self.devices[status.node] = status.samples
            else:
                self._gone(status.node, number)
        else:
            return ""
        if not why:
            self.out.pop(status.node, None)
        elif self.out.get(status.node) != why:
            self.out[status.node] = why
            said = f"{status.role} {status.node} takes no part: {why}"
            self._journal.problem("nodes.unfit" if differs else "nodes.cannot_train", said)
            event = "unfit" if differs else "cannot_train"
            self._journal.event(event, status.node, node=status.node, round=number, why=why)
        return differs

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
        if self.out:
            return f"{text}; left out: {reasons(self.out)}"
        if self.devices:
            return text
        return (
            f"{text}. Are they running, with this broker and the same wan.root? A broker that gives retained messages to no "
            "wildcard shows those that came first half a minute late; `emo doctor --config` tries it"
        )


def reasons(why: Mapping[str, str]) -> str:
    """For people: who, and why."""
    more = [f"and {len(why) - _NAMED} more"] * (len(why) > _NAMED)
    return ", ".join([*(f"{node} ({why[node]})" for node in sorted(why)[:_NAMED]), *more])
