"""What a process tells of itself."""

import json
import logging
import threading

import pytest

from emo import journal as module
from emo.errors import ConfigError
from emo.journal import Journal


def test_counts_and_snapshot():
    journal = Journal()
    journal.count("b")
    journal.count("a", 5)
    journal.count("b")
    assert journal.snapshot() == {"a": 5, "b": 2}
    assert list(journal.snapshot()) == ["a", "b"]
    journal.snapshot()["a"] = 9
    assert journal.counts["a"] == 5


def test_threads_lose_no_count():
    journal = Journal()
    threads = [threading.Thread(target=lambda: [journal.count("n") for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.counts["n"] == 8000


def test_a_problem_is_counted_each_time_and_logged_once_a_minute(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    journal = Journal()
    with caplog.at_level(logging.WARNING, "emo"):
        for _ in range(50):
            journal.problem("frames.refused", "a frame was cut")
            now[0] += 1
        journal.problem("other", "something else")
        assert [record.message for record in caplog.records] == ["a frame was cut", "something else"]
        now[0] += 11
        journal.problem("frames.refused", "a frame was cut")
    assert caplog.records[-1].message == "a frame was cut [frames.refused: 51 so far]"
    assert journal.counts["frames.refused"] == 51


def test_events_are_one_json_line_each_and_survive_a_restart(tmp_path):
    for turn in range(2):
        journal = Journal(tmp_path / "deep" / "state")
        journal.event("round", round=turn, text='two\nlines "quoted"')
    # Written at once: what happened is there after kill -9 too.
    lines = (tmp_path / "deep" / "state" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["round"] for event in events] == [0, 1]
    assert all(event["event"] == "round" and event["time"] > 1e9 for event in events)


def test_metrics_are_replaced_whole(tmp_path):
    journal = Journal(tmp_path)
    journal.count("a")
    journal.write()
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {"a": 1}
    journal.count("a")
    journal.write()
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {"a": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "metrics.json"]


def test_a_journal_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal.event("round", round=1)
    journal.write()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"state_dir .*file"):
        Journal(tmp_path / "file" / "state")


def test_metrics_that_cannot_be_written_stop_nobody(tmp_path, caplog):
    journal = Journal(tmp_path)
    (tmp_path / "metrics.json").mkdir()
    journal.write()
    assert journal.counts["metrics.unwritten"] == 1
    assert "metrics cannot be written" in caplog.text


def test_events_on_a_full_disk_stop_nobody(tmp_path, caplog):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path)
    journal.event("round", round=1)
    assert journal.counts["events.unwritten"] == 1
    assert "No space left" in caplog.text


def test_events_that_had_no_room_are_written_later_whole_and_in_order(tmp_path, monkeypatch):
    journal, write, room = Journal(tmp_path), module.os.write, [1 << 20]

    def short(handle, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = write(handle, bytes(data)[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(module.os, "write", short)
    journal.event("round", round=1)
    room[0] = 7  # the disk takes a part of the line
    journal.event("round", round=2)
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["round"] for line in lines.splitlines()] == [1]
    journal.event("round", round=3)
    assert journal.counts["events.unwritten"] == 2
    room[0] = 1 << 20
    assert journal.catch_up() is None
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["round"] for line in lines.splitlines()] == [1, 2, 3]
    journal.write()
    assert (tmp_path / "events.jsonl").read_text(encoding="utf-8") == lines
    assert "events.lost" not in journal.counts


def test_a_disk_that_stays_full_fills_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAIT", 3)
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path)
    for number in range(5):
        journal.event("round", round=number)
    assert journal.counts["events.lost"] == 2
    (tmp_path / "events.jsonl").unlink()
    journal.write()
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["round"] for line in lines] == [2, 3, 4]


def test_a_loss_that_is_not_a_number_is_still_json(tmp_path):
    journal = Journal(tmp_path)
    journal.event("trained", loss=float("nan"))

    def refuse(name):
        raise ValueError(name)

    json.loads((tmp_path / "events.jsonl").read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_log_of_events_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_KEEP", 1000)
    journal = Journal(tmp_path)
    for number in range(200):
        journal.event("round", round=number)
    kept = sorted(tmp_path.iterdir())
    assert {path.name for path in kept} <= {"events.1.jsonl", "events.jsonl"}
    assert all(path.stat().st_size < 1200 for path in kept)
    numbers = [json.loads(line)["round"] for path in kept for line in path.read_text(encoding="utf-8").splitlines()]
    assert numbers == list(range(numbers[0], 200))
    assert len(numbers) > 10
