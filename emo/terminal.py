"""Lets a command print to any stdout: a terminal of few characters, a full disk, a pipe that nobody reads."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

_READER_GONE = 128 + 13  # as a shell says of a program that SIGPIPE has ended


def run(command: Callable[[], int]) -> int:
    """The exit status of `command`, or one that says that its output was lost. What a terminal cannot show is escaped."""
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
    """Whether nothing can be written to it. If so it is redirected to nowhere, since the interpreter flushes once more."""
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
