import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import of_kind
from watching_story import NOW

from cloud_app.watch import record
from cloud_app.watch.record import Record, replay
from cloud_app.watch.view import View
from cloud_app.watch.watcher import Watcher
from emo.errors import ConfigError
from emo.journal import Journal
from emo.wire.messages import Event, Report, RunHistory, RunState, Status

HEARD = (Status, Report, Event, RunState, RunHistory)
told = st.lists(st.tuples(st.one_of([of_kind(kind) for kind in HEARD]), st.integers(5, 50)), max_size=20)


def shown(view, now):
    return view.state(now), view.history(), view.log(), [view.node(name, now) for name in sorted(view.nodes)]


@settings(max_examples=30)
@given(told)
def test_a_record_read_again_gives_the_view_that_there_was(tmp_path_factory, told):
    folder, now = tmp_path_factory.mktemp("record"), [NOW]
    view = View(4)
    watcher = Watcher(view, "watch", "mqtt", "", Record(folder, 1 << 24, Journal()), lambda: now[0])
    watcher.link(up=True)
    for message, seconds in told:
        now[0] += seconds
        watcher.take(dataclasses.replace(message, facts={}) if isinstance(message, Status) else message)
    watcher.flush()
    again, journal = View(4), Journal()
    last = replay(folder, again, journal)
    assert shown(again, now[0]) == shown(view, now[0])
    assert journal.counts == {}
    assert last is not None


def test_a_full_file_gives_way_and_nothing_that_holds_is_lost(tmp_path):
    view, now = View(10), [NOW]
    watcher = Watcher(view, "watch", "mqtt", "", Record(tmp_path, 1 << 17, Journal()), lambda: now[0])
    watcher.link(up=True)
    watcher.take(Status("cloud", "cloud", online=True))
    watcher.take(Status("device-1", "device", online=True, samples=7))
    figures = {f"figure.{number}": float(number) for number in range(60)}
    watcher.take(Report("device-1", "device", "r1", NOW, "edge-1", "waits", "is warm", figures, "01"))
    watcher.take(RunState("r1", 5, 9, "training"))
    watcher.take(RunHistory("r1", 9, ((1, 0.5, 0.1, 1.0, 2, 2, 0, 5), (2, None, 0.1, 1.0, 2, 2, 0, 6)), {"fl": 0.5}))
    for number in range(3000):
        now[0] += 0.01
        watcher.take(Event("cloud", "cloud", number, now[0], "paused", {"round": number}))
        if number % 50 == 0:
            watcher.flush()
    watcher.flush()
    sizes = [(tmp_path / name).stat().st_size for name in (record.NAME, record.BEFORE)]
    assert max(sizes) < 1 << 17
    again = View(10)
    replay(tmp_path, again, Journal())
    node = again.node("device-1", now[0])
    assert (node["light"], node["why"], node["samples"], node["intervals"]) == ("out", "is warm", 7, "01")
    assert node["figures"] == figures
    state, before = again.state(now[0]), view.state(now[0])
    assert (state["accuracy"], state["result"], state["rounds"]) == (0.5, {"fl": 0.5}, 9)
    assert again.history()["rounds"] == view.history()["rounds"]
    assert again.log(5)[0]["fields"] == {"round": 2999}
    assert state["counts"] == before["counts"]


def test_what_is_no_line_of_ours_is_left_out_and_counted(tmp_path):
    good = {"t": NOW, "kind": "Status", "node": "cloud", "role": "cloud", "online": True}
    bad = [
        b"{", b"[]", b"null", b"\xff\xfe", b'{"t": 1e99, "link": true}', b'{"t": NaN, "link": true}', b"[" * 100_000,
        b'{"t": 5, "kind": "Update"}', b'{"t": 5, "kind": ["Status"]}', b"x" * (3 * record.LINE), b'{"t": 5, "served": 7}',
        json.dumps(good | {"node": "../.."}).encode(), json.dumps(good | {"more": 1}).encode(),
        b'{"t": 5, "kind": "Event", "node": "a", "role": "device", "number": %s, "time": 1, "name": "x"}' % (b"9" * 4000),
    ]  # fmt: skip
    (tmp_path / record.NAME).write_bytes(b"\n".join([*bad, json.dumps(good).encode(), b'{"t": 9, "kind": "Sta']))
    view, journal = View(10), Journal()
    assert replay(tmp_path, view, journal) == NOW
    assert set(view.nodes) == {"cloud"}
    assert journal.counts["record.damaged"] == len(bad) + 1


def test_a_folder_that_cannot_be_written_is_said_at_once_and_later_counted(tmp_path):
    with pytest.raises(ConfigError, match=r"watched\.jsonl: cannot be written"):
        Record(tmp_path / "none", 1 << 20, Journal())
    folder = tmp_path / "state"
    folder.mkdir()
    journal = Journal()
    kept = Record(folder, 1 << 20, journal)
    (folder / record.NAME).unlink()
    folder.rmdir()
    kept.link(up=True, now=NOW)
    assert kept.flush(kept.take()) is False
    assert journal.counts == {"record.lost": 1, "record.unwritten": 1}


def test_of_a_large_fleet_not_every_report_is_kept_but_every_figure(tmp_path):
    view, now = View(100), [NOW]
    watcher = Watcher(view, "watch", "mqtt", "", Record(tmp_path, 1 << 24, Journal()), lambda: now[0])
    for number in range(100):
        watcher.take(Status(f"device-{number}", "device", online=True))
    for number in range(12):
        now[0] += 5
        watcher.take(Report("device-0", "device", "r1", now[0], figures={f"a.{number}": 1.0, "b": float(number)}))
    watcher.flush()
    again = View(100)
    replay(tmp_path, again, Journal())
    kept = again.nodes["device-0"].figures
    assert kept == {**{f"a.{number}": 1.0 for number in range(len(kept) - 1)}, "b": len(kept) - 2.0}
    assert 8 < len(kept) < 13
    assert (tmp_path / record.NAME).read_text().count('"Report"') < 6


def test_what_is_known_of_more_nodes_than_there_is_room_for_does_not_fill_the_file(tmp_path):
    view, now = View(2000), [NOW]
    watcher = Watcher(view, "watch", "mqtt", "", Record(tmp_path, 1 << 17, Journal()), lambda: now[0])
    for number in range(2000):
        watcher.take(Status(f"device-{number}", "device", online=True))
    for _ in range(5):
        watcher.take(RunState("r1", 1, 9, "training"))
        watcher.flush()
        now[0] += 1
    assert 0 < (tmp_path / record.NAME).stat().st_size < 1 << 16
    again = View(2000)
    replay(tmp_path, again, Journal())
    assert again.progress.run == "r1"
    assert len(again.nodes) > 200
