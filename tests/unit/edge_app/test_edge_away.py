"""The edge is away for an hour, compressed: a device's memory stays flat, and the newest versions arrive."""

import tracemalloc

import numpy as np
import pytest
from links import Hears

from emo.journal import Journal
from emo.runtime.channel import Listener
from emo.runtime.outbox import Outbox
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch
from emo.wire.topics import subscription
from testbed.fleet.memory_network import MemoryChannel, Network

# Batches of 16 samples, 8 KB each, one after another: at 5 to 6 a second 20,000 make an hour.
HOUR = 20_000


def batch(number, version):
    activations = Packed(np.full((16, 8, 4, 4), version, np.float32), "fp16")
    return ActivationBatch("r", "edge-1", "dev-1", number, version, activations, np.zeros(16, "<i4"))


def memory_while(publish, of):
    """Publishes an hour of `of` batches over and over. Peaks of the first quarter and of the rest, in bytes."""
    peaks = []
    tracemalloc.start()
    try:
        for start, end in ((0, HOUR // 4), (HOUR // 4, HOUR)):
            tracemalloc.reset_peak()
            for turn in range(start, end):
                publish(batch(turn % of, turn // of))
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    return peaks


@pytest.mark.parametrize(
    ("batches", "count", "memory"),
    [(40, 64, 64 << 20), (500, 64, 64 << 20), (500, 1000, 1 << 20)],
    ids=["all of them fit", "bounded by number", "bounded by bytes"],
)
def test_the_outbox_stays_flat(batches, count, memory):
    journal = Journal()
    outbox = Outbox(count, journal, memory)
    first, rest = memory_while(outbox.put, batches)
    assert rest < first + 20_000
    held, newest = [], (HOUR - 1) // batches
    while (message := outbox.get(0)) is not None:
        held.append(message)
    assert 30 < len(held) <= min(batches, count)
    assert {message.version for message in held} <= {newest, newest - 1}
    assert sum(message.activations.nbytes() for message in held) <= memory
    counts = journal.counts
    gone = counts["outbox.superseded.ActivationBatch"] + counts["outbox.dropped.ActivationBatch"]
    assert gone + len(held) == HOUR


def test_the_newest_versions_arrive_when_the_edge_is_back():
    network, got = Network(), []
    edge = MemoryChannel(network, "edge-1", [subscription("emo", ActivationBatch)], Journal())
    edge.start(Hears(got.append))
    device = MemoryChannel(network, "dev-1", [], Journal())
    first, rest = memory_while(device.publish, 40)
    assert rest < first + 20_000
    device.start(Listener())
    network.pump()
    assert sorted((message.batch, message.version) for message in got) == [(n, HOUR // 40 - 1) for n in range(40)]
    assert all((m.activations.array(1 << 20) == m.version).all() for m in got)
