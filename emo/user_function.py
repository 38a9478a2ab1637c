"""Finds a function by `package.module:function`: the user's own network or dataset, and our built-in datasets.

Knows how to import and how to say that it did not work. Knows nothing of what the function gives.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from emo.errors import EmoError, nearest


def unknown(name: str, known: Iterable[str]) -> str:
    """What is wrong with a name that is neither `known` nor of the user's own kind; empty: nothing. Imports nothing."""
    module, _, attribute = name.partition(":")
    if name in known or (module and attribute):
        return ""
    return f"unknown name {name!r}; {nearest(name, known)} Your own is written package.module:function."


def function(name: str, key: str, known: Iterable[str], error: type[EmoError]) -> Callable[..., Any]:
    """Import `package.module:function`. `key` is the configuration's key and `known` its built-in names.

    Raises `error` when the name has another form, when the module does not import, or when it has no such
    function. What the module itself does wrong while it is imported is part of that sentence.
    """
    if wrong := unknown(name, known):
        raise error(f"{key}: {wrong}")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as cause:  # a user's module may raise anything
        raise error(
            f"{key}: {module} does not import: {type(cause).__name__}: {cause}. "
            "Install it, or put its folder on PYTHONPATH."
        ) from cause
    if not callable(found):
        raise error(f"{key}: {module} has no function {attribute!r}")
    return found  # type: ignore[no-any-return]  # what it returns is checked by the caller
