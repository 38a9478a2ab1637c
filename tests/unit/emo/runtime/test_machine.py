"""What the kernel tells of a machine, also where it tells little or nonsense."""

import os

import pytest

from emo.runtime import machine


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_ZONES", tmp_path / "thermal")
    monkeypatch.setattr(machine, "_PI", tmp_path / "get_throttled")
    return tmp_path


def zone(kernel, number, text):
    folder = kernel / "thermal" / f"thermal_zone{number}"
    folder.mkdir(parents=True)
    (folder / "temp").write_text(text, encoding="ascii")


def test_of_this_process_memory_and_time(kernel):
    del kernel
    gauges = machine.gauges()
    assert gauges.keys() == {"machine.cpu_s", "machine.memory_bytes"}
    assert gauges["machine.cpu_s"] > 0
    assert 1 << 20 < gauges["machine.memory_bytes"] < 1 << 40


def test_the_hottest_sensor_in_degrees_and_what_a_raspberry_pi_says_of_now(kernel):
    zone(kernel, 0, "45123\n")
    zone(kernel, 1, "71950\n")
    zone(kernel, 2, "not a number")
    (kernel / "get_throttled").write_text("50005\n", encoding="ascii")  # hexadecimal; the upper bits: of the past
    gauges = machine.gauges()
    assert gauges["machine.temperature_c"] == 72.0
    assert gauges["machine.throttled"] == 0b0101


@pytest.mark.parametrize("text", ["", "zz", "9" * 5000, "\n"])
def test_nonsense_is_left_out(kernel, text):
    zone(kernel, 0, text)
    (kernel / "get_throttled").write_text(text if len(text) < 9 else "zz", encoding="ascii")
    assert machine.gauges().keys() == {"machine.cpu_s", "machine.memory_bytes"}


def test_a_disk_as_its_user_sees_it_and_none_where_there_is_none(tmp_path):
    has = os.statvfs(tmp_path)
    assert machine.disk(tmp_path)["disk.size_bytes"] == has.f_blocks * has.f_frsize
    assert 0 <= machine.disk(tmp_path)["disk.free_bytes"] <= has.f_blocks * has.f_frsize
    assert machine.disk(tmp_path / "gone") == {}
