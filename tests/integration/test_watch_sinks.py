"""`emo watch --tensorboard --mlflow` of a fleet, then of its record: what the real packages read back."""

import signal
import time

import pytest
from storied import RUN, heard
from watching import Asker, Teller, watching

from emo.wire.messages import Event

pytest.importorskip("tensorboard", reason="pip install 'emo-overlays[tensorboard]'")
pytest.importorskip("mlflow", reason="pip install 'emo-overlays[mlflow]'")


def tell(broker):
    """The story, now. Its devices and edges report at once."""
    nodes = {name: Teller(broker, name, name.partition("-")[0]) for name in ("cloud", "edge-1", "device-1")}
    for message, _ in heard():
        if isinstance(message, Event):
            nodes["cloud"].event(message.name, **message.fields)
        else:
            nodes[getattr(message, "node", "cloud")].publish(message)
    return nodes


def ended(process):
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in {0, 130}, said


def curve(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(each.step, each.value) for each in EventAccumulator(str(folder / RUN)).Reload().Scalars(name)]


def test_a_fleet_is_logged_while_it_runs_and_each_point_once(broker, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # what MLflow's client has without its server
    place = broker.model_copy(update={"root": "logged"})
    model = tmp_path / "models" / "emo" / "2" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    board, store = tmp_path / "board", f"file://{tmp_path}/store"
    config = {"wan": place.model_dump(mode="json", exclude_none=True), "models": str(tmp_path / "models")}
    with watching(tmp_path / "watch", "--tensorboard", str(board), "--mlflow", store, **config) as (process, line):
        ask = Asker(line.rpartition(" ")[2])
        ask.until(lambda state: state["watcher"]["connected"])
        time.sleep(0.3)  # it has subscribed
        nodes = tell(place)
        ask.until(lambda state: state["phase"] == "done" and "served" in state["result"])
        ended(process)
    for node in nodes.values():
        node.close()

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("emo").experiment_id], f"tags.`emo.run` = '{RUN}'")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["result/served"] == 0.875
    assert run.data.params["training.lr"] == "0.05"
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["model.onnx"]
    losses = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "fl/loss")]
    assert losses == [(1, 1.0), (2, 0.9), (3, 0.8)]
    assert curve(board, "fl/loss") == [(step, pytest.approx(value)) for step, value in losses]
    written = {path: path.stat().st_size for path in board.glob("*/events*")}

    # its record
    there = ("--run", str(tmp_path / "watch" / "state"), "--port", "0", "--tensorboard", str(board))
    with watching(tmp_path, *there) as (process, line):
        assert Asker(line.rpartition(" ")[2]).json("/api/state")["run"] == RUN
        ended(process)
    assert {path: path.stat().st_size for path in board.glob("*/events*")} == written
