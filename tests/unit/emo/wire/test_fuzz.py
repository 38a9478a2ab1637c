"""100,000 hostile packets through the receiving path: our errors only, within bounds, nothing false accepted."""

import dataclasses
import logging
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from samples import examples, same

from emo.config import CODECS
from emo.errors import WireError
from emo.journal import Journal
from emo.wire import frame, topics
from emo.wire.codec import Packed, encode
from emo.wire.frame import HEAD, OVERHEAD
from emo.wire.messages import ActivationBatch, Update
from emo.wire.receiver import Receiver

LIMIT = 64 * 1024  # bytes of a decoded array
MEMORY = 1  # MiB for unfinished messages
# Beside one array and what the receiver holds: a header's JSON, an error's traceback.
SLACK = 256 * 1024


SHAPE = (2, 3, 6, 6)


def relu(number):
    array = np.random.default_rng(number).standard_normal(SHAPE).astype("<f4")
    return array.clip(0)


BASE = relu(0)  # what the deltas are made against, and what the edge holds


def batch(number, codec):
    packed = Packed(encode(BASE + relu(number) / 100, codec, BASE))
    return ActivationBatch("run1", "edge-1", "dev-1", number, number, packed, np.array([1, number], "<i4"))


SENT = [
    *examples(),
    *(batch(number, codec) for number, codec in enumerate(CODECS)),
    Update("run1", "dev-1", 7, 64, 0.25, {"w": np.arange(300, dtype="<f4")}),
]


def packets(message, number, chunk):
    frames = frame.split(message, number.to_bytes(8, "little"), chunk)
    return [(topics.topic("emo", message, index), data) for index, data in enumerate(frames)]


def sealed(head, data):
    """A frame whose checksum agrees. `head`: 32 bytes."""
    return head + struct.pack("<I", zlib.crc32(data, zlib.crc32(head))) + data


def resealed(data):
    return sealed(data[: HEAD.size], data[OVERHEAD:]) if len(data) >= OVERHEAD else data


def whole(kind, payload, number):
    """One frame with this payload, both checksums right."""
    return sealed(
        HEAD.pack(b"EMO", 2, kind, number.to_bytes(8, "little"), 0, 1, len(payload), zlib.crc32(payload)),
        payload,
    )


def damage(rng, intact):
    """One to three bits or bytes changed, or a cut, or something put in; never the same bytes."""
    data = bytearray(intact)
    draw = rng.random  # randrange takes three times as long
    for _ in range(1 + int(3 * draw())):
        at, what = int(len(data) * draw()), int(5 * draw())
        if what < 2 and data:
            data[at] ^= 1 << int(8 * draw())
        elif what == 2 and data:
            data[at] = (0, 1, 0x7F, 0x80, 0xFF)[int(5 * draw())]
        elif what == 3:
            del data[at : at + (1, 4, 1 << 20)[int(3 * draw())]]
        else:
            data[at:at] = rng.randbytes(1 + int(9 * draw()))
    return bytes(data) if data != intact else intact + b"\0"


class End:
    """A receiver with a reader behind it, as on an edge: arrays are decoded within LIMIT."""

    def __init__(self):
        self.journal = Journal()
        self._receiver = Receiver[int]("emo", self.journal, memory_mib=MEMORY)
        self.packets, self.tokens, self.worst = 0, 0, 0

    def take(self, name, data):
        """The message that came out, if any, and whether its array could be decoded."""
        self.packets += 1
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        message, tokens = self._receiver.take(name, data, self.packets)
        self.tokens += len(tokens)
        fine = True
        if isinstance(message, ActivationBatch):
            try:
                assert message.activations.array(LIMIT, BASE).nbytes <= LIMIT
            except WireError:
                fine = False
        self.worst = max(self.worst, tracemalloc.get_traced_memory()[1] - before)
        assert self._receiver._parts.held <= MEMORY << 20
        return message if fine else None


@pytest.fixture
def end(caplog):
    caplog.set_level(logging.CRITICAL, "emo")
    tracemalloc.start()
    yield End()
    tracemalloc.stop()


