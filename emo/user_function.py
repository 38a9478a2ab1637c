"""Imports a function by its name, `package.module:function`: the user's own network or dataset, and ours."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from emo.errors import EmoError, nearest


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a name: it is neither `known` nor of the form of the user's own. Empty if nothing. Imports nothing."""
    module, _, attribute = name.partition(":")
    if name in known or (module and attribute):
        return ""
    return f"unknown name {name!r}; {nearest(name, known)} Your own is written package.module:function."


def function(name: str, key: str, known: Iterable[str], error: type[EmoError]) -> Callable[..., Any]:
    """Import `package.module:function`. `key` is the configuration's key and `known` its built-in names.

    Raises `error` when the name has another form, or the module does not import (with its own error) or has no such
    function.
    """
    if wrong := unknown(name, known):
        raise error(f"{key}: {wrong}")
    module, _, attribute = name.partition(":")
    try:
        value = getattr(importlib.import_module(module), attribute, None)
    except Exception as cause:  # a user's module may raise anything
        raise error(
            f"{key}: {module} does not import: {type(cause).__name__}: {cause}. "
            "Install it, or put its folder on PYTHONPATH."
        ) from cause
    if not callable(value):
        raise error(f"{key}: {module} has no function {attribute!r}")
    return value  # type: ignore[no-any-return]  # the caller checks what it returns
