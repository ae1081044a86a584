"""Records: items sealed into frames, one Noise record each, and opened again in order. Nothing of a record is looked at before it is authentic.

Inside a record: items of `length u32 || kind u8 || flags u8 (bit 0: more follows) || body`; the length counts the body, and lengths add up exactly.
An item of a message that does not fit into a record is cut into consecutive fragments, between which only control items may stand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from converge.errors import BadRecord, MessageTooLarge
from converge.machines.noise import TAG_BYTES, CipherState

FRAME_BYTES = 65_535
PLAIN_BYTES = FRAME_BYTES - TAG_BYTES
REKEY_RECORDS = 65_536
"""Each direction has a new key after so many records: a key that leaks opens no earlier ones."""

PADDING, ACCEPT, CLOSE, MESSAGE, RECEIPT, SIGNED, PING, PONG = range(8)
KNOWN = 8
SKIPPED = 128
"""Unknown kinds from here on are passed over; below they are an error."""
MORE = 1
_WHOLE = frozenset((MESSAGE, RECEIPT, SIGNED))  # these may be cut into fragments

Item = tuple[int, bytes]
"""`(kind, body)`, whole. A plain tuple: a record has dozens of them."""

REASONS = ("normal", "shutdown", "idle", "duplicate", "protocol", "bad record", "version", "limit", "revoked", "age")
NORMAL, SHUTDOWN, IDLE, DUPLICATE, PROTOCOL, BAD, VERSION, LIMIT, REVOKED, AGE = range(10)
CLOSE_TEXT_BYTES = 128

_HEAD = struct.Struct(">IBB")
_pack, _unpack_from = _HEAD.pack, _HEAD.unpack_from
_HEAD_BYTES = _HEAD.size


class Sealer:
    """Seals one direction: items to frames."""

    __slots__ = ("_cipher", "_message_bytes", "_records")

    def __init__(self, cipher: CipherState, message_bytes: int = 1_048_576) -> None:
        self._cipher, self._message_bytes, self._records = cipher, message_bytes, 0

    def seal(self, items: Iterable[Item]) -> list[bytes]:
        """Return as few frames as hold the items, in order.

        Raises:
            MessageTooLarge: A body is over the limit; nothing was sealed.
        """
        items = list(items)
        sizes = [len(body) for _, body in items]
        if sum(sizes) + _HEAD_BYTES * len(items) <= PLAIN_BYTES:  # the usual case: one record, nothing cut
            if not items:
                return []
            return [self._record([part for (kind, body), size in zip(items, sizes, strict=True) for part in (_pack(size, kind, 0), body)])]
        return self._seal_many(items)

    def _seal_many(self, items: list[Item]) -> list[bytes]:
        frames: list[bytes] = []
        parts: list[bytes] = []
        size = 0
        for _, body in items:
            if len(body) > self._message_bytes:
                raise MessageTooLarge(f"a message of {len(body)} bytes; the limit is {self._message_bytes}")
        for kind, body in items:
            room = PLAIN_BYTES - size - _HEAD_BYTES
            if len(body) <= room:
                parts += (_pack(len(body), kind, 0), body)
                size += _HEAD_BYTES + len(body)
                continue
            if len(body) <= PLAIN_BYTES - _HEAD_BYTES:
                frames.append(self._record(parts))
                parts, size = [_pack(len(body), kind, 0), body], _HEAD_BYTES + len(body)
                continue
            parts, size = self._cut(kind, body, parts, frames)
        if parts:
            frames.append(self._record(parts))
        return frames

    def _cut(self, kind: int, body: bytes, parts: list[bytes], frames: list[bytes]) -> tuple[list[bytes], int]:
        if parts:
            frames.append(self._record(parts))
        step = PLAIN_BYTES - _HEAD_BYTES
        last = (len(body) - 1) // step * step
        for at in range(0, last, step):
            frames.append(self._record([_pack(step, kind, MORE), body[at : at + step]]))
        rest = body[last:]
        return [_pack(len(rest), kind, 0), rest], _HEAD_BYTES + len(rest)

    def _record(self, parts: list[bytes]) -> bytes:
        frame = self._cipher.encrypt(b"".join(parts))
        self._records += 1
        if self._records == REKEY_RECORDS:
            self._records = 0
            self._cipher.rekey()
        return frame


class Opener:
    """Opens one direction: frames to items. After an error it is of no more use."""

    __slots__ = ("_cipher", "_message_bytes", "_parts", "_pending", "_records", "_size")

    def __init__(self, cipher: CipherState, message_bytes: int = 1_048_576) -> None:
        self._cipher, self._message_bytes, self._records = cipher, message_bytes, 0
        self._pending: int | None = None
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def is_between_messages(self) -> bool:
        """Whether no fragment waits for the next: an end of the connection here loses no part of a message."""
        return self._pending is None

    def open(self, frame: bytes) -> list[Item]:
        """Return the items that the frame completes.

        Raises:
            BadRecord: It is not authentic, not the next one, or not well formed.
            MessageTooLarge: Its fragments add up to more than the limit.
        """
        if len(frame) > FRAME_BYTES:
            raise BadRecord(f"a record of {len(frame)} bytes; {FRAME_BYTES} are possible")
        plain = self._cipher.decrypt(frame)
        self._records += 1
        if self._records == REKEY_RECORDS:
            self._records = 0
            self._cipher.rekey()
        return self._items(plain)

    def _items(self, plain: bytes) -> list[Item]:
        items: list[Item] = []
        at, end = 0, len(plain)
        is_usual = self._pending is None
        try:
            while at < end:
                length, kind, flags = _unpack_from(plain, at)
                start = at + _HEAD_BYTES
                at = start + length
                if is_usual and not flags and 0 < kind < KNOWN:
                    items.append((kind, plain[start:at]))
                elif at <= end:
                    self._unusual(kind, flags, plain[start:at], items)
                    is_usual = self._pending is None
        except struct.error:
            at = -1
        if at != end:
            raise BadRecord("a record's items do not add up")
        return items

    def _unusual(self, kind: int, flags: int, body: bytes, items: list[Item]) -> None:
        if flags & ~MORE:
            raise BadRecord(f"an item with unknown flags {flags:#x}")
        if KNOWN <= kind < SKIPPED:
            raise BadRecord(f"an item of the unknown kind {kind}")
        if kind not in _WHOLE:
            if flags:
                raise BadRecord(f"an item of kind {kind} cannot be cut into fragments")
            if KNOWN > kind != PADDING:
                items.append((kind, body))
            return
        if self._pending is None:
            self._pending = kind
        elif self._pending != kind:
            raise BadRecord("fragments of two messages are mixed")
        self._size += len(body)
        if self._size > self._message_bytes:
            raise MessageTooLarge(f"a message of more than {self._message_bytes} bytes")
        if flags and not body:
            raise BadRecord("an empty fragment that announces another")
        self._parts.append(body)
        if not flags:
            items.append((kind, b"".join(self._parts)))
            self._pending, self._parts, self._size = None, [], 0


def close_body(reason: int, text: str = "") -> bytes:
    """Return the body of CLOSE."""
    return reason.to_bytes(2, "big") + text.encode()[:CLOSE_TEXT_BYTES]


def close_reason(body: bytes) -> str:
    """Return what a CLOSE says, safe to log.

    Raises:
        BadRecord: It is not a CLOSE.
    """
    if not 2 <= len(body) <= 2 + CLOSE_TEXT_BYTES:
        raise BadRecord("a CLOSE of an impossible length")
    code = int.from_bytes(body[:2], "big")
    name = REASONS[code] if code < len(REASONS) else f"reason {code}"
    text = body[2:].decode("utf-8", "replace")
    return f"{name}: {text}".encode("unicode_escape").decode() if text else name
