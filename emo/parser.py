"""Command lines: what --help says of an option ends with its default, taken from the option itself."""

import argparse
import shlex
from typing import Any


class Parser(argparse.ArgumentParser):
    """Its subcommands are such parsers too. Where what is taken without an option depends on others, its help says so
    itself, as "(default: by dataset)"."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})


class _Help(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if action.nargs == 0 or default in (None, "", [], argparse.SUPPRESS):
            return text
        words = default if isinstance(default, list | tuple) else [default]
        shown = shlex.join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)
        return f"{text} (default: {shown.replace('%', '%%')})"
