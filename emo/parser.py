"""Command lines: --help shows each option's own default, an option given twice is refused or collected, `~` is the home
folder in every path."""

import argparse
import functools
import shlex
import signal
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emo import extras, places

Run = Callable[[argparse.Namespace, threading.Event], int]
GRACEFUL = (signal.SIGTERM, signal.SIGINT)  # Ctrl-C, too, lets the command end in good order


class Parser(argparse.ArgumentParser):
    """Its subcommands are such parsers too. An option whose default depends on others says so in its help, as "(default: by
    dataset)". An option of one value is refused the second time, one of several values collects them."""

    def __init__(self, *, given: set[str] | None = None, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})
        self.given: set[str] = set() if given is None else given  # options so far, in the whole command line
        self.register("action", None, _Store)
        self.register("action", "store", _Store)
        self.register("type", Path, _path)

    def parse_args(self, *args: Any, **options: Any) -> Any:
        self.given.clear()
        return super().parse_args(*args, **options)

    def add_subparsers(self, **options: Any) -> Any:
        kind: Any = functools.partial(type(self), given=self.given)
        return super().add_subparsers(parser_class=kind, **options)


class Commands:
    """The commands of a parser. Each package's `commands` module adds its own, in `register(commands: Commands)`."""

    def __init__(self, parser: argparse.ArgumentParser, metavar: str, **options: Any) -> None:
        self._parsers = parser.add_subparsers(metavar=metavar, **options)

    def __getitem__(self, name: str) -> argparse.ArgumentParser:
        """The parser of a command that was added."""
        parser: argparse.ArgumentParser = self._parsers.choices[name]
        return parser

    def add(
        self,
        name: str,
        run: Run | None,
        text: str,
        extra: str | None = None,
        signals: Sequence[int] = (signal.SIGTERM,),
    ) -> argparse.ArgumentParser:
        """The parser of a new command, to add its options to. `extra`: which of emo-overlays it needs; --help says so where
        that is not installed. `signals` set the event that `run` is called with."""
        if extra is not None and extras.missing(extra):
            text += f" (needs pip install 'emo-overlays[{extra}]')"
        parser: argparse.ArgumentParser = self._parsers.add_parser(name, help=text, description=text)
        parser.set_defaults(run=run, signals=signals)
        return parser


class _Help(argparse.HelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # commands to copy have hyphens

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if action.nargs == 0 or default in (None, "", [], argparse.SUPPRESS):
            return text
        words = default if isinstance(default, list | tuple) else [default]
        shown = shlex.join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)
        return f"{text} (default: {shown.replace('%', '%%')})"


class _Store(argparse._StoreAction):  # noqa: SLF001 - argparse has no other name for it
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(parser, Parser)
        if self.option_strings:
            name = self.option_strings[-1]
            if name in parser.given and self.nargs not in {"+", "*"}:
                raise argparse.ArgumentError(self, "given twice; which one is meant?")
            if name in parser.given and isinstance(values, Sequence):
                values = [*getattr(namespace, self.dest), *values]
            parser.given.add(name)
        super().__call__(parser, namespace, values, option_string)


def _path(text: str) -> Path:
    try:
        return places.home(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
