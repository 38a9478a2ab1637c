import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import any_message
from watching_story import Story

from cloud_app.watch.view import View
from emo.security.members import Members
from emo.wire.messages import Event, Report, RunHistory, RunState, Status

MEMBERS = Members(edges={"edge-1": ("device-1", "device-2"), "edge-2": ("device-3",)}, observers=("watch",))


@pytest.fixture
def story():
    made = Story(View(100))
    made.here("cloud", "edge-1", "device-1", "device-2")
    return made


def test_a_round_from_its_opening_to_its_close(story):
    view = story.view
    story.event("cloud", "begun", run="r1")
    assert view.state(story.now)["phase"] == "waiting"
    story.tell(RunState("r1", 1, 3, "training"))
    assert [
        entry.text for entry in story.event("cloud", "opened", run="r1", round=1, devices=["device-1", "device-2"])
    ] == ["round 1 opened: 2 devices asked"]
    assert story.light("device-1") == ("training", "")
    story.event("cloud", "counted", run="r1", round=1, device="device-2", samples=64)
    assert story.light("device-2") == ("alive", "")
    state = view.state(story.now)
    assert state["open"] | {"since": 0} == {
        "asked": 2, "answered": 1, "since": 0, "missing": ["device-1"], "missing_count": 1
    }  # fmt: skip
    assert state["doing"] == "round 1 of 3: 1 of 2 devices have answered, waiting for device-1"
    story.now += 10
    assert story.light("device-1") == ("late", "round 1 waits for it")
    story.event("cloud", "counted", run="r1", round=1, device="device-1", samples=64)
    closed = {"round": 1, "of": 3, "accuracy": 0.912, "loss": 0.5, "seconds": 12.0, "updates": 2, "sampled": 2}
    story.tell(RunHistory("r1", 3, ((1, 0.912, 0.5, 12.0, 2, 2, 0, 4096),)))
    [entry] = story.event("cloud", "round", run="r1", **closed, left_out={})
    assert entry.text == "round 1 of 3 closed: 2 of 2 devices, 12.0 s, 91.2 %, device-1 was last"
    state = view.state(story.now)
    assert (state["accuracy"], state["bytes"]["sfl"], state["open"], state["seconds_left"]) == (0.912, 4096, None, 24.0)
    history = view.history()
    assert history["rounds"]["sfl_bytes"] == [4096]
    assert history["waited"] == {"1": {"device": "device-1", "seconds": 12.0}}


def test_who_was_waited_for_is_known_though_a_round_is_measured_while_the_next_is_open(story):
    story.tell(RunState("r1", 1, 2, "training"))
    for this, last in ((1, "device-2"), (2, "device-1")):
        story.event("cloud", "opened", run="r1", round=this, devices=["device-1", "device-2"])
        if this == 2:
            story.event("cloud", "counted", run="r1", round=2, device="device-2", samples=64)
            [entry] = story.event("cloud", "round", run="r1", round=1, of=2, updates=2, sampled=2, left_out={})
            assert entry.text.endswith("device-2 was last")
        for device in ("device-1", "device-2") if last == "device-2" else ("device-1",):
            story.event("cloud", "counted", run="r1", round=this, device=device, samples=64)
    story.tell(RunState("r1", 2, 2, "finishing"))
    [entry] = story.event("cloud", "round", run="r1", round=2, of=2, updates=2, sampled=2, left_out={})
    assert entry.text.endswith("device-1 was last")
    assert {this: each["device"] for this, each in story.view.history()["waited"].items()} == {
        "1": "device-2",
        "2": "device-1",
    }


def test_a_device_that_is_left_out_and_one_that_is_refused_show_why(story):
    story.event("cloud", "opened", run="r1", round=1, devices=["device-1", "device-2"])
    story.event("device-2", "refused", "device", run="r1", round=1, reason="NaN in a.weight")
    assert story.light("device-2") == ("refused", "the cloud refused device-2's update of round 1: NaN in a.weight")
    story.event("cloud", "round", run="r1", round=1, updates=0, left_out={"device-1": "late", "device-2": "refused"})
    assert story.light("device-1") == ("late", "left out of round 1: it had not answered in time")
    story.event("cloud", "opened", run="r1", round=2, devices=["device-1", "device-2"])
    assert story.light("device-2") == ("training", "")
    story.event("cloud", "unfit", node="device-1", why="classes is other")
    assert story.light("device-1") == ("out", "classes is other")


def test_a_node_is_gone_with_its_will_or_when_it_says_nothing_for_long(story):
    story.tell(RunState("r1", 1, 3, "training"))
    [entry] = story.tell(Status("edge-1", "edge", online=False))
    assert (entry.level, entry.text) == ("problem", "edge-1 has gone")
    assert story.light("edge-1") == ("gone", "is offline")
    assert story.light("device-1")[0] == "alive"
    story.now += 200
    assert story.light("device-1") == ("gone", "says nothing")


def test_while_the_broker_is_away_nobody_goes(story):
    story.view.link(up=False, now=story.now + 1)
    story.now += 500
    assert story.light("device-1")[0] == "alive"
    story.view.link(up=True, now=story.now)
    assert story.light("device-1")[0] == "alive"
    story.now += 200
    assert story.light("device-1")[0] == "gone"


