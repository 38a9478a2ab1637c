"""Text that is safe in a log and on a screen, whoever wrote it: one printable line of bounded length.

`printable` is for every text from outside: a wire, a file of others, another process. The log that `configure` sets up
applies it to every line once more, in case it was forgotten somewhere.
"""

import logging
import sys
import threading
from types import TracebackType

LINE = 2000  # characters
_HEAD, _TAIL = 20, 60  # lines of a traceback that are shown


def printable(text: object, most: int = LINE) -> str:
    """`text` as one line of at most `most` characters; '?' replaces line breaks, escape codes and whatever else moves a
    terminal's cursor or changes its direction of writing."""
    shown = str(text)
    if len(shown) > most:
        shown = shown[: most - 3] + "..."
    return shown if shown.isprintable() else "".join(c if c.isprintable() else "?" for c in shown)


def configure(verbose: bool = False) -> None:
    """Log EMO's messages, its libraries' warnings and tracebacks of bugs to stderr. To be called once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("emo").setLevel(logging.DEBUG if verbose else logging.INFO)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _bug
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda args: _bug(args.exc_type, args.exc_value, args.exc_traceback)


class Lines(logging.Formatter):
    """One line a record. Lines of a traceback are indented, so that none can pass for a record."""

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # another handler's formatter keeps its own there
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        if len(lines) > _HEAD + _TAIL:
            lines[_HEAD:-_TAIL] = [f"... {len(lines) - _HEAD - _TAIL} lines ..."]
        return "\n".join(f"    {printable(line)}" for line in lines)


def _bug(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception) and error is not None:
        logging.getLogger("emo").critical("stopped by a bug", exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]  # Ctrl-C
