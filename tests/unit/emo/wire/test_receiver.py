"""The receiving path of every channel: what comes out, and which packets may be acknowledged when."""

import logging
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import any_message, examples, same

from emo.journal import Journal
from emo.wire import frame, topics
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, GlobalModel, Refused, Update
from emo.wire.receiver import Receiver, matches

NAME = "emo/wan/update/dev-1"


def update(size=100, device="dev-1"):
    return Update("run1", device, 1, 10, 0.5, {"w": np.ones(size, np.float32)})


def packets(message, number=1, chunk=200):
    frames = frame.split(message, number.to_bytes(8, "little"), chunk)
    return [(topics.topic("emo", message, index), data) for index, data in enumerate(frames)]


def receiver(**options):
    journal = Journal()
    return Receiver[int]("emo", journal, **options), journal


@given(any_message, st.integers(60, 2000))
def test_a_message_comes_with_the_tokens_of_its_packets(message, chunk):
    taker, journal = receiver(hold=1 << 20)
    sent = packets(message, chunk=chunk)
    for token, (name, data) in enumerate(sent[:-1]):
        assert taker.take(name, data, token) == (None, [])
    got, tokens = taker.take(*sent[-1], len(sent) - 1)
    assert got is not None
    assert same(got, message)
    assert tokens == list(range(len(sent)))
    assert journal.counts[f"received_bytes.{type(message).__name__}"] == sum(len(n) + len(d) for n, d in sent)


def test_packets_of_unfinished_messages_are_acknowledged_early_beyond_hold():
    taker, _ = receiver(hold=3)
    released = [taker.take(*packet, token)[1] for token, packet in enumerate(packets(update(400))[:6])]
    assert released == [[], [], [], [0], [1], [2]]


def test_what_waits_is_charged_what_it_is_once_decoded():
    zeros = Packed(np.zeros((256, 64), np.float32), "int2")
    batch = ActivationBatch("run1", "edge-1", "dev-1", 0, 1, zeros, np.zeros(256, "<i4"))
    taker, _ = receiver()
    (packet,) = packets(batch, chunk=10_000)
    taker.take(*packet, 1)
    assert len(packet[1]) < 1000
    assert 65_536 < taker.last_size < 66_536


def through(taker, sent, window, delay=0.01, patience=30.0):
    """`sent` through a broker that keeps `window` packets on their way, as often as it has to: the messages that come
    out, and how often nothing moved for a second."""
    now, stalls, got, queue, flying = 0.0, 0, [], deque(enumerate(sent)), set()
    while queue and now < patience:
        if len(flying) < window:
            token, packet = queue.popleft()
            flying.add(token)
            message, tokens = taker.take(*packet, token, now)
            got += [message] if message else []
        else:
            now += 0.25 - delay
            tokens = taker.stalled(now)
            stalls += len(tokens)
        flying -= set(tokens)
        now += delay
    return got, stalls


@pytest.mark.parametrize("window", [1, 2, 5, 10, 20])
def test_a_broker_may_keep_as_few_packets_on_their_way_as_it_likes(window):
    taker, _ = receiver(hold=8)
    sent = [packet for number in range(3) for packet in packets(update(600), number)]
    got, stalls = through(taker, sent, window)
    assert len(got) == 3
    assert stalls == (window <= 8)  # once: then it is known
    taker.forget_tokens()  # another connection, perhaps another broker
    assert [taker.take(*packet, token)[1] for token, packet in enumerate(packets(update(), 9)[:2])] == [
        [],
        [],
    ]


def test_a_sender_that_is_slow_is_no_small_window():
    taker, _ = receiver(hold=8)
    for token, packet in enumerate(packets(update(600))[:4]):
        assert taker.take(*packet, token, 2 * token)[1] == []
        assert taker.stalled(2 * token + 1.1) == [token]


def test_nothing_is_acknowledged_early_while_packets_come_or_none_is_held_back():
    taker, _ = receiver(hold=8)
    first, second, *_ = packets(update())
    assert taker.stalled(100) == []
    taker.take(*first, 1, 100)
    assert taker.stalled(100.9) == []
    taker.take(*second, 2, 101)
    assert taker.stalled(101.9) == []
    assert [taker.stalled(102.1), taker.stalled(102.9), taker.stalled(103.2)] == [[1], [], [2]]
    taker.forget_tokens()  # the rest of it alone would never be a message
    assert taker.take(*first, 3, 104)[0] is None
    assert [len(got) for got in through(taker, packets(update()), 20)[:1]] == [1]


def test_no_token_is_given_twice_and_none_is_forgotten():
    taker, _ = receiver(hold=4)
    sent = [*packets(update(), 1), *packets(update(device="dev-2"), 2), *packets(update(), 3)]
    sent.insert(3, sent[2])  # delivered twice
    sent.insert(9, (NAME, b"rubbish"))
    damaged = bytearray(sent[3][1])
    damaged[-1] ^= 1
    sent.insert(7, (NAME, bytes(damaged)))
    released = [token for number, packet in enumerate(sent) for token in taker.take(*packet, number)[1]]
    assert sorted(released) == list(range(len(sent)))


