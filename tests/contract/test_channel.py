"""What every channel promises (emo/runtime/channel.py), in memory and over a real Mosquitto.

Coming and going is in test_channel_presence.py.
"""

import dataclasses
import threading
import time

from links import all_filters, frames_of, interval, update, weights
from samples import examples, same

from emo.wire import messages, topics
from emo.wire.messages import GlobalModel, Interval, Status, Update
from emo.wire.topics import subscription

# -- a message arrives equal to what was sent


def test_every_kind_arrives_equal(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    for message in examples():
        assert here.channel.publish(message)
    got = there.wait(len(examples()))
    assert len(got) == len(examples())
    # Who sends in turn is handled in turn: order holds for each sender.
    assert all(any(same(one, two) for one in got) for two in examples())


def test_large_messages_arrive_equal_and_in_order(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    sent = [update(round_=n, device=f"dev-{n}", size=size, seed=n) for n, size in enumerate([10, 60_000, 3, 1000])]
    for message in sent:
        here.channel.publish(message)
    got = there.wait(4)
    assert all(same(one, two) for one, two in zip(got, sent, strict=True))
    assert there.journal.counts["frames.refused"] == 0


def test_senders_at_the_same_time_are_not_mixed(link):
    there = link.end("there", [subscription(link.root, Update)]).start()
    senders = [link.end(f"dev-{n}", []).start() for n in range(4)]

    def send(n):
        for round_ in range(3):
            senders[n].channel.publish(update(f"dev-{n}", round_, 8000, seed=10 * n + round_))
            senders[n].counted("sent.Update", round_ + 1)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = there.wait(12)
    for n in range(4):
        mine = [message for message in got if message.device == f"dev-{n}"]
        assert [message.round for message in mine] == [0, 1, 2]
        assert all(same(message, update(f"dev-{n}", r, 8000, seed=10 * n + r)) for r, message in enumerate(mine))


def test_only_what_was_subscribed_arrives(link):
    mine = link.end("dev-1", [subscription(link.root, Interval, device="dev-1")]).start()
    other = link.end("dev-2", [subscription(link.root, Interval, device="dev-2")]).start()
    here = link.end("here", []).start()
    here.channel.publish(update())
    here.channel.publish(interval(1))
    here.channel.publish(Interval("run1", "edge-1", "dev-2", 7, 0, 1.0))
    assert mine.wait(1) == [interval(1)]
    assert [message.batch for message in other.wait(1)] == [7]


# -- bytes that are not a message of ours


def test_foreign_bytes_are_dropped_and_counted(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    name = f"{link.root}/wan/update/dev-1"
    (good,) = frames_of(update())
    flipped = bytearray(good)
    flipped[50] ^= 1
    foreign = [b"", b"hello", b"EMO", bytes(4096), good[:-1], good + b"x", bytes(flipped), b"EMP" + good[3:]]
    for data in foreign:
        link.inject(name, data)
    there.counted("frames.refused", len(foreign))
    here.channel.publish(update(round_=9))
    assert [message.round for message in there.wait(1)] == [9]
    assert there.journal.counts["bugs"] == 0


def test_whoever_speaks_for_another_is_not_heard(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    root = link.root
    spoofs = [
        (f"{root}/wan/update/dev-2", update("dev-1")),
        (f"{root}/wan/status/dev-2/0", Status("dev-1", "device", online=False)),
        (f"{root}/wan/status/dev-1/7", Status("dev-1", "device", online=False)),
        (f"{root}/wan/update/dev-1", GlobalModel("run1", 1, (), examples()[1].training, weights(1))),
        (f"{root}/lan/edge-2/interval/dev-1", interval(1)),
        (f"{root}/wan/refused/dev-1", interval(1)),
    ]
    for name, message in spoofs:
        link.inject(name, frames_of(message)[0])
    there.counted("frames.refused", len(spoofs))
    here.channel.publish(update(round_=9))
    assert [type(message) for message in there.wait(1)] == [Update]


def test_parts_of_two_senders_never_make_one_message(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    parts = frames_of(update("dev-1", size=3000))
    for index, data in enumerate(parts):
        link.inject(f"{link.root}/wan/update/dev-{1 + index % 2}", data)
    here.channel.publish(update(round_=9))
    assert [message.round for message in there.wait(1)] == [9]


def test_doubled_and_reordered_parts(link):
    there = link.end("there", all_filters(link)).start()
    message = update("dev-1", size=3500)
    first, second, third, last = frames_of(message)
    for data in (third, first, third, first, last, second):
        link.inject(topics.topic(link.root, message), data)
    assert same(there.wait(1)[0], message)


# -- publish returns at once


def test_publish_waits_for_nobody(link):
    alone = link.end("alone", [])
    began = time.monotonic()
    for n in range(50):
        assert alone.channel.publish(update(f"dev-{n}", size=1000))
    alone.start()
    for n in range(50):
        assert alone.channel.publish(update(f"dev-{n}", 2, size=1000))
    assert time.monotonic() - began < 3
    alone.counted("sent.Update", 50)


def test_a_slow_handler_holds_nobody_up(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    published = threading.Event()
    there.on_message = lambda _message: published.wait(10)
    for n in range(3):
        here.channel.publish(update(f"dev-{n}"))
    published.set()
    there.wait(3)


def test_while_away_the_newest_version_waits(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", [])
    for version in range(5):
        assert here.channel.publish(interval(1, version))
    assert here.channel.publish(interval(2))
    here.start()
    assert there.wait(2) == [interval(1, 4), interval(2)]
    assert here.journal.counts["outbox.superseded.Interval"] == 4


def test_while_away_the_queue_is_bounded(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", [])
    for batch in range(100):
        assert here.channel.publish(interval(batch))
    assert here.channel.publish(update())
    here.start()
    got = there.wait(64)
    assert [message.batch for message in got[:-1]] == list(range(37, 100))
    assert same(got[-1], update())
    assert here.journal.counts["outbox.full"] == 37


def test_what_cannot_be_sent_is_counted_and_holds_up_nothing(link, monkeypatch):
    small = dataclasses.replace(topics.ROUTES[Update], limit=10_000)
    monkeypatch.setitem(topics.ROUTES, Update, small)
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    here.channel.publish(update("dev-1", size=5000))
    here.channel.publish(update("dev-2"))
    assert [message.device for message in there.wait(1)] == ["dev-2"]
    assert here.journal.counts["messages.refused"] == 1
    assert here.journal.counts["bugs"] == 0


# -- the handler


def test_the_handler_runs_on_one_thread_and_never_twice_at_once(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    busy, most = threading.Semaphore(1), []

    def handle(_message):
        most.append(busy.acquire(blocking=False))
        time.sleep(0.005)
        busy.release()

    there.on_message = handle
    for n in range(20):
        here.channel.publish(update(f"dev-{n}"))
    there.wait(20)
    assert len(there.threads) == 1
    assert threading.get_ident() not in there.threads
    assert all(most)


def test_a_handler_that_fails_is_counted_and_the_next_message_comes(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()

    def fail(message):
        if message.round == 1:
            raise KeyError(message.device)

    there.on_message = fail
    for round_ in (1, 2):
        here.channel.publish(update(f"dev-{round_}", round_))
    there.wait(2)
    assert there.journal.counts["bugs"] == 1


def test_a_handler_may_publish(link):
    edge = link.end("edge-1", [subscription(link.root, messages.ActivationBatch)]).start()
    device = link.end("dev-1", [subscription(link.root, Interval)]).start()
    edge.on_message = lambda message: edge.channel.publish(interval(message.batch, message.version))
    batch = next(message for message in examples() if isinstance(message, messages.ActivationBatch))
    device.channel.publish(batch)
    assert device.wait(1) == [interval(batch.batch, batch.version)]


# -- counters


def test_both_sides_count_the_same_bytes(link):
    there, here = link.end("there", all_filters(link)).start(), link.end("here", []).start()
    here.channel.publish(update(size=3000))
    here.channel.publish(interval(1))
    there.wait(2)
    for kind in ("Update", "Interval"):
        assert here.journal.counts[f"sent.{kind}"] == 1
        assert here.journal.counts[f"sent_bytes.{kind}"] == there.journal.counts[f"received_bytes.{kind}"]
    assert 12_000 < here.journal.counts["sent_bytes.Update"] < 13_500


# -- settling


def test_every_handled_message_is_settled_soon(link):
    handled, settled = [], []
    there = link.end("there", [subscription(link.root, Interval)])
    there.on_message = handled.append
    there.start(settle=lambda: settled.append(len(handled)))
    here = link.end("here", []).start()
    for batch in range(40):
        here.channel.publish(interval(batch))
    there.wait(40)
    until = time.monotonic() + 10
    while not settled or settled[-1] < 40:
        assert time.monotonic() < until, settled
        time.sleep(0.01)
    assert settled == sorted(settled)


def test_what_cannot_be_settled_stops_nothing(link):
    def settle():
        raise OSError("no disk")

    there = link.end("there", [subscription(link.root, Interval)]).start(settle=settle)
    here = link.end("here", []).start()
    for batch in range(30):
        here.channel.publish(interval(batch))
    there.wait(30)
    assert there.journal.counts["bugs"] >= 1
