"""Records to bytes and back: JSON through msgspec, bytes as {"$bytes": "base64"}, one error for what cannot be read."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from functools import cache, lru_cache
from math import isfinite
from typing import Annotated, Any, TypeVar

import attrs
import msgspec

from converge.errors import InvalidValue, SchemaTooNew, TornRecord

FIRST = 1
"""The format of a record that names none: `v` is written whenever it is another."""

FORMAT = 4
"""The newest format that this release reads. A record's `v` is the format that brought it; see `model/formats.py`."""

BYTES_KEY = "$bytes"
DEPTH = 32
"""Plain data may nest this deep: far below Python's recursion limit, above any sensible payload."""

_INT_GREATEST = 2**63 - 1
MOMENT_GREATEST = 253_370_764_800_000_000
"""The greatest moment of a record, in microseconds: the end of the year 9998, so that it is a date in every time zone.
"""

Int = Annotated[int, msgspec.Meta(ge=-_INT_GREATEST - 1, le=_INT_GREATEST)]
Moment = Annotated[int, msgspec.Meta(ge=0, le=MOMENT_GREATEST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400.0 * 366)]
Hash = Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
Channel = Annotated[str, msgspec.Meta(max_length=200)]
KeyText = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
"""What the fields of records may hold: a record with anything else is torn, before a calculation or a key meets it."""
encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""Return the JSON of a record (a msgspec Struct, or an attrs class of plain fields)."""

_RecordT = TypeVar("_RecordT")


class _Version(msgspec.Struct):
    v: int = FIRST


@cache
def _decoder(type_: Any) -> Any:
    return msgspec.json.Decoder(type_).decode


def decoder(type_: type[_RecordT]) -> Callable[[bytes], _RecordT]:
    """Return what decodes a record of `type_` and checks nothing beyond: where it raises, `decode` has the reason."""
    found: Callable[[bytes], _RecordT] = _decoder(type_)  # type: ignore[arg-type]  # a class is hashable
    return found


def decode(raw: bytes, type_: type[_RecordT], what: str, *, may_have_more: bool = False) -> _RecordT:
    """Return the record of `type_` that `raw` holds.

    Args:
        may_have_more: Pass over names that an attrs class does not have: for what is only read. What is written again
            would lose them, and a name that was damaged would be taken for one that is not there, so that its default
            counts.

    Raises:
        SchemaTooNew: A newer release wrote it.
        TornRecord: It is not JSON, or not of this type; `what` names it.
    """
    is_attrs = _is_attrs(type_)  # type: ignore[arg-type]  # a class is hashable
    try:
        record: _RecordT = _decoder(type_)(raw)  # type: ignore[arg-type]  # a class is hashable
        if not may_have_more and is_attrs:
            _check_names(raw, type_)
        if (check := getattr(type_, "check", None)) is not None:
            check(record)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        _check_version(_version(raw), what)
        raise TornRecord(what, str(error)) from error
    _check_version(_version(raw) if is_attrs else _version_of(record), what)
    return record


_is_attrs = cache(attrs.has)


def _version_of(record: Any) -> object:
    return record.get("v", FIRST) if type(record) is dict else getattr(record, "v", FIRST)


def _check_names(raw: bytes, type_: Any) -> None:
    """Do what msgspec does for its own classes, where they forbid unknown fields."""
    if unknown := _decoder(dict[str, msgspec.Raw])(raw).keys() - attrs.fields_dict(type_).keys() - {"v"}:
        raise msgspec.ValidationError(f"it has the unknown field `{min(unknown)}`")


def _check_version(version: object, what: str) -> None:
    if type(version) is int and version > FORMAT:
        raise SchemaTooNew(
            f"{what}: format {version} was written by a newer release; this one reads up to {FORMAT}: upgrade it"
        )


def _version(raw: bytes) -> int:
    try:
        version: int = _decoder(_Version)(raw).v
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return FIRST
    return version


def decode_id(raw: bytes, what: str) -> bytes:
    """Return the 16 bytes whose hex the record holds.

    Raises:
        TornRecord: It holds something else.
    """
    return hash_bytes(decode(raw, str, what), what)


def hash_bytes(text: str, what: str) -> bytes:
    """Return the 16 bytes of 32 lower-case hex digits.

    Raises:
        TornRecord: It is something else.
    """
    try:
        return parse_hash(text)
    except ValueError as error:
        raise TornRecord(what, str(error)) from error


@lru_cache(maxsize=4_096)  # a claim asks for one a task, and a pool has at most 1,024 lanes
def parse_hash(text: str) -> bytes:
    """Return the 16 bytes of 32 lower-case hex digits.

    Raises:
        ValueError: It is something else.
    """
    raw = bytes.fromhex(text)
    if len(raw) != 16 or raw.hex() != text:
        raise ValueError(f"{text[:40]!r} is not the hex of 16 bytes")
    return raw


def moment_or(raw: bytes, default: int) -> int:
    """Return the moment (microseconds) that a value without a record around it holds, or `default` if it is none."""
    return int(raw) if len(raw) < 19 and raw.isdigit() and int(raw) <= MOMENT_GREATEST else default


def stored_text(text: str) -> str:
    """Return the text as every store takes it: NULs and lone halves of characters are written as Python writes them.

    What is text for people (reasons, errors, names, a trace) passes through this once, on the way into a record.
    """
    text = str.__str__(text)  # a subclass may say anything
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_UNSTORED = re.compile("[\0\ud800-\udfff]")


def encode_plain(value: Any, path: str) -> bytes:
    """Return the JSON of plain data: None, bool, int of 64 bits, finite float, str, bytes, lists and mappings.

    Raises:
        InvalidValue: Something else is in it; the error's path says where.
    """
    if (type(value) is dict and _is_flat(value)) or type(value) is str or _is_plain(value, 1):
        try:
            return encode(value)  # the usual case costs no copy; msgspec refuses lone surrogates
        except ValueError:
            pass
    return encode(_plain(value, path, 0))


def canonical(raw: bytes | msgspec.Raw, what: str) -> bytes:
    """Return the one form of plain data that is equal: names in order, and whole numbers without a fraction.

    Raises:
        TornRecord: It is not JSON.
    """
    try:
        return _encode_sorted(_whole_numbers(_decode_any(raw)))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise TornRecord(what, str(error)) from error


_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _INT_GREATEST else value
    if isinstance(value, dict):
        return {name: _whole_numbers(item) for name, item in value.items()}
    return [_whole_numbers(item) for item in value] if isinstance(value, list) else value


def decode_plain(raw: bytes | msgspec.Raw, what: str) -> Any:
    """Return the plain data that `encode_plain` put into `raw`.

    Raises:
        TornRecord: It is something else.
    """
    try:
        value = _decode_any(raw)
        if type(value) is str or (type(value) is dict and _is_flat(value)):
            return value
        return _restore(value) if b'"$bytes"' in bytes(raw) else value
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise TornRecord(what, str(error)) from error


def decode_inputs(raw: bytes | msgspec.Raw, what: str) -> dict[str, Any]:
    """Return the inputs of a task, as `decode_plain`.

    Raises:
        TornRecord: They are something else than a mapping, too: whoever has a task may rely on that.
    """
    value = decode_plain(raw, what)
    if type(value) is not dict:
        raise TornRecord(what, f"its inputs are no mapping: {type(value).__name__}")
    return value


_decode_any = msgspec.json.Decoder().decode


def _is_flat(value: dict[Any, Any]) -> bool:
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str or not (
            kind is str or (kind is int and -_INT_GREATEST <= item <= _INT_GREATEST) or kind is bool or item is None
        ):
            return False
    return BYTES_KEY not in value


def _is_plain(value: Any, depth: int) -> bool:
    """Return whether this is a list or mapping that `_plain` would copy as it is: found out in a tenth of the time."""
    items = value
    if type(value) is dict:
        if BYTES_KEY in value or not all(type(key) is str for key in value):
            return False
        items = value.values()
    elif type(value) is not list and type(value) is not tuple:
        return False
    if depth > DEPTH:
        return False
    for item in items:
        kind = type(item)
        if kind is int:
            if not -_INT_GREATEST - 1 <= item <= _INT_GREATEST:
                return False
        elif kind is float:
            if not isfinite(item):
                return False
        elif kind is not str and kind is not bool and item is not None and not _is_plain(item, depth + 1):
            return False
    return True


def _plain(value: Any, path: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT_GREATEST - 1 <= value <= _INT_GREATEST:
            raise _refused(path, value, "an integer of 64 bits")
        return int.__int__(value)  # an encoder takes no subclasses
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise _refused(path, value, "a finite number")
        return float.__float__(value)
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, bytes | bytearray | memoryview):
        return {BYTES_KEY: base64.b64encode(value).decode()}
    return _container(value, path, depth + 1)


def _container(value: Any, path: str, depth: int) -> Any:
    if depth > DEPTH:
        raise InvalidValue(path, "...", f"data nested at most {DEPTH} deep")
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]", depth) for index, item in enumerate(value)]
    if isinstance(value, dict):
        if BYTES_KEY in value:
            raise _refused(path, value, f'no mapping with the key "{BYTES_KEY}", which stands for bytes')
        for key in value:
            if not isinstance(key, str):
                raise _refused(path, key, "names (str) as keys")
        return {_text(key, path): _plain(item, f"{path}.{str.__str__(key)}", depth) for key, item in value.items()}
    raise _refused(path, value, "plain data: None, bool, int, float, str, bytes, lists and mappings of these")


def _refused(path: str, value: object, expected: str) -> InvalidValue:
    """Return the error, which tells the value's type only: it is part of a payload, and the text goes into logs."""
    return InvalidValue(path, value, expected, shown=f"a value of type {type(value).__name__}")


def _text(value: str, path: str) -> str:
    """Return the text as a plain one: a subclass may say anything."""
    text = str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _refused(path, value, "text without lone surrogates") from None
    return text


def _restore(value: Any) -> Any:
    if isinstance(value, list):
        return [_restore(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(value.get(BYTES_KEY), str):
            try:
                return base64.b64decode(value[BYTES_KEY], validate=True)
            except binascii.Error as error:
                raise ValueError(f"{BYTES_KEY}: {error}") from error
        return {key: _restore(item) for key, item in value.items()}
    return value
