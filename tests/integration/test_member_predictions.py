"""What each member of an ensemble answers for itself, from a real endpoint: of a model as the demo makes it, and of one that
was exported without."""

import io
import json
import re
import time

import numpy as np
import pytest
import torch
from ensembles import RECORD, SPEC, trained
from PIL import Image, ImageDraw
from serving import ask as asked
from serving import serving
from watching import Asker, watching

from cloud_app.ensemble import model as ensemble
from cloud_app.ensemble.member_choice import Choice
from cloud_app.ensemble.onnx_export import export
from cloud_app.ensemble.publish import publish
from cloud_app.serving import known_answer
from cloud_app.serving.repository import Repository
from emo.cli import main
from emo.data import registry

SIDE, BROAD = 280, 42
# As a person draws them in a square of 1.
STROKES = {
    "0": [
        [(0.5, 0.1), (0.3, 0.2), (0.22, 0.5), (0.3, 0.8), (0.5, 0.9), (0.7, 0.8), (0.78, 0.5), (0.7, 0.2), (0.5, 0.1)]
    ],
    "1": [[(0.5, 0.1), (0.5, 0.9)]],
    "2": [[(0.25, 0.25), (0.4, 0.1), (0.65, 0.12), (0.72, 0.3), (0.6, 0.5), (0.25, 0.9), (0.78, 0.9)]],
    "3": [[(0.28, 0.15), (0.6, 0.1), (0.7, 0.27), (0.5, 0.46), (0.72, 0.65), (0.6, 0.88), (0.27, 0.85)]],
    "4": [[(0.5, 0.1), (0.22, 0.6), (0.8, 0.6)], [(0.6, 0.35), (0.6, 0.9)]],
    "5": [[(0.72, 0.1), (0.32, 0.1), (0.3, 0.45), (0.6, 0.42), (0.74, 0.62), (0.6, 0.88), (0.28, 0.86)]],
    "6": [[(0.62, 0.1), (0.38, 0.3), (0.28, 0.6), (0.35, 0.85), (0.6, 0.88), (0.72, 0.7), (0.6, 0.52), (0.35, 0.58)]],
    "7": [[(0.22, 0.12), (0.75, 0.12), (0.42, 0.9)], [(0.35, 0.5), (0.7, 0.5)]],
    "8": [
        [
            (0.5, 0.48),
            (0.32, 0.3),
            (0.5, 0.1),
            (0.68, 0.28),
            (0.5, 0.48),
            (0.28, 0.7),
            (0.5, 0.9),
            (0.72, 0.7),
            (0.5, 0.48),
        ]
    ],
    "9": [[(0.68, 0.3), (0.5, 0.1), (0.32, 0.28), (0.45, 0.48), (0.68, 0.35), (0.66, 0.6), (0.5, 0.9)]],
}


def drawn(digit):
    """As the page sends it (tryit.js): as large as the picture, in its middle, by a broad pen, bright on dark."""
    points = np.array([point for stroke in STROKES[digit] for point in stroke])
    low, high = points.min(0), points.max(0)
    image, scale = Image.new("L", (SIDE, SIDE)), (SIDE - BROAD) / (high - low).max()
    pen = ImageDraw.Draw(image)
    for stroke in STROKES[digit]:
        line = [tuple(SIDE / 2 + (np.array(point) - (low + high) / 2) * scale) for point in stroke]
        pen.line(line, 255, BROAD)
        for x, y in line:
            pen.circle((x, y), BROAD / 2, 255)
    file = io.BytesIO()
    image.convert("RGBA").save(file, "PNG")  # as a canvas gives it
    return file.getvalue()


@pytest.fixture(scope="module")
def taught():
    parts = trained()
    return {name: part for name, part in parts.items() if name != "overlay-bad"}


