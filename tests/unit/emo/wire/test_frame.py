"""Frames: every message survives them; nothing else gets through."""

import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import any_message, examples, same

from emo.errors import FrameError, WireError
from emo.journal import Journal
from emo.wire import frame
from emo.wire.frame import OVERHEAD, parse
from emo.wire.reassembly import Reassembler

MIB = 1 << 20
BY_NAME = {type(message).__name__: message for message in examples()}
each_kind = pytest.mark.parametrize("message", BY_NAME.values(), ids=BY_NAME)


def cut(message, number=1, piece=40):
    return list(frame.split(message, number.to_bytes(8, "little"), OVERHEAD + piece))


def assemble(frames, source="s", parts=None):
    """Messages that come out; raises what the receiving path raises."""
    parts, out = parts or Reassembler(MIB, Journal()), []
    for data in frames:
        chunk = parse(data)
        payload = parts.add(source, chunk, MIB)
        if payload is not None:
            out.append(frame.unpack(chunk.kind, payload))
    return out


# -- round trips


@given(any_message, st.integers(1, 300))
def test_every_message_survives(message, piece):
    (back,) = assemble(cut(message, piece=piece))
    assert same(back, message)


@given(any_message)
def test_same_message_same_bytes(message):
    assert frame.pack(message) == frame.pack(message)


@given(any_message, any_message, st.randoms(use_true_random=False))
def test_chunks_doubled_reordered_and_interleaved(one, two, rng):
    frames = [*cut(one, 1), *cut(two, 2)]
    frames += rng.sample(frames, len(frames) // 3)
    rng.shuffle(frames)
    out = assemble(frames)
    # Doubled chunks of a small message are a doubled message; nothing else may come out.
    assert any(same(each, one) for each in out)
    assert any(same(each, two) for each in out)
    assert all(same(each, one) or same(each, two) for each in out)


@given(any_message, st.data())
def test_a_message_that_misses_a_chunk_never_arrives(message, data):
    frames = cut(message)
    del frames[data.draw(st.integers(0, len(frames) - 1))]
    assert assemble(frames) == []


@each_kind
def test_frames_fit_the_chunk_and_senders_are_kept_apart(message):
    frames = cut(message)
    assert max(map(len, frames)) <= OVERHEAD + 40
    parts = Reassembler(MIB, Journal())
    for index, data in enumerate(frames):
        assert parts.add(f"s{index % 2}", parse(data), MIB) is None or len(frames) == 1


def test_the_size_of_small_messages_is_known():
    # A regression here is bandwidth: each of these is sent once a batch.
    assert len(b"".join(cut(BY_NAME["Interval"], piece=4000))) < 80
    assert len(b"".join(cut(BY_NAME["TapReport"], piece=4000))) < 80
    batch = BY_NAME["ActivationBatch"]
    assert len(b"".join(cut(batch, piece=4000))) - len(batch.activations.data()) < 80


# -- damaged frames


def mutate(rng, frames):
    frames = [bytearray(data) for data in frames]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(frames))
        data = frames[at]
        match rng.randrange(6):
            case 0 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1 if data:
                del data[rng.randrange(len(data)) :]
            case 2:
                data += rng.randbytes(rng.randint(1, 9))
            case 3:
                frames.insert(rng.randrange(len(frames) + 1), bytearray(data))
            case 4:
                frames.pop(at)
                if not frames:
                    return []
            case _:
                rng.shuffle(frames)
    return [bytes(data) for data in frames]


def receive_all(frames):
    """As a channel does: a refused frame is dropped, the next is read."""
    parts, out, refused = Reassembler(MIB, Journal()), [], 0
    for data in frames:
        try:
            out += assemble([data], parts=parts)
        except WireError:
            refused += 1
    return out, refused


def test_five_thousand_mutated_messages_give_the_message_or_nothing():
    rng = random.Random(1)
    sent = examples()
    lost = refused = 0
    for turn in range(5000):
        message = sent[turn % len(sent)]
        out, count = receive_all(mutate(rng, cut(message, turn)))
        assert all(same(each, message) for each in out)
        lost, refused = lost + (not out), refused + count
    assert lost > 1000
    assert refused > 1000


def test_five_thousand_crafted_payloads_give_a_valid_message_or_wire_error():
    # Both checksums agree: this is what someone who knows the format can send.
    rng = random.Random(2)
    sent = [frame.pack(message) for message in examples()]
    valid = 0
    for turn in range(5000):
        kind = turn % len(sent)
        data = b"".join(mutate(rng, [sent[kind]]))
        try:
            message = frame.unpack(kind if turn % 7 else rng.randrange(256), data)
        except WireError:
            continue
        valid += 1
        assert same(frame.unpack(frame.KINDS.index(type(message)), frame.pack(message)), message)
    assert valid > 100


@given(st.binary(max_size=100), st.integers(0, 255))
def test_any_bytes(data, kind):
    with pytest.raises(WireError):
        parse(data)
    with pytest.raises(WireError):
        frame.unpack(kind, data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"magic": b"EMU"}, "not an EMO frame"),
        ({"schema": 1}, "upgrade"),
        ({"kind": 200}, "impossible"),
        ({"index": 1}, "impossible"),
        ({"count": 0}, "impossible"),
    ],
)
def test_heads_that_make_no_sense(change, says):
    head = {
        "magic": b"EMO",
        "schema": 2,
        "kind": 0,
        "id": bytes(8),
        "index": 0,
        "count": 1,
        "size": 1,
        "crc": 0,
    }
    raw = frame.HEAD.pack(*{**head, **change}.values())
    with pytest.raises(FrameError, match=says):
        parse(raw + struct.pack("<I", zlib.crc32(b"x", zlib.crc32(raw))) + b"x")
