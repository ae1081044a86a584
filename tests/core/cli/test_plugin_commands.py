"""Commands that plugins add: there only where the plugin is named, and none of core's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converge.cli import COMMANDS
from converge.contracts.commands import CORE_COMMANDS
from converge.errors import PluginBroken, PluginDuplicate
from converge.plugins import PluginHost

Converge = Callable[..., Any]

SOURCE = """
from pathlib import Path
from typing import Annotated
from cyclopts import Parameter
from converge.cli.options import NONE, Common
from converge.contracts.commands import Command
from converge.errors import NoSuchPool
from converge.hookspecs import hookimpl

(Path(__file__).parent / "imported").touch()

def greet(name: str, /, *, loud: Annotated[bool, Parameter(negative=(), help="Shout.")] = False):
    '''Greet somebody, with a word of its own.'''
    print(name.upper() if loud else name)

def where(*, common: Common = NONE) -> int:
    '''Say which store is configured.'''
    print(common.configured().store)
    return 5

def fails() -> None:
    '''Fail as core does.'''
    raise NoSuchPool("docs")

@hookimpl
def converge_commands():
    return [
        Command(name="greet", run=greet, help="Greet somebody."),
        Command(name="acme where", run=where, help="Say where."),
        Command(name="acme fails", run=fails, help="Fail."),
    ]
