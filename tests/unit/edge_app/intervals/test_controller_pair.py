"""The pair: the edge's controller, the device's interval table, and a network between them that may do anything.

What "only ever sends more" means: a device skips only where Algorithm 1 would, for the version sent last. That
is, whenever it skips a batch, the edge has received that very version, and fewer attempts were skipped since
than the interval that the edge computed for it. So between two sends of a batch there are never more skips than
Algorithm 1 has after the first of them; where an answer has not come by the next attempt, there is none.
"""

import math

from algorithm1 import Literal
from hypothesis import given
from hypothesis import strategies as st

from device_app.intervals import IntervalTable
from edge_app.intervals.controller import Controller, ControllerState

CAP, AGE = 8.0, 6
scores = st.floats(0.0, 1.0) | st.sampled_from([0.5, 0.9, 1.0])


class World:
    """One batch of one device. Versions count attempts; what is on its way lies in `batches` and `answers`."""

    def __init__(self, policy="svcca"):
        self.policy = policy
        self.device, self.edge = IntervalTable({}), Controller(policy, CAP, AGE)
        self.held = None  # the version in the edge's cache
        self.batches, self.answers = [], []  # all ever sent: (version, score), (version, interval)
        self.given = {}  # version -> the longest interval that the edge gave for it
        self.version = self.skipped = 0
        self.last = None  # the version sent last

    def attempt(self, score):
        """True: sent, as a batch that compares with `score`. Checks that a skip is one of Algorithm 1's."""
        self.version += 1
        if self.device.allow(0, self.version):
            self.batches.append((self.version, score))
            self.last, self.skipped = self.version, 0
            return True
        assert self.last in self.given  # the edge has had the version sent last,
        assert self.skipped < self.given[self.last]  # and its c < i
        self.skipped += 1
        return False

    def deliver_batch(self, back=0):
        """As EdgeNode does it: a newer one is scored and stored, the stored one is answered again."""
        version, score = self.batches[-1 - back]
        if self.held is None or self.held < version:
            self.edge.received("d", 0, score if self.held is not None else 0.0, version=version)
            self.held = version
        row = self.edge.row("d", 0)
        if row is not None and row.version == version:
            self.answers.append((version, row.interval))
            self.given[version] = max(row.interval, self.given.get(version, 0.0))

    def deliver_answer(self, back=0):
        self.device.update(0, *self.answers[-1 - back])

    def restart(self, who):
        if who == "device":
            self.device = IntervalTable({})
            self.last = None
        if who.startswith("edge"):
            rows = self.edge.state.rows["d"].values() if who == "edge" and self.edge.state.rows else []
            self.edge = Controller(self.policy, CAP, AGE)
            self.edge.state = ControllerState.of(rows)
        if who == "edge without cache":
            self.held = None


# Before each attempt: which batches and which answers arrive, in this order (0 is the newest on its way). One
# that is never named is lost, one named late is late, twice doubled, before an older one reordered.
arriving = st.lists(st.tuples(st.sampled_from(["batch", "answer"]), st.integers(0, 3)), max_size=5)
restarts = st.sampled_from([""] * 8 + ["device", "edge", "edge without table", "edge without cache"])
chaos = st.lists(st.tuples(scores, arriving, restarts), max_size=80)


def live_through(world, steps):
    for score, arrivals, restart in steps:
        world.restart(restart)
        world.attempt(score)
        for what, back in arrivals:
            if what == "batch" and back < len(world.batches):
                world.deliver_batch(back)
            if what == "answer" and back < len(world.answers):
                world.deliver_answer(back)


@given(st.sampled_from(["svcca", "cka"]), st.lists(st.tuples(st.integers(0, 3), scores), max_size=120))
def test_it_decides_as_algorithm_1_while_answers_arrive(policy, attempts):
    worlds, literal = [World(policy) for _ in range(4)], Literal(CAP, AGE)
    for batch, score in attempts:
        sent = worlds[batch].attempt(score)
        assert sent == literal.request(batch, score)
        if sent:
            worlds[batch].deliver_batch()
            worlds[batch].deliver_answer()


@given(st.sampled_from(["svcca", "cka", "fixed(3)", "once", "always"]), chaos)
def test_it_skips_only_where_algorithm_1_would_whatever_happens(policy, steps):
    live_through(World(policy), steps)  # World.attempt checks


@given(chaos, st.lists(scores, min_size=20, max_size=40))
def test_after_anything_it_is_back_in_step_with_the_first_send_that_is_answered(steps, attempts):
    world, literal = World(), Literal(CAP, AGE)
    live_through(world, steps)
    waited = None
    for number, score in enumerate(attempts):
        sent = world.attempt(score)
        if waited is not None:
            assert sent == literal.request(0, score)
        if sent:
            world.deliver_batch()
            world.deliver_answer()
            if waited is None:
                waited = number
                literal.cached.add(0)
                literal.transfer(0, world.edge.row("d", 0).score)
    assert waited is not None
    assert waited <= min(CAP, AGE)


@given(scores, st.lists(st.tuples(arriving, st.booleans()), min_size=1, max_size=120))
def test_at_equal_scores_it_has_at_every_moment_sent_as_often_as_algorithm_1_or_more(score, steps):
    world, literal, paper = World(), Literal(CAP, AGE), 0
    for arrivals, device_restarts in steps:
        paper += literal.request(0, score)
        live_through(world, [(score, arrivals, "device" if device_restarts else "")])
        assert len(world.batches) >= paper


def test_a_doubled_batch_is_answered_again():
    """The first answer was lost, and the broker delivers the batch twice."""
    world = World()
    world.attempt(0.0)
    world.deliver_batch()
    world.deliver_batch()
    world.deliver_answer()
    assert world.answers == [(1, 1.0), (1, 1.0)]
    assert [world.attempt(0.0) for _ in range(2)] == [False, True]


# -- the device's half


def test_an_answer_for_an_older_version_is_ignored():
    table = IntervalTable({})
    assert table.allow(0, 1)
    assert table.allow(0, 2)  # no answer came: sent again
    assert not table.update(0, 1, 50.0)
    assert table.allow(0, 3)
    assert table.update(0, 3, 1.0)
    assert not table.update(0, 3, 50.0)  # doubled, with another interval
    assert [table.allow(0, v) for v in (4, 5)] == [False, True]


def test_an_interval_that_cannot_be_is_unknown():
    for interval in (math.nan, math.inf, -math.inf, -1.0):
        table = IntervalTable({})
        table.allow(0, 1)
        assert not table.update(0, 1, interval)
        assert table.allow(0, 2)
        assert not table.update(7, 1, 1.0)  # never sent


def test_the_edges_age_limit_is_the_devices():
    table, controller = IntervalTable({}), Controller(max_interval=1e9, max_age=200)
    assert table.allow(0, 0)
    assert table.update(0, 0, controller.received("d", 0, 1.0))
    assert [table.allow(0, v) for v in range(1, 202)].index(True) == 200


def test_the_signs_of_a_report_are_mean_intervals_a_digit_a_batch_or_for_several_in_a_row():
    table = IntervalTable({})
    assert table.signs(64) == ""
    answers = {0: 0.0, 1: 9.6, 3: 35.2, 4: 1e308, 5: 1e308}
    for batch in range(7):
        table.allow(batch, 1)
        if batch in answers:
            assert table.update(batch, 1, answers[batch])
    assert table.signs(64) == "0a.zzz."
    assert table.signs(2) == "fz"  # 0, 9.6 and 35; two of 1e308 are no infinity
    for batch in range(1000):
        table.allow(batch, 2)
    assert table.signs(64) == "t" + "." * 62  # 16 a sign
