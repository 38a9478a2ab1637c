"""Messages between processes arrive as they were sent: bytes, packets, messages of the wire, other messages."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from samples import any_message, same

from emo.wire.messages import Update
from testbed.fleet.messages import (
    BeginRound,
    EdgeTrained,
    Offered,
    OpenEdge,
    TrainDevice,
    Trained,
    TrainTogether,
)
from testbed.plan import DeviceWork
from testbed.splitfed import worker
from testbed.workers.messages import decode, encode

packets = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=9)), max_size=3)


@given(st.lists(packets, max_size=4), packets, st.binary())
def test_packets_and_bytes(waves, report, state):
    sent = TrainTogether([TrainDevice(number, state, wave) for number, wave in enumerate(waves)])
    parts = encode(sent)
    assert decode(parts) == sent
    assert not waves or parts[1] is state  # as it is, not copied
    trained = [Trained(0.5, 3, state, Offered(waves, report), report)]
    assert decode(encode(trained)) == trained
    edge = EdgeTrained(4, {"device-1": report})
    assert decode(encode(edge)) == edge


@given(any_message)
def test_messages_of_the_wire(message):
    assert same(decode(encode(message)), message)


def test_fields_of_every_kind():
    assert decode(encode(None)) is None
    assert decode(encode(b"bytes")) == b"bytes"
    assert decode(encode(OpenEdge(1, Path("a/b")))) == OpenEdge(1, Path("a/b"))
    assert math.isnan(decode(encode(Trained(math.nan, 1, b"", Offered([], []), []))).loss)
    with pytest.raises(TypeError, match="cannot be sent"):
        encode(object())
    with pytest.raises(ValidationError):
        BeginRound([b"not a packet"])


def test_counts_beside_a_message_of_the_wire():
    update = Update("run1", "dev-1", 3, 64, 0.25, {"w": np.ones(3, np.float32)})
    work = DeviceWork(4, 2, 3, {"GlobalModel": 7}, {"Update": 8})
    found = decode(encode(worker.Trained(update, 0.25, work)))
    assert same(found.update, update)
    assert found.work == work
