"""When a round's work would be done: each device, server and link of a scenario, on a virtual clock.

fl-*, emo   model down (WAN) -> its batches -> model up (WAN); EMO's activations leave beside it (LAN)
sfl-*       trunk down (WAN) -> each batch: trunk forward, activations up, server's forward and backward,
            gradient down, trunk backward, each waiting for the one before (SplitFed V1, Thapa et al. 2022, on the
            LAN or WAN) -> trunk up (WAN). At an edge the server's part comes from the cloud first and goes back
            when the last of its devices is through.
"""

import math
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Literal

from testbed.plan import DeviceWork, MethodName, Plan, RoundTime, RoundWork
from testbed.timing.clock import Arrive, Gate, Process, Resource, Trace, Until, Use, run
from testbed.timing.costs import Costs
from testbed.timing.scenario import Link, Scenario, on_device

WHOLE = frozenset({"GlobalModel", "Update"})  # cross once a round; every other kind is spread over the batches


def link(method: MethodName, kind: str) -> Literal["lan", "wan"]:
    """Which link a message of class `kind` crosses between a device and its server."""
    return "lan" if method in ("emo", "sfl-edge") and kind not in WHOLE else "wan"


def round_time(plan: Plan, scenario: Scenario, work: RoundWork, cost: Costs) -> RoundTime:
    """Virtual seconds of `work` (its bytes as counted, its FLOPs by `cost`: `costs.of(plan.model)`).

    `seconds`: until the last update of those that send one is there, all activations have crossed the LAN (emo) and
    the edges have been sent their server's parts and have sent them back (sfl-edge, `work.overlays_down`, `.overlays`); how long a cloud waits for those who never
    send is not in it. `beside`: what went on in parallel and held up nothing (emo): overlay training by edge, and the
    overlays' way to the cloud in a round that has `work.overlays`.
    """
    return _Round(plan, scenario, work, cost).time()


