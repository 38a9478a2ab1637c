"""Worker processes that answer requests (messages.py). Nothing is pickled once they run.

A worker is spawned, so it inherits no thread and no lock, and it holds the only other end of its pipe: when we end,
however we end, it reads the end of file and ends too. It never sees the terminal's Ctrl-C: that is ours to handle.
"""

import contextlib
import logging
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic.dataclasses import dataclass

from emo import errors
from emo.errors import EmoError
from testbed.workers.messages import CHECKED, Message, Request, decode, encode

A = TypeVar("A")
T = TypeVar("T")
Handler = Callable[[Any], object]

log = logging.getLogger("emo")

_spawn = multiprocessing.get_context("spawn")
_TRIES = 3  # of what is done again after a worker has died


class WorkerLost(EmoError):  # noqa: N818 - reads as what happened
    """A worker process died. The pool answers again after `restart`; what its workers held is gone."""


class Job(NamedTuple, Generic[A]):
    """`worker`: who is to answer, None: whoever is free first."""

    request: Request[A]
    worker: int | None = None


@dataclass(frozen=True, config=CHECKED)
class _Failed(Message):
    """`error`: class of an EmoError that the handler raised, with its text; empty for another exception, with its traceback."""

    error: str
    text: str


class Pool:
    """`workers` processes, each with the handler that `make(*arguments)` gives there: a function of a module, and
    arguments that spawn can pass. An EmoError that a handler raises is raised by `run`; so is the one of `make`.
    `restarts`: how often all workers were started anew."""

    def __init__(self, make: Callable[..., Handler], arguments: tuple[Any, ...], workers: int) -> None:
        self._make, self._arguments, self.workers, self.restarts = make, arguments, workers, 0
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._starting: set[int] = set()
        self._start()

    def run(self, jobs: Sequence[Job[A]]) -> list[A]:
        """The answers, in the order of `jobs`. Jobs are begun in that order, one a worker at a time.

        Raises WorkerLost, or what the first job of those that failed raised; then no worker has anything left to do.
        """
        self._wait_ready()
        answers = dict[int, A]()
        anyone = deque(number for number, job in enumerate(jobs) if job.worker is None)
        own = [deque(n for n, job in enumerate(jobs) if job.worker == w) for w in range(self.workers)]
        busy: dict[int, int] = {}
        failed: dict[int, Exception] = {}
        while True:
            for worker in range(self.workers):
                queue = own[worker] or anyone
                if worker not in busy and queue and not failed:
                    busy[worker] = queue.popleft()
                    with self._lost(worker):
                        _send(self._pipes[worker], encode(jobs[busy[worker]].request))
            if not busy:
                break
            for worker in self._readable(busy):
                number = busy.pop(worker)
                try:
                    answers[number] = self._answer(worker)
                except WorkerLost:
                    raise
                except Exception as error:  # noqa: BLE001 - raised below, once the others are done
                    failed[number] = error
        if failed:
            raise failed[min(failed)]
        return [answers[number] for number in range(len(jobs))]

    def broadcast(self, request: Request[A]) -> list[A]:
        """The answer of each worker."""
        return self.run([Job(request, worker) for worker in range(self.workers)])

    def again(self, do: Callable[[], T], what: str) -> T:
        """`do`; after a worker has died all workers are started anew, and it is done again, `what` says the log. Raises
        WorkerLost when that happens again and again."""
        for left in reversed(range(_TRIES)):
            try:
                return do()
            except WorkerLost as error:
                self.restart()
                if not left:
                    raise
                log.warning("%s: %s is done again", error, what)
        raise AssertionError

    def restart(self) -> None:
        """All workers anew, after one was lost."""
        self.close()
        self._start()
        self.restarts += 1

    def close(self) -> None:
        """No process is left; what they were at is not finished. Harmless twice."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        self._processes, self._pipes = [], []

    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    # -- inside

    def _start(self) -> None:
        self._starting = set(range(self.workers))
        with _no_interrupts():
            for number in range(self.workers):
                ours, theirs = _spawn.Pipe()
                process = _spawn.Process(
                    target=_work,
                    args=(theirs, self._make, self._arguments),
                    name=f"worker-{number}",
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)

    def _wait_ready(self) -> None:
        while self._starting:
            for worker in self._readable(self._starting):
                self._starting.discard(worker)
                self._answer(worker)

    def _readable(self, workers: "set[int] | dict[int, int]") -> list[int]:
        ready = connection.wait([self._pipes[worker] for worker in workers])
        return sorted(worker for worker in workers if self._pipes[worker] in ready)

    def _answer(self, worker: int) -> Any:
        with self._lost(worker):
            parts = _receive(self._pipes[worker])
        answer = decode(parts)
        if isinstance(answer, _Failed):
            text = f"worker {worker} failed:\n{answer.text}"
            raise getattr(errors, answer.error, EmoError)(answer.text) if answer.error else RuntimeError(text)
        return answer

    @contextlib.contextmanager
    def _lost(self, worker: int) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            process = self._processes[worker]
            process.join(5)
            raise WorkerLost(f"worker {worker} (process {process.pid}) {_how(process.exitcode)}") from error


def _how(status: int | None) -> str:
    if status is None or status >= 0:
        return f"has ended (status {status})"
    out_of_memory = "; was the memory full? Fewer workers need less" if -status == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-status).name}{out_of_memory}"


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Children inherit what is blocked: from their first moment SIGINT is held back from them."""
    resource_tracker.ensure_running()  # else the first spawn starts it, and that unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, make: Callable[..., Handler], arguments: tuple[Any, ...]) -> None:
    """A worker, until the other end is closed."""
    with contextlib.suppress(EOFError, OSError):
        handler: Handler | None = None

        def begin() -> None:
            nonlocal handler
            handler = make(*arguments)

        _send(pipe, _tried(begin))
        while handler is not None:
            parts, handle = _receive(pipe), handler
            _send(pipe, _tried(lambda: handle(decode(parts))))  # noqa: B023 - called at once


def _tried(work: Callable[[], object]) -> list[bytes]:
    try:
        return encode(work())
    except EmoError as error:
        return encode(_Failed(type(error).__name__, str(error)))
    except Exception:  # noqa: BLE001 - told to the one who asked, whatever it is
        return encode(_Failed("", traceback.format_exc()))


def _send(pipe: Connection, parts: Sequence[bytes]) -> None:
    pipe.send_bytes(len(parts).to_bytes(8, "little"))
    for part in parts:
        pipe.send_bytes(part)


def _receive(pipe: Connection) -> list[bytes]:
    count = int.from_bytes(pipe.recv_bytes(8), "little")
    return [pipe.recv_bytes() for _ in range(count)]
