"""What the driver raises, as errors of `converge.errors`."""

from __future__ import annotations

from converge.errors import (
    InvalidValue,
    NotApplied,
    OutcomeUnknown,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)

RETRIED = frozenset({"40001", "40P01", "23505"})
"""Serialization failure, deadlock, unique key taken meanwhile: the statement was undone whole, and is run again."""

_FULL = frozenset({"53100"})
_BUSY = frozenset({"55P03", "57014", "53200", "53300", "53400", *RETRIED})
_AWAY = frozenset({"25006", "57P03", "3D000"})  # a standby, one that is starting, no such database

_LIMIT = 300
"""Characters of a server's message that an error repeats; some quote whole statements."""


def sqlstate(error: BaseException) -> str | None:
    """Return the five characters with which the server named the error, if it was the server who spoke."""
    found: BaseException | None = error
    while found is not None:
        code = getattr(found, "sqlstate", None) or getattr(found, "pgcode", None)  # psycopg2 calls it that
        if code:
            return str(code)
        found = getattr(found, "orig", None) or found.__cause__
    return None


def connecting_failed(error: BaseException, where: str) -> StoreError:
    """Return the error for a connection that could not be made."""
    code, text = sqlstate(error), _text(error)
    if code is not None and (code.startswith("28") or code == "42501"):
        return StoreRefused(f"{where} refused the login: {text}; check user, password and pg_hba.conf")
    if code == "08P01" and "startup parameter" in text:
        return StoreRefused(f"{where} is behind a pooler, which refuses settings: {text}; set the option pooler")
    if code == "53300":
        return StoreBusy(
            f"{where} has no connection left: {text}; raise max_connections, or lower the option connections"
        )
    if code == "3D000":
        return StoreUnavailable(f"{where}: {text}; create the database")
    return StoreUnavailable(f"{where} cannot be reached: {text}")


def call_failed(error: BaseException, where: str, *, writes: bool) -> Exception:
    """Return the error for a statement that was sent.

    Args:
        error: What was raised.
        where: The server, for the message.
        writes: Whether the statement may have changed something.
    """
    code, text = sqlstate(error), _text(error)
    if _is_bad_argument(error) or (code is not None and code.startswith("22")):
        return InvalidValue("key", text, "parts with the types of their family")
    if code is None or (code.startswith(("08", "57P")) and code != "57P03"):
        if writes:
            return OutcomeUnknown(
                f"{where} did not answer: {text}; the call may have taken effect, read before you repeat it"
            )
        return StoreUnavailable(f"{where} did not answer: {text}")
    return _refusal(code)(f"{where} refused the call ({code}): {text}")


def _refusal(code: str) -> type[NotApplied]:
    if code in _FULL:
        return StoreFull
    if code in _BUSY:
        return StoreBusy
    return StoreUnavailable if code in _AWAY else StoreRefused


def _is_bad_argument(error: BaseException) -> bool:
    """Return whether the driver refused to encode an argument: nothing was sent."""
    found = getattr(error, "orig", None) or error
    return "invalid input for query argument" in str(found)


def _text(error: BaseException) -> str:
    """Return the cause's own words: SQLAlchemy's text repeats statement and parameters, which hold users' data."""
    found = getattr(error, "orig", None) or error
    cause = found if isinstance(found, TimeoutError) else found.__cause__ or found
    text = (
        "no answer in time" if isinstance(cause, TimeoutError) else str(cause).split("\n", 1)[0] or type(cause).__name__
    )
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."