def test_counters_that_begin_again_add_up(story):
    def told(value, at):
        figures = {"sent_bytes.Update": value, "received_bytes.GlobalModel": 1.0}
        return Report("device-1", "device", "r1", at, "edge-1", figures=figures)

    for value, at in ((100, 1.0), (300, 2.0), (300, 2.0), (100, 1.0), (50, 3.0)):  # 100 comes once more, late
        story.tell(told(value, at))
    assert story.view.state(story.now)["bytes"]["fl"] == 351
    story.tell(RunState("r1", 1, 1, "training"))
    story.event("cloud", "begun", run="r2")
    assert story.view.state(story.now)["bytes"]["fl"] == 0
    story.tell(told(60, 4.0))
    assert story.view.state(story.now)["bytes"]["fl"] == 10
    assert story.view.nodes["device-1"].figures["sent_bytes.Update"] == 60


def test_a_device_hangs_under_the_edge_of_its_report(story):
    story.tell(Report("device-2", "device", "r1", 1.0, "edge-1", "trains round 1", intervals="0z."))
    nodes = story.view.state(story.now)["nodes"]
    assert [(node["id"], node["edge"], node["intervals"]) for node in nodes] == [
        ("cloud", "", ""), ("edge-1", "", ""), ("device-2", "edge-1", "0z."), ("device-1", "", "")
    ]  # fmt: skip
    assert story.light("device-2")[0] == "training"


def test_a_doubled_event_is_shown_once(story):
    event = Event("cloud", "cloud", 7, 5.0, "paused", {"round": 1})
    assert len(story.tell(event)) == 1
    assert story.tell(event) == []
    assert len(story.tell(dataclasses.replace(event, time=6.0))) == 1  # another process of it counts from zero


def test_only_members_are_shown_where_they_are_known_and_the_rest_is_counted():
    story = Story(View(100, MEMBERS))
    story.here("device-1", "device-9", "edge-7")
    story.tell(Status("edge-1", "device", online=True))
    story.tell(Report("device-9", "device", "r1", 1.0))
    state = story.view.state(story.now)
    assert [node["id"] for node in state["nodes"]] == ["cloud", "edge-1", "device-1", "device-2", "edge-2", "device-3"]
    assert state["counts"] | {"gone": 0} == {
        "devices": 3, "alive": 1, "training": 0, "late": 0, "out": 0, "refused": 0, "gone": 0
    }  # fmt: skip
    assert story.view.refused == 4
    assert story.light("device-3") == ("gone", "has not announced itself")


def test_a_device_that_calls_itself_the_cloud_moves_nothing(story):
    story.event("cloud", "begun", run="r1")
    story.event("device-1", "begun", run="evil")
    story.tell(Report("device-2", "cloud", "evil", 1.0))
    assert story.view.state(story.now)["run"] == "r1"
    assert story.view.refused == 2


def test_a_second_cloud_is_not_believed_while_the_first_is_there(story):
    story.event("cloud", "begun", run="r1")
    story.tell(Status("evil", "cloud", online=True))
    story.event("evil", "begun", run="evil")
    assert story.view.state(story.now)["run"] == "r1"
    assert "evil" not in story.view.nodes
    assert story.view.refused == 2


def test_of_more_nodes_than_may_be_those_stay_that_announced_themselves():
    view = View(3)
    story = Story(view)
    story.here("cloud", "device-1")
    for number in range(50):
        story.tell(Report(f"ghost-{number}", "device", "r1", 1.0))
    story.here("device-2")
    assert set(view.nodes) == {"cloud", "device-1", "device-2"}
    story.here("device-3")
    assert "device-3" not in view.nodes
    assert view.refused >= 50


def test_what_the_broker_kept_of_the_run_before_is_not_taken_for_this_one(story):
    story.event("cloud", "begun", run="r2")
    story.tell(RunHistory("r1", 3, ((1, 0.9, 0.5, 1.0, 2, 2, 0, 1),), {"fl": 0.9}))
    story.tell(RunState("r1", 3, 3, "done"))
    state = story.view.state(story.now)
    assert (state["run"], state["phase"], state["accuracy"]) == ("r2", "waiting", None)


def test_a_flood_of_one_device_leaves_the_others_their_place_in_the_log(story):
    story.event("cloud", "begun", run="r1")
    for number in range(5000):
        story.event("device-1", "trained", "device", after=0.01, round=number)
    assert len(story.view.events.since(0)) < 300
    assert story.view.refused > 4700
    assert story.view.log(level="info", name="begun")


def test_when_all_devices_come_and_go_with_their_broker_the_log_keeps_the_rest(story):
    story.event("cloud", "begun", run="r1")
    for online in (True, False) * 20:
        for number in range(100, 160):
            story.tell(Status(f"device-{number}", "device", online), 0.01)
    assert len(story.view.events.since(0)) < 100
    assert story.view.log(name="begun")
    assert story.light("device-100") == ("gone", "is offline")


def test_texts_of_strangers_are_one_printable_line(story):
    [entry] = story.event("device-1", "a\nb\x1b[2J" * 5, "device", why="<script>\u202e" * 20, more="x" * 500)
    assert entry.text.isprintable()
    assert len(entry.text) <= 300
    assert entry.fields["why"].startswith("<script>?")
    story.tell(Report("device-1", "device", "r1", 1.0, doing="\x00evil", figures={"\n": 1.0}))
    node = story.view.node("device-1", story.now)
    assert (node["doing"], node["figures"]) == ("?evil", {"?": 1.0})


@settings(max_examples=60)
@given(st.lists(st.tuples(any_message, st.floats(0, 2e9)), max_size=30))
def test_any_messages_in_any_order_leave_a_state_that_is_json(told):
    for view in (View(4), View(4, MEMBERS)):
        for message, now in told:
            view.take(message, now)
            view.link(up=now > 1e9, now=now)
        assert len(view.nodes) <= 6
        for shown in (view.state(1e9), view.history(), view.log(), [view.node(name, 1e9) for name in view.nodes]):
            json.dumps(shown, allow_nan=False)
