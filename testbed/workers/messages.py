"""What this process and its workers say to each other: dataclasses, sent as JSON and the bytes that it refers to.

Nothing is pickled. Bytes travel as they are, each in a part of its own; a message of the wire (emo/wire/messages.py) travels as the
payload of its frames.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ConfigDict

from emo.wire import frame

A = TypeVar("A")
CHECKED = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
_PART, _WIRE, _MESSAGE = "part", "wire", "message"


class Message:
    """Base of the dataclasses (pydantic's, CHECKED) that `encode` takes: also on arrival their fields are checked."""

    known: ClassVar[dict[str, type["Message"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Message.known[f"{cls.__module__}.{cls.__qualname__}"] = cls


class Request(Message, Generic[A]):
    """What a worker is asked. Its handler answers with an `A`: a message, bytes, or what JSON holds."""


def encode(value: object) -> list[bytes]:
    """The JSON first, then the bytes that it refers to."""
    parts = [b""]

    def plain(value: object) -> object:
        if isinstance(value, bytes):
            parts.append(value)
            return {_PART: len(parts) - 1}
        if isinstance(value, frame.KINDS):
            return {_WIRE: frame.KINDS.index(type(value)), "payload": frame.pack(value)}
        if isinstance(value, Path):
            return str(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            name = f"{type(value).__module__}.{type(value).__qualname__}"
            return {_MESSAGE: name, **fields} if isinstance(value, Message) else fields
        raise TypeError(f"a {type(value).__name__} cannot be sent to another process")

    parts[0] = json.dumps(value, default=plain).encode()
    return parts


def decode(parts: Sequence[bytes]) -> Any:
    """What `encode` was given."""

    def whole(fields: dict[str, Any]) -> Any:
        if _PART in fields:
            return parts[fields[_PART]]
        if _WIRE in fields:
            return frame.unpack(fields[_WIRE], fields["payload"])
        return Message.known[fields.pop(_MESSAGE)](**fields) if _MESSAGE in fields else fields

    return json.loads(parts[0], object_hook=whole)
