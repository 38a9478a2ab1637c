"""Rooms stay small enough to be looked over: no folder of the packages holds more than twenty loose Python files."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("emo", "device_app", "edge_app", "cloud_app", "testbed", "bench")
MOST = 20


def test_no_folder_holds_more_than_twenty_python_files():
    counts = Counter(path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    assert len(counts) > len(PACKAGES)
    full = {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST}
    assert not full, "split them by what they are about"
