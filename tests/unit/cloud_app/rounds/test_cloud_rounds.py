"""What is said of a round, who is waited for, and how rounds are held: what operates a fleet relies on."""

import dataclasses
import json

from clouds import cloud, opened, update

from cloud_app.rounds.node import Host
from emo.journal import Journal
from emo.wire.compression import digest
from emo.wire.messages import GlobalModel, RunHistory, Status


def told(node, name):
    """The events of that name."""
    lines = (node._journal._folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def test_the_line_of_a_round_says_who_was_counted_and_who_was_left_out_and_why(tmp_path):
    node = cloud(min_devices=5, quorum=0.4)
    node._journal = node._roster._journal = node._report._journal = Journal(tmp_path)
    opened(node, "abcde")
    for message in (
        update("a", samples=3),
        update("b", samples=4),
        dataclasses.replace(update("c"), loss=None),
    ):
        list(node.handle(message, 1))
    list(node.handle(Status("d", "device", online=False), 2))
    assert node.state.round == 1  # e is still at it
    list(node.tick(11))
    (line,) = told(node, "round")
    assert line["members"] == {"a": 3, "b": 4}
    assert line["left_out"] == {"c": "refused", "d": "offline", "e": "late"}
    assert (line["run"], line["round"], line["of"], line["updates"], line["sampled"]) == ("run", 1, 2, 2, 5)
    assert line["digest"] == digest(node.state.weights)
    assert [event["device"] for event in told(node, "counted")] == ["a", "b"]


def test_a_refused_device_is_not_waited_for():
    node = cloud(min_devices=2, quorum=0.5)
    opened(node, "ab")
    list(node.handle(dataclasses.replace(update("a"), loss=None), 1))
    list(node.handle(update("b"), 1))
    assert node.state.round == 2


def test_a_device_that_flaps_blocks_no_round():
    node = cloud(rounds=4, min_devices=3, quorum=0.6)
    opened(node, "abc")
    for number in (1, 2, 3):
        assert node.state.round == number
        for online in (False, True, False, True, False):
            list(node.handle(Status("c", "device", online=online, samples=4), number))
        for name in ("a", "b"):
            list(node.handle(update(name, round=number), number))
        list(node.handle(Status("c", "device", online=True, samples=4), number))
    assert node.state.updates == 6


def test_an_answer_that_comes_twice_is_not_refused_in_the_next_round():
    node = cloud()
    opened(node, "ab")
    for name in ("a", "b"):
        list(node.handle(update(name), 1))
    assert node.state.round == 2
    assert [m for m in node.handle(update("a"), 2) if m] == []
    assert node._journal.counts["updates.duplicate"] == 1


def test_while_paused_a_round_is_finished_and_none_is_opened():
    node, held = cloud(), []
    node._host = Host(pause=lambda: bool(held))
    opened(node, "ab")
    held.append(True)
    for name in ("a", "b"):
        list(node.handle(update(name), 1))
    about = node.about()
    assert (about["phase"], about["round"], about["paused"], about["idle"]) == ("waiting", 2, True, True)
    list(node.tick(5000))  # nobody gives up meanwhile
    held.clear()
    assert [m.round for m in node.tick(5001) if isinstance(m, GlobalModel)] == [2]
    assert not node.about()["idle"]


def test_the_next_round_is_opened_before_the_last_is_measured_and_closed_after():
    measured = []
    node = cloud(rounds=3)
    node._report._evaluate = lambda weights: (measured.append(float(weights["w"][0])) or 0.5, 0.1)
    opened(node, "ab")
    for number in (1, 2):
        for name in ("a", "b"):
            list(node.handle(update(name, round=number, value=number), number))
    assert (node.state.round, node.state.phase, measured) == (2, "collecting", [])
    first, told = node.work(0)
    assert (first, type(told), told.rows[-1][:3]) == (None, RunHistory, (1, 0.5, 0.5))
    assert list(node.work(0)) == []
    list(node.tick(3))
    assert (node.state.round, node.state.phase, measured) == (3, "collecting", [1.0])


def test_who_shows_himself_to_a_broker_that_has_forgotten_him_is_not_doubted_after_that():
    node = cloud(per_round=None)
    opened(node, ("a", "b"))
    list(node.handle(update("a"), 1))
    node.forgotten()
    list(node.handle(Status("b", "device", online=True, samples=4), 2))
    list(node.restore())  # the runner's loop comes later than the first messages
    for now in range(3, 95):
        list(node.tick(float(now)))
    assert node.about()["devices"] == 1  # a has said nothing since, b needs not say it twice
