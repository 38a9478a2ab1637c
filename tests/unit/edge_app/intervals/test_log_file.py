"""The controller's log on disk: what survives a kill, a damaged file and a full disk, and what people see."""

import math
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_app.intervals import log_file
from edge_app.intervals.controller import Row
from edge_app.intervals.log_file import IntervalLog
from emo.errors import CacheError
from emo.journal import Journal

ROWS = [Row("a", 0, 3, 0.5, 2.0), Row("b-1", 7, 12, 0.96875, 32.0, 5), Row("a", 11, 1, 0.0, 1.0)]


def opened(folder, run="run-1"):
    journal = Journal()
    file = IntervalLog(folder, journal)
    return file, file.begin(run), journal.counts


def written(folder, rows=ROWS):
    file, _, _ = opened(folder)
    for row in rows:
        file.save(row)
    return file


def test_what_was_saved_is_there_after_a_restart(tmp_path):
    written(tmp_path)  # not even closed
    _, rows, counts = opened(tmp_path)
    assert rows == ROWS
    assert not counts


def test_the_newest_row_of_a_batch_counts(tmp_path):
    file = written(tmp_path)
    file.save(Row("a", 0, 4, 0.75, 4.0))
    assert opened(tmp_path)[1] == [Row("a", 0, 4, 0.75, 4.0), *ROWS[1:]]


def test_a_score_that_said_nothing_is_kept_as_that(tmp_path):
    written(tmp_path, [Row("a", 0, 1, math.nan, 0.0)])
    assert math.isnan(opened(tmp_path)[1][0].score)


def test_another_run_starts_empty_and_for_good(tmp_path):
    written(tmp_path).close()
    assert opened(tmp_path, "run-2")[1] == []
    assert opened(tmp_path, "run-1")[1] == []


def test_it_does_not_grow_with_the_number_of_batches_received(tmp_path):
    file = written(tmp_path)
    for version in range(20_000):
        file.save(Row("a", version % 10, version, 0.5, 2.0))
    assert (tmp_path / "intervals").stat().st_size < 250_000
    assert len(opened(tmp_path)[1]) == 12


