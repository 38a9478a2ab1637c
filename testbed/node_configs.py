"""What a plan means for each of its nodes: id, configuration, network, share of the data, and who is sampled.

A simulated node tells observers nothing (`report_s`): the run's folder says it all, and its WAN carries what the paper counts.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emo.config import CloudConfig, DeviceConfig, EdgeConfig, Overlays, Rounds
from emo.data import partition
from emo.data.batches import FixedBatches
from emo.data.dataset import Dataset
from emo.errors import PartitionError
from emo.models import split_network
from emo.models.split_network import SplitNetwork
from testbed.plan import Plan

Rows = NDArray[np.int64]

_ANY = 1e-6  # a quorum of one


def device_id(plan: Plan, device: int) -> str:
    """In the order of the numbers: the cloud samples out of its sorted ids."""
    return f"device-{device:0{len(str(plan.devices - 1))}d}"


def edge_id(edge: int) -> str:
    """Edges are counted from 0 in code, from 1 in what people read."""
    return f"edge-{edge + 1}"


def network(plan: Plan) -> SplitNetwork:
    """What a device trains, before the first round: the same trunk for all methods of one seed; in fl-large, sfl-cloud and
    sfl-edge the overlay stands in the head's place (the paper's "FL-Large"), split or not. Raises ModelError."""
    net = split_network.network(plan.model, plan.seed)
    if plan.method in {"fl-small", "emo"}:
        return net
    return SplitNetwork(net.trunk, split_network.overlay(plan.model, plan.seed))


def sampled(plan: Plan, number: int) -> list[int]:
    """The devices of round `number`, ascending: those that cloud_app/rounds/node.py asks when all are there."""
    chosen = np.random.default_rng([plan.seed, number]).choice(
        plan.devices, min(plan.per_round, plan.devices), replace=False
    )
    return sorted(int(device) for device in chosen)


def shares(plan: Plan, labels: NDArray[np.int64]) -> list[Rows]:
    """Rows of each device, ascending. With `plan.samples` each has so many: under iid and shards out of a seeded part
    of the data, of just the size. Raises PartitionError."""
    if plan.scheme == "dirichlet":
        return partition.dirichlet(labels, plan.devices, plan.alpha, plan.seed, plan.samples)
    rows = np.arange(len(labels))
    if plan.samples is not None:
        asked = plan.devices * plan.samples
        if asked > len(labels):
            raise PartitionError(
                f"{plan.devices} devices with {plan.samples} samples each ask for {asked}, there are {len(labels)}"
            )
        rows = np.sort(np.random.default_rng([plan.seed, asked]).permutation(len(labels))[:asked])
    deal = partition.iid if plan.scheme == "iid" else partition.shards
    return [rows[share] for share in deal(labels[rows], plan.devices, plan.seed)]


def batches(plan: Plan, dataset: Dataset, rows: Rows) -> FixedBatches:
    """Of the device that has `rows`. Raises DataError."""
    return FixedBatches(dataset, rows, plan.batch_size, plan.seed)


def device(plan: Plan, number: int) -> DeviceConfig:
    """Of device `number`; its data and network are given to it."""
    edge = edge_id(plan.edge_of(number)) if plan.method == "emo" else None
    return DeviceConfig(
        id=device_id(plan, number),
        model=plan.model,
        edge=edge,
        batch_size=plan.batch_size,
        tap=plan.tap,
        report_s=None,
    )


def edge(plan: Plan, number: int, folder: Path) -> EdgeConfig:
    """Of edge `number`, its cache in `folder`. Nothing is synced: nobody would know what to do with it after a power
    cut."""
    samples = max(plan.cache.batch_samples, plan.batch_size)
    return EdgeConfig(
        id=edge_id(number),
        devices=tuple(device_id(plan, device) for device in plan.groups()[number]),
        model=plan.model,
        cache=plan.cache.model_copy(update={"dir": folder, "durability": "none", "batch_samples": samples}),
        controller=plan.controller,
        overlay=plan.overlay.model_copy(update={"seed": plan.seed + number + 1}),
        report_s=None,
    )


def cloud(plan: Plan, deadline_s: float, give_up_s: float) -> CloudConfig:
    """`deadline_s`, `give_up_s`: virtual seconds. At the deadline the updates that are there make the round, however
    few: a simulated device that drops out is back in the next round."""
    edges = range(len(plan.edges)) if plan.method == "emo" else ()
    return CloudConfig(
        model=plan.model,
        training=plan.training,
        rounds=Rounds(
            rounds=plan.rounds,
            per_round=plan.per_round,
            min_devices=plan.devices,
            seed=plan.seed,
            quorum=_ANY,
            deadline_s=deadline_s,
            give_up_s=give_up_s,
        ),
        overlays=Overlays(edges=tuple(edge_id(each) for each in edges), fresh_rounds=plan.fresh_rounds),
        report_s=None,
    )
