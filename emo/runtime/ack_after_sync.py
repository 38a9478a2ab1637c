"""Acknowledges what has been made to last: on a thread of its own, as much at a time as has come meanwhile.

So a worker decodes the next message while the disk syncs the last. Knows tokens and two callbacks. Knows no transport.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from emo.journal import Journal

log = logging.getLogger("emo")

Token = TypeVar("Token")


class Settler(Generic[Token]):
    """`settle` makes last what was handled before it is called; `acknowledge` is told after that, also where it fails:
    who settles counts that, and who sent it would repeat it for ever."""

    def __init__(
        self,
        settle: Callable[[], None],
        acknowledge: Callable[[list[Token]], None],
        journal: Journal,
        name: str,
    ) -> None:
        self._settle, self._acknowledge, self._journal, self._name = settle, acknowledge, journal, name
        self._handled: queue.SimpleQueue[list[Token] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def handled(self, tokens: list[Token]) -> None:
        """Of a message. Returns at once."""
        self._handled.put(tokens)

    def close(self) -> None:
        """What was handled is settled on return, for 10 seconds at most."""
        self._handled.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        going = True
        while going:
            taken = [self._handled.get()]
            while not self._handled.empty():
                taken.append(self._handled.get())
            going = None not in taken
            try:
                self._settle()
            except Exception:
                self._journal.count("bugs")
                log.exception("%s: could not settle", self._name)
            self._acknowledge([token for tokens in taken if tokens is not None for token in tokens])
