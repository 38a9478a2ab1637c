"""Children that read for the endpoint: what they read is right, what takes too much ends one of them and nothing else."""

import asyncio
import json
import time

import numpy as np
import pytest
from attackers import picture, progressive, values
from serving import request

from cloud_app.serving import workers
from cloud_app.serving.images import pixels
from cloud_app.serving.infer_request import Refused, Signature, parse
from cloud_app.serving.workers import Workers

TAKES = Signature("tiny", 1, "images", (3, 2, 2), "UINT8", {"logits": (3,)}, ("a", "b", "c"), 64)
SMALL = picture(9, 5)


def run(main):
    async def whole():
        made = Workers()
        try:
            await main(made)
        finally:
            children = list(made._all)
            await made.close()
        assert all(child.returncode is not None for child in children)

    asyncio.run(whole())


def test_what_they_read_is_what_would_be_read_here():
    async def main(made):
        found, size = await made.image(SMALL, TAKES, "a")
        wanted, _ = pixels(SMALL, TAKES)
        np.testing.assert_array_equal(found, wanted)
        assert (found.dtype, size) == (wanted.dtype, (9, 5))
        body = json.dumps(request(id="7", parameters={"timeout": 5}, outputs=[{"name": "logits"}])).encode()
        found, wanted = await made.call(body, TAKES, None, "a"), parse(body, TAKES)
        np.testing.assert_array_equal(found.images, wanted.images)
        assert (found.id, found.outputs, found.timeout_s) == (wanted.id, wanted.outputs, wanted.timeout_s)
        for job in (made.image(b"none", TAKES, "a"), made.call(b"{", TAKES, None, "a")):
            with pytest.raises(Refused) as caught:
                await job
            assert caught.value.status == 400
        assert (len(made._all), made.lost) == (1, 0)

    run(main)


@pytest.mark.parametrize(
    ("limit", "most", "jobs"),
    [
        ("CPU_SECONDS", 0.3, [lambda made: made.image(progressive(4000, 4000, 28), TAKES, "a")]),
        (
            "MEMORY",
            48 << 20,
            [
                lambda made: made.image(picture(5000, 5000), TAKES, "a"),
                lambda made: made.call(values(2, b"[],", 16 << 20), TAKES, None, "a"),
            ],
        ),
    ],
)
def test_too_much_ends_a_job_and_the_next_is_done(monkeypatch, limit, most, jobs):
    monkeypatch.setattr(workers, limit, most)

    async def main(made):
        for job in jobs:
            with pytest.raises(Refused, match="more memory or time") as caught:
                await job(made)
            assert caught.value.status == 413
            await made.image(SMALL, TAKES, "a")

    run(main)


def test_who_waits_for_nobody_is_given_up():
    async def main(made):
        job = asyncio.ensure_future(made.image(progressive(4000, 4000, 28), TAKES, "a"))
        while not made._all:  # noqa: ASYNC110 - nobody would set an event
            await asyncio.sleep(0.01)
        (child,) = made._all
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert await asyncio.wait_for(child.wait(), 10) == -9
        await made.image(SMALL, TAKES, "a")

    run(main)


class Turns(Workers):
    """Whose jobs are done when they are told to; `began`: the clients that they were of."""

    def __init__(self, **more):
        super().__init__(**more)
        self.began, self.go = [], asyncio.Semaphore(0)

    async def _ask(self, job, data):
        self.began.append(data)
        await self.go.acquire()
        return {"shape": [0]}, b""


def test_a_client_never_has_all_of_them_and_turns_go_round():
    async def main():
        made = Turns(count=2, queue=4)
        jobs = [asyncio.ensure_future(made._run({}, who, TAKES, who)) for who in "aaaab"]
        await asyncio.sleep(0.01)
        assert made.began == ["a", "a", "b"]
        jobs += [asyncio.ensure_future(made._run({}, who, TAKES, who)) for who in "cc"]
        await asyncio.sleep(0.01)
        assert made.began == ["a", "a", "b"]  # three at most
        jobs.append(asyncio.ensure_future(made._run({}, "d", TAKES, "d")))
        await asyncio.sleep(0.01)
        refused = [each.done() for each in jobs]
        assert refused.count(True) == 1  # five wait, one too many; it is of those that have two
        assert not refused[-1]
        for _ in range(7):
            made.go.release()
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(each) for each in found].count(Refused) == 1
        assert made.began[3:6] in (["a", "c", "d"], ["a", "d", "c"])
        assert made._busy.total() == 0

    asyncio.run(main())


def test_a_turn_that_does_not_come_is_not_waited_for():
    async def main():
        made = Turns(count=1, wait_s=0.05)
        first = asyncio.ensure_future(made._run({}, "a", TAKES, "a"))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(Refused, match="was up"):
            await made._run({}, "a", TAKES, "a")
        assert time.monotonic() - began < 10
        gone = asyncio.ensure_future(made._run({}, "a", TAKES, "a"))
        await asyncio.sleep(0)
        gone.cancel()
        made.go.release()
        await first
        made.go.release()
        await made._run({}, "a", TAKES, "a")
        assert made._busy.total() == 0

    asyncio.run(main())
