"""The endpoint as the observer sees it: how it does, every few seconds, and what its model says of an image. It is asked, and
told to do nothing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from cloud_app.serving import client
from cloud_app.serving.client import Labels
from cloud_app.watch.watcher import Watcher
from emo.config import Served
from emo.errors import ServeError
from emo.logs import printable
from emo.runtime.repeating import repeating

EVERY_S = 5.0
TIMEOUT_S = 10.0  # without a word from it
_HUGE = 1 << 63
_MOST = 20  # labels of an answer, and
_ANSWERS = 200  # answers: of what no page shows


class Endpoint:
    """Raises ServeError where its key cannot be read."""

    def __init__(self, config: Served) -> None:
        self.name = config.name
        self.url = _without_login(config.url)
        self._key = client.first_key(config.api_key_file) if config.api_key_file is not None else None
        self._ca = config.ca
        self._requests, self._ns = -1, 0  # as far as the last look
        self._latency_ms: float | None = None
        self._alive: bool | None = None
        self._changed = 0.0

    def look(self, now: float) -> dict[str, Any]:
        """As /api/state has it: `text` says what is wrong where it is not `alive`, `changed` since when. `requests`: answered by
        all versions so far; `latency_ms`: of those since the look before, or of the last ones that there were."""
        try:
            about = self._get(f"/v2/models/{quote(self.name, safe='')}")
            version = printable(about["versions"][-1], 40)
            self._count(self._get("/v2/models/stats"))
        except ServeError as error:
            return self._told(now, alive=False, version="", text=printable(error))
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            return self._told(now, alive=False, version="", text=f"{self.url}: speaks no Open Inference Protocol v2")
        figures = {"requests": self._requests, "latency_ms": self._latency_ms}
        return self._told(now, alive=True, version=version, text="", **figures)

    def answers(self, image: bytes) -> dict[str, Any]:
        """What FL model, pairs and ensemble say of an image file's content, as /api/try answers it. Raises ServeError."""
        where, who = (self.url, self.name), (self._key, self._ca)
        found = client.answers(*where, image, "this image", *who, members=True, timeout_s=TIMEOUT_S)
        rows = [*found.members[:_ANSWERS], ("ensemble", found.labels)]
        told = {
            "model": self.name,
            "version": printable(found.version, 40),
            "answers": [{"name": printable(name, 100), "labels": _best(labels)} for name, labels in rows],
        }
        if not found.members:
            told["note"] = "this version does not tell what its members answer: it was exported without"
        return told

    def _get(self, path: str) -> dict[str, Any]:
        return client.ask(self.url, path, None, self._key, self._ca, timeout_s=TIMEOUT_S)

    def _count(self, stats: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError, OverflowError."""
        mine = [each["inference_stats"] for each in stats["model_stats"] if each["name"] == self.name]
        both = [each[kind] for each in mine for kind in ("success", "fail")]
        requests, ns = sum(int(each["count"]) for each in both), sum(int(each["ns"]) for each in both)
        if not (0 <= requests < _HUGE and 0 <= ns < _HUGE):
            raise ValueError
        new = requests - self._requests
        if self._requests >= 0 and new > 0 and ns >= self._ns:
            self._latency_ms = round((ns - self._ns) / new / 1e6, 3)
        self._requests, self._ns = requests, ns

    def _told(self, now: float, *, alive: bool, **more: Any) -> dict[str, Any]:
        if alive != self._alive:
            self._alive, self._changed = alive, round(now, 1)
        return {"url": self.url, "name": self.name, "alive": alive, "changed": self._changed, **more}


@contextmanager
def looking(endpoint: Endpoint, watcher: Watcher, every_s: float = EVERY_S) -> Iterator[None]:
    """Tells `watcher` how the endpoint does, while the block runs."""
    watcher.served({"url": endpoint.url, "name": endpoint.name, "alive": False, "version": "", "text": ""})

    # A look that waits for an answer changes nothing any more.
    with repeating(lambda: watcher.served(endpoint.look(time.time())), every_s, "endpoint", patience_s=1):
        yield


def _without_login(url: str) -> str:
    """What is shown is without a name and a password; they are not sent either."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _best(labels: Labels) -> list[tuple[str, float]]:
    return [(printable(label, 100), probability) for label, probability in labels[:_MOST]]
