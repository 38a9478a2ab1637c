"""What the tests of the replay cache's levels, threads and restarts share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from caches import LABELS, acts

from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache

ONE = acts(0).nbytes + LABELS.nbytes  # a slot of level 1


@contextmanager
def caches_over(disk: DiskCache) -> Iterator[Callable[..., ReplayCache]]:
    """Makes ReplayCaches over `disk`, and closes them."""
    made = []

    def one(slots=1000, seed=0, **options):
        made.append(ReplayCache(disk, slots * ONE, seed, **options))
        return made[-1]

    yield one
    for each in made:
        each.close()


def fill(cache, count, version=0):
    for batch in range(count):
        assert cache.put("d", batch, version, acts(batch), LABELS)


def until(condition):
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came to be")


def settled(cache):
    """The third thread has brought what it could, also for what the last sample changed."""
    cache._prefetcher.wake()

    def done():
        with cache._lock:
            return cache._prefetcher.lacking() is None and not cache._prefetcher._loading

    until(done)
