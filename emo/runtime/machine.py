"""How the machine and this process are doing, as gauges for a journal: what the kernel says without being asked twice."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

_ZONES = Path("/sys/class/thermal")
# Raspberry Pi: bit 0 under-voltage, 1 frequency capped, 2 throttled, 3 too hot; the bits above tell of the past.
_PI = Path("/sys/devices/platform/soc/soc:firmware/get_throttled")
_NOW = 0b1111


def gauges() -> Mapping[str, float]:
    """Of this process: machine.memory_bytes (resident), machine.cpu_s (since its start). Of the machine, where the kernel
    tells: machine.temperature_c (its hottest sensor), machine.throttled (the Raspberry Pi's bits)."""
    cpu = os.times()
    values = {"machine.cpu_s": round(cpu.user + cpu.system, 1)}
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        values["machine.memory_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    heat = [each for zone in _ZONES.glob("thermal_zone*") if (each := _number(zone / "temp", 10)) is not None]
    if heat:
        values["machine.temperature_c"] = round(max(heat) / 1000, 1)
    throttled = _number(_PI, 16)
    if throttled is not None:
        values["machine.throttled"] = throttled & _NOW
    return values


def disk(folder: Path) -> Mapping[str, float]:
    """disk.free_bytes and disk.size_bytes of the file system of `folder`, for those who are not root."""
    try:
        has = os.statvfs(folder)
    except OSError:
        return {}
    return {"disk.free_bytes": has.f_bavail * has.f_frsize, "disk.size_bytes": has.f_blocks * has.f_frsize}


def _number(path: Path, base: int) -> int | None:
    try:
        return int(path.read_text(encoding="ascii").strip(), base)
    except (OSError, ValueError):
        return None
