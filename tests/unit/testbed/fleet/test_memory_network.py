"""The network in memory: one fixed order, on the caller's thread."""

import threading

from links import Hears
from samples import examples

from emo.journal import Journal
from emo.wire.messages import GlobalModel, Interval, RunState, Status, Update
from emo.wire.topics import subscription
from testbed.fleet.memory_network import MemoryChannel, Network


def interval(batch):
    return Interval("r", "e", "d", batch, 0, 1.0)


def chatter(log):
    """Three nodes that answer each other; returns what each saw, in order."""
    network = Network(chunk=200)
    channels = {}

    def handle(name):
        def on(message):
            log.append((name, message.batch, threading.get_ident()))
            if message.batch < 30:
                channels[name].publish(interval(message.batch + 10))

        return on

    for name in ("a", "b", "c"):
        channels[name] = MemoryChannel(network, name, [subscription("emo", Interval)], Journal())
        channels[name].start(Hears(handle(name)))
    for batch in range(3):
        channels["a"].publish(interval(batch))
    return network.pump()


def test_the_order_is_the_same_each_time():
    logs = [[], []]
    counts = [chatter(log) for log in logs]
    assert logs[0] == logs[1]
    assert counts == [len(logs[0])] * 2
    assert counts[0] == 3 * 3 * (1 + 3 + 9 + 27)
    assert {thread for _, _, thread in logs[0]} == {threading.get_ident()}


def test_nothing_moves_before_pump_and_nothing_is_left_after():
    network, got = Network(), []
    there = MemoryChannel(network, "there", [subscription("emo", Interval)], Journal())
    there.start(Hears(got.append))
    here = MemoryChannel(network, "here", [], Journal())
    here.start(Hears(got.append))
    here.publish(interval(1))
    assert got == []
    assert network.pump() == 1
    assert network.pump() == 0
    assert got == [interval(1)]


def test_hello_comes_after_what_was_published_before_the_start():
    network, got = Network(), []
    MemoryChannel(network, "there", [subscription("emo", Interval), subscription("emo", Status)], Journal()).start(
        Hears(got.append)
    )
    here = MemoryChannel(network, "here", [], Journal())
    here.publish(interval(1))
    here.start(Hears(got.append, lambda: Status("here", "edge", online=True)))
    network.pump()
    assert [type(message) for message in got] == [Interval, Status]


def test_dropped_and_back_again():
    network, seen, mine = Network(chunk=200), [], []
    watcher = MemoryChannel(network, "cloud", [subscription("emo", Status), subscription("emo", Update)], Journal())
    watcher.start(Hears(seen.append))
    watcher.publish(examples()[1])
    will = Status("dev-1", "device", online=False)
    device = MemoryChannel(
        network, "dev-1", [subscription("emo", GlobalModel), subscription("emo", RunState)], Journal(), will
    )
    device.start(Hears(mine.append))
    network.pump()
    assert len(mine) == 1
    network.drop("dev-1")
    device.publish(examples()[2])  # waits
    watcher.publish(examples()[4])  # retained
    network.pump()
    assert seen == [will]
    device.start(Hears(mine.append))
    network.pump()
    assert [type(message).__name__ for message in seen] == ["Status", "Update"]
    assert [type(message).__name__ for message in mine] == ["GlobalModel", "GlobalModel", "RunState"]


def test_after_stop_nothing_arrives():
    network, got = Network(), []
    there = MemoryChannel(network, "there", [subscription("emo", Interval)], Journal())
    there.start(Hears(got.append))
    there.publish(interval(1))
    there.stop()
    assert network.pump() == 0
    assert got == []
