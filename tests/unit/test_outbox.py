"""The outbox: newest version only, bounded, the droppable go first, never blocks the one who puts."""

import threading
import time

import pytest
from samples import examples

from emo import channel, messages
from emo.journal import Journal
from emo.messages import Interval, Status, TapReport, Update
from emo.outbox import Outbox


def update(device="d", round_=1):
    return Update("r", device, round_, 1, None, {})


def interval(batch, version=0, device="d"):
    return Interval("r", "e", device, batch, version, 1.0)


def drain(box):
    out = []
    while (message := box.get(0)) is not None:
        out.append(message)
    return out


def box(limit=4):
    journal = Journal()
    return Outbox(limit, journal), journal


def test_first_in_first_out():
    outbox, _ = box()
    sent = [update("a"), interval(1), update("b")]
    assert all(outbox.put(message) for message in sent)
    assert len(outbox) == 3
    assert drain(outbox) == sent
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
    assert drain(outbox) == sent


def test_when_full_the_oldest_droppable_goes():
    outbox, journal = box(3)
    for message in (update("a"), interval(1), interval(2)):
        outbox.put(message)
    assert outbox.put(interval(3))
    assert outbox.put(update("b"))
    assert drain(outbox) == [update("a"), interval(3), update("b")]
    assert journal.counts["outbox.full"] == 2


def test_when_full_of_what_must_not_be_lost_the_new_one_is_refused():
    outbox, journal = box(2)
    assert outbox.put(update("a"))
    assert outbox.put(update("b"))
    assert not outbox.put(interval(1))
    assert not outbox.put(update("c"))
    assert outbox.put(update("a", 2))  # replaces, needs no room
    assert drain(outbox) == [update("b"), update("a", 2)]
    assert journal.counts["outbox.full"] == 2


def test_put_never_waits_and_get_wakes_at_once():
    outbox, _ = box()
    got = []
    reader = threading.Thread(target=lambda: got.append((outbox.get(5), time.monotonic())))
    reader.start()
    time.sleep(0.05)
    began = time.monotonic()
    outbox.put(update())
    reader.join(5)
    assert got[0][0] == update()
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


@pytest.mark.parametrize("message", examples(), ids=lambda message: type(message).__name__)
def test_what_may_be_lost_is_what_the_run_can_do_without(message):
    lossy = {messages.ActivationBatch, messages.TapReport, messages.Interval}
    assert channel.droppable(message) == (type(message) in lossy)


def test_going_offline_replaces_being_online():
    outbox, _ = box()
    outbox.put(Status("d", "device", online=True))
    outbox.put(update())
    outbox.put(Status("d", "device", online=False))
    assert [type(message).__name__ for message in drain(outbox)] == ["Update", "Status"]
