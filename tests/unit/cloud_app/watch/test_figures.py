"""The table of figures is whole: what the code counts or measures has a metric, and what has a metric is counted."""

import ast
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from cloud_app.watch.figures import FIGURES, KNOWN, PARTS
from edge_app.cache.disk import DiskCache
from edge_app.cache.replay_cache import ReplayCache

ROOT = Path(__file__).parents[4]
PACKAGES = ("emo", "device_app", "edge_app", "cloud_app")
GAUGES = ("gauges", "figures", "disk")  # functions whose dicts are figures
MAY = re.compile(r"journal|def (?:gauges|figures|disk)\b")  # what else is read is read for nothing
ANY = "*"


class Source:
    """One file, in which an expression's possible texts are found: through variables, and arguments of its own calls."""

    def __init__(self, text):
        self.tree = ast.parse(text)
        self.within = {}
        for function in ast.walk(self.tree):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    self.within[node] = function  # the innermost comes last

    def texts(self, node):
        if isinstance(node, ast.Constant):
            return {str(node.value)}
        if isinstance(node, ast.IfExp):
            return self.texts(node.body) | self.texts(node.orelse)
        if isinstance(node, ast.JoinedStr):
            return {"".join(parts) for parts in product(*map(self.texts, node.values))}
        if isinstance(node, ast.FormattedValue):
            return self.texts(node.value)
        if isinstance(node, ast.Name):
            return self.variable(node) or {ANY}
        return {ANY}

    def variable(self, node):
        function, found = self.within.get(node), set()
        if function is None:
            return found
        for assign in ast.walk(function):
            if isinstance(assign, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == node.id for target in assign.targets
            ):
                found |= self.texts(assign.value)
        names = [each.arg for each in function.args.args if each.arg != "self"]
        if node.id in names:
            for call in self.calls(function.name):
                if len(call.args) > names.index(node.id):
                    found |= self.texts(call.args[names.index(node.id)])
        return found

    def calls(self, *names):
        for call in ast.walk(self.tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in names:
                yield call

    def figures(self):
        for call in self.calls("count", "problem"):
            if ast.unparse(call.func.value).endswith(("journal", "self")) and call.args:
                yield from self.texts(call.args[0])
        for node in ast.walk(self.tree):
            if isinstance(node, ast.AugAssign) and ast.unparse(node.target).startswith("self.counts["):
                yield from self.texts(node.target.slice)
            if isinstance(node, ast.FunctionDef) and node.name in GAUGES:
                yield from self.of_dicts(node)

    def of_dicts(self, function):
        for node in ast.walk(function):
            keys = node.keys if isinstance(node, ast.Dict) else [node.key] if isinstance(node, ast.DictComp) else []
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                keys = [node.slice]
            for key in keys:
                if key is not None:
                    yield from self.texts(key)


@cache
def in_the_code():
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            for name in Source(text).figures() if MAY.search(text) else ():
                found.setdefault(name, path.relative_to(ROOT))
    found.pop(ANY, None)  # journal.py's own `name`
    return found


def matches(name):
    pattern = re.compile(re.escape(name).replace(re.escape(ANY), ".+"))
    return [known for known in KNOWN if pattern.fullmatch(known)]


def test_every_name_in_the_code_has_a_metric():
    found = in_the_code()
    assert len(found) > 90
    assert {"sent_bytes.*", "checkpoint.misfit", "nodes.unfit", "outbox.dropped.*", "tap.sent", "fl.open_s"} <= set(
        found
    )
    missing = {name: str(path) for name, path in found.items() if not matches(name)}
    assert not missing, "give each a line in cloud_app/watch/figures.py"


def test_every_metric_has_a_name_in_the_code():
    patterns = [re.compile(re.escape(name).replace(re.escape(ANY), ".+")) for name in in_the_code()]
    assert [name for name in KNOWN if not any(pattern.fullmatch(name) for pattern in patterns)] == []


def test_what_a_cache_counts_has_a_metric(tmp_path):
    with DiskCache(tmp_path, None, "oldest") as disk:
        cache = ReplayCache(disk, 1 << 20, 0, "cpu")
        names = {f"cache.{name}" for name in cache.stats()}
        cache.close()
    listed = {name for name in FIGURES if name.startswith("cache.") and "LEAST" not in name}
    assert names == listed


def test_no_two_figures_make_the_same_series():
    series = [(metric.name, labels) for metric, labels in KNOWN.values()]
    assert len(series) == len(set(series))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_stands_for_no_free_text(part):
    assert all(re.fullmatch(r"[A-Za-z0-9_.]+", value) for value in PARTS[part])
    assert len(PARTS[part]) <= 64
