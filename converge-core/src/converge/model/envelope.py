"""Messages and receipts as bytes: a header of names, then the payload untouched; and the signed form of a message,
which proves its sender by itself.

body = length of the header u16 || header (JSON, at most 4 KiB) || payload (JSON)
signed body = body || signature (64 bytes) over tag || network || u32 length, header || u32 length, payload
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from converge.codec import decode, decoder, encode
from converge.errors import BadSignature, MessageTooLarge, TornRecord
from converge.model.identity import Identity, agent_id, verify

HEADER_BYTES = 4_096
MESSAGE_BYTES = 1_048_576
"""The longest body, header and signature included."""
SIGNATURE_BYTES = 64

PAYLOAD_BYTES = MESSAGE_BYTES - HEADER_BYTES - SIGNATURE_BYTES - 2
"""The longest payload of a message, and answer of a handler, as JSON: with any header, signed or not, it can be sent.
So the limit is the same in one process as across two.
"""

MAIL_BYTES = 768_000
"""The longest payload of a message for a mailbox: it is stored, signed and in base64, in the inputs of a task."""

_TAG = b"converge/msg/v1\0"

HANDED, ACCEPTED, HANDLED, STORED = "handed", "accepted", "handled", "stored"
"""How far a message got, or is to get before its sender is told; HANDED wants no receipt."""
FULL, UNKNOWN, REFUSED, RAISED, EARLY, DROPPED = "full", "unknown", "refused", "raised", "early", "dropped"
CYCLE = "cycle"
"""Why it got no further. EARLY: one before it has not come, send it again; DROPPED: its process stopped before a
handler had it. CYCLE: the question would wait for itself.
"""

STATUSES = frozenset((ACCEPTED, HANDLED, FULL, UNKNOWN, REFUSED, RAISED, EARLY, DROPPED, CYCLE))
"""What a receipt may say of a message."""

PING = "ping"
"""Wanted by a message for no handler: the receipt, in which the recipient's node says whether it would take another."""

CHAINS, PINGS, TOGETHER = 1, 2, 4
"""Features of a channel, of which both ends know: the chains of questions; messages that only ask for a receipt;
messages that share a signature.
"""

NAME_CHARACTERS = 64
"""The longest of all names in a header: what a receiver keeps of a message stays small."""

Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Moment = Annotated[int, msgspec.Meta(ge=0, le=4_102_444_800_000_000)]  # to the year 2100

_HeaderT = TypeVar("_HeaderT")


