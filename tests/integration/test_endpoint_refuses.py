"""What the endpoint refuses: always 4xx with {"error": ...}, never a failure of its own."""

import http.client
import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import changed, request, without

from cloud_app.endpoint import MAX_BODY
from cloud_app.repository import MAX_BATCH

MALFORMED = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "no inputs": {},
    "inputs null": {"inputs": None},
    "inputs empty": {"inputs": []},
    "input a number": {"inputs": [1]},
    "two inputs": {"inputs": request()["inputs"] * 2},
    "no name": without("name"),
    "no shape": without("shape"),
    "no datatype": without("datatype"),
    "no data": without("data"),
    "other name": changed(name="pictures"),
    "name a number": changed(name=3),
    "other datatype": changed(datatype="FP32"),
    "unknown datatype": changed(datatype="FP8" * 1000),
    "shape empty": changed(shape=[]),
    "shape a string": changed(shape="1,3,2,2"),
    "shape of floats": changed(shape=[1.5, 3, 2, 2]),
    "shape of booleans": changed(shape=[True, 3, 2, 2]),
    "shape without batch": changed(shape=[3, 2, 2]),
    "another sample": changed(shape=[1, 3, 4, 1]),
    "batch of zero": changed(shape=[0, 3, 2, 2], data=[]),
    "batch negative": changed(shape=[-1, 3, 2, 2]),
    "batch too large": changed(shape=[MAX_BATCH + 1, 3, 2, 2], data=[0] * (MAX_BATCH + 1) * 12),
    "batch astronomic": changed(shape=[10**30, 3, 2, 2]),
    "data too short": changed(data=[0] * 11),
    "data too long": changed(data=[0] * 13),
    "data empty": changed(data=[]),
    "data a string": changed(data="AAAA"),
    "data an object": changed(data={"b64": "AA=="}),
    "data ragged": changed(data=[[[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10]]]]),
    "data nested otherwise": changed(data=[list(range(12))]),
    "data nested deeper": changed(data=[[[[[0], [1]], [[2], [3]]]] * 3]),
    "data deep": b'{"inputs":[{"name":"images","shape":[1,3,2,2],"datatype":"UINT8","data":' + b"[" * 100_000,
    "data of strings": changed(data=["1"] * 12),
    "one long string": changed(data=["x" * 100_000, *[0] * 11]),
    "data of booleans": changed(data=[True] * 12),
    "data of null": changed(data=[None] * 12),
    "data of floats": changed(data=[1.0] * 12),
    "a list among numbers": changed(data=[0] * 11 + [[1]]),
    "256": changed(data=[256] * 12),
    "-1": changed(data=[-1] * 12),
    "a huge integer": changed(data=[10**400] * 12),
    "an endless integer": json.dumps(request()).replace("11]", "1" * 100_000 + "]").encode(),
    "NaN": changed(data=[float("nan")] * 12),
    "id a number": request(id=7),
    "id a surrogate": json.dumps(request()).replace('{"inputs"', '{"id": "\\ud800", "inputs"').encode(),
    "outputs unknown": request(outputs=[{"name": "loss"}]),
    "outputs twice": request(outputs=[{"name": "logits"}] * 2),
    "outputs nameless": request(outputs=[{}]),
    "outputs a string": request(outputs="logits"),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_the_clients_fault(ask, body):
    status, answer = ask("POST", "/v2/models/tiny/infer", body)
    assert status == 400
    assert list(answer) == ["error"]
    assert 10 < len(answer["error"]) < 500


@pytest.mark.parametrize(
    "data",
    [
        [float("nan")] * 12,
        [float("inf")] * 12,
        [1e39] * 12,
        [10**400] * 12,
        [3e38] * 12,
        ["1"] * 12,
        [True] * 12,
    ],
)
def test_floats_that_have_no_finite_answer(ask, data):
    status, answer = ask("POST", "/v2/models/real/infer", request(data, datatype="FP32"))
    assert status == 400
    assert "finite" in answer["error"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=200)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | st.tuples(st.sampled_from(["name", "shape", "datatype", "data"]), _JSON).map(
        lambda change: json.dumps(changed(**dict([change]))).encode()
    )
)
def test_no_generated_body_is_a_failure_of_the_endpoint(url, body):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("POST", "/v2/models/tiny/infer", body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert (response.status, list(answer)) == (400, ["error"]) or "outputs" in answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nothing", 404),
        ("GET", "/v2/models/nothing/ready", 404),
        ("POST", "/v2/models/nothing/infer", 404),
        ("GET", "/v2/models/tiny/versions/1", 404),  # not the newest: not loaded
        ("GET", "/v2/models/tiny/versions/two", 404),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v2/models/%ff%00", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/tiny", 404),
        ("GET", "/docs", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2", 405),
    ],
)
def test_what_is_not_there(ask, method, path, status):
    found, answer = ask(method, path)
    assert found == status
    assert list(answer) == ["error"]


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {"Inference-Header-Content-Length": "10"}])
def test_encodings_that_are_not_spoken(ask, headers):
    status, answer = ask("POST", "/v2/models/tiny/infer", request(), headers)
    assert status == 415
    assert "send" in answer["error"]


def test_a_body_that_is_announced_too_large_is_refused_unread(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_unknown_size_is_cut_off(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range(MAX_BODY >> 20):
            client.sendall(chunk)
        client.sendall(b"1\r\n \r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
