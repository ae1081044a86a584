"""Records: items sealed into frames, one Noise record each, opened in order, and authenticated before use.

Inside a record: items of `length u32 || kind u8 || flags u8 (bit 0: more follows) || body`; the length counts the body,
and lengths add up exactly. An item of a message that does not fit into a record is cut into consecutive fragments,
between which only control items may stand.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, repeat
from operator import itemgetter

from converge.errors import BadRecord, MessageTooLarge, VersionMismatch
from converge.machines.noise import TAG_BYTES, CipherState

FRAME_BYTES = 65_535
PLAIN_BYTES = FRAME_BYTES - TAG_BYTES
MESSAGE_BYTES = 1_048_576
"""The largest message, unless a side wants them smaller."""
REKEY_RECORDS = 65_536
"""Each direction has a new key after so many records: a key that leaks opens no earlier ones."""

PADDING, ACCEPT, CLOSE, MESSAGE, RECEIPT, SIGNED, PING, PONG = range(8)
KNOWN = 8
SKIPPED = 128
"""Unknown kinds from here on are passed over; below they are an error."""
SHOWN, GONE, SIGNED_TOGETHER = 128, 129, 130
"""An agent's signed descriptor, before its first message on the link; the id of an agent that has ended; a message that
shares its signature with others. A release that knows none of them passes them over.
"""
MORE = 1
CUT = frozenset((MESSAGE, RECEIPT, SIGNED))
"""Kinds that may be cut into fragments; the others are control items."""
LIMITED = CUT | {SIGNED_TOGETHER}
"""Kinds for which the limit of a message holds."""

_PLAIN = frozenset((*range(ACCEPT + 1, KNOWN), SIGNED_TOGETHER))
"""Kinds whose items may come many at a time."""

Item = tuple[int, bytes]
"""`(kind, body)`, whole. A plain tuple: a record has dozens of them."""

REASONS = ("normal", "shutdown", "idle", "duplicate", "protocol", "bad record", "version", "limit", "revoked", "age")
NORMAL, SHUTDOWN, IDLE, DUPLICATE, PROTOCOL, BAD, VERSION, LIMIT, REVOKED, AGE = range(10)
CLOSE_TEXT_BYTES = 128
ALIKE_LEAST = 4
"""With fewer items the loop is as fast as the shortcut for records whose items are alike."""

_HEAD = struct.Struct(">IBB")
_pack, _unpack_from = _HEAD.pack, _HEAD.unpack_from
_HEAD_BYTES = _HEAD.size
_BODY_BYTES = PLAIN_BYTES - _HEAD_BYTES
_BODY = itemgetter(1)


class Sealer:
    """Seals one direction: items to frames."""

    __slots__ = ("_cipher", "_message_bytes", "_records")

    def __init__(self, cipher: CipherState, message_bytes: int = MESSAGE_BYTES) -> None:
        """`message_bytes`: the largest body of a message that the peer takes."""
        self._cipher, self._message_bytes, self._records = cipher, message_bytes, 0

    def seal(self, items: Iterable[Item]) -> list[bytes]:
        """Return as few frames as hold the items, in order.

        Raises:
            MessageTooLarge: A body is over the limit; nothing was sealed.
        """
        items = items if type(items) is list else list(items)
        if not items:
            return []
        if len(items) == 1:
            kind, body = items[0]
            if (size := len(body)) <= _BODY_BYTES and size <= self._message_bytes:
                return [self._record(_pack(size, kind, 0) + body)]
        sizes = [*map(len, map(_BODY, items))]
        if max(sizes) > self._message_bytes or sum(sizes) + _HEAD_BYTES * len(items) > PLAIN_BYTES:
            self._check_sizes(items)
            return self._seal_many([*items], sizes)
        return [self._whole(items)]

    def _whole(self, items: list[Item]) -> bytes:
        """Return the record of items that fit into it."""
        kinds, bodies = zip(*items, strict=False)
        sizes = [*map(len, bodies)]
        count, size, kind = len(items), sizes[0], kinds[0]
        # Receipts, and often the messages of one conversation, are alike in kind and size: they have one header, which
        # `join` sets between them.
        if sizes.count(size) == count == kinds.count(kind):
            return self._record(_pack(size, kind, 0).join((b"", *bodies)))
        parts: list[bytes] = [b""] * (2 * count)
        parts[::2] = map(_pack, sizes, kinds, repeat(0))
        parts[1::2] = bodies
        return self._record(b"".join(parts))

    def _check_sizes(self, items: list[Item]) -> None:
        for kind, body in items:
            limit = self._message_bytes if kind in LIMITED else _BODY_BYTES
            if kind not in CUT:
                limit = min(limit, _BODY_BYTES)
            if len(body) > limit:
                raise MessageTooLarge(f"an item of kind {kind} has {len(body)} bytes; the limit is {limit}")

    def _seal_many(self, items: list[Item], sizes: list[int]) -> list[bytes]:
        frames: list[bytes] = []
        ends = [*accumulate(map(_HEAD_BYTES.__add__, sizes))]
        at, before = 0, 0
        while at < len(items):
            end = bisect_right(ends, before + PLAIN_BYTES, at)
            if end == at:  # too long for a record: of its last fragment, an item is made that others may follow
                kind, body = items[at]
                cut = (len(body) - 1) // _BODY_BYTES * _BODY_BYTES
                for start in range(0, cut, _BODY_BYTES):
                    frames.append(self._record(_pack(_BODY_BYTES, kind, MORE) + body[start : start + _BODY_BYTES]))
                items[at] = kind, body[cut:]
                before = ends[at] - _HEAD_BYTES - len(body) + cut
                continue
            frames.append(self._whole(items[at:end]))
            at, before = end, ends[end - 1]
        return frames

    def _record(self, plain: bytes) -> bytes:
        frame = self._cipher.encrypt(plain)
        self._records += 1
        if self._records == REKEY_RECORDS:
            self._records = 0
            self._cipher.rekey()
        return frame


class Opener:
    """Opens one direction: frames to items. After an error it cannot be used any more."""

    __slots__ = ("_accept", "_cipher", "_error", "_is_narrow", "_message_bytes", "_parts", "_pending", "_records")

    def __init__(self, cipher: CipherState, message_bytes: int = MESSAGE_BYTES, *, accept: bytes | None = None) -> None:
        """`accept`: the ACCEPT with which the peer's first record must begin; None: the peer sends none."""
        self._cipher, self._message_bytes, self._records = cipher, message_bytes, 0
        self._accept = accept
        self._error: Exception | None = None
        self._is_narrow = message_bytes < _BODY_BYTES
        self._pending: int | None = None
        # Not a list of fragments: a million fragments of one byte would fill forty times the limit.
        self._parts = bytearray()

    @property
    def is_accepted(self) -> bool:
        """Whether the peer's ACCEPT has come, or none is expected."""
        return self._accept is None

    def open(self, frame: bytes) -> list[Item]:
        """Return the items that the frame completes; ACCEPT and padding are not among them.

        Raises:
            BadRecord: It is not authentic, not the next one, or not well formed. The connection must be dropped: every
                later frame is refused too.
            MessageTooLarge: Its fragments add up to more than the limit.
            VersionMismatch: The peer accepted other terms than were agreed.
        """
        if self._error is not None:
            raise BadRecord("an earlier record was refused, so none is opened any more") from self._error
        try:
            if len(frame) > FRAME_BYTES:
                raise BadRecord(f"a record of {len(frame)} bytes; {FRAME_BYTES} are possible")
            plain = self._cipher.decrypt(frame)
            self._records += 1
            if self._records == REKEY_RECORDS:
                self._records = 0
                self._cipher.rekey()
            if self._accept is not None:
                plain = self._accepted(plain, self._accept)
            return self._items(plain)
        except (BadRecord, MessageTooLarge, VersionMismatch) as error:
            self._error = error
            raise

    def _accepted(self, plain: bytes, accept: bytes) -> bytes:
        expected = _pack(len(accept), ACCEPT, 0)
        start = len(expected) + len(accept)
        if plain[: len(expected)] != expected or len(plain) < start:
            raise BadRecord("the peer's first record does not begin with ACCEPT")
        if plain[len(expected) : start] != accept:
            raise VersionMismatch("the peer accepted other terms than were agreed")
        self._accept = None
        return plain[start:]

    def _items(self, plain: bytes) -> list[Item]:
        at, end = 0, len(plain)
        is_usual = self._pending is None and not self._is_narrow
        if is_usual and end > _HEAD_BYTES:
            length, kind, flags = _unpack_from(plain)
            if length + _HEAD_BYTES == end and not flags and ACCEPT < kind < KNOWN:
                return [(kind, plain[_HEAD_BYTES:])]
        if is_usual and (alike := _alike(plain)) is not None:
            return alike
        items: list[Item] = []
        try:
            while at < end:
                length, kind, flags = _unpack_from(plain, at)
                start = at + _HEAD_BYTES
                at = start + length
                if is_usual and not flags and ACCEPT < kind < KNOWN:
                    items.append((kind, plain[start:at]))
                elif at <= end:
                    self._unusual(kind, flags, plain[start:at], items)
                    is_usual = self._pending is None and not self._is_narrow
        except struct.error:
            at = -1  # less than a header was left
        if at != end:
            raise BadRecord("a record's items do not add up")
        return items

    def _unusual(self, kind: int, flags: int, body: bytes, items: list[Item]) -> None:
        if flags & ~MORE:
            raise BadRecord(f"an item with unknown flags {flags:#x}")
        if kind == ACCEPT or KNOWN <= kind < SKIPPED:
            raise BadRecord("ACCEPT came out of turn" if kind == ACCEPT else f"an item of the unknown kind {kind}")
        if kind not in CUT:
            if flags:
                raise BadRecord(f"an item of kind {kind} cannot be cut into fragments")
            if kind in LIMITED and len(body) > self._message_bytes:
                raise MessageTooLarge(f"a message of more than {self._message_bytes} bytes")
            if KNOWN > kind != PADDING or SHOWN <= kind <= SIGNED_TOGETHER:
                items.append((kind, body))
            return
        if self._pending is None:
            self._pending = kind
        elif self._pending != kind:
            raise BadRecord("fragments of two messages are mixed")
        if len(self._parts) + len(body) > self._message_bytes:
            raise MessageTooLarge(f"a message of more than {self._message_bytes} bytes")
        if flags and not body:
            raise BadRecord("an empty fragment that announces another")
        self._parts += body
        if not flags:
            items.append((kind, bytes(self._parts)))
            self._pending, self._parts = None, bytearray()


def _alike(plain: bytes) -> list[Item] | None:
    """Return the items of a record whose items are alike in kind and size, in few calls; None: they are not."""
    if len(plain) < 2 * _HEAD_BYTES:
        return None
    head = plain[:_HEAD_BYTES]
    size, kind, flags = _unpack_from(head)
    count, rest = divmod(len(plain), _HEAD_BYTES + size)
    if rest or flags or count < ALIKE_LEAST or size == _HEAD_BYTES or kind not in _PLAIN:
        return None
    # Making the layout is far cheaper than a loop.
    pieces = struct.Struct(f"{_HEAD_BYTES}s{size}s" * count).unpack(plain)
    # Heads and bodies differ in length, so what equals the head is a head.
    if pieces.count(head) != count:
        return None
    return [*zip(repeat(kind), pieces[1::2])]


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
