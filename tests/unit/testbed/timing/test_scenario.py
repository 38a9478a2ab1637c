"""A scenario file: what is drawn is fixed by the seed, what does not fit is refused with the reason."""

from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from emo.config import Model
from emo.errors import ConfigError
from testbed.plan import METHODS, Plan
from testbed.timing.scenario import PAPER, load

SMALL = {
    "name": "two",
    "devices": [
        {"name": "slow", "share": 0.25, "forward_flops": 1e9, "backward_flops": 2e9, "memory_mib": 512},
        {"name": "fast", "share": 0.75, "forward_flops": 1e10, "backward_flops": 1e10, "memory_mib": 512},
    ],
    "edge": {"forward_flops": 1e12, "backward_flops": 1e12, "memory_mib": 4096},
    "cloud": {"forward_flops": 1e12, "backward_flops": 1e12, "memory_mib": 4096},
    "lan": {"mbit_s": 800},
    "wan": {"mbit_s": 100, "latency_ms": 10, "shared": False},
}


def written(folder, **changed):
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(SMALL | changed), encoding="utf-8")
    return path


@pytest.fixture
def scenario(tmp_path):
    return load(written(tmp_path))


def plan(method="fl-small", **changed):
    return Plan(method=method, **changed)


def test_the_papers_testbed_is_packaged_and_takes_every_method():
    paper = load(None)
    assert (paper.lan.mbit_s, paper.wan.mbit_s) == (800, 100)
    assert [each.name for each in paper.devices] == ["Raspberry Pi 4B", "Jetson Xavier NX"]
    assert paper.stragglers.share == paper.drop_outs == 0
    assert PAPER.read_text(encoding="utf-8").count("#") > 10  # every number with where it is from
    for method in METHODS:
        for name, classes in (("vgg6", 10), ("mobilenet6", 100)):
            paper.check(plan(method, model=Model(name=name, input=(3, 32, 32), classes=classes)))


@given(st.integers(1, 300), st.integers(0, 2**63 - 1))
def test_shares_of_classes_hold_over_the_fleet(devices, seed):
    fleet = plan(devices=devices, per_round=1, seed=seed)
    paper = load(None)
    found = Counter(paper.device_class(fleet, device).name for device in range(devices))
    assert abs(found["Raspberry Pi 4B"] - devices / 2) <= 1


def test_draws_are_the_same_when_asked_again_and_differ_by_round_and_device(tmp_path):
    scenario = load(written(tmp_path, stragglers={"share": 0.5, "slow_down": 4}, drop_outs=0.5))
    fleet = plan(seed=3)
    slow = [scenario.slowdown(fleet, number, device) for number in range(1, 9) for device in range(50)]
    gone = [scenario.drops(fleet, number, device) for number in range(1, 9) for device in range(50)]
    assert set(slow) == {1.0, 4.0}
    assert 120 < slow.count(4.0) < 280
    assert 120 < sum(gone) < 280
    assert [value == 4.0 for value in slow] != gone
    again = [scenario.slowdown(fleet, number, device) for number in range(1, 9) for device in range(50)]
    assert slow == again
    assert slow[:50] != slow[50:100]
    other = plan(seed=4)
    assert gone != [scenario.drops(other, number, device) for number in range(1, 9) for device in range(50)]


def test_nobody_lags_or_leaves_where_the_file_says_nothing(scenario):
    assert not any(scenario.drops(plan(), 1, device) for device in range(100))
    assert {scenario.slowdown(plan(), 1, device) for device in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"devices": []}, "devices"),
        ({"devices": [SMALL["devices"][0]]}, "add up to 0.25"),
        ({"devices": [SMALL["devices"][1] | {"share": 0.9}, SMALL["devices"][0]]}, "add up to 1.15"),
        ({"wan": {"mbit_s": 0}}, "wan.mbit_s"),
        ({"wan": {"mbits": 1}}, "did you mean 'mbit_s'"),
        ({"lan": {"mbit_s": float("nan")}}, "lan.mbit_s"),
        ({"edge": SMALL["edge"] | {"forward_flops": -1}}, "edge.forward_flops"),
        ({"stragglers": {"share": 2}}, "stragglers.share"),
        ({"stragglers": {"slow_down": 0.5}}, "stragglers.slow_down"),
        ({"drop_outs": 1}, "drop_outs"),
    ],
)
def test_a_bad_file_is_refused_by_its_key(changed, says, tmp_path):
    with pytest.raises(ConfigError, match=r"scenario\.yaml") as found:
        load(written(tmp_path, **changed))
    assert says in str(found.value)


def test_a_missing_file_is_refused_and_variables_of_the_tiers_are_not_for_it(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    monkeypatch.setenv("EMO_WAN__HOST", "10.0.0.1")
    assert load(written(tmp_path)).wan.mbit_s == 100


@pytest.mark.parametrize("method", ["emo", "sfl-edge"])
@pytest.mark.parametrize(("edges", "says"), [((0.05, 0.95), "edge 1 of 2"), ((), "there is none")])
def test_an_edge_without_devices_is_refused(scenario, method, edges, says):
    fleet = plan(method, devices=4, per_round=2, edges=edges)
    with pytest.raises(ConfigError, match=says):
        scenario.check(fleet)
    scenario.check(fleet.model_copy(update={"method": "fl-small"}))


def test_more_a_round_than_there_are_is_refused(scenario):
    with pytest.raises(ConfigError, match="5 devices cannot be sampled out of 4"):
        scenario.check(plan(devices=4, per_round=5))


@pytest.mark.parametrize(
    ("method", "who"),
    [
        ("fl-large", "device class 'slow'"),
        ("emo", "an edge"),
        ("sfl-edge", "an edge"),
        ("sfl-cloud", "cloud"),
    ],
)
def test_memory_that_is_too_small_is_refused(method, who, tmp_path):
    wide = plan(method, model=Model(width=4))
    little = {"edge": SMALL["edge"] | {"memory_mib": 1}, "cloud": SMALL["cloud"] | {"memory_mib": 1}}
    if method == "fl-large":
        little = {"devices": [SMALL["devices"][0] | {"memory_mib": 1}, SMALL["devices"][1]]}
    load(written(tmp_path)).check(wide)
    with pytest.raises(ConfigError, match=who) as found:
        load(written(tmp_path, **little)).check(wide)
    assert "take a smaller width" in str(found.value)


def test_assumptions_name_what_the_seconds_rest_on(tmp_path):
    scenario = load(written(tmp_path, stragglers={"share": 0.1, "slow_down": 3}, drop_outs=0.2))
    text = "\n".join(scenario.assumptions(plan("emo")))
    for words in ("25% of the devices: slow, 1 GFLOP/s", "WAN: 100 Mbit/s", "10 ms", "by itself"):
        assert words in text
    assert "10% of the sampled devices take 3 times" in text
    assert "20% of the sampled devices never" in text
    assert "SplitFed" in "\n".join(scenario.assumptions(plan("sfl-edge")))
