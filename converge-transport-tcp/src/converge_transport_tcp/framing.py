"""Frames to bytes and back: a length of four bytes, big-endian, then the frame.

Four bytes although two would hold the limit: what speaks something else (HTTP, TLS, random bytes) almost surely
announces too much in its first four bytes, and ends at once instead of keeping us waiting for a frame that never comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct

from converge.errors import BadRecord, InvalidValue, MessageTooLarge

HEADER_BYTES = 4
# What is written at once: large enough that the system call costs little, small enough that a slow peer holds little.
CHUNK_BYTES = 131_072

_HEADER = Struct(">I")


def check(frames: Sequence[bytes], limit: int) -> None:
    """Refuse a call with a frame that is empty or over the limit, before any of its bytes is sent (C-6)."""
    sizes = [len(frame) for frame in frames]
    if not sizes:
        return
    if max(sizes) > limit:
        raise MessageTooLarge(f"a frame has {max(sizes)} bytes, the limit is {limit}; nothing was sent, split it")
    if not min(sizes):
        raise InvalidValue("frame", b"", f"1 to {limit} bytes")


def encode_one(frame: bytes) -> bytes:
    """Return a frame's bytes."""
    return _HEADER.pack(len(frame)) + frame


def encode(frames: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the frames' bytes in chunks of whole frames, each chunk only a little longer than `CHUNK_BYTES`."""
    pack = _HEADER.pack
    parts: list[bytes] = []
    size = 0
    for frame in frames:
        parts.append(pack(len(frame)))
        parts.append(frame)
        size += len(frame)
        if size >= CHUNK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


class Decoder:
    """Turns the bytes of a stream into frames, however they were cut; holds at most one unfinished frame.

    Not attrs: it is the inner loop of receiving.
    """

    __slots__ = ("_held", "_limit", "_needed", "frames")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._needed = HEADER_BYTES
        self.frames: int = 0
        """How many frames have been given; tells whether the unfinished one is still the same."""

    @property
    def is_partial(self) -> bool:
        """A frame has begun and is not whole."""
        return bool(self._held)

    def feed(self, data: bytes, into: list[bytes]) -> None:
        """Append the frames that are now whole.

        Raises:
            BadRecord: The next frame is announced as empty or longer than the limit; the ones before it have been
                given, no memory was taken for it.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return
            data = bytes(self._held)
            self._held.clear()
        self._split(data, into)

    def _split(self, data: bytes, into: list[bytes]) -> None:
        unpack, limit, before = _HEADER.unpack_from, self._limit, len(into)
        start, end, needed = 0, len(data), HEADER_BYTES
        while end - start >= HEADER_BYTES:
            (size,) = unpack(data, start)
            if not 0 < size <= limit:
                self.frames += len(into) - before
                raise BadRecord(
                    f"a frame of {size} bytes was announced, 1 to {limit} are allowed; the peer is damaged or speaks "
                    "something else"
                )
            stop = start + HEADER_BYTES + size
            if stop > end:
                needed = HEADER_BYTES + size
                break
            into.append(data[start + HEADER_BYTES : stop])
            start = stop
        self.frames += len(into) - before
        self._needed = needed
        if start < end:
            self._held += data[start:]
