"""What `emo chaos` breaks with: processes, disks and clocks, each really broken and mended."""

import signal
import subprocess
import sys
import time

import pytest

from testbed.chaos import forked_tier
from testbed.chaos.disk import Disk
from testbed.chaos.process import Program, Tier

WRITER = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
while True:
    try:
        (folder / "data").write_bytes(bytes(1000))
        os.write(1, b"wrote ")
    except OSError:
        pass
    time.sleep(0.02)
"""


def until(reached, seconds=30):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def sleeper(tmp_path):
    process = Program("sleeper", tmp_path, [sys.executable, "-c", "import time; print('up'); time.sleep(60)"])
    process.start()
    yield process
    process.stop(10)


def test_a_process_is_killed_and_comes_back_under_another_number(sleeper):
    first = sleeper.pid
    assert sleeper.alive()
    sleeper.start()
    assert (sleeper.pid, sleeper.starts) == (first, 1)
    sleeper.send(signal.SIGKILL)
    assert sleeper.wait(10)
    assert sleeper.status() == -signal.SIGKILL
    sleeper.send(signal.SIGKILL)  # nobody is hit
    sleeper.start()
    assert sleeper.pid != first
    assert sleeper.starts == 2


def test_a_stopped_process_can_be_ended_in_good_order(sleeper):
    sleeper.send(signal.SIGSTOP)
    assert sleeper.stop(10)
    assert sleeper.status() == -signal.SIGTERM


def test_a_process_that_will_not_end_is_made_to(tmp_path):
    text = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = Program("deaf", tmp_path, [sys.executable, "-c", text])
    process.start()
    until(lambda: "deaf" in process.log.read_text())
    assert not process.stop(0.2)
    assert not process.alive()


def test_a_tier_is_the_command_and_its_log_is_kept(tmp_path):
    tier = Tier("init", tmp_path, ["init", str(tmp_path / "made")])
    for count in (1, 2):
        tier.start()
        assert tier.wait(120)
        assert tier.status() == (0 if count == 1 else 2), tier.log.read_text()  # the second finds files there
    assert (tmp_path / "made" / "cloud.yaml").exists()


@pytest.mark.parametrize("args", [["init"], ["no-such-command"]])
def test_a_tier_that_is_called_wrongly_says_so(tmp_path, args):
    tier = Tier("wrong", tmp_path, args)
    tier.start()
    assert tier.wait(120)
    assert tier.status() == 2
    assert "usage" in tier.log.read_text()


def test_a_clock_is_shifted_while_the_process_runs(tmp_path):
    tier = Tier("any", tmp_path, [])
    clock = forked_tier._shifted(tmp_path / "any.clock")
    assert abs(clock() - time.time()) < 30
    tier.shift(-86400.0)
    assert abs(clock() + 86400 - time.time()) < 30
    tier.shift(0.0)
    assert abs(clock() - time.time()) < 30


def writes(process):
    return process.log.read_text().count("wrote")


def test_without_a_disk_of_its_own_the_process_may_write_no_more(tmp_path):
    disk = Disk(tmp_path / "state", own=False)
    process = Program("writer", tmp_path, [sys.executable, "-c", WRITER, str(disk.folder)])
    process.start()
    try:
        until(lambda: writes(process) > 2)
        disk.fill(process.pid)
        time.sleep(0.2)
        before = writes(process)  # its log is a file as well
        time.sleep(0.3)
        assert writes(process) == before
        disk.free(process.pid)
        until(lambda: writes(process) > before)
    finally:
        process.stop(10)
    disk.settle()
    assert (disk.folder / "data").stat().st_size == 1000


def test_a_disk_of_its_own_is_full_for_everybody_and_is_copied_at_the_end(tmp_path):
    text = f"""
import errno, sys
from pathlib import Path
from testbed.chaos import disk as chaos_disk
if not chaos_disk.may_mount():
    sys.exit(77)
disk = chaos_disk.Disk(Path({str(tmp_path / "state")!r}), own=True)
if not disk.own:
    sys.exit(77)
(disk.folder / "kept").write_text("this")
disk.fill(0)
try:
    (disk.folder / "more").write_bytes(bytes(4096))
except OSError as error:
    assert error.errno == errno.ENOSPC
else:
    raise AssertionError("there was room")
disk.free(0)
(disk.folder / "more").write_bytes(bytes(4096))
disk.settle()
"""
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    if found.returncode == 77:
        pytest.skip("mounting a tmpfs takes root")
    assert found.returncode == 0, found.stderr
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["kept", "more"]
