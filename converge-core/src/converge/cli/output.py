"""Results on standard output: a table for people, a JSON object a line for programs; colour only on a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from converge.cli.streams import results
from converge.cli.wording import harmless, tell
from converge.codec import encode_plain

VERSION = 1
"""Of the JSON lines; it is in each of them."""

FIELDS = ("field", "value")
"""The columns of what is shown of one thing, a row for each of its attributes."""

WHOLE = frozenset(("id", "retried as", "pool", "key", "field", "name", "by"))
"""Columns that are never cut or broken: what is in them is copied into the next command."""

NARROW = 9
"""Columns of lists that have no more are not cut: a state, a number, an age. What is long is cut to this at most."""

VALUE = 20
"""Characters that a value has on a line at least, however narrow the terminal is."""

ROWS = 200
"""Rows of a table on a terminal; a longer one is cut, with a line that says so."""


def line(values: Mapping[str, Any]) -> None:
    """Write one JSON object, at once: a pipe holds back what is not flushed; moments become ISO text, bytes
    `{"$bytes": "base64"}`.
    """
    record = {"v": VERSION} | {name: _plain(value) for name, value in values.items()}
    _write(encode_plain(record, "output").decode())
    results().flush()


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    footer: Sequence[object] | None = None,
    empty: str = "",
    has_lines: bool = False,
) -> None:
    """Write a table; numbers stand at the right. Where standard output is no terminal it is aligned text, whole and
    without colour.

    Args:
        footer: A last row, set apart.
        empty: What there is none of, told on standard error where there are no rows: a lone head of a table tells
            nobody whether it looked.
        has_lines: Each row is one line, on a terminal cut where it does not fit; else cells go on in the next line.
            What people copy is never cut.
    """
    if empty and not rows:
        note(empty)
        return
    if results().isatty():
        if has_lines:
            _write_lines(columns, rows)
        elif columns == FIELDS:
            _write_fields(rows)
        else:
            _rich_table(columns, rows, footer)
        return
    texts = [[_cell(cell) for cell in row] for row in (columns, *rows, *([footer] if footer else []))]
    widths = [max(len(row[at]) for row in texts) for at in range(len(columns))]
    is_right = [_is_number_column(rows, at) for at in range(len(columns))]
    for row in texts:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_right, strict=True)
        ]
        _write("  ".join(cells).rstrip())


def text(value: object) -> str:
    """Return a result as a person reads it: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(_shown(value), ensure_ascii=False)


def write(value: str) -> None:
    """Write a line of text, in which nothing acts on a terminal."""
    _write(harmless(value))


def marked(mark: str, colour: str, rest: str) -> None:
    """Write a line that begins with a mark, in colour on a terminal; it is not cut."""
    if not results().isatty():
        _write(mark + rest)
        return
    from rich.console import Console
    from rich.text import Text

    Console(file=results(), soft_wrap=True).print(Text.assemble((mark, colour), rest), soft_wrap=True)


def note(value: str) -> None:
    """Write a line that is about the result, not a part of it, to standard error."""
    results().flush()
    tell(value)


