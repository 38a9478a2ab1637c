"""Seconds of a round against sums made by hand: who waits for what, method by method."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.plan import METHODS, DeviceWork, Plan, RoundWork
from testbed.timing import costs, estimate
from testbed.timing.round_time import link, round_time
from testbed.timing.scenario import DeviceClass, Link, Processor, Scenario, Stragglers

MBIT = 1_000_000 // 8  # bytes that a link of 1 Mbit/s carries in a second
# A model of 100 FLOP in the trunk, 50 in the head, 300 in the overlay; backward is twice that.
COST = costs.Costs(
    trunk=costs.Part(100, 10, 40, 4),
    head=costs.Part(50, 5, 20, 4),
    overlay=costs.Part(300, 30, 120, 4),
    split=4,
)


def scenario(*, lan=8.0, wan=1.0, latency=0.0, shared=False, **rest):
    rates = {"forward_flops": 1e6, "backward_flops": 2e6, "memory_mib": 1024}
    server = {"forward_flops": 3e6, "backward_flops": 6e6, "memory_mib": 1024}
    return Scenario(
        name="by hand",
        devices=(DeviceClass(name="one", share=1, **rates),),
        edge=Processor(**server),
        cloud=Processor(**server),
        lan=Link(mbit_s=lan, shared=shared),
        wan=Link(mbit_s=wan, latency_ms=latency, shared=shared),
        **rest,
    )


def plan(method, **changed):
    return Plan(method=method, **{"devices": 4, "per_round": 2, "edges": (0.5, 0.5), **changed})


def work(*devices, batches=2, samples=10_000, up=None, down=None, **rest):
    """Each device: the model is 1 s down and 2 s up on a WAN of 1 Mbit/s."""
    up = {"Update": 2 * MBIT, **(up or {})}
    down = {"GlobalModel": MBIT, **(down or {})}
    done = tuple(DeviceWork(device, batches, samples, dict(down), dict(up)) for device in devices)
    return RoundWork(1, done, 0.5, **rest)


def test_fl_is_download_compute_upload():
    # 10,000 samples x 150 FLOP at 1e6 a second and x 300 at 2e6: 1.5 s each
    found = round_time(plan("fl-small"), scenario(latency=500), work(0), COST)
    assert found.seconds == pytest.approx(1.5 + 3 + 2.5)
    assert found.parts == pytest.approx({"download": 1.5, "compute": 3.0, "upload": 2.5})
    assert found.arrivals == {0: found.seconds}
    assert found.beside == {}


def test_fl_large_trains_the_overlay_in_the_heads_place():
    found = round_time(plan("fl-large"), scenario(), work(0), COST)
    assert found.parts["compute"] == pytest.approx(4 + 4)


def test_devices_with_links_of_their_own_do_not_wait_and_those_that_share_do():
    apart = round_time(plan("fl-small"), scenario(), work(0, 1, 2), COST)
    assert apart.arrivals == dict.fromkeys((0, 1, 2), pytest.approx(6.0))
    shared = round_time(plan("fl-small"), scenario(shared=True), work(0, 1, 2), COST)
    # downloads end at 1, 2, 3; uploads of 2 s begin at 4, 6 and 8
    assert shared.arrivals == {0: 6, 1: 8, 2: 10}
    assert shared.parts == pytest.approx(
        {"download": 1, "download queue": 2, "compute": 3, "upload": 2, "upload queue": 2}
    )


def test_a_split_device_waits_for_each_gradient():
    # A batch: 5,000 samples. Trunk 0.5 s forward and 0.5 s backward, server 0.5 s and 0.5 s, 1 s up, 2 s down.
    split = work(0, up={"ActivationBatch": 2 * MBIT}, down={"ActivationBatch": 4 * MBIT})
    found = round_time(plan("sfl-cloud"), scenario(), split, COST)
    assert found.parts == pytest.approx(
        {"download": 1, "compute": 2, "activations": 2, "server": 2, "gradients": 4, "upload": 2}
    )
    assert found.seconds == pytest.approx(13)
    # with latency each of the two crossings of each batch, and the models' two, take that longer
    slower = round_time(plan("sfl-cloud"), scenario(latency=1000), split, COST)
    assert slower.seconds == pytest.approx(13 + 6)


def test_a_server_works_on_one_batch_at_a_time():
    one = round_time(plan("sfl-cloud"), scenario(), work(0, batches=1), COST)
    two = round_time(plan("sfl-cloud"), scenario(), work(0, 1, batches=1), COST)
    assert two.arrivals == {0: pytest.approx(one.seconds), 1: pytest.approx(one.seconds + 2)}
    assert two.parts["server queue"] == pytest.approx(2)


def test_at_an_edge_batches_take_the_lan_and_the_servers_half_the_wan():
    split = work(
        0,
        up={"ActivationBatch": 8 * MBIT},
        down={"ActivationBatch": 8 * MBIT},
        overlays=(3 * MBIT, 0),
        overlays_down=(3 * MBIT, 0),
    )
    found = round_time(plan("sfl-edge"), scenario(), split, COST)
    # the half is there after 3 s, two after the trunk; then 2 x (1 + 1 of compute and server, 1 on the lan); 2 s up
    assert found.arrivals == {0: pytest.approx(3 + 2 + 2 + 1 + 1 + 2)}
    # the half leaves when the last batch is through, at 9 s
    assert found.seconds == pytest.approx(9 + 3)
    assert found.parts == pytest.approx(
        {
            "download": 1,
            "server's model": 2 + 1,
            "compute": 2,
            "server": 2,
            "activations": 1,
            "gradients": 1,
            "upload": 2,
        }
    )


def test_each_edge_serves_its_own():
    alone = round_time(plan("sfl-edge"), scenario(), work(0, batches=1), COST)
    apart = round_time(plan("sfl-edge"), scenario(), work(0, 2, batches=1), COST)
    together = round_time(plan("sfl-edge"), scenario(), work(0, 1, batches=1), COST)
    assert apart.seconds == pytest.approx(alone.seconds)
    assert together.seconds == pytest.approx(alone.seconds + 2)


def test_emos_round_is_fl_smalls():
    small = round_time(plan("fl-small"), scenario(), work(0, 1), COST)
    up = {"ActivationBatch": 8 * MBIT, "TapReport": 100}
    emo = round_time(plan("emo"), scenario(), work(0, 1, up=up, down={"Interval": 500}), COST)
    assert emo.arrivals == pytest.approx(small.arrivals)
    assert emo.seconds == pytest.approx(small.seconds)
    assert emo.parts == pytest.approx(small.parts)


def test_a_full_lan_holds_up_emos_round_but_no_update():
    # 2 batches of 40 s on a LAN of 8 Mbit/s; the first leaves at 1 + 1.5
    found = round_time(plan("emo"), scenario(), work(0, up={"ActivationBatch": 640 * MBIT}), COST)
    assert found.arrivals == {0: pytest.approx(6)}
    assert found.seconds == pytest.approx(2.5 + 80)
    assert found.parts["activations queue"] == pytest.approx(found.seconds - 6)


def test_overlays_train_beside_and_leave_at_the_end():
    # 4 batches of 16 samples a step: 64 x 300 at 3e6, and as long backward
    found = round_time(plan("emo"), scenario(), work(0, steps=(10, 20), overlays=(3 * MBIT, 5 * MBIT)), COST)
    assert found.beside == pytest.approx({"overlay-1": 0.128, "overlay-2": 0.256, "overlay upload": 5})
    assert found.seconds == pytest.approx(6)
    line = round_time(plan("emo"), scenario(shared=True), work(0, overlays=(3 * MBIT, 5 * MBIT)), COST)
    assert line.beside["overlay upload"] == pytest.approx(8)


def test_stragglers_compute_longer_and_drop_outs_never_arrive():
    slow = scenario(stragglers=Stragglers(share=1, slow_down=3))
    assert round_time(plan("fl-small"), slow, work(0), COST).parts["compute"] == pytest.approx(9)
    assert round_time(plan("sfl-cloud"), slow, work(0), COST).parts["compute"] == pytest.approx(6)
    gone = scenario(drop_outs=0.5)
    devices = range(40)
    fleet = plan("fl-small", devices=40, per_round=40)
    found = round_time(fleet, gone, work(*devices), COST)
    stay = [device for device in devices if not gone.drops(fleet, 1, device)]
    assert list(found.arrivals) == stay
    assert 5 < len(stay) < 35


def test_when_all_drop_out_the_round_still_takes_their_time():
    gone = scenario(drop_outs=0.999999)
    found = round_time(plan("sfl-edge"), gone, work(0), COST)
    assert found.arrivals == {}
    assert found.seconds > 3
    assert "upload" not in found.parts


@pytest.mark.parametrize(
    ("method", "kind", "which"),
    [
        ("emo", "ActivationBatch", "lan"),
        ("emo", "Interval", "lan"),
        ("emo", "Update", "wan"),
        ("sfl-edge", "ActivationBatch", "lan"),
        ("sfl-edge", "GlobalModel", "wan"),
        ("sfl-cloud", "ActivationBatch", "wan"),
        ("fl-large", "Update", "wan"),
    ],
)
def test_what_crosses_which_link(method, kind, which):
    assert link(method, kind) == which


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(METHODS),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 50 * MBIT)), min_size=1, max_size=4),
)
def test_parts_add_up_and_the_same_work_takes_the_same_time(method, shared, devices):
    one = DeviceWork(0, 1, 16, {"GlobalModel": MBIT}, {"Update": MBIT})
    done = tuple(
        replace(one, device=device, batches=batches, samples=16 * batches, up={"Update": MBIT, "ActivationBatch": size})
        for device, (batches, size) in enumerate(devices)
    )  # fmt: skip
    halves = (MBIT, MBIT) if method == "sfl-edge" else ()
    round_ = RoundWork(1, done, 0.0, overlays=halves, overlays_down=halves)
    found = round_time(plan(method), scenario(shared=shared), round_, COST)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert max(found.arrivals.values()) <= found.seconds
    assert found == round_time(plan(method), scenario(shared=shared), round_, COST)


def test_of_models_alone():
    """A round's bytes as paper.md's sums have them: models, and activations up (and gradients down)."""
    for method in METHODS:
        fleet = Plan(method=method, devices=6, per_round=3)
        cost = costs.of(fleet.model)
        whole = {"fl-large": cost.trunk + cost.overlay, "fl-small": cost.trunk + cost.head}
        net = whole.get(method, cost.trunk if method.startswith("sfl") else cost.trunk + cost.head)
        each = {"emo": 1, "sfl-cloud": 2, "sfl-edge": 2}.get(method, 0) * 100 * cost.split
        assert estimate.total(estimate.work(fleet, 100)) == 3 * (2 * net.bytes + each)


def test_the_policy_and_the_codec_make_it_less():
    fleet = Plan(method="emo", devices=6, per_round=3)
    every, few = estimate.work(fleet, 96), estimate.work(fleet, 96, sent=0.25)
    assert few.attempted == every.attempted == 18
    assert few.sent == 4
    assert [each.up["ActivationBatch"] * 4 for each in few.devices] == [
        each.up["ActivationBatch"] for each in every.devices
    ]
    small = estimate.work(fleet, 96, compressed=True)
    assert small.devices[0].up["ActivationBatch"] * 8 < every.devices[0].up["ActivationBatch"]
    assert small.devices[0].up["Update"] == every.devices[0].up["Update"]
    forms = fleet.model_copy(update={"training": fleet.training.model_copy(update={"update": "delta-int8"})})
    less = estimate.work(forms, 96, model="fp16")
    assert less.devices[0].down["GlobalModel"] < 0.6 * every.devices[0].down["GlobalModel"]
    assert less.devices[0].up["Update"] < 0.4 * every.devices[0].up["Update"]
