"""What studies and benches share: options that several have, how they end, and figures as lines, a table or a JSON file."""

import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from emo.config import CODECS
from emo.errors import EmoError
from emo.parser import Parser

P = ParamSpec("P")
T = TypeVar("T")

_HELP = {
    "dataset": "digits, cifar10, cifar100 or folder",
    "data_dir": "where the dataset lies (default: none; digits needs none)",
    "model": "cnn, vgg6, mobilenet6, ...",
    "norm": "how the network normalises",
    "width": "width multiplier of the network",
    "devices": "how many",
    "per_round": "devices sampled a round",
    "samples": "of one device",
    "batch_size": "samples a batch",
    "rounds": "FL rounds",
    "lr": "the devices' learning rate",
    "alpha": "of Dirichlet(alpha x prior): smaller is less alike; 5 is Dir(0.5) for 10 classes",
    "codec": "how activations are written",
    "seeds": "each is a run",
    "workers": "processes",
    "turns": "how often each is measured",
    "scenario": "YAML (default: the paper's testbed)",
    "plot": "as .svg or .png (default: no plot)",
}
_PATHS = {"data_dir": "DIR", "scenario": "FILE", "plot": "FILE"}
_CHOICES: Mapping[str, Sequence[str]] = {"norm": ("group", "batch", "none"), "codec": CODECS}


def parser(doc: str | None, epilog: str | None = None, **defaults: Any) -> Parser:
    """With `--json` and the shared options that `defaults` names; a list is an option of several values."""
    made = Parser(description=(doc or "").partition("\n")[0], epilog=epilog)
    for name, default in defaults.items():
        several = isinstance(default, list)
        made.add_argument(
            f"--{name.replace('_', '-')}",
            default=default,
            help=_HELP[name],
            type=Path if name in _PATHS else type(default[0] if several else default),
            nargs="+" if several else None,
            choices=_CHOICES.get(name),
            metavar=_PATHS.get(name),
        )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE (default: no file)")
    return made


def command(name: str) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Of a function that gives the exit status of the study `name`: bad input is a sentence and status 2, Ctrl-C is 130."""

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


def write(path: Path | None, figures: object) -> None:
    """As JSON, where there is a `path`."""
    if path is not None:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def show(figures: Mapping[str, object]) -> None:
    """A line each."""
    for name, value in figures.items():
        print(f"{name:24} {value:.4g}" if isinstance(value, float) else f"{name:24} {value}")


def line(figures: Mapping[str, object], between: str = ", ") -> None:
    """All in one line, as soon as they are known."""
    print(between.join(f"{name} {value}" for name, value in figures.items()), flush=True)


def markdown(*cells: object) -> None:
    """A row of a table, as soon as it is known."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def heads(*names: str) -> None:
    """Of such a table."""
    markdown(*names)
    print("|" + "---|" * len(names))


def in_turns(ways: Mapping[str, Callable[[], T]], turns: int) -> dict[str, list[T]]:
    """What each of `ways` gives, `turns` times. They take turns, every other one in reverse, so that the machine's other
    work hits them alike."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for turn in range(turns):
        for name in reversed(list(ways)) if turn % 2 else ways:
            found[name].append(ways[name]())
    return found


def mean(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
