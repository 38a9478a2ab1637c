import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_app.watch import past_run
from cloud_app.watch.view import View
from emo.errors import ConfigError
from emo.journal import Journal


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def seen(folder):
    view, journal = View(1000), Journal()
    now = past_run.tell(folder, view, journal)
    return view.state(now), view, journal


def test_a_clouds_folder_shows_the_run_as_it_ended(tmp_path):
    round_ = {
        "round": 1,
        "of": 1,
        "accuracy": 0.9,
        "loss": 0.5,
        "seconds": 3.0,
        "updates": 2,
        "sampled": 2,
        "run": "r1",
    }
    write(
        tmp_path / "events.jsonl",
        {"time": 100.0, "event": "start", "tier": "cloud", "id": "cloud-7", "pid": 1},
        {"time": 100.1, "event": "begun", "run": "r1"},
        {"time": 101.0, "event": "opened", "run": "r1", "round": 1, "devices": ["d-1", "d-2"]},
        {"time": 102.0, "event": "counted", "run": "r1", "round": 1, "device": "d-1", "samples": 5},
        {"time": 104.0, "event": "counted", "run": "r1", "round": 1, "device": "d-2", "samples": 5},
        {"time": 104.1, "event": "round", **round_, "members": {"d-1": 5, "d-2": 5}, "left_out": {}},
        {"time": 105.0, "event": "overlay", "edge": "e-1", "steps": 9},
        {"time": 106.0, "event": "exporting", "run": "r1"},
        {"time": 107.0, "event": "exported", "run": "r1", "version": 1, "accuracy": 0.95},
    )
    accuracy = {"fl": 0.9, "bagged": 0.95, "served": 0.95, "boosted": [0.8]}
    result = {"run": "r1", "rounds": 1, "accuracy": accuracy, "edges": {"e-1": {}}, "sfl_bytes": 4096}
    (tmp_path / "result.json").write_text(json.dumps(result))
    state, view, journal = seen(tmp_path)
    assert (state["time"], state["run"], state["phase"], state["round"]) == (107.0, "r1", "done", 1)
    assert state["doing"] == "the run is over: the model reaches 95.0 %"
    assert state["result"] == {"fl": 0.9, "bagged": 0.95, "served": 0.95, "boosted.e-1": 0.8, "sfl_bytes": 4096}
    assert [(node["id"], node["light"]) for node in state["nodes"]] == [
        ("cloud-7", "alive"), ("e-1", "alive"), ("d-1", "alive"), ("d-2", "alive")
    ]  # fmt: skip
    assert view.history()["waited"] == {"1": {"device": "d-2", "seconds": 3.0}}
    assert view.log(level="info", name="round")[0]["text"].endswith("90.0 %, d-2 was last")
    assert journal.counts == {}


def test_a_pair_stands_under_its_own_edge_where_another_has_none(tmp_path):
    write(tmp_path / "events.jsonl", {"time": 100.0, "event": "begun", "run": "r1"})
    accuracy = {"fl": 0.9, "bagged": 0.95, "served": 0.95, "boosted": [0.7]}
    result = {"run": "r1", "rounds": 1, "accuracy": accuracy, "edges": {"e-1": {}, "e-2": {}}}
    for left_out, pairs in (({"overlay-e-1": "it answers with NaN"}, {"boosted.e-2": 0.7}), ({}, {})):  # of which edge?
        (tmp_path / "result.json").write_text(json.dumps({**result, "left_out": left_out}))
        shown = seen(tmp_path)[0]["result"]
        assert {name: value for name, value in shown.items() if name.startswith("boosted")} == pairs


