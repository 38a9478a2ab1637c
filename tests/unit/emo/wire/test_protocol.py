"""The protocol as promised to other languages: stored bytes give the stored values, and docs/protocol.md is complete.

The vectors are written by tests/vectors/make.py.
"""

import dataclasses
import re
import zlib
from pathlib import Path
from typing import get_args

import pytest
from samples import same
from vectors import make

from emo.config import CODECS, DELTA, Form, Training
from emo.wire import codec, frame, topics
from emo.wire.compression import restore, shrink

KINDS = {kind.__name__: kind for kind in frame.KINDS}
FRAMES, ARRAYS, FORMS = make.read("frames"), make.read("arrays"), make.read("forms")
TEXT = (Path(__file__).parents[4] / "docs" / "protocol.md").read_text(encoding="utf-8")


def equal(one, two):
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def test_everything_on_the_wire_has_a_vector():
    assert list(dict.fromkeys(row["kind"] for row in FRAMES)) == list(KINDS)
    assert [row["codec"] for row in ARRAYS] == list(CODECS)
    assert [row["form"] for row in FORMS] == list(get_args(Form))
    assert max(len(row["packets"]) for row in FRAMES) > 2


@pytest.mark.parametrize("row", FRAMES, ids=lambda row: row["kind"])
def test_stored_frames_hold_the_stored_message_and_it_makes_them(row):
    wanted = make.message(KINDS[row["kind"]], row["fields"])
    chunks = [frame.parse(bytes.fromhex(packet["frame"])) for packet in row["packets"]]
    payload = b"".join(chunk.data for chunk in chunks)
    assert [chunk.index for chunk in chunks] == list(range(chunks[0].count))
    assert {(chunk.size, chunk.crc) for chunk in chunks} == {(len(payload), zlib.crc32(payload))}
    assert same(frame.unpack(chunks[0].kind, payload), wanted)
    made = frame.split(wanted, bytes.fromhex(row["message_id"]), row["chunk"])
    assert row["packets"] == [
        {"topic": topics.topic(make.ROOT, wanted, index), "frame": data.hex()} for index, data in enumerate(made)
    ]


@pytest.mark.parametrize("row", ARRAYS, ids=lambda row: row["codec"])
def test_stored_arrays_decode_to_the_stored_values(row):
    data = bytes.fromhex(row["encoded"])
    values, wanted = make.array(row["values"]), make.array(row["decoded"])
    base = None if row["base"] is None else make.array(row["base"])
    assert equal(codec.decode(data, wanted.nbytes, base), wanted)
    assert make.raw(data).hex() == row["raw"]
    again = codec.encode(values, row["codec"], base)  # another release of zstd may make other bytes of it
    assert again[: make.head(data)] == data[: make.head(data)]
    assert make.raw(again).hex() == row["raw"]


def test_stored_deltas_are_deltas_and_one_leaves_the_range():
    deltas = [row for row in ARRAYS if row["codec"].endswith(DELTA)]
    for row in deltas:
        base = make.array(row["base"])
        crc = bytes.fromhex(row["encoded"])[make.head(bytes.fromhex(row["encoded"])) - 8 :][:4]
        assert int.from_bytes(crc, "little") == zlib.crc32(base.tobytes())
        assert base.max() > make.array(row["values"])[:, 0].max()
    assert deltas


@pytest.mark.parametrize("row", FORMS, ids=lambda row: row["form"])
def test_stored_forms_restore_to_the_stored_weights(row):
    base, sent, wanted = (make.weights(row[name]) for name in ("base", "sent", "restored"))
    original = make.weights(FORMS[0]["restored"])  # fp32: as they are
    for found in (
        restore(sent, row["form"], base),
        restore(shrink(original, row["form"], base), row["form"], base),
    ):
        assert found.keys() == wanted.keys()
        assert all(equal(found[name], wanted[name]) for name in wanted)


# -- docs/protocol.md


def fields(kind):
    return re.findall(rf"^\| {frame.KINDS.index(kind)} `{kind.__name__}` \| `(\w+)` \|", TEXT, re.MULTILINE)


@pytest.mark.parametrize("kind", frame.KINDS, ids=lambda kind: kind.__name__)
def test_the_document_has_each_message_with_its_fields_in_order(kind):
    assert fields(kind) == [item.name for item in dataclasses.fields(kind)]


def test_the_document_has_each_topic_with_its_limit():
    for kind, route in topics.ROUTES.items():
        limit = route.limit >> 10
        size = f"{limit >> 10} MiB" if limit >= 1 << 10 else f"{limit} KiB"
        path = route.topic + ("/{index}" if route.retain else "")
        retained = "yes" if route.retain else "no"
        assert f"| `{kind.__name__}` | `ROOT/{path}` | {retained} | {size} |" in TEXT


def test_the_document_has_the_numbers_of_the_code():
    assert f"**Schema {frame._SCHEMA}, layout {codec._LAYOUT}.**" in TEXT
    for name, number in codec._NUMBERS.items():
        assert re.search(rf"^\| {number} \| `{name}` \|", TEXT, re.MULTILINE)
    for name in get_args(Form):
        assert re.search(rf"^\| `{name}` \|", TEXT, re.MULTILINE)
    for name in Training.model_fields:
        assert re.search(rf"^\| 1 `GlobalModel` \| `training` .*`{name}`", TEXT, re.MULTILINE)


def test_the_worked_example_is_a_stored_frame():
    example = TEXT.split("## 12.")[1]
    shown = "".join(re.findall(r"^    ((?:[0-9a-f]{2} )*[0-9a-f]{2})  ", example, re.MULTILINE)).replace(" ", "")
    assert shown == next(row for row in FRAMES if row["kind"] == "ActivationBatch")["packets"][0]["frame"]
