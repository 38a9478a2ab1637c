"""How every experiment ends: bad input is a sentence and status 2, Ctrl-C is 130."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from emo.errors import EmoError

P = ParamSpec("P")


def command(name: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Of a function that gives the exit status of the experiment `name`."""

    def wrap(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **options: P.kwargs) -> int:
            try:
                return main(*args, **options)
            except EmoError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return run

    return wrap