@pytest.fixture(scope="module")
def served(taught, tmp_path_factory):
    """`told` has its members' answers, `old` has not."""
    folder = tmp_path_factory.mktemp("members")
    repository = Repository(folder / "models")
    publish(RECORD, taught, Choice(at_least="none"), repository.root, "told")
    test = registry.testing(RECORD.data, SPEC)
    path = folder / "old.onnx"
    export(ensemble.build(SPEC, taught, test.mean, test.std), path, SPEC.input, test.classes, {})
    repository.add("old", path, test.classes, SPEC.input, selftest=known_answer.make(path))
    with serving(repository.root) as (process, line):
        yield process, re.search(r"http://(\S+)$", line)[1]


@pytest.fixture(scope="module")
def endpoint(served):
    return served[1]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "drawn.png"
    path.write_bytes(drawn("8"))
    return path


def _predict(endpoint, model, data, query=""):
    return asked(endpoint, "POST", f"/v2/models/{model}/predict{query}", data)


def test_a_drawn_digit_gets_its_label_by_each(endpoint):
    right = {"ensemble": 0, "FL model": 0, "pair good": 0}
    for digit in STROKES:
        status, answer = _predict(endpoint, "told", drawn(digit), "?members=1")
        assert status == 200
        right["ensemble"] += answer["label"] == digit
        for member in answer["members"]:
            right[member["name"]] += member["probabilities"][0]["label"] == digit
    assert min(right.values()) >= 9, right