class MessageHeader(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The header of a message.

    Attributes:
        id: 16 random bytes in hex.
        sender, to: Agent ids; `to` is empty where it goes to all agents of a node that have the topic, or are in the
            pool.
        lease: A name of the sender's process that its restart does not have: with it sequences begin anew.
        sequence: Rises with each message of the process, so with each of one sender to one recipient.
        after: The sequence of the last message before this one, of the pair, that was under way still: it must have
            been taken; 0: none was.
        sent_at: Store time at the sender, microseconds. Only for signed messages does it decide anything.
        wants: `handed`, `accepted`, or `handled`: then the handler's answer comes in a second receipt. `ping`: no
            handler gets it.
        task: A task's id, or empty.
        topic, pool: Whom it is for, where `to` is empty.
        key: Hex of the sender's public key, where the message is signed.
        mail: It is no message, but tells that one was stored in the mailbox of `to`.
        chain: Of a question: the message with which its chain began, and the agents that wait in it. Only where both
            nodes know it (`CHAINS`).
    """

    id: Name
    sender: Name
    to: Name
    lease: Name
    sequence: Count
    sent_at: Moment
    after: Count = 0
    wants: Name = ACCEPTED
    task: Name = ""
    topic: Name = ""
    pool: Name = ""
    key: Name = ""
    mail: bool = False
    chain: tuple[Name, ...] = ()


class ReceiptHeader(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How far the message of that id got; `text` says why not. The answer of a handler is the receipt's payload.

    Attributes:
        taken, refused: Of a message to all agents of a node: how many have it in their inbox, and how many should and
            have not.
    """

    id: Name
    status: Name
    text: str = ""
    taken: Count = 0
    refused: Count = 0


_DECODERS: dict[Any, Callable[[bytes], Any]] = {one: decoder(one) for one in (MessageHeader, ReceiptHeader)}

TEXT_BYTES = 3_000
"""Of a reason, as it is encoded: what is over is cut out of its middle."""


def shortened(text: str) -> str:
    """Return a reason in the form that is sent: whole, or its beginning and its end."""
    if len(text) * 6 <= TEXT_BYTES or len(encode(text)) <= TEXT_BYTES:
        return text
    most = min(len(text) // 2, TEXT_BYTES // 2)
    while len(encode(text[:most])) + len(encode(text[-most:])) > TEXT_BYTES - 10:
        most = most * 9 // 10
    return f"{text[:most]} ... {text[-most:]}"


def pack(header: MessageHeader | ReceiptHeader, payload: bytes = b"") -> bytes:
    """Return the body; the reason of a receipt is shortened where it must be.

    Raises:
        MessageTooLarge: It is over a limit.
    """
    if type(header) is ReceiptHeader and header.text:
        header = msgspec.structs.replace(header, text=shortened(header.text))
    head = encode(header)
    length = len(head)
    if length > HEADER_BYTES or length + len(payload) + 2 > MESSAGE_BYTES:
        raise MessageTooLarge(f"a message of {length + len(payload) + 2:,} bytes; the limit is {MESSAGE_BYTES:,}")
    return length.to_bytes(2, "big") + head + payload


def unpack(body: bytes, type_: type[_HeaderT]) -> tuple[_HeaderT, bytes]:
    """Return header and payload.

    Raises:
        TornRecord: It is not such a body.
    """
    length = int.from_bytes(body[:2], "big")
    if len(body) < 2 + length or length > HEADER_BYTES:
        raise TornRecord("message", "its header's length is wrong")
    head, payload = body[2 : 2 + length], body[2 + length :]
    try:
        header: _HeaderT = _DECODERS[type_](head)  # neither has a version
        return header, payload
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return decode(head, type_, "message header"), payload


def sign(identity: Identity, network_tag: bytes, header: MessageHeader, payload: bytes) -> bytes:
    """Return the signed body; the header names the identity's key.

    Raises:
        MessageTooLarge: It is over a limit.
    """
    body = pack(header, payload)
    if len(body) + SIGNATURE_BYTES > MESSAGE_BYTES:
        raise MessageTooLarge(
            f"a signed message of {len(body) + SIGNATURE_BYTES:,} bytes; the limit is {MESSAGE_BYTES:,}"
        )
    return body + identity.sign(_covered(network_tag, body))


def open_signed(signed: bytes, network_tag: bytes) -> tuple[MessageHeader, bytes]:
    """Verify a signed body, as received; return header and payload.

    The key is in the header, and the sender's id proves the key, so no directory is needed: this is what makes a stored
    message verifiable when its sender has long gone.

    Raises:
        BadSignature, InvalidKey: It is not the sender's, or not for this network.
        TornRecord: It is not such a body.
    """
    if not SIGNATURE_BYTES + 2 < len(signed) <= MESSAGE_BYTES:
        raise TornRecord("signed message", f"it has {len(signed):,} bytes")
    body, signature = signed[:-SIGNATURE_BYTES], signed[-SIGNATURE_BYTES:]
    # The key stands inside what it signs; nothing else of it is believed yet.
    header, payload = unpack(body, MessageHeader)
    key = key_of(header)
    if not verify(key, signature, _covered(network_tag, body)):
        raise BadSignature(f"a message is not signed by {header.sender[:12]}... for this network")
    return header, payload


def key_of(header: MessageHeader) -> bytes:
    """Return the key that a signed message names.

    Raises:
        BadSignature: It is not the sender's.
    """
    try:
        key = bytes.fromhex(header.key)
    except ValueError:
        raise BadSignature("the key of a signed message is not hex") from None
    if agent_id(key) != header.sender:
        raise BadSignature(f"the id {header.sender[:12]}... is not that of the message's key")
    return key


def _covered(network_tag: bytes, body: bytes) -> bytes:
    length = int.from_bytes(body[:2], "big")
    header, payload = body[2 : 2 + length], body[2 + length :]
    return b"".join(
        (_TAG, network_tag, len(header).to_bytes(4, "big"), header, len(payload).to_bytes(4, "big"), payload)
    )
