"""The secure handshake: Noise XX; each node key signs the transcript, network, version, features and TLS certificate.

Sans-I/O: a side is fed the peer's hello and answers its own. What goes wrong is one typed error, and one failure
closes. Integers are big-endian.

    hello1 (48)       P || e                      P = "cvh1" || suite u8 || 3 zero bytes || net[0:8]
    hello2 (244 + n)  e || enc(s) || enc(payload)
    hello3 (212 + n)  enc(s) || enc(payload)
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import attrs
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from converge.errors import (
    HandshakeFailed,
    HandshakeRefused,
    InvalidKey,
    NetworkMismatch,
    PeerMismatch,
    TlsMismatch,
    VersionMismatch,
)
from converge.machines.noise import DH_BYTES, SUITES, TAG_BYTES, CipherState, HandshakeState
from converge.machines.records import MESSAGE_BYTES, Opener, Sealer
from converge.model.identity import Identity, node_name, verify

MAGIC = b"cvh1"
REFUSAL_MAGIC = b"cvx1"
REFUSAL_BYTES = 6
PROLOGUE = b"converge/noise/v1\0"
SIGN_TAG = b"converge/hello/v1\0"
HELLO1_BYTES = 48
HELLO_BYTES = 512
"""No frame of the handshake is longer."""
EXTENSIONS_BYTES = 256
CRITICAL = 0x8000
"""An unknown extension whose type has this bit refuses the peer."""
LAYOUT = 1
TLS_TERMINATED = 1
VERSION = 1
"""The version of the channel that this release speaks."""

REFUSED_NETWORK, REFUSED_SUITE, REFUSED_BUSY = 1, 2, 3
_REFUSALS = {
    REFUSED_NETWORK: "it belongs to another network",
    REFUSED_SUITE: "it does not know the suite",
    REFUSED_BUSY: "it is busy",
}

# layout, flags, lowest and highest version, features, largest message, TLS hash, node key, length of extensions
_HEAD = struct.Struct(">BBHHQI32s32sH")
_SIGNATURE_BYTES = 64
_FIXED = _HEAD.size + _SIGNATURE_BYTES
_EXTENSION = struct.Struct(">HH")
_ACCEPT = struct.Struct(">HQ")


@attrs.frozen(kw_only=True)
class Terms:
    """What a side brings to a handshake.

    Attributes:
        network: The 32 bytes of `network_tag`.
        identity: The node's.
        lowest, highest: Versions of the channel that it speaks.
        features: A set of bits; both sides' are ANDed.
        message_bytes: The largest message that it takes.
        tls_hash: SHA-256 of the server's certificate as this side saw it, or zeros.
        is_tls_terminated: TLS ends before this process, by the operator's decision.
        extensions: Type and value, at most 256 bytes in all.
        known: The extension types that this side understands.
    """

    network: bytes
    identity: Identity
    lowest: int = VERSION
    highest: int = VERSION
    features: int = 0
    message_bytes: int = MESSAGE_BYTES
    tls_hash: bytes = bytes(32)
    is_tls_terminated: bool = False
    extensions: tuple[tuple[int, bytes], ...] = ()
    known: frozenset[int] = frozenset()


@attrs.frozen(kw_only=True)
class Agreed:
    """The result of a handshake: the peer's verified node key, the terms that both keep to, and the two ciphers.

    Attributes:
        peer: The node key; the peer has proven that it holds the private one.
        message_bytes: The largest message that both take.
        extensions: The peer's, in its order, known or not.
    """

    peer: bytes
    version: int
    features: int
    message_bytes: int
    extensions: tuple[tuple[int, bytes], ...]
    is_initiator: bool
    sending: CipherState = attrs.field(repr=False)
    receiving: CipherState = attrs.field(repr=False)

    def accept(self) -> bytes:
        """Return the body of ACCEPT, the responder's first record: version and features."""
        return _ACCEPT.pack(self.version, self.features)

    def sealer(self) -> Sealer:
        """Return what seals this side's records; call it once. The responder's first begins with `accept()`."""
        return Sealer(self.sending, self.message_bytes)

    def opener(self) -> Opener:
        """Return what opens the peer's records; call it once. The initiator's demands the ACCEPT of its own terms."""
        return Opener(self.receiving, self.message_bytes, accept=self.accept() if self.is_initiator else None)


@attrs.frozen(kw_only=True)
class _Payload:
    flags: int
    lowest: int
    highest: int
    features: int
    message_bytes: int
    tls_hash: bytes
    node_key: bytes
    extensions: tuple[tuple[int, bytes], ...]


