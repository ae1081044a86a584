"""Results on standard output: a table for people, one JSON object a line for programs; colour and progress only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from converge.codec import encode_plain

VERSION = 1
"""Of the JSON lines; it is in each of them."""

ROWS = 200
"""Rows of a table on a terminal; a longer one is cut, with a line that says so."""


def line(values: Mapping[str, Any]) -> None:
    """Write one JSON object; moments become ISO text, bytes `{"$bytes": "base64"}`."""
    record = {"v": VERSION} | {name: _plain(value) for name, value in values.items()}
    _write(encode_plain(record, "output").decode())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, footer: Sequence[object] | None = None, empty: str = "") -> None:
    """Write a table; numbers stand at the right. Where standard output is no terminal it is aligned text, whole and without colour.

    `empty` says on standard error what there is none of, where there are no rows: a lone head of a table tells nobody whether it looked.
    """
    if empty and not rows:
        note(empty)
        return
    if sys.stdout.isatty():
        _rich_table(columns, rows, footer)
        return
    texts = [[_cell(cell) for cell in row] for row in (columns, *rows, *([footer] if footer else []))]
    widths = [max(len(row[at]) for row in texts) for at in range(len(columns))]
    is_right = [_is_number_column(rows, at) for at in range(len(columns))]
    for row in texts:
        cells = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, is_right, strict=True)]
        _write("  ".join(cells).rstrip())


def text(value: object) -> str:
    """Return a result as a person reads it: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(_shown(value), ensure_ascii=False)


def write(value: str) -> None:
    """Write a line of text."""
    _write(value)


def marked(mark: str, colour: str, rest: str) -> None:
    """Write a line that begins with a mark, in colour on a terminal; how long it is, is the terminal's matter."""
    if not sys.stdout.isatty():
        _write(mark + rest)
        return
    from rich.console import Console
    from rich.text import Text

    Console(soft_wrap=True).print(Text(mark, style=colour) + Text(rest), soft_wrap=True)


def note(value: str) -> None:
    """Write a line that is about the result, not a part of it, to standard error."""
    sys.stdout.flush()
    print(value, file=sys.stderr)  # noqa: T201  # this is where a command talks to people


def can_ask() -> bool:
    """Tell whether somebody is there to answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask on the terminal; anything but yes is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201  # as above
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def progress(title: str, *, is_wanted: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Give what draws a progress bar on standard error, or None where it is not wanted, or that is no terminal."""
    if not is_wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        row = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[object]], footer: Sequence[object] | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(show_footer=footer is not None)
    for at, column in enumerate(columns):
        is_right = _is_number_column(rows, at)
        drawn.add_column(column, Text(_cell(footer[at])) if footer else "", justify="right" if is_right else "left", overflow="ellipsis")
    for row in rows[:ROWS]:
        drawn.add_row(*(Text(_cell(cell)) for cell in row))
    console = Console()
    console.print(drawn)
    if len(rows) > ROWS:
        console.print(f"{ROWS} of {len(rows):,} rows; all of them with --json, or where standard output is no terminal")


def _is_number_column(rows: Sequence[Sequence[object]], at: int) -> bool:
    return bool(rows) and all(row[at] == "" or (isinstance(row[at], int | float) and not isinstance(row[at], bool)) for row in rows)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return " ".join(str(value).split())


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _shown(value: Any) -> Any:
    return json.loads(encode_plain(value, "result"))


def _write(value: str) -> None:
    sys.stdout.write(value + "\n")
