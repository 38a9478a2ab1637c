"""Level 1: bounded, who makes room, and that nobody writes where another reads."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_app.cache import tensor_slots as module
from edge_app.cache.tensor_slots import TensorSlots

N, SHAPE = 4, (4, 3, 2)
ONE = 4 * 4 * 3 * 2 + 8 * 4  # bytes of a slot


def key(batch):
    return ("d", batch)


def arrays(value, n=N, shape=SHAPE[1:]):
    return np.full((n, *shape), value, np.float32), np.full(n, value)


def place(memory, batch, ahead=(), value=None, version=0, **like):
    """Whether it was kept."""
    both = arrays(batch if value is None else value, **like)
    slot = memory.reserve(key(batch), (both[0].shape, both[1].shape), [key(other) for other in ahead])
    if slot is None:
        return False
    memory.write(slot, *both)
    memory.commit(slot, key(batch), version)
    memory.release(slot)
    return key(batch) in memory


def look(memory, batch):
    """(value, samples), None when it is not here."""
    slot = memory.use(key(batch))
    if slot is None:
        return None
    activations, labels = memory.read(slot)
    memory.release(slot)
    assert (activations == activations.flatten()[0]).all()
    assert (labels == labels[0]).all()
    assert float(activations.flatten()[0]) == int(labels[0])
    assert (activations.dtype, labels.dtype) == (torch.float32, torch.int64)
    return int(labels[0]), len(labels)


def test_what_was_used_longest_ago_makes_room():
    memory = TensorSlots(3 * ONE + 5)
    for batch in range(3):
        assert place(memory, batch)
    assert look(memory, 0) == (0, N)
    assert place(memory, 3)
    assert [look(memory, batch) is not None for batch in range(4)] == [True, False, True, True]
    assert (len(memory), memory.nbytes) == (3, 3 * ONE)


def test_what_is_needed_soon_stays_and_of_these_what_is_needed_last_goes():
    memory = TensorSlots(3 * ONE)
    for batch in (0, 1, 2):
        place(memory, batch)
    assert place(memory, 3, ahead=[0, 3, 2])  # 1 is not needed
    assert not place(memory, 4, ahead=[0, 3, 2])  # 4 is not either
    assert not memory.has_room(key(4), [key(0), key(3), key(2), key(4)])
    assert memory.has_room(key(4), [key(0), key(4), key(2), key(3)])
    assert place(memory, 4, ahead=[0, 4, 2, 3])
    assert key(3) not in memory
    assert len(memory) == 3


def test_other_floats_and_integers_become_ours():
    memory = TensorSlots(ONE)
    slot = memory.reserve(key(0), (SHAPE, (N,)), [])
    memory.write(slot, np.full(SHAPE, 2, np.float16), np.full(N, 2, np.uint8))
    assert memory.commit(slot, key(0), 7)
    memory.release(slot)
    assert memory.use(key(0)).version == 7
    assert look(memory, 0) == (2, N)


def test_a_smaller_batch_fits_and_is_given_back_as_small():
    memory = TensorSlots(4 * ONE)
    place(memory, 0)
    assert place(memory, 1, n=3)
    assert look(memory, 1) == (1, 3)
    assert place(memory, 1, value=9)
    assert look(memory, 1) == (9, N)


def test_another_shape_is_not_kept_unless_it_is_the_usual_one():
    memory = TensorSlots(4 * ONE)
    place(memory, 0, n=1)  # a device's last batch came first
    assert not place(memory, 1)
    assert place(memory, 1)  # two in a row, one held: the first was the odd one
    assert look(memory, 0) is None
    for batch in range(1, 4):
        place(memory, batch)
    for _ in range(20):
        assert not place(memory, 7, n=400)
        assert not place(memory, 8, shape=(3, 3))
        assert look(memory, 1) == (1, N)
    assert len(memory) == 3


def test_one_large_batch_first_does_not_leave_the_others_a_few_large_slots():
    memory = TensorSlots(64 * ONE)
    place(memory, 0, n=16 * N)
    for batch in range(1, 40):
        place(memory, batch)
    assert len(memory) >= 32
    assert memory.nbytes <= 64 * ONE
    before = memory.pool
    for batch in range(40, 80):  # a device's last batch is a small one
        place(memory, batch, n=1 if batch % 8 == 0 else N)
    assert memory.pool == before


@pytest.mark.parametrize("limit", [0, ONE - 1])
def test_a_level_too_small_for_one_batch_keeps_none(limit):
    memory = TensorSlots(limit)
    assert not place(memory, 0)
    assert (len(memory), memory.nbytes) == (0, 0)


def test_it_grows_in_blocks_and_never_past_its_limit(monkeypatch):
    made = []
    monkeypatch.setattr(module, "_BLOCK_SLOTS", 8)
    real = torch.empty
    monkeypatch.setattr(module.torch, "empty", lambda shape, **kw: made.append(shape) or real(shape, **kw))
    memory = TensorSlots(21 * ONE)
    place(memory, 0)
    assert memory.nbytes == 8 * ONE
    for batch in range(60):
        assert place(memory, batch)
        assert memory.nbytes <= 21 * ONE
    assert [shape[0] for shape in made[::2]] == [8, 8, 5]
    assert len(memory) == 21


def test_large_batches_come_in_small_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 3 * ONE)
    memory = TensorSlots(64 * ONE)
    place(memory, 0)
    assert memory.nbytes == 3 * ONE


def test_a_device_that_has_no_more_memory_leaves_it_as_large_as_it_is(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_SLOTS", 2)
    memory = TensorSlots(100 * ONE)
    place(memory, 0)

    def full(*_args, **_keywords):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module.torch, "empty", full)
    assert [place(memory, batch) for batch in (1, 2, 3)] == [True, False, True]
    assert len(memory) == 2


def test_a_share_is_never_passed():
    memory = TensorSlots(100 * ONE)
    memory.hold(0)
    assert not memory.has_room(key(0), [])
    assert not place(memory, 0)
    memory.hold(3)
    for batch in range(9):
        place(memory, batch)
        assert len(memory) <= 3
    look(memory, 6)
    memory.hold(1)
    assert look(memory, 6) == (6, N)
    assert len(memory) == 1


def test_a_slot_that_someone_reads_is_given_to_no_one():
    memory = TensorSlots(2 * ONE)
    place(memory, 0)
    place(memory, 1)
    reading = memory.use(key(0))
    memory.drop(key(0))  # a newer version has come
    assert place(memory, 2)
    assert place(memory, 3)
    assert not [batch for batch in (0, 1, 2) if key(batch) in memory]
    activations, labels = memory.read(reading)
    assert (activations == 0).all()
    assert (labels == 0).all()
    memory.release(reading)
    assert place(memory, 4)
    assert look(memory, 3) == (3, N)


def test_what_was_reserved_before_a_clear_is_not_found_after_it():
    memory = TensorSlots(2 * ONE)
    place(memory, 0)
    late, reading = memory.reserve(key(1), (SHAPE, (N,)), []), memory.use(key(0))
    memory.clear()
    memory.write(late, *arrays(1))
    assert not memory.commit(late, key(1), 0)
    memory.release(late)
    assert (memory.read(reading)[0] == 0).all()
    memory.release(reading)
    assert (len(memory), memory.nbytes) == (0, 0)
    for batch in range(5):
        assert place(memory, batch)
    assert [look(memory, batch) for batch in (3, 4)] == [(3, N), (4, N)]


def test_a_sample_is_the_callers_own():
    memory = TensorSlots(ONE)
    place(memory, 0)
    slot = memory.use(key(0))
    activations, labels = memory.read(slot)
    memory.release(slot)
    place(memory, 1)
    assert (activations == 0).all()
    activations.fill_(9)
    labels.fill_(9)
    assert look(memory, 1) == (1, N)


steps = st.tuples(st.sampled_from(["place", "use", "release", "drop", "hold", "clear"]), st.integers(0, 7))


@given(st.lists(steps, max_size=60))
@settings(deadline=None)
def test_whatever_is_done_a_slot_holds_what_it_says(todo):
    memory, limit, reading, held = TensorSlots(4 * ONE), 4, [], OrderedDict()
    for number, (what, batch) in enumerate(todo):
        if what == "place" and place(memory, batch, value=number, version=number):
            held[batch] = number
        elif what == "use" and (slot := memory.use(key(batch))):
            assert slot.version == held[batch]
            reading.append((slot, slot.version))
        elif what == "release" and reading:
            memory.release(reading.pop(batch % len(reading))[0])
        elif what == "drop":
            memory.drop(key(batch))
        elif what == "hold":
            limit = min(batch, 4)
            memory.hold(limit)
        elif what == "clear":
            memory.clear()
        for slot, version in reading:
            assert (memory.read(slot)[0] == version).all()
        assert len(memory) <= limit
        for other in range(8):
            if key(other) in memory:
                slot = memory._held[key(other)]
                assert slot.version == held[other]
                assert (slot.activations == slot.version).all()
    for slot, _ in reading:
        memory.release(slot)
    assert memory._taken() == len(memory)  # no slot is lost


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_slot_is_not_overwritten_while_its_copy_is_still_to_run():
    memory = TensorSlots(2 * ONE, "cuda")
    busy = torch.zeros(4000, 4000, device="cuda")
    for number in range(200):
        assert place(memory, 0, value=number)
        for _ in range(5):
            busy = busy @ busy  # the copy below is behind this on the trainer's stream
        slot = memory.use(key(0))
        activations, _ = memory.read(slot)
        memory.drop(key(0))
        memory.release(slot)
        place(memory, 1, value=1000)
        place(memory, 2, value=2000)
        memory.drop(key(1))
        memory.drop(key(2))
        assert (activations == number).all()