"""


@pytest.fixture(autouse=True)
def plugin(folder: Path) -> Path:
    """A plugin in the working directory; the file `imported` is there once it was imported."""
    (folder / "acme_of_the_tests.py").write_text(SOURCE)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("greet", "you", "--loud", "--plugin", "acme_of_the_tests:"),
        ("--plugin", "acme_of_the_tests:", "greet", "--loud", "you"),
        ("greet", "--plugin=acme_of_the_tests:", "you", "--loud"),
    ],
)
def test_a_command_is_there_where_its_plugin_is_named(converge: Converge, arguments: tuple[str, ...]) -> None:
    answer = converge(*arguments)
    assert (answer.code, answer.out) == (0, "YOU\n"), answer.err


def test_the_file_and_the_environment_name_plugins_too(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "converge.toml").write_text('plugins = ["acme_of_the_tests:"]\nstore = "file:state.db"\n')
    assert converge("greet", "you", "-c", "converge.toml").out == "you\n"
    answer = converge("acme", "where", "-c", "converge.toml")
    assert (answer.code, answer.out) == (5, "file:state.db\n"), answer.err
    monkeypatch.setenv("CONVERGE_PLUGINS", "acme_of_the_tests:")
    assert converge("greet", "you").out == "you\n"


def test_without_its_plugin_named_a_command_does_not_exist_and_nothing_is_imported(
    converge: Converge, folder: Path
) -> None:
    answer = converge("greet", "you")
    assert (answer.code, "greet" in answer.err) == (2, True)
    assert "greet" not in converge("--help").out
    assert not (folder / "imported").exists()


def test_a_command_of_core_does_not_load_a_plugin_for_its_commands(converge: Converge, folder: Path) -> None:
    assert converge("config", "show", "--plugin", "acme_of_the_tests:").code in (0, 2)
    assert not (folder / "imported").exists()


def test_help_lists_it_with_its_line_and_shows_its_docstring(converge: Converge) -> None:
    listed = converge("--plugin", "acme_of_the_tests:", "--help").out
    assert "Greet somebody." in listed and "acme" in listed
    shown = converge("greet", "--help", "--plugin", "acme_of_the_tests:").out
    assert "with a word of its own" in shown and "--loud" in shown
    assert "--store" in converge("acme", "where", "--help", "--plugin", "acme_of_the_tests:").out


def test_errors_of_a_command_are_told_as_those_of_core(converge: Converge) -> None:
    answer = converge("acme", "fails", "--plugin", "acme_of_the_tests:")
    assert (answer.code, "docs" in answer.err, "Traceback" in answer.err) == (3, True, False)


def test_what_no_code_catches_is_told_as_the_plugins(converge: Converge, folder: Path) -> None:
    run = "class Odd(BaseException): pass\ndef odd() -> None:\n    raise Odd('oh')\n"
    hook = "@hookimpl\ndef converge_commands():\n    return [Command(name='odd', run=odd, help='x')]\n"
    (folder / "odd_of_the_tests.py").write_text(HEAD + run + hook)
    answer = converge("odd", "--plugin", "odd_of_the_tests:")
    assert answer.code == 3, answer.err
    assert 'converge: plugin "odd_of_the_tests:" (from the import path) failed: Odd: oh; `conv' in answer.err


def test_a_plugin_with_commands_says_so(converge: Converge) -> None:
    assert "command" in converge("plugins", "list", "--plugin", "acme_of_the_tests:").out


def test_the_names_of_core_are_those_of_the_command() -> None:
    assert set(CORE_COMMANDS) == {words.partition(" ")[0] for words, _, _ in COMMANDS}


HEAD = "from converge.contracts.commands import Command\nfrom converge.hookspecs import hookimpl\ndef run(): pass\n"


@pytest.mark.parametrize(
    ("declared", "error", "said"),
    [
        ("['no command']", PluginBroken, "returned str, expected Command"),
        ("[Command(name='Bad Name', run=run, help='x')]", PluginBroken, "not a name"),
        ("[Command(name='a b c', run=run, help='x')]", PluginBroken, "not a name"),
        ("[Command(name='slow', run=slow, help='x')]", PluginBroken, "not a plain function"),
        ("[Command(name='mute', run=run, help=' ')]", PluginBroken, "no help"),
        ("[Command(name='tasks eat', run=run, help='x')]", PluginDuplicate, "a name of converge-core"),
        ("[Command(name=n, run=run, help='x') for n in ('one', 'one')]", PluginDuplicate, '"one"'),
        ("[Command(name=n, run=run, help='x') for n in ('one', 'one two')]", PluginDuplicate, '"one two"'),
        ("1 / 0", PluginBroken, "converge_commands failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_a_command_is_refused_with_its_plugin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, declared: str, error: type[Exception], said: str
) -> None:
    body = f"async def slow(): pass\n@hookimpl\ndef converge_commands():\n    return {declared}\n"
    (folder / "broken_of_the_tests.py").write_text(HEAD + body)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(error, match=said):
        PluginHost(("broken_of_the_tests:",))


@pytest.mark.parametrize("answer", ["'text'", "1.5", "[1]", "4242", "-1", "nothing()"])
def test_what_a_command_returns_must_be_an_exit_code(converge: Converge, folder: Path, answer: str) -> None:
    source = SOURCE.replace("return 5", f"return {answer}") + "\nasync def nothing(): ...\n"
    (folder / "acme_of_the_tests.py").write_text(source)
    found = converge("acme", "where", "--plugin", "acme_of_the_tests:")
    assert found.code == 3, found.err
    assert 'the plugin\'s command "acme where" returned ' in found.err and "expected an exit code" in found.err


@pytest.mark.parametrize("annotation", ["dict[object, int]", "'Missing'"])
def test_parameters_that_no_command_line_can_give_are_told_by_check_and_when_it_is_called(
    converge: Converge, folder: Path, annotation: str
) -> None:
    (folder / "acme_of_the_tests.py").write_text(SOURCE.replace("def fails(", f"def fails(what: {annotation}"))
    named = ("--plugin", "acme_of_the_tests:")
    for arguments in (("acme", "fails", *named), ("greet", "Anna", *named), ("plugins", "check", named[1])):
        found = converge(*arguments)
        assert found.code == 3, found.err
        assert 'the plugin\'s command "acme fails" has parameters that no command line can give: ' in found.err
        assert "internal error" not in found.err and "Traceback" not in found.err