def test_a_simulations_folder_shows_its_rounds_and_bytes(tmp_path):
    plan = {"method": "emo", "devices": 20, "rounds": 3, "edges": [0.4, 0.6], "seed": 1}
    (tmp_path / "plan.json").write_text(json.dumps({"version": "1", "plan": plan}))
    write(
        tmp_path / "rounds.jsonl",
        *(
            {
                "round": number, "devices": 5, "arrived": 4, "loss": 0.5, "accuracies": {"model": 80.0 + number, "head": 70.0 + number},
                "lan": {"up": {"ActivationBatch": 100}, "down": {"Interval": 10}},
                "wan": {"up": {"Update": 1000}, "down": {"GlobalModel": 2000}},
                "steps": [7, 9], "virtual_s": 10.0, "total": {"attempted": 40, "sent": 10 * number},
            }
            for number in (1, 2, 3)
        ),
    )  # fmt: skip
    accuracies = {"model": 83.0, "head": 73.0, "overlay-1": 71.0, "overlay-2": 72.0}
    (tmp_path / "result.json").write_text(json.dumps({"accuracies": accuracies}))
    state, view, _ = seen(tmp_path)
    assert (state["run"][:11], state["phase"], state["round"], state["rounds"]) == ("emo-seed-1-", "done", 3, 3)
    assert view.progress.settings == {"method": "emo", "devices": 20, "rounds": 3, "edges": "[0.4, 0.6]", "seed": 1}
    assert (state["bytes"]["fl"], state["bytes"]["activations"]) == (9000, 330)
    assert state["sent"] == {"offered": 40, "sent": 30}
    pairs = {"boosted.edge-1": 0.71, "boosted.edge-2": 0.72}
    assert state["result"] == {"fl": 0.73, "bagged": 0.83, "served": 0.83, "seconds": 30.0} | pairs
    history = view.history()
    assert history["rounds"]["accuracy"] == [0.71, 0.72, 0.73]
    assert history["rounds"]["left_out"] == [1, 1, 1]
    assert [round(b - a) for a, b in zip(history["series"]["time"], history["series"]["time"][1:], strict=False)] == [
        10,
        10,
    ]
    assert history["edges"]["edge-2"]["step"][-1] == 9


def test_a_folder_without_a_record_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"no record of a run: neither watched\.jsonl"):
        past_run.tell(tmp_path, View(10), Journal())
    for name in ("watched.jsonl", "events.jsonl"):
        (tmp_path / name).write_text("nothing\n")
        with pytest.raises(ConfigError, match=f"{name}: holds no"):
            past_run.tell(tmp_path, View(10), Journal())
        (tmp_path / name).unlink()
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(ConfigError, match="is no plan of emo simulate"):
        past_run.tell(tmp_path, View(10), Journal())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = (
    "time",
    "id",
    "tier",
    "devices",
    "device",
    "edge",
    "round",
    "of",
    "left_out",
    "run",
    "phase",
    "sampled",
    "why",
    "node",
)
_ROW = ("round", "devices", "arrived", "loss", "accuracies", "lan", "wan", "steps", "virtual_s", "total")
_EVENTS = ("start", "begun", "opened", "counted", "round", "resumed", "device_gone", "overlay", "exported", "unfit")


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(_EVENTS), st.dictionaries(st.sampled_from(_FIELDS), json_values)), max_size=6),
    st.lists(st.dictionaries(st.sampled_from(_ROW), json_values), max_size=4),
    st.dictionaries(st.sampled_from(("run", "rounds", "accuracy", "edges", "devices", "method")), json_values),
)
def test_files_that_hold_anything_are_read_or_refused(tmp_path_factory, events, rows, others):
    folder = tmp_path_factory.mktemp("past")
    write(folder / "events.jsonl", {"time": 5.0, "event": "begun", "run": "r1"})
    with (folder / "events.jsonl").open("a") as file:
        for number, (name, fields) in enumerate(events):
            file.write(json.dumps({"time": 6.0 + number, "event": name, "run": "r1", **fields}) + "\n")
    (folder / "result.json").write_text(json.dumps(others))
    json.dumps(seen(folder)[0], allow_nan=False)
    write(folder / "rounds.jsonl", *rows)
    (folder / "plan.json").write_text(json.dumps({"plan": others}))
    json.dumps(seen(folder)[0], allow_nan=False)
