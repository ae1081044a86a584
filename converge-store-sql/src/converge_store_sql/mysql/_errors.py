"""What the drivers of MariaDB and MySQL raise, as errors of `converge.errors`."""

from __future__ import annotations

from converge_store_sql._errors import NO_RIGHT, NO_TABLE, Errors

DUPLICATE = 1062
RETRIED = frozenset({DUPLICATE, 1213, 1020, 1637})
"""Key taken meanwhile, deadlock, row changed since it was read, too many transactions: the call is run again."""

_BUSY = frozenset({1205, 1040, 1203, 1226, 1317, 3024, 1969, 1041, *RETRIED})
_LOGIN = frozenset({1044, 1045, 1130, 1698, 1142, 1143, 1227, 1251, 1820, 1862, 4151})
_LOST = frozenset({1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 4031})


def number_of(error: BaseException) -> int | None:
    """Return the number with which the server named the error, if it was the server who spoke.

    Numbers from 2000 to 2999 are the driver's own: the connection is lost.
    """
    found: BaseException | None = error
    while found is not None:
        arguments = getattr(found, "orig", found).args
        if arguments and type(arguments[0]) is int and 0 < arguments[0] < 100_000 and len(arguments) > 1:
            number = arguments[0]
            return None if number // 1_000 == 2 or number in _LOST else number
        found = getattr(found, "orig", None) or found.__cause__
    return None


_ERRORS = Errors(
    code_of=number_of,
    full={1021, 1114, 3, 28},
    busy=_BUSY,
    away={1290, 1792, 1836, 1049, 3100},  # a server that only reads, no such database
    is_login=_LOGIN.__contains__,
    login="user, password and grants, and whether the server wants TLS (ssl=true)",
    no_room=_BUSY,
    no_database=1049,
    mends={1146: NO_TABLE, 1142: NO_RIGHT, 1143: NO_RIGHT, 1044: NO_RIGHT},
)
connecting_failed, call_failed = _ERRORS.connecting_failed, _ERRORS.call_failed
