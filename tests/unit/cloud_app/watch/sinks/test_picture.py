"""What is logged of a run: every round once, by its number, with the time at which it was closed."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from storied import NOW, ROWS, RUN, closed, report, watched

from cloud_app.watch.sinks.picture import picture, seen
from cloud_app.watch.view import View
from emo.wire.messages import Event, RunHistory


def curve(taken, name):
    return {point.step: (point.time, point.value) for point in taken.points if point.name == name}


def test_no_run_no_picture():
    assert picture(seen(View(10)), NOW) is None


def test_a_run_that_is_over(tmp_path):
    taken = picture(seen(watched()), NOW + 99, tmp_path)
    assert (taken.run, taken.over, taken.model) == (RUN, True, tmp_path)
    assert taken.settings == {
        "rounds": 3, "training.lr": 0.05, "rounds.clip_norm": "none", "overlays.edges": '["edge-1"]'
    }  # fmt: skip
    assert curve(taken, "fl/accuracy") == {1: (NOW + 10, 0.5), 3: (NOW + 30, 0.75)}  # not measured after round 2
    assert curve(taken, "round/left_out") == {1: (NOW + 10, 0), 2: (NOW + 20, 1), 3: (NOW + 30, 0)}
    assert curve(taken, "bytes/split_learning") == {number: (NOW + 10 * number, 1000 * number) for number in (1, 2, 3)}
    assert curve(taken, "bytes/fl") == {number: (NOW + 10 * number, 100 * number) for number in (1, 2, 3)}
    assert curve(taken, "batches/sent_share") == {number: (NOW + 10 * number, 0.25) for number in (1, 2, 3)}
    assert curve(taken, "overlay_loss/edge-1") == {0: (NOW + 1, 2.0), 50: (NOW + 11, 1.5), 70: (NOW + 26, 1.0)}
    assert curve(taken, "cache_entries/edge-1")[70] == (NOW + 26, 8)
    assert curve(taken, "result/served") == {3: (NOW + 30, 0.875)}
    assert curve(taken, "result/boosted.edge-1") == {3: (NOW + 30, 0.625)}


def test_a_run_that_goes_on_has_no_result_and_no_model(tmp_path):
    view = watched(until=2)
    taken = picture(seen(view), NOW + 25, tmp_path)
    assert (taken.over, taken.model) == (False, None)
    assert 3 not in curve(taken, "fl/loss")
    assert not [point for point in taken.points if point.name.startswith("result/")]


def test_what_was_never_told_is_not_logged_as_zero():
    assert curve(picture(seen(watched(told=False)), NOW + 40), "bytes/fl") == {}


def test_rounds_that_were_closed_while_nobody_watched_are_logged_when_they_are_seen():
    view = View(10)
    view.take(RunHistory(RUN, 3, ROWS[:2]), NOW + 50)
    assert curve(picture(seen(view), NOW + 51), "fl/loss") == {1: (NOW + 51, 1.0), 2: (NOW + 51, 0.9)}
    view.take(closed(3), NOW + 60)
    assert curve(picture(seen(view), NOW + 61), "fl/loss")[3] == (
        NOW + 30,
        0.8,
    )  # the cloud's own clock, as it is close


def test_an_edge_that_went_back_to_its_checkpoint_is_logged_again_from_where_it_was():
    view = watched(until=0)
    for after, step in ((100, 40), (106, 90), (112, 60), (118, 95)):
        view.take(report("edge-1", "edge", after, {"overlay.step": step, "overlay.loss": step / 100}), NOW + after)
    steps = list(curve(picture(seen(view), NOW + 120), "overlay_loss/edge-1"))
    assert steps == [0, 40, 90, 95]


VALUE = st.one_of(st.none(), st.booleans(), st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=64), VALUE, max_size=20))
def test_names_are_those_that_every_tool_takes_whatever_the_cloud_says(told):
    view = View(10)
    view.take(Event("cloud", "cloud", 1, NOW, "begun", {"run": RUN, "settings": told}), NOW)
    view.take(RunHistory(RUN, 3, ROWS, {"fl": 0.5} | dict.fromkeys(told, 1.0)), NOW)
    taken = picture(seen(view), NOW)
    results = [point.name for point in taken.points if point.name.startswith("result/")]
    assert taken.settings.keys() >= {"rounds"}
    assert len(results) == len(set(results)) > 0
    for name in (*taken.settings, *(name.removeprefix("result/") for name in results)):
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name)
    assert all(isinstance(value, bool | int | float | str) for value in taken.settings.values())
