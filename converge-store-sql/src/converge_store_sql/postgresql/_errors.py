"""What the drivers of PostgreSQL raise, as errors of `converge.errors`."""

from __future__ import annotations

from converge.errors import InvalidValue, StoreError, StoreRefused, StoreUnavailable
from converge_store_sql._errors import NO_RIGHT, NO_TABLE, Errors, text_of

RETRIED = frozenset({"40001", "40P01", "23505"})
"""Serialization failure, deadlock, unique key taken meanwhile: the statement was undone whole, and is run again."""

_ENDED = "cannot switch to state"
"""What asyncpg says of a call on a connection that the server has ended a moment ago."""

_NO_FUNCTION = "`converge store migrate` makes functions that are missing"

_FILES = "sslrootcert, sslcert, sslkey, or a socket's folder"


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
    text = text_of(error)
    if sqlstate(error) == "08P01" and "startup parameter" in text:
        return StoreRefused(f"{where} is behind a pooler, which refuses settings: {text}; set the option pooler")
    if isinstance(error, FileNotFoundError | PermissionError):  # the driver does not say which file
        return StoreUnavailable(f"{where} cannot be reached: {text}; check the files that the URL names: {_FILES}")
    return _ERRORS.connecting_failed(error, where)


def call_failed(error: BaseException, where: str, *, writes: bool) -> Exception:
    """Return the error for a statement that was sent; `writes`: it may have changed something."""
    if _is_bad_argument(error) or (sqlstate(error) or "").startswith("22"):
        return InvalidValue("key", text_of(error), "parts with the types of their family")
    if sqlstate(error) == "25006":
        return StoreUnavailable(
            f"{where} takes no writes: it became a standby, or is read-only; promote it, or name the primary"
        )
    if _ENDED in str(error):
        error = ConnectionError("the server has ended the connection")
    return _ERRORS.call_failed(error, where, writes=writes)


def _code_of(error: BaseException) -> str | None:
    """Return the code of an error after which the connection is still there."""
    code = sqlstate(error)
    return None if code is not None and code.startswith(("08", "57P")) and code != "57P03" else code


def _is_bad_argument(error: BaseException) -> bool:
    """Return whether the driver refused to encode an argument: nothing was sent."""
    found = getattr(error, "orig", None) or error
    return "invalid input for query argument" in str(found)


_ERRORS = Errors(
    code_of=_code_of,
    full={"53100"},
    # 25P03 and 25P04: the server ended the connection, and what it had begun, since a limit of its own had passed.
    busy={"25P03", "25P04", "55P03", "57014", "53200", "53300", "53400", *RETRIED},
    away={"57P03", "3D000"},  # one that is starting, no such database
    is_login=lambda code: code.startswith("28") or code == "42501",
    login="user, password and pg_hba.conf",
    no_room={"53300"},
    no_database="3D000",
    mends={"42P01": NO_TABLE, "42883": _NO_FUNCTION, "42501": NO_RIGHT},
)
