"""Names and ids: what may be one, how an id is drawn, and its two forms (16 bytes in keys, text for people)."""

from __future__ import annotations

import re
import sys
from array import array
from struct import iter_unpack

from converge.errors import InvalidName

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")
NAME_RULE = "1 to 64 characters of A-Z a-z 0-9 . _ : -"


def is_name(text: str) -> bool:
    """Return whether the text can name a pool, an agent, a topic, a capability or a task type."""
    return _NAME.fullmatch(text) is not None


def check_name(what: str, name: object) -> str:
    """Return `name` if it can name a pool, an agent, a topic, a capability or a task type.

    Raises:
        InvalidName: It is not text, or not of `NAME_RULE`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(what, name, NAME_RULE)
    return str.__str__(name)  # a subclass may say anything


def uuid7(now: int, entropy: bytes, number: int = 0) -> bytes:
    """Return a UUIDv7 (RFC 9562): milliseconds, then their fraction, then `number`, then random bits; `now` in
    microseconds, `entropy` of 6 bytes.

    The 12 bits after the version hold the fraction of the millisecond (section 6.2, method 3) and the next 14 `number`
    modulo 16,384 (method 1), so that the ids of one call rise in its order, and those of one process in the order of
    its calls. The first 10 of the 48 bits after these are 0, kept for a partition number; nothing reads them, since
    older ids and those that users give have any value there.
    """
    milliseconds, micros = divmod(now, 1_000)
    head = (milliseconds & 0xFFFFFFFFFFFF) << 16 | 0x7000 | (micros << 12) // 1_000
    return head.to_bytes(8, "big") + (0x8000 | number & 0x3FFF).to_bytes(2, "big") + _drawn(entropy)


def uuids7(now: int, entropy: bytes) -> list[bytes]:
    """Return a UUIDv7 for each 6 bytes of `entropy`, in their order: as `uuid7`, in a quarter of the time."""
    count = len(entropy) // 6
    first = uuid7(now, entropy[:6])
    if count < 2:
        return [first][:count]
    head = first[:8]
    numbers = array("H", [0x8000 | number & 0x3FFF for number in range(count)])
    if sys.byteorder == "little":
        numbers.byteswap()
    pairs = zip(iter_unpack("2s", numbers.tobytes()), iter_unpack("6s", _drawn(entropy[: 6 * count])), strict=True)
    return [head + number + drawn for (number,), (drawn,) in pairs]


def _drawn(entropy: bytes) -> bytes:
    """Return the entropy with the first 10 bits of each 6 bytes 0."""
    size = len(entropy)
    mask = int.from_bytes(_RANDOM * (size // 6), "big")
    return (int.from_bytes(entropy, "big") & mask).to_bytes(size, "big")


_RANDOM = b"\x00\x3f\xff\xff\xff\xff"


def id_text(raw: bytes) -> str:
    """Return the usual text of 16 bytes: `0192f3c4-...`."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_id(text: str) -> bool:
    """Return whether the text is that of a UUID."""
    try:
        id_bytes("id", text)
    except InvalidName:
        return False
    return True


def id_bytes(what: str, text: object) -> bytes:
    """Return the 16 bytes of a UUID's text.

    Raises:
        InvalidName: It is not the text of a UUID.
    """
    if isinstance(text, str) and len(text) in (32, 36) and len(digits := text.replace("-", "")) == 32:
        try:
            return int(digits, 16).to_bytes(16, "big")  # in half the time of a `uuid.UUID`
        except ValueError:
            pass
    raise InvalidName(what, text, "a UUID, as submit returns it")
