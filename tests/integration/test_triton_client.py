"""A client that we did not write, tritonclient[http], gets from the endpoint what it would get from Triton."""

import gzip
import http.client

import numpy as np
import pytest
import tritonclient.http as triton
from serving import LABELS, WEIGHTS
from tritonclient.utils import InferenceServerException

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
LOGITS = IMAGES.reshape(2, 12) @ WEIGHTS


@pytest.fixture
def client(url):
    with triton.InferenceServerClient(url.removeprefix("http://"), connection_timeout=20, network_timeout=20) as made:
        yield made


def tensor(images=IMAGES, binary=True, name="images", datatype="UINT8"):
    made = triton.InferInput(name, list(images.shape), datatype)
    made.set_data_from_numpy(images, binary_data=binary)
    return made


def outputs(binary, **more):
    return [triton.InferRequestedOutput(name, binary_data=binary, **more) for name in ("probabilities", "logits")]


def refused(status, call, *args, **more):
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    assert caught.value.status() == str(status)
    return caught.value.message()


@pytest.mark.parametrize("version", ["", "2"])
def test_health_metadata_and_configuration(client, version):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", version)
    assert {"binary_tensor_data", "classification"} <= set(client.get_server_metadata()["extensions"])
    assert client.get_model_metadata("tiny", version)["inputs"][0]["shape"] == [-1, 3, 2, 2]
    config = client.get_model_config("tiny", version)
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (64, [3, 2, 2])


@pytest.mark.parametrize("version", ["", "2"])
@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("answered", [True, False, None])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_infer(client, version, sent, answered, coding):
    wanted = None if answered is None else outputs(answered)
    result = client.infer(
        "tiny",
        [tensor(binary=sent)],
        version,
        wanted,
        request_id="a7",
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
        timeout=5_000_000,
    )
    np.testing.assert_allclose(result.as_numpy("logits"), LOGITS, rtol=1e-5)
    np.testing.assert_allclose(result.as_numpy("probabilities").sum(1), 1, rtol=1e-5)
    assert result.get_response()["id"] == "a7"
    assert result.get_response()["model_version"] == "2"
    first = result.get_response()["outputs"][0]["name"]
    assert first == ("logits" if wanted is None else "probabilities")


def test_large_answers_are_compressed_for_who_asks(client, url):
    images = np.arange(64 * 12, dtype=np.uint8).reshape(64, 3, 2, 2)
    result = client.infer("tiny", [tensor(images)], response_compression_algorithm="gzip")
    np.testing.assert_allclose(result.as_numpy("logits"), images.reshape(64, 12) @ WEIGHTS, rtol=1e-5)
    body, length = client.generate_request_body([tensor(images)], outputs=outputs(binary=False))
    for asked, coding in (
        ("gzip", "gzip"),
        ("br, gzip;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("deflate", None),
        ("", None),
    ):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        headers = {"Accept-Encoding": asked, "Inference-Header-Content-Length": str(length)}
        connection.request("POST", "/v2/models/tiny/infer", body, headers)
        response = connection.getresponse()
        data = response.read()
        assert response.headers["Content-Encoding"] == coding
        assert b"logits" in (gzip.decompress(data) if coding else data)
        connection.close()


def test_floats(client):
    images = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    for binary in (True, False):
        result = client.infer("real", [tensor(images, binary, datatype="FP32")])
        np.testing.assert_allclose(result.as_numpy("logits"), images.reshape(1, 12) @ WEIGHTS * 1000, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (9, 3)])
def test_classification(client, binary, count, shown):
    result = client.infer("tiny", [tensor()], outputs=outputs(binary, class_count=count))
    for name in ("logits", "probabilities"):
        best = result.as_numpy(name)
        assert best.shape == (2, shown)
        text = best[0, 0].decode() if binary else best[0, 0]
        value, index, label = text.split(":")
        assert (int(index), label) == (2, LABELS[2])
        if name == "logits":
            assert float(value) == pytest.approx(LOGITS[0, 2], abs=1e-5)


def test_many_at_once(url):
    with triton.InferenceServerClient(url.removeprefix("http://"), concurrency=8) as client:
        images = [np.full((1, 3, 2, 2), value, np.uint8) for value in range(40)]
        waiting = [client.async_infer("tiny", [tensor(each)]) for each in images]
        for value, each in enumerate(waiting):
            np.testing.assert_allclose(each.get_result().as_numpy("logits"), [[value * 4 / 100] * 3], rtol=1e-4)


def test_wrong_shape_dtype_name_and_model(client):
    assert "shape [1, 3, 2, 3]" in refused(400, client.infer, "tiny", [tensor(np.zeros((1, 3, 2, 3), np.uint8))])
    floats = tensor(np.zeros((1, 3, 2, 2), np.float32), datatype="FP32")
    assert "takes UINT8" in refused(400, client.infer, "tiny", [floats])
    assert "'images'" in refused(400, client.infer, "tiny", [tensor(name="pictures")])
    assert "takes one" in refused(400, client.infer, "tiny", [tensor(), tensor()])
    assert "at most once" in refused(
        400, client.infer, "tiny", [tensor()], outputs=[triton.InferRequestedOutput("loss")]
    )
    assert "no model 'nothing'" in refused(404, client.infer, "nothing", [tensor()])
    assert "version '7' is not loaded" in refused(404, client.infer, "tiny", [tensor()], "7")
    assert not client.is_model_ready("nothing")
    shared = triton.InferInput("images", [2, 3, 2, 2], "UINT8")
    shared.set_shared_memory("region", 24)
    assert "shared memory" in refused(400, client.infer, "tiny", [shared])


def test_statistics(client):
    before = client.get_inference_statistics("tiny")["model_stats"][0]
    client.infer("tiny", [tensor()])
    refused(400, client.infer, "tiny", [tensor(np.zeros((1, 1, 1, 1), np.uint8))])
    after = client.get_inference_statistics("tiny", "2")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 1
    for key in ("success", "fail"):
        assert after["inference_stats"][key]["count"] == before["inference_stats"][key]["count"] + 1
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["last_inference"] >= before["last_inference"]
    assert {each["name"] for each in client.get_inference_statistics()["model_stats"]} == {"tiny", "real"}


def test_the_repository_is_shown_and_read_only(client):
    index = {(each["name"], each["version"]): each["state"] for each in client.get_model_repository_index()}
    assert index == {("real", "1"): "READY", ("tiny", "1"): "UNAVAILABLE", ("tiny", "2"): "READY"}
    for call in (client.load_model, client.unload_model):
        assert "read-only" in refused(403, call, "tiny")
    assert client.is_model_ready("tiny")
