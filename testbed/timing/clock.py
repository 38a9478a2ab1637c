"""A virtual clock: processes that use resources one after the other, and what time that takes.

A process is a generator of stages; a resource serves whoever asked first, at the same moment whoever started first, so that the
same processes give the same times.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field


class Resource:
    """Serves one at a time: `rate` units a second, first come first served. A stage ends `latency` seconds after it
    has been served, while the next is served already: so a link behaves. `busy`: seconds that it has served."""

    def __init__(self, rate: float, latency: float = 0.0) -> None:
        self.busy = 0.0
        self._rate, self._latency, self._free = rate, latency, 0.0

    def use(self, now: float, amount: float) -> tuple[float, float]:
        """(seconds in the queue, when the stage ends). Calls come in order of `now`."""
        start, seconds = max(now, self._free), amount / self._rate
        self._free = start + seconds
        self.busy += seconds
        return start - now, self._free + self._latency


@dataclass
class Gate:
    """Opens for good when `count` processes have arrived."""

    count: int


@dataclass(frozen=True)
class Use:
    """Take `amount` of `resource`, in part `what` of the process's time; its queue is part "`what` queue". `beside`:
    the process goes on at once."""

    resource: Resource
    amount: float
    what: str
    beside: bool = False


@dataclass(frozen=True)
class Arrive:
    gate: Gate


@dataclass(frozen=True)
class Until:
    """Wait for `gate` to open, in part `what`."""

    gate: Gate
    what: str


Process = Generator[Use | Arrive | Until, None, None]


@dataclass
class Trace:
    """`end`: seconds after the start. `parts`: of that time, by name; they add up to it. `beside`: when the last of
    what ran beside it ended, 0 for nothing."""

    end: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    beside: float = 0.0


def run(processes: Sequence[Process]) -> list[Trace]:
    """Run all from time 0 to their ends. Raises RuntimeError where one waits for a gate that nobody opens."""
    traces = [Trace() for _ in processes]
    numbers = itertools.count()
    events = [(0.0, next(numbers), which) for which in range(len(processes))]
    waiting: list[tuple[Gate, str, float, int]] = []
    while events:
        now, _, which = heapq.heappop(events)
        trace = traces[which]
        for stage in processes[which]:
            if isinstance(stage, Use):
                queued, end = stage.resource.use(now, stage.amount)
                if stage.beside:
                    trace.beside = max(trace.beside, end)
                    continue
                trace.parts[f"{stage.what} queue"] += queued
                trace.parts[stage.what] += end - now - queued
                heapq.heappush(events, (end, next(numbers), which))
                break
            if isinstance(stage, Arrive):
                stage.gate.count -= 1
                for entry in [entry for entry in waiting if entry[0].count <= 0]:
                    waiting.remove(entry)
                    _, what, since, other = entry
                    traces[other].parts[what] += now - since
                    heapq.heappush(events, (now, next(numbers), other))
            elif stage.gate.count > 0:
                waiting.append((stage.gate, stage.what, now, which))
                break
        else:
            trace.end = now
    if waiting:
        raise RuntimeError(f"{len(waiting)} processes wait for a gate that nobody opens")
    return traces
