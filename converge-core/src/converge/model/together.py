"""One signature for several messages of a sender: each carries its way to the root of a tree of them (RFC 6962), and
verifies alone.

member = body || way (32 bytes a step) || index u8 || count u8 || signature (64 bytes)
signed: tag || network || count u8 || root; the leaves are the bodies, as `envelope.pack` makes them
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

from converge.errors import BadSignature, TornRecord
from converge.model.envelope import MessageHeader, key_of, unpack
from converge.model.identity import SIGNATURE_BYTES, Identity, verify

MOST = 64
"""Messages under one signature at most."""

TREES = 64
"""Trees of which a receiver remembers what it has verified, for the other members: about 10 KB each."""

_TAG = b"converge/batch/v1\0"
_HASH_BYTES = 32
_TAIL_BYTES = 2 + SIGNATURE_BYTES

_Tree = tuple[bytes, bytes]  # the key, and count with signature


def sign_together(identity: Identity, network_tag: bytes, bodies: Sequence[bytes]) -> list[bytes]:
    """Return the members of bodies, 1 to `MOST`, whose headers name the identity's key."""
    root, ways = _grown([_leaf(body) for body in bodies])
    count = bytes((len(bodies),))
    tail = count + identity.sign(_TAG + network_tag + count + root)
    return [
        b"".join((body, *way, bytes((index,)), tail))
        for index, (body, way) in enumerate(zip(bodies, ways, strict=True))
    ]


class Together:
    """Verifies members; what one has proven of its tree, the others need not prove again.

    Attributes:
        verified: How many signatures were verified.
    """

    def __init__(self, network_tag: bytes) -> None:
        self._network_tag = network_tag
        self._known: OrderedDict[_Tree, set[bytes]] = OrderedDict()
        self.verified = 0

    def open(self, member: bytes) -> tuple[MessageHeader, bytes]:
        """Verify a member, as received; return header and payload.

        Raises:
            BadSignature, InvalidKey: It is not the sender's, or not for this network.
            TornRecord: It is no member.
        """
        end = len(member) - _TAIL_BYTES
        if end < 2 or not member[end] < member[end + 1] <= MOST:
            raise TornRecord("signed message", "it has no place among those that were signed with it")
        turns = _turns(member[end], member[end + 1])
        start = end - _HASH_BYTES * len(turns)
        if start < 2:
            raise TornRecord("signed message", f"it has {len(member):,} bytes")
        body = member[:start]
        header, payload = unpack(body, MessageHeader)
        self._check(key_of(header), member[end + 1 :], body, member[start:end], turns, header.sender)
        return header, payload

    def _check(self, key: bytes, tail: bytes, body: bytes, way: bytes, turns: tuple[bool, ...], sender: str) -> None:
        """Go from the leaf towards the root until something is known. Whoever finds two nodes with one hash could
        deceive this, or the tree itself.
        """
        known = self._known.get((key, tail), set())
        node = _leaf(body)
        seen = [node]
        if node in known:
            return
        for step, is_right in enumerate(turns):
            beside = way[step * _HASH_BYTES : (step + 1) * _HASH_BYTES]
            node = _node(beside, node) if is_right else _node(node, beside)
            seen += (beside, node)
            if node in known:
                break
        else:
            self.verified += 1
            if not verify(key, tail[1:], _TAG + self._network_tag + tail[:1] + node):
                raise BadSignature(f"a message is not signed by {sender[:12]}... for this network")
        self._known.setdefault((key, tail), set()).update(seen)
        if len(self._known) > TREES:
            self._known.popitem(last=False)


def _leaf(body: bytes) -> bytes:
    return hashlib.sha256(b"\0" + body).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(count: int) -> int:
    """Return how many leaves are in the left half: the greatest power of two below their count."""
    return 1 << (count - 1).bit_length() - 1


def _grown(leaves: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """Return the root, and the way of each leaf: what is beside it and each node above, from below."""
    if len(leaves) == 1:
        return leaves[0], [()]
    at = _split(len(leaves))
    (left, left_ways), (right, right_ways) = _grown(leaves[:at]), _grown(leaves[at:])
    return _node(left, right), [*((*way, right) for way in left_ways), *((*way, left) for way in right_ways)]


@lru_cache(MOST * MOST)
def _turns(index: int, count: int) -> tuple[bool, ...]:
    """Return of each step of a leaf's way whether it comes from the right."""
    if count == 1:
        return ()
    at = _split(count)
    return (*_turns(index, at), False) if index < at else (*_turns(index - at, count - at), True)