def test_damaged_packets(end):
    """Mutated, cut, doubled, lost, reordered and interleaved: what comes out is what was sent, to the bit."""
    rng = random.Random(1)
    accepted = number = 0
    while end.packets < 78_000:
        if end.packets > 10_000:
            tracemalloc.stop()  # it doubles the time, and most of these die at the first checksum
        ways = {}
        for message in rng.sample(SENT, 3):
            number += 1
            for name, data in packets(message, number, OVERHEAD + rng.choice((150, 400, 4000))):
                ways.setdefault(number, []).append((name, data, message))
        flow = [item for way in ways.values() for item in way]
        flow += [rng.choice(flow) for _ in range(len(flow) // 3)]
        if rng.random() < 0.3:
            del flow[rng.randrange(len(flow))]
        if rng.random() < 0.7:
            rng.shuffle(flow)
        for name, data, _ in flow:
            for _ in range(rng.choice((0, 2, 8))):
                assert end.take(name, damage(rng, data)) is None
            got = end.take(name, data)
            if got is not None:
                accepted += 1
                assert any(same(got, message) for message in SENT)
    assert end.worst < LIMIT + SLACK
    assert accepted > 2500
    assert end.journal.counts["frames.refused"] > 50_000
    assert end.journal.counts["chunks.late"] > 100


def test_packets_from_somebody_who_knows_the_checksums(end):
    """Damage below the checksums of frame and payload, a third of it below the codec's as well."""
    rng = random.Random(2)
    payloads = [(frame.KINDS.index(type(m)), topics.topic("emo", m), frame.pack(m), m) for m in SENT]
    came = 0
    while end.packets < 22_000:
        kind, name, payload, message = rng.choice(payloads)
        if isinstance(message, ActivationBatch) and rng.random() < 0.6:
            array = damage(rng, message.activations.data()[:-4])
            crafted = Packed(array + struct.pack("<I", zlib.crc32(array)))
            data = whole(kind, frame.pack(dataclasses.replace(message, activations=crafted)), end.packets)
        elif rng.random() < 0.7:
            data = whole(kind, damage(rng, payload), end.packets)
        else:  # of several frames: heads that lie, parts of one message that contradict each other
            number = rng.randrange(50)
            data = resealed(damage(rng, rng.choice(packets(message, number, OVERHEAD + 60))[1]))
        got = end.take(name, data)
        if got is not None:
            came += 1
            assert same(frame.unpack(frame.KINDS.index(type(got)), frame.pack(got)), got)
    assert end.worst < LIMIT + SLACK
    assert came > 500
    assert end.packets - end.tokens <= 8  # the last few still wait for the rest of their message
    counts = end.journal.counts
    assert counts["messages.abandoned"] + counts["chunks.late"] > 100


def bombs():
    """Encoded arrays whose zstd frame, or whose head, promises more than it should."""
    big = bytes(64 << 20)
    with_size = zstandard.ZstdCompressor(level=3).compress(big)
    without = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(big)
    small = zstandard.ZstdCompressor().compress(bytes(10))
    for codec in CODECS:
        data = encode(np.zeros((2, 3, 4, 4), np.float32), codec)
        at = data.index(b"\x28\xb5\x2f\xfd")
        for bomb in (with_size, without, small, small + with_size, with_size[:200], b""):
            for shape in (
                (2, 3, 4, 4),
                (2**16, 2**16, 1, 1),
                (64, 1024, 16, 16),
                (2**32 - 1,) * 4,
                (64, 16, 4, 4),
            ):
                for raw in (None, 64 << 20, 2**32 - 1):
                    head = bytearray(data[:at])
                    struct.pack_into("<4I", head, 8, *shape)
                    if raw is not None:
                        struct.pack_into("<I", head, at - 4, raw)
                    body = bytes(head) + bomb
                    yield body + struct.pack("<I", zlib.crc32(body))


def test_bombs(end):
    """10,000 arrays that would fill the memory, in batches that are otherwise in order."""
    rng = random.Random(3)
    packed = list(bombs())
    good = batch(1, "fp16")
    name, kind = topics.topic("emo", good), frame.KINDS.index(ActivationBatch)
    while end.packets < 10_000:
        bomb = packed[end.packets % len(packed)]
        if end.packets > len(packed):
            bomb = damage(rng, bomb[:-4])
            bomb += struct.pack("<I", zlib.crc32(bomb))
        payload = frame.pack(dataclasses.replace(good, activations=Packed(bomb)))
        assert end.take(name, whole(kind, payload, end.packets)) is None
    assert end.take(name, packets(good, 1, 1 << 20)[0][1]) is not None
    assert end.worst < LIMIT + SLACK
