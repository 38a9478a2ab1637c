"""The rounds so far, which observers are told: whole for a long run, in every checkpoint, and the cloud's own figures."""

import json

import numpy as np
from clouds import cloud, opened, update
from fleet import MODEL

from cloud_app.rounds.checkpoint import Checkpoints
from cloud_app.rounds.round import history
from cloud_app.rounds.state import begin, remember
from emo import snapshot_file
from emo.config import CloudConfig
from emo.journal import Journal
from emo.models import split_network
from emo.wire import frame, topics
from emo.wire.messages import GlobalModel, Refused, RunHistory, Status

LIKE = {"w": np.zeros((2, 3), np.float32)}
CONFIG = CloudConfig.model_validate({"model": MODEL, "rounds": {"rounds": 5000}})


def row(number, loss=-1.2345678901234567e-300, most=2**53 - 1):
    return number, 0.9876, loss, 123456.78901234567, 100_000, 100_000, 100_000, most


def long_run(rounds):
    state = begin(CONFIG, "r" * 64, LIKE)
    for number in range(1, rounds + 1):
        remember(state, row(number))
    return state


def test_a_long_run_keeps_its_newest_rounds_and_some_of_the_older_and_fits():
    state = long_run(4321)
    numbers = [number for number, *_ in state.history]
    assert numbers[-500:] == list(range(3822, 4322))
    assert numbers[0] == 1
    assert numbers == sorted(set(numbers))
    assert 700 < len(numbers) <= 1000
    result = {f"boosted.edge-{number:02}": 0.123456789012345 for number in range(32)}
    worst = long_run(1000)
    for each in (state, worst):
        [message] = history(CONFIG, each, result)
        data = frame.pack(message)
        assert len(data) <= topics.ROUTES[RunHistory].limit
        assert frame.unpack(frame.KINDS.index(RunHistory), data) == message
    pieces = list(frame.split(message, b"12345678", 32 << 10))  # a broker may take no larger packets
    assert len(pieces) > 2


def test_it_costs_a_checkpoint_a_hundred_kilobytes_at_most_and_comes_back_with_it(tmp_path):
    sizes = []
    for rounds in (0, 1000):
        state, keep = long_run(rounds), Checkpoints(tmp_path / str(rounds), Journal())
        assert keep.save(state)
        [path] = (tmp_path / str(rounds)).glob("*.safetensors")
        sizes.append(path.stat().st_size)
        again = Checkpoints(tmp_path / str(rounds), Journal()).load(CONFIG, LIKE)
        assert again.history == state.history
        assert again.history[:1] == [] if not rounds else [row(1, float("-1.23457e-300"))[:3]]
    assert sizes[1] - sizes[0] < 110_000


def test_a_checkpoint_from_before_there_was_a_history_is_gone_on_from(tmp_path):
    keep, state = Checkpoints(tmp_path, Journal()), long_run(3)
    assert keep.save(state)
    [path] = tmp_path.glob("*.safetensors")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    record = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["record"])
    assert record.pop("history")

    class Old:
        def model_dump(self, mode):
            return record

    path.write_bytes(b"".join(map(bytes, snapshot_file.pack("cloud checkpoint", Old(), {"model/w": LIKE["w"]}))))
    again = Checkpoints(tmp_path, Journal()).load(CONFIG, LIKE)
    assert (again.run, again.history) == (state.run, [])
    assert list(history(CONFIG, again)) == []


def test_whether_observers_are_told_may_change_between_two_processes_of_a_run(tmp_path):
    state = long_run(3)
    assert Checkpoints(tmp_path, Journal()).save(state)
    silent = CONFIG.model_copy(update={"report_s": None})
    assert Checkpoints(tmp_path, Journal()).load(silent, LIKE).history == state.history


def histories(messages):
    return [message for message in messages if isinstance(message, RunHistory)]


def test_it_is_told_after_each_round_and_to_a_broker_that_has_forgotten():
    node = cloud()
    opened(node, "ab")
    told = histories([each for name in "ab" for each in node.handle(update(name), 1.0)])
    assert [row[0] for row in told[-1].rows] == [1]
    _number, accuracy, loss, seconds, *counts, most = told[-1].rows[0]
    assert (accuracy, loss, seconds, counts) == (None, 0.5, 1.0, [2, 2, 0])
    assert most == node.gauges()["fl.sfl_bytes"]
    assert most > 0
    assert histories(node.restore()) == told[-1:]


def test_a_cloud_that_tells_observers_nothing_makes_none():
    config = CONFIG.model_copy(update={"report_s": None})
    state = begin(config, "r", LIKE)
    remember(state, row(1))
    assert list(history(config, state)) == []


def test_its_figures_and_words_while_a_round_is_open(monkeypatch):
    node = cloud()
    node.gauges()
    monkeypatch.delattr(split_network, "split_shape")  # which builds a trunk: once is enough
    waiting = node.gauges()
    assert (waiting["fl.round"], waiting["fl.rounds"], waiting["fl.devices"], waiting["fl.open_s"]) == (1, 2, 0, 0)
    opened(node, "ab")
    list(node.handle(update("a"), 3.0))
    gauges = node.gauges()
    assert (gauges["fl.asked"], gauges["fl.answered"], gauges["fl.open_s"], gauges["fl.devices"]) == (2, 1, 3, 2)
    assert node.words() == {"run": "run", "doing": "collecting, round 1 of 2"}


def test_what_comes_while_it_exports_changes_nothing(tmp_path):
    node = cloud()
    opened(node, "ab")
    node.close()
    before = node.state.model_dump()
    assert list(node.handle(update("a"), 1.0)) == []
    assert list(node.handle(Status("z", "device", online=True, samples=4), 1.0)) == []
    assert node.state.model_dump() == before
    assert not any(isinstance(message, GlobalModel | Refused) for message in node.handle(update("b"), 1.0))
