"""A restart of the edge goes on with the same samples."""

import json
import math

import pytest
from caches import LABELS, acts, remove
from replays import caches_over, fill

from edge_app.cache.prefetch import AHEAD
from edge_app.cache.sampling import POLICIES
from emo.errors import CacheError


@pytest.fixture
def make(disk):
    with caches_over(disk) as one:
        yield one


@pytest.mark.parametrize("sampling", POLICIES)
def test_a_restart_goes_on_with_the_same_samples(make, sampling):
    cache = make(3, sampling=sampling)
    fill(cache, 12)
    for number in range(20):
        cache.trained(cache.sample(), number % 3)
    state = json.loads(json.dumps(cache.state()))
    again = make(5, sampling=sampling, seed=7)
    again.resume(state)
    for number in range(3 * AHEAD):
        one, two = cache.sample(), again.sample()
        assert (one.batch, one.weight) == (two.batch, two.weight)
        cache.trained(one, number % 5)
        again.trained(two, number % 5)
    assert cache.trained_counts() == again.trained_counts()


def test_what_was_trained_on_is_not_fresh_after_a_restart_and_what_came_later_is(make, disk):
    cache = make()
    fill(cache, 4)
    for _ in range(2):
        cache.trained(cache.sample(), 1.0)
    state = cache.state()
    disk.put("d", 3, 5, acts(3), LABELS)
    remove(disk, "d", 1)
    again = make()
    again.resume(state)
    assert [again.sample().batch for _ in range(2)] == [3, 0]
    assert again.stats()["fresh"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"plan": [["d", 0]]},
        {"plan": [["d", 0, 0.0]]},
        {"plan": [["d", 0, math.inf]]},
        {"plan": [["d", 0, 1.0]] * (AHEAD + 1)},
        {"plan": 7},
        {"sampler": {}},
        {"sampler": {}, "plan": []},
        {"sampler": 7},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(make, damage):
    cache = make(sampling="uniform")
    fill(cache, 3)
    cache.sample()
    before = cache.state()
    with pytest.raises(CacheError, match="damaged"):
        cache.resume(before | damage)
    assert cache.state() == before
