"""Split federated learning over a fleet: rounds of sampled devices, both halves averaged after each.

How a device and its server train is halves.py's. SplitFed V1 (Thapa et al. 2022, arXiv 2004.12088): every device has a server copy of its own,
so a round ends where FedAvg of the whole network (fl-large) ends: sfl-cloud to the bit, sfl-edge within rounding.

    sfl-cloud   the copies are in the cloud; nothing of them crosses a link
    sfl-edge    they are at the device's edge, which is sent the mean of all and sends the mean of its own
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from cloud_app.aggregation import exact_mean
from emo.config import Section
from emo.data.dataset import Dataset
from emo.data.registry import must_fit
from emo.errors import QuorumError, UpdateRefused
from emo.local_sgd import evaluate
from emo.models import split_network
from emo.wire.messages import GlobalModel, OverlayWeights, Update, Weights
from testbed import checkpoint, node_configs
from testbed.plan import DeviceWork, Plan, RoundTime, RoundWork
from testbed.splitfed import worker
from testbed.splitfed.halves import RUN, half, joined
from testbed.splitfed.wire import Wire
from testbed.splitfed.worker import Begin, Train, Trained
from testbed.timing import costs, estimate
from testbed.timing.round_time import round_time, until_closed
from testbed.timing.scenario import Scenario
from testbed.workers.pool import Job, Pool
from testbed.workers.shared_memory import SharedData

log = logging.getLogger("emo")

_FILE, _KIND = "split.safetensors", "split learning"


class _State(Section):
    """`done`: rounds that are over."""

    done: Annotated[int, Field(ge=0)]


class Split:
    """sfl-cloud and sfl-edge, as plan.Method. From one round to the next only the weights are kept.

    Left out of the mean, as FL's cloud does it: a device that drops out, and one whose loss or weights are not finite.
    """

    def __init__(
        self,
        plan: Plan,
        scenario: Scenario,
        training: Dataset,
        test: Dataset,
        workers: int,
        folder: Path,
        device: str = "cpu",
    ) -> None:
        """Starts `workers` processes that train on torch's `device`. Raises DataError, ModelError, PartitionError."""
        must_fit(training, plan.model)
        del folder  # all of it fits in memory
        self._plan, self._scenario, self._test = plan, scenario, test
        self._at_edge = plan.method == "sfl-edge"
        self._net = node_configs.network(plan)
        self._weights: Weights = split_network.weights(self._net)
        self._done = 0
        self._cost = costs.of(plan.model)
        shares = node_configs.shares(plan, training.labels)
        self._samples = [len(share) for share in shares]
        self._deadline_s = estimate.deadline(plan, scenario, max(self._samples))
        self._pool = Pool(worker.make, (plan, SharedData(training, shares), device), workers)

    def round(self, number: int) -> tuple[RoundWork, RoundTime]:
        """Raises QuorumError where no device has given what can be averaged, WorkerLost where workers die again and
        again; the weights are then those of the round before."""
        assert number == self._done + 1
        plan = self._plan
        sampled = node_configs.sampled(plan, number)
        names = tuple(node_configs.device_id(plan, device) for device in sampled)
        start = GlobalModel(RUN, number, names, plan.training, self._weights)
        trunk = exact_mean.init(half(self._weights, "trunk"))
        heads, works, losses = dict[int, exact_mean.Sum](), list[DeviceWork](), list[float]()
        for device, done in zip(sampled, self._trained(start, sampled), strict=True):
            update = done.update
            losses.append(done.loss)
            works.append(done.work)
            if self._scenario.drops(plan, number, device):
                del works[-1].up["Update"]
                continue
            if not self._counts(update):
                continue
            trunk.add(half(update.weights, "trunk"), update.samples)
            server = plan.edge_of(device) if self._at_edge else 0
            if server not in heads:
                heads[server] = exact_mean.init(half(self._weights, "head"))
            heads[server].add(half(update.weights, "head"), update.samples)
        if not heads:
            raise QuorumError(
                f"round {number}: of {len(sampled)} devices none gave an update that can be averaged; "
                "lower the learning rate, or the scenario's drop_outs"
            )
        down = self._to_edges(start, works)
        rest, up = self._at_cloud(heads, works)
        loss = float(np.average(losses, weights=[each.samples for each in works]))
        work = RoundWork(number, tuple(works), loss, overlays=up, overlays_down=down)
        time = round_time(plan, self._scenario, work, self._cost)
        if len(time.arrivals) < len(sampled):
            time = until_closed(time, max(time.seconds, self._deadline_s))
        self._weights = joined(trunk.result(), rest)
        self._done = number
        return work, time

    def accuracies(self) -> dict[str, float]:
        split_network.load(self._net, self._weights)
        return {"model": 100 * evaluate(self._net, self._test)[0]}

    def weights(self) -> dict[str, Weights]:
        """`head`: the overlay's layers."""
        return {name: half(self._weights, name) for name in ("trunk", "head")}

    def save(self, folder: Path) -> None:
        """Raises OSError."""
        checkpoint.write(folder / _FILE, _KIND, _State(done=self._done), self._weights)

    def load(self, folder: Path) -> None:
        """Raises DataError on a file that is missing, damaged, or of another network; ConfigError where another version of
        EMO wrote it."""
        state, self._weights = checkpoint.read(folder / _FILE, _KIND, _State, self._weights, "model.frame")
        self._done = state.done

    def close(self) -> None:
        self._pool.close()

    # -- a round

    def _trained(self, start: GlobalModel, sampled: Sequence[int]) -> list[Trained]:
        """The workers' answers, in the order of `sampled`."""
        order = sorted(sampled, key=lambda device: -self._samples[device])  # so the workers end together

        def train() -> list[Trained]:
            self._pool.broadcast(Begin(start))
            return self._pool.run([Job(Train(device)) for device in order])

        done = dict(zip(order, self._pool.again(train, f"round {start.round}"), strict=True))
        return [done[device] for device in sampled]

    def _counts(self, update: Update) -> bool:
        reason = "the training loss is not a number; is the learning rate too high?" if update.loss is None else ""
        try:
            exact_mean.check(self._weights, update.weights)
        except UpdateRefused as error:
            reason = reason or str(error)
        if reason:
            log.warning("%s, round %d: left out: %s", update.device, update.round, reason)
        return not reason

    def _to_edges(self, start: GlobalModel, works: Sequence[DeviceWork]) -> tuple[int, ...]:
        """Bytes of the server's half to each edge that has a device to serve."""
        wire = Wire()
        wire.carry(replace(start, weights=half(start.weights, "head")))
        size = wire.bytes.total()
        return tuple(size if any(each.device in group for each in works) else 0 for group in self._edges())

    def _at_cloud(
        self, heads: dict[int, exact_mean.Sum], works: Sequence[DeviceWork]
    ) -> tuple[Weights, tuple[int, ...]]:
        """The mean of the server's halves, and the bytes of what each edge sent for it."""
        if not self._at_edge:
            return heads[0].result(), ()
        total, sizes = exact_mean.init(half(self._weights, "head")), list[int]()
        for number, group in enumerate(self._edges()):
            wire = Wire()
            if number in heads:
                steps = sum(each.batches for each in works if each.device in group)
                mean = heads[number].result()
                sent = wire.carry(OverlayWeights(RUN, node_configs.edge_id(number), steps, steps, steps, mean))
                total.add(sent.weights, heads[number].samples)
            sizes.append(wire.bytes.total())
        return total.result(), tuple(sizes)

    def _edges(self) -> list[range]:
        return self._plan.groups() if self._at_edge else []
