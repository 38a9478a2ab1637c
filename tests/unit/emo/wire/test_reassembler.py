"""The reassembler: bounded for each sender and in total; parts of one message agree; what is over is over."""

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emo.errors import FrameError
from emo.journal import Journal
from emo.wire.frame import Chunk
from emo.wire.reassembly import Reassembler

MIB = 1 << 20


def chunk(index, count, name=1, size=None, data=b"x", kind=1, crc=0):
    return Chunk(kind, name.to_bytes(8, "little"), index, count, count if size is None else size, crc, data)


def message(name, count=3, size=10):
    """A message whose checksum agrees, in `count` chunks of `size` bytes."""
    data = [bytes([name % 256, index % 256]) + bytes(size - 2) for index in range(count)]
    crc = zlib.crc32(b"".join(data))
    return [chunk(index, count, name, count * size, data[index], crc=crc) for index in range(count)]


def reassembler(limit=MIB):
    journal = Journal()
    return Reassembler(limit, journal), journal.counts


def add_all(parts, chunks, source="s", once=True):
    return [payload for each in chunks if (payload := parts.add(source, each, MIB, once=once)) is not None]


# -- one message


@pytest.mark.parametrize(
    "bad",
    [
        chunk(0, 1, data=b"", size=0),
        chunk(0, 2, data=b""),
        chunk(0, 5, size=4),
        chunk(0, 1, size=2000, data=bytes(2000)),
        chunk(0, 1, size=2, data=b"a"),
        chunk(0, 2**32 - 1, size=2**32 - 1),
        chunk(0, 2, size=2, data=b"abc"),
        chunk(0, 1, crc=1),
    ],
)
def test_chunks_that_break_their_own_bounds(bad):
    parts, _ = reassembler()
    with pytest.raises(FrameError):
        parts.add("s", bad, 1000)
    assert parts.held == 0


@pytest.mark.parametrize(
    "second",
    [
        chunk(1, 3),
        chunk(1, 2, size=3),
        chunk(1, 2, kind=2),
        chunk(1, 2, crc=9),
        chunk(1, 2, data=b"xx", size=2),
    ],
)
def test_chunks_that_contradict_each_other_end_their_message(second):
    parts, _ = reassembler()
    parts.add("s", chunk(0, 2), 1000)
    with pytest.raises(FrameError, match="contradict"):
        parts.add("s", second, 1000)
    assert parts.held == 0


# -- bounds


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 9), st.integers(0, 400)), max_size=60))
def test_the_reassembler_holds_no_more_than_its_limit(adds):
    parts, _ = reassembler(6000)
    for source, name, count, size in adds:
        try:
            parts.add(str(source), chunk(min(name, count - 1), count, name, 400, bytes(size)), 1000)
        except FrameError:
            continue
        assert 0 <= parts.held <= 6000


def test_what_it_says_it_holds_is_what_it_takes():
    parts, _ = reassembler(64 * MIB)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for source in range(300):
        for name in range(4):
            parts.add(f"emo/lan/edge-1/activation/{source}", message(name, 3)[0], MIB)
    for index in range(5000):  # one message of many tiny chunks
        parts.add("t", Chunk(1, bytes(8), index, 8000, 8000, 0, bytes([index % 256])), MIB)
    took = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert took < parts.held


def test_a_sender_of_many_unfinished_messages_loses_its_own_oldest():
    parts, counts = reassembler()
    waiting = message(99)
    add_all(parts, waiting[:2], "quiet")
    names = range(10)
    for name in names:
        add_all(parts, message(name)[:2], "loud")
    assert counts["messages.abandoned"] == 6
    assert add_all(parts, waiting[2:], "quiet")
    assert [bool(add_all(parts, message(name)[2:], "loud")) for name in names] == [False] * 6 + [True] * 4


def test_a_sender_may_hold_a_quarter_or_one_message():
    parts, counts = reassembler(100_000)
    large = message(1, count=3, size=20_000)
    assert add_all(parts, large[:2]) == []  # 40 % of all there is
    assert counts["messages.abandoned"] == 0
    assert len(add_all(parts, large[2:])) == 1
    add_all(parts, message(2, 3, 20_000)[:1])
    add_all(parts, message(3, 3, 20_000)[:1])
    assert counts["messages.abandoned"] == 1
    assert parts.held < 25_000


def test_when_all_are_over_the_limit_who_holds_most_gives_way():
    parts, counts = reassembler(100_000)
    small = {name: message(name, 3, 2000) for name in range(10)}
    for name, chunks in small.items():
        add_all(parts, chunks[:2], f"dev-{name}")
    assert add_all(parts, message(50, 5, 19_000), "large") == []
    assert counts["messages.abandoned"] == 1
    assert all(len(add_all(parts, chunks[2:], f"dev-{name}")) == 1 for name, chunks in small.items())
    assert parts.held == 0


# -- what is over


def test_a_doubled_chunk_of_a_finished_message_opens_nothing():
    parts, counts = reassembler()
    chunks = message(1)
    assert len(add_all(parts, chunks)) == 1
    assert add_all(parts, [chunks[1], chunks[2]]) == []
    assert counts["chunks.late"] == 2
    assert parts.held == 0
    assert len(add_all(parts, chunks, "another sender")) == 1


def test_the_rest_of_an_abandoned_message_opens_nothing():
    parts, counts = reassembler()
    for name in range(5):
        add_all(parts, message(name)[:1])
    held = parts.held
    assert add_all(parts, message(0)[1:]) == []
    assert (counts["chunks.late"], parts.held) == (2, held)


def test_what_may_come_again_does():
    parts, _ = reassembler()
    assert len(add_all(parts, [*message(1), *message(1)], once=False)) == 2  # a retained message
    (one,) = message(2, count=1)
    assert len(add_all(parts, [one, one])) == 2  # leaves nothing behind in any case
    add_all(parts, [*message(3), *message(4), *message(5)[:2]])
    parts.acknowledged("s", message(4)[0].message)  # after it was over
    parts.acknowledged("s", message(5)[0].message)  # before
    add_all(parts, message(5)[2:])
    parts.forget()  # after a reconnect
    assert [len(add_all(parts, message(name))) for name in (3, 4, 5)] == [1, 0, 0]


def test_the_memory_of_what_is_over_is_bounded():
    parts, _ = reassembler()
    tracemalloc.start()
    for name in range(2000):
        add_all(parts, message(name))
    first = tracemalloc.get_traced_memory()[0]
    for name in range(2000, 10_000):
        add_all(parts, message(name))
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert grown < 20_000
