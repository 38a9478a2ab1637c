"""YAML of any kind is a value no larger than it looks, or a ConfigError that names file and line."""

import contextlib
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emo import bounded_yaml
from emo.config import DeviceConfig, EdgeConfig
from emo.config_file import any_tier, load, parse
from emo.errors import ConfigError
from emo.security.members import load as members
from testbed.experiments.overlay import _arm
from testbed.timing.scenario import Scenario
from testbed.timing.scenario import load as scenario


def bomb(key, levels=7):
    """Under `key` 10 ** `levels` words, of a few hundred bytes; the same in merges."""
    lists = ["x0: &a0 [" + ", ".join(["word"] * 10) + "]"]
    lists += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lists, f"{key}: *a{levels - 1}\n"])


MERGES = "\n".join(
    [
        "x0: &a0 {k: 1, l: 2}",
        *(f"x{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 8)),
    ]
)


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "some.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "some.yaml"

    return write


# Whoever reads YAML.
READERS = {
    "configuration": lambda file, text: load(EdgeConfig, file(text), {}),
    "any tier": lambda file, text: any_tier(file(text)),
    "scenario": lambda file, text: scenario(file(text)),
    "fleet": lambda file, text: members(file(text)),
    "variable": lambda _file, text: parse(DeviceConfig, {}, "x.yaml", {"EMO_ID": text}),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb("devices"), "line 5: over 1,048,576 characters so far, with what its aliases stand for"),
        (MERGES, "line 6: over 1,048,576"),
        ("{a: 1, a: 2}", r"line 1: 'a' stands there twice \(line 1\): keep one"),
        ("id: [" + "[" * 40, "line 1: is nested deeper than 32 levels"),
        ("id: &x [*x]", r"line 1: \*x stands in what it is an alias of"),
        ("id: " + "1:" * 5000 + "1", "line 1: a number or date of over 64 characters"),
        ("id: !!int ''", "is not YAML"),
        ("id: !!bool x", "is not YAML"),
        ("id: !!timestamp x", "is not YAML"),
        ("id: " + "x" * (1 << 20), "1,048,576"),
    ],
)
def test_what_is_not_read(file, reader, text, said):
    with pytest.raises(ConfigError, match=said):
        READERS[reader](file, text)


def test_an_arm_of_the_study():
    with pytest.raises(ConfigError, match=r"--arms lr=&x .*: line 1"):
        _arm("lr=&x [*x]", None)


def test_a_key_that_stands_twice_is_named_with_both_lines(file):
    path = file("id: d\nwan:\n  port: 1\n  host: a\n  port: 2\n")
    with pytest.raises(ConfigError) as caught:
        load(DeviceConfig, path, {})
    assert str(caught.value) == f"{path}: line 5: 'port' stands there twice (line 3): keep one"


def test_aliases_and_merges_as_people_use_them(file):
    text = "id: d\nwan: &b {host: '[::1]', port: 1884}\nlan: {<<: *b, port: 1885}\n"
    config = load(DeviceConfig, file(text), {})
    assert (config.wan.host, config.lan.host, config.wan.port, config.lan.port) == ("::1", "::1", 1884, 1885)


def test_a_large_fleet_is_read(file):
    edges = "".join(f"  edge-{e}: [{', '.join(f'device-{e}-{d}' for d in range(100))}]\n" for e in range(10))
    assert len(members(file(f"edges:\n{edges}")).devices) == 1000


def test_a_pipe_is_read_to_its_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    text = "id: d\n" + "# so that it is more than one read\n" * 4000
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    assert load(DeviceConfig, tmp_path / "pipe", {}).id == "d"
    writer.join()


def test_a_wrong_key_in_a_list_is_named(file):
    with pytest.raises(ConfigError, match=r"devices\.0\.nmae: unknown key; did you mean 'name'"):
        load(Scenario, file("devices: [{nmae: x}]"), {})


def test_wrong_values_are_shown_in_part(file):
    with pytest.raises(ConfigError) as caught:
        load(EdgeConfig, file(f"id: {'x' * 5000}\ndevices: [{'1, ' * 1000}]\n"), {})
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 981 more")
    assert max(map(len, lines)) < 400


_pieces = st.sampled_from(
    ["&a ", "*a", "<<: ", "[", "]", "{", "}", ": ", "- ", "\n", " ", "? ", "!!int ", "!!set ", "!!omap "]
)
_pieces |= st.sampled_from(
    ["'", '"', "|", ">", "#", "---", "...", "\t", "1:2", "0x", ".inf", "2026-13-01", "\x07", "\\ud800"]
)


@given(st.lists(_pieces | st.text(max_size=3), max_size=25).map("".join))
def test_any_text_is_a_value_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        bounded_yaml.parse(text, "some.yaml")
