"""The endpoint as a process of its own, asked over HTTP."""

import http.client
import json
import os
import re
import signal
import socket
import threading
import time

import numpy as np
import pytest
from serving import LABELS, WEIGHTS, request, serving, write

from cloud_app.serving.http.server import Options, app, serve
from cloud_app.serving.repository import Repository
from cloud_app.serving.triton_config import MAX_BATCH
from emo import __version__
from emo.errors import ServeError


def test_it_says_what_it_serves_and_where(served):
    assert re.fullmatch(r"serving real version 1, tiny version 2 at http://127\.0\.0\.1:[1-9][0-9]*", served[1])


def test_health_and_metadata(ask):
    extensions = [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "statistics",
    ]
    assert ask("GET", "/v2") == (200, {"name": "emo", "version": __version__, "extensions": extensions})
    assert ask("GET", "/v2/health/live") == (200, {"live": True})
    assert ask("GET", "/v2/health/ready") == (200, {"ready": True})
    expected = {
        "name": "tiny",
        "versions": ["2"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, 2, 2]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        ],
        "parameters": {"round": "7", "labels": LABELS},
    }
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/2"):
        assert ask("GET", path) == (200, expected)
        assert ask("GET", path + "/ready") == (200, {"name": "tiny", "ready": True})


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/v2/models/tiny/versions/2/infer"])
def test_infer(ask, path):
    images = np.arange(24).reshape(2, 3, 2, 2)
    logits = images.reshape(2, 12) @ WEIGHTS.astype(float)
    for data in (images.tolist(), images.ravel().tolist()):
        status, answer = ask("POST", path, request(data, images.shape, id="a7", parameters={"x": 1}))
        assert status == 200
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "2", "a7")
        assert [(each["name"], each["datatype"], each["shape"]) for each in answer["outputs"]] == [
            ("logits", "FP32", [2, 3]),
            ("probabilities", "FP32", [2, 3]),
        ]
        assert answer["outputs"][0]["data"] == pytest.approx(logits.ravel(), rel=1e-5)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert answer["outputs"][1]["data"] == pytest.approx(probabilities.ravel(), rel=1e-5)


def test_it_also_runs_on_the_web_server_s_slower_parts(tmp_path):
    Repository(tmp_path / "models").add("tiny", write(tmp_path / "in.onnx", "uint8"), LABELS, (3, 2, 2))
    absent = "import sys; sys.modules['httptools'] = sys.modules['uvloop'] = None"
    with serving(tmp_path / "models", before=absent) as (_, line):
        connection = http.client.HTTPConnection(line.split("http://")[1], timeout=20)
        for _ in range(3):
            connection.request("POST", "/v2/models/tiny/infer", json.dumps(request()))
            response = connection.getresponse()
            assert (response.status, len(json.loads(response.read())["outputs"])) == (200, 2)
        connection.close()


def test_head_and_a_slash_at_the_end(ask):
    assert ask("GET", "/v2/")[0] == ask("GET", "/v2/models/tiny/")[0] == 200


def test_only_the_outputs_asked_for(ask):
    status, answer = ask("POST", "/v2/models/tiny/infer", request(outputs=[{"name": "probabilities"}]))
    assert status == 200
    assert [each["name"] for each in answer["outputs"]] == ["probabilities"]
    assert "id" not in answer


def test_the_largest_batch(ask):
    shape = (MAX_BATCH, 3, 2, 2)
    status, answer = ask("POST", "/v2/models/real/infer", request([0.5] * MAX_BATCH * 12, shape, "FP32"))
    assert status == 200
    assert len(answer["outputs"][0]["data"]) == MAX_BATCH * 3


def test_a_client_that_leaves_is_no_failure(served, url, ask):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert ask("GET", "/v2/health/live")[0] == 200
    assert served[0].poll() is None


def test_many_clients_get_their_own_answers(url):
    wrong = []

    def client(value):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        for _ in range(10):
            connection.request("POST", "/v2/models/tiny/infer", json.dumps(request([value] * 12)))
            answer = json.loads(connection.getresponse().read())
            if answer["outputs"][0]["data"] != pytest.approx([value * 4 / 100] * 3):
                wrong.append(answer)
        connection.close()

    threads = [threading.Thread(target=client, args=(value,)) for value in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_drains_and_exits_with_0(tmp_path, number):
    repository = Repository(tmp_path / "models")
    repository.add("tiny", write(tmp_path / "in.onnx", "uint8"), LABELS, (3, 2, 2))
    with serving(repository.root) as (process, line):
        connection = http.client.HTTPConnection(line.split("http://")[1], timeout=20)
        connection.putrequest("POST", "/v2/models/tiny/infer")
        body = json.dumps(request()).encode()
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:10])
        time.sleep(0.6)
        os.kill(process.pid, number)
        time.sleep(0.3)
        connection.send(body[10:])  # the request was under way: it is answered
        assert connection.getresponse().status == 200
        connection.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_a_port_that_is_taken(tmp_path):
    Repository(tmp_path / "models").add("tiny", write(tmp_path / "in.onnx", "uint8"), LABELS, (3, 2, 2))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServeError, match="cannot listen at"):
        serve(tmp_path / "models", "127.0.0.1", taken.getsockname()[1], Options(threads=1))


def test_a_repository_that_cannot_be_served(tmp_path):
    with pytest.raises(ServeError, match="holds no model"):
        app(tmp_path / "models")
    repository = Repository(tmp_path / "models")
    repository.add("fixed", write(tmp_path / "in.onnx", "uint8", batch=1), LABELS, (3, 2, 2))
    with pytest.raises(ServeError, match="left open for the batch"):
        app(tmp_path / "models")
    (tmp_path / "in.onnx").write_bytes(b"broken")
    repository.add("fixed", tmp_path / "in.onnx", LABELS, (3, 2, 2))
    with pytest.raises(ServeError, match="onnxruntime cannot load it"):
        app(tmp_path / "models")
