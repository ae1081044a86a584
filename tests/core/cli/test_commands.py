"""The command as a whole: unknown commands, plugins, failures, and the time that `--help` takes."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import cyclopts
import pytest

from converge.cli import COMMANDS
from converge.cli.failures import code_of, failed
from converge.cli.options import Common
from converge.cli.submit import TaskFlags
from converge.errors import (
    ConfigError,
    HandshakeFailed,
    InputError,
    OutcomeUnknown,
    PluginBroken,
    ResultTimeout,
    StoreFull,
    TornRecord,
    Undeliverable,
)
from converge.plugins import blame

Converge = Callable[..., Any]

HELP_STARTS = 36
"""So many starts of a bare Python help may take of the processor: 0.3 s where one takes 8 ms."""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rum"], 'Unknown command "rum". Did you mean "run"?'),
        (["tasks", "lst"], 'Unknown command "lst". Did you mean "list"?'),
        (["tasks", "list", "--stat", "failed"], "Unknown option: --stat. Did you mean --state?"),
        (["tasks", "list", "--state", "done"], 'Choose from: "pending"'),
    ],
)
def test_a_usage_error_exits_with_two_and_names_the_nearest(
    converge: Converge, arguments: list[str], text: str
) -> None:
    answer = converge(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert text in answer.err


def test_plugins_are_listed_without_importing_them(converge: Converge) -> None:
    plain = converge("plugins", "list").out.splitlines()
    assert plain[0].split() == ["name", "distribution", "version", "schemes"]  # kinds are not known yet
    assert converge("plugins", "list", "--plugin", "memory").out.split()[4] == "kinds"
    records = {
        record["name"]: record for record in map(json.loads, converge("plugins", "list", "--json").out.splitlines())
    }
    assert {record["v"] for record in records.values()} == {1}
    assert records["redis"]["distribution"] == "converge-store-redis"
    assert records["redis"]["schemes"] == ["redis", "rediss", "unix"]
    assert not any(record["is_loaded"] for record in records.values())
    loaded = [json.loads(line) for line in converge("plugins", "list", "--json", "--plugin", "memory").out.splitlines()]
    assert [(one["name"], one["kinds"]) for one in loaded if one["is_loaded"]] == [("memory", ["store"])]


def test_a_plugin_of_the_working_directory_is_listed_by_its_import_path(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "plugin_of_this_folder.py").write_text(
        "from converge.builtin.local.plugin import LOCAL\nimport attrs\nMINE = attrs.evolve(LOCAL, name='mine', "
        "schemes=('mine',))"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(folder))])
    answer = converge("plugins", "list", "--json", "--plugin", "plugin_of_this_folder:MINE")
    assert answer.code == 0
    (mine,) = [one for one in map(json.loads, answer.out.splitlines()) if one["is_loaded"]]
    assert (mine["schemes"], mine["kinds"]) == (["mine"], ["transport"])


def test_the_version_is_that_of_the_distribution(converge: Converge) -> None:
    answer = converge("--version")
    assert (answer.code, answer.out.strip()[0].isdigit()) == (0, True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (ConfigError("x"), 3),
        (StoreFull("x"), 4),
        (OutcomeUnknown("x"), 4),
        (HandshakeFailed("x"), 4),
        (Undeliverable("x"), 4),
        (ResultTimeout("x", 1.0), 5),
        (KeyboardInterrupt(), 130),
        (TornRecord("x", "y"), 1),
        (ValueError("x"), 1),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    assert code_of(error) == code


@contextmanager
def closing_all() -> Iterator[list[int]]:
    """Let a process run out of descriptors: few are enough, and those that were opened are closed."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        yield opened
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in opened:
            os.close(descriptor)


def test_an_error_in_a_group_is_told_as_if_it_stood_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert failed(ExceptionGroup("g", [ExceptionGroup("h", [ConfigError("no such thing")])])) == 3
    assert capsys.readouterr().err == "converge: no such thing\n"


def test_what_nobody_foresaw_is_an_internal_error_with_its_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blame, "_PACKAGES", {})  # those that other tests loaded
    assert failed(ExceptionGroup("g", [ConfigError("x"), ValueError("oh")])) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told or "ExceptionGroup" in told
    assert told.endswith("converge: x\nconverge: internal error: ValueError: oh\n")


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = "import sys; from converge.cli import main; sys.exit(main(['plugins', 'list', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    code = "import sys; from converge.cli import main; sys.exit(main(['plugins', 'list', '--json']))"
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("converge: no space is left")


