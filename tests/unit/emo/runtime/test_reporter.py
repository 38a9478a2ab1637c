"""What a node tells observers: never too large, nothing kept back for good, never too often, and never at a run's cost."""

import itertools
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo.journal import Journal
from emo.runtime.reporter import Reporter
from emo.wire import frame, topics
from emo.wire.messages import Event, Report

KIB = 1024
LONG = {"run": "r" * 64, "edge": "e" * 64, "doing": '"' * 64, "trouble": "\\" * 200, "intervals": "z" * 64}
texts = st.text(st.characters(), max_size=300)
_value = st.integers(-(10**400), 10**400) | st.floats() | texts | st.none() | st.booleans()
numbers = st.integers(-(10**400), 10**400) | st.floats() | st.integers(0, 2**53)


def reporter(journal, every_s=5.0, about=dict, node="n" * 64):
    return Reporter(node, "device", journal, about, every_s)


def reports(messages):
    return [message for message in messages if isinstance(message, Report)]


def events(messages):
    return [message for message in messages if isinstance(message, Event)]


def on_the_wire(message):
    data = frame.pack(message)
    assert len(data) <= topics.ROUTES[type(message)].limit
    assert frame.unpack(frame.KINDS.index(type(message)), data) == message
    return data


# -- reports


@settings(max_examples=30)
@given(
    st.dictionaries(texts, numbers, max_size=90),
    st.fixed_dictionaries({}, optional={"doing": texts, "trouble": texts}),
)
def test_whatever_a_journal_holds_a_report_is_valid_and_fits(figures, words):
    journal = Journal()
    journal.watch(lambda: figures)
    for now in range(0, 20, 5):
        for message in reporter(journal, about=lambda: LONG | words).due(now):
            assert len(on_the_wire(message)) <= KIB
    assert "bugs" not in journal.counts


def test_a_report_uses_its_kilobyte_and_no_more():
    journal = Journal()
    for number in range(200):
        journal.count(f"some.counter.{number:03}", 2**53 - number)
    [report] = reporter(journal, about=lambda: {"doing": "waits"}).due(0)
    assert KIB - 50 < len(on_the_wire(report)) <= KIB


@given(st.integers(1, 50), st.integers(0, 50), st.booleans())
@settings(max_examples=8)
def test_every_figure_is_told_in_so_many_reports_and_again_to_who_comes_late(count, moving, long):
    """Also while more figures move than a report holds."""
    journal, values = Journal(), {f"{'x' * 60 * long}{number:03}": 0 for number in range(count)}
    journal.watch(lambda: values)
    speaker = reporter(journal, about=lambda: LONG if long else {})
    known: dict[str, float] = {}
    for turn in range(2):
        heard = set()
        for step in range(2 * count + 2):
            for name in list(values)[:moving]:
                values[name] += 1
            [report] = reports(speaker.due(1000 * turn * count + 100.0 * step))
            heard |= report.figures.keys()
            known |= report.figures
        assert heard == values.keys()
    assert all(known[name] == values[name] for name in list(values)[moving:])


def test_what_has_changed_comes_first():
    journal, values = Journal(), {f"figure.{number:03}": 0 for number in range(100)}
    journal.watch(lambda: values)
    speaker = reporter(journal)
    for step in range(10):
        list(speaker.due(100.0 * step))
    values["figure.042"] = values["figure.099"] = 7
    [report] = speaker.due(1100)
    assert list(report.figures)[:2] == ["figure.042", "figure.099"]
    assert len(report.figures) > 20


def test_reports_come_no_closer_than_asked_and_once_a_minute_where_nothing_happens():
    journal, asked = Journal(), []
    journal.watch(lambda: asked.append(0) or {"machine.cpu_s": len(asked), "steps": 1})
    speaker, at = reporter(journal, 7.0), []
    for tick in range(20 * 200):  # of 50 ms, as the runner's
        for report in reports(speaker.due(tick / 20)):
            at.append(tick / 20)
            journal.count("sent.Report")  # its own going out is no news
            journal.count("sent_bytes.Report", len(frame.pack(report)))
    assert at == [0, 63, 126, 189]
    assert len(asked) <= 200 / 7 + 1  # nor is it asked for at each tick
    moving = []
    for tick in range(20 * 60):
        journal.count("work")
        moving += [tick / 20 for _ in reports(speaker.due(200 + tick / 20))]
    assert min(later - one for one, later in itertools.pairwise(moving)) >= 7
    assert len(moving) >= 8


def test_a_word_that_changes_is_told_at_the_next_look_and_a_gauge_that_is_gone_no_more():
    words, values = {"doing": "waits"}, {"a": 1, "b": 2}
    journal = Journal()
    journal.watch(lambda: values)
    speaker = reporter(journal, about=lambda: words)
    assert [report.figures for report in speaker.due(0)] == [{"a": 1, "b": 2}]
    words["doing"] = "trains"
    del values["a"]
    assert [(report.doing, report.figures) for report in speaker.due(5)] == [("trains", {"b": 2})]


