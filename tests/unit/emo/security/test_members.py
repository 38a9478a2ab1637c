"""fleet.yaml: who belongs to whom, and nobody twice."""

import pytest

from emo.errors import ConfigError
from emo.security.members import load

GOOD = "cloud: hub\nedges:\n  edge-1: [device-01, device-02]\n  edge-2: []\n"


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "fleet.yaml"

    def write(text):
        path.write_text(text, encoding="utf-8")
        return load(path)

    return write


def test_roles(fleet):
    members = fleet(GOOD)
    assert members.edges == {"edge-1": ("device-01", "device-02"), "edge-2": ()}
    assert members.devices == ("device-01", "device-02")
    assert [members.role(name) for name in ("hub", "edge-2", "device-02")] == ["cloud", "edge", "device"]
    with pytest.raises(ConfigError, match=r"no node 'device-03'.*did you mean 'device-0"):
        members.role("device-03")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("edges: {e1: [a, b], e2: [b]}", "b is a device of e2 and a device of e1"),
        ("edges: {e1: [a, a]}", "a is a device of e1 twice"),
        ("edges: {e1: [e1]}", "e1 is a device of e1 and an edge"),
        ("edges: {e1: [cloud]}", "cloud is a device of e1 and the cloud"),
        ("edges: {cloud: [a]}", "cloud is an edge and the cloud"),
        ("edges: {e1: [a], e1: [b]}", "'e1' stands there twice"),
        ("edges: {e1: ['a+']}", r"edges\.e1\.0: .*'a\+'"),
        ("edges: {e1: ['#']}", r"edges\.e1\.0: .*'#'"),
        ("edges: {'a/b': [c]}", r"edges\.a/b"),
        ("edges: {e1: [1]}", r"edges\.e1\.0: .*string"),
        ("edges: {[e1]: [a]}", "edges"),
        ("edge: {e1: [a]}", "did you mean 'edges'"),
        ("cloud: cloud", "edges: Field required"),
        ("[]", "found a list"),
        ("edges: {e1: [", "is not YAML"),
        ("edges: !!python/object/apply:os.system [id]", "is not YAML"),
    ],
)
def test_what_is_wrong_is_named(fleet, text, said, tmp_path):
    with pytest.raises(ConfigError, match=said) as caught:
        fleet(text)
    assert str(tmp_path / "fleet.yaml") in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")


def test_the_environment_does_not_change_who_belongs_to_whom(fleet, monkeypatch):
    monkeypatch.setenv("EMO_CLOUD", "other")
    assert fleet(GOOD).cloud == "hub"
