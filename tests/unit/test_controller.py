"""Literal Algorithm 1 against the edge's controller and the device's interval table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_app.intervals import IntervalTable
from edge_app.controller import Controller
from emo.errors import ConfigError

CAP, AGE = 8.0, 12
SCORES = st.lists(st.floats(-0.5, 1.0) | st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_size=1, max_size=80)


class Literal:
    """Algorithm 1 of the paper, line by line, with the cap; s = 1 gives the cap."""

    def __init__(self):
        self.interval, self.counter = {}, {}

    def request(self, key, score):
        if key not in self.interval:
            self.interval[key], self.counter[key] = 1.0, 0
            return True
        if self.counter[key] >= self.interval[key]:
            s = max(score, 0.0)
            self.interval[key] = CAP if s >= 1 else min(1 / (1 - s), CAP)
            self.counter[key] = 0
            return True
        self.counter[key] += 1
        return False


@given(SCORES)
def test_controller_is_algorithm_1(scores):
    literal, controller = Literal(), Controller(max_interval=CAP, max_age=AGE)
    seen = False
    for score in scores:
        expected = literal.request(("d", 0), score)
        assert controller.attempt("d", 0) == expected
        if expected:
            interval = controller.received("d", 0, score if seen else 0.0)
            assert interval == literal.interval["d", 0]
            seen = True


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.0, 1.0)), max_size=120))
def test_pair_decides_as_algorithm_1_while_answers_arrive(attempts):
    literal, controller, table = Literal(), Controller(max_interval=CAP, max_age=AGE), IntervalTable(AGE)
    seen = set()
    for version, (batch, score) in enumerate(attempts):
        expected = literal.request(("d", batch), score)
        assert table.allow(batch, version) == expected
        if expected:
            interval = controller.received("d", batch, score if batch in seen else 0.0)
            seen.add(batch)
            assert table.update(batch, version, min(interval, controller.max_age))


# Before an attempt: which answers arrive (0 is the newest one sent), in this order; one never named is
# lost, one named later is late, one named twice is doubled. Then who restarts.
ARRIVING = st.lists(st.integers(0, 3), max_size=3)
RESTART = st.sampled_from(["", "", "", "", "device", "edge"])


@given(st.lists(st.tuples(st.floats(0.0, 1.0), ARRIVING, RESTART), min_size=1, max_size=120))
def test_no_pause_is_longer_than_algorithm_1s_whatever_happens_to_the_answers(attempts):
    """Between two sends the pair skips ceil(i) attempts, as Algorithm 1 after the first of them, when that
    one's own answer has come by the next attempt; else none. One answer that arrives is back in step.
    """
    controller, table = Controller(max_interval=CAP, max_age=AGE), IntervalTable(AGE)
    answers = []
    cached = answered = False
    skipped = pause = 0
    for version, (score, arriving, restart) in enumerate(attempts):
        for back in arriving:
            if back < len(answers):
                table.update(0, *answers[-1 - back])
                answered |= back == 0
        if restart == "device":
            table.reset()
            answered = False
        if restart == "edge":
            controller.reset()
        sent = table.allow(0, version)
        assert sent == (not answered or skipped == pause)
        skipped += 1
        if sent:
            interval = controller.received("d", 0, score if cached else 0.0)
            answers.append((version, interval))
            cached, answered, skipped, pause = True, False, 0, math.ceil(interval)


@given(st.floats(0.0, 1.0), st.lists(ARRIVING, min_size=1, max_size=120))
def test_at_equal_scores_it_has_at_every_moment_sent_as_often_as_algorithm_1_or_more(score, deliveries):
    literal, controller, table = Literal(), Controller(max_interval=CAP, max_age=AGE), IntervalTable(AGE)
    answers, paper = [], 0
    for version, arriving in enumerate(deliveries):
        for back in arriving:
            if back < len(answers):
                table.update(0, *answers[-1 - back])
        paper += literal.request(0, score)
        if table.allow(0, version):
            answers.append((version, controller.received("d", 0, score if answers else 0.0)))
        assert len(answers) >= paper


def test_an_answer_for_an_older_version_is_ignored():
    table = IntervalTable()
    assert table.allow(0, 1)
    assert table.allow(0, 2)  # no answer came: sent again
    assert not table.update(0, 1, 50.0)
    assert table.allow(0, 3)
    assert table.update(0, 3, 1.0)
    assert not table.update(0, 3, 50.0)  # doubled, with another interval
    assert [table.allow(0, v) for v in (4, 5)] == [False, True]


@pytest.mark.parametrize("interval", [math.nan, math.inf, -math.inf, -1.0])
def test_an_interval_that_cannot_be_is_unknown(interval):
    table = IntervalTable()
    table.allow(0, 1)
    assert not table.update(0, 1, interval)
    assert table.allow(0, 2)
    assert not table.update(7, 1, 1.0)  # never sent


def test_both_ends_send_at_the_age_limit():
    table, controller = IntervalTable(max_age=3), Controller(max_interval=1e9, max_age=3)
    assert table.allow(0, 0)
    assert controller.attempt("d", 0)
    assert controller.received("d", 0, 1.0) == 1e9
    assert table.update(0, 0, 1e300)
    assert [table.allow(0, v) for v in range(1, 5)] == [False, False, False, True]
    assert [controller.attempt("d", 0) for _ in range(5)] == [False, False, False, True, True]


def test_the_first_attempts_as_the_paper_has_them():
    controller = Controller()
    assert [controller.attempt("d", 0) for _ in range(3)] == [True, False, True]
    assert controller.received("d", 0, 0.75) == pytest.approx(4.0)
    assert [controller.attempt("d", 0) for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("score", "interval"), [(-3.0, 1.0), (0.0, 1.0), (0.9, 10.0), (1.0, 64.0), (7.0, 64.0), (math.nan, 0.0)]
)
def test_score_to_interval(score, interval):
    controller = Controller()
    assert controller.received("d", 0, score) == pytest.approx(interval)
    assert controller.nan_scores == math.isnan(score)
    assert controller.attempt("d", 0) == math.isnan(score)


def test_the_ends_of_the_range():
    always, once = Controller("always"), Controller("once", max_age=1000)
    assert all(always.attempt("d", 0) for _ in range(9))
    assert always.received("d", 0, 0.99) == 0.0
    assert [once.attempt("d", 0) for _ in range(1000)] == [True] + [False] * 999
    assert math.isfinite(once.received("d", 0, 0.0))


def test_reset_and_table():
    controller = Controller()
    controller.attempt("b", 1)
    controller.attempt("a", 0)
    controller.received("a", 0, 0.5)
    controller.attempt("a", 0)
    rows = controller.table()
    assert [(r.device, r.batch, r.score, r.interval, r.counter) for r in rows] == [
        ("b", 1, 0.0, 1.0, 0),
        ("a", 0, 0.5, 2.0, 1),
    ]
    rows[0].interval = 99.0
    assert controller.table()[0].interval == 1.0
    controller.reset()
    assert controller.table() == []
    assert controller.attempt("a", 0)


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="known: svcca, always, once"):
        Controller("sometimes")
    for bad in ({"max_interval": 0.5}, {"max_interval": math.inf}, {"max_age": 0}):
        with pytest.raises(ConfigError, match="1 or more"):
            Controller(**bad)
