"""The command line, `emo ...`. Its commands are what the entry points of the group `emo.commands` add to it."""

import importlib.metadata
import sys
import threading
from collections.abc import Sequence

from emo import __version__, logs, terminal
from emo.errors import ConfigError, EmoError
from emo.parser import Commands, Parser
from emo.runtime.runner import stop_on

_GROUP = "emo.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """0: done. 1: a check failed. 2: bad input, said in one line. 130: interrupted. 141: nobody reads what is printed."""
    return terminal.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    command = "emo"
    try:
        args = _parser().parse_args(argv)
        command = f"emo {args.command}"
        logs.configure(args.verbose)
        stop = threading.Event()
        stop_on(stop, *args.signals)
        code: int = args.run(args, stop)
    except EmoError as error:
        for line in str(error).splitlines():
            print(f"{command}: {logs.printable(line)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> Parser:
    """With the commands of the packages that are here: an image holds only some. The entry points' names begin with a
    number, so that --help has an order."""
    parser = Parser(prog="emo", description="Edge model overlays beside federated learning.")
    parser.add_argument("--version", action="version", version=f"emo {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log connections too")
    commands = Commands(parser, "COMMAND", dest="command", required=True)
    entries = sorted(importlib.metadata.entry_points(group=_GROUP), key=lambda entry: entry.name)
    if not entries:
        raise ConfigError("what is installed here is older than this code, and names no command: run make setup")
    absent = []
    for entry in entries:
        try:
            module = entry.load()
        except ModuleNotFoundError as error:
            absent.append(f"{entry.name.partition('-')[2]} (no module {error.name})")
        else:
            module.register(commands)
    if absent:
        parser.epilog = f"Not in this installation: the commands of {', '.join(absent)}."
    return parser


if __name__ == "__main__":
    sys.exit(main())
