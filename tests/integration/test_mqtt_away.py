"""Broker or edge are away for an hour, compressed, over MQTT: a device's memory stays flat."""

import time
import tracemalloc

import numpy as np
import pytest
from brokers import Mosquitto
from links import mqtt

from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch
from emo.wire.topics import subscription

BATCHES = 40
SUPERSEDED = "inbox.superseded.ActivationBatch"


def batch(number, version):
    activations = Packed(np.full((16, 8, 4, 4), version, np.float32), "fp16")
    return ActivationBatch("r", "edge-1", "dev-1", number, version, activations, np.zeros(16, "<i4"))


def until(reached):
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.001)


def memory_while(channel, versions, wait):
    """Publishes so many versions of every batch. Peaks of the first quarter and of the rest, in bytes."""
    peaks = []
    tracemalloc.start()
    try:
        for passes in (range(versions // 4), range(versions // 4, versions)):
            tracemalloc.reset_peak()
            for version in passes:
                for number in range(BATCHES):
                    assert channel.publish(batch(number, version))
                wait()
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    return peaks


def test_the_broker_is_away(mosquitto):
    with mqtt(mosquitto.broker) as link:
        device = link.end("dev-1", [])
        device.channel.start(device)
        first, rest = memory_while(device.channel, 250, lambda: None)
        assert rest < first + 50_000
        mosquitto.start()
        edge = link.end("edge-1", [subscription(link.root, ActivationBatch)]).start()
        device.channel.wait_connected(20)
        for number in range(BATCHES):  # the queue may have gone before the edge had subscribed: one pass more
            device.channel.publish(batch(number, 250))
        assert {message.version for message in edge.wait(BATCHES)} <= {249, 250}


@pytest.fixture
def small_broker(mosquitto_program, tmp_path):
    server = Mosquitto(mosquitto_program, tmp_path, "max_queued_messages 100")
    server.start()
    yield server
    server.stop()


def test_the_edge_is_away_and_the_broker_keeps_what_it_can(small_broker):
    with mqtt(small_broker.broker) as link:
        edge = link.end("edge-1", [subscription(link.root, ActivationBatch)]).start()
        edge.channel.stop()
        device = link.end("dev-1", []).start()
        # Of these 2,000 packets the broker keeps 100.
        first, rest = memory_while(device.channel, 50, lambda: until(device.channel.drained))
        # 16 MB went through; CPython keeps 2,000 freed tuples of each size, which is most of the growth.
        assert rest < first + 250_000
        assert device.journal.counts["sent.ActivationBatch"] == 50 * BATCHES
        back = link.end("edge-1", [subscription(link.root, ActivationBatch)]).start()
        # Then the broker has room again.
        until(lambda: len(back.got) + back.journal.snapshot().get(SUPERSEDED, 0) >= 100)
        for number in range(BATCHES):
            device.channel.publish(batch(number, 50))
        until(lambda: {m.batch for m in list(back.got) if m.version == 50} == set(range(BATCHES)))
