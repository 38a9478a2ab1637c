"""What goes wrong when, by seed: the schedule of `emo chaos`.

The same arguments give the same schedule on every machine: Python's own generator, and no clock.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["kill", "restart", "stop", "cut", "silent", "throttle", "delay", "disk", "clock"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What a device and an edge that belong to the fleet do on purpose (hostile.py).
Act = Literal["report", "counter", "overlay", "tensors", "bomb", "poison", "samples", "toggle", "inject", "gossip"]
ACTS: tuple[Act, ...] = get_args(Act)
ON_LINKS: frozenset[Kind] = frozenset({"cut", "silent", "throttle", "delay"})

# How often a kind comes up, and seconds that it lasts, from and to; one in twenty is long: past the keepalive, so that
# everybody notices.
_WEIGHT_AND_LASTS: Mapping[Kind, tuple[int, float, float]] = {
    "kill": (6, 0.0, 1.0),
    "restart": (2, 0.0, 0.5),
    "stop": (3, 0.2, 2.0),
    "cut": (4, 0.0, 1.0),
    "silent": (2, 0.3, 3.0),
    "throttle": (2, 0.5, 3.0),
    "delay": (2, 0.5, 3.0),
    "disk": (2, 0.3, 1.5),
    "clock": (2, 0.5, 5.0),
}
_LONG = (9.0, 12.0)
_MAY_BE_LONG: frozenset[Kind] = frozenset({"kill", "stop", "cut", "silent"})
_SHIFTS_S = (-30 * 86400.0, -3600.0, -60.0, -1.5, 1.5, 60.0, 3600.0, 30 * 86400.0)
_SETTLE_S = 0.5  # between two faults of one target: else a process never gets as far as to connect


@dataclass(frozen=True)
class Fault:
    """`at`: seconds after the start; `lasts`: seconds. `amount`: throttle: bytes a second; delay: seconds; clock:
    seconds to add; else 0."""

    at: float
    kind: Kind
    target: str
    lasts: float
    amount: float = 0.0

    def __str__(self) -> str:
        what = {"throttle": "to {:.0f} B/s ", "delay": "by {:.2f} s ", "clock": "by {:+.1f} s "}.get(self.kind, "")
        return f"{self.kind} {self.target} {what.format(self.amount)}for {self.lasts:.1f} s"


@dataclass(frozen=True)
class Targets:
    """Names: of all processes, of those with a disk and a clock of ours, of links."""

    processes: Sequence[str]
    tiers: Sequence[str]
    links: Sequence[str]

    def of(self, kind: Kind) -> Sequence[str]:
        if kind in ON_LINKS:
            return self.links
        return self.tiers if kind in {"disk", "clock"} else self.processes


def schedule(seed: int, faults: int, over_s: float, targets: Targets) -> list[Fault]:
    """`faults` of them in the order of `at`, from 0 to `over_s` seconds; no target has two at a time.

    Every kind that there is a target for comes up before any comes twice as often as its weight has it. Faults that
    find no free target come later than `over_s`.
    """
    rng = random.Random(f"emo-chaos-{seed}")  # noqa: S311 - to be repeated, not to be secret
    kinds = [kind for kind in KINDS if targets.of(kind)]
    deck: list[Kind] = []
    free: dict[str, float] = {}
    chosen = []
    for number in range(faults):
        if not deck:
            deck = [kind for kind in kinds for _ in range(_WEIGHT_AND_LASTS[kind][0])]
            rng.shuffle(deck)
        kind = deck.pop()
        at = over_s * (number + rng.random()) / faults
        names = list(targets.of(kind))
        idle = [name for name in names if free.get(name, 0.0) <= at]
        target = rng.choice(idle) if idle else min(names, key=lambda name: (free.get(name, 0.0), name))
        at = max(at, free.get(target, 0.0))
        long = kind in _MAY_BE_LONG and rng.random() < 0.05
        lasts = rng.uniform(*(_LONG if long else _WEIGHT_AND_LASTS[kind][1:]))
        fault = Fault(round(at, 3), kind, target, round(lasts, 3), _amount(rng, kind))
        free[target] = at + lasts + _SETTLE_S
        chosen.append(fault)
    return sorted(chosen, key=lambda fault: fault.at)


def _amount(rng: random.Random, kind: Kind) -> float:
    if kind == "throttle":
        return round(10 ** rng.uniform(3.6, 5.0))
    if kind == "delay":
        return round(rng.uniform(0.05, 0.8), 3)
    return rng.choice(_SHIFTS_S) if kind == "clock" else 0.0


def acts(seed: int, count: int, over_s: float) -> list[tuple[float, Act, float]]:
    """`count` hostile acts, (seconds after the start, act, variant from 0 to 1), in order; each comes up before any twice."""
    rng = random.Random(f"emo-chaos-hostile-{seed}")  # noqa: S311 - to be repeated, not to be secret
    deck: list[Act] = []
    drawn = []
    for number in range(count):
        if not deck:
            deck = rng.sample(ACTS, len(ACTS))
        at = over_s * (number + rng.random()) / count
        drawn.append((round(at, 3), deck.pop(), round(rng.random(), 3)))
    return drawn
