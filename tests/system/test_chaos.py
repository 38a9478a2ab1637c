"""`emo chaos` as a user starts it: a short schedule with every kind of fault, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from testbed.chaos.schedule import ACTS, KINDS


@pytest.fixture
def temporary():
    """A short one: a socket's path has a hundred letters at most."""
    with tempfile.TemporaryDirectory(prefix="emo-") as folder:
        yield Path(folder)


@pytest.fixture
def start(tmp_path, temporary, mosquitto_program):
    started = []

    def begin(*args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from emo.cli import main; sys.exit(main())", "chaos", *args],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def children(process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for(process, text) -> str:
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended without {text!r}")


def wait_gone(processes) -> None:
    _, left = psutil.wait_procs(processes, timeout=30)
    assert not left


def test_the_run_ends_right_under_faults_of_every_kind(tmp_path, temporary, start):
    process = start(
        *("--seed", "814", "--faults", "28", "--rounds", "24", "--over", "8"),
        *("--json", "found.json", "--out", "out", "--keep"),
    )
    out, _ = process.communicate(timeout=170)
    assert process.returncode == 0, out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["faults"] == 28
    assert set(found["kinds"]) == set(KINDS)
    assert found["violations"] == 0
    (run,) = found["runs"]
    assert run["strict"]
    assert run["starts"]["cloud"] >= 3  # killed in the middle
    assert run["starts"]["watch"] >= 4  # three times; what was trained is, to the bit, what nobody had watched
    events = (tmp_path / "out/seed-814/cloud/state/events.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "round" for line in events) >= 24
    assert (tmp_path / "out/seed-814/cloud/models/emo/1/model.onnx").stat().st_size > 1000
    assert list(temporary.glob("emo-*")) == []


def test_the_run_ends_right_beside_a_hostile_device_and_edge(tmp_path, start):
    process = start(
        *("--seed", "3", "--faults", "2", "--hostile", "20", "--rounds", "12", "--over", "6"),
        *("--json", "found.json"),
    )
    out, _ = process.communicate(timeout=170)
    assert process.returncode == 0, out
    (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert {act: run["kinds"][act] for act in ACTS} == dict.fromkeys(ACTS, 2)
    assert run["violations"] == []


def test_it_leaves_nothing_running_however_it_ends(start):
    """Killed while its processes start, ended by Ctrl-C while they train."""
    for how, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = start("--faults", "0", "--rounds", "500")
        if how == signal.SIGINT:
            wait_for(process, "0 of 0 faults")
        until = time.monotonic() + 60
        while len(running := children(process)) < 3 + 5:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert [each.name() for each in running].count("mosquitto") == 3
        process.send_signal(how)
        process.communicate(timeout=60)
        assert process.returncode == status
        wait_gone(running)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--faults", "-1"), "--faults"),
        (("--hostile", "-1"), "--hostile"),
        (("--rounds", "0"), "--rounds"),
        (("--keep",), "--out"),
    ],
)
def test_bad_options_are_said_in_words(start, args, text):
    process = start(*args)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert text in out
    assert "Traceback" not in out
