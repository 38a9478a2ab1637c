"""A YAML file, then `EMO_*` variables on top, into one of config.py's validated models.

EMO_WAN__HOST=10.0.0.2 EMO_TRAINING__LR=0.05 emo cloud --config cloud.yaml
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from emo import bounded_yaml
from emo.config import CloudConfig, DeviceConfig, EdgeConfig, Section, WatchConfig
from emo.errors import ConfigError, nearest

T = TypeVar("T", bound=Section)
Node = DeviceConfig | EdgeConfig | CloudConfig | WatchConfig
_SHOWN, _SAID = 80, 20  # characters of a wrong value; wrong values of a file
_SECRET = "password"  # noqa: S105 - the key: its value is never shown, and is no YAML: 0123 is not 83


def load(kind: type[T], path: Path, environ: Mapping[str, str] = os.environ) -> T:
    """Read `path` as `kind`, with `EMO_*` on top. Raises ConfigError: file, key, and what would be right."""
    return parse(kind, _values(path), str(path), environ)


def any_tier(path: Path, environ: Mapping[str, str] = os.environ) -> Node:
    """As the tier whose keys the file has most of. Raises ConfigError as `load`."""
    return tier_of(_values(path), str(path), environ)


def tier_of(values: dict[str, Any], where: str, environ: Mapping[str, str]) -> Node:
    """`parse` as the tier whose keys `values` has most of."""
    kinds: tuple[type[Node], ...] = (DeviceConfig, EdgeConfig, CloudConfig, WatchConfig)
    kind = max(kinds, key=lambda kind: len(set(values) & set(kind.model_fields)))
    return parse(kind, values, where, environ)


def tier(node: Node) -> str:
    """As messages and certificates call it: device, edge, cloud or observer."""
    name = type(node).__name__.removesuffix("Config").lower()
    return "observer" if name == "watch" else name


def _values(path: Path) -> dict[str, Any]:
    values = bounded_yaml.read(path, ". `emo init DIR` writes examples.")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    return values


def parse(kind: type[T], values: dict[str, Any], where: str, environ: Mapping[str, str] = os.environ) -> T:
    """Validate `values` as `kind`; `where` is named in errors. Relative paths stay relative to the process."""
    for name, text in sorted(environ.items()):
        if name.startswith("EMO_") and name != "EMO_API_KEY":  # that is the endpoint's
            keys = name.removeprefix("EMO_").lower().split("__")
            value = text if keys[-1] == _SECRET else bounded_yaml.parse(text, name)
            values = _set(values, name, keys, value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        lines = [f"{where}: {_say(kind, dict(item))}" for item in wrong[:_SAID]]
        if len(wrong) > _SAID:
            lines.append(f"{where}: and {len(wrong) - _SAID} more")
        raise ConfigError("\n".join(lines)) from error


def _set(values: dict[str, Any], name: str, keys: list[str], value: Any) -> dict[str, Any]:
    head, *rest = keys
    if not rest:
        return {**values, head: value}
    inner = values.get(head) or {}
    if not isinstance(inner, dict):
        raise ConfigError(f"{name}: {head} is a single value, it has no {'.'.join(rest)}")
    return {**values, head: _set(inner, name, rest, value)}


def _say(kind: type[BaseModel], error: dict[str, Any]) -> str:
    keys = [str(part) for part in error["loc"]]
    place = ".".join(keys) or "(top)"
    if error["type"] != "extra_forbidden":
        hidden = error["type"] == "missing" or _SECRET in str(error["input"]) or keys[-1:] == [_SECRET]
        shown = "" if hidden else f" (found {_short(error['input'])})"
        return f"{place}: {error['msg'].removeprefix('Value error, ')}{shown}"
    known = _fields(kind, keys[:-1])
    return f"{place}: unknown key; {nearest(keys[-1], known)}"


def _short(value: Any) -> str:
    text = re.sub(r"//[^/@\s]*@", "//...@", repr(value))  # the password in a URL
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _fields(kind: type[BaseModel], keys: list[str]) -> list[str]:
    for key in keys:
        if key not in kind.model_fields:  # a place in a list
            continue
        annotation = kind.model_fields[key].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        kind = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(kind.model_fields)
