"""Reads every YAML text of ours, bounded: configurations, fleets, scenarios, variables.

Returns plain values, which are no larger than they look: aliases count as if they were written out. A key that stands twice
is refused, since YAML drops the first one silently.
"""

from pathlib import Path
from typing import Any

import yaml

from emo import files
from emo.errors import ConfigError

_LIMIT = 1 << 20  # bytes of a file; characters of its values, aliases written out
_NODE = 8  # what a value without any character counts for
_DEPTH = 32
_SHOWN, _SAID = 64, 400  # characters of a key, of what the reader says
_NUMBER = 64  # characters of a number or a date: a sexagesimal one is computed in quadratic time


class _Refused(yaml.YAMLError):
    def __init__(self, mark: Any, text: str) -> None:
        super().__init__(f"line {mark.line + 1}: {text}")


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._size = 0
        self._sizes: dict[yaml.Node, int] = {}  # of those that are whole, aliases in them written out

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if self._depth == _DEPTH:
            raise _Refused(event.start_mark, f"is nested deeper than {_DEPTH} levels")
        outer, self._size, self._depth = self._size, 0, self._depth + 1
        node = super().compose_node(parent, index)
        assert node is not None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _Refused(event.start_mark, f"*{event.anchor} stands in what it is an alias of")
            self._size = self._sizes[node]
        else:
            self._size += _NODE
            if isinstance(node, yaml.ScalarNode):
                self._size += len(node.value)
                if len(node.value) > _NUMBER and node.tag != self.DEFAULT_SCALAR_TAG:
                    raise _Refused(event.start_mark, f"a number or date of over {_NUMBER} characters")
            self._sizes[node] = self._size
        self._size, self._depth = outer + self._size, self._depth - 1
        if self._size > _LIMIT:
            raise _Refused(
                event.start_mark,
                f"over {_LIMIT:,} characters so far, with what its aliases stand for written out",
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                first = lines.get(name := (key.tag, key.value))
                if first is not None:
                    raise _Refused(
                        key.start_mark, f"{key.value[:_SHOWN]!r} stands there twice (line {first}): keep one"
                    )
                lines[name] = key.start_mark.line + 1
        return node


def read(path: Path, advice: str = "") -> Any:
    """The values in a file. Raises ConfigError: file, line, what is wrong; `advice` is added if it cannot be read."""
    try:
        data = files.read(path, _LIMIT)
        if len(data) > _LIMIT:
            raise ConfigError(f"{path}: has more than the {_LIMIT:,} bytes that are read of any YAML file")
        return parse(data.decode(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{advice}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error


def parse(text: str, where: str) -> Any:
    """The values in `text`; `where` is named in errors. Raises ConfigError."""
    if len(text) > _LIMIT:
        raise ConfigError(f"{where}: has more than the {_LIMIT:,} characters that are read")
    try:
        return _Loader(text).get_single_data()
    except _Refused as error:
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:  # a month 13 is a ValueError, `!!bool x` a KeyError, `!!int ''` an IndexError, ...
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark and "password" in text:
            error.problem_mark.buffer = None  # the line is not quoted
        problem = " ".join(str(error)[:_SAID].split()).replace(' in "<unicode string>",', ",")
        raise ConfigError(f"{where}: is not YAML: {problem}") from error
