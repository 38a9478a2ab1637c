"""`emo models` and what `emo serve` refuses before it starts."""

import json

import pytest

from cloud_app.serving.repository import Repository
from emo import cli, config, config_file


@pytest.fixture
def models(tmp_path):
    (tmp_path / "in.onnx").write_bytes(b"one")
    for _ in range(3):
        Repository(tmp_path / "models").add("emo", tmp_path / "in.onnx", ("cat", "dog"), (1, 8, 8))
    return str(tmp_path / "models")


def test_models_list_promote_rollback_and_prune(models, capsys):
    for args, said in (
        (("list", "--models", models), "emo: version 3 (the newest) of 1, 2, 3"),
        (("promote", "--models", models, "emo", "2"), "emo: version 2 is current"),
        (("list", "--models", models), "emo: version 2 (promoted) of 1, 2, 3"),
        (("rollback", "--models", models, "emo"), "emo: version 1 is current"),
        (("prune", "--models", models, "emo", "--keep", "1"), "emo: deleted 2"),
        (("promote", "--models", models, "emo", "latest"), "emo: version 3 is current"),
        (("prune", "--models", models, "emo", "--keep", "9"), "emo: deleted nothing"),
    ):
        assert cli.main(["models", *args]) == 0
        assert capsys.readouterr().out.strip() == said
    assert cli.main(["models", "list", "--models", models, "--json"]) == 0
    listed = {"name": "emo", "versions": [1, 3], "current": 3, "promoted": False}
    assert json.loads(capsys.readouterr().out) == [listed]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("promote", "emo", "9"), "no version 9"),
        (("promote", "emo", "two"), "has to be a number, or latest"),
        (("promote", "emo", "\u0662"), "has to be a number, or latest"),
        (("promote", "nothing", "1"), "no version 1"),
        (("rollback", "nothing"), "no model 'nothing'"),
        (("prune", "emo", "--keep", "0"), "at least one"),
        (("prune", "../emo"), "is no model name"),
    ],
)
def test_models_refuses_in_one_line(models, capsys, args, why):
    assert cli.main(["models", args[0], "--models", models, *args[1:]]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert len(said.splitlines()) == 1


def test_an_empty_repository_is_said_to_be_one(tmp_path, capsys):
    assert cli.main(["models", "list", "--models", str(tmp_path)]) == 0
    assert "no model here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads", "0"),
        ("--max-batch", "0"),
        ("--max-delay-ms", "-1"),
        ("--max-delay-ms", "nan"),
        ("--queue", "0"),
        ("--timeout-s", "0"),
        ("--timeout-s", "inf"),
        ("--poll-s", "-1"),
    ],
)
def test_serve_refuses_values_that_mean_nothing(models, capsys, option, value):
    assert cli.main(["serve", "--models", models, option, value]) == 2
    assert option in capsys.readouterr().err


def test_serve_refuses_what_is_no_origin(models, capsys):
    options = ["--cors-origin", "https://a.example", "--cors-origin", "a.example"]
    assert cli.main(["serve", "--models", models, *options]) == 2
    assert "'a.example' is no origin of web pages" in capsys.readouterr().err


def test_serve_takes_both_files_for_tls_or_none(models, capsys):
    assert cli.main(["serve", "--models", models, "--tls-cert", "cert.pem"]) == 2
    assert "--tls-key" in capsys.readouterr().err


def test_the_endpoints_key_is_no_key_of_a_configuration():
    found = config_file.parse(config.CloudConfig, {}, "here", {"EMO_API_KEY": "0123456789abcdef", "EMO_ID": "sky"})
    assert found.id == "sky"
