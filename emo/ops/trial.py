"""What `emo doctor` has done in a process of its own: all that a tier reads and builds before it connects.

python -m cloud_app.ready FILE     the last line is {"ok": ..., "detail": ...}
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from emo.config import Section
from emo.config_file import load
from emo.errors import EmoError

T = TypeVar("T", bound=Section)


def main(kind: type[T], ready: Callable[[T], str]) -> None:
    """`ready`: says what it has made. What it raises, other than EmoError, is a traceback."""
    try:
        found = {"ok": True, "detail": ready(load(kind, Path(sys.argv[1])))}
    except EmoError as error:
        found = {"ok": False, "detail": str(error)}
    sys.stdout.write(f"\n{json.dumps(found)}\n")
