"""How often one node may cause the same thing."""

import json

from clouds import cloud
from fleet import MODEL

from cloud_app.rounds.checkpoint import Checkpoints
from cloud_app.rounds.node import Host
from emo import journal as module
from emo.config import Model
from emo.journal import Journal
from emo.models import split_network
from emo.throttle import Budget, Newest
from emo.wire.messages import OverlayWeights, Status


def test_a_budget_is_for_each_key_and_fills_again():
    budget = Budget(3, 0.5)
    assert [budget.takes(("a",), 0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert budget.takes(("b",), 0)
    assert [budget.takes(("a",), 1.0), budget.takes(("a",), 2.0), budget.takes(("a",), 2.1)] == [
        False,
        True,
        False,
    ]
    assert [budget.takes(("a",), 1000) for _ in range(4)] == [True] * 3 + [False]


def test_it_remembers_so_many_keys_at_most(monkeypatch):
    monkeypatch.setattr("emo.throttle._KEYS", 10)
    budget = Budget(1, 0.0)
    newest = Newest(Budget(0, 0.0))
    for number in range(50):
        budget.takes((str(number),), 0)
        newest.holds(f"emo/{number}/0", b"", 0)
    assert len(budget._left) == len(newest._held) == 10


def test_the_newest_word_of_one_who_says_too_much_is_handled_in_the_end():
    newest = Newest(Budget(2, 1.0))
    held = [newest.holds("emo/wan/status/a/0", str(n).encode(), 0) for n in range(1000)]
    assert held == [False, False] + [True] * 998
    assert newest.holds("emo/wan/status/a/1", b"another index", 0)  # no other sender
    assert not newest.holds("emo/wan/status/b/0", b"", 0)
    assert newest.due(0.5) == []
    newest.holds("emo/wan/status/a/0", b"last", 0.9)
    assert newest.due(1.1) == [("emo/wan/status/a/0", b"last")]
    assert newest.due(9) == []


def events(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_device_that_comes_and_goes_fills_no_log(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    node = cloud()
    node._roster._journal = journal = Journal(tmp_path)

    def toggle(device, times):
        for _ in range(times):
            for online in (True, False):
                list(node.handle(Status(device, "device", online, 4), 0))

    toggle("evil", 2000)
    toggle("honest", 3)
    written = events(tmp_path)
    assert [event["device"] for event in written].count("honest") == 3
    assert len(written) == 53
    assert journal.counts["events.left_out"] == 1950
    now[0] += 61
    toggle("evil", 5)
    last = events(tmp_path)[53:]
    assert [event["left_out"] for event in last] == [1950]


def test_an_event_that_no_node_causes_at_will_is_always_written(tmp_path):
    journal = Journal(tmp_path)
    for number in range(200):
        journal.event("counted", device="d", round=number)
    assert len(events(tmp_path)) == 200


def test_an_edge_that_repeats_its_overlay_causes_no_checkpoint_each_time(tmp_path, caplog):
    journal = Journal(tmp_path / "journal")
    node, saved = cloud(), []
    weights = split_network.weights(split_network.overlay(Model.model_validate(MODEL), 0))
    keep = Checkpoints(tmp_path / "run", journal)
    keep.save, keep.due = lambda state: saved.append(state) is None, lambda: False
    node._host = Host(checkpoints=keep)
    with caplog.at_level("INFO", "emo"):
        for steps in range(1, 300):
            list(node.handle(OverlayWeights("run", "e", steps, 1, 1, weights), 0))
    assert len(saved) == 1
    assert len(caplog.records) == 1
    node.close()
    assert saved[-1].overlays["e"].steps == 299
