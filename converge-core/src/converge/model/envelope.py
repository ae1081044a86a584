"""Messages and receipts as bytes: a header of names, then the payload untouched.

body = length of the header u16 || header (JSON, at most 4 KiB) || payload (JSON)
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from converge.codec import decode, encode
from converge.errors import MessageTooLarge, TornRecord

HEADER_BYTES = 4_096
MESSAGE_BYTES = 1_048_576
"""The longest body, header included."""

ACCEPTED, HANDLED, FULL, UNKNOWN, REFUSED, RAISED = "accepted", "handled", "full", "unknown", "refused", "raised"

_HeaderT = TypeVar("_HeaderT")


class MessageHeader(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a message says of itself. `sequence` counts the messages of this sender, under this lease, to this recipient.

    Attributes:
        id: 16 random bytes in hex.
        sender, to: Agent ids.
        lease: Of the sender's process, or another name that its restart does not have: with it a sequence begins anew.
        sequence: From 1.
        sent_at: The sender's clock, microseconds; for people.
        wants: `accepted`, or `handled`: then the handler's answer comes in a second receipt.
        task: A task's id, or empty.
    """

    id: str
    sender: str
    to: str
    lease: str
    sequence: int
    sent_at: int
    wants: str = ACCEPTED
    task: str = ""


class ReceiptHeader(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How far the message of that id got; `text` says why not. The answer of a handler is the receipt's payload."""

    id: str
    status: str
    text: str = ""


def pack(header: MessageHeader | ReceiptHeader, payload: bytes = b"") -> bytes:
    """Return the body.

    Raises:
        MessageTooLarge: It is over a limit.
    """
    head = encode(header)
    if len(head) > HEADER_BYTES or len(head) + len(payload) + 2 > MESSAGE_BYTES:
        raise MessageTooLarge(f"a message of {len(head) + len(payload):,} bytes; the limit is {MESSAGE_BYTES:,}")
    return len(head).to_bytes(2, "big") + head + payload


def unpack(body: bytes, type_: type[_HeaderT]) -> tuple[_HeaderT, bytes]:
    """Return header and payload.

    Raises:
        TornRecord: It is not such a body.
    """
    length = int.from_bytes(body[:2], "big")
    if len(body) < 2 + length or length > HEADER_BYTES:
        raise TornRecord("message", "its header's length is wrong")
    return decode(body[2 : 2 + length], type_, "message header"), body[2 + length :]
