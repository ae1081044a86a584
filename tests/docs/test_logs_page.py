"""The page on logs names every field that a line may have, and shows lines as they are written."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from converge.operations.logs import CONTINUED, DISPLAYED, TextFormatter
from converge.runtime.agents.context import FIELDS
from converge.services.store.outage import BEGINS, ENDS

PAGE = (Path(__file__).parents[2] / "docs/reference/logs.md").read_text()


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(["time", "level", "logger", "message", "exception", "detail", *FIELDS])


def test_the_line_on_the_page_is_a_line_of_the_log() -> None:
    (line,) = re.findall(r"^2026.* \[agent=.*\]$", PAGE, re.MULTILINE)
    found = re.fullmatch(r"(\S+ \S+) (\w+) +([\w.]+): (.*) \[agent=(\w+) pool=(\w+) task=(\S+) token=(\d+)\]", line)
    assert found is not None
    record = logging.LogRecord(found[3], logging.WARNING, "x.py", 1, found[4], (), None)
    record.__dict__.update(agent=found[5] + "tail", pool=found[6], task=found[7], token=int(found[8]))
    assert len(found[5]) == DISPLAYED
    assert TextFormatter().format(record).partition(" WARNING ")[2] == line.partition(" WARNING ")[2]


def test_the_lines_of_an_outage_are_those_of_the_code() -> None:
    assert f"converge.store: {BEGINS}: " in PAGE and f"converge.store: {ENDS}, after 13.3 s" in PAGE
    assert CONTINUED.replace("|", r"\|") in PAGE
