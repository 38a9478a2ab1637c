"""Logs are extras: without its package one says what to install."""

import sys

import pytest

from emo.cli import main


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow"])
def test_a_log_whose_package_is_missing_names_the_command(extra, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.delitem(sys.modules, f"cloud_app.watch.sinks.{extra}", raising=False)
    for name in [each for each in sys.modules if each.startswith(f"{extra}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["watch", "--run", str(tmp_path), f"--{extra}", str(tmp_path / "there")]) == 2
    assert f"is not installed here: pip install 'emo-overlays[{extra}]'" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()
