"""The edge's controller: Algorithm 1 to the letter, and what the paper leaves open."""

import math

import pytest
from algorithm1 import Literal
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from device_app.intervals import IntervalTable
from edge_app.intervals.controller import Controller, ControllerState, Row
from edge_app.intervals.scoring import SCORES
from emo.config import Controller as Settings
from emo.config import EdgeConfig
from emo.config_file import parse
from emo.errors import ConfigError


class Pair:
    """A controller and a device's table, which has every answer at once."""

    def __init__(self, *policy, **bounds):
        self.table, self.controller, self.version = IntervalTable({}), Controller(*policy, **bounds), 0

    def attempt(self, batch=0):
        self.version += 1
        return self.table.allow(batch, self.version)

    def received(self, score, change=0.0, batch=0):
        interval = self.controller.received("d", batch, score, change, self.version)
        assert self.table.update(batch, self.version, interval)
        return interval


any_score = st.floats(-0.5, 1.0) | st.sampled_from([0.0, 0.5, 0.9, 1.0])


@given(
    st.sampled_from(["svcca", "cka"]),
    st.sampled_from([1.0, 2.5, 8.0]),
    st.sampled_from([1, 5, 12]),
    st.lists(st.tuples(st.integers(0, 2), any_score), min_size=1, max_size=80),
)
def test_it_is_algorithm_1(policy, cap, age, attempts):
    literal, pair = Literal(cap, age), Pair(policy, max_interval=cap, max_age=age)
    for batch, score in attempts:
        expected = literal.request(batch, score)
        assert pair.attempt(batch) == expected
        if expected:
            assert pair.received(literal.score[batch], batch=batch) == literal.pause(batch)