def test_texts_of_others_are_cut_and_made_printable():
    about = {"doing": "a\x1b[31m\n" + "b" * 100, "trouble": "\u202e" + "\U0001f600" * 300}
    [report] = reporter(Journal(), about=lambda: about | {"run": "r" * 64}).due(0)
    assert report.doing.startswith("a?[31m?b")
    assert len(report.doing) == 64
    assert report.trouble.isprintable()
    on_the_wire(report)


@pytest.mark.parametrize("wrong", [{"doing": None, "surprise": "x"}, {"run": "not an id"}, {"intervals": "A"}])
def test_a_node_that_cannot_say_how_it_does_goes_on(wrong, caplog):
    journal = Journal()
    speaker = reporter(journal, about=lambda: wrong)
    with caplog.at_level(logging.ERROR, "emo"):
        for step in range(40):
            assert not list(speaker.due(0.5 * step))
    assert journal.counts["bugs"] == 4  # once a look
    assert len(caplog.records) == 1


def test_a_gauge_that_raises_or_is_no_number_costs_nothing_but_itself(caplog):
    journal = Journal()

    def broken():
        raise RuntimeError("dictionary changed size during iteration")

    journal.watch(broken)
    journal.watch(lambda: {"good": 1, "text": "x", "none": None, "nan": float("nan"), "huge": 10**400})
    with caplog.at_level(logging.ERROR, "emo"):
        [report] = reporter(journal).due(0)
        journal.snapshot()
    assert report.figures == {"good": 1, "bugs": 1}
    assert [record.getMessage() for record in caplog.records] == ["a gauge cannot be read; it is left out"]


# -- events


def test_events_and_problems_are_told_in_order_at_once_and_numbered():
    journal = Journal()  # without a folder, too
    speaker = reporter(journal)
    journal.event("joined", run="r", device="d")
    journal.problem("frames.refused", "a frame was cut")
    journal.problem("frames.refused", "a frame was cut")  # not logged again, so not told again
    told = events(speaker.due(0))
    assert [(event.number, event.name, event.fields) for event in told] == [
        (1, "joined", {"run": "r", "device": "d"}),
        (2, "problem", {"problem": "frames.refused", "text": "a frame was cut", "count": 1}),
    ]
    assert all(event.time > 1e9 for event in told)
    journal.event("left")
    assert [event.number for event in events(speaker.due(0.05))] == [3]


def test_what_is_written_is_what_is_told(tmp_path):
    journal = Journal(tmp_path)
    speaker = reporter(journal)
    journal.event("round", loss=float("nan"), members={"a": 3}, left_out=[], text="two\nlines")
    [event] = events(speaker.due(0))
    written = json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8"))
    assert written == {"time": event.time, "event": event.name, **event.fields}


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text(st.characters(), min_size=1, max_size=70),
        _value
        | st.lists(_value | st.lists(_value, max_size=2), max_size=3)
        | st.dictionaries(texts, _value, max_size=3),
        max_size=6,
    )
)
def test_whatever_an_event_holds_it_is_valid_and_fits_or_is_counted(fields):
    journal = Journal()
    speaker = reporter(journal)
    speaker._happened({"time": 1.0, "event": "x"} | fields)
    told = events(speaker.due(0))
    for event in told:
        on_the_wire(event)
    assert len(told) + journal.counts["events.untold"] + journal.counts["bugs"] == 1


def test_a_round_of_a_thousand_devices_is_told_in_part_and_long_texts_are_cut():
    journal = Journal()
    speaker = reporter(journal)
    journal.event("round", round=3, members={f"device-{n:04}": n for n in range(1000)}, loss=0.5)
    journal.event("lists", names=["x" * 400] * 2000)
    journal.event("nested", odd={"a": {"b": 1}}, many=[[1, 2], [3]])
    journal.event("texts", **{f"text{n}": "\u00e9" * 500 for n in range(20)})
    told = {event.name: event.fields for event in events(speaker.due(0))}
    assert told["round"]["round"] == 3
    assert len(told["round"]["members"]) == 32
    assert told["lists"] == {"names": ["x" * 400] * 32}
    assert told["nested"] == {"odd": "1 of them", "many": "2 of them"}
    assert told["texts"]["text7"] == "\u00e9" * 27 + "..."
    assert not journal.counts["events.untold"]


def test_a_flood_is_bounded_while_nobody_listens_and_at_the_end():
    journal = Journal()
    speaker = reporter(journal)
    for number in range(10_000):
        journal.event("again", number=number)
    assert len(speaker._events) == 200
    assert journal.counts["events.untold"] == 9800
    first = list(speaker.due(0))
    assert len(events(first)) == 16  # so many at once, however many wait
    assert len(reports(first)) == 1
    last = list(speaker.due(1, last=True))
    assert [type(message) for message in last] == [Event] * 50 + [Report]  # early: the node ends
    assert journal.counts["events.untold"] == 10_000 - 16 - 50


def test_the_last_report_is_of_what_the_node_has_at_its_end():
    journal = Journal()
    speaker = reporter(journal)
    list(speaker.due(0))
    journal.count("work", 3)
    assert not list(speaker.due(1))
    assert [report.figures for report in speaker.due(1, last=True)] == [{"work": 3}]
