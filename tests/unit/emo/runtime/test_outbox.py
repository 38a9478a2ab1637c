"""The outbox: newest version only, bounded, the droppable go first, never blocks the one who puts."""

import threading
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from samples import same

from emo.journal import Journal
from emo.runtime.outbox import Outbox
from emo.wire import messages
from emo.wire.codec import Packed
from emo.wire.messages import Interval, Status, TapReport, Update


def update(device="d", round_=1, kilobytes=0):
    return Update("r", device, round_, 1, None, {"w": np.zeros(250 * kilobytes, "<f4")})


def batch(number, version=0, kilobytes=10):
    activations = Packed(np.zeros((1, 250 * kilobytes), np.float32))
    return messages.ActivationBatch("r", "e", "d", number, version, activations, np.zeros(1, "<i4"))


def interval(batch, version=0, device="d"):
    return Interval("r", "e", device, batch, version, 1.0)


def drain(box):
    out = []
    while (message := box.get(0)) is not None:
        out.append(message)
    return out


def alike(one, two):
    return len(one) == len(two) and all(map(same, one, two))


def box(limit=4, memory=64 << 20):
    journal = Journal()
    return Outbox(limit, journal, memory), journal


def test_first_in_first_out():
    outbox, _ = box()
    sent = [update("a"), interval(1), update("b")]
    assert all(outbox.put(message) for message in sent)
    assert len(outbox) == 3
    assert alike(drain(outbox), sent)
    assert outbox.get(0) is None


def test_a_newer_version_replaces_the_older_and_is_counted():
    outbox, journal = box()
    for version in range(5):
        assert outbox.put(interval(1, version))
    assert drain(outbox) == [interval(1, 4)]
    assert journal.counts["outbox.superseded.Interval"] == 4
    assert journal.counts["outbox.full"] == 0


def test_other_devices_batches_and_kinds_are_not_replaced():
    outbox, _ = box(10)
    sent = [
        interval(1),
        interval(2),
        interval(1, device="x"),
        update(),
        update("x"),
        TapReport("r", "e", "d", 1, 1, 1),
    ]
    for message in sent:
        outbox.put(message)
    assert alike(drain(outbox), sent)


def test_when_full_the_oldest_droppable_goes():
    outbox, journal = box(3)
    for message in (update("a"), interval(1), interval(2)):
        outbox.put(message)
    assert outbox.put(interval(3))
    assert outbox.put(update("b"))
    assert alike(drain(outbox), [update("a"), interval(3), update("b")])
    assert journal.counts["outbox.dropped.Interval"] == journal.counts["outbox.full"] == 2


def test_when_full_of_what_must_not_be_lost_the_new_one_is_refused():
    outbox, journal = box(2)
    assert outbox.put(update("a"))
    assert outbox.put(update("b"))
    assert not outbox.put(interval(1))
    assert not outbox.put(update("c"))
    assert outbox.put(update("a", 2))  # replaces, needs no room
    assert alike(drain(outbox), [update("b"), update("a", 2)])
    assert journal.counts["outbox.refused.Interval"] == journal.counts["outbox.refused.Update"] == 1
    assert journal.counts["outbox.full"] == 2


# -- bounded in bytes


def test_when_its_bytes_are_full_the_oldest_droppable_go():
    outbox, journal = box(100, memory=50_000)
    outbox.put(update())
    for number in range(6):
        assert outbox.put(batch(number))
    assert [message.batch for message in drain(outbox)[1:]] == [2, 3, 4, 5]
    assert journal.counts["outbox.dropped.ActivationBatch"] == 2


def test_a_newer_version_needs_no_more_room_than_the_older_had():
    outbox, journal = box(100, memory=50_000)
    for version in range(9):
        for number in range(4):
            assert outbox.put(batch(number, version))
    assert [(message.batch, message.version) for message in drain(outbox)] == [(n, 8) for n in range(4)]
    assert journal.counts["outbox.full"] == 0


def test_what_must_not_be_lost_goes_even_if_it_is_larger_than_the_queue():
    outbox, journal = box(100, memory=50_000)
    outbox.put(Status("d", "device", online=True))
    outbox.put(batch(1))
    assert outbox.put(update(kilobytes=500))
    assert not outbox.put(update("another", kilobytes=500))
    assert not outbox.put(batch(2))
    assert outbox.put(update(round_=2, kilobytes=500))
    assert [type(message).__name__ for message in drain(outbox)] == ["Status", "Update"]
    counts = journal.counts
    assert counts["outbox.dropped.ActivationBatch"] == counts["outbox.refused.ActivationBatch"] == 1
    assert counts["outbox.refused.Update"] == 1


def test_what_is_put_back_makes_room_too():
    outbox, _ = box(100, memory=50_000)
    outbox.put(batch(0))
    first = outbox.get(0)
    for number in range(1, 5):
        outbox.put(batch(number))
    outbox.put_back(first)
    assert [message.batch for message in drain(outbox)] == [2, 3, 4, 0]


def test_what_is_put_back_does_not_replace_what_is_newer():
    outbox, _ = box()
    outbox.put(interval(1, 1))
    older = outbox.get(0)
    outbox.put(interval(1, 2))
    outbox.put_back(older)
    assert drain(outbox) == [interval(1, 2)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 30)), max_size=60))
def test_it_holds_its_bytes_and_at_most_one_message_more(puts):
    outbox, _ = box(8, memory=50_000)
    largest = 31_100
    for lossy, name, kilobytes in puts:
        message = batch(name, kilobytes=kilobytes + 1) if lossy else update(f"d{name}", kilobytes=1)
        outbox.put(message)
        assert len(outbox) <= 8
        assert outbox._held == sum(size for _, size in outbox._items.values()) <= 50_000 + largest
    drain(outbox)
    assert outbox._held == 0


# -- threads


def test_put_never_waits_and_get_wakes_at_once():
    outbox, _ = box()
    got = []
    reader = threading.Thread(target=lambda: got.append((outbox.get(5), time.monotonic())))
    reader.start()
    time.sleep(0.05)
    began = time.monotonic()
    outbox.put(update())
    reader.join(5)
    assert same(got[0][0], update())
    assert got[0][1] - began < 1


def test_get_gives_up_after_its_timeout():
    outbox, _ = box()
    began = time.monotonic()
    assert outbox.get(0.05) is None
    assert 0.03 < time.monotonic() - began < 1


def test_many_threads_lose_nothing_and_never_exceed_the_limit():
    outbox, journal = box(50)
    got, over = [], threading.Event()

    def read():
        while not over.is_set() or len(outbox):
            message = outbox.get(0.01)
            if message is not None:
                got.append(message)
                assert len(outbox) <= 51  # the one in hand counts until it is done
                outbox.done()

    reader = threading.Thread(target=read)
    reader.start()
    accepted = [0] * 4

    def write(n):
        accepted[n] = sum(outbox.put(update(f"d{n}-{i}")) for i in range(300))

    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join(5)
    assert len(got) == sum(accepted)
    assert journal.counts["outbox.full"] == 1200 - sum(accepted)


def test_going_offline_replaces_being_online():
    outbox, _ = box()
    outbox.put(Status("d", "device", online=True))
    outbox.put(update())
    outbox.put(Status("d", "device", online=False))
    assert [type(message).__name__ for message in drain(outbox)] == ["Update", "Status"]
