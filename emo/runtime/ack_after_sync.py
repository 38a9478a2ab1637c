"""Acknowledges messages once what they brought has been synced to the disk: on a thread of its own, as many at a time as
have come meanwhile. So a worker decodes the next message while the disk syncs the last."""

import logging
import queue
import threading
from collections.abc import Callable

from emo.journal import Journal

log = logging.getLogger("emo")


class AckAfterSync:
    """`settle` makes last what was handled before it is called; `acknowledge` is called after that, also if it fails:
    whoever settles counts the failure, and the sender would repeat the message for ever."""

    def __init__(
        self,
        settle: Callable[[], None],
        acknowledge: Callable[[list[int]], None],
        journal: Journal,
        name: str,
    ) -> None:
        self._settle, self._acknowledge, self._journal, self._name = settle, acknowledge, journal, name
        self._handled: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def handled(self, tokens: list[int]) -> None:
        """A message was handled, which `tokens` acknowledge. Returns at once."""
        self._handled.put(tokens)

    def close(self) -> None:
        """Settle what was handled; waits for 10 seconds at most."""
        self._handled.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        going = True
        while going:
            batch = [self._handled.get()]
            while not self._handled.empty():
                batch.append(self._handled.get())
            going = None not in batch
            try:
                self._settle()
            except Exception:
                self._journal.count("bugs")
                log.exception("%s: could not settle", self._name)
            self._acknowledge([token for tokens in batch if tokens is not None for token in tokens])
