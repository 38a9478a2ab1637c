"""What the main loop of a node tells observers, and in which order it ends, over a channel that only keeps what it is given."""

import threading

import pytest

from emo.errors import ExportError
from emo.journal import Journal
from emo.runtime.runner import Node, Runner
from emo.wire.messages import Event, Report, RunHistory, Status

RESULT = RunHistory("r", 1, ((1, 0.5, 0.5, 1.0, 1, 1, 0, 8),), {"fl": 0.5})


class Kept:
    """A channel."""

    def __init__(self):
        self.sent, self.stopped = [], False

    def start(self, listener):
        self.listener = listener

    def publish(self, message):
        assert not self.stopped
        self.sent.append(message)
        return True

    def stop(self, drain_s=5.0):
        del drain_s
        self.stopped = True

    def kinds(self):
        return [type(message).__name__ for message in self.sent]


class Counts(Node):
    """Is done after `ticks`."""

    def __init__(self, ticks, words=dict):
        self._ticks, self.words = ticks, words

    @property
    def done(self):
        return self._ticks <= 0

    def hello(self, online):
        return Status("n", "cloud", online)

    def handle(self, message, now):
        return ()

    def tick(self, now):
        self._ticks -= 1
        return ()


def ran(node, stop=None, finish=tuple, report_s=5.0, journal=None):
    channel, journal = Kept(), journal or Journal()
    runner = Runner(node, {"wan": channel}, journal, report_s=report_s)
    try:
        runner.run(stop or threading.Event(), finish)
    finally:
        assert channel.stopped
        assert channel.sent[-1] == Status("n", "cloud", online=False)
    return channel


def test_the_result_is_told_while_the_node_is_here_and_goodbye_is_the_last_word():
    journal, stop = Journal(), threading.Event()

    def finish():
        journal.event("exporting")
        yield None
        stop.set()  # a signal in the middle of it: it is finished all the same
        journal.event("exported")
        yield RESULT

    channel = ran(Counts(1), stop, finish, journal=journal)
    assert channel.kinds() == ["Report", "Event", "RunHistory", "Event", "Report", "Status"]
    assert [message.name for message in channel.sent if isinstance(message, Event)] == ["exporting", "exported"]
    assert channel.sent[2] == RESULT


def test_what_begins_a_long_finish_is_told_before_it_is_over():
    journal, channel, seen = Journal(), Kept(), []

    def finish():
        journal.event("exporting")
        yield None
        seen.extend(channel.kinds())

    Runner(Counts(0), {"wan": channel}, journal, report_s=5.0).run(threading.Event(), finish)
    assert "Event" in seen


def test_a_finish_that_fails_ends_as_one_that_does_not_and_says_why():
    def finish():
        yield None
        raise ExportError("no room")

    with pytest.raises(ExportError, match="no room"):
        ran(Counts(1), finish=finish)


def test_who_is_stopped_first_finishes_nothing():
    stop = threading.Event()
    stop.set()
    channel = ran(Counts(5), stop, lambda: pytest.fail("must not be asked"))
    assert channel.kinds() == ["Report", "Status"]


def test_a_node_that_cannot_say_how_it_does_runs_on():
    journal, node = Journal(), Counts(3, words=lambda: {}["missing"])
    journal.watch(lambda: {}["missing"])
    assert ran(node, journal=journal).kinds() == ["Status"]
    assert node.done
    assert journal.counts["bugs"] > 0


def test_who_is_to_tell_nothing_tells_nothing():
    journal = Journal()
    journal.event("something")
    assert ran(Counts(2), report_s=None, finish=lambda: [RESULT], journal=journal).kinds() == ["RunHistory", "Status"]


def test_a_report_has_the_words_of_the_node_and_its_journal_s_figures():
    journal = Journal()
    journal.count("steps", 3)
    words = {"run": "run-1", "doing": "waits", "trouble": "no data", "edge": "e", "intervals": "01z."}
    first = ran(Counts(1, words=lambda: words), journal=journal).sent[0]
    assert isinstance(first, Report)
    assert {name: getattr(first, name) for name in words} == words
    assert (first.node, first.role, first.figures) == ("n", "cloud", {"steps": 3})