class Initiator:
    """The side that dials: `hello1()`, then `read_hello2(bytes)` answers hello3; `agreed` is then set."""

    def __init__(
        self, terms: Terms, entropy: Callable[[int], bytes], *, suite: int = 1, expected: bytes | None = None
    ) -> None:
        """`expected`: the node key that must answer; None: any node of the network."""
        self._terms, self._expected = terms, expected
        prefix = MAGIC + bytes((suite, 0, 0, 0)) + terms.network[:8]
        self._noise: HandshakeState | None = _noise(suite, prefix, terms, entropy, is_initiator=True)
        self._hello1 = prefix + self._noise.write_e()
        self.agreed: Agreed | None = None

    def hello1(self) -> bytes:
        """Return the first frame."""
        return self._hello1

    def read_hello2(self, frame: bytes) -> bytes:
        """Check the responder's hello; return hello3. Nothing is sent to a wrong peer.

        Raises:
            HandshakeRefused: The peer refused in clear text: a hint.
            HandshakeFailed, PeerMismatch, TlsMismatch, VersionMismatch: It is not acceptable.
        """
        # One failure closes: the handshake is used up by the first answer, whatever it is. A genuine hello that follows
        # a forged one finds none.
        noise, self._noise = self._noise, None
        if noise is None:
            raise HandshakeFailed("a hello came out of turn")
        if len(frame) == REFUSAL_BYTES and frame[:4] == REFUSAL_MAGIC:
            raise _refused(frame)
        enc_s = 2 * DH_BYTES + TAG_BYTES
        _check_size(frame, enc_s + _FIXED + TAG_BYTES)
        noise.read_2(frame[:enc_s])
        payload = _read(noise, frame[enc_s:], b"R")
        _check_peer(payload, self._terms, self._expected)
        version = _version(payload, self._terms)
        hello3 = noise.begin_3()
        hello3 += noise.write_payload(_write(noise, self._terms, b"I"))
        self.agreed = _agree(payload, self._terms, version, noise, is_initiator=True)
        return hello3


class Responder:
    """The side that listens: `read_hello1(bytes)` answers hello2, `read_hello3(bytes)` sets `agreed`."""

    def __init__(self, terms: Terms, entropy: Callable[[int], bytes]) -> None:
        self._terms, self._entropy = terms, entropy
        self._noise: HandshakeState | None = None
        self._is_begun = False
        self.agreed: Agreed | None = None

    def read_hello1(self, frame: bytes) -> bytes:
        """Check the initiator's first frame, cheaply; return hello2.

        Raises:
            NetworkMismatch, VersionMismatch: It is for another network, or of an unknown suite: `refusal` says so in
                clear text.
            HandshakeFailed: It is not a first frame.
        """
        if self._is_begun:
            raise HandshakeFailed("a hello came out of turn")
        self._is_begun = True
        self.check_hello1(frame)
        noise = _noise(frame[4], frame[:16], self._terms, self._entropy, is_initiator=False)
        noise.read_e(frame[16:])
        hello2 = noise.begin_2()
        hello2 += noise.write_payload(_write(noise, self._terms, b"R"))
        self._noise = noise
        return hello2

    def check_hello1(self, frame: bytes) -> None:
        """Check the initiator's first frame without any key: a few comparisons, however many of them strangers send.

        Raises:
            NetworkMismatch, VersionMismatch, HandshakeFailed: As `read_hello1`.
        """
        if len(frame) != HELLO1_BYTES or frame[:4] != MAGIC or frame[5:8] != bytes(3):
            raise HandshakeFailed("the peer does not begin as a node does")
        if frame[8:16] != self._terms.network[:8]:
            raise NetworkMismatch("the peer belongs to another network")
        if frame[4] not in SUITES:
            raise VersionMismatch(f"the peer asks for suite {frame[4]}, which is not known")

    def read_hello3(self, frame: bytes) -> Agreed:
        """Check the initiator's hello; return what is agreed.

        Raises:
            HandshakeFailed, PeerMismatch, TlsMismatch, VersionMismatch: It is not acceptable.
        """
        noise, self._noise = self._noise, None  # one failure closes, as above
        if noise is None:
            raise HandshakeFailed("a hello came out of turn")
        enc_s = DH_BYTES + TAG_BYTES
        _check_size(frame, enc_s + _FIXED + TAG_BYTES)
        noise.read_3(frame[:enc_s])
        payload = _read(noise, frame[enc_s:], b"I")
        _check_peer(payload, self._terms, None)
        self.agreed = _agree(payload, self._terms, _version(payload, self._terms), noise, is_initiator=False)
        return self.agreed


def refusal(reason: int) -> bytes:
    """Return the clear-text refusal: for logs and back-off of an honest peer only, since anybody can write one."""
    return REFUSAL_MAGIC + reason.to_bytes(2, "big")


def _refused(frame: bytes) -> HandshakeRefused:
    code = int.from_bytes(frame[4:6], "big")
    return HandshakeRefused(
        f"the peer refused the handshake: {_REFUSALS.get(code, f'reason {code}')} (said in clear text, so it may be "
        "forged)"
    )


