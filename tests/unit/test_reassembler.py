"""The reassembler: bounded in bytes, and parts of one message agree with each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emo.errors import FrameError
from emo.frame import Chunk, Reassembler

MIB = 1 << 20


def chunk(index, count, name=1, size=None, data=b"x", kind=1, crc=0):
    return Chunk(kind, name.to_bytes(8, "little"), index, count, count if size is None else size, crc, data)


@pytest.mark.parametrize(
    "bad",
    [
        chunk(0, 1, data=b"", size=0),
        chunk(0, 2, data=b""),
        chunk(0, 5, size=4),
        chunk(0, 1, size=2000, data=bytes(2000)),
        chunk(0, 2**32 - 1, size=2**32 - 1),
        chunk(0, 2, size=2, data=b"abc"),
        chunk(0, 1, crc=1),
    ],
)
def test_chunks_that_break_their_own_bounds(bad):
    parts = Reassembler(MIB)
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
    parts = Reassembler(MIB)
    parts.add("s", chunk(0, 2), 1000)
    with pytest.raises(FrameError, match="contradict"):
        parts.add("s", second, 1000)
    assert parts.held == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 9), st.integers(0, 400)), max_size=60
    )
)
def test_the_reassembler_holds_no_more_than_its_limit(adds):
    parts = Reassembler(2000)
    for source, name, count, size in adds:
        try:
            parts.add(str(source), chunk(min(name, count - 1), count, name, 400, bytes(size)), 1000)
        except FrameError:
            continue
        assert 0 <= parts.held <= 2000


def test_the_oldest_unfinished_message_gives_way():
    parts = Reassembler(2000)
    for name in range(1, 9):
        parts.add("s", chunk(0, 2, name, 1000, bytes(500)), 1000)
    assert parts.abandoned > 0
    data = bytes(500)
    last = chunk(1, 2, 8, 1000, data, crc=0)
    with pytest.raises(FrameError, match="checksum"):  # complete: only its checksum is wrong
        parts.add("s", last, 1000)


def test_many_tiny_chunks_are_charged_for_what_they_cost():
    parts = Reassembler(64 * MIB)
    for index in range(7999):
        parts.add("s", chunk(index, 8000), MIB)
    assert parts.held > 300 * 7999
