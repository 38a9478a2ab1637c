"""`emo` finds its commands through entry points, and --help works wherever some packages only are installed."""

import functools
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from emo import cli, extras

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRIES = PROJECT["entry-points"]["emo.commands"]
# By the extra that a command needs; "" needs none.
COMMANDS = {
    "": {"init", "check", "doctor", "health", "rounds", "models", "broker"},
    "pki": {"pki"},
    "device": {"device", "selftest"},
    "edge": {"edge"},
    "cloud": {"cloud", "export"},
    "serve": {"serve", "predict"},
    "watch": {"watch"},
    "demo": {"demo", "simulate", "chaos"},
    "study": {"compare"},
}
# What else an extra is enough for.
ENOUGH = {
    "": set(),
    "pki": set(),
    "fleet": {"pki"},
    "device": {"pki"},
    "edge": {"pki", "device"},
    "watch": {"pki"},
    "serve": {"watch"},
    "cloud": {"pki", "device", "serve", "watch"},
    "study": set(COMMANDS),
}


def child(code, *args):
    """What `code` prints as JSON, in an interpreter that has imported nothing."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_installed_names_the_commands_of_this_code():
    installed = importlib.metadata.entry_points(group="emo.commands")
    assert {entry.name: entry.value for entry in installed} == ENTRIES, "run make setup"


def test_every_commands_module_is_named():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("emo", "device_app", "edge_app", "cloud_app", "testbed")
        for path in (ROOT / package).rglob("commands.py")
    }
    assert modules == set(ENTRIES.values())


ALONE = """
import importlib, json, sys
import emo.cli
before = set(sys.modules)
added = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    added[name] = sorted(set(sys.modules) - before)
    before = set(sys.modules)
print(json.dumps({"start": sorted(before - {n for names in added.values() for n in names}), "added": added}))
"""
HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "h5py", "cryptography", "uvicorn", "PIL"}


def test_a_commands_module_imports_its_tier_inside_its_commands_only():
    loaded = child(ALONE, *ENTRIES.values())
    for module, names in [("emo.cli", loaded["start"]), *loaded["added"].items()]:
        assert not HEAVY & {name.partition(".")[0] for name in names}, module
    for module, names in loaded["added"].items():
        packages = [module.rpartition(".")[0], module.partition(".")[0]]
        first_party = {name for name in names if re.match(r"(\w+_app|testbed|emo\.(ops|security))\b", name)}
        assert first_party <= {module, *packages}, module


# -- with the packages of one extra only


def needed(lines):
    """Names of the distributions that these requirements bring, with what those need in turn."""
    names = set()
    todo = [Requirement(line) for line in lines]
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            key = (requirement.name.lower().replace("_", "-"), extra)
            if key in names:
                continue
            names.add(key)
            if key[0] == "emo-overlays":
                inner = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
                todo += [Requirement(line) for line in inner]
                continue
            try:
                inner = importlib.metadata.requires(requirement.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # of another system
            for line in map(Requirement, inner):
                if line.marker is None or line.marker.evaluate({"extra": extra}):
                    todo.append(line)
    return {name for name, _ in names}


owners_of_modules = functools.cache(importlib.metadata.packages_distributions)


def modules(extra):
    """Top-level modules that `pip install emo-overlays[extra]` brings."""
    names = needed([f"emo-overlays[{extra}]" if extra else "emo-overlays"])
    return sorted(
        module
        for module, owners in owners_of_modules().items()
        if names & {owner.lower().replace("_", "-") for owner in owners}
    )


HELP = """
import contextlib, io, json, os, sys
from importlib.machinery import PathFinder

sites = [path for path in sys.path if "site-packages" in path]

class Installed:
    names = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = PathFinder.find_spec(name, path, target)
        origin = "" if found is None else found.origin or str(next(iter(found.submodule_search_locations), ""))
        there = any(origin.startswith(site) for site in sites)
        return None if there and name.partition(".")[0] not in cls.names else found

    find_distributions = PathFinder.find_distributions

sys.meta_path = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
os.environ["COLUMNS"] = "1000"
before, said = set(sys.modules), {}
for extra, names in json.loads(sys.argv[1]).items():
    Installed.names = set(names)
    from emo import cli
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main(["--help"])
    said[extra] = out.getvalue()
    outside = {name.partition(".")[0] for name in set(sys.modules) - before
               if any(str(getattr(sys.modules[name], "__file__", "")).startswith(site) for site in sites)}
    assert outside <= Installed.names, outside - Installed.names
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    """Extra -> what `emo --help` says where nothing but its packages is installed."""
    return child(HELP, json.dumps({extra: modules(extra) for extra in ENOUGH}))


@pytest.mark.parametrize("extra", ENOUGH)
def test_help_with_one_extra_lists_its_commands_and_what_the_others_need(extra, said):
    lines = {line.split()[0]: line for line in said[extra].splitlines() if line.startswith("    ")}
    for other, commands in COMMANDS.items():
        here = other in {"", extra, *ENOUGH[extra]}
        for command in commands:
            needs = f"(needs pip install 'emo-overlays[{other}]')"
            assert (needs in lines[command]) == (not here), (extra, command)
            assert ("needs pip" in lines[command]) == (not here), (extra, command)


@pytest.mark.parametrize("extra", sorted({*COMMANDS} - {""}))
def test_an_extra_brings_what_its_commands_are_said_to_need(extra):
    assert set(extras._MODULES[extra]) <= set(modules(extra))


# -- with some of EMO's own packages only, and of another version


def installed(monkeypatch, *entries):
    found = [importlib.metadata.EntryPoint(name, value, "emo.commands") for name, value in entries]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)


def test_a_package_that_an_image_does_not_hold_is_said_and_harms_nothing(monkeypatch, capsys):
    installed(monkeypatch, ("40-edge", "no_such_app.commands"), ("20-ops", "emo.ops.commands"))
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "init" in text
    assert "Not in this installation: the commands of edge (no module no_such_app)." in text


def test_an_installation_of_before_is_told_to_be_renewed(monkeypatch, capsys):
    installed(monkeypatch)
    assert cli.main(["--help"]) == 2
    assert "run make setup" in capsys.readouterr().err