def can_ask() -> bool:
    """Return whether somebody can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask on the terminal; anything but yes is no."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201  # as above
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def age(seconds: float) -> str:
    """Return how long ago something was, as short as a line of a list needs it: `42s`, `17m`, `5h`, `3d`."""
    unit, length = next((one for one in (("d", 86_400), ("h", 3_600), ("m", 60)) if seconds >= 2 * one[1]), ("s", 1))
    return f"{int(max(0, seconds) // length)}{unit}"


_BREAKS = re.compile(r" *[\t-\r\x1c-\x1f\x85\u2028\u2029]+ *")
"""What would end a line, or move on in it."""


class Bar:
    """A progress bar: called with how many are done, of how many, and how many failed; `note` adds words."""

    def __init__(self, update: Callable[..., None]) -> None:
        self._update = update

    def __call__(self, done: int, total: int, bad: int = 0) -> None:
        self._update(completed=done, total=total, bad=f"{bad:,} not completed" if bad else "")

    def note(self, text: str) -> None:
        """Write the words in place of those that stand there."""
        self._update(note=harmless(text))


@contextmanager
def progress(title: str, *, is_wanted: bool) -> Iterator[Bar | None]:
    """Yield what draws a progress bar on standard error; None where it is not wanted, or that is no terminal."""
    if not is_wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[bad]}", style="red"),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        yield Bar(partial(bar.update, bar.add_task(title, total=None, note="", bad="")))


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[object]], footer: Sequence[object] | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if footer is not None:  # a sum stands apart from what it sums up
        drawn = Table(show_footer=True)
    else:
        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown = [[_cell(cell) for cell in row] for row in rows[:ROWS]]
    for at, column in enumerate(columns):
        is_whole = column in WHOLE
        drawn.add_column(
            column,
            Text(_cell(footer[at])) if footer else "",
            justify="right" if _is_number_column(rows, at) else "left",
            overflow="fold",
            min_width=max(map(len, (column, *(row[at] for row in shown)))) if is_whole else None,
        )
    for row in shown:
        drawn.add_row(*map(Text, row))
    console = Console(file=results())
    console.print(drawn)
    if len(rows) > ROWS:
        console.print(f"{ROWS} of {len(rows):,} rows; all of them with --json, or where standard output is no terminal")


def _write_fields(rows: Sequence[Sequence[object]]) -> None:
    """Write a line for each field; what is too wide for the terminal goes on below, and no word of it is broken:
    whoever copies an id has all of it.
    """
    from textwrap import wrap

    from rich.console import Console
    from rich.text import Text

    console = Console(file=results(), soft_wrap=True)
    width = max(len(_cell(name)) for name, _ in [FIELDS, *rows])
    room = max(console.width - width - 2, VALUE)
    for number, (name, value) in enumerate([FIELDS, *rows]):
        parts = wrap(_cell(value), room, break_long_words=False, break_on_hyphens=False) or [""]
        for at, part in enumerate(parts):
            line = f"{_cell(name) if at == 0 else '':<{width}}  {part}".rstrip()
            console.print(Text(line, style="" if number else "bold"), soft_wrap=True)


def _write_lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a line for each row, as wide as the terminal: the last columns are cut first, those of `WHOLE` never."""
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text

    now, console = datetime.now(UTC), Console(file=results(), soft_wrap=True)
    texts = [
        [f"{age((now - cell).total_seconds())} ago" if isinstance(cell, datetime) else _cell(cell) for cell in row]
        for row in rows[:ROWS]
    ]
    widths = [max(map(cell_len, (column, *(row[at] for row in texts)))) for at, column in enumerate(columns)]
    excess = sum(widths) + 2 * (len(widths) - 1) - console.width
    for at in range(len(columns) - 1, -1, -1):
        if columns[at] not in WHOLE and excess > 0 and widths[at] > NARROW:
            cut = min(excess, widths[at] - NARROW)
            widths[at], excess = widths[at] - cut, excess - cut
    if excess > 0 and columns[-1] not in WHOLE:
        widths[-1] = max(len(columns[-1]), widths[-1] - excess)
    is_right = [_is_number_column(rows, at) for at in range(len(columns))]
    for number, row in enumerate([columns, *texts]):
        cells = []
        for cell, width, right in zip(row, widths, is_right, strict=True):
            short = cell if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"
            space = " " * (width - cell_len(short))
            cells.append(space + short if right else short + space)
        console.print(Text("  ".join(cells).rstrip(), style="" if number else "bold"), soft_wrap=True)
    if len(rows) > ROWS:
        note(f"{ROWS} of {len(rows):,} rows; all of them with --json, or where standard output is no terminal")


def _is_number_column(rows: Sequence[Sequence[object]], at: int) -> bool:
    return bool(rows) and all(
        row[at] == "" or (isinstance(row[at], int | float) and not isinstance(row[at], bool)) for row in rows
    )


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return harmless(_BREAKS.sub(" ", str(value).strip()))


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
    try:
        results().write(value + "\n")
    except UnicodeEncodeError:  # a terminal or a pipe that is not UTF-8
        encoding = results().encoding
        results().write(value.encode(encoding, "backslashreplace").decode(encoding) + "\n")