def test_a_refused_message_releases_all_its_packets():
    taker, journal = receiver()
    first, last = packets(Refused("r", "dev-1", 1, "x" * 300), chunk=300)
    wrong = last[0].replace("dev-1", "dev-2")
    assert taker.take(wrong, first[1], 1) == (None, [])
    assert taker.take(wrong, last[1], 2) == (None, [1, 2])
    assert journal.counts["frames.refused"] == 1


def test_another_kinds_topic_is_refused_before_a_byte_is_held():
    # The limit of a global model is 1 GiB; on its own topic a device could make everybody hold that much.
    taker, journal = receiver()
    model = GlobalModel("r", 1, (), examples()[1].training, {"w": np.ones(1000, np.float32)})
    for token, (_, data) in enumerate(packets(model)):
        assert taker.take(NAME, data, token) == (None, [token])
    assert taker._parts.held == 0
    assert journal.counts["frames.refused"] == len(packets(model))


def test_a_part_must_come_by_the_topic_of_its_index():
    taker, journal = receiver()
    model = GlobalModel("r", 1, (), examples()[1].training, {"w": np.ones(1000, np.float32)})
    (_, data), *_ = packets(model)
    assert taker.take("emo/wan/global/1", data, 7) == (None, [7])
    assert journal.counts["frames.refused"] == 1


def test_a_device_that_ends_no_message_costs_the_others_nothing():
    taker, journal = receiver(memory_mib=1)
    *parts, last = packets(update(20_000, "quiet"), chunk=30_000)
    assert all(taker.take(*packet, 0)[0] is None for packet in parts)
    for number in range(6):
        (packet, *_) = packets(update(150_000), number, chunk=250_000)
        taker.take(*packet, number)
    assert journal.counts["messages.abandoned"] == 5
    assert taker.take(*last, 0)[0] is not None


def test_a_part_that_comes_after_its_message_is_acknowledged_and_leaves_nothing():
    # The sender's connection was cut before it knew that the broker had the part: it sends it again.
    taker, journal = receiver()
    sent = packets(update())
    for token, packet in enumerate(sent):
        message, _ = taker.take(*packet, token)
    assert message is not None
    assert taker.take(*sent[1], 77) == (None, [77])
    assert taker._parts.held == 0
    assert journal.counts["chunks.late"] == 1


def test_after_a_reconnect_a_message_comes_again_whole():
    # The broker sends again what was not acknowledged: it may never have been handled.
    taker, _ = receiver(hold=8)
    sent = packets(update())
    assert len(sent) < 8
    for turn in range(3):
        for token, packet in enumerate(sent):
            message, tokens = taker.take(*packet, 100 * turn + token)
        assert message is not None
        assert tokens == [100 * turn + token for token in range(len(sent))]
        taker.forget_tokens()


def test_after_a_reconnect_the_rest_of_a_message_that_was_acknowledged_in_part_leaves_nothing():
    taker, _ = receiver(hold=3)
    sent = packets(update(400))
    for token, packet in enumerate(sent):
        message, _ = taker.take(*packet, token)
    assert message is not None
    taker.forget_tokens()
    assert [taker.take(*packet, token)[1] for token, packet in enumerate(sent[-3:])] == [[0], [1], [2]]
    assert taker._parts.held == 0


def test_what_a_broker_retains_comes_as_often_as_it_is_asked_for():
    taker, _ = receiver()
    model = GlobalModel("r", 1, (), examples()[1].training, {"w": np.ones(1000, np.float32)})
    got = [taker.take(*packet, 0)[0] for _ in range(3) for packet in packets(model)]
    assert sum(message is not None for message in got) == 3


def test_what_somebody_left_at_the_broker_is_read_where_messages_are_retained_only():
    taker, journal = receiver()
    for packet in packets(update()):
        assert taker.take(*packet, 7, retained=True) == (None, [7])
    assert journal.counts["frames.refused"] == len(packets(update()))
    assert taker._parts.held == 0
    model = GlobalModel("r", 1, (), examples()[1].training, {"w": np.ones(10, np.float32)})
    got = [taker.take(*packet, 7, retained=True)[0] for packet in packets(model)]
    assert got[-1] is not None


def test_after_a_reconnect_no_old_token_comes_back():
    taker, _ = receiver()
    sent = packets(update())
    for token, packet in enumerate(sent[:-1]):
        taker.take(*packet, token)
    taker.forget_tokens()
    message, tokens = taker.take(*sent[-1], 99)
    assert message is not None
    assert tokens == [99]


def test_what_a_sender_wrote_cannot_break_the_log(caplog):
    taker, _ = receiver()
    with caplog.at_level(logging.WARNING, "emo"):
        taker.take("emo/\x1b[2J\nERROR all is lost/" + "x" * 10_000, b"?", 1)
    (record,) = caplog.records
    assert record.message.isprintable()
    assert len(record.message) < 500


@pytest.mark.parametrize(
    ("pattern", "name", "agrees"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("+/+", "a/", True),
        ("a/+", "a/b/c", False),
        ("a/+", "a", False),
        ("a/b", "a/B", False),
        ("a+", "ab", False),
        ("+", "a/b", False),
    ],
)
def test_filters(pattern, name, agrees):
    assert matches(pattern, name) is agrees
