"""POST /api/try: one image of a reader at a time, bounded, and errors in words."""

import asyncio
import threading

import pytest

from cloud_app.serving.fair_share import FairShare
from cloud_app.serving.http.body import Incoming
from cloud_app.serving.infer_request import Refused
from cloud_app.watch.http import tryit
from cloud_app.watch.http.tryit import MAX_IMAGE, TryIt
from emo.errors import ServeError


class Door:
    """What an endpoint would take its time for."""

    def __init__(self):
        self.open, self.reached = threading.Event(), threading.Event()

    def ask(self, image):
        self.reached.set()
        assert self.open.wait(10)
        if image == b"bad":
            raise ServeError("http://x: this is no\x1b image")
        return {"model": "emo"}


@pytest.fixture
def door():
    made = Door()
    yield made
    made.open.set()


@pytest.fixture
def tries(door):
    made = TryIt(door.ask, lambda: made.now)
    made.now = 0.0
    yield made
    made.close()


def request(body=b"image", who="10.0.0.1", **headers):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"method": "POST", "path": "/api/try", "headers": names, "client": (who, 7)}
    return Incoming(scope, receive, FairShare(64 << 20))


async def refused(status, tries, *given, **more):
    with pytest.raises(Refused) as caught:
        await tries(request(*given, **more))
    assert caught.value.status == status
    return str(caught.value)


async def asking(tries, door, **more):
    door.reached.clear()
    task = asyncio.ensure_future(tries(request(**more)))
    assert await asyncio.to_thread(door.reached.wait, 10)
    return task


def test_one_at_a_time_of_a_reader_and_few_of_all(tries, door):
    async def main():
        first = await asking(tries, door)
        assert "one image at a time" in await refused(429, tries)
        others = [await asking(tries, door, who=f"10.0.0.{place}") for place in (2, 3, 4)]
        assert "other readers" in await refused(503, tries, who="10.0.0.5")
        door.open.set()
        assert [await each for each in (first, *others)] == [{"model": "emo"}] * 4
        await refused(429, tries)  # too soon
        tries.now = 0.31
        assert await tries(request()) == {"model": "emo"}
        assert set(tries._readers) == {"10.0.0.1"}

    asyncio.run(main())


def test_what_is_no_image_is_refused_and_keeps_nobody_out(tries, door):
    async def main():
        door.open.set()
        for status, given, more in (
            (413, bytes(MAX_IMAGE + 1), {}),
            (415, b"--x", {"content_type": "multipart/form-data; boundary=x"}),
            (502, b"bad", {}),
        ):
            text = await refused(status, tries, given, **more)
            tries.now += 1
        assert text == "http://x: this is no? image"
        assert await tries(request()) == {"model": "emo"}
        assert not tries._busy

    asyncio.run(main())


def test_an_endpoint_that_does_not_answer_takes_its_place_until_it_does(tries, door, monkeypatch, caplog):
    monkeypatch.setattr(tryit, "_ANSWER_S", 0.1)

    async def main():
        assert "has not answered within" in await refused(504, tries, b"bad")
        tries.now = 1.0
        await refused(429, tries)
        door.open.set()
        await asyncio.to_thread(tries.close, wait=True)
        assert not tries._busy

    asyncio.run(main())
    assert not caplog.records
