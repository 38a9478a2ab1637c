"""--help says of every option what it is for, and what is taken without it."""

import argparse
import ast
from pathlib import Path

import pytest

from emo.cli import _parser
from emo.parser import Parser
from testbed.plan import Plan
from testbed.simulation.simulate import KEYS

ROOT = Path(__file__).parents[3]
PROGRAMS = [
    path
    for folder in ("device_app", "edge_app", "cloud_app", "testbed", "bench")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "arser(" in path.read_text(encoding="utf-8") and path.name != "commands.py"
]


def commands(parser, path=()):
    """(words, parser) of a command and of all below it."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, (*path, name))


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Help is not broken into lines."""
    monkeypatch.setenv("COLUMNS", "1000")


COMMANDS = [pytest.param(parser, id=" ".join(("emo", *path))) for path, parser in commands(_parser())]


def asked(parser):
    known = (argparse._SubParsersAction, argparse._HelpAction, argparse._VersionAction)
    return [action for action in parser._actions if not isinstance(action, known)]


@pytest.mark.parametrize("parser", COMMANDS)
def test_every_option_says_what_it_is_for_and_its_default(parser):
    assert parser.description
    text = " ".join(parser.format_help().split())
    for action in asked(parser):
        words = " ".join((action.help or "").split()).replace("%%", "%")
        assert len(words) > 3, action
        assert words in text
        if action.option_strings and action.nargs != 0 and not action.required:
            shown = text[text.index(words) :]
            assert "(default: " in shown[: len(words) + 11], action.option_strings[0]


@pytest.mark.parametrize("parser", COMMANDS)
def test_a_default_is_the_options_own(parser):
    """None is written by hand where the option has one: it would go on saying the old one."""
    for action in asked(parser):
        if action.nargs != 0 and action.default not in (None, "", []):
            assert "(default: " not in action.help, action.option_strings[0]
            shown = str(action.default) if not isinstance(action.default, float) else f"{action.default:g}"
            assert f"(default: {shown})" in " ".join(parser.format_help().split())


def test_what_simulate_says_of_a_default_is_the_plans():
    (simulate,) = [parser for path, parser in commands(_parser()) if path == ("simulate",)]
    told = {action.dest: action for action in simulate._actions}
    plan = Plan(method="emo")
    checked = 0
    for option, key in KEYS.items():
        value = plan
        for name in key.split("."):
            value = getattr(value, name)
        says = told[option].help.rpartition("(default: ")[2].rstrip(")")
        if value is None or option in ("method", "model"):
            continue  # the data decides, or nothing does
        assert says == (" ".join(f"{share:g}" for share in value) if option == "edges" else _shown(value))
        checked += 1
    assert checked > 15


def _shown(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_what_says_its_default_by_itself_is_left_alone(capsys):
    parser = Parser(prog="x")
    add = parser.add_argument
    add("--share", type=float, default=0.5, help="of 100 %%")
    add("--many", nargs="+", default=["a", "b%"], help="several")
    add("--none", help="nothing (default: by dataset)")
    add("--flag", action="store_true", help="a switch")
    add("--must", required=True, help="something")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "of 100 % (default: 0.5)" in text
    assert "several (default: a b%)" in text
    assert text.count("(default: ") == 3


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_of_ours_does_so(path):
    """The other command lines (`python -m bench.x`, testbed.experiments) by their source: to import them all is slow."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name != "argparse.ArgumentParser", "emo.parser.Parser says defaults"
        first = node.args[0] if node.args else None
        option = isinstance(first, ast.Constant) and str(first.value).startswith("--")
        if not (name.endswith(".add_argument") or (option and name in {"add", "option"})):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        line = f"{path}:{node.lineno}"
        assert "help" in given, line
        if option and not {"default", "required", "action"} & set(given):
            words = ast.unparse(given["help"])
            assert "default: " in words, line