def test_kill_9_loses_nothing_that_was_saved(tmp_path):
    code = f"""
        import itertools, sys
        from pathlib import Path
        from edge_app.intervals.controller import Row
        from edge_app.intervals.log_file import IntervalLog
        from emo.journal import Journal
        file = IntervalLog(Path({str(tmp_path)!r}), Journal())
        file.begin("run-1")
        for version in itertools.count():
            file.save(Row("a", version % 50, version, 0.5, 2.0))
            print(version, flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as child:
        said = [child.stdout.readline() for _ in range(3000)]
        child.kill()
        said += child.stdout.readlines()
    newest = int([line for line in said if line.endswith(b"\n")][-1])
    _, rows, counts = opened(tmp_path)
    versions = {row.version for row in rows}
    assert {*range(newest - 49, newest + 1)} - versions <= {newest - 49}  # one more may have been saved, unsaid
    assert not counts


# -- damage

GARBAGE = st.binary(max_size=40) | st.sampled_from([b"\n", b"[" * 600, b"\xff" * 5000, b'00000000 {"run": "run-1"}\n'])


LINES = [log_file._line(each) for each in ({"run": "run-1"}, *(log_file.as_json(row, 1000.0) for row in ROWS))]


@given(st.integers(0, sum(map(len, LINES))), st.integers(0, 30), GARBAGE)
@example(0, 400, b"")
def test_a_damaged_file_loses_the_lines_that_are_hit_and_tells(place, cut, garbage):
    data = b"".join(LINES)
    damaged = data[:place] + garbage + data[place + cut :]
    left = [line in damaged.splitlines(keepends=True) for line in LINES]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "intervals").write_bytes(damaged)
        _, rows, counts = opened(Path(folder))
        assert opened(Path(folder))[1:] == (rows, {})  # put right by the restart
    if damaged.startswith(LINES[0]):
        assert rows == [row for row, there in zip(ROWS, left[1:], strict=True) if there]
    else:
        assert rows == []
    if any(line not in LINES for line in damaged.splitlines(keepends=True)):
        assert counts["intervals.damaged"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "a/b"},
        {"batch": -1},
        {"version": "x"},
        {"interval": -1.0},
        {"interval": math.inf},
        {"interval": math.nan},
        {"counter": None},
        {"time": "now"},
        {"score": []},
    ],
)
def test_a_whole_line_that_says_what_cannot_be_is_left_out(tmp_path, changes):
    written(tmp_path)
    with (tmp_path / "intervals").open("ab") as file:
        file.write(log_file._line({**log_file.as_json(ROWS[0], 1.0), "version": 9, **changes}))
    _, rows, counts = opened(tmp_path)
    assert rows == ROWS
    assert counts["intervals.damaged"] == 1


def test_a_file_that_cannot_be_read_is_told_and_the_edge_goes_on(tmp_path):
    (tmp_path / "intervals").mkdir()
    file, rows, counts = opened(tmp_path)
    file.save(ROWS[0])
    assert rows == []
    assert counts["intervals.unreadable"] == 1
    assert counts["intervals.unwritten"] == 2
    (tmp_path / "intervals").rmdir()
    file.save(ROWS[1])  # and writes all it knows as soon as it can
    assert opened(tmp_path)[1] == ROWS[:2]


@pytest.mark.parametrize("part", [None, 0, 20])
def test_a_disk_that_takes_a_part_of_a_line_leaves_no_torn_one(tmp_path, part):
    file = written(tmp_path)

    class Full:
        def write(self, line):
            os.write(handle, line[: part or 0])
            if part is None:
                raise OSError(28, "No space left on device")
            return part

        def close(self):
            os.close(handle)

    handle = os.open(tmp_path / "intervals", os.O_WRONLY | os.O_APPEND)
    file.close()
    file._file = Full()
    file.save(Row("c", 1, 1, 0.0, 1.0))
    file.save(Row("c", 2, 1, 0.0, 1.0))
    _, rows, counts = opened(tmp_path)
    assert [row.batch for row in rows] == [0, 7, 11, 1, 2]
    assert not counts


# -- reading it


def test_it_can_be_read_while_the_edge_writes(tmp_path):
    file = written(tmp_path)
    with (tmp_path / "intervals").open("ab") as other:
        other.write(b'1234abcd {"dev')  # half a line, on its way
    run, rows = log_file.read(tmp_path)
    assert run == "run-1"
    assert [row for row, _ in rows] == [ROWS[0], ROWS[2], ROWS[1]]  # by device and batch
    file.close()


def test_no_table_and_no_table_of_ours_say_what_to_do(tmp_path):
    with pytest.raises(CacheError, match=r"no table of intervals yet.*emo edge --config FILE"):
        log_file.read(tmp_path)
    (tmp_path / "intervals").write_bytes(b"\0" * 5000)
    with pytest.raises(CacheError, match="damaged or not a table"):
        log_file.read(tmp_path)
    (tmp_path / "intervals").unlink()
    (tmp_path / "intervals").mkdir()
    with pytest.raises(CacheError, match="cannot be read: Is a directory"):
        log_file.read(tmp_path)


def test_the_table_for_people():
    rows = [(ROWS[0], 1000.0), (Row("device-with-a-long-name-01", 12, 900, math.nan, 64.0), 400.0)]
    assert log_file.text("run-1", rows, cap=64.0, now=1030.0).splitlines() == [
        "device                      batch  version   score interval      age",
        "a                               0        3  0.5000      2.0     30 s",
        "device-with-a-long-name-01     12      900       -     64.0   10 min",
        "2 batches of run run-1; mean interval 33.0 attempts; 50% at the cap of 64",
    ]
    assert log_file.text("run-1", [], 64.0, 0.0).splitlines()[1] == (
        "0 batches of run run-1; mean interval 0.0 attempts; 0% at the cap of 64"
    )
