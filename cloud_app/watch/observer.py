"""The observer as a node: takes what it hears to the view, and says nothing but that it is here."""

from collections.abc import Callable, Iterator

from cloud_app.watch.watcher import Watcher
from emo.runtime.runner import Node
from emo.wire.messages import Message, Status


class Observer(Node):
    """`connected`: whether the broker can be heard."""

    def __init__(self, name: str, watcher: Watcher, connected: Callable[[], bool]) -> None:
        self._name, self._watcher, self._connected = name, watcher, connected

    def hello(self, online: bool) -> Status:
        return Status(self._name, "observer", online)

    def handle(self, message: Message, now: float) -> Iterator[Message]:
        del now
        self._watcher.take(message)
        return iter(())

    def tick(self, now: float) -> Iterator[Message]:
        del now
        self._watcher.link(self._connected())
        return iter(())
