"""The checker of `emo chaos` is worth what it finds: whole logs pass, and each kind of lie in them is named."""

import copy
import json

import pytest

from testbed.chaos import invariants
from testbed.chaos.invariants import Rounds

RUN = "run-1"


def opened(number, *devices):
    return {"event": "opened", "run": RUN, "round": number, "devices": list(devices)}


def counted(number, device, samples=10):
    return {"event": "counted", "run": RUN, "round": number, "device": device, "samples": samples}


def closed(number, *members, left_out=()):
    return {
        "event": "round",
        "run": RUN,
        "round": number,
        "updates": len(members),
        "members": dict.fromkeys(members, 10),
        "left_out": dict.fromkeys(left_out, "late"),
        "digest": f"d{number}",
    }


def resumed(number, phase, sampled=(), heard=()):
    return {
        "event": "resumed",
        "run": RUN,
        "round": number,
        "phase": phase,
        "sampled": list(sampled),
        "counted": list(heard),
    }


BEGUN, EXPORTED = {"event": "begun", "run": RUN}, {"event": "exported", "run": RUN, "version": 1}
# Round 2 is opened before round 1's line is written; the cloud dies in round 2, and once more when all is done.
STORY = [
    {"event": "start", "tier": "cloud"},
    BEGUN | {"run": "run-0"},  # died before anybody had heard of it
    BEGUN,
    opened(1, "a", "b"),
    counted(1, "a"),
    counted(1, "b"),
    opened(2, "a", "c"),
    closed(1, "a", "b"),
    counted(2, "a"),
    counted(2, "c"),
    {"event": "device_gone", "device": "c", "round": 2},
    resumed(2, "collecting", ["a", "c"], ["a"]),
    counted(2, "c"),
    closed(2, "a", "c"),
    resumed(2, "overlays"),
    closed(2, "a", "c"),
    EXPORTED,
]


def found(story, strict=True, rounds=2, full=False):
    return Rounds(story, rounds, strict, full).violations


def changed(*changes):
    story = copy.deepcopy(STORY)
    for index, event in sorted(changes, key=lambda change: -change[0]):
        story[index : index + 1] = [] if event is None else event if isinstance(event, list) else [event]
    return story


def test_a_true_story_passes():
    rounds = Rounds(STORY, 2, strict=True)
    assert rounds.violations == []
    assert rounds.run == RUN
    assert {number: dict(each.members) for number, each in rounds.closed.items()} == {
        1: {"a": 10, "b": 10},
        2: {"a": 10, "c": 10},
    }


@pytest.mark.parametrize(
    ("invariant", "story"),
    [
        ("counted", changed((5, [counted(1, "b"), counted(1, "b")]))),  # twice
        (
            "counted",
            changed((12, [counted(2, "c"), counted(2, "a")])),
        ),  # again after the restart that kept it
        ("counted", changed((5, None))),  # recorded, never counted
        ("counted", changed((7, closed(1, "a", left_out=["b"])))),  # counted, not recorded
        ("counted", changed((5, counted(1, "b", samples=99)))),  # with another weight
        ("counted", changed((5, [counted(1, "b"), counted(1, "z")]))),  # never asked
        ("counted", changed((8, [counted(1, "a"), counted(2, "a")]))),  # for a round that is over
        ("counted", changed((11, resumed(2, "collecting", ["a", "c"], ["a", "z"])))),  # out of nowhere
        ("counted", changed((12, None), (13, closed(2, "a", left_out=["c"])))),  # left out, with time to wait
        ("closed", changed((7, closed(1, "a", "b", "c")))),  # one too many
        ("closed", changed((7, closed(1, "a", "b", left_out=["b"])))),  # in and out
        ("closed", changed((15, closed(2, "a")))),  # closed again, as another round
        ("closed", changed((13, None), (15, None))),  # never
        ("closed", changed((7, closed(1, "a", "b") | {"updates": 3}))),
        ("forward", changed((6, opened(3, "a", "c")))),  # a round too far
        ("forward", changed((6, [opened(2, "a", "c"), opened(1, "a", "b")]))),  # back
        ("forward", changed((11, resumed(1, "collecting", ["a", "b"], [])))),
        ("forward", changed((11, resumed(2, "collecting", ["a", "b"], ["a"])))),  # for others
        ("forward", changed((11, [BEGUN | {"run": "run-2"}, STORY[11]]))),  # the old run forgotten
        ("forward", changed((11, resumed(2, "collecting", ["a", "c"], ["a"]) | {"run": "run-0"}))),
        ("served", changed((16, None))),
        ("served", changed((16, [EXPORTED, EXPORTED]))),
        ("logs", changed((4, {"event": "counted", "round": 1}))),
    ],
)
def test_each_lie_is_found(invariant, story):
    assert invariant in {violation.invariant for violation in found(story)}


def test_stragglers_may_be_left_out_where_that_is_allowed():
    story = changed((9, None), (12, None), (13, closed(2, "a", left_out=["c"])), (15, None))
    assert found(story, strict=False) == []
    assert {each.invariant for each in found(story, strict=True)} == {"counted"}


def trained(number, digest="x", run=RUN):
    return {"event": "trained", "run": run, "round": number, "digest": digest}


LOGS = {"a": [trained(1), trained(2), trained(2)], "b": [trained(1)], "c": [trained(2)]}


