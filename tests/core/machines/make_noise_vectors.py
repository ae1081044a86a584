"""Make `fixtures/noise_vectors.json` with `noiseprotocol`, an implementation that is not ours.

    python tests/core/machines/make_noise_vectors.py > tests/core/machines/fixtures/noise_vectors.json

Every input is a hash of its name, so the file comes out the same each time.
`rekeyed` are messages after a REKEY of both directions, numbers going on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from typing import Any

from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]  # it ships no types

SUITES = ("Noise_XX_25519_AESGCM_SHA256", "Noise_XX_25519_ChaChaPoly_SHA256")
# Sizes of the prologue, of the three handshake payloads, of messages, and of messages after REKEY. Sender and receiver
# alternate.
SHAPES = (
    (0, (0, 0, 0), (0, 1, 16, 300), (0, 33, 7)),
    (66, (0, 180, 180), (1, 15, 17, 64, 4096), (1, 300)),
    (255, (48, 256, 1), (31, 32), (32, 0, 0, 5)),
)


def known(name: str, size: int) -> bytes:
    """Bytes that look random and are the same each time."""
    return hashlib.shake_256(name.encode()).digest(size)


def vector(suite: str, number: int) -> dict[str, Any]:
    """One handshake and what follows it, both sides by `noiseprotocol`."""
    prologue_size, handshake, messages, rekeyed = SHAPES[number]
    name = f"{suite} {number}"
    keys = {
        role: known(f"{name} {role}", 32) for role in ("init_static", "init_ephemeral", "resp_static", "resp_ephemeral")
    }
    prologue = known(f"{name} prologue", prologue_size)
    sides = []
    for role in ("init", "resp"):
        side = NoiseConnection.from_name(suite.encode())
        side.set_as_initiator() if role == "init" else side.set_as_responder()
        side.set_prologue(prologue)
        side.set_keypair_from_private_bytes(Keypair.STATIC, keys[f"{role}_static"])
        side.set_keypair_from_private_bytes(Keypair.EPHEMERAL, keys[f"{role}_ephemeral"])
        side.start_handshake()
        sides.append(side)
    wire = []
    for step, size in enumerate(handshake):
        payload = known(f"{name} handshake {step}", size)
        sealed = bytes(sides[step % 2].write_message(payload))
        assert bytes(sides[1 - step % 2].read_message(sealed)) == payload
        wire.append({"payload": payload.hex(), "ciphertext": sealed.hex()})

    def talk(kind: str, sizes: tuple[int, ...]) -> list[dict[str, str]]:
        said = []
        for step, size in enumerate(sizes):
            payload = known(f"{name} {kind} {step}", size)
            # The responder speaks first, as after a real handshake.
            sealed = sides[1 - step % 2].encrypt(payload)
            assert sides[step % 2].decrypt(sealed) == payload
            said.append({"payload": payload.hex(), "ciphertext": sealed.hex()})
        return said

    wire += talk("message", messages)
    for side in sides:
        side.rekey_inbound_cipher()
        side.rekey_outbound_cipher()
    found: dict[str, Any] = {"protocol_name": suite, "init_prologue": prologue.hex(), "resp_prologue": prologue.hex()}
    found |= {role: key.hex() for role, key in keys.items()}
    return found | {
        "handshake_hash": sides[0].get_handshake_hash().hex(),
        "messages": wire,
        "rekeyed": talk("rekeyed", rekeyed),
    }


def main() -> None:
    warnings.filterwarnings("ignore", message="One of ephemeral keypairs")  # fixed ones are what a vector needs
    vectors = [vector(suite, number) for suite in SUITES for number in range(len(SHAPES))]
    json.dump(
        {"source": "noiseprotocol 0.3.1, through make_noise_vectors.py", "vectors": vectors}, sys.stdout, indent=1
    )
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
