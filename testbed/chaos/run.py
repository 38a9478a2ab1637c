"""One run of `emo chaos`: the fleet starts, its faults come by schedule, and it has to finish all the same.

What it saw is in `RunRecord`, what the tiers say is in their folders, and invariants.py judges both.
"""

import contextlib
import heapq
import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil

from testbed.chaos.cache_watch import CacheWatch
from testbed.chaos.fleet import HOSTILE_EDGE, Fleet, Plan
from testbed.chaos.hostile import Hostile
from testbed.chaos.process import Process, Tier
from testbed.chaos.proxy import CLEAR, LinkState
from testbed.chaos.schedule import Act, Fault, Kind, acts, schedule

_TURN_S = 0.02
_WATCH_S = 0.25
_SAY_S = 5.0
_AGAIN_S = 0.5  # until a process that ended by itself is started again, as a service manager does
_QUIET_S = 240.0  # after the last fault the run has this long to finish
_STOP_S = 20.0  # for a process to end in good order
_MOST_EXITS = 50


@dataclass
class RunRecord:
    """`exits`: (process, status, whether its disk was full lately) of what ended by itself. `stubborn`: processes that did
    not end on SIGTERM. `backwards`: what the watch of the caches found. `during`: rounds that were closed when the last fault was over.
    `seconds`: until the cloud had finished. `peaks`: MiB that each tier held at most."""

    injected: Counter[str] = field(default_factory=Counter)
    exits: list[tuple[str, int, bool]] = field(default_factory=list)
    stubborn: list[str] = field(default_factory=list)
    backwards: list[str] = field(default_factory=list)
    finished: bool = False
    during: int = 0
    seconds: float = 0.0
    peaks: dict[str, int] = field(default_factory=dict)


