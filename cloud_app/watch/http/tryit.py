"""POST /api/try: an image of a reader goes to the endpoint, one at a time and not too often."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cloud_app.serving.http.body import Incoming
from cloud_app.serving.infer_request import Refused
from emo.errors import ServeError
from emo.logs import printable

MAX_IMAGE = 4 << 20
_EVERY_S = 0.3  # of one reader
_AT_ONCE = 4  # of all readers
_ANSWER_S = 20.0


class TryIt:
    """`ask`: an image file's content -> the answer; it may take its time, and raise ServeError."""

    def __init__(self, ask: Callable[[bytes], dict[str, Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._pool = ThreadPoolExecutor(_AT_ONCE, "try")
        self._readers = dict[str, float]()  # who asks, or has just asked, until when he may not ask again
        self._busy = set[str]()

    async def __call__(self, request: Incoming) -> dict[str, Any]:
        """Raises Refused: 413, 415, 429, 502 with what the endpoint says, 503, 504."""
        self._may_ask(request.who)
        if request.header(b"content-type").startswith("multipart/"):
            raise Refused(415, "send the image file as the body itself: curl --data-binary @FILE")
        self._busy.add(request.who)
        try:
            image = await request.body(MAX_IMAGE)
            asked = self._pool.submit(self._ask, image)
        except BaseException:
            self._busy.discard(request.who)
            raise
        return await self._answer(asked, request.who)

    async def _answer(self, asked: Future[dict[str, Any]], who: str) -> dict[str, Any]:
        asked.add_done_callback(lambda _: self._busy.discard(who))  # not before: its thread is taken as long
        answer = asyncio.wrap_future(asked)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await asyncio.shield(answer)
        except TimeoutError as error:
            raise Refused(504, f"the endpoint has not answered within {_ANSWER_S:.0f} s") from error
        except ServeError as error:
            raise Refused(502, printable(error, 600)) from error

    def _may_ask(self, who: str) -> None:
        now = self._clock()
        self._readers = {each: until for each, until in self._readers.items() if until > now}
        if who in self._busy or who in self._readers:
            raise Refused(429, "one image at a time, please: the last one is hardly answered yet")
        if len(self._busy) >= _AT_ONCE:
            raise Refused(503, "other readers' images are with the endpoint; try again in a few seconds")
        self._readers[who] = now + _EVERY_S

    def close(self, *, wait: bool = False) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=True)