def test_members_answer_as_torch_says(endpoint, taught):
    test = registry.testing(RECORD.data, SPEC)
    image = test.images[3]
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "PNG")
    status, answer = _predict(endpoint, "told", file.getvalue(), "?members=1")
    assert status == 200
    assert [each["name"] for each in answer["members"]] == ["FL model", "pair good"]
    for member, part in zip(answer["members"], ("head", "overlay-good"), strict=True):
        module = ensemble.build(SPEC, taught, test.mean, test.std, shares={part: 1})
        expected = module(torch.from_numpy(image[None]))[1][0]
        found = {each["label"]: each["probability"] for each in member["probabilities"]}
        np.testing.assert_allclose([found[label] for label in test.classes], expected, atol=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    plain = _predict(endpoint, "told", file.getvalue())[1]
    assert answer.pop("members")[1]["probabilities"][0]["label"] == answer["label"]
    assert _predict(endpoint, "told", file.getvalue(), "?members=0&other=7")[1] == plain == answer


def test_who_asks_for_none_gets_what_he_always_got(endpoint):
    body = {"inputs": [{"name": "images", "shape": [2, 1, 8, 8], "datatype": "UINT8", "data": [7] * 128}]}
    about = {}
    for model in ("old", "told"):
        outputs = asked(endpoint, "POST", f"/v2/models/{model}/infer", json.dumps(body))[1]["outputs"]
        assert [(each["name"], each["shape"]) for each in outputs] == [
            ("logits", [2, 10]),
            ("probabilities", [2, 10]),
        ]
        about[model] = asked(endpoint, "GET", f"/v2/models/{model}")[1]
        status, answer = asked(
            endpoint,
            "POST",
            f"/v2/models/{model}/infer",
            json.dumps({**body, "outputs": [{"name": "member_probabilities"}]}),
        )
        assert (status, "ask for each of logits, probabilities" in answer["error"]) == (400, True)
    assert about["old"]["outputs"] == about["told"]["outputs"]
    assert json.loads(about["told"]["parameters"]["answers"]) == ["FL model", "pair good"]
    assert "answers" not in about["old"]["parameters"]
    counted = asked(endpoint, "GET", "/v2/models/told/stats")[1]["model_stats"][0]
    assert counted["inference_stats"]["queue"]["count"] > 0


def test_a_version_from_before_says_that_it_has_none(endpoint, picture):
    assert _predict(endpoint, "old", picture.read_bytes(), "?members=1")[1]["members"] == []
    for wrong in ("?members=2", "?members", "?members=true"):
        status, answer = _predict(endpoint, "told", picture.read_bytes(), wrong)
        assert (status, answer["error"]) == (400, "?members= takes 1 or 0")


def test_emo_predict_shows_them(endpoint, picture, capsys, caplog):
    options = ["predict", str(picture), "--url", f"http://{endpoint}", "--members"]
    assert main([*options, "--name", "told", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["ensemble", "FL model", "pair good"]
    assert all(re.fullmatch(r".{9} +\d+\.\d\d%  \d +\d+\.\d\d%  \d", line) for line in lines), lines
    assert main([*options, "--name", "told", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["members"]] == ["FL model", "pair good"]
    assert {each["label"] for each in told["members"][0]["probabilities"]} == set(STROKES)
    assert main([*options, "--name", "old"]) == 0
    assert "version 1 of old does not tell what its members answer" in caplog.text
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["ensemble"]


def test_the_description_has_it(endpoint):
    paths = asked(endpoint, "GET", "/openapi.json")[1]["paths"]
    query = [each for each in paths["/v2/models/{name}/predict"]["post"]["parameters"] if each["in"] == "query"]
    assert [each["name"] for each in query] == ["members"]
    assert all(each["in"] == "path" for each in paths["/v2/models/{name}/infer"]["post"]["parameters"])


@pytest.mark.parametrize("model", ["told", "old"])
def test_an_observer_asks_it_for_the_page(endpoint, broker, tmp_path, model):
    wan = broker.model_copy(update={"root": f"try-{model}"}).model_dump(mode="json", exclude_none=True)
    about = {"url": f"http://{endpoint}", "name": model}
    with watching(tmp_path, wan=wan, endpoint=about) as (_, line):
        ask = Asker(line.rpartition(" ")[2])
        state = ask.until(lambda state: state["endpoint"]["alive"])["endpoint"]
        assert (state["url"], state["name"], state["version"]) == (f"http://{endpoint}", model, "1")
        assert ask.json("/api/history")["endpoint"]["requests"][0] == state["requests"]
        status, _, body = ask("/api/try", "POST", drawn("8"))
        told = json.loads(body)
        assert (status, told["model"], told["version"]) == (200, model, "1")
        names = ["FL model", "pair good", "ensemble"] if model == "told" else ["ensemble"]
        assert [each["name"] for each in told["answers"]] == names
        assert all(each["labels"][0][0] == "8" for each in told["answers"])
        assert [len(each["labels"]) for each in told["answers"]] == [10] * len(names)
        assert ("exported without" in told.get("note", "")) == (model == "old")
        for status, image, why in (
            (502, b"x", "no PNG, JPEG"),
            (413, bytes((4 << 20) + 1), "4,194,304 bytes"),
        ):
            time.sleep(0.35)  # sooner it would be too soon for this reader
            found, _, body = ask("/api/try", "POST", image)
            assert (found, why in json.loads(body)["error"]) == (status, True), body
        assert ask("/api/try")[0] == 405
        assert ask("/api/try", "POST", drawn("8"), origin="http://evil.example")[0] == 403


def test_an_endpoint_that_goes_away_is_said_and_its_errors_are_sentences(served, broker, tmp_path):
    process, endpoint = served
    wan = broker.model_copy(update={"root": "try-away"}).model_dump(mode="json", exclude_none=True)
    with watching(tmp_path, wan=wan, endpoint={"url": f"http://{endpoint}", "name": "told"}) as (_, line):
        ask = Asker(line.rpartition(" ")[2])
        ask.until(lambda state: state["endpoint"]["alive"])
        process.kill()
        status, _, body = ask("/api/try", "POST", drawn("8"))
        assert (status, f"no endpoint answers at http://{endpoint}" in json.loads(body)["error"]) == (502, True)
        away = ask.until(lambda state: not state["endpoint"]["alive"], 15)["endpoint"]
        assert "no endpoint answers at" in away["text"]
        assert abs(time.time() - away["changed"]) < 15
