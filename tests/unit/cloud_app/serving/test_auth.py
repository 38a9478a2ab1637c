"""Who may ask: keys from a file and the environment."""

import pytest

from cloud_app.serving.auth import AccessLog, Keys, Origins, keys
from cloud_app.serving.client import first_key
from emo.errors import ServeError

KEY = b"0123456789abcdef"


def test_keys_come_from_the_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_bytes(b"# comment\r\n\r\n  " + KEY + b"  \r\nsecond-key-in-here")
    assert keys(file, {}) == [KEY, b"second-key-in-here"]
    assert keys(file, {"EMO_API_KEY": "third-key-in-here"})[2] == b"third-key-in-here"
    assert keys(None, {"EMO_API_KEY": ""}) == []
    assert first_key(file) == KEY.decode()
    monkeypatch.setenv("EMO_API_KEY", "third-key-in-here")
    assert first_key(None) == "third-key-in-here"
    monkeypatch.delenv("EMO_API_KEY")
    assert first_key(None) is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read"),
        (b"# none\n\n", "holds no API key"),
        (b"short\n", "16 characters"),
        (b"x" * 70_000, "is over"),
    ],
)
def test_unusable_keys_are_named(tmp_path, content, why):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ServeError, match=why) as caught:
        keys(file, {})
    assert "short" not in str(caught.value)


def test_a_short_key_in_the_environment_is_refused_too():
    with pytest.raises(ServeError, match="16 characters"):
        keys(None, {"EMO_API_KEY": "short"})


@pytest.mark.parametrize(
    ("headers", "fits"),
    [
        ({b"authorization": b"Bearer " + KEY}, True),
        ({b"authorization": b"bearer  " + KEY + b" "}, True),
        ({b"x-api-key": KEY}, True),
        ({b"x-api-key": b"another-key-in-here"}, True),
        ({}, False),
        ({b"authorization": KEY}, False),
        ({b"authorization": b"Basic " + KEY}, False),
        ({b"authorization": b"Bearer"}, False),
        ({b"x-api-key": KEY[:-1]}, False),
        ({b"x-api-key": KEY + b"0"}, False),
        ({b"x-api-key": KEY.upper()}, False),
        ({b"x-api-key": b"\xff" * 16}, False),
    ],
)
def test_one_of_the_keys_has_to_come(headers, fits):
    assert Keys([KEY, b"another-key-in-here"]).fit(headers) is fits
    assert not Keys([]).fit(headers)


def test_no_keys_are_no_keys():
    assert not Keys([])
    assert Keys([KEY])


def test_an_access_log_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ServeError, match=r"none/log: cannot write"):
        AccessLog(str(tmp_path / "none" / "log"))


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "https://*.example", "null", "", "https://a b"])
def test_what_is_no_origin_is_said(origin):
    with pytest.raises(ServeError, match="no origin of web pages"):
        Origins((origin,))


@pytest.mark.parametrize("origin", ["https://a.example", "http://127.0.0.1:8080", "http://[::1]:80", "*"])
def test_origins(origin):
    assert Origins((origin,)).headers({b"origin": origin.encode()})
    assert not Origins()
