"""Who takes most of a room gives way first; everybody's turn comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_app.serving.fair_share import FairShare, client


class Holder:
    def __init__(self, who, busy=False):
        self.who, self.busy, self.left = who, busy, False

    def leave(self):
        self.left = True


def test_the_largest_of_who_takes_most_gives_way():
    room = FairShare(10)
    large, larger, other = Holder("a"), Holder("a"), Holder("b")
    room.take(large, 3)
    room.take(larger, 4)
    room.take(other, 3)
    newcomer = Holder("c")
    room.take(newcomer, 2)
    assert (larger.left, large.left, other.left, newcomer.left) == (True, False, False, False)
    assert (room.taken, room.evicted) == (8, 1)


def test_a_newcomer_that_would_take_most_is_itself_shown_out():
    room = FairShare(10)
    honest = [Holder(f"{number}") for number in range(5)]
    for each in honest:
        room.take(each, 2)
    greedy = Holder("g")
    room.take(greedy, 3)
    assert greedy.left
    assert not any(each.left for each in honest)


def test_where_all_are_equal_the_newest_goes_or_the_oldest():
    for oldest, gone in ((False, 3), (True, 0)):
        room, holders = FairShare(3, oldest=oldest), [Holder(f"{number}") for number in range(4)]
        for each in holders:
            room.take(each)
        assert [each.left for each in holders] == [number == gone for number in range(4)]


def test_who_is_busy_goes_last_of_its_client_and_never_in_the_place_of_another():
    room = FairShare(3, oldest=True)
    busy, idle, other, new = Holder("a", busy=True), Holder("a"), Holder("b"), Holder("b")
    for each in (busy, idle, other):
        room.take(each)
    room.take(new)
    assert [each.left for each in (busy, idle, other, new)] == [False, True, False, False]
    for each in (Holder("a", busy=True), Holder("a", busy=True)):
        room.take(each)
    assert (busy.left, other.left, new.left) == (True, False, False)


def test_turns_go_round_the_clients_that_may():
    room = FairShare(10)
    for who in "aaabbc":
        room.take(Holder(who))
    assert [room.next(lambda who: who != "a").who for _ in range(2)] == ["b", "c"]
    assert [room.next(lambda who: True).who for _ in range(4)] == list("abaa")
    assert room.next(lambda who: True) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 9)), max_size=60))
def test_it_never_holds_more_than_it_may_and_counts_right(steps):
    room, holders = FairShare(20), {}
    for who, number, size in steps:
        holder = holders.setdefault((who, number), Holder(who))
        if holder.left:
            room.free(holder)
            holder.left = False
        else:
            room.take(holder, size)
        assert room.taken <= 20
        assert room.taken == sum(sum(each.values()) for each in room._holders.values())
        assert room._sums == {who: sum(each.values()) for who, each in room._holders.items()}
    for holder in holders.values():
        room.free(holder)
    assert (room.taken, room._holders, room._sums) == (0, {}, {})


@pytest.mark.parametrize(
    ("address", "who"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002"),
        ("2001:db8:1:2::1", "2001:0db8:0001:0002"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("", ""),
        ("/run/socket", ""),
    ],
)
def test_a_client_is_an_address_or_a_network_of_64_bits(address, who):
    assert client(address) == who
