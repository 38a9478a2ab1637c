"""What is no answer to an image is said, whatever the server sends; members are told where there are any."""

import json

import pytest

from cloud_app.serving import client
from emo.errors import ServeError

GOOD = {"model_version": "3", "probabilities": [{"label": "a", "probability": 1}], "image": [9, 7], "input": [8, 8]}


def _answers(monkeypatch, answer, **more):
    asked = []
    monkeypatch.setattr(client, "ask", lambda *given: asked.append(given) or json.loads(json.dumps(answer)))
    return client.answers("http://x", "a b", b"image", "this image", **more), asked[0]


def test_labels_and_members(monkeypatch):
    members = [{"name": "FL model", "probabilities": [{"label": "b", "probability": 0.5}]}]
    found, asked = _answers(monkeypatch, {**GOOD, "members": members}, members=True)
    assert asked[:3] == ("http://x", "/v2/models/a%20b/predict?members=1", b"image")
    assert (found.version, found.labels, found.members) == ("3", [("a", 1.0)], [("FL model", [("b", 0.5)])])
    assert (found.had, found.has) == ((9, 7), (8, 8))
    found, asked = _answers(monkeypatch, GOOD)
    assert (found.members, asked[1]) == ([], "/v2/models/a%20b/predict")


@pytest.mark.parametrize(
    "change",
    [
        {"probabilities": []},
        {"probabilities": [{"label": "a", "probability": float("nan")}]},
        {"probabilities": [{"label": "a", "probability": "much"}]},
        {"probabilities": ["a"]},
        {"probabilities": None},
        {"members": None},
        {"members": [{"name": "x"}]},
        {"members": [{"name": "x", "probabilities": []}]},
        {"image": [float("inf"), 1]},
        {"input": None},
    ],
)
def test_other_answers_are_refused(monkeypatch, change):
    with pytest.raises(ServeError, match=r"http://x: the answer of 'a b' does not hold one probability a label"):
        _answers(monkeypatch, {**GOOD, **change})