@pytest.mark.parametrize(("arguments", "code"), [("tasks show", 2), ("pools list --store file:/nowhere/x.db", 4)])
def test_the_exit_code_is_the_same_where_nobody_can_be_told_why(arguments: str, code: int) -> None:
    command = f"import sys; from converge.cli import main; sys.exit(main({arguments.split()}))"
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, "-c", command], stderr=full, timeout=30, check=False)
    assert done.returncode == code


@pytest.mark.parametrize("is_behind", [False, True])
def test_what_the_system_ran_short_of_is_one_line(capsys: pytest.CaptureFixture[str], is_behind: bool) -> None:
    raised: BaseException
    with closing_all() as descriptors, pytest.raises(OSError, match="Too many open files") as caught:
        while True:
            descriptors.append(os.open(os.devnull, os.O_RDONLY))
    raised = caught.value
    if is_behind:
        raised = PluginBroken("cannot be opened")
        raised.__cause__ = RuntimeError("this loop is running")
        raised.__cause__.__context__ = caught.value
    assert failed(raised) == 1
    told = capsys.readouterr().err
    assert told.startswith("converge: this process may open no more files and sockets; raise its limit")
    assert told.count("\n") == 1


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
        "from converge.cli import main; sys.exit(main(['tasks', 'list', '--store', 'file:state.db']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("converge: the folder in which this command runs was removed")


def test_help_takes_few_starts_of_python() -> None:
    def measured(code: str) -> float:
        command = [sys.executable, "-c", code]
        pid = os.posix_spawn(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        )
        _, status, used = os.wait4(pid, 0)
        assert status == 0
        return used.ru_utime + used.ru_stime

    # The processor's time, and the best of some: other work on the machine only adds.
    runs = [(measured("from converge.cli import main; main(['--help'])"), measured("pass")) for _ in range(6)]
    assert min(help_sec for help_sec, _ in runs) < HELP_STARTS * min(start_sec for _, start_sec in runs)


@pytest.mark.parametrize("arguments", [["--help"], ["tasks", "--help"], ["run", "--help"]], ids=" ".join)
def test_help_loads_no_parser_of_markup(arguments: list[str]) -> None:
    script = (
        f"import sys; from converge.cli import main; main({arguments}); print('rich.markdown' in sys.modules, "
        "'markdown_it' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told[0].startswith("Usage: converge")
    assert told[-1] == "False False"


COMMANDS_THAT_DO = [(words, target) for words, target, _ in COMMANDS if target]


@pytest.mark.parametrize(("words", "target"), COMMANDS_THAT_DO, ids=[words for words, _ in COMMANDS_THAT_DO])
def test_the_help_of_a_command_is_its_docstring_and_a_line_for_each_flag(
    converge: Converge, words: str, target: str
) -> None:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(f"converge.cli.{module}"), name)
    answer = converge(*words.split(), "--help")
    assert (answer.code, answer.err) == (0, "")
    said = " ".join(answer.out.split())
    assert " ".join((function.__doc__ or "no docstring").split()) in said
    hints = get_type_hints(function, include_extras=True)
    by_name = inspect.signature(function).parameters
    common = get_type_hints(Common, include_extras=True) if hints.pop("common", None) else {}
    hints |= common
    if hints.pop("task", None) is TaskFlags:
        common = common | get_type_hints(TaskFlags, include_extras=True)
        hints |= common
    for parameter, hint in hints.items():
        if parameter != "return":
            (shown,) = (one for one in hint.__metadata__ if isinstance(one, cyclopts.Parameter))
            assert (shown.help or "").endswith((".", "-")), f"{parameter} has no help"
            is_flag = parameter in common or by_name[parameter].kind is inspect.Parameter.KEYWORD_ONLY
            (name, *_) = shown.name or (f"--{parameter.replace('_', '-')}",)
            assert not is_flag or f" {name} " in said, f"{name} is not in the help"


def test_the_flags_that_all_commands_share_stand_apart(converge: Converge) -> None:
    own, _, common = converge("tasks", "list", "--help").out.partition("Common parameters")
    assert "--state" in own and "--store" not in own and "--store" in common


@pytest.mark.parametrize("arguments", [("tasks", "purge", "--help"), ("--help",), ("tasks", "--help")], ids=" ".join)
def test_help_says_nothing_of_switches_that_are_off(converge: Converge, arguments: tuple[str, ...]) -> None:
    assert "[default: False]" not in converge(*arguments).out and "[default: None]" not in converge(*arguments).out
