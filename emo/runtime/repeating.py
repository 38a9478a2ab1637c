"""Something that is done again and again on a thread of its own, while a block runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], None], every_s: float, name: str, patience_s: float | None = None) -> Iterator[None]:
    """Call `work` at once, and `every_s` seconds after each call. The end of the block waits for a call that is under way, at
    most `patience_s`."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            work()
            over.wait(every_s)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(patience_s)
