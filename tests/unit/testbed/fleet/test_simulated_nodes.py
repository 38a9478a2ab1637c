"""What a plan is to its nodes, messages as packets, and folders that mirror each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import any_message, examples, same

from emo import files
from emo.errors import PartitionError, WireError
from testbed import node_configs
from testbed.fleet.edge import mirror
from testbed.plan import Plan
from testbed.workers import packets
from testbed.workers.packets import Sender
from testbed.workers.shared_memory import Shared

LABELS = np.random.default_rng(0).integers(0, 10, 600)


def plan(**values):
    return Plan.model_validate({"method": "fl-small", "devices": 12, "per_round": 5, **values})


@pytest.mark.parametrize("scheme", ["iid", "shards", "dirichlet"])
@pytest.mark.parametrize("samples", [None, 20, 50])
def test_shares_are_disjoint_and_as_large_as_asked(scheme, samples):
    found = node_configs.shares(plan(scheme=scheme, samples=samples), LABELS)
    rows = np.concatenate(found)
    assert len(np.unique(rows)) == len(rows) == (12 * samples if samples else 600)
    assert {len(share) for share in found} == {samples or 50}
    assert all((np.diff(share) > 0).all() for share in found)
    again = node_configs.shares(plan(scheme=scheme, samples=samples), LABELS)
    assert all(np.array_equal(*pair) for pair in zip(found, again, strict=True))
    other = node_configs.shares(plan(scheme=scheme, samples=samples, seed=1), LABELS)
    assert not all(np.array_equal(*pair) for pair in zip(found, other, strict=True))


@pytest.mark.parametrize("scheme", ["iid", "shards", "dirichlet"])
def test_more_samples_than_there_are_cannot_be_dealt_out(scheme):
    with pytest.raises(PartitionError):
        node_configs.shares(plan(scheme=scheme, samples=51), LABELS)


@given(devices=st.integers(1, 10_001))
def test_ids_are_in_the_order_of_the_devices(devices):
    many = plan(devices=devices, per_round=1)
    names = [node_configs.device_id(many, device) for device in (0, devices // 3, devices - 1)]
    assert names == sorted(names)
    assert len(set(names)) == len({0, devices // 3, devices - 1})


def test_the_methods_of_a_seed_begin_with_the_same_trunk():
    built = {method: node_configs.network(plan(method=method)) for method in ("fl-small", "fl-large", "emo")}
    first = {name: value.numpy().tobytes() for name, value in built["fl-small"].trunk.state_dict().items()}
    for net in built.values():
        assert {name: value.numpy().tobytes() for name, value in net.trunk.state_dict().items()} == first
    large, small = (sum(p.numel() for p in built[m].head.parameters()) for m in ("fl-large", "emo"))
    assert large > small


@given(message=any_message)
def test_a_message_survives_its_packets(message):
    (found,) = packets.decode(Sender(3).encode(message))
    assert same(found, message)


def test_a_large_message_is_several_packets_and_none_may_be_missing():
    sender = Sender(1)
    update = examples()[2]
    large = type(update)("run1", "dev-1", 3, 64, 0.25, {"w": np.ones(200_000, np.float32)})
    sent = sender.encode(large)
    assert len(sent) > 3
    assert packets.size(sent) == sum(len(name) + len(data) for name, data in sent)
    with pytest.raises(WireError):
        list(packets.decode(sent[:-1]))
    with pytest.raises(WireError):
        list(packets.decode([(sent[0][0], b"EMO" + bytes(60))]))


def test_a_mirror_has_the_same_files_and_follows_nothing_that_is_replaced(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a").mkdir(parents=True)
    for name in ("one", "a/two", "lock"):
        (source / name).write_text(name)
    for _ in range(2):
        mirror(source, target)
        found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
        assert found == {"one", "a/two"}
    files.write(source / "one", b"new")
    (source / "a" / "two").unlink()
    assert (target / "one").read_text() == "one"
    mirror(source, target)
    assert (target / "one").read_bytes() == (source / "one").read_bytes()
    assert list((target / "a").iterdir()) == []
    (source / "a").rmdir()
    mirror(source, target)
    assert [path.name for path in target.iterdir()] == ["one"]


def test_shared_arrays_are_copies_that_nobody_writes_to():
    arrays = {"a": np.arange(7, dtype=np.int64), "b": np.ones((2, 3), np.uint8), "c": np.zeros((0, 4))}
    shared = Shared(arrays)
    for name, array in arrays.items():
        assert np.array_equal(shared[name], array)
        assert (shared[name].dtype, shared[name].shape) == (array.dtype, array.shape)
        assert not shared[name].flags.writeable
    arrays["a"][0] = 9
    assert shared["a"][0] == 0