class _Lines:
    """A link's two directions as resources, one pair for all of a group or for each by itself."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._found: dict[Hashable, Resource] = {}

    def __call__(self, direction: str, group: Hashable, one: Hashable) -> Resource:
        key = (direction, group if self._link.shared else one)
        if key not in self._found:
            self._found[key] = Resource(self._link.mbit_s * 1e6 / 8, self._link.latency_ms / 1e3)
        return self._found[key]


class _Round:
    def __init__(self, plan: Plan, scenario: Scenario, work: RoundWork, cost: Costs) -> None:
        self._plan, self._scenario, self._work, self._cost = plan, scenario, work, cost
        self._lan, self._wan = _Lines(scenario.lan), _Lines(scenario.wan)
        self._at_edge = plan.method in ("emo", "sfl-edge")
        self._edge = {each.device: plan.edge_of(each.device) if self._at_edge else 0 for each in work.devices}
        self._here = {e: sum(edge == e for edge in self._edge.values()) for e in set(self._edge.values())}
        self._server = scenario.edge if plan.method == "sfl-edge" else scenario.cloud
        self._servers = {edge: Resource(1.0) for edge in self._here}
        self._ready = {edge: Gate(int(plan.method == "sfl-edge")) for edge in self._here}
        self._through = {edge: Gate(count) for edge, count in self._here.items()}

    def time(self) -> RoundTime:
        work, plan = self._work, self._plan
        split = plan.method.startswith("sfl")
        processes = [self._split(each) if split else self._whole(each) for each in work.devices]
        if plan.method == "sfl-edge":
            processes += [self._halves(edge) for edge in sorted(self._here)]
        traces = run(processes)
        ends = dict(zip((each.device for each in work.devices), traces, strict=False))
        there = {device: trace for device, trace in ends.items() if not self._scenario.drops(plan, work.number, device)}
        last = max((there or ends).values(), key=lambda trace: trace.end, default=Trace())
        parts = {name: seconds for name, seconds in last.parts.items() if seconds > 0}
        seconds = max([last.end, *(trace.beside for trace in traces), *self._edges_end(traces)])
        if seconds > last.end:
            late = "activations queue" if plan.method == "emo" else "server's model"
            parts[late] = parts.get(late, 0.0) + seconds - last.end
        arrivals = {device: trace.end for device, trace in there.items()}
        return RoundTime(seconds, arrivals, parts, dict(self._beside()))

    def _edges_end(self, traces: list[Trace]) -> list[float]:
        return [trace.end for trace in traces[len(self._work.devices) :]]

    def _whole(self, work: DeviceWork) -> Process:
        device, batches = work.device, max(1, work.batches)
        machine = self._scenario.device_class(self._plan, device)
        slow = self._scenario.slowdown(self._plan, self._work.number, device)
        net, processor = on_device(self._plan, self._cost), Resource(1.0)
        down, up = self._bytes(work.down, "wan"), self._bytes(work.up, "wan")
        lan_down, lan_up = self._bytes(work.down, "lan"), self._bytes(work.up, "lan")
        yield Use(self._wan("down", 0, device), down, "download")
        for _ in range(batches):
            yield Use(processor, slow * machine.step(net, work.samples / batches), "compute")
            if lan_up or lan_down:
                edge = self._edge[device]
                yield Use(self._lan("up", edge, device), lan_up / batches, "activations", beside=True)
                yield Use(self._lan("down", edge, device), lan_down / batches, "activations", beside=True)
        if not self._scenario.drops(self._plan, self._work.number, device):
            yield Use(self._wan("up", 0, device), up, "upload")

    def _split(self, work: DeviceWork) -> Process:
        device, edge, batches = work.device, self._edge[work.device], max(1, work.batches)
        machine = self._scenario.device_class(self._plan, device)
        slow = self._scenario.slowdown(self._plan, self._work.number, device)
        samples, processor, server = work.samples / batches, Resource(1.0), self._servers[edge]
        lines = self._lan if self._at_edge else self._wan
        up, down = lines("up", edge, device), lines("down", edge, device)
        whole_up, whole_down = self._whole_bytes(work.up), self._whole_bytes(work.down)
        batch_up = (sum(work.up.values()) - whole_up) / batches
        batch_down = (sum(work.down.values()) - whole_down) / batches
        yield Use(self._wan("down", 0, device), whole_down, "download")
        yield Until(self._ready[edge], "server's model")
        for _ in range(batches):
            yield Use(processor, slow * machine.forward(self._cost.trunk, samples), "compute")
            yield Use(up, batch_up, "activations")
            yield Use(server, self._server.step(self._cost.overlay, samples), "server")
            yield Use(down, batch_down, "gradients")
            yield Use(processor, slow * machine.backward(self._cost.trunk, samples), "compute")
        yield Arrive(self._through[edge])
        if not self._scenario.drops(self._plan, self._work.number, device):
            yield Use(self._wan("up", 0, device), whole_up, "upload")

    def _halves(self, edge: int) -> Process:
        down, up = (sizes[edge] if sizes else 0 for sizes in (self._work.overlays_down, self._work.overlays))
        yield Use(self._wan("down", 0, ("edge", edge)), down, "download")
        yield Arrive(self._ready[edge])
        yield Until(self._through[edge], "devices")
        yield Use(self._wan("up", 0, ("edge", edge)), up, "upload")

    def _bytes(self, kinds: dict[str, int], which: str) -> int:
        return sum(count for kind, count in kinds.items() if link(self._plan.method, kind) == which)

    def _whole_bytes(self, kinds: dict[str, int]) -> int:
        return sum(count for kind, count in kinds.items() if kind in WHOLE)

    def _beside(self) -> Iterable[tuple[str, float]]:
        if self._plan.method != "emo":
            return
        samples = self._plan.overlay.batches * self._plan.batch_size
        for edge, steps in enumerate(self._work.steps, 1):
            yield f"overlay-{edge}", steps * self._scenario.edge.step(self._cost.overlay, samples)
        if any(self._work.overlays):
            wan = self._scenario.wan
            size = sum(self._work.overlays) if wan.shared else max(self._work.overlays)
            yield "overlay upload", 8e-6 * size / wan.mbit_s + wan.latency_ms / 1e3


def until_closed(time: RoundTime, seconds: float) -> RoundTime:
    """`time`, where the server has closed the round after `seconds`: later, because it waited for who did not come, or
    before the last update came."""
    last = max(time.arrivals.values(), default=0.0)
    if math.isclose(seconds, last, abs_tol=1e-6):  # virtual seconds since the first round have fewer digits
        return time
    if seconds > last:
        waiting = max(seconds - time.seconds, 0.0)
        return replace(time, seconds=time.seconds + waiting, parts={**time.parts, "waiting": waiting})
    there = {device: at for device, at in time.arrivals.items() if at <= seconds}
    return RoundTime(seconds, there, {"until the deadline": seconds}, time.beside)
