"""What an observer takes from a node that lies or floods: what fits is passed on as it is, the rest is counted, and nothing
raises, fills memory or keeps the broker waiting."""

import json
import struct
import zlib

import pytest

from emo.journal import Journal
from emo.runtime.incoming import Incoming
from emo.wire import frame, topics
from emo.wire.messages import Event, Report, RunHistory, Status

NUMBER = iter(range(1, 10**9))
WAN = "emo/wan"


class Observer:
    def __init__(self):
        self.journal, self.acknowledged = Journal(), []
        self.incoming = Incoming("watch", "emo", self.journal, None)

    def hear(self, topic, data, retained=False):
        token = next(NUMBER)
        tokens = self.incoming.packet(topic, data, token, 0.0, retained)
        assert tokens is not None
        self.acknowledged += tokens
        return token

    def got(self):
        found = []
        while (item := self.incoming._inbox.get(0)) is not None:
            found.append(item[0])
            self.acknowledged += item[1]
        return found


@pytest.fixture
def observer():
    made = Observer()
    yield made
    assert "bugs" not in made.journal.counts


def frames(kind, header, chunk=1 << 20):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    payload = struct.pack("<I", len(data)) + data
    return list(frame.cut(frame.KINDS.index(kind), payload, next(NUMBER).to_bytes(8, "little"), chunk))


def report(figures="{}", doing='""', trouble='""', node="d"):
    return f'["{node}","device","",1.0,"",{doing},{trouble},{figures},""]'.encode()


def event(fields="{}", name='"x"', number="1", when="1.0"):
    return f'["d","device",{number},{when},{name},{fields}]'.encode()


MANY = json.dumps({f"n{number}": 1 for number in range(10_000)})
DEEP = "[" * 7000 + "]" * 7000


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        (Report, report('{"x":1e400}')),
        (Report, report('{"x":NaN}')),
        (Report, report('{"x":' + "1" * 900 + "}")),
        (Report, report('{"x":null}')),
        (Report, report('{"x":[1]}')),
        (Report, report('{"x":{"y":1}}')),
        (Report, report('{"' + "x" * 65 + '":1}')),
        (Report, report(json.dumps({f"{n}": 0 for n in range(65)}))),
        (Report, report(doing=json.dumps("x" * 65))),
        (Report, report(trouble='"\\ud800"')),
        (Report, report(node="other")),
        (Report, report(MANY)),
        (Event, event(number="-1")),
        (Event, event(number="9007199254740992")),
        (Event, event(when="1e999")),
        (Event, event('{"x":' + "9" * 4000 + "}")),
        (Event, event('{"x":' + "9" * 5000 + "}")),
        (Event, event('{"x":Infinity}')),
        (Event, event('{"x":{"y":{"z":1}}}')),
        (Event, event('{"x":[[1]]}')),
        (Event, event('{"x":' + DEEP + "}")),
        (Event, DEEP.encode()),
        (Event, event(json.dumps({f"n{n}": 1 for n in range(33)}))),
        (Event, event('{"x":' + json.dumps([0] * 2049) + "}")),
        (Event, event(json.dumps({"x": "y" * 501}))),
        (Event, event(MANY)),
        (Event, event(name='"' + "x" * 65 + '"')),
        (Event, b'["d","observer",1,1.0,"x"]'),
        (RunHistory, ["r", 1, [[1, None, 0.0, 0.0, 1, 1, 0, 0]] * 1025, {}]),
        (RunHistory, ["r", 1, [[1, None, 0.0]], {}]),
        (RunHistory, ["r", 1, [[-1, None, 0.0, 0.0, 1, 1, 0, 0]], {}]),
        (RunHistory, ["r", 1, [], {str(n): 0 for n in range(65)}]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:40],
)
def test_what_is_no_message_of_ours_is_counted_and_acknowledged(observer, kind, header):
    place = "history/0" if kind is RunHistory else "event/d" if kind is Event else "report/d/0"
    token = observer.hear(f"{WAN}/{place}", *frames(kind, header))
    assert observer.got() == []
    assert observer.acknowledged == [token]
    assert observer.journal.counts["frames.refused"] == 1


