"""Records of an older format, in the form of a newer one."""

from __future__ import annotations

from converge.codec import encode
from converge.model.batch import Batch
from converge.model.keys import ACTIVE, Key
from converge.model.place import SPLIT_KEYS, KeyRow, KeySeen


def split_key(row_key: Key, seen: KeySeen) -> Batch | None:
    """Return the batch that keeps an ordering key's active task apart from its next number; None: it is so already."""
    if seen.row.v >= SPLIT_KEYS:
        return None
    puts = [(row_key, encode(KeyRow(seen.row.next, v=SPLIT_KEYS))), (ACTIVE(*row_key[1:]), encode(seen.row.active))]
    return Batch([(row_key, seen.revision)], puts)
