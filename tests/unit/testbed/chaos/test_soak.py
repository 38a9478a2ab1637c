"""What a soak says of memory, and what the light devices of bench.scale put on the wire."""

import pytest

from bench import light
from testbed.chaos import soak

MIB = 1 << 20


def test_flat_memory_has_no_slope_whatever_it_did_before():
    rows = [(float(second), (500 if second < 20 else 100) * MIB, 7) for second in range(0, 100, 5)]
    assert soak.slope(rows) == {
        "mib": 100.0,
        "mib_at_end": 100.0,
        "percent_an_hour": 0.0,
        "files": [7, 7],
    }


def test_a_leak_is_told_in_percent_an_hour():
    rows = [(float(second), 100 * MIB + second * MIB // 3600, 3 + second // 1800) for second in range(0, 3600, 60)]
    found = soak.slope(rows)
    assert found["percent_an_hour"] == pytest.approx(1.0, abs=0.01)
    assert found["files"] == [3, 4]


@pytest.mark.parametrize(
    ("size", "length"), [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (16_384, b"\x80\x80\x01")]
)
def test_the_length_of_a_packet_is_written_as_mqtt_has_it(size, length):
    assert light._packet(3, 0b011, bytes(size)) == b"\x33" + length + bytes(size)  # MQTT 3.1.1, 2.2.3
