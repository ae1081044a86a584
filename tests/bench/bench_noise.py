"""What do the secure channel's records cost beside the bare cipher?

    python tests/bench/bench_noise.py [--rounds 40] [--json]

The floor is one `AESGCM.encrypt` and one `AESGCM.decrypt` of the same bytes, a record of 32 items of 256 bytes.
Beside it, in turns within each round:

    record  the same bytes sealed and opened as a Noise record: implicit counter, typed errors, nothing cut into items
    alike   32 items of 256 bytes sealed into a record, and opened into 32 items again
    mixed   32 items of 128 to 384 bytes, as many bytes in all

Each round times each of them for some milliseconds. What counts is the ratio to the floor in the same round; the median
of the rounds is printed, and what a quarter of them are below and above.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import timeit
from collections.abc import Callable

import cryptography
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from converge.machines.noise import CipherState
from converge.machines.records import MESSAGE, Item, Opener, Sealer

COUNT, SIZE = 32, 256
LOOPS = 500
KEY = bytes(range(32))
Run = Callable[[], object]


def of_items(sizes: list[int], source: random.Random) -> Run:
    """Seal and open a record of items."""
    sealer, opener = Sealer(CipherState(1, KEY)), Opener(CipherState(1, KEY))
    items: list[Item] = [(MESSAGE, source.randbytes(size)) for size in sizes]

    def run() -> None:
        for frame in sealer.seal(items):
            opener.open(frame)

    return run


def of_records(plain: bytes) -> Run:
    """Seal and open a record of bytes."""
    sending, receiving = CipherState(1, KEY), CipherState(1, KEY)
    return lambda: receiving.decrypt(sending.encrypt(plain))


def of_cipher(plain: bytes) -> Run:
    """The floor."""
    cipher, nonce = AESGCM(KEY), bytes(12)
    return lambda: cipher.decrypt(nonce, cipher.encrypt(nonce, plain, None), None)


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, a round each."""
    source = random.Random(1)
    plain = source.randbytes(COUNT * (SIZE + 6))
    halves = [source.randrange(SIZE // 2) for _ in range(COUNT // 2)]
    mixed = [SIZE + half for half in halves] + [SIZE - half for half in halves]
    source.shuffle(mixed)
    runs = {
        "bare": of_cipher(plain),
        "record": of_records(plain),
        "alike": of_items([SIZE] * COUNT, source),
        "mixed": of_items(mixed, source),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            # The best of three is the one that other processes disturbed least.
            taken = min(timeit.repeat(run, number=LOOPS, repeat=3)) / LOOPS
            if number:  # the first round warms up
                seconds[name].append(taken)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    arguments = parser.parse_args()
    seconds = measure(arguments.rounds)
    result: dict[str, object] = {
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cryptography": f"{cryptography.__version__}, {backend.openssl_version_text()}",
        "command": f"python {' '.join(['tests/bench/bench_noise.py', *sys.argv[1:]])}",
    }
    for name, taken in seconds.items():
        ratios = [mine / floor for mine, floor in zip(taken, seconds["bare"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[name] = {
            "us": round(statistics.median(taken) * 1e6, 2),
            "ratio": round(middle, 2),
            "quarters": [round(low, 2), round(high, 2)],
        }
    if arguments.json:
        print(json.dumps({"v": 1, **result}))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            print(
                f"{name:13} {value['us']:8.2f} us   {value['ratio']:5.2f} of bare   ({value['quarters'][0]:.2f} to "
                f"{value['quarters'][1]:.2f})"
            )
        else:
            print(f"{name:13} {value}")


if __name__ == "__main__":
    main()