@pytest.mark.parametrize("figure", [1e308, -1.0, float(2**53), 5e-324])
def test_numbers_that_a_float_holds_come_as_they_are(observer, figure):
    observer.hear(f"{WAN}/report/d/0", *frames(Report, report(json.dumps({"x": figure}))))
    observer.hear(f"{WAN}/event/d", *frames(Event, event(json.dumps({"x": figure, "y": [int(figure)][:1]}))[:15_000]))
    first, second = observer.got()
    assert first.figures == {"x": figure}
    assert second.fields["x"] == figure


def test_texts_come_as_they_are_for_who_shows_them_to_escape(observer):
    name = "<script>\x1b[2J\u202e\n"
    observer.hear(f"{WAN}/event/d", *frames(Event, event(json.dumps({name: name}), json.dumps(name))))
    [told] = observer.got()
    assert (told.name, told.fields) == (name, {name: name})


@pytest.mark.parametrize("kind", [Report, Event])
def test_nobody_speaks_for_another(observer, kind):
    made = report(node="victim") if kind is Report else b'["victim","device",1,1.0,"x",{}]'
    for place in ("report/d/0", "event/d", "status/d/0", "report/victim/1", "history/0"):
        observer.hear(f"{WAN}/{place}", *frames(kind, made))
    assert observer.got() == []
    assert observer.journal.counts["frames.refused"] == 5
    own = "report/victim/0" if kind is Report else "event/victim"  # the broker's rules guard topics
    observer.hear(f"{WAN}/{own}", *frames(kind, made))
    assert [each.node for each in observer.got()] == ["victim"]


def test_a_kind_s_limit_counts_before_anything_is_kept(observer):
    for place, kind, size in (("report/d/0", Report, 1 << 10), ("event/d", Event, 16 << 10)):
        first, *_ = frames(kind, b" " * size, chunk=600)
        observer.hear(f"{WAN}/{place}", first)
    assert observer.journal.counts["frames.refused"] == 2
    assert len(observer.acknowledged) == 2


def test_events_that_somebody_left_at_the_broker_are_none(observer):
    for number in range(20):
        observer.hear(f"{WAN}/event/d{number}", *frames(Event, event()), retained=True)
    observer.hear(f"{WAN}/report/d/0", b"junk", retained=True)
    assert observer.got() == []
    assert observer.journal.counts["frames.refused"] == 21


def test_a_flood_of_events_is_cut_before_it_is_read_and_others_are_heard(observer, monkeypatch):
    read = []
    parse = frame.parse
    monkeypatch.setattr(frame, "parse", lambda data: read.append(0) or parse(data))
    header = b'["d","device",%d,1.0,"x",{}]'
    tokens = [observer.hear(f"{WAN}/event/d", *frames(Event, header % number)) for number in range(10_000)]
    tokens.append(observer.hear(f"{WAN}/event/quiet", *frames(Event, b'["quiet","edge",1,1.0,"x",{}]')))
    found = observer.got()
    assert sorted(observer.acknowledged) == tokens
    assert [each.node for each in found].count("quiet") == 1
    assert 400 < len(found) == len(read) < 1000
    assert observer.journal.counts["events.flood"] == 10_001 - len(found)


def test_a_flood_of_reports_leaves_the_newest_word(observer):
    for number in range(10_000):
        observer.hear(f"{WAN}/report/d/0", *frames(Report, report(json.dumps({"x": number}))))
    assert observer.journal.counts["status.held"] > 9_900
    assert len(observer.got()) <= 1  # a newer one takes an older one's place
    later = observer.incoming._newest.due(10**9)
    assert len(later) == 1
    assert zlib.crc32(later[0][1][36:]) == frame.parse(later[0][1]).crc
    assert b'"x": 9999' in later[0][1]


def test_the_cloud_reads_none_of_it():
    filters = topics.filters("emo", "cloud", "wan")
    for kind in (Report, Event, RunHistory):
        assert topics.subscription("emo", kind) not in filters
        assert "cloud" not in topics.ROUTES[kind].readers
    assert topics.subscription("emo", Status) in filters
