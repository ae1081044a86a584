"""Ed25519 identities: an agent's id is a hash of its public key, so an id proves its key."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from converge.errors import BadSignature, InvalidKey

_ID_TAG = b"converge/id/v1\0"
_ROTATE_TAG = b"converge/rotate/v1\0"
KEY_BYTES, SIGNATURE_BYTES = 32, 64
ROTATIONS = 8
"""The latest rotations, of which an identity tells: whoever knows an older key must be told of the new one by hand."""

SHOWN = 16
"""How many characters of an id logs, errors and tables show: enough to find it, the same everywhere."""

_AGENT_ID = re.compile(r"cv1[a-z2-7]{52}")
_P = 2**255 - 19
_SIGN = 1 << 255

# The y coordinates of the eight points whose order divides the cofactor (0, 1, -1 and the two of order 8); with either
# sign bit. `cryptography` accepts them, and one fixed signature then verifies every message:
# https://eprint.iacr.org/2020/1244, table 6a.
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset((0, 1, _P - 1, _Y8, _P - _Y8))


KEYS = 4_096
"""Keys whose ids, and checks, are remembered: who sends one signed message sends more."""


def check_public_key(key: bytes) -> bytes:
    """Return the key if it is one that may be verified with: 32 bytes, canonical, not of small order.

    Raises:
        InvalidKey: Which of these it is not.
    """
    if len(key) != 32:
        raise InvalidKey(f"a public key has 32 bytes, this one has {len(key)}")
    y = int.from_bytes(key, "little") & ~_SIGN
    if y >= _P:
        raise InvalidKey("the public key is not in canonical form (y is not below p)")
    if y in _SMALL_ORDER:
        raise InvalidKey("the public key is a point of small order: anybody could sign for it")
    return key


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether the signature over `data` is the key's.

    Raises:
        InvalidKey: The key is not acceptable.
    """
    try:
        _verifier(public_key).verify(signature, data)
    except InvalidSignature:
        return False
    except ValueError as error:
        raise InvalidKey(f"the public key is not a point of the curve: {error}") from error
    return True


@lru_cache(KEYS)
def _verifier(public_key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(check_public_key(public_key))


@lru_cache(KEYS)
def agent_id(public_key: bytes) -> str:
    """Return the id of the agent that has this key: `cv1` and 52 characters of base32."""
    digest = hashlib.sha256(_ID_TAG + public_key).digest()
    return "cv1" + base64.b32encode(digest).decode().rstrip("=").lower()


def node_name(public_key: bytes) -> str:
    """Return what logs and errors call the node that has this key: the beginning of its id, as tables show it."""
    return agent_id(public_key)[:SHOWN]


def is_agent_id(text: object) -> bool:
    """Return whether the text has the form of an agent's id."""
    return isinstance(text, str) and _AGENT_ID.fullmatch(text) is not None


def predecessors(public_key: bytes, succession: Sequence[str]) -> list[str]:
    """Return the ids that the key has succeeded, the latest first: each link is signed by the key that it names.

    Raises:
        BadSignature, InvalidKey: A link is not well formed, does not verify, or there are too many.
    """
    if len(succession) > ROTATIONS:
        raise BadSignature(f"a key tells of at most {ROTATIONS} rotations, this one of {len(succession)}")
    found, newer = [], public_key
    for link in succession:
        try:
            raw = bytes.fromhex(link)
        except ValueError:
            raise BadSignature("a link of the key's succession is not hex") from None
        if len(raw) != KEY_BYTES + SIGNATURE_BYTES:
            raise BadSignature(
                f"a link of a succession has {KEY_BYTES + SIGNATURE_BYTES} bytes, this one has {len(raw)}"
            )
        older = raw[:KEY_BYTES]
        if not verify(older, raw[KEY_BYTES:], _ROTATE_TAG + newer):
            raise BadSignature(f"the succession is not signed by the older key {agent_id(older)[:12]}...")
        found.append(agent_id(older))
        newer = older
    return found


class Identity:
    """A private key with its public key and id. It shows neither the key nor its seed, in `repr` or otherwise.

    Attributes:
        succession: Hex, the latest first: the keys that this one has succeeded, each with its signature over the next.
    """

    __slots__ = ("_key", "id", "public_key", "succession")

    def __init__(self, seed: bytes, succession: Sequence[str] = ()) -> None:
        """Make the identity of a 32-byte seed.

        Raises:
            InvalidKey: The seed has another length.
            BadSignature: The succession is not the key's.
        """
        if len(seed) != 32:
            raise InvalidKey(f"an Ed25519 seed has 32 bytes, this one has {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.id = agent_id(self.public_key)
        self.succession = tuple(succession)
        predecessors(self.public_key, self.succession)

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes]) -> Identity:
        """Draw a new one; `entropy(32)` gives random bytes fit for keys."""
        return cls(entropy(32))

    def succeeded_by(self, seed: bytes) -> Identity:
        """Return the identity of another seed, signed by this one as its successor: whoever pinned this trusts that."""
        new = Identity(seed)
        link = self.public_key + self.sign(_ROTATE_TAG + new.public_key)
        return Identity(seed, (link.hex(), *self.succession)[:ROTATIONS])

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature over `data`, which begins with a domain tag."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"Identity({self.id})"
