"""How the endpoint does, out of what it says of itself; and what strange endpoints say."""

import pytest

from cloud_app.serving import client
from cloud_app.serving.client import Prediction
from cloud_app.watch.endpoint import Endpoint
from emo.config import Served
from emo.errors import ServeError


def _stats(*rows):
    model_stats = [
        {"name": name, "inference_stats": {"success": {"count": count, "ns": ns}, "fail": {"count": 0, "ns": 0}}}
        for name, count, ns in rows
    ]
    return {"model_stats": model_stats}


@pytest.fixture
def said(monkeypatch):
    """Answers by path, each for one question or, where it is one alone, for all."""
    answers = {}

    def ask(url, path, *_args, **_options):
        answer = answers[path]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(client, "ask", ask)
    answers["/v2/models/emo"] = {"versions": ["3"]}
    return answers


@pytest.fixture
def endpoint():
    return Endpoint(Served(url="http://me:secret@127.0.0.1:8000"))


def test_requests_of_all_versions_and_the_latency_of_the_last_ones(said, endpoint):
    looks = []
    for rows in (
        [("emo", 10, 40_000_000), ("other", 900, 1)],
        [("emo", 12, 46_000_000)],
        [("emo", 12, 46_000_000)],
        [("emo", 12, 46_000_000), ("emo", 2, 10_000_000)],
        [("emo", 1, 1_000_000)],  # it was started anew
        [("emo", 3, 5_000_000)],
    ):
        said["/v2/models/stats"] = _stats(*rows)
        looks.append(endpoint.look(7.0))
    assert [look["requests"] for look in looks] == [10, 12, 12, 14, 1, 3]
    assert [look["latency_ms"] for look in looks] == [None, 3.0, 3.0, 5.0, 5.0, 2.0]
    about = {"url": "http://127.0.0.1:8000", "name": "emo", "alive": True, "version": "3", "text": "", "changed": 7.0}
    assert looks[0] == {**about, "requests": 10, "latency_ms": None}


def test_away_is_said_with_since_when(said, endpoint):
    said["/v2/models/stats"] = _stats()
    assert endpoint.look(1.0)["alive"]
    said["/v2/models/emo"] = ServeError("no endpoint answers at\x1b http://x")
    for now in (2.0, 3.0):
        told = endpoint.look(now)
        assert (told["alive"], told["changed"], told["text"]) == (False, 2.0, "no endpoint answers at? http://x")
        assert "requests" not in told
    said["/v2/models/emo"] = {"versions": ["4"]}
    assert endpoint.look(4.0)["changed"] == 4.0


@pytest.mark.parametrize("about", [{}, {"versions": []}, {"versions": None}, {"versions": 3}])
@pytest.mark.parametrize(
    "stats",
    [
        _stats(),
        {},
        {"model_stats": [{"name": "emo"}]},
        {"model_stats": [7]},
        _stats(("emo", float("inf"), 1)),
        _stats(("emo", 10**400, 1)),
        _stats(("emo", -1, 1)),
    ],
)
def test_what_is_no_endpoint_is_said(said, endpoint, about, stats):
    said["/v2/models/emo"], said["/v2/models/stats"] = about, stats
    told = endpoint.look(1.0)
    assert (told["alive"], told["text"]) == (False, "http://127.0.0.1:8000: speaks no Open Inference Protocol v2")
    said["/v2/models/emo"] = {"versions": ["1"]}
    assert endpoint.look(1.0)["alive"] == (stats == _stats())


def test_answers_are_what_a_page_shows(monkeypatch, endpoint):
    labels = [(f"{place}" * 200, 1 / 500) for place in range(500)]
    found = Prediction("2", labels, [("FL\nmodel", labels)] * 300, (9, 9), (8, 8))
    monkeypatch.setattr(client, "answers", lambda *_args, **_options: found)
    told = endpoint.answers(b"image")
    assert (told["model"], told["version"], len(told["answers"])) == ("emo", "2", 201)
    assert (told["answers"][0]["name"], told["answers"][-1]["name"]) == ("FL?model", "ensemble")
    assert all(len(each["labels"]) == 20 for each in told["answers"])
    assert max(len(label) for label, _ in told["answers"][0]["labels"]) == 100
    assert "note" not in told
    monkeypatch.setattr(client, "answers", lambda *_args, **_options: Prediction("1", labels, [], (8, 8), (8, 8)))
    told = endpoint.answers(b"image")
    assert [each["name"] for each in told["answers"]] == ["ensemble"]
    assert "does not tell what its members answer" in told["note"]


def test_a_key_that_cannot_be_read_is_said_at_once(tmp_path):
    with pytest.raises(ServeError, match="cannot read the API keys"):
        Endpoint(Served(url="http://127.0.0.1:8000", api_key_file=tmp_path / "none"))
