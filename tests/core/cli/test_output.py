"""What a person sees on a terminal: lists that keep what is copied, tables that hide nothing, no text that steers the
terminal.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from converge.cli import output
from converge.cli.wording import remember, runnable

ID = "01a20db3-b2c5-732b-8000-e9ba0fd1ed97"
COLUMNS = ("id", "state", "pool", "attempts", "submitted", "task")


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`shown(columns, rows, ...)`: the lines of a table on a terminal of 80 columns without colour."""

    def call(*arguments: Any, **named: Any) -> list[str]:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        output.table(*arguments, **named)
        return [line.rstrip() for line in terminal.getvalue().splitlines()]

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    return call


def test_a_line_of_a_list_keeps_the_id_and_fits_the_terminal(shown: Callable[..., list[str]]) -> None:
    ago = datetime.now(UTC) - timedelta(minutes=5)
    lines = shown(COLUMNS, [(ID, "completed", "docs", 1, ago, "a long text " * 20)], has_lines=True)
    assert len(lines) == 2 and lines[1].startswith(ID) and lines[1].endswith("…")
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[1:6] == ["completed", "docs", "1", "5m", "ago"]


def test_a_table_of_fields_hides_nothing(shown: Callable[..., list[str]]) -> None:
    words = [f"word{at}" for at in range(60)]
    lines = shown(("field", "value"), [("result", " ".join(words))])
    assert [word for line in lines[1:] for word in line.split()] == ["result", *words]


def test_no_id_is_broken_however_narrow_the_terminal_is(
    shown: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "25")  # with it the width counts on a terminal without abilities, too
    agent = "cv1" + "a2" * 26
    why = f"claimed by {agent}, and handed back  to {ID}"
    lines = shown(("field", "value"), [("id", ID), ("claimed_by", agent), ("a longer field", why)])
    assert lines[1].split() == ["id", ID] and lines[2].split() == ["claimed_by", agent]
    assert " ".join(" ".join(lines[3:]).split()) == f"a longer field {' '.join(why.split())}"
    assert max(len(line) for line in lines if ID not in line and agent not in line) <= 40
    history = shown(("ended", "what", "took", "by", "why"), [("now", "completed", "3 s", agent[:16], "word " * 20)])
    assert any(agent[:16] in line for line in history)


def test_a_list_of_many_rows_is_cut_and_says_so(
    shown: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(("id", "task"), [(str(at), "x") for at in range(1_000)], has_lines=True)
    assert len(lines) == 1 + output.ROWS
    assert "200 of 1,000 rows" in capsys.readouterr().err


@pytest.mark.parametrize("has_lines", [True, False])
def test_no_text_steers_the_terminal(shown: Callable[..., list[str]], has_lines: bool) -> None:
    lines = shown(("id", "task"), [("1", "\x1b]0;title\x07\x1b[2J\x9b1m\u202eabc\r\n")], has_lines=has_lines)
    said = "\n".join(lines)
    assert "\\x1b]0;title\\x07" in said and "\\u202eabc" in said
    assert not any(character in said for character in "\x1b\x07\x9b\r\u202e")


def test_what_the_output_cannot_encode_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    output.write("naïve \ud800")
    assert raw.getvalue() == b"na\\xefve \\ud800\n"


def test_only_the_mark_of_a_line_is_coloured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.marked("ok", "green", "  it is well")
    assert capsys.readouterr().out.rstrip().endswith("\x1b[0m  it is well")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("`converge tasks list --waiting` shows them", "`converge tasks list --store 'file:a b' --waiting` shows them"),
        ("converge pools resume p", "converge pools resume --store 'file:a b' p"),
        ("run `converge store accept`: on", "run `converge store accept --store 'file:a b'`: on"),
        ("`converge run` makes it", "`converge run --store 'file:a b'` makes it"),
        ("`converge plugins list` shows them", "`converge plugins list` shows them"),  # no command of a store
        ("install converge-core and converge runner", "install converge-core and converge runner"),
    ],
)
def test_a_command_that_is_named_can_be_run_as_it_stands(text: str, told: str) -> None:
    remember(())
    assert runnable(text) == text, "nothing was given"
    remember(("--store", "file:a b"))
    try:
        assert runnable(text) == told
    finally:
        remember(())


def test_a_command_that_is_named_shows_no_password() -> None:
    remember(("--store", "redis://:hidden@127.0.0.1:6379"))
    try:
        assert "hidden" not in runnable("run `converge doctor`")
    finally:
        remember(())


def test_a_line_of_json_goes_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows a task in a pipe must not wait until that is full."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    with open(read, "rb", 0) as reader, open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        output.line({"kind": "data"})
        assert reader.read() == b'{"v":1,"kind":"data"}\n'
        monkeypatch.undo()
