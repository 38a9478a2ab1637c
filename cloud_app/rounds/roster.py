"""Which devices and edges are online, by their status messages.

A status holds until another comes: where a node vanishes, the broker publishes its last one. It publishes none where it
was itself away meanwhile, or where nobody listened: then every device has to show itself within `patience_s`, or counts
as gone.
"""

from collections.abc import Mapping

import numpy as np

from cloud_app.rounds.state import State
from emo.journal import Journal
from emo.runtime.agreement import differences
from emo.wire.messages import Facts, Status

_NAMED = 5  # in a sentence


class Roster:
    """The `devices` and `edges` of `state`. `out`: of both, who is online and takes no part, and why. `facts`: what a node
    must have alike (emo/runtime/agreement.py)."""

    def __init__(self, state: State, patience_s: float, journal: Journal, facts: Facts) -> None:
        self._state, self._patience_s, self._journal, self._facts = state, patience_s, journal, facts
        self.out: dict[str, str] = {}
        self.doubt()

    def take(self, status: Status) -> str:
        """How the node differs from the cloud, to be told to it; empty where it does not."""
        state = self._state
        differs = differences(self._facts, status.facts) if status.online else ""
        why = differs or (status.trouble if status.online else "")
        if status.role == "edge":
            (state.edges.add if status.online else state.edges.discard)(status.node)
        elif status.role == "device":
            self._doubted.discard(status.node)
            if status.online and not why:
                state.devices[status.node] = status.samples
            else:
                self._gone(status.node)
        else:
            return ""
        if not why:
            self.out.pop(status.node, None)
        elif self.out.get(status.node) != why:
            self.out[status.node] = why
            event = "unfit" if differs else "cannot_train"
            self._journal.problem(f"nodes.{event}", f"{status.role} {status.node} takes no part: {why}")
            self._journal.event(event, status.node, node=status.node, round=state.round, why=why)
        return differs

    def _gone(self, device: str) -> None:
        if self._state.devices.pop(device, None) is not None:
            self._journal.event("device_gone", device, device=device, round=self._state.round)

    def doubt(self) -> None:
        """A device's last status may have been missed."""
        self._doubted = set(self._state.devices)
        self._since: float | None = None

    def expire(self, now: float) -> None:
        """Removes the devices that have sent no status in `patience_s` of doubt."""
        if not self._doubted:
            return
        self._since = now if self._since is None else self._since
        if now - self._since >= self._patience_s:
            for device in sorted(self._doubted):
                self._gone(device)
            self._doubted = set()

    def choose(self, count: int | None, seed: list[int]) -> list[str]:
        """`count` of the devices, or all of them (None), sorted. The same devices and seed give the same choice."""
        live = sorted(self._state.devices)
        rng = np.random.default_rng(seed)
        return sorted(live[i] for i in rng.choice(len(live), min(count or len(live), len(live)), replace=False))

    def too_few(self, wanted: int) -> str:
        """For people."""
        devices = self._state.devices
        text = f"{len(devices)} of {wanted} devices are here ({', '.join(sorted(devices))})"
        if self.out:
            return f"{text}; left out: {reasons(self.out)}"
        if devices:
            return text
        return (
            f"{text}. Are they running, with this broker and the same wan.root? A broker that gives retained messages to no "
            "wildcard shows those that came first half a minute late; `emo doctor --config` tries it"
        )


def reasons(why: Mapping[str, str]) -> str:
    """For people: names, each with its reason."""
    more = [f"and {len(why) - _NAMED} more"] * (len(why) > _NAMED)
    return ", ".join([*(f"{node} ({why[node]})" for node in sorted(why)[:_NAMED]), *more])
