"""The virtual clock: who asks first is served first, nothing is lost, and all time is accounted for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.timing.clock import Arrive, Gate, Resource, Until, Use, run

amounts = st.lists(st.floats(0, 1e6), max_size=5)


def use(resource, *amounts, what="work"):
    for amount in amounts:
        yield Use(resource, amount, what)


@given(amounts, st.floats(0.1, 1e6), st.floats(0, 10))
def test_a_single_process_takes_the_sum_of_its_stages(stages, rate, latency):
    (trace,) = run([use(Resource(rate, latency), *stages)])
    assert trace.end == pytest.approx(sum(stages) / rate + latency * len(stages))
    assert trace.parts["work queue"] == 0


@given(st.lists(amounts, min_size=1, max_size=6), st.floats(0.1, 1e6))
def test_work_is_conserved_and_time_accounted_for(processes, rate):
    resource = Resource(rate)
    traces = run([use(resource, *stages) for stages in processes])
    total = sum(map(sum, processes)) / rate
    assert resource.busy == pytest.approx(total)
    assert max(trace.end for trace in traces) == pytest.approx(total)  # it is never idle while one waits
    for trace, stages in zip(traces, processes, strict=True):
        assert sum(trace.parts.values()) == pytest.approx(trace.end)
        assert trace.parts["work"] == pytest.approx(sum(stages) / rate, rel=1e-6, abs=1e-6)


@given(st.integers(1, 6))
def test_equals_are_served_in_their_order(count):
    resource = Resource(1.0)
    assert [trace.end for trace in run([use(resource, 1.0) for _ in range(count)])] == list(range(1, count + 1))


@given(st.lists(amounts, min_size=1, max_size=5))
def test_with_resources_of_their_own_nobody_waits(processes):
    traces = run([use(Resource(2.0), *stages) for stages in processes])
    assert [trace.end for trace in traces] == pytest.approx([sum(stages) / 2 for stages in processes])


def test_two_take_turns_on_one_resource():
    resource = Resource(1.0)
    first, second = run([use(resource, 2.0, 2.0), use(resource, 1.0, 1.0)])
    # 0-2 first, 2-3 second, 3-5 first, 5-6 second
    assert (first.end, second.end) == (5.0, 6.0)
    assert first.parts == {"work": 4.0, "work queue": 1.0}
    assert second.parts == {"work": 2.0, "work queue": 4.0}


def test_latency_holds_up_the_process_but_not_the_next():
    link = Resource(1.0, latency=10.0)
    assert [trace.end for trace in run([use(link, 1.0), use(link, 1.0)])] == [11.0, 12.0]


def test_what_runs_beside_holds_up_nothing_but_fills_its_resource():
    link, processor = Resource(1.0), Resource(1.0)

    def process():
        for _ in range(3):
            yield Use(processor, 1.0, "compute")
            yield Use(link, 5.0, "send", beside=True)

    (trace,) = run([process()])
    assert (trace.end, trace.beside) == (3.0, 16.0)  # 1 + 3 x 5
    assert trace.parts["compute"] == 3.0
    assert "send" not in trace.parts


def test_a_gate_opens_with_the_last_that_arrives():
    gate, processor = Gate(2), Resource(1.0)

    def worker(seconds):
        yield Use(Resource(1.0), seconds, "work")
        yield Arrive(gate)

    def waiter():
        yield Until(gate, "workers")
        yield Use(processor, 1.0, "own")

    *_, trace = run([worker(3.0), worker(7.0), waiter()])
    assert trace.end == 8.0
    assert trace.parts == {"workers": 7.0, "own queue": 0.0, "own": 1.0}


def test_an_open_gate_holds_up_nobody():
    def process():
        yield Until(Gate(0), "nothing")

    assert run([process()])[0].end == 0


def test_a_gate_that_nobody_opens_is_an_error():
    def process():
        yield Until(Gate(1), "nothing")

    with pytest.raises(RuntimeError, match="1 processes wait"):
        run([process()])
