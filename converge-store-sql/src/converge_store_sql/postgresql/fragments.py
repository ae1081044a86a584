"""Pieces of SQL that the statements share."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

NOW = "(extract(epoch from clock_timestamp()) * 1000000)::bigint"
"""Store time. Never `now()`, which is the start of the transaction."""


def gate_space(network: str) -> int:
    """Return the first half of a network's advisory locks; if two networks have the same, they only wait for each
    other.
    """
    return zlib.crc32(network.encode()) - 2**31


ARGUMENT = re.compile(r"\$(\d+)")
"""Where an argument stands in a statement."""


def lane_lock(network: str, lane: str, *, is_shared: bool) -> str:
    """Return the call that locks a lane until the transaction ends: a transaction of a caller's that has put tasks in
    it shares it, and who closes it tries to have it alone, without waiting.

    Args:
        network: The prefix of the tables.
        lane: The expression of the lane's id, in hex.
        is_shared: Which of the two.
    """
    function = "pg_advisory_xact_lock_shared" if is_shared else "pg_try_advisory_xact_lock"
    return f"{function}({zlib.crc32(b'lane/' + network.encode()) - 2**31}, hashtext({lane}))"


def unnest(args: Sequence[tuple[str, str]], start: int, alias: str = "q") -> str:
    """Return rows of the arrays that are the arguments after `start`; each of `args` is a column and its type."""
    arrays = ", ".join(f"${start + n}::{kind}[]" for n, (_, kind) in enumerate(args, start=1))
    return f"unnest({arrays}) {alias}({', '.join(name for name, _ in args)})"


def listed(names: Sequence[str], alias: str) -> str:
    """Return the columns of one table."""
    return ", ".join(f"{alias}.{name}" for name in names)


def match_all(names: Sequence[str]) -> str:
    """Return what finds the row of table t that has the key of a row of q."""
    return " and ".join(f"t.{name} = q.{name}" for name in names)


def within(names: Sequence[str], prefix_length: int, *, has_after: bool) -> str:
    """Return the rows of table t within a range r."""
    terms = [f"t.{names[n]} = r.p{n}" for n in range(prefix_length)]
    if has_after:
        bounds = ", ".join(f"r.a{n}" for n in range(prefix_length, len(names)))
        terms.append(f"({listed(names[prefix_length:], 't')}) > ({bounds})")
    return " and ".join(terms) or "true"
