"""Coming, going and being told of it: retained messages, wills, hello and goodbye, on every channel."""

import threading
import time

from links import all_filters, update, weights
from samples import examples, same

from emo.wire.messages import GlobalModel, RunState, Status, Update
from emo.wire.topics import subscription


def model(round_, size=5000):
    return GlobalModel("run1", round_, ("dev-1",), examples()[1].training, weights(size, round_))


def publish_models(link, *sizes):
    """Rounds 1, 2, ... from the cloud, until the broker has them."""
    here = link.end("cloud", []).start()
    witness = link.end("witness", [subscription(link.root, GlobalModel)]).start()
    for round_, size in enumerate(sizes, start=1):
        here.channel.publish(model(round_, size))
        witness.wait(round_)
    return here


def test_who_comes_late_gets_the_newest_retained_message(link):
    here = publish_models(link, 5000, 5000)
    here.channel.publish(update())  # not retained
    state = RunState("run1", 2, 5, "training")
    late = link.end("dev-1", [subscription(link.root, GlobalModel), subscription(link.root, RunState)]).start()
    assert same(late.wait(1)[0], model(2))
    here.channel.publish(state)
    assert late.wait(2)[1:] == [state]


def test_a_shorter_retained_message_replaces_a_longer(link):
    here = publish_models(link, 9000, 10)
    late = link.end("dev-1", [subscription(link.root, GlobalModel)]).start()
    assert same(late.wait(1)[0], model(2, 10))
    here.channel.publish(model(3, 9000))
    assert same(late.wait(2)[1], model(3, 9000))


def gone(name):
    return Status(name, "device", online=False)


def test_who_vanishes_is_announced_and_stays_announced(link):
    cloud = link.end("cloud", [subscription(link.root, Status)]).start()
    device = link.end("dev-1", [], will=gone("dev-1")).start(lambda: Status("dev-1", "device", online=True, samples=5))
    assert cloud.wait(1) == [Status("dev-1", "device", online=True, samples=5)]
    link.vanish(device)
    assert cloud.wait(2)[1] == gone("dev-1")
    late = link.end("late", [subscription(link.root, Status)]).start()
    assert late.wait(1) == [gone("dev-1")]


def test_who_stops_is_not_announced_but_may_say_goodbye(link):
    cloud = link.end("cloud", [subscription(link.root, Status)]).start()
    device = link.end("dev-1", [], will=gone("dev-1")).start(lambda: Status("dev-1", "device", online=True))
    cloud.wait(1)
    device.channel.publish(Status("dev-1", "device", online=False, samples=9))
    device.channel.stop()
    assert cloud.wait(2)[1].samples == 9
    time.sleep(0.1)
    assert len(cloud.got) == 2


def test_stop_sends_what_is_queued(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    for n in range(30):
        here.channel.publish(update(f"dev-{n}", size=3000))
    here.channel.stop()
    assert [message.device for message in there.wait(30)] == [f"dev-{n}" for n in range(30)]


def test_stop_leaves_no_thread(link):
    before = set(threading.enumerate())
    ends = [link.end(f"dev-{n}", all_filters(link)).start() for n in range(3)]
    for end in ends:
        end.channel.stop()
    assert set(threading.enumerate()) <= before


def test_who_comes_back_gets_the_retained_message_again(link):
    # A device that was restarted within a round has lost the model that it had received.
    publish_models(link, 5000)
    first = link.end("dev-1", [subscription(link.root, GlobalModel)]).start()
    first.wait(1)
    first.channel.stop()
    again = link.end("dev-1", [subscription(link.root, GlobalModel)]).start()
    assert same(again.wait(1, timeout=2)[0], model(1))


def test_who_comes_back_with_other_filters_gets_what_they_ask_for(link):
    first = link.end("edge-1", [subscription(link.root, Update, device="dev-1")]).start()
    first.channel.stop()
    again = link.end("edge-1", [subscription(link.root, Update, device="dev-2")]).start()
    link.end("here", []).start().channel.publish(update("dev-2"))
    again.wait(1, timeout=2)
