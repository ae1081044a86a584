"""Noise_XX_25519 over AESGCM or ChaChaPoly with SHA-256, as published (https://noiseprotocol.org/noise.html, revision
34); nothing of Converge's own.

Bytes in, bytes out. Key pairs are given, so nothing here draws a random number.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from converge.errors import BadRecord, HandshakeFailed

DH_BYTES = 32
TAG_BYTES = 16
HASH_BYTES = 32
NONCE_GREATEST = 2**64 - 2
"""The last nonce that may be used; the one after it is for REKEY."""

SUITES = {1: b"Noise_XX_25519_AESGCM_SHA256", 2: b"Noise_XX_25519_ChaChaPoly_SHA256"}

_GCM_NONCE = struct.Struct(">4xQ").pack
_CHACHA_NONCE = struct.Struct("<4xQ").pack


class CipherState:
    """One direction: a key and the number of its next message."""

    __slots__ = ("_aead", "_decrypt", "_encrypt", "_make", "_nonce", "n")

    def __init__(self, suite: int, key: bytes) -> None:
        self._make: Callable[[bytes], AESGCM | ChaCha20Poly1305] = AESGCM if suite == 1 else ChaCha20Poly1305
        self._nonce = _GCM_NONCE if suite == 1 else _CHACHA_NONCE
        self.n = 0
        self._aead = self._make(key)
        self._encrypt, self._decrypt = self._aead.encrypt, self._aead.decrypt

    def encrypt(self, plaintext: bytes, ad: bytes | None = None) -> bytes:
        """Return the ciphertext with its tag, and advance to the next number."""
        n = self.n
        if n > NONCE_GREATEST:
            raise BadRecord("the cipher's nonces are used up; the connection must be made anew")
        self.n = n + 1
        return self._encrypt(self._nonce(n), plaintext, ad)

    def decrypt(self, ciphertext: bytes, ad: bytes | None = None) -> bytes:
        """Return the plaintext, and advance to the next number.

        Raises:
            BadRecord: The tag does not verify: it was altered, or is not the next one. The number stays.
        """
        n = self.n
        if n > NONCE_GREATEST:
            raise BadRecord("the cipher's nonces are used up; the connection must be made anew")
        try:
            plaintext = self._decrypt(self._nonce(n), ciphertext, ad)
        except (InvalidTag, ValueError) as error:
            raise BadRecord("a record is not authentic, or not the next one") from error
        self.n = n + 1
        return plaintext

    def rekey(self) -> None:
        """Rekey: the new key is the first 32 bytes of 32 zeros encrypted under nonce 2^64 - 1. The number goes on."""
        self._aead = self._make(self._encrypt(self._nonce(2**64 - 1), bytes(32), b"")[:32])
        self._encrypt, self._decrypt = self._aead.encrypt, self._aead.decrypt


class HandshakeState:
    """One side of an XX handshake: `-> e`, `<- e, ee, s, es`, `-> s, se`; each message carries a payload.

    Attributes:
        h: The handshake hash: the transcript so far.
        rs: The peer's static key, once it has arrived.
    """

    def __init__(
        self, suite: int, *, is_initiator: bool, prologue: bytes, static: X25519PrivateKey, ephemeral: X25519PrivateKey
    ) -> None:
        name = SUITES[suite]
        self._suite, self._is_initiator = suite, is_initiator
        self._s, self._e = static, ephemeral
        self.s_public = static.public_key().public_bytes_raw()
        self._e_public = ephemeral.public_key().public_bytes_raw()
        self.h = name.ljust(HASH_BYTES, b"\0") if len(name) <= HASH_BYTES else hashlib.sha256(name).digest()
        self._ck = self.h
        self._cipher: CipherState | None = None
        self.rs = b""
        self._re = b""
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        """Mix data into the transcript."""
        self.h = hashlib.sha256(self.h + data).digest()

    def _mix_key(self, secret: bytes) -> None:
        self._ck, key = _hkdf(self._ck, secret)
        self._cipher = CipherState(self._suite, key)

    def _encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = plaintext if self._cipher is None else self._cipher.encrypt(plaintext, self.h)
        self.mix_hash(ciphertext)
        return ciphertext

    def _decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        try:
            plaintext = ciphertext if self._cipher is None else self._cipher.decrypt(ciphertext, self.h)
        except BadRecord as error:
            raise HandshakeFailed("the peer's handshake is not authentic") from error
        self.mix_hash(ciphertext)
        return plaintext

    def write_e(self, payload: bytes = b"") -> bytes:
        """Write message 1: `e`, payload in clear text."""
        self.mix_hash(self._e_public)
        return self._e_public + self._encrypt_and_hash(payload)

    def read_e(self, message: bytes) -> bytes:
        """Read message 1; return its payload."""
        self._re = message[:DH_BYTES]
        self.mix_hash(self._re)
        return self._decrypt_and_hash(message[DH_BYTES:])

    def begin_2(self) -> bytes:
        """Write message 2 up to its payload: `e, ee, s, es`; `h` is then what a payload may sign."""
        self.mix_hash(self._e_public)
        self._mix_key(_dh(self._e, self._re))
        sealed = self._encrypt_and_hash(self.s_public)
        self._mix_key(_dh(self._s, self._re))
        return self._e_public + sealed

    def read_2(self, message: bytes) -> None:
        """Read message 2 up to its payload."""
        self._re = message[:DH_BYTES]
        self.mix_hash(self._re)
        self._mix_key(_dh(self._e, self._re))
        self.rs = self._decrypt_and_hash(message[DH_BYTES : 2 * DH_BYTES + TAG_BYTES])
        self._mix_key(_dh(self._e, self.rs))

    def begin_3(self) -> bytes:
        """Write message 3 up to its payload: `s, se`."""
        sealed = self._encrypt_and_hash(self.s_public)
        self._mix_key(_dh(self._s, self._re))
        return sealed

    def read_3(self, message: bytes) -> None:
        """Read message 3 up to its payload."""
        self.rs = self._decrypt_and_hash(message[: DH_BYTES + TAG_BYTES])
        self._mix_key(_dh(self._e, self.rs))

    def write_payload(self, payload: bytes) -> bytes:
        """Write the payload of message 2 or 3."""
        return self._encrypt_and_hash(payload)

    def read_payload(self, sealed: bytes) -> bytes:
        """Read the payload of message 2 or 3.

        Raises:
            HandshakeFailed: It is not authentic.
        """
        return self._decrypt_and_hash(sealed)

    def split(self) -> tuple[CipherState, CipherState]:
        """Return the ciphers for sending and receiving."""
        first, second = (CipherState(self._suite, key) for key in _hkdf(self._ck, b""))
        return (first, second) if self._is_initiator else (second, first)


def _dh(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the X25519 result; refuse points of small order: whoever sends one knows the result, all zeros."""
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise HandshakeFailed("the peer sent a key of small order, or none") from error
    if secret == bytes(DH_BYTES):  # `cryptography` raises by itself, but does not promise to
        raise HandshakeFailed("the peer sent a key of small order")
    return secret


def _hkdf(chaining_key: bytes, secret: bytes) -> tuple[bytes, bytes]:
    temporary = hmac.digest(chaining_key, secret, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")
