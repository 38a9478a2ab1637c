"""The schedule of `emo chaos`: repeatable, fair, and never two faults on one target at a time."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from testbed.chaos.schedule import ACTS, KINDS, ON_LINKS, Fault, Targets, acts, schedule

TARGETS = Targets(
    ["broker", "cloud", "edge-1", "host-1"],
    ["cloud", "edge-1", "host-1"],
    ["cloud-wan", "edge-1-wan", "edge-1-lan"],
)


def test_a_seed_repeats_its_schedule_and_another_does_not():
    assert schedule(7, 50, 20.0, TARGETS) == schedule(7, 50, 20.0, TARGETS)
    assert schedule(7, 50, 20.0, TARGETS) != schedule(8, 50, 20.0, TARGETS)
    # The same on every machine: seeds that are written down stay what they were.
    assert schedule(1, 3, 3.0, TARGETS)[0] == Fault(0.042, "stop", "host-1", 0.599)


@given(st.integers(0, 2**32), st.integers(0, 200), st.floats(0.1, 100))
def test_every_target_has_one_fault_at_a_time_of_a_kind_that_it_can_have(seed, faults, over):
    found = schedule(seed, faults, over, TARGETS)
    assert len(found) == faults
    assert found == sorted(found, key=lambda fault: fault.at)
    until = dict.fromkeys([*TARGETS.processes, *TARGETS.links], 0.0)
    for fault in found:
        assert fault.target in TARGETS.of(fault.kind)
        assert (fault.target in TARGETS.links) == (fault.kind in ON_LINKS)
        assert fault.at >= until[fault.target]
        assert fault.lasts >= 0
        until[fault.target] = fault.at + fault.lasts


def test_fifty_faults_have_every_kind_and_target():
    found = schedule(0, 50, 25.0, TARGETS)
    assert {fault.kind for fault in found} == set(KINDS)
    assert {fault.target for fault in found} == {*TARGETS.processes, *TARGETS.links}
    kinds = Counter(fault.kind for fault in schedule(0, 1000, 500.0, TARGETS))
    assert kinds["kill"] == max(kinds.values())
    assert min(kinds.values()) >= 70


def test_what_has_no_target_does_not_come_up():
    found = schedule(0, 40, 20.0, Targets(["broker"], [], []))
    assert {fault.kind for fault in found} == {"kill", "restart", "stop"}


@given(st.integers(0, 2**32), st.integers(0, 100), st.floats(0.1, 100))
def test_hostile_acts_repeat_and_each_comes_up_before_any_twice(seed, count, over):
    found = acts(seed, count, over)
    assert found == acts(seed, count, over) == sorted(found, key=lambda act: act[0])
    assert len(found) == count
    assert all(0 <= at <= over + 0.001 and 0 <= variant <= 1 for at, _, variant in found)
    times = Counter(act for _, act, _ in found)
    assert max(times.values(), default=0) - min((times[act] for act in ACTS), default=0) <= 1