def test_the_first_attempts_as_the_paper_has_them():
    pair = Pair()
    assert pair.attempt()
    assert pair.received(0.0) == 1.0
    assert [pair.attempt() for _ in range(2)] == [False, True]
    assert pair.received(0.75) == pytest.approx(4.0)
    assert [pair.attempt() for _ in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(("score", "interval"), [(-3.0, 1.0), (0.0, 1.0), (0.9, 10.0), (1.0, 64.0), (7.0, 64.0)])
def test_score_to_interval(score, interval):
    controller = Controller(max_interval=64.0)
    assert controller.received("d", 0, score) == pytest.approx(interval)
    assert controller.state.nan_scores == 0


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_says_nothing_sends_at_the_next_attempt_and_is_counted(score):
    controller = Controller()
    assert controller.received("d", 0, score) == 0.0
    assert controller.state.nan_scores == 1


# -- the relative change


@pytest.mark.parametrize(
    ("change", "interval"),
    [(0.0, 64.0), (0.25, 64.0), (0.5, 16.0), (1.0, 4.0), (2.0, 1.0), (4.0, 0.25), (math.inf, 0.0)],
)
def test_a_rotation_that_the_score_cannot_see_is_bounded_by_the_change(change, interval):
    controller = Controller(max_interval=64.0, max_change=2.0)
    assert controller.received("d", 0, 1.0, change=change) == interval
    assert controller.state.guarded == (interval < 64)


@given(st.sampled_from(["svcca", "cka"]), st.floats(), st.floats(), st.floats(1e-9, 1e9))
@example("svcca", 1.0, 5e-324, 1e9)
@example("svcca", 1.0, 1e-200, 2.0)
@example("svcca", 1.0, -1.0, 2.0)
def test_any_pair_of_floats_gives_an_interval_that_can_be_sent(policy, score, change, limit):
    controller = Controller(policy, max_change=limit)
    plain = Controller(policy).received("d", 0, score)
    assert 0.0 <= controller.received("d", 0, score, change) <= plain <= 64.0  # the change never makes it longer


def test_the_change_is_silent_where_the_score_says_less():
    controller = Controller()
    assert controller.received("d", 0, 0.5, change=0.9) == 2.0
    assert controller.state.guarded == 0


# -- the other policies


def test_always():
    assert Controller("always").received("d", 0, 0.99) == 0.0


@pytest.mark.parametrize("n", [1, 4, 10])
def test_fixed_skips_n_attempts_between_two_sends(n):
    pair = Pair(f"fixed({n})")
    sent = []
    for attempt in range(5 * (n + 1)):
        if pair.attempt():
            sent.append(attempt)
            assert pair.received(math.nan, math.inf) == n
    assert sent == list(range(0, 5 * (n + 1), n + 1))
    state = pair.controller.state
    assert (state.nan_scores, state.guarded) == (0, 0)  # it asks for neither


def test_once_and_the_age_limit_that_binds_every_policy():
    once = Pair("once", max_age=1000)
    assert once.attempt()
    assert once.received(0.0) == 1000
    assert [once.attempt() for _ in range(1001)] == [False] * 1000 + [True]
    for policy in ("fixed(50)", "svcca", "cka"):
        assert Controller(policy, max_age=3).received("d", 0, 1.0) == 3


# -- the log


def test_the_table():
    controller = Controller()
    controller.received("b", 1, 0.0)
    controller.received("a", 0, 0.5, version=7)
    assert controller.row("b", 1) == Row("b", 1, 0, 0.0, 1.0, 0)
    assert controller.row("a", 0) == Row("a", 0, 7, 0.5, 2.0, 0)
    assert controller.row("a", 1) is controller.row("c", 0) is None
    assert (controller.batches("a"), controller.batches("c")) == (1, 0)


def test_a_restart_goes_on_from_the_rows():
    controller, again = Controller(), Controller()
    controller.received("a", 0, 0.75)
    again.state = ControllerState.of([controller.row("a", 0)])
    assert again.state == controller.state


@pytest.mark.parametrize(
    "row",
    [("a/b", 0, 1, 0.5, 1.0), ("a", -1, 1, 0.5, 1.0), ("a", 0, 1, 0.5, -1.0), ("a", 0, 1, 0.5, math.inf)],
)
def test_a_state_of_a_file_is_checked(row):
    good = ControllerState.of([Row("a", 0, 1, math.nan, 1.0)])
    assert str(ControllerState.model_validate(good.model_dump())) == str(good)
    with pytest.raises(ValidationError):
        ControllerState.model_validate(ControllerState.of([Row(*row)]).model_dump())


# -- settings

KNOWN = ["always", "once", "svcca", "cka", "fixed(1)", "fixed(4)", "fixed(999999999)"]
UNKNOWN = ["sometimes", "", "SVCCA", "fixed", "fixed()", "fixed(0)", "fixed(-1)", "fixed(1.5)", "fixed(04)"]
UNKNOWN += ["fixed(4)\n", "fixed(4) ", "once(3)", "fixed(9999999999)", "fixed(٤)"]


@pytest.mark.parametrize("policy", KNOWN)
def test_a_known_policy_is_one_to_the_configuration_and_the_controller(policy):
    assert 0 <= Controller(**Settings(policy=policy).model_dump()).received("d", 0, 0.5) <= 128


def test_the_policies_that_ask_for_a_score_are_those_that_have_one():
    moved = {p for p in KNOWN if Controller(p).received("d", 0, 0.0) != Controller(p).received("d", 0, 0.9)}
    assert moved == set(SCORES)


@pytest.mark.parametrize("policy", UNKNOWN)
def test_an_unknown_policy_is_named_with_those_there_are(policy):
    with pytest.raises(ConfigError, match=r"known: always, fixed\(n\), once, svcca, cka"):
        Controller(policy)
    values = {"id": "e", "devices": [], "controller": {"policy": policy}}
    with pytest.raises(ConfigError, match=r"edge.yaml: controller.policy: .* as in fixed\(4\)"):
        parse(EdgeConfig, values, "edge.yaml", {})


@pytest.mark.parametrize(
    "bad",
    [
        {"max_interval": 0.5},
        {"max_interval": math.inf},
        {"max_interval": math.nan},
        {"max_age": 0},
        {"max_change": 0.0},
        {"max_change": -1.0},
        {"max_change": math.nan},
    ],
)
def test_bounds_that_cannot_be_are_named(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))}.*(1 or more|above 0)"):
        Controller(**bad)
    with pytest.raises(ValueError, match=next(iter(bad))):
        Settings(**bad)
