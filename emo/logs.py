"""What may stand in a log or on a screen: one printable line of bounded length, whoever wrote its words.

`printable` is for every text that comes from outside: a wire, a file of others, another process. A process's log is
set up by `configure`, which lets nothing else through, so that a place where `printable` was forgotten does no harm.
"""

import logging
import sys
import threading
from types import TracebackType

LINE = 2000  # characters
_HEAD, _TAIL = 20, 60  # lines of a traceback that are shown


def printable(text: object, most: int = LINE) -> str:
    """`text` as one line of at most `most` characters; '?' is in the place of line breaks, escape codes and what else
    moves a terminal's cursor or turns its direction of writing."""
    shown = str(text)
    if len(shown) > most:
        shown = shown[: most - 3] + "..."
    return shown if shown.isprintable() else "".join(c if c.isprintable() else "?" for c in shown)


def configure(verbose: bool = False) -> None:
    """Log to stderr: what EMO has to say, warnings of the libraries below it, tracebacks of bugs. To be called once."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("emo").setLevel(logging.DEBUG if verbose else logging.INFO)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _bug
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda args: _bug(args.exc_type, args.exc_value, args.exc_traceback)


class Lines(logging.Formatter):
    """A record is one line. The lines of a traceback are indented, so that none of them can pass for a record."""

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
