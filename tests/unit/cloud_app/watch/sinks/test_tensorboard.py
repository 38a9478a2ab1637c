"""TensorBoard's own reader finds the run in the folder."""

import errno
import os

import pytest
from storied import NOW, RUN, watched

pytest.importorskip("tensorboard", reason="pip install 'emo-overlays[tensorboard]'")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata

from cloud_app.watch.sinks import tensorboard
from cloud_app.watch.sinks.picture import picture, seen
from cloud_app.watch.sinks.tensorboard import TensorBoard
from emo.errors import ConfigError


def logged(folder, *pictures):
    log = TensorBoard(folder)
    points = [log.write(each) for each in pictures]
    log.close()
    return points


def read(folder, name):
    found = EventAccumulator(str(folder / RUN)).Reload()
    return [(each.step, each.wall_time, each.value) for each in found.Scalars(name)]


@pytest.fixture(scope="module")
def part():
    return picture(seen(watched(until=2)), NOW + 25)


@pytest.fixture(scope="module")
def whole():
    return picture(seen(watched()), NOW + 40)


def test_tensorboard_reads_curves_settings_and_results(tmp_path, whole):
    assert logged(tmp_path / "new" / "logs", whole) == [len(whole.points)]
    found = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "new" / "logs")).Reload()
    assert list(found.Runs()) == [RUN]
    assert set(found.Runs()[RUN]["scalars"]) == {point.name for point in whole.points}
    for name in found.Runs()[RUN]["scalars"]:
        got = [(each.step, each.wall_time, each.value) for each in found.Scalars(RUN, name)]
        assert got == [
            (point.step, point.time, pytest.approx(point.value)) for point in whole.points if point.name == name
        ]
    [shown] = (found.SummaryMetadata(RUN, metadata.SESSION_START_INFO_TAG).plugin_data.content,)
    settings = metadata.parse_session_start_info_plugin_data(shown).hparams
    assert settings["training.lr"].number_value == 0.05
    assert settings["rounds"].number_value == 3


def test_a_run_that_is_watched_again_has_each_point_once(tmp_path, part, whole):
    assert logged(tmp_path, part, part) == [len(part.points), 0]
    [first] = (tmp_path / RUN).glob("events*")
    assert logged(tmp_path, part) == [0]
    assert list((tmp_path / RUN).glob("events*")) == [first]  # nothing new, no file
    assert logged(tmp_path, whole, whole) == [len(whole.points) - len(part.points), 0]
    for name in {point.name for point in whole.points}:
        steps = [step for step, *_ in read(tmp_path, name)]
        assert steps == [point.step for point in whole.points if point.name == name]


@pytest.mark.parametrize("lost", [1, 7, 20, 200])
def test_one_that_was_killed_while_it_wrote_goes_on(tmp_path, part, whole, lost):
    logged(tmp_path, part)
    [path] = (tmp_path / RUN).glob("events*")
    os.truncate(path, path.stat().st_size - lost)
    logged(tmp_path, whole)
    for name in {point.name for point in whole.points}:
        steps = [step for step, *_ in read(tmp_path, name)]
        assert steps == [point.step for point in whole.points if point.name == name]


def test_a_clock_that_was_set_back_does_not_hide_what_is_written_next(tmp_path, part, whole, monkeypatch):
    logged(tmp_path, part)
    monkeypatch.setattr(tensorboard.time, "time", lambda: 1.0)
    logged(tmp_path, whole)
    assert [step for step, *_ in read(tmp_path, "fl/loss")] == [1, 2, 3]


def test_a_full_disk_is_said_and_what_is_torn_is_written_again(tmp_path, whole):
    log = TensorBoard(tmp_path)
    limit = 300

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file.tell() + len(data) > limit:
                if self.file.tell() < limit:
                    return self.file.write(data[: limit - self.file.tell()])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def close(self):
            self.file.close()

    log.write(picture(seen(watched(until=0, told=False)), NOW))
    log._run._file = Full(log._run._file)
    with pytest.raises(OSError, match="No space"):
        log.write(whole)
    assert log.write(whole) > 0  # there is room again
    log.close()
    for name in {point.name for point in whole.points}:
        assert len({step for step, *_ in read(tmp_path, name)}) == len(read(tmp_path, name))
    assert [step for step, *_ in read(tmp_path, "fl/loss")] == [1, 2, 3]


def test_two_observers_do_not_write_one_run(tmp_path, part):
    one, other = TensorBoard(tmp_path), TensorBoard(tmp_path)
    one.write(part)
    with pytest.raises(OSError, match="another emo watch writes this run there"):
        other.write(part)
    one.close()
    assert other.write(part) == 0
    other.close()


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--tensorboard .*file.*: cannot be written"):
        TensorBoard(tmp_path / "file")
