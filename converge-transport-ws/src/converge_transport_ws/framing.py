"""Frames in WebSocket messages: a binary message holds one frame or many, each after its length of two bytes,
big-endian.

A message costs the library some twenty microseconds; so the frames of one call share messages. A length cannot be over
the limit: two bytes hold no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct

from converge.errors import BadRecord, InvalidValue, MessageTooLarge

MESSAGE_BYTES = 131_072
"""The longest WebSocket message: room for the longest frame, and for as many short ones."""

_LENGTH = Struct(">H")
LENGTH_BYTES = _LENGTH.size


def pack(frames: Sequence[bytes], limit: int) -> Iterator[bytes]:
    """Yield the messages for the frames; nothing before all are checked (C-6)."""
    sizes = [len(frame) for frame in frames]
    if sizes and max(sizes) > limit:
        raise MessageTooLarge(f"a frame has {max(sizes)} bytes, the limit is {limit}; nothing was sent, split it")
    if sizes and not min(sizes):
        raise InvalidValue("frame", b"", f"1 to {limit} bytes")
    return _messages(frames)


def unpack(message: bytes) -> list[bytes]:
    """Return the frames of a message.

    Raises:
        BadRecord: Its lengths do not add up, or it holds an empty frame or none.
    """
    frames: list[bytes] = []
    start, end = 0, len(message)
    while end - start > LENGTH_BYTES:
        (size,) = _LENGTH.unpack_from(message, start)
        start += LENGTH_BYTES
        if not size:
            break
        frames.append(message[start : start + size])
        start += size
    if start != end or not frames:
        raise BadRecord("a message's frames do not add up; the peer is damaged, or is not a node")
    return frames


def _messages(frames: Sequence[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for frame in frames:
        if size + LENGTH_BYTES + len(frame) > MESSAGE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(_LENGTH.pack(len(frame)))
        parts.append(frame)
        size += LENGTH_BYTES + len(frame)
    if parts:
        yield b"".join(parts)
