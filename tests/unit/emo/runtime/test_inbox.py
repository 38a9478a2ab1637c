"""What waits to be handled: bounded, newest version only, each device in its turn, every token kept."""

import threading
import time

import numpy as np

from emo.journal import Journal
from emo.runtime.inbox import Inbox
from emo.wire.codec import Packed
from emo.wire.messages import ActivationBatch, Event, Report, Update

LIMIT = 40_000  # of which a device has a quarter; a message is charged a thousand bytes beside its own


def batch(number=0, version=0, device="d"):
    packed = Packed(np.zeros((1, 2), np.float32))
    return ActivationBatch("r", "e", device, number, version, packed, np.zeros(1, "<i4"))


def update(device="d"):
    return Update("r", device, 1, 1, 0.0, {})


def test_first_in_first_out_with_tokens():
    inbox = Inbox(LIMIT, Journal())
    for number in range(3):
        assert inbox.put(batch(number), [number], 10, 0)
    assert [inbox.get()[1] for _ in range(3)] == [[0], [1], [2]]


def test_a_newer_version_takes_the_place_of_the_older_and_its_tokens():
    journal = Journal()
    inbox = Inbox(LIMIT, journal)
    for token, (number, version) in enumerate([(0, 1), (1, 1), (0, 2), (0, 3)]):
        assert inbox.put(batch(number, version), [token], 3500, 0)  # no room is needed for a replacement
    first, tokens = inbox.get()
    assert (first.batch, first.version, tokens) == (0, 3, [0, 2, 3])
    assert inbox.get()[0].batch == 1
    assert journal.counts["inbox.superseded.ActivationBatch"] == 2


def test_what_must_not_be_lost_is_never_replaced():
    inbox = Inbox(LIMIT, Journal())
    for token in range(3):
        inbox.put(update(), [token], 1, 0)
    assert [inbox.get()[1] for _ in range(3)] == [[0], [1], [2]]


def test_full_it_waits_and_then_says_so():
    inbox = Inbox(LIMIT, Journal())
    assert inbox.put(update(), [1], 50_000, 0)  # larger than all of it, but alone
    began = time.monotonic()
    assert not inbox.put(update(), [2], 1, 0.1)
    assert time.monotonic() - began >= 0.1
    threading.Timer(0.05, inbox.get).start()
    assert inbox.put(update(), [3], 1, 5)
    assert inbox.get()[1] == [3]


def test_closing_wakes_the_one_who_waits():
    inbox = Inbox(LIMIT, Journal())
    inbox.put(update(), [1], 1, 0)
    inbox.close()
    assert inbox.get() is None


def drained(inbox):
    """All that waits: (device, batch or None, tokens)."""
    found = []
    while inbox._items:
        message, tokens = inbox.get()
        found.append((message.device, getattr(message, "batch", None), tokens))
    return found


def test_a_larger_version_of_what_waits_needs_room_too():
    # Else: a thousand small batches, each then replaced by a large one.
    inbox = Inbox(LIMIT, Journal())
    for number in range(3):
        assert inbox.put(batch(number), [number], 1000, 0)
    assert inbox.put(batch(0, 1), [3], 5000, 0)
    assert inbox.put(batch(1, 1), [4], 5000, 0)  # the oldest other one goes for it
    assert drained(inbox) == [("d", 1, [1, 4, 0, 3]), ("d", 2, [2])]


def test_what_waits_for_room_does_not_replace_what_was_taken_meanwhile():
    inbox = Inbox(LIMIT, Journal())
    inbox.put(batch(0), [0], 2000, 0)
    inbox.put(update("u"), [1], 34_000, 0)
    taken = []
    threading.Timer(0.05, lambda: taken.extend(inbox.get()[1] + inbox.get()[1])).start()
    assert inbox.put(batch(0, 1), [2], 8000, 5)
    assert taken == [0, 1]
    assert drained(inbox) == [("d", 0, [2])]


def test_small_messages_are_charged_for_what_they_cost():
    journal = Journal()
    inbox = Inbox(LIMIT, journal)
    for number in range(50):
        assert inbox.put(batch(number), [number], 10, 0)
    assert [number for _, number, _ in drained(inbox)] == list(range(41, 50))
    assert journal.counts["inbox.dropped.ActivationBatch"] == 41


# -- one device against the others


def test_each_device_has_its_turn_and_its_own_order():
    inbox = Inbox(LIMIT, Journal())
    for number in range(4):
        inbox.put(batch(number, device="flood"), [number], 10, 0)
    for device in ("a", "b"):
        for number in range(2):
            inbox.put(batch(number, device=device), [10 + number], 10, 0)
    wanted = [("flood", 0), ("a", 0), ("b", 0), ("flood", 1), ("a", 1), ("b", 1), ("flood", 2), ("flood", 3)]
    assert [(device, number) for device, number, _ in drained(inbox)] == wanted


def test_a_device_that_floods_holds_a_quarter_and_drives_out_only_itself():
    journal = Journal()
    inbox = Inbox(LIMIT, journal)
    inbox.put(batch(0, device="quiet"), [-1], 500, 0)
    for number in range(1000):
        assert inbox.put(batch(number, device="flood"), [number], 500, 0)
        assert inbox._held["flood"] <= LIMIT // 4
    assert inbox.put(batch(1, device="quiet"), [-2], 500, 0)
    assert inbox.put(update("other"), [-3], 500, 0)
    found = drained(inbox)
    assert [(device, tokens) for device, _, tokens in found if device != "flood"] == [
        ("quiet", [-1]),
        ("other", [-3]),
        ("quiet", [-2]),
    ]
    tokens = [token for device, _, each in found if device == "flood" for token in each]
    assert sorted(tokens) == list(range(1000))  # each is acknowledged in the end
    assert journal.counts["inbox.dropped.ActivationBatch"] == 994


def test_many_that_flood_together_fill_it_and_the_one_with_most_pays():
    inbox = Inbox(LIMIT, Journal())
    for number in range(100):
        for device in "abcdefgh":
            assert inbox.put(batch(number, device=device), [0], 1000, 0)
    assert inbox.put(batch(0, device="quiet"), [1], 1000, 0)
    assert sum(inbox._held.values()) <= LIMIT
    assert [tokens[0] for device, _, tokens in drained(inbox) if device == "quiet"] == [1]


def test_what_must_not_be_lost_waits_for_its_room_and_drives_out_nothing():
    inbox = Inbox(LIMIT, Journal())
    for number in range(4):
        for device in "abcd":
            inbox.put(batch(number, device=device), [0], 1500, 0)
    assert not inbox.put(update("u"), [1], 500, 0.01)
    assert len(drained(inbox)) == 16


def test_a_node_that_floods_with_events_crowds_out_itself():
    journal = Journal()
    inbox = Inbox(LIMIT, journal)
    assert inbox.put(Event("quiet", "device", 1, 0.0, "trained"), [1], 100, 0)
    assert inbox.put(Report("quiet", "device", "", 0.0), [2], 100, 0)
    for number in range(10_000):
        assert inbox.put(Event("loud", "device", number, 0.0, "again"), [number + 3], 100, 0)
    held, tokens = [], []
    while (item := inbox.get(0)) is not None:
        held.append(item[0])
        tokens += item[1]
    assert [type(each).__name__ for each in held if each.node == "quiet"] == ["Event", "Report"]
    assert [each.number for each in held if each.node == "loud"] == list(range(9991, 10_000))  # a quarter, the newest
    assert journal.counts["inbox.dropped.Event"] == 10_000 - 9
    assert sorted(tokens) == list(range(1, 10_003))
