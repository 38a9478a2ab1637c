"""One version number: the code's. The package takes it from there, and what is copied from the docs names no other."""

import re
import tomllib
from pathlib import Path

from emo import __version__

ROOT = Path(__file__).parents[3]
NAMED = re.compile(r"emo-(?:device|edge|coordinator|endpoint)(?:-jetson)?[:-](\d+\.\d+\.\d+)|\bVERSION=(\d+\.\d+\.\d+)")


def test_the_package_has_the_version_of_the_code():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in found["project"]
    assert found["project"]["dynamic"] == ["version"]
    assert found["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "emo.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_docs_and_the_example_inventory_name_images_of_this_version():
    files = [ROOT / "README.md"]
    for folder in ("docs", "ansible"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in {".md", ".yml", ".j2"}]
    found = [
        (str(path.relative_to(ROOT)), number)
        for path in files
        for match in NAMED.findall(path.read_text(encoding="utf-8"))
        for number in match
        if number
    ]
    assert len(found) > 15
    assert {number for _, number in found} == {__version__}, found
