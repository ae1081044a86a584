"""Logs on standard error: lines for people, or a JSON object each, with what was worked on and without secrets."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from converge.runtime.agents import context as working
from converge.secret import MASK, without_password

SECRET_LEAST = 6
"""Characters of a configured secret that is masked wherever it appears: shorter ones are parts of words."""

DISPLAYED = 12
"""Characters of a node's or agent's id in lines for people; `agents show` takes as many."""

CONTINUED = "    | "
"""Before each line of a traceback: whatever an exception's text holds, it does not look like a line of the log."""

# Control characters, line ends of all kinds, marks that turn the direction of writing, and halves of characters, which
# no stream can write.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def escaped(text: str) -> str:
    """Return the text on one line, its control characters as Python writes them."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def without_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """Return the text with passwords of URLs, and each of these, masked."""
    if "://" in text:
        text = _URL.sub(lambda found: without_password(found[0]), text)
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


class Formatter(logging.Formatter):
    """What both formats share."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        super().__init__()
        self._secrets = sorted({one for one in secrets if len(one) >= SECRET_LEAST}, key=len, reverse=True)

    def _clean(self, text: str) -> str:
        return without_secrets(text, self._secrets)

    def _details(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        """Yield what stands below a line: a stack, an exception."""
        if isinstance(detail := getattr(record, "detail", None), str):
            yield "detail", detail.rstrip("\n")
        if record.exc_info:
            yield "exception", self.formatException(record.exc_info)
        elif record.exc_text:
            yield "exception", record.exc_text


class TextFormatter(Formatter):
    """`time LEVEL logger: message [agent=... pool=... task=... token=...]`, and below it, set in, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, and what stands below it."""
        at = datetime.fromtimestamp(record.created).astimezone().isoformat(sep=" ", timespec="milliseconds")
        about = " ".join(
            f"{name}={_displayed(name, value)}" for name, value in fields_of(record).items() if name != "node"
        )
        line = f"{at} {record.levelname:<7} {record.name}: {record.getMessage()}{f' [{about}]' if about else ''}"
        below = [
            f"{CONTINUED}{escaped(self._clean(one))}" for _, text in self._details(record) for one in text.split("\n")
        ]
        return "\n".join([escaped(self._clean(line)), *below])


class JsonFormatter(Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and `working.FIELDS`, `exception`, `detail` if known."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        line: dict[str, str | int] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._clean(record.getMessage()),
        }
        line |= fields_of(record)
        line |= {name: self._clean(text) for name, text in self._details(record)}
        return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(line, ensure_ascii=False))


def fields_of(record: logging.LogRecord) -> dict[str, str | int]:
    """Return a line's context fields; fields of the record itself override those of the running code."""
    known = dict(working.fields())
    for name in working.FIELDS:
        if isinstance(own := getattr(record, name, None), str | int) and own != known.get(name):
            known[name] = own
    return known


def _displayed(name: str, value: str | int) -> str:
    return str(value)[:DISPLAYED] if name == "agent" else str(value)


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`: a progress bar replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # logging's own boundary: a line that cannot be written stops no work
            with contextlib.suppress(Exception):  # user code may have closed the stream
                self.handleError(record)


def set_up(log_format: str, log_level: str, secrets: Sequence[str] = ()) -> None:
    """Send this process's logs to standard error, without secrets; called once, by whoever owns the process."""
    handler = _Stderr()
    handler.setFormatter(JsonFormatter(secrets) if log_format == "json" else TextFormatter(secrets))
    logging.basicConfig(
        level=max(logging.INFO, logging.getLevelName(log_level.upper())), handlers=[handler], force=True
    )
    logging.getLogger("converge").setLevel(log_level.upper())  # debug lines of other libraries are not wanted
