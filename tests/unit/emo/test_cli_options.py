"""The whole command line: no option is half heard, every path knows its home, and output may go where it likes."""

import argparse
import io
import os
import sys
from pathlib import Path

import pytest

from emo.cli import _parser, main


def leaves(parser, words=()):
    """(words that lead there, parser) of every command that takes options."""
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    yield words, parser
    for action in found:
        for name, inner in action.choices.items():
            yield from leaves(inner, (*words, name))


OPTIONS = [
    (" ".join(words), action.option_strings[-1], action)
    for words, parser in leaves(_parser())
    for action in parser._actions
    if action.option_strings and isinstance(action, argparse._StoreAction)
]


def value(action, number=0):
    return str(action.choices[number % len(action.choices)]) if action.choices else f"{number + 1}"


@pytest.mark.parametrize(("command", "option", "action"), OPTIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_an_option_given_twice(command, option, action, capsys):
    words = command.split()
    parser = _parser()
    for _ in range(2):  # what an earlier command line had is not remembered
        with pytest.raises(SystemExit):
            parser.parse_args([*words, option, value(action), option, value(action, 1), "--no-such-option"])
        said = capsys.readouterr().err
        several = action.nargs == "+"
        assert ("given twice" in said) == (not several), said


@pytest.mark.parametrize(
    ("words", "name", "found"),
    [
        ("device --config a b --config c", "config", [Path("a"), Path("b"), Path("c")]),
        ("health --config a --config c --json", "config", [Path("a"), Path("c")]),
        ("simulate --edges 0.4 --edges 0.6", "edges", [0.4, 0.6]),
        ("export --run r --out o --without e1 --without e2", "without", ["e1", "e2"]),
        ("edge --config a", "config", Path("a")),
    ],
)
def test_an_option_of_several_values_collects_them(words, name, found):
    assert getattr(_parser().parse_args(words.split()), name) == found


def test_an_option_before_and_after_a_subcommand_is_given_twice(capsys):
    with pytest.raises(SystemExit):
        _parser().parse_args(["edge", "--config", "a", "intervals", "--config", "b"])
    assert "--config: given twice" in capsys.readouterr().err


def test_every_path_may_begin_with_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = [action for _, parser in leaves(_parser()) for action in parser._actions if action.type is Path]
    assert len(paths) > 30
    for parser in (parser for _, parser in leaves(_parser())):
        for action in parser._actions:
            if action.type is Path:
                assert parser._get_value(action, "~/x") == Path("/home/me/x"), action.option_strings
    with pytest.raises(SystemExit):
        _parser().parse_args(["init", "~no-such-user/x"])


# -- where it prints to


@pytest.fixture
def config(tmp_path):
    """A configuration whose name no ASCII terminal can show."""
    (tmp_path / "zürich").mkdir()
    path = tmp_path / "zürich" / "cloud.yaml"
    path.write_text(f"rounds: {{}}\nstate_dir: {path.parent}", encoding="utf-8")
    return path


def commands(config):
    """What prints the name of that folder."""
    yield ["health", "--config", config]
    yield ["init", config.parent / "examples"]
    yield ["pki", "init", "--ca", config.parent / "ca"]
    yield ["pki", "request", "--dir", config.parent / "tls", "--id", "device-01"]
    yield ["rounds", "status", "--config", config.with_name("none.yaml")]


def test_a_terminal_of_few_characters(config, monkeypatch, signals):
    for words in commands(config):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        assert main(list(map(str, words))) in {0, 1, 2}
        printed = b""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            printed += stream.buffer.getvalue()
        assert b"z\\xfcrich" in printed, words


@pytest.mark.parametrize("buffered", [True, False])
def test_nobody_reads_what_is_printed(config, monkeypatch, signals, buffered):
    for words in [*[*commands(config)][:4], ["--help"]]:
        reader, writer = os.pipe()
        os.close(reader)
        pipe = os.fdopen(writer, "wb", buffering=-1 if buffered else 0)
        out = io.TextIOWrapper(pipe, write_through=not buffered)
        monkeypatch.setattr(sys, "stdout", out)
        if words == ["--help"] and not buffered:  # argparse says nothing of it
            with pytest.raises(SystemExit):
                main(words)
        else:
            assert main(list(map(str, words))) == 141
        out.close()  # as the interpreter does at its end: there is nothing more to fail


def test_a_full_disk_takes_what_is_printed(config, monkeypatch, signals, capfd):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["health", "--config", str(config)]) == 2
    assert "emo: what was to be printed cannot be written: No space left" in capfd.readouterr().err


def test_other_errors_are_still_bugs(config, monkeypatch, signals):
    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr("emo.ops.commands.any_tier", broken)
    with pytest.raises(BrokenPipeError):
        main(["health", "--config", str(config)])
