"""An inference request's bytes: every right form gives the same array, every wrong one is the client's fault."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_app.serving.infer_request import MAX_BODY, InferRequest, Refused, RequestedOutput, Signature, parse
from cloud_app.serving.infer_response import MAX_VALUES, answer, must_be_short

TINY = Signature("tiny", 2, "images", (3, 2), "UINT8", {"logits": (3,), "map": (2, 2)}, ("red", "green", "blue"), 4)
REAL = Signature("real", 1, "images", (3, 2), "FP32", {"logits": (3,)}, (), 4)
IMAGES = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)


def head(images=IMAGES, datatype="UINT8", **more):
    tensor = {"name": "images", "shape": list(images.shape), "datatype": datatype}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    return {"inputs": [tensor], **more}


def packed(header, data):
    text = json.dumps(header).encode()
    return text + data, len(text)


def test_binary_nested_flat_and_raw_are_the_same():
    tensor = {"name": "images", "shape": [2, 3, 2], "datatype": "UINT8"}
    forms = [
        packed(head(), IMAGES.tobytes()),
        (IMAGES.tobytes(), 0),
        (json.dumps({"inputs": [tensor | {"data": IMAGES.tolist()}]}).encode(), None),
        (json.dumps({"inputs": [tensor | {"data": IMAGES.ravel().tolist()}]}).encode(), None),
    ]
    for body, length in forms:
        call = parse(body, TINY, length)
        assert call.images.dtype == np.uint8
        np.testing.assert_array_equal(call.images, IMAGES)


def test_floats_come_in_32_bits_from_both_forms():
    images = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 3, 2)
    body, length = packed(head(images, "FP32"), images.tobytes())
    np.testing.assert_array_equal(parse(body, REAL, length).images, images)


def test_what_is_wanted_of_the_answer():
    def wanted(**more):
        return parse(*packed(head(**more), IMAGES.tobytes())[:1], TINY, packed(head(**more), b"")[1])

    assert wanted().outputs == (RequestedOutput("logits", binary=False), RequestedOutput("map", binary=False))
    everything = wanted(parameters={"binary_data_output": True, "timeout": 1500, "priority": 3})
    assert everything.outputs == (RequestedOutput("logits", binary=True), RequestedOutput("map", binary=True))
    assert everything.timeout_s == pytest.approx(0.0015)
    assert wanted(parameters={"timeout": 0}).timeout_s is None
    one = wanted(
        parameters={"binary_data_output": True},
        outputs=[{"name": "logits", "parameters": {"binary_data": False, "classification": 2}}],
    )
    assert one.outputs == (RequestedOutput("logits", binary=False, classes=2),)
    raw = parse(IMAGES.tobytes(), TINY, 0)
    assert all(each.binary for each in raw.outputs)


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (head(), IMAGES.tobytes()[:-1], "binary_data_size is 12, 11 bytes follow"),
        (head(), IMAGES.tobytes() + b"x", "binary_data_size is 12, 13 bytes follow"),
        (head(np.zeros((5, 3, 2), np.uint8)), bytes(30), "shape"),
        (head(np.zeros((0, 3, 2), np.uint8)), b"", "shape"),
        (head(np.zeros((2, 2, 3), np.uint8)), bytes(12), "shape"),
        (
            head(outputs=[{"name": "map", "parameters": {"classification": 1}}]),
            IMAGES.tobytes(),
            "has no classes",
        ),
    ],
)
def test_binary_that_does_not_fit(header, data, why):
    body, length = packed(header, data)
    with pytest.raises(Refused, match=why) as caught:
        parse(body, TINY, length)
    assert caught.value.status == 400


def test_data_and_binary_both_or_bytes_of_nobody():
    both = head()
    both["inputs"][0]["data"] = IMAGES.ravel().tolist()
    neither = head()
    del neither["inputs"][0]["parameters"]
    json_and_more = {"inputs": [{**neither["inputs"][0], "data": IMAGES.ravel().tolist()}]}
    for header, why in ((both, "one of them"), (neither, "neither"), (json_and_more, "12 bytes follow")):
        body, length = packed(header, IMAGES.tobytes())
        with pytest.raises(Refused, match=why):
            parse(body, TINY, length)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000])
def test_binary_floats_have_to_be_finite(bits):
    images = np.zeros(6, "<f4")
    images.view("<u4")[3] = bits
    body, length = packed(head(images.reshape(1, 3, 2), "FP32"), images.tobytes())
    with pytest.raises(Refused, match="finite"):
        parse(body, REAL, length)


def test_raw_bytes_have_to_be_whole_samples():
    for data in (b"", bytes(7), bytes(30)):
        with pytest.raises(Refused):
            parse(data, TINY, 0)


# -- ten thousand wrong ones

_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    3.5,
    2**63,
    10**30,
    "",
    "x" * 50,
    "\ud800",
    [],
    [[]],
    {},
    {"a": []},
    float("nan"),
    [0] * 6,
    [[1, 2]],
)


def _damage(value, rng):
    """`value` with one thing in it taken away, put in another's place or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.2:
            return {name: each for name, each in value.items() if name != key}
        if kind < 0.3:
            return {**value, rng.choice(["data", "parameters", "binary_data_size", "x"]): rng.choice(_VALUES)}
        return {**value, key: _damage(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.2:
            return value[:at] + value[at + 1 :]
        if kind < 0.4:
            return value[: at + 1] + value[at:]
        return [*value[:at], _damage(value[at], rng), *value[at + 1 :]]
    return rng.choice(_VALUES)


def _wrong(rng):
    """A body and its header's length, damaged in one of the ways that bytes can be."""
    header = head(outputs=[{"name": "logits", "parameters": {"classification": 2}}], id="a", parameters={"timeout": 9})
    if rng.random() < 0.4:
        header["inputs"][0].pop("parameters")
        header["inputs"][0]["data"] = IMAGES.tolist() if rng.random() < 0.5 else IMAGES.ravel().tolist()
        body, length = json.dumps(header).encode(), None
    else:
        body, length = packed(header, IMAGES.tobytes())
    kind = rng.randrange(6)
    if kind < 3:
        damaged = json.dumps(_damage(header, rng)).encode()
        return (damaged, None) if length is None else (damaged + IMAGES.tobytes(), len(damaged))
    if kind == 3:
        return body[: rng.randrange(len(body))], length
    if kind == 4:
        changed = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed), length
    return body, rng.choice([0, 1, len(body) - 1, len(body), len(body) + 1, rng.randrange(len(body)), -1])


def test_ten_thousand_malformed_bodies_are_the_clients_fault():
    rng = random.Random(6)
    results = {"logits": np.eye(2, 3, dtype=np.float32), "map": np.zeros((2, 2, 2), np.float32)}
    refused = []
    for _ in range(10_000):
        body, length = _wrong(rng)
        try:
            call = parse(body, TINY, length)
        except Refused as error:
            refused.append(error)
        else:  # the damage was to what nobody reads
            assert call.images.shape[1:] == TINY.sample
            batch = {name: np.repeat(each, 2, 0)[: len(call.images)] for name, each in results.items()}
            data, length = answer(call, batch, TINY)
            assert json.loads(data[:length])["outputs"]
    assert len(refused) > 7_500
    assert {error.status for error in refused} == {400}
    assert all(10 < len(str(error).encode()) < 600 for error in refused)  # a sentence, and one that can be sent


@given(st.binary(max_size=60), st.none() | st.integers(-2, 70))
def test_no_bytes_at_all_raise_anything_else(body, length):
    with pytest.raises(Refused):
        parse(body, REAL if body[:1] == b"{" else TINY, 1 if length == 0 else length)


@pytest.mark.parametrize("sample", [(3, 2, 2), (1, 28, 28), (3, 9, 9), (512, 1, 1), (1,), (300,)])
@pytest.mark.parametrize(("datatype", "worst"), [("UINT8", 255), ("FP32", -2.2250738585072014e-308)])
def test_the_largest_right_request_is_read_and_none_much_larger(sample, datatype, worst):
    takes = Signature("any", 1, "images", sample, datatype, {"logits": (3,)}, (), 64)
    values = worst
    for size in reversed((64, *sample)):
        values = [values] * size
    tensor = {"name": "images", "shape": [64, *sample], "datatype": datatype, "data": values}
    size = len(json.dumps({"inputs": [tensor]}))
    assert size <= takes.largest <= 1.7 * size + (64 << 10)


def test_no_model_has_a_body_above_the_bound_of_all():
    assert Signature("any", 1, "images", (3, 999, 999), "FP32", {}, (), 64).largest == MAX_BODY


def test_an_id_that_would_be_sent_back_is_short():
    body = {"inputs": [{"name": "images", "shape": [1], "datatype": "UINT8"}], "id": "x" * 1025}
    with pytest.raises(Refused, match="id: "):
        parse(json.dumps(body).encode(), TINY)


# -- the answer


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 9000])
def test_values_are_written_as_pythons_encoder_writes_them(size):
    values = np.random.default_rng(0).standard_normal((2, size)).astype(np.float32)
    wide = Signature("wide", 3, "images", (1,), "UINT8", {"logits": (size,)}, (), 4)
    call = InferRequest('"', np.zeros((2, 1), np.uint8), (RequestedOutput("logits", binary=False),))
    data, length = answer(call, {"logits": values}, wide)
    output = {"name": "logits", "datatype": "FP32", "shape": [2, size], "data": values.ravel().tolist()}
    whole = {"model_name": "wide", "model_version": "3", "id": '"', "outputs": [output]}
    assert (data, length) == (json.dumps(whole).encode(), None)


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ([RequestedOutput("a", binary=False)], False),
        ([RequestedOutput("a", binary=True)], True),
        ([RequestedOutput("a", binary=True), RequestedOutput("b", binary=False)], True),
        ([RequestedOutput("a", binary=True, classes=10**9)], False),
        (
            [
                RequestedOutput("a", binary=False, classes=5),
                RequestedOutput("b", binary=False, classes=10**9),
            ],
            True,
        ),
    ],
)
def test_an_answer_in_json_is_short_or_refused_before_it_is_computed(asked, fits):
    gives = Signature("any", 1, "images", (1,), "UINT8", {"a": (MAX_VALUES // 2 + 1,), "b": (9,)}, (), 64)
    call = InferRequest(None, np.zeros((2, 1), np.uint8), tuple(asked))
    if fits:
        must_be_short(call, gives)
    else:
        with pytest.raises(Refused, match="binary_data"):
            must_be_short(call, gives)


def test_classes_are_sorted_and_named():
    images = np.zeros((2, 3, 2), np.uint8)
    header = head(images, outputs=[{"name": "logits", "parameters": {"classification": 2}}])
    call = parse(*packed(header, images.tobytes())[:1], TINY, packed(header, b"")[1])
    results = {"logits": np.array([[0.5, 0.25, 0.5], [-1, 2, 0]], np.float32)}
    data, length = answer(call, results, TINY)
    assert length is None
    (output,) = json.loads(data)["outputs"]
    assert output == {
        "name": "logits",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.500000:0:red", "0.500000:2:blue", "2.000000:1:green", "0.000000:2:blue"],
    }
