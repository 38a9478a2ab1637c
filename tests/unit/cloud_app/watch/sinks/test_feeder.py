"""A log that is away, slow or full holds up nobody, and gets all of it in the end."""

import json
import threading
import time

import pytest
from storied import NOW, RUN, heard, watched

from cloud_app.watch.sinks.feeder import Feeder
from cloud_app.watch.sinks.logs import feeding, in_repository, of_run
from cloud_app.watch.sinks.picture import Picture, Point
from cloud_app.watch.view import View
from cloud_app.watch.watcher import Watcher
from emo.journal import Journal


class Away:
    """Fails as often as it is told to, and waits while it is held."""

    name, where = "mlflow", "MLflow at http://there"

    def __init__(self, failures=0):
        self.failures, self.tried, self.closed = failures, 0, False
        self.seen, self.free = [], threading.Event()
        self.free.set()

    def write(self, picture):
        assert self.free.wait(20)
        self.tried += 1
        if self.tried <= self.failures:
            raise OSError("it is away")
        self.seen.append(picture)
        return len(picture.points)

    def close(self):
        self.closed = True


def taken(run, rounds):
    return Picture(run, {}, [Point("fl/loss", number, NOW, 1.0) for number in range(rounds)])


def until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def journal():
    return Journal()


def test_a_slow_log_holds_up_nobody_and_gets_the_newest(journal):
    log = Away()
    log.free.clear()
    feeder = Feeder(log, journal)
    begun = time.monotonic()
    for number in range(1000):
        feeder.put(taken("r1", number // 100))
    assert time.monotonic() - begun < 10
    log.free.set()
    assert feeder.close(10)
    assert len(log.seen[-1].points) == 9
    assert len(log.seen) <= 2
    assert log.closed
    assert journal.counts["log.points.mlflow"] == sum(len(each.points) for each in log.seen)


def test_what_fails_is_counted_said_and_tried_again(journal, caplog):
    log = Away(failures=3)
    feeder = Feeder(log, journal, retry_s=0.01)
    feeder.put(taken("r1", 5))
    until(lambda: log.seen)
    assert feeder.close(10)
    assert journal.counts["log.failed.mlflow"] == 3
    assert log.tried == 4
    assert "MLflow at http://there: it is away; run r1 is logged later" in caplog.text


def test_one_that_stays_away_is_asked_a_last_time_and_ends_with_the_observer(journal):
    log = Away(failures=99)
    feeder = Feeder(log, journal, retry_s=60)
    feeder.put(taken("r1", 5))
    until(lambda: log.tried)
    begun = time.monotonic()
    assert not feeder.close(10)
    assert time.monotonic() - begun < 5
    assert log.tried == 2
    assert log.closed


def test_one_that_never_answers_is_left(journal):
    log = Away()
    log.free.clear()
    feeder = Feeder(log, journal)
    feeder.put(taken("r1", 5))
    assert not feeder.close(0.1)
    log.free.set()


def test_many_runs_while_it_is_away_are_bounded(journal):
    log = Away()
    log.free.clear()
    feeder = Feeder(log, journal)
    feeder.put(taken("first", 1))
    until(lambda: not feeder._waiting)  # it is under way
    for number in range(20):
        feeder.put(taken(f"r{number}", 1))
    log.free.set()
    assert feeder.close(10)
    assert [each.run for each in log.seen] == ["first", *(f"r{number}" for number in range(12, 20))]
    assert journal.counts["log.lost.mlflow"] == 12


def test_a_picture_is_taken_when_something_has_changed(journal):
    log, view = Away(), View(10)
    watcher = Watcher(view, "watch", "mqtt", "broker", clock=lambda: NOW + 50)
    with feeding([log], watcher, journal, lambda _view: None, every_s=0.01):
        time.sleep(0.05)  # no run yet
        for message, now in heard(until=2):
            with watcher.view():
                view.take(message, now)
        until(lambda: log.seen)
        time.sleep(0.1)
        taken = len(log.seen)
        time.sleep(0.1)
        assert taken == len(log.seen) <= 2  # nothing had changed
        with watcher.view():
            for message, now in heard():
                view.take(message, now)
    assert log.seen[-1].over
    assert log.closed


def test_one_that_did_not_get_all_of_it_is_named_at_the_end(journal, caplog):
    watcher = Watcher(watched(), "watch", "mqtt", "broker", clock=lambda: NOW + 50)
    with feeding([Away(failures=99)], watcher, journal, lambda _view: None):
        pass
    assert "MLflow at http://there: not all of the run is there; the same command logs the rest" in caplog.text


def test_the_model_is_the_version_that_the_cloud_has_exported_where_it_is_at_hand(tmp_path):
    for version in (1, 2):
        (tmp_path / "emo" / str(version)).mkdir(parents=True)
        (tmp_path / "emo" / str(version) / "model.onnx").touch()
    view = watched()
    assert in_repository(tmp_path, "emo")(view.progress) == tmp_path / "emo" / "2" / "model.onnx"
    assert in_repository(tmp_path, "other")(view.progress) is None
    assert in_repository(None, "emo")(view.progress) is None
    view.progress.result["version"] = 1e300
    assert in_repository(tmp_path, "emo")(view.progress) is None


def test_the_model_of_a_run_that_is_over_is_the_one_that_its_result_names(tmp_path):
    view, model, told = watched(), tmp_path / "model.onnx", tmp_path / "result.json"
    assert of_run(tmp_path)(view.progress) is None
    told.write_text(json.dumps({"run": RUN, "onnx": str(model)}))
    assert of_run(tmp_path)(view.progress) is None  # on another machine
    model.touch()
    assert of_run(tmp_path)(view.progress) == model
    for wrong in (
        "[",
        "[]",
        json.dumps({"run": "other", "onnx": str(model)}),
        json.dumps({"run": RUN, "onnx": str(told)}),
    ):
        told.write_text(wrong)
        assert of_run(tmp_path)(view.progress) is None
