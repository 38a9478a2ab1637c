"""What the endpoint refuses: always 4xx with {"error": ...}, never a failure of its own."""

import gzip
import http.client
import json
import socket
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import LABELS, changed, request, serving, without, write

from cloud_app.serving.infer_request import MAX_BODY
from cloud_app.serving.repository import Repository
from cloud_app.serving.triton_config import MAX_BATCH

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
    "data deep": b'{"inputs":[{"name":"images","shape":[1,3,2,2],"datatype":"UINT8","data":' + b"[" * 60_000,
    "data of strings": changed(data=["1"] * 12),
    "one long string": changed(data=["x" * 60_000, *[0] * 11]),
    "data of booleans": changed(data=[True] * 12),
    "data of null": changed(data=[None] * 12),
    "data of floats": changed(data=[1.0] * 12),
    "a list among numbers": changed(data=[0] * 11 + [[1]]),
    "256": changed(data=[256] * 12),
    "-1": changed(data=[-1] * 12),
    "a huge integer": changed(data=[10**400] * 12),
    "an endless integer": json.dumps(request()).replace("11]", "1" * 60_000 + "]").encode(),
    "NaN": changed(data=[float("nan")] * 12),
    "id a number": request(id=7),
    "id a surrogate": json.dumps(request()).replace('{"inputs"', '{"id": "\\ud800", "inputs"').encode(),
    "outputs unknown": request(outputs=[{"name": "loss"}]),
    "outputs twice": request(outputs=[{"name": "logits"}] * 2),
    "outputs nameless": request(outputs=[{}]),
    "outputs a string": request(outputs="logits"),
    "classification negative": request(outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
    "classification a string": request(outputs=[{"name": "logits", "parameters": {"classification": "2"}}]),
    "output in shared memory": request(outputs=[{"name": "logits", "parameters": {"shared_memory_region": "r"}}]),
    "input in shared memory": changed(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 12}),
    "parameters a list": request(parameters=[]),
    "parameters null": request(parameters=None),
    "timeout negative": request(parameters={"timeout": -1}),
    "timeout for ever": request(parameters={"timeout": 10**18}),
    "binary flag a string": request(parameters={"binary_data_output": "yes"}),
    "binary without bytes": changed(parameters={"binary_data_size": 12}),
    "binary size negative": changed(parameters={"binary_data_size": -12}),
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
        ("GET", "/v1/models/tiny", 404),
        ("GET", "/v2/models/tiny/loss", 404),
        ("GET", "/v2/models/tiny/versions/2/versions/2", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("GET", "/v2/models/tiny/predict", 405),
        ("GET", "/v2/repository/models/tiny/load", 405),
        ("DELETE", "/v2/models/tiny", 405),
        ("POST", "/v2", 405),
        ("POST", "/v2/repository/models/tiny/load", 403),
        ("POST", "/v2/repository/models/tiny/unload", 403),
    ],
)
def test_what_is_not_there(ask, method, path, status):
    found, answer = ask(method, path)
    assert found == status
    assert list(answer) == ["error"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/", "GET, HEAD, OPTIONS"),
        ("/v2", "GET, HEAD, OPTIONS"),
        ("/v2/health/live", "GET, HEAD, OPTIONS"),
        ("/v2/models/tiny", "GET, HEAD, OPTIONS"),
        ("/v2/models/tiny/versions/2/stats", "GET, HEAD, OPTIONS"),
        ("/v2/models/tiny/infer", "POST, OPTIONS"),
        ("/v2/models/tiny/predict", "POST, OPTIONS"),
        ("/v2/repository/index", "POST, OPTIONS"),
        ("/v2/repository/models/tiny/load", "POST, OPTIONS"),
    ],
)
def test_what_is_offered_is_said(url, path, allow):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    for method, status in (("OPTIONS", 204), ("PUT", 405), ("DELETE", 405), ("PATCH", 405)):
        connection.request(method, path)
        response = connection.getresponse()
        assert (response.status, response.headers["Allow"]) == (status, allow)
        assert (response.read() == b"") == (method == "OPTIONS")
        assert response.headers["Access-Control-Allow-Origin"] is None
    connection.request("OPTIONS", "/v2/nothing")
    response = connection.getresponse()
    response.read()
    assert response.status == 404
    connection.close()


def test_the_front_page_is_the_description(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.headers["Location"], response.read()) == (307, "docs", b"")
    connection.request("GET", "/docs")
    assert connection.getresponse().status == 200
    connection.close()


BODY = json.dumps(request()).encode()
HEADER = "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Encoding": "br"}, BODY, 415),
        ({"Content-Encoding": "gzip"}, BODY, 400),
        ({"Content-Encoding": "gzip"}, gzip.compress(BODY)[:-9], 400),
        ({"Content-Encoding": "gzip"}, gzip.compress(BODY) + b"more", 400),
        ({"Content-Encoding": "gzip"}, gzip.compress(b" " * (MAX_BODY + 1)), 413),
        ({"Content-Encoding": "deflate"}, zlib.compress(b" " * (MAX_BODY + 1)), 413),
        ({HEADER: "10"}, BODY, 400),
        ({HEADER: "-1"}, BODY, 400),
        ({HEADER: "1e3"}, BODY, 400),
        ({HEADER: "9" * 30}, BODY, 400),
        ({HEADER: str(len(BODY) + 1)}, BODY, 400),
        ({HEADER: "0"}, BODY, 400),
    ],
)
def test_encodings_that_do_not_fit_the_body(ask, headers, body, status):
    found, answer = ask("POST", "/v2/models/tiny/infer", body, headers)
    assert (found, list(answer)) == (status, ["error"])


@pytest.mark.parametrize("path", ["/v2/repository/index"])
@pytest.mark.parametrize("body", [b"{", b"[]", b"[" * 60_000, b"\xff"])
def test_repository_calls_read_json(ask, path, body):
    assert ask("POST", path, body)[0] == 400


@pytest.mark.parametrize("start", [b"", b"GET /v2 HTTP/1.1\r\nHost:"])
def test_a_head_that_does_not_come_is_not_waited_for(tmp_path, start):
    Repository(tmp_path / "models").add("tiny", write(tmp_path / "in.onnx", "uint8"), LABELS, (3, 2, 2))
    code = "import cloud_app.serving.http.connections as c; c.HEAD_SECONDS = 0.3; "
    with serving(tmp_path / "models", before=code) as (_, line):
        host, port = line.split("http://")[1].split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(start)
            assert client.recv(100) == b""


def test_a_body_that_is_announced_too_large_is_refused_unread(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1))
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_unknown_size_is_cut_off(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range(MAX_BODY >> 20):
            client.sendall(chunk)
        client.sendall(b"1\r\n \r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
