"""A YAML file, then `EMO_*` variables on top, into one of config.py's validated models.

    EMO_WAN__HOST=10.0.0.2 EMO_TRAINING__LR=0.05 emo cloud --config cloud.yaml

Knows files, variables and how to say what is wrong with them. Knows no field.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from emo.config import CloudConfig, DeviceConfig, EdgeConfig, Section
from emo.errors import ConfigError, nearest

T = TypeVar("T", bound=Section)
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # a month 13, a thousand brackets


def load(kind: type[T], path: Path, environ: Mapping[str, str] = os.environ) -> T:
    """Read `path` as `kind`, with `EMO_*` on top. Raises ConfigError: file, key, and what would be right."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. `emo init DIR` writes examples."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    try:
        values = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    return parse(kind, values, str(path), environ)


def any_tier(path: Path) -> DeviceConfig | EdgeConfig | CloudConfig:
    """As the tier whose keys the file has most of. Raises ConfigError as `load`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, *_NOT_YAML):
        values = None  # load says what is wrong
    keys = set(values) if isinstance(values, dict) else set()
    kinds: tuple[type[DeviceConfig | EdgeConfig | CloudConfig], ...] = (DeviceConfig, EdgeConfig, CloudConfig)
    return load(max(kinds, key=lambda kind: len(keys & set(kind.model_fields))), path)


def parse(kind: type[T], values: dict[str, Any], where: str, environ: Mapping[str, str] = os.environ) -> T:
    """Validate `values` as `kind`; `where` is named in errors. Relative paths stay relative to the process."""
    for name, text in sorted(environ.items()):
        if name.startswith("EMO_") and name != "EMO_API_KEY":  # that is the endpoint's
            try:
                value = yaml.safe_load(text)
            except _NOT_YAML as error:
                raise ConfigError(f"{name}: is not YAML: {' '.join(str(error).split())}") from error
            values = _set(values, name, name.removeprefix("EMO_").lower().split("__"), value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{where}: {_say(kind, dict(each))}" for each in error.errors(include_url=False)]
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
        shown = "" if error["type"] == "missing" else f" (found {error['input']!r})"
        return f"{place}: {error['msg'].removeprefix('Value error, ')}{shown}"
    known = _fields(kind, keys[:-1])
    return f"{place}: unknown key; {nearest(keys[-1], known)}"


def _fields(kind: type[BaseModel], keys: list[str]) -> list[str]:
    for key in keys:
        annotation = kind.model_fields[key].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        kind = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(kind.model_fields)