def _noise(
    suite: int, prefix: bytes, terms: Terms, entropy: Callable[[int], bytes], *, is_initiator: bool
) -> HandshakeState:
    # The static key is drawn here and stored nowhere: the signed transcript ties it to the node key, so there is no
    # delegation to steal.
    static = X25519PrivateKey.from_private_bytes(entropy(32))
    ephemeral = X25519PrivateKey.from_private_bytes(entropy(32))
    return HandshakeState(
        suite, is_initiator=is_initiator, prologue=PROLOGUE + terms.network + prefix, static=static, ephemeral=ephemeral
    )


def _check_size(frame: bytes, least: int) -> None:
    if not least <= len(frame) <= min(HELLO_BYTES, least + EXTENSIONS_BYTES):
        raise HandshakeFailed(f"a hello has {len(frame)} bytes; {least} to {least + EXTENSIONS_BYTES} are possible")


def _write(noise: HandshakeState, terms: Terms, role: bytes) -> bytes:
    extensions = b"".join(_EXTENSION.pack(kind, len(value)) + value for kind, value in terms.extensions)
    if len(extensions) > EXTENSIONS_BYTES:
        raise HandshakeFailed(f"the extensions have {len(extensions)} bytes, the limit is {EXTENSIONS_BYTES}")
    head = _HEAD.pack(
        LAYOUT,
        TLS_TERMINATED if terms.is_tls_terminated else 0,
        terms.lowest,
        terms.highest,
        terms.features,
        terms.message_bytes,
        terms.tls_hash,
        terms.identity.public_key,
        len(extensions),
    )
    body = head + extensions
    return body + terms.identity.sign(SIGN_TAG + role + noise.h + noise.s_public + body)


def _read(noise: HandshakeState, sealed: bytes, role: bytes) -> _Payload:
    """Decrypt a payload and verify its signature over the transcript up to it; nothing of it is used before."""
    h = noise.h
    plain = noise.read_payload(sealed)
    body, signature = plain[:-_SIGNATURE_BYTES], plain[-_SIGNATURE_BYTES:]
    layout, flags, lowest, highest, features, message_bytes, tls_hash, node_key, length = _HEAD.unpack_from(body)
    if layout != LAYOUT or flags & ~TLS_TERMINATED or length != len(body) - _HEAD.size:
        raise HandshakeFailed("the peer's hello has an unknown layout")
    try:
        is_signed = verify(node_key, signature, SIGN_TAG + role + h + noise.rs + body)
    except InvalidKey as error:
        raise HandshakeFailed(f"the peer's node key is not acceptable: {error}") from error
    if not is_signed:
        raise HandshakeFailed("the peer's hello is not signed by the node key that it names")
    return _Payload(
        flags=flags,
        lowest=lowest,
        highest=highest,
        features=features,
        message_bytes=message_bytes,
        tls_hash=tls_hash,
        node_key=node_key,
        extensions=_extensions(body[_HEAD.size :]),
    )


def _extensions(data: bytes) -> tuple[tuple[int, bytes], ...]:
    found, at = [], 0
    while at < len(data):
        if len(data) - at < _EXTENSION.size:
            raise HandshakeFailed("the peer's extensions do not add up")
        kind, length = _EXTENSION.unpack_from(data, at)
        at += _EXTENSION.size
        if len(data) - at < length:
            raise HandshakeFailed("the peer's extensions do not add up")
        found.append((kind, data[at : at + length]))
        at += length
    return tuple(found)


def _check_peer(payload: _Payload, terms: Terms, expected: bytes | None) -> None:
    if payload.node_key == terms.identity.public_key:
        raise PeerMismatch("the peer is this node itself")
    if expected is not None and payload.node_key != expected:
        raise PeerMismatch(
            f"another node answered: {node_name(payload.node_key)}..., expected {node_name(expected)}..."
        )
    if payload.tls_hash != terms.tls_hash and not (payload.flags & TLS_TERMINATED or terms.is_tls_terminated):
        raise TlsMismatch(
            "the two sides saw different TLS certificates, so something stands between them; if that is your reverse "
            "proxy, set tls_terminated at the node behind it"
        )


def _version(payload: _Payload, terms: Terms) -> int:
    version = min(payload.highest, terms.highest)
    if version < max(payload.lowest, terms.lowest):
        raise VersionMismatch(
            f"the peer speaks versions {payload.lowest} to {payload.highest}, this node {terms.lowest} to "
            f"{terms.highest}"
        )
    for kind, _ in payload.extensions:
        if kind & CRITICAL and kind not in terms.known:
            raise VersionMismatch(f"the peer needs extension {kind:#06x}, which is not known here")
    return version


def _agree(payload: _Payload, terms: Terms, version: int, noise: HandshakeState, *, is_initiator: bool) -> Agreed:
    sending, receiving = noise.split()
    return Agreed(
        peer=payload.node_key,
        version=version,
        features=payload.features & terms.features,
        message_bytes=min(payload.message_bytes, terms.message_bytes),
        extensions=payload.extensions,
        is_initiator=is_initiator,
        sending=sending,
        receiving=receiving,
    )
