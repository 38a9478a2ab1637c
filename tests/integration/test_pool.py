"""Worker processes: answers in order, errors that arrive, workers that are killed, and nothing that stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic.dataclasses import dataclass

from emo.errors import ConfigError
from testbed.workers.messages import CHECKED, Message, Request
from testbed.workers.pool import Job, Pool, WorkerLost
from testbed.workers.shared_memory import Shared

ARRAY = np.arange(12, dtype=np.int64).reshape(3, 4)


@dataclass(frozen=True, config=CHECKED)
class Asked(Request["Answer"]):
    what: str
    number: int = 0
    data: bytes = b""


@dataclass(frozen=True, config=CHECKED)
class Answer(Message):
    pid: int
    number: int
    data: bytes


def make(shared, refused=False):
    if refused:
        raise ConfigError("not like this")

    def handle(asked):
        data = asked.data
        match asked.what:
            case "refuse":
                raise ConfigError("no such thing")
            case "fail":
                return asked.data[7]
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "row":
                data = shared["a"][asked.number].tobytes()
            case "write":
                shared["a"][0] = 1
            case "odd":
                return object()
        return Answer(os.getpid(), asked.number, data)

    return handle


@pytest.fixture
def pool():
    made = Pool(make, (Shared({"a": ARRAY, "b": np.zeros(0)}),), 2)
    yield made
    made.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_come_in_the_order_of_the_jobs_and_from_whom_they_were_asked(pool):
    large = os.urandom(3 << 20)
    answers = pool.run([Job(Asked("x", n, large if n == 3 else b""), n % 2) for n in range(7)])
    assert [answer.number for answer in answers] == list(range(7))
    assert answers[3].data == large
    assert [answer.pid for answer in answers] == [pool.pids()[n % 2] for n in range(7)]
    assert {answer.pid for answer in pool.broadcast(Asked("x"))} == set(pool.pids())
    assert [answer.data for answer in pool.run([Job(Asked("row", n)) for n in range(3)])] == [
        row.tobytes() for row in ARRAY
    ]
    assert pool.run([]) == []


def test_errors_arrive_as_what_they_are_and_the_pool_goes_on(pool):
    with pytest.raises(ConfigError, match="no such thing"):
        pool.run([Job(Asked("x")), Job(Asked("refuse")), Job(Asked("fail"))])
    with pytest.raises(RuntimeError, match="IndexError"):
        pool.run([Job(Asked("fail")), Job(Asked("x"))])
    with pytest.raises(RuntimeError, match="read-only"):
        pool.run([Job(Asked("write"))])
    with pytest.raises(RuntimeError, match="cannot be sent"):
        pool.run([Job(Asked("odd"))])
    assert pool.run([Job(Asked("x", 5))])[0].number == 5


def test_a_handler_that_cannot_be_made_says_why():
    pool = Pool(make, (None, True), 1)
    try:
        with pytest.raises(ConfigError, match="not like this"):
            pool.run([Job(Asked("x"))])
    finally:
        pool.close()


def test_a_killed_worker_is_noticed_and_replaced(pool):
    before = pool.pids()
    with pytest.raises(WorkerLost, match="SIGKILL"):
        pool.run([Job(Asked("x")), Job(Asked("die")), Job(Asked("x"))])
    pool.restart()
    assert not any(map(alive, before))
    assert pool.run([Job(Asked("x", 5))])[0].number == 5
    os.kill(pool.pids()[1], signal.SIGKILL)
    with pytest.raises(WorkerLost, match="worker 1"):
        pool.broadcast(Asked("x"))


def test_close_leaves_nothing(pool):
    pool.run([Job(Asked("x"))])
    pids = pool.pids()
    pool.close()
    pool.close()
    assert not any(map(alive, pids))


_SCRIPT = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
from tests.integration.test_pool import ARRAY, Asked, Job, Pool, Shared, make
if __name__ == "__main__":
    pool = Pool(make, (Shared({"a": ARRAY}),), 2)
    pool.run([Job(Asked("x"))])
    print(*pool.pids(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_one_who_started_them(number, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(_SCRIPT)
    root = Path(__file__).parents[2]
    before = set(Path("/dev/shm").iterdir())
    process = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does it
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    until = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert said.count("Traceback") == (number == signal.SIGINT)  # the main process's own, no worker's
    left = {path.name for path in set(Path("/dev/shm").iterdir()) - before}
    assert not {name for name in left if name.startswith(("pym-", "psm_"))}
