"""`emo watch` at a real broker: what its page is told, when, and to whom."""

import gzip
import re
import signal
import time

import pytest
from watching import Asker, Events, Teller, watching

from emo.wire.messages import Report, RunHistory, RunState


@pytest.fixture(scope="module")
def place(broker):
    return broker.model_copy(update={"root": "watched"})


@pytest.fixture(scope="module")
def watched(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    with watching(folder, wan=place.model_dump(mode="json", exclude_none=True)) as (process, line):
        assert re.fullmatch(rf"watching watched at 127.0.0.1:{place.port} at http://127\.0\.0\.1:\d+/", line)
        yield process, line


@pytest.fixture(scope="module")
def ask(watched):
    made = Asker(watched[1].rpartition(" ")[2])
    made.until(lambda state: state["watcher"]["connected"])
    time.sleep(0.3)  # it has subscribed
    return made


@pytest.fixture(scope="module")
def cloud(place, ask):
    made = Teller(place, "cloud", "cloud")
    made.publish(RunState("run-1", 1, 3, "training"))
    made.event("opened", run="run-1", round=1, devices=["device-1", "device-2"])
    ask.until(lambda state: state["open"] and state["open"]["asked"] == 2)
    yield made
    made.close()


def test_the_state_of_a_fleet(ask, cloud, place):
    device = Teller(place, "device-1", "device")
    report = Report("device-1", "device", "run-1", time.time(), "edge-1", "trains round 1", intervals="05")
    device.publish(report)
    ask.until(lambda state: any(node["edge"] == "edge-1" for node in state["nodes"]))
    assert ask.light("device-1") == "training"
    cloud.event("counted", run="run-1", round=1, device="device-1", samples=64)
    cloud.publish(RunHistory("run-1", 3, ((1, 0.75, 0.5, 2.0, 2, 2, 0, 4096),)))
    cloud.event("round", run="run-1", round=1, of=3, accuracy=0.75, updates=2, sampled=2, seconds=2.0, left_out={})
    state = ask.until(lambda state: state["accuracy"] == 0.75 and state["open"] is None)
    assert (state["run"], state["phase"], state["rounds"]) == ("run-1", "training", 3)
    assert state["watcher"]["source"] == "mqtt"
    assert ask.json("/api/log?limit=1")["entries"][0]["text"] == (
        "round 1 of 3 closed: 2 of 2 devices, 2.0 s, 75.0 %, device-1 was last"
    )
    assert ask.json("/api/history")["rounds"]["accuracy"] == [0.75]
    assert ask.json("/api/nodes/device-1")["intervals"] == "05"
    device.close()
    ask.until(lambda _: ask.light("device-1") == "gone")


def test_an_event_is_on_the_stream_within_a_second(ask, cloud):
    events = Events(ask.host)
    told = iter(events)
    assert [next(told)[0], next(told)[0]] == ["state", "nodes"]
    took = []
    for number in range(3):
        began = time.monotonic()
        cloud.event("paused", round=number)
        name, _, data = next(each for each in told if each[0] == "event")
        took.append(time.monotonic() - began)
        assert (name, data["name"], data["fields"]) == ("event", "paused", {"round": number})
    assert min(took) < 1
    events.close()


def test_a_node_that_is_killed_shows_within_15_s(ask, cloud, place):
    edge = Teller(place, "edge-1", "edge")
    ask.until(lambda _: ask.light("edge-1") == "alive")
    edge.channel._client._sock.close()  # as the kernel does for a killed process
    began = time.monotonic()
    ask.until(lambda _: ask.light("edge-1") == "gone", 15)
    assert time.monotonic() - began < 15
    edge.close(drain_s=0)


def test_what_is_asked_amiss_is_said(ask):
    for path, status in (
        ("/api/log?limit=x", 400),
        ("/api/nodes/nobody", 404),
        ("/api/none", 404),
        ("/assets/../run.py", 404),
        ("/?" + "x" * 5000, 414),
    ):
        assert ask(path)[0] == status, path
    assert ask("/api/state", "POST", b"{}")[0] == 405
    assert ask("/api/state", host="evil.example")[0] == 403
    assert ask("/api/state", "POST", b"", origin="http://evil.example")[0] == 403


def test_the_page_comes_with_what_keeps_strangers_out(ask):
    status, headers, body = ask("/", accept_encoding="gzip")
    assert status == 200
    assert b"<!doctype html>" in gzip.decompress(body).lower()
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask("/", if_none_match=headers["ETag"])[0] == 304


def test_metrics_name_the_nodes(ask, cloud):
    status, headers, body = ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'emo_node_alive{node="cloud",tier="cloud"} 1.0' in body


def test_it_ends_at_once_although_a_page_is_open(place, tmp_path):
    options = place.model_copy(update={"root": "ends"}).model_dump(mode="json", exclude_none=True)
    with watching(tmp_path, wan=options) as (process, line):
        events = Events(line.rpartition("//")[2].strip("/"))
        next(iter(events))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 2
        assert (tmp_path / "state" / "heartbeat.json").exists()
        events.close()
