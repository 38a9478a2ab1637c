"""Configuration: whatever is wrong is a ConfigError that names the file and the key."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emo.config import CloudConfig, DeviceConfig, EdgeConfig
from emo.config_file import load, parse
from emo.errors import ConfigError

DEVICE = {"id": "dev-1"}


def device(values=(), environ=()):
    return parse(DeviceConfig, {**DEVICE, **dict(values)}, "device.yaml", dict(environ))


def written(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_is_read_and_the_rest_has_defaults(tmp_path):
    path = written(tmp_path, "id: dev-1\nwan:\n  host: cloud.example\n  port: 8883\nedge: edge-1\n")
    config = load(DeviceConfig, path, {})
    assert (config.id, config.edge, config.batch_size) == ("dev-1", "edge-1", 16)
    assert (config.wan.host, config.wan.port, config.wan.chunk_kib) == ("cloud.example", 8883, 256)
    assert config.lan.host == "127.0.0.1"
    assert config.partition is None


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load(CloudConfig, written(tmp_path, ""), {}).id == "cloud"


def test_a_configuration_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        device().wan.port = 5


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({"batchsize": 8}, "batchsize", "'batch_size'"),
        ({"wan": {"hsot": "x"}}, "wan.hsot", "'host'"),
        ({"partition": {"devices": 2, "index": 0, "alhpa": 1}}, "partition.alhpa", "'alpha'"),
        ({"tap": {"Codec": "fp16"}}, "tap.Codec", "'codec'"),
    ],
)
def test_an_unknown_key_names_the_nearest_known(values, key, near):
    with pytest.raises(ConfigError) as caught:
        device(values)
    assert f"device.yaml: {key}: unknown key; did you mean {near}?" in str(caught.value)


def test_an_unknown_key_like_no_other_lists_the_known():
    with pytest.raises(ConfigError, match=r"lan\.zzzz: unknown key; known here: .*chunk_kib, host"):
        device({"lan": {"zzzz": 1}})


def test_all_errors_of_a_file_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        device({"batchsize": 8, "wan": {"port": 0, "hsot": "x"}, "threads": 0})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("device.yaml: ") for line in lines)


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        (DeviceConfig, {}, "id"),
        (DeviceConfig, {"id": "a/b"}, "id"),
        (DeviceConfig, {"id": "a\n"}, "id"),
        (DeviceConfig, {"id": "+"}, "id"),
        (DeviceConfig, {"id": "a" * 65}, "id"),
        (DeviceConfig, {"id": ""}, "id"),
        (DeviceConfig, {"id": 7}, "id"),
        (DeviceConfig, DEVICE | {"wan": {"port": 0}}, "wan.port"),
        (DeviceConfig, DEVICE | {"wan": {"port": 65536}}, "wan.port"),
        (DeviceConfig, DEVICE | {"wan": {"port": "http"}}, "wan.port"),
        (DeviceConfig, DEVICE | {"wan": {"root": "a/b"}}, "wan.root"),
        (DeviceConfig, DEVICE | {"wan": {"chunk_kib": 3}}, "wan.chunk_kib"),
        (DeviceConfig, DEVICE | {"wan": {"chunk_kib": 1025}}, "wan.chunk_kib"),
        (DeviceConfig, DEVICE | {"wan": None}, "wan"),
        (DeviceConfig, DEVICE | {"wan": "here"}, "wan"),
        (DeviceConfig, DEVICE | {"model": {"input": [1, 0, 8]}}, "model.input.1"),
        (DeviceConfig, DEVICE | {"model": {"width": float("nan")}}, "model.width"),
        (DeviceConfig, DEVICE | {"model": {"norm": "layer"}}, "model.norm"),
        (DeviceConfig, DEVICE | {"batch_size": 0}, "batch_size"),
        (DeviceConfig, DEVICE | {"partition": {"devices": 4}}, "partition.index"),
        (DeviceConfig, DEVICE | {"partition": {"devices": 4, "index": 4}}, "partition"),
        (
            DeviceConfig,
            DEVICE | {"partition": {"devices": 4, "index": 0, "alpha": float("inf")}},
            "partition.alpha",
        ),
        (EdgeConfig, {"id": "edge-1"}, "devices"),
        (EdgeConfig, {"id": "edge-1", "devices": ["ok", "a#"]}, "devices.1"),
        (EdgeConfig, {"id": "edge-1", "devices": [], "overlay": {"replay_ratio": 0}}, "overlay.replay_ratio"),
        (CloudConfig, {"training": {"lr": 0}}, "training.lr"),
        (CloudConfig, {"training": {"momentum": 1}}, "training.momentum"),
        (CloudConfig, {"rounds": {"quorum": 1.01}}, "rounds.quorum"),
        (CloudConfig, {"rounds": {"rounds": 0}}, "rounds.rounds"),
        (CloudConfig, {1: 2}, "1"),
    ],
)
def test_bad_values_name_file_and_key(kind, values, key):
    with pytest.raises(ConfigError) as caught:
        parse(kind, values, "some.yaml", {})
    assert any(line.startswith(f"some.yaml: {key}: ") for line in str(caught.value).splitlines()), caught.value


# -- hosts and folders, as people write them


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("cloud.example", "cloud.example"),
        ("my_host.", "my_host."),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_a_host(host, found):
    assert device({"wan": {"host": host}}).wan.host == found


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("mqtt://127.0.0.1", r"nothing else: write host: 127\.0\.0\.1 \(found"),
        ("mqtts://me:secret@broker.local:8883/", r"write host: broker\.local and port: 8883"),
        ("broker.local:1884", r"write host: broker\.local and port: 1884"),
        ("[::1]:1884", "write host: ::1 and port: 1884"),
        ("a..b", r"has to be a host name or an IP address \(found"),
        ("a" * 64, "has to be"),
        ("a b", "has to be"),
        ("a\n", "has to be"),
        ("", "wan.host"),
    ],
)
def test_what_is_no_host(host, said):
    with pytest.raises(ConfigError, match=rf"device\.yaml: wan\.host: .*{said}|at least 1"):
        device({"wan": {"host": host}})


def test_the_password_of_a_url_is_not_shown():
    with pytest.raises(ConfigError) as caught:
        device({"wan": {"host": "mqtts://me:secret@broker.local"}})
    assert "secret" not in str(caught.value)


def test_every_path_may_begin_with_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = device(
        {
            "state_dir": "~/state",
            "data": {"dir": "~/data"},
            "lan": {"tls": dict.fromkeys(("ca", "cert", "key"), "~/x")},
        }
    )
    assert config.state_dir == Path("/home/me/state")
    assert config.data.dir == Path("/home/me/data")
    assert config.lan.tls.key == Path("/home/me/x")


@pytest.mark.parametrize("path", ["~no-such-user/x", "a\0b", "\ud800"])
def test_what_is_no_path(path):
    with pytest.raises(ConfigError, match=r"device\.yaml: state_dir: "):
        device({"state_dir": path})


# -- EMO_*


def test_environment_wins_over_the_file_at_any_depth():
    config = device(
        {"wan": {"host": "file", "port": 1}, "batch_size": 4},
        {
            "EMO_WAN__HOST": "10.0.0.2",
            "EMO_BATCH_SIZE": "32",
            "EMO_PARTITION__DEVICES": "10",
            "EMO_PARTITION__INDEX": "3",
            "EMO_TAP__ENABLED": "false",
            "EMO_MODEL__INPUT": "[3, 32, 32]",
            "EMO_ID": "dev-9",
            "PATH": "/bin",
            "NOT_EMO_ID": "x",
        },
    )
    assert (config.wan.host, config.wan.port, config.batch_size, config.id) == ("10.0.0.2", 1, 32, "dev-9")
    assert config.partition is not None
    assert (config.partition.devices, config.partition.index) == (10, 3)
    assert config.tap.enabled is False
    assert config.model.input == (3, 32, 32)


@pytest.mark.parametrize(("text", "value"), [("0.05", 0.05), ("1e-3", 0.001), ("1", 1.0)])
def test_numbers_in_the_environment(text, value):
    assert parse(CloudConfig, {}, "cloud.yaml", {"EMO_TRAINING__LR": text}).training.lr == value


def test_the_given_values_are_not_changed():
    values = {"id": "dev-1", "wan": {"host": "file"}}
    parse(DeviceConfig, values, "device.yaml", {"EMO_WAN__HOST": "other"})
    assert values == {"id": "dev-1", "wan": {"host": "file"}}


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"EMO_WAN__HSOT": "x"}, r"wan\.hsot: unknown key; did you mean 'host'"),
        ({"EMO_WNA__HOST": "x"}, "wna: unknown key; did you mean 'wan'"),
        ({"EMO_WAN__PORT": "many"}, r"wan\.port"),
        ({"EMO_ID__NAME": "x"}, "EMO_ID__NAME: id is a single value, it has no name"),
        ({"EMO_WAN": "x"}, "wan: Input should be"),
        ({"EMO_": "x"}, "unknown key"),
        ({"EMO_WAN__HOST": "["}, "EMO_WAN__HOST: is not YAML"),
        ({"EMO_WAN__HOST": '"'}, "EMO_WAN__HOST: is not YAML"),
        ({"EMO_WAN__HOST": "@x"}, "EMO_WAN__HOST: is not YAML"),
    ],
)
def test_bad_environment(environ, says):
    with pytest.raises(ConfigError, match=says):
        device(environ=environ)


# One line of emo/config.py each: `except yaml.YAMLError` wants ValueError and RecursionError too.
_odd_yaml = ["2026-13-01", "!!int x", "!!float x", "[" * 5000]


@pytest.mark.parametrize("text", _odd_yaml)
def test_environment_that_breaks_the_yaml_reader_names_the_variable(text):
    with pytest.raises(ConfigError, match="EMO_WAN__HOST"):
        device(environ={"EMO_WAN__HOST": text})


@pytest.mark.parametrize("text", _odd_yaml)
def test_yaml_that_breaks_its_own_reader(tmp_path, text):
    with pytest.raises(ConfigError, match=r"some\.yaml"):
        load(DeviceConfig, written(tmp_path, f"id: {text}\n"), {})


# -- files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id: [", "is not YAML"),
        ("id: a\n\tedge: b", "is not YAML"),
        ("id: !!python/object/apply:os.system [true]", "is not YAML"),
        ("id: \0", "is not YAML"),
        ("- a\n- b", "found a list"),
        ("just words", "found a str"),
        (b"id: \xff\xfe", "is not UTF-8"),
        ("id: dev-1\nedge: *nowhere", "is not YAML"),
        ("&a {id: dev-1, wan: *a}", "line 1: *a stands in what it is an alias of"),
    ],
)
def test_bad_files_are_named(tmp_path, text, says):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(DeviceConfig, path, {})
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    if "is not YAML" in says:
        assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_examples_come_from(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file.*emo init"):
        load(DeviceConfig, tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(DeviceConfig, tmp_path, {})


_keys = st.sampled_from([*DeviceConfig.model_fields, "nonsense", "host", ""])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_values = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_keys, inner, max_size=2))


@given(st.dictionaries(_keys, _values, max_size=4))
def test_anything_is_a_configuration_or_a_config_error(values):
    with contextlib.suppress(ConfigError):
        assert parse(DeviceConfig, values, "some.yaml", {}).id


# -- secrets

SECRET = "0x-secret: 'true'"


def test_a_password_comes_as_it_is_written():
    config = device({"wan": {"username": "me"}}, {"EMO_WAN__PASSWORD": "0123"})
    assert config.wan.password.get_secret_value() == "0123"
    config = device({"wan": {"username": "me"}}, {"EMO_WAN__PASSWORD": SECRET})
    assert config.wan.password.get_secret_value() == SECRET
    assert "secret" not in f"{config!r} {config.wan.model_dump()} {config.model_dump_json()}"


@pytest.mark.parametrize(
    "values",
    [
        {"password": SECRET},
        {"username": "me", "password": SECRET, "password_file": "x"},
        {"username": "me", "password": [SECRET]},
        {"username": "me", "password": SECRET, "port": 0},
        {"username": "me", "password": SECRET, "tls": {"cert": "a"}},
        {"username": {"password": SECRET}},
        {"username": "me", "pasword": SECRET},
        {"password": {"deep": {"password": SECRET}}},
    ],
)
def test_no_error_shows_a_password(values):
    with pytest.raises(ConfigError) as caught:
        device({"wan": values})
    assert "secret" not in str(caught.value)


def test_a_file_with_a_password_that_is_no_yaml_does_not_show_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(DeviceConfig, written(tmp_path, "id: d\nwan:\n  username: me\n  password: se: cret\n"), {})
    assert "cret" not in str(caught.value)
