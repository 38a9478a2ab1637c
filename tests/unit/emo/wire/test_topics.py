"""The table of topics: complete, safe against ids, and each message falls under its own filter only."""

import pytest
from hypothesis import given
from samples import any_message, examples

from emo.errors import TopicError
from emo.wire import frame, messages, topics
from emo.wire.receiver import matches

BAD_IDS = ["", "/", "+", "#", "a/b", "a+", "a#", "$SYS", "a\n", "\n", "a\0", "ä", "a" * 65, ".", "-a", "a b"]


def test_the_table_covers_every_kind():
    assert set(topics.ROUTES) == set(frame.KINDS)
    for kind, route in topics.ROUTES.items():
        assert {*topics._fields(route), *route.key} <= set(kind.__dataclass_fields__)
        assert route.topic.startswith(f"{route.link}/")


def test_what_may_be_lost_is_what_the_run_can_do_without():
    told = {messages.Report, messages.Event, messages.RunHistory}
    lossy = {messages.ActivationBatch, messages.TapReport, messages.Interval, *told}
    assert {kind for kind, route in topics.ROUTES.items() if route.droppable} == lossy


def test_a_newer_message_replaces_the_older_of_the_same_thing_only():
    ids = {"node", "member", "device", "edge", "batch", "number"}
    for message in examples():
        other = {"edge"} if isinstance(message, messages.Report) else set()  # a device's: no part of its name
        same = {name: value for name, value in vars(message).items() if name in ids - other}
        assert sorted(topics.key(message)[1:]) == sorted(str(value) for value in same.values())


def test_numbers_on_the_wire_never_change():
    # A number is an index of KINDS: append only, or devices of an older version misread.
    assert [kind.__name__ for kind in frame.KINDS] == [
        "Status",
        "GlobalModel",
        "Update",
        "Refused",
        "RunState",
        "OverlayWeights",
        "ActivationBatch",
        "TapReport",
        "Interval",
        "CannotTrain",
        "Unfit",
        "GlobalHead",
        "Report",
        "Event",
        "RunHistory",
    ]


@given(any_message)
def test_a_message_falls_under_its_own_filter_and_no_other(message):
    for index in (0, 7):
        name = topics.topic("emo", message, index)
        assert [kind for kind in frame.KINDS if matches(topics.subscription("emo", kind), name)] == [type(message)]
        assert not matches(topics.subscription("other", type(message)), name)
        assert not {"+", "#"} & set(name)


def test_a_filter_can_name_some_of_the_ids():
    kind = messages.ActivationBatch
    assert topics.subscription("emo", kind) == "emo/lan/+/activation/+"
    assert topics.subscription("emo", kind, edge="e1") == "emo/lan/e1/activation/+"
    assert topics.subscription("emo", kind, edge="e1", device="d1") == "emo/lan/e1/activation/d1"
    assert topics.subscription("emo", messages.GlobalModel) == "emo/wan/global/+"


def test_each_role_subscribes_to_what_it_reads():
    assert topics.filters("emo", "cloud", "wan") == [
        "emo/wan/status/+/+",
        "emo/wan/update/+",
        "emo/wan/overlay/+",
        "emo/wan/cannot-train/+",
    ]
    assert topics.filters("emo", "edge", "wan", member="e1") == [
        "emo/wan/state/+",
        "emo/wan/head/+",
        "emo/wan/unfit/e1",
    ]
    assert topics.filters("r", "edge", "lan", edge="e1") == ["r/lan/e1/activation/+", "r/lan/e1/report/+"]
    assert topics.filters("emo", "device", "wan", device="d1", member="d1") == [
        "emo/wan/global/+",
        "emo/wan/refused/d1",
        "emo/wan/unfit/d1",
    ]
    assert topics.filters("emo", "observer", "wan") == [
        "emo/wan/status/+/+",
        "emo/wan/state/+",
        "emo/wan/report/+/+",
        "emo/wan/event/+",
        "emo/wan/history/+",
    ]
    assert topics.filters("emo", "observer", "lan") == []
    assert topics.filters("emo", "device", "lan", edge="e1", device="d1") == ["emo/lan/e1/interval/d1"]


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_that_may_not_stand_in_a_topic(bad):
    with pytest.raises(TopicError, match="may not stand in a topic"):
        topics.subscription("emo", messages.Update, device=bad)
    update = next(message for message in examples() if isinstance(message, messages.Update))
    object.__setattr__(update, "device", bad)  # as if the check of messages.py were not there
    with pytest.raises(TopicError):
        topics.topic("emo", update)


@pytest.mark.parametrize("message", examples(), ids=lambda message: type(message).__name__)
def test_a_message_must_come_by_its_own_topic(message):
    own = topics.topic("emo", message, 2)
    topics.check("emo", own, message, 2)
    for wrong in (own + "x", own.replace("emo/", "emu/", 1), own + "/0", own.rpartition("/")[0], ""):
        with pytest.raises(TopicError):
            topics.check("emo", wrong, message, 2)
    if topics.ROUTES[type(message)].retain:
        with pytest.raises(TopicError):
            topics.check("emo", own, message, 3)


def test_a_device_cannot_speak_for_another():
    update = next(message for message in examples() if isinstance(message, messages.Update))
    with pytest.raises(TopicError, match="dev-1 came by emo/wan/update/dev-2"):
        topics.check("emo", "emo/wan/update/dev-2", update, 0)


def test_a_filter_with_an_unknown_field_is_refused():
    with pytest.raises(TopicError):
        topics.subscription("emo", messages.Update, edge="e1")
