"""`emo predict`: an image file to a label, by a real endpoint."""

import http.client
import socket

import numpy as np
import pytest
from PIL import Image

from cloud_app.serving.client import MAX_IMAGE, predict
from emo.errors import ServeError


def _png(path, size=(2, 2), mode="RGB", colour=(0, 200, 0), kind=None):
    Image.new(mode, size, colour).save(path, kind)
    return path


def test_predict_sorts_by_probability(url, tmp_path, caplog):
    answer = predict(url, "tiny", _png(tmp_path / "a.png")).labels
    assert [label for label, _ in answer] == ["green", "red", "blue"]
    assert answer[0][1] == pytest.approx(np.exp(8) / (np.exp(8) + 2), rel=1e-4)
    assert not caplog.records


def test_predict_sends_channels_before_rows(url, tmp_path):
    image = Image.fromarray(np.array([[[0, 0, 9], [0, 0, 9]], [[0, 0, 9], [0, 0, 9]]], np.uint8))
    image.save(tmp_path / "blue.png")
    assert predict(url, "tiny", tmp_path / "blue.png").labels[0][0] == "blue"


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", 7), ("RGBA", (0, 9, 0, 255)), ("P", 3), ("1", 1), ("CMYK", (9, 9, 9, 9))]
)
def test_predict_converts_and_resizes_with_a_note(url, tmp_path, caplog, mode, colour):
    path = _png(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), (31, 17), mode, colour)
    assert sum(probability for _, probability in predict(url, "tiny", path).labels) == pytest.approx(1, rel=1e-5)
    assert "resized from 31x17 to the model's 2x2" in caplog.text


def test_predict_names_what_is_wrong_with_the_image(url, tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(_png(tmp_path / "a.png", (300, 300)).read_bytes()[:-200])
    _png(tmp_path / "bomb.png", (9000, 9000), "1", 0)
    _png(tmp_path / "deep.png", (2, 2), "F", 7, "TIFF")
    (tmp_path / "long.png").write_bytes(bytes(MAX_IMAGE + 1))
    for name, why in (
        ("none", "no such file"),
        ("text", "image that can be read"),
        ("cut", "image that can be read"),
        ("bomb", "pixels"),
        ("deep", "8 or 16 bits a channel"),
        ("long", "no larger image"),
    ):
        with pytest.raises(ServeError, match=rf"{name}\.png.*{why}"):
            predict(url, "tiny", tmp_path / f"{name}.png")


def test_what_curl_gets(ask, tmp_path):
    status, answer = ask("POST", "/v2/models/tiny/predict", _png(tmp_path / "a.png", (4, 3)).read_bytes())
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["label"]) == ("tiny", "2", "green")
    assert [each["label"] for each in answer["probabilities"]] == ["green", "red", "blue"]
    assert sum(each["probability"] for each in answer["probabilities"]) == pytest.approx(1, rel=1e-5)
    assert (answer["image"], answer["input"]) == ([4, 3], [2, 2])


@pytest.mark.parametrize(
    ("model", "headers", "status", "why"),
    [
        ("tiny", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "curl --data-binary @FILE"),
        ("tiny", {}, 400, "image that can be read"),
        ("real", {}, 400, "takes FP32"),
        ("nothing", {}, 404, "no model"),
    ],
)
def test_what_curl_gets_when_it_asks_wrongly(ask, model, headers, status, why):
    found, answer = ask("POST", f"/v2/models/{model}/predict", b"--x", headers)
    assert (found, list(answer)) == (status, ["error"])
    assert why in answer["error"]


def test_the_description_names_each_path_and_is_one_page(ask, url):
    described = ask("GET", "/openapi.json")[1]
    assert described["openapi"].startswith("3.")
    for path, methods in described["paths"].items():
        for method in methods:
            status, answer = ask(method.upper(), path.replace("{name}", "tiny"), b"")
            assert (status, path) in {(200, path), (400, path), (403, path)}
            assert "no such resource" not in str(answer)
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/docs")
    page = connection.getresponse().read().decode()
    connection.close()
    assert all(path in page for path in described["paths"])
    assert "<script" not in page
    assert 'src="' not in page


def test_predict_names_what_is_wrong_with_the_endpoint(url, tmp_path):
    path = _png(tmp_path / "a.png")
    with pytest.raises(ServeError, match=r"no model 'nothing' here; there are: real, tiny"):
        predict(url, "nothing", path)
    with pytest.raises(ServeError, match="takes FP32"):
        predict(url, "real", path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    with pytest.raises(ServeError, match=r"no endpoint answers at .*emo serve"):
        predict(f"http://127.0.0.1:{free}", "tiny", path)
    for bad in ("127.0.0.1:8000", "file:///etc/passwd", "http://x:port", ""):
        with pytest.raises(ServeError, match="is not an endpoint's address"):
            predict(bad, "tiny", path)