@pytest.mark.parametrize(
    ("invariant", "logs"),
    [
        (None, LOGS),
        ("bits", LOGS | {"a": [trained(1), trained(2), trained(2, "y")]}),
        ("forward", LOGS | {"a": [trained(1), trained(2), trained(1)]}),
        ("forward", LOGS | {"a": [trained(1, run="run-0"), *LOGS["a"]]}),
        ("counted", LOGS | {"b": []}),
    ],
)
def test_devices_that_lie(invariant, logs):
    wrong = invariants.devices(logs, Rounds(STORY, 2, strict=True))
    assert {each.invariant for each in wrong} == ({invariant} if invariant else set())


def overlay(steps, event="overlay"):
    return {"event": event, "run": RUN, "steps": steps}


@pytest.mark.parametrize(
    ("invariant", "log"),
    [
        (None, [{"event": "run", "run": RUN}, overlay(20, "resumed"), overlay(40, "resumed"), overlay(41)]),
        ("forward", [overlay(40, "resumed"), overlay(20, "resumed"), overlay(41)]),
        ("forward", [overlay(41), overlay(30, "resumed")]),
        (None, [overlay(41), overlay(31, "resumed")]),  # from its checkpoint
        ("forward", [{"event": "run", "run": "run-0"}, overlay(41)]),
        ("ended", [overlay(40, "resumed")]),
    ],
)
def test_edges_that_lie(invariant, log):
    assert {each.invariant for each in invariants.edges({"edge-1": log}, RUN, most=10)} == (
        {invariant} if invariant else set()
    )


def test_an_edge_that_nothing_has_reached_is_no_member():
    logs = {"a": [overlay(0)], "b": [overlay(3), overlay(0)], "c": [overlay(0, "resumed")]}
    assert invariants.untrained(logs) == {"a"}


def test_what_did_not_end_as_it_should():
    assert invariants.ended(True, [("cloud", 2, True)], []) == []
    assert [each.text for each in invariants.ended(False, [("cloud", 2, False)], ["edge-1"])] == [
        "the run did not end",
        "cloud ended by itself with status 2",
        "edge-1 did not end on SIGTERM",
    ]


def test_a_traceback_in_a_log_is_named_with_its_last_line():
    text = "12:00 W fine\nTraceback (most recent call last):\n  File x\nValueError: no\n\n12:01 I on\n"
    assert invariants.quiet({"cloud": "12:00 I fine\n", "edge-1": text}) == [
        ("logs", "edge-1 printed a traceback: ValueError: no")
    ]


@pytest.mark.parametrize("text", ['{"event": "round"', "no json\n", '{"time": 1}\n', "[]\n", '{"event": 1}\n\n'])
def test_a_line_that_is_no_event_is_found(tmp_path, text):
    (tmp_path / "events.jsonl").write_text(json.dumps(BEGUN) + "\n" + text)
    _, wrong = invariants.read(tmp_path / "events.jsonl")
    assert [each.invariant for each in wrong] == ["logs"]


def test_a_log_is_read(tmp_path):
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in STORY))
    assert invariants.read(tmp_path / "events.jsonl") == (STORY, [])
    assert [each.invariant for each in invariants.read(tmp_path / "none")[1]] == ["logs"]


BACK = [resumed(2, "collecting", ["a", "c"]), counted(2, "c"), counted(2, "a")]


@pytest.mark.parametrize("back", [BACK, [resumed(2, "waiting"), opened(2, "a", "c"), *BACK[1:]]])
def test_a_round_is_counted_again_only_where_the_disk_was_full_and_comes_to_the_same(back):
    story = [*STORY[:-3], *back, closed(2, "c", "a"), EXPORTED]
    assert found(story, full=True) == []
    assert {each.invariant for each in found(story)} & {"counted"}
    other = [*STORY[:-3], *back, closed(2, "c", "a") | {"digest": "other"}, EXPORTED]
    assert [each.invariant for each in found(other, full=True)] == ["closed"]
    twice = [*STORY[:-3], *back, counted(2, "a"), closed(2, "c", "a"), EXPORTED]
    assert [each.invariant for each in found(twice, full=True)] == ["counted"]


FINE = {"accuracy": {"fl": 0.9, "served": 0.95}}


def test_beside_a_hostile_node_logs_stay_readable_processes_small_and_the_model_as_good_as_fl(tmp_path):
    (tmp_path / "events.jsonl").write_text("{}\n")
    printed = {"cloud": "round 1\tclosed\nround 2 closed — done\n"}
    assert invariants.unharmed(printed, {"cloud": 400}, FINE, {"cloud": tmp_path}) == []
    lies = [
        ({"cloud": "an id\x1b[2J\n"}, {}, FINE),
        ({"cloud": "y" * 1_000_000}, {}, FINE),
        ({}, {"edge-1": 4600}, FINE),
        ({}, {}, {"accuracy": {"fl": 0.9, "served": 0.078}}),
    ]
    for case in lies:
        assert [each.invariant for each in invariants.unharmed(*case, {"cloud": tmp_path})] == ["unharmed"]
    (tmp_path / "events.1.jsonl").write_bytes(bytes(8 << 20))
    assert [each.invariant for each in invariants.unharmed({}, {}, FINE, {"cloud": tmp_path})] == ["unharmed"]