class Run:
    def __init__(self, fleet: Fleet, plan: Plan, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._fleet, self._stop, self._say = fleet, stop, say
        self.faults = schedule(plan.seed, plan.faults, plan.over_s, fleet.targets())
        self.acts = acts(plan.seed, plan.hostile, plan.over_s)
        self.hostile: Hostile | None = None
        if fleet.hostile is not None:
            ports = fleet.ports["broker"], fleet.ports["broker-1"]
            self.hostile = Hostile(fleet.hostile, HOSTILE_EDGE, *ports, plan.seed)
        self.seen = RunRecord()
        self._watch = CacheWatch({edge: config.cache.dir for edge, config in fleet.edges.items()})
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._began = 0.0
        self._full: dict[str, float] = {}  # tier -> when its disk was full last
        self._active = 0
        # What each returns mends it again.
        self._breaks: dict[Kind, Callable[[Fault], Callable[[], None]]] = {
            "kill": lambda fault: self._signalled(fault, signal.SIGKILL),
            "restart": lambda fault: self._signalled(fault, signal.SIGTERM),
            "stop": self._hold,
            "cut": self._cut,
            "silent": lambda fault: self._link_state(fault, LinkState(silent=True)),
            "throttle": lambda fault: self._link_state(fault, LinkState(rate=fault.amount)),
            "delay": lambda fault: self._link_state(fault, LinkState(delay_s=fault.amount)),
            "disk": self._disk,
            "clock": self._clock,
        }

    def run(self) -> RunRecord:
        """Until the cloud has finished, `stop` is set, or it takes too long; then everything is ended in good order."""
        try:
            for process in self._fleet.processes().values():
                process.start()
            self._began = time.monotonic()
            if self.hostile is not None:
                self.hostile.start()
            for at, act, variant in self.acts:
                self._at(at, lambda act=act, variant=variant: self._act(act, variant))  # type: ignore[misc]
            for fault in self.faults:
                self._at(fault.at, lambda fault=fault: self._inject(fault))  # type: ignore[misc]  # its default
            for _ in self._turns():
                if self._cloud_has_finished():
                    self.seen.finished = True
                    break
        finally:
            self.seen.seconds = round(self._now(), 1)
            self._end()
        return self.seen

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._numbers), act))

    def _turns(self) -> Iterator[None]:
        watched = said = 0.0
        last = [fault.at + fault.lasts for fault in self.faults] + [at for at, _, _ in self.acts]
        until = max(last, default=0.0) + _QUIET_S
        while self._now() < until and not self._stop.wait(_TURN_S):
            while self._queue and self._queue[0][0] <= self._now():
                heapq.heappop(self._queue)[2]()
            yield
            self._supervise()
            if self._now() - watched > _WATCH_S:
                self._watch.look()
                self._weigh()
                watched = self._now()
            if self._now() - said > _SAY_S:
                said = self._now()
                done = (
                    f"{sum(self.seen.injected.values())} of {len(self.faults) + len(self.acts)} faults, "
                    f"{self._active} at work"
                )
                self._say(f"{said:6.1f} s  {done}; {self._fleet.rounds()} rounds closed")

    def _weigh(self) -> None:
        for name, tier in self._fleet.tiers.items():
            with contextlib.suppress(psutil.Error):
                held = psutil.Process(tier.pid).memory_info().rss >> 20 if tier.alive() else 0
                self.seen.peaks[name] = max(held, self.seen.peaks.get(name, 0))

    def _cloud_has_finished(self) -> bool:
        cloud = self._fleet.tiers["cloud"]
        return cloud.wanted and cloud.status() == 0

    def _supervise(self) -> None:
        for name, process in self._fleet.processes().items():
            status = process.status()
            if not process.wanted or status is None:
                continue
            full = self._now() - self._full.get(name, -1e9) < 2 * _STOP_S
            self.seen.exits.append((name, status, full))
            self._say(f"{self._now():6.1f} s  {name} ended by itself, status {status}")
            process.wanted = False
            if len(self.seen.exits) < _MOST_EXITS:
                self._at(self._now() + _AGAIN_S, process.start)

    # -- faults

    def _act(self, act: Act, variant: float) -> None:
        assert self.hostile is not None
        self.seen.injected[act] += 1
        self._say(f"{self._now():6.1f} s  hostile {act} ({variant:.2f})")
        self.hostile.act(act, variant)
        self.seen.during = self._fleet.rounds()

    def _inject(self, fault: Fault) -> None:
        self.seen.injected[fault.kind] += 1
        self._say(f"{self._now():6.1f} s  {fault}")
        self._active += 1
        mend = self._breaks[fault.kind](fault)

        def over() -> None:
            self._active -= 1
            mend()
            self.seen.during = self._fleet.rounds()

        self._at(self._now() + fault.lasts, over)

    def _signalled(self, fault: Fault, number: signal.Signals) -> Callable[[], None]:
        process = self._fleet.processes()[fault.target]
        if self._is_over(process):
            return lambda: None
        process.wanted = False
        process.send(number)
        asked, starts = self._now(), process.starts
        return lambda: self._start_again(process, asked, starts)

    def _start_again(self, process: Process, asked: float, starts: int) -> None:
        if process.starts != starts:
            return  # it was slow to end, and the next fault has killed it and started it again
        if process.alive():
            if self._now() - asked > _STOP_S:
                self.seen.stubborn.append(process.name)
                process.send(signal.SIGKILL)
            self._at(self._now() + 0.05, lambda: self._start_again(process, asked, starts))
        elif process.name == "cloud" and process.status() == 0:
            process.wanted = True  # it had finished: `_cloud_has_finished` sees it now
        else:
            process.start()

    def _is_over(self, process: Process) -> bool:
        # Between the cloud's last act and our noticing it there is a moment.
        return process.name == "cloud" and process.status() == 0

    def _hold(self, fault: Fault) -> Callable[[], None]:
        process = self._fleet.processes()[fault.target]
        process.send(signal.SIGSTOP)
        return lambda: process.send(signal.SIGCONT)

    def _cut(self, fault: Fault) -> Callable[[], None]:
        mend = self._link_state(fault, LinkState(refuse=True))
        self._fleet.links[fault.target].cut()
        return mend

    def _link_state(self, fault: Fault, state: LinkState) -> Callable[[], None]:
        link = self._fleet.links[fault.target]
        link.set(state)
        return lambda: link.set(CLEAR)

    def _disk(self, fault: Fault) -> Callable[[], None]:
        disk, tier = self._fleet.disks[fault.target], self._fleet.tiers[fault.target]
        disk.fill(tier.pid)

        def mend() -> None:
            self._full[fault.target] = self._now()
            disk.free(tier.pid if tier.alive() else 0)

        self._full[fault.target] = self._now()
        return mend

    def _clock(self, fault: Fault) -> Callable[[], None]:
        tier = self._fleet.tiers[fault.target]
        tier.shift(fault.amount)
        return lambda: tier.shift(0.0)

    # -- the end

    def _end(self) -> None:
        if self.hostile is not None:
            self.hostile.stop()
        for link in self._fleet.links.values():
            link.set(CLEAR)
        for name, disk in self._fleet.disks.items():
            disk.free(self._fleet.tiers[name].pid if self._fleet.tiers[name].alive() else 0)
        for processes in (self._fleet.tiers.values(), self._fleet.brokers.values()):
            chosen: list[Process] = list(processes)
            for process in chosen:
                process.wanted = False
                process.send(signal.SIGCONT)
                process.send(signal.SIGTERM)
            for process in chosen:
                if not process.stop(_STOP_S) and isinstance(process, Tier):
                    self.seen.stubborn.append(process.name)
        self._watch.look()
        self.seen.backwards = self._watch.backwards
        for disk in self._fleet.disks.values():
            disk.settle()
