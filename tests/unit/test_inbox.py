"""What waits to be handled: bounded, newest version only, every token kept."""

import threading
import time

import numpy as np

from emo.codec import Packed
from emo.inbox import Inbox
from emo.journal import Journal
from emo.messages import ActivationBatch, Update

LIMIT = 10_000  # a message is charged a thousand bytes beside its own


def batch(number=0, version=0, device="d"):
    packed = Packed(np.zeros((1, 2), np.float32))
    return ActivationBatch("r", "e", device, number, version, packed, np.zeros(1, "<i4"))


def update(device="d"):
    return Update("r", device, 1, 1, 0.0, {})


def test_first_in_first_out_with_tokens():
    inbox = Inbox[int](LIMIT, Journal())
    for number in range(3):
        assert inbox.put(batch(number), [number], 10, 0)
    assert [inbox.get()[1] for _ in range(3)] == [[0], [1], [2]]


def test_a_newer_version_takes_the_place_of_the_older_and_its_tokens():
    journal = Journal()
    inbox = Inbox[int](LIMIT, journal)
    for token, (number, version) in enumerate([(0, 1), (1, 1), (0, 2), (0, 3)]):
        assert inbox.put(batch(number, version), [token], 3500, 0)  # no room is needed for a replacement
    first, tokens = inbox.get()
    assert (first.batch, first.version, tokens) == (0, 3, [0, 2, 3])
    assert inbox.get()[0].batch == 1
    assert journal.counts["inbox.superseded.ActivationBatch"] == 2


def test_what_must_not_be_lost_is_never_replaced():
    inbox = Inbox[int](LIMIT, Journal())
    for token in range(3):
        inbox.put(update(), [token], 1, 0)
    assert [inbox.get()[1] for _ in range(3)] == [[0], [1], [2]]


def test_full_it_waits_and_then_says_so():
    inbox = Inbox[int](LIMIT, Journal())
    assert inbox.put(update(), [1], 50_000, 0)  # larger than all of it, but alone
    began = time.monotonic()
    assert not inbox.put(update(), [2], 1, 0.1)
    assert time.monotonic() - began >= 0.1
    threading.Timer(0.05, inbox.get).start()
    assert inbox.put(update(), [3], 1, 5)
    assert inbox.get()[1] == [3]


def test_closing_wakes_the_one_who_waits():
    inbox = Inbox[int](LIMIT, Journal())
    inbox.put(update(), [1], 1, 0)
    inbox.close()
    assert inbox.get() is None


def test_a_larger_version_of_what_waits_has_to_wait_for_room_too():
    # Else: a thousand small batches, each then replaced by a large one.
    inbox = Inbox[int](LIMIT, Journal())
    for number in range(3):
        assert inbox.put(batch(number), [number], 1000, 0)
    assert inbox.put(batch(0, 1), [3], 4000, 0)
    assert not inbox.put(batch(1, 1), [4], 4000, 0)
    assert inbox.get()[1] == [0, 3]
    assert inbox.put(batch(1, 1), [5], 4000, 0)
    assert [inbox.get()[1] for _ in range(2)] == [[1, 5], [2]]


def test_what_waits_for_room_does_not_replace_what_was_taken_meanwhile():
    inbox = Inbox[int](LIMIT, Journal())
    for number in range(3):
        inbox.put(batch(number), [number], 2000, 0)
    taken = []
    threading.Timer(0.05, lambda: taken.extend(inbox.get()[1] + inbox.get()[1])).start()
    assert inbox.put(batch(0, 1), [3], 3500, 5)
    assert taken == [0, 1]
    assert [inbox.get()[1] for _ in range(2)] == [[2], [3]]


def test_small_messages_are_charged_for_what_they_cost():
    inbox = Inbox[int](LIMIT, Journal())
    assert sum(inbox.put(batch(number), [number], 10, 0) for number in range(50)) == 9
