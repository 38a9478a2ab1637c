"""Requests that wait together run together; each gets its own results."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloud_app.serving.batching import Batcher, Limits
from cloud_app.serving.infer_request import Refused
from cloud_app.serving.metrics import Stats


class Model:
    """Doubles what it gets, when `go` is set; `sizes` of the runs it was asked for."""

    def __init__(self):
        self.go = threading.Event()
        self.go.set()
        self.sizes = []
        self.error = None

    def run(self, images, options):
        assert self.go.wait(10)
        self.sizes.append(len(images))
        if self.error is not None:
            raise self.error
        return {"double": images * 2, "same": images}


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as made:
        yield made


def images(value, count=1):
    return np.full((count, 3), value, np.float32)


async def busy(batcher, model):
    """A run under way, which ends when `model.go` is set."""
    model.go.clear()
    running = asyncio.ensure_future(batcher.submit(images(-1)))
    await asyncio.sleep(0.02)
    return running


async def queued(*submits):
    tasks = [asyncio.ensure_future(each) for each in submits]
    await asyncio.sleep(0.02)
    return tasks


def test_what_comes_during_a_run_makes_the_next_batch(model, pool):
    async def main():
        stats = Stats()
        batcher = Batcher(model.run, pool, Limits(batch=8, runs=1), stats)
        first = await busy(batcher, model)
        tasks = await queued(*(batcher.submit(images(value, 1 + value % 3)) for value in range(6)))
        assert stats.waiting == 6
        model.go.set()
        for value, results in enumerate(await asyncio.gather(*tasks)):
            np.testing.assert_array_equal(results["double"], images(2 * value, 1 + value % 3))
            np.testing.assert_array_equal(results["same"], images(value, 1 + value % 3))
        await first
        assert model.sizes == [1, 7, 5]  # 1+2+3+1, then 2+3: never over eight, never out of order
        assert stats.waiting == 0
        assert (stats.samples, stats.queue.count, stats.infer.count) == (13, 7, 7)
        assert {size: each.count for size, each in stats.batches.items()} == {1: 1, 7: 1, 5: 1}

    asyncio.run(main())


def test_without_a_delay_nobody_waits_on_an_idle_machine(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(runs=1), Stats())
        for value in range(3):
            await batcher.submit(images(value))
        assert model.sizes == [1, 1, 1]

    asyncio.run(main())


def test_with_a_delay_the_first_waits_for_company_or_a_full_batch(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(batch=4, delay_s=0.05, runs=1), Stats())
        await asyncio.gather(*(batcher.submit(images(value)) for value in range(3)))
        assert model.sizes == [3]
        batcher = Batcher(model.run, pool, Limits(batch=4, delay_s=60, runs=1), Stats())
        await asyncio.wait_for(asyncio.gather(*(batcher.submit(images(value)) for value in range(4))), 10)
        assert model.sizes == [3, 4]

    asyncio.run(main())


def test_a_delay_counts_from_the_first_one_that_waits_also_behind_a_run(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(batch=4, delay_s=0.1, runs=1), Stats())
        first = asyncio.ensure_future(batcher.submit(images(0, 4)))
        model.go.clear()
        rest = await queued(batcher.submit(images(1)))
        model.go.set()
        await asyncio.wait_for(asyncio.gather(first, *rest), 10)
        assert model.sizes == [4, 1]

    asyncio.run(main())


def test_a_request_larger_than_a_batch_runs_alone(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(batch=2, runs=1), Stats())
        first = await busy(batcher, model)
        tasks = await queued(batcher.submit(images(1)), batcher.submit(images(2, 5)), batcher.submit(images(3)))
        model.go.set()
        results = await asyncio.gather(first, *tasks)
        assert [len(each["same"]) for each in results] == [1, 1, 5, 1]
        assert model.sizes == [1, 1, 5, 1]

    asyncio.run(main())


def test_a_full_queue_refuses_and_takes_again_afterwards(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(queue=2, runs=1), Stats())
        first = await busy(batcher, model)
        tasks = await queued(*(batcher.submit(images(value)) for value in range(2)))
        with pytest.raises(Refused, match="waiting already") as caught:
            await batcher.submit(images(9))
        assert caught.value.status == 503
        model.go.set()
        await asyncio.gather(first, *tasks)
        await batcher.submit(images(9))

    asyncio.run(main())


def test_in_a_full_queue_the_client_with_most_requests_gives_way(model, pool):
    async def main():
        stats = Stats()
        batcher = Batcher(model.run, pool, Limits(queue=3, runs=1), stats)
        first = await busy(batcher, model)
        greedy = await queued(*(batcher.submit(images(value), None, "greedy") for value in range(3)))
        honest = await queued(batcher.submit(images(9), None, "honest"))
        assert [each.done() for each in (*greedy, *honest)] == [False, False, True, False]
        with pytest.raises(Refused, match="yours most of all"):
            await greedy[2]
        assert stats.waiting == 3
        model.go.set()
        await asyncio.gather(first, *greedy[:2], *honest)
        assert stats.waiting == 0

    asyncio.run(main())


@pytest.mark.parametrize(("own", "limit"), [(0.05, 60), (None, 0.05), (60, 0.05)])
def test_time_that_is_up_ends_the_wait_and_leaves_no_trace(model, pool, own, limit):
    async def main():
        stats = Stats()
        batcher = Batcher(model.run, pool, Limits(wait_s=limit, runs=1), stats)
        first = await busy(batcher, model)
        with pytest.raises(Refused, match="was up") as caught:
            await asyncio.wait_for(batcher.submit(images(1), own), 10)
        assert caught.value.status == 503
        assert stats.waiting == 0
        model.go.set()
        await first
        await batcher.submit(images(2))
        assert model.sizes == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_run_without_end_is_ended_and_the_next_goes_on(pool, by_itself):
    def run(batch, options):
        while len(batch) == 2 and not options.terminate:
            time.sleep(0.01)
        if options.terminate:
            raise RuntimeError("terminated")
        return {"same": batch}

    async def main():
        batcher = Batcher(run, pool, Limits(batch=2, runs=1, run_s=0.1 if by_itself else 60), Stats())
        endless = await queued(batcher.submit(images(1, 2)), batcher.submit(images(2)))
        if not by_itself:
            batcher.stop()
        with pytest.raises(Refused, match="was ended") as caught:
            await endless[0]
        assert caught.value.status == 500
        assert (await batcher.submit(images(3)))["same"][0, 0] == 3

    asyncio.run(main())


def test_an_error_reaches_all_of_its_batch_and_nobody_else(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(runs=1), Stats())
        first = await busy(batcher, model)
        model.error = RuntimeError("no memory")
        tasks = await queued(*(batcher.submit(images(value)) for value in range(2)))
        model.go.set()
        found = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [str(each) for each in found] == ["no memory"] * 3
        model.error = None
        await batcher.submit(images(1))

    asyncio.run(main())


def test_a_client_that_has_gone_is_not_computed_for(model, pool):
    async def main():
        stats = Stats()
        batcher = Batcher(model.run, pool, Limits(runs=1), stats)
        first = await busy(batcher, model)
        gone, stays = await queued(batcher.submit(images(1)), batcher.submit(images(2)))
        gone.cancel()
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(first, stays)
        assert model.sizes == [1, 1]
        assert stats.waiting == 0

    asyncio.run(main())


def test_a_batcher_that_nobody_holds_still_answers(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(batch=1, runs=1), Stats())
        first = await busy(batcher, model)
        tasks = await queued(*(batcher.submit(images(value)) for value in range(5)))
        del batcher
        model.go.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(main())


def test_two_runs_share_what_waits_and_each_goes_on_by_itself(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(batch=8, runs=2), Stats())
        model.go.clear()
        first = await queued(*(batcher.submit(images(value)) for value in range(5)))
        second = await queued(*(batcher.submit(images(value)) for value in range(5, 17)))
        model.go.set()
        found = await asyncio.gather(*first, *second)
        for value, results in enumerate(found):
            np.testing.assert_array_equal(results["double"], images(2 * value))
        assert {2, 3} <= set(model.sizes)  # of the first five: neither run was left idle
        assert sum(model.sizes) == 17
        assert max(model.sizes) <= 8

    asyncio.run(main())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_refused_to_its_own_client_alone(model, pool, value):
    async def main():
        batcher = Batcher(model.run, pool, Limits(runs=1), Stats())
        first = await busy(batcher, model)
        tasks = await queued(batcher.submit(images(1)), batcher.submit(images(value)), batcher.submit(images(3)))
        model.go.set()
        one, two, three = await asyncio.gather(*tasks, return_exceptions=True)
        await first
        assert model.sizes == [1, 3]
        assert isinstance(two, Refused)
        assert (two.status, "no finite answer" in str(two)) == (400, True)
        np.testing.assert_array_equal(one["same"], images(1))
        np.testing.assert_array_equal(three["same"], images(3))

    asyncio.run(main())


def test_a_second_run_starts_with_as_many_as_the_first_has_or_when_that_ends(model, pool):
    async def main():
        batcher = Batcher(model.run, pool, Limits(batch=8, runs=2), Stats())
        model.go.clear()
        first = await queued(batcher.submit(images(0, 3)))
        second = await queued(batcher.submit(images(1)), batcher.submit(images(2)))
        assert len(batcher._running) == 1
        second += await queued(batcher.submit(images(3)))
        assert len(batcher._running) == 2
        third = await queued(batcher.submit(images(4)))
        model.go.set()
        await asyncio.gather(*first, *second, *third)
        assert sorted(model.sizes) == [1, 3, 3]

    asyncio.run(main())
