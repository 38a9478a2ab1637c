"""MLflow's own client finds the run in a store of its own."""

from pathlib import Path

import pytest
from storied import NOW, RUN, watched

pytest.importorskip("mlflow", reason="pip install 'emo-overlays[mlflow]'")

from cloud_app.watch.sinks.mlflow import TAG, MLflow
from cloud_app.watch.sinks.picture import picture, seen
from emo.errors import ConfigError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder: the one store that MLflow's client has without its server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file://{tmp_path}/store"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    return path


def runs(store):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("emo")
    return client, client.search_runs([experiment.experiment_id])


def curves(store):
    client, [run] = runs(store)
    return {
        name: [(each.step, each.timestamp / 1000, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }  # fmt: skip


def expected(picture):
    found = {}
    for point in picture.points:
        found.setdefault(point.name, []).append((point.step, point.time, point.value))
    return found


def test_mlflow_reads_curves_settings_results_and_the_model(store, model):
    whole = picture(seen(watched()), NOW + 40, model)
    assert MLflow(store).write(whole) == len(whole.points)
    client, [run] = runs(store)
    assert run.data.tags[TAG] == run.info.run_name == RUN
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1000 * (NOW + 1), 1000 * (NOW + 30))
    assert run.data.params == {
        "rounds": "3", "training.lr": "0.05", "rounds.clip_norm": "none", "overlays.edges": '["edge-1"]'
    }  # fmt: skip
    assert curves(store) == expected(whole)
    assert run.data.metrics["result/served"] == 0.875
    copy = client.download_artifacts(run.info.run_id, "model.onnx")
    assert Path(copy).read_bytes() == b"weights"


def test_a_run_that_is_watched_again_has_each_point_once(store, model):
    part, whole = picture(seen(watched(until=2)), NOW + 25), picture(seen(watched()), NOW + 40, model)
    log = MLflow(store)
    assert [log.write(part), log.write(part)] == [len(part.points), 0]
    _, [run] = runs(store)
    assert run.info.status == "RUNNING"
    assert [log.write(whole) for log in (MLflow(store), MLflow(store))] == [len(whole.points) - len(part.points), 0]
    assert curves(store) == expected(whole)


def test_a_model_that_is_elsewhere_is_said_once_and_logged_when_it_is_here(store, model, caplog):
    caplog.set_level("INFO", "emo")
    log = MLflow(store)
    for at_hand in (None, None, model):
        log.write(picture(seen(watched()), NOW + 40, at_hand))
    assert caplog.text.count(f"run {RUN} without its model, which is not on this machine") == 1
    client, [run] = runs(store)
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["model.onnx"]


def test_what_was_taken_of_a_request_that_failed_is_not_sent_again(store, model, monkeypatch):
    whole = picture(seen(watched()), NOW + 40, model)
    log = MLflow(store)
    send = log._client.log_batch

    def torn(run, metrics=(), params=()):
        send(run, metrics=metrics[:20], params=params)
        raise ConnectionResetError("the server is gone")

    monkeypatch.setattr(log._client, "log_batch", torn)
    with pytest.raises(OSError, match="the server is gone"):
        log.write(whole)
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log.write(whole)
    assert curves(store) == expected(whole)


def test_a_server_that_is_away_is_said_without_its_password():
    log = MLflow("http://anna:secret@127.0.0.1:9")
    assert log.where == "MLflow at http://127.0.0.1:9"
    with pytest.raises(OSError, match="Connection refused") as raised:
        log.write(picture(seen(watched()), NOW))
    assert "secret" not in str(raised.value)
    assert "anna" not in str(raised.value)


def test_an_address_of_no_server_is_said_at_once():
    with pytest.raises(ConfigError, match=r"--mlflow gopher://there: .*Supported"):
        MLflow("gopher://there")


def test_it_does_not_tell_its_makers():
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()
