"""Where a command prints to, as it may be: of few characters, full, or with nobody at its other end."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

_READER_GONE = 128 + 13  # as a shell says of a program that SIGPIPE has ended


def run(command: Callable[[], int]) -> int:
    """The exit status of `command`, or why what it prints did not arrive. What a terminal cannot show goes as \\u1234."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        lost = [_lost(stream) for stream in (sys.stdout, sys.stderr)]
        if not any(lost):
            raise
        if isinstance(error, BrokenPipeError):
            return _READER_GONE
        with contextlib.suppress(OSError):
            sys.stderr.write(f"emo: what was to be printed cannot be written: {error.strerror}\n")
        return 2


def _lost(stream: TextIO | None) -> bool:
    """Whether nothing can be written to it. Then it leads nowhere from here on: the interpreter flushes once more."""
    if stream is None:
        return False
    try:
        stream.flush()
        lost = False
        with contextlib.suppress(io.UnsupportedOperation):  # of a test's
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            lost = any(event & select.POLLERR for _, event in poll.poll(0))  # where nothing is buffered
    except OSError:
        lost = True
    if lost:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
    return lost
