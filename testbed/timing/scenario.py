"""The machines and links of a testbed, from a YAML file: who is how fast, how many bits pass, who lags or drops out.

All that is drawn follows from the plan's seed, the round and the device: asked twice, the answer is the same.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, StringConstraints, model_validator

from emo import config_file
from emo.config import Positive, Section
from emo.errors import ConfigError
from testbed.plan import Plan
from testbed.timing import costs
from testbed.timing.costs import BACKWARD, Costs, Part

PAPER = Path(__file__).parent / "scenarios" / "paper.yaml"

Flops = Annotated[float, Field(ge=1e6, le=1e18)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_MIB = 1 << 20
_CLASS, _SLOW, _DROP = 1, 2, 3  # keeps the draws apart


class Processor(Section):
    """Effective FLOP/s in training at a small batch, not the peak; `memory_mib`: what a training step may take."""

    forward_flops: Flops
    backward_flops: Flops
    memory_mib: Positive

    def forward(self, part: Part, samples: float) -> float:
        """Seconds."""
        return samples * part.flops / self.forward_flops

    def backward(self, part: Part, samples: float) -> float:
        return samples * BACKWARD * part.flops / self.backward_flops

    def step(self, part: Part, samples: float) -> float:
        return self.forward(part, samples) + self.backward(part, samples)


class DeviceClass(Processor):
    """`share`: of the fleet."""

    name: Name
    share: Annotated[float, Field(gt=0, le=1)]


class Link(Section):
    """`mbit_s`: in each direction, 10^6 bits. `shared`: by all that send to the same server (the edges' lan, the
    cloud's wan); else each has this rate to itself. `latency_ms`: one way."""

    mbit_s: Annotated[float, Field(ge=1e-3, le=1e6)]
    latency_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0
    shared: bool = True


class Stragglers(Section):
    """`share` of the sampled devices, drawn each round, take `slow_down` times as long to compute."""

    share: Share = 0.0
    slow_down: Annotated[float, Field(ge=1, le=1000)] = 1.0


class Scenario(Section):
    """`devices`: whose shares add up to 1. `edge`: each edge server. `drop_outs`: chance that a sampled device ends
    its round before its update has left; `deadline_s`: how long the others' servers wait for it at least."""

    name: Name
    devices: Annotated[tuple[DeviceClass, ...], Field(min_length=1, max_length=64)]
    edge: Processor
    cloud: Processor
    lan: Link
    wan: Link
    stragglers: Stragglers = Stragglers()
    drop_outs: Annotated[float, Field(ge=0, lt=1)] = 0.0
    deadline_s: Annotated[float, Field(gt=0, le=1e9)] = 300.0

    @model_validator(mode="after")
    def _adds_up(self) -> "Scenario":
        total = sum(each.share for each in self.devices)
        if abs(total - 1) > 1e-6:
            msg = f"the shares of the device classes add up to {total:g}, they must make 1"
            raise ValueError(msg)
        return self

    def device_class(self, plan: Plan, device: int) -> DeviceClass:
        """Classes are dealt out over the whole fleet: their shares hold exactly, up to rounding."""
        place = (_ranks(plan.seed, plan.devices)[device] + 0.5) / plan.devices
        total = 0.0
        for each in self.devices:
            total += each.share
            if place < total:
                return each
        return self.devices[-1]

    def slowdown(self, plan: Plan, number: int, device: int) -> float:
        """Factor on the compute time of `device` in round `number`, 1 or more."""
        slow = _draw(plan.seed, _SLOW, number, device) < self.stragglers.share
        return self.stragglers.slow_down if slow else 1.0

    def drops(self, plan: Plan, number: int, device: int) -> bool:
        return _draw(plan.seed, _DROP, number, device) < self.drop_outs

    def check(self, plan: Plan) -> None:
        """Raises ConfigError where `plan` cannot run here: groups without devices, memories that are too small.
        ModelError where the model's parts do not fit each other."""
        if plan.per_round > plan.devices:
            raise ConfigError(f"per_round: {plan.per_round} devices cannot be sampled out of {plan.devices}; lower it")
        if plan.method in ("emo", "sfl-edge"):
            groups = plan.groups()
            empty = [number for number, group in enumerate(groups, 1) if not group]
            if empty or not groups:
                which = f"edge {empty[0]} of {len(groups)} has" if groups else "there is none that has"
                raise ConfigError(
                    f"edges: with shares {list(plan.edges)} of {plan.devices} devices {which} no device; "
                    "ask for fewer edges or more devices"
                )
        self._check_memory(plan, costs.of(plan.model))

    def _check_memory(self, plan: Plan, cost: Costs) -> None:
        need = costs.memory(on_device(plan, cost), plan.batch_size, plan.training.momentum > 0)
        for each in self.devices:
            _must_hold(f"device class {each.name!r}", each, need, f"to train {plan.method}'s model on a device")
        one = costs.memory(cost.overlay, plan.batch_size, plan.training.momentum > 0)
        copies = min(plan.per_round, max((len(group) for group in plan.groups()), default=0))
        if plan.method == "emo":
            step = costs.memory(cost.overlay, plan.batch_size * plan.overlay.batches, momentum=True)
            _must_hold("an edge", self.edge, step, "to train its overlay")
        elif plan.method == "sfl-edge":
            held = one + (copies - 1) * 3 * cost.overlay.weights
            _must_hold("an edge", self.edge, held, f"for the server's part of {copies} devices")
        elif plan.method == "sfl-cloud":
            held = one + (plan.per_round - 1) * 3 * cost.overlay.weights
            _must_hold("the cloud", self.cloud, held, f"for the server's part of {plan.per_round} devices")

    def assumptions(self, plan: Plan) -> list[str]:
        """What every virtual second rests on: printed beside it."""
        cost = costs.of(plan.model)
        net = on_device(plan, cost)
        lines = [f"scenario {self.name}; times are computed, not measured"]
        lines += [
            f"{each.share:.0%} of the devices: {each.name}, {each.forward_flops / 1e9:g} GFLOP/s forward and "
            f"{each.backward_flops / 1e9:g} backward, whatever the layer"
            for each in self.devices
        ]
        lines.append(f"edge {_rates(self.edge)}; cloud {_rates(self.cloud)}; averaging takes no time")
        lines += [
            f"{name}: {link.mbit_s:g} Mbit/s each way, {link.latency_ms:g} ms, "
            + (f"shared by {whom}, first come first served" if link.shared else "to each device by itself")
            for name, link, whom in (
                ("LAN", self.lan, "all devices of an edge"),
                ("WAN", self.wan, "all devices and edges"),
            )
        ]
        lines.append(
            f"{plan.method}, {plan.model.name}: a device's model takes {net.flops / 1e6:.4g} MFLOP forward a sample, "
            f"{BACKWARD} times that backward; no time for encoding, loading of data, or heat"
        )
        if plan.method.startswith("sfl"):
            lines.append(
                "SplitFed V1: a device waits for the gradient of each batch; a server works on one batch at a time"
            )
        if plan.method == "emo":
            lines.append(
                "activations leave beside training and hold up nothing, but a round lasts until the LAN has "
                "carried them; overlays train beside the rounds"
            )
        if self.stragglers.share:
            lines.append(
                f"{self.stragglers.share:.0%} of the sampled devices take {self.stragglers.slow_down:g} times as long"
            )
        if self.drop_outs:
            lines.append(
                f"{self.drop_outs:.0%} of the sampled devices never send their update; for them a round waits until "
                f"{self.deadline_s:g} s, or twice what a whole one takes if that is longer"
            )
        return lines


def load(path: Path | None) -> Scenario:
    """The scenario in `path`, or the paper's testbed. Raises ConfigError that names file and key."""
    return config_file.load(Scenario, PAPER if path is None else path, environ={})


def on_device(plan: Plan, cost: Costs) -> Part:
    """The part of the network that a device trains under `plan.method`."""
    if plan.method == "fl-large":
        return cost.trunk + cost.overlay
    return cost.trunk if plan.method.startswith("sfl") else cost.trunk + cost.head


def _rates(processor: Processor) -> str:
    return f"{processor.forward_flops / 1e9:g} GFLOP/s forward, {processor.backward_flops / 1e9:g} backward"


def _must_hold(who: str, processor: Processor, need: int, what: str) -> None:
    if need > processor.memory_mib * _MIB:
        raise ConfigError(
            f"{who} has memory_mib {processor.memory_mib}, and needs {-(-need // _MIB)} {what}; take a smaller "
            "width or batch, or a scenario with more memory"
        )


def _draw(*key: int) -> float:
    return float(np.random.default_rng(key).random())


@lru_cache(maxsize=8)
def _ranks(seed: int, devices: int) -> np.ndarray:
    ranks: np.ndarray = np.random.default_rng([seed, _CLASS]).permutation(devices)
    return ranks
