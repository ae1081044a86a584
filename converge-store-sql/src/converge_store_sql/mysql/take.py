"""A take on MariaDB or MySQL: lock the first keys of its ranges, then move them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from converge.contracts.store import Key, Rest, Take, Taken
from converge.model.keys import Family, pack, unpack
from converge_store_sql.mysql.connect import Rows, Transaction
from converge_store_sql.mysql.plan import delete, draw, upsert
from converge_store_sql.mysql.texts import NOW, bounds, listed, packed_after, pages, source


class Taking:
    """One take of one transaction."""

    def __init__(self, network: str, take: Take) -> None:
        self._network, self._take = network, take
        self._family: Family = take.ranges[0].prefix[0]
        self._source = source(network, self._family)
        self._prefixes = [pack(range_.prefix) for range_ in take.ranges]
        self._starts = [packed_after(range_.prefix, range_.after) for range_ in take.ranges]

    def look(self) -> list[str]:
        """Return the statements that choose: of a single range they lock the keys, of several they count how many to
        take of each, by the order of all.
        """
        limit = self._take.limit
        if len(self._prefixes) == 1:
            return [f"select {NOW}", self._lock(0, limit)]
        # `skip locked` passes over what another take has locked; a plain read does not.
        parts = [
            f"(select {number} n, substr(k, {len(prefix) + 1}) rest from {self._source} where "
            f"{bounds(prefix, self._starts[number])} order by k limit {limit})"
            for number, prefix in enumerate(self._prefixes)
        ]
        return [f"select n from ({' union all '.join(parts)}) x order by rest, n limit {limit}"]

    async def run(self, transaction: Transaction, answers: list[Rows]) -> Taken:
        """Move what was chosen, and commit."""
        if len(self._prefixes) == 1:
            ((now,),), rows = answers
            chosen = {0: [key for (key,) in rows]}
        else:
            quotas = Counter(number for (number,) in answers[0])
            picks = [self._lock(number, quotas[number]) for number in sorted(quotas)]
            ((now,),), *found = await transaction.run([f"select {NOW}", *picks], commits=False)
            chosen = {number: [key for (key,) in rows] for number, rows in zip(sorted(quotas), found, strict=True)}
        return await self._move(transaction, chosen, int(now))

    def _lock(self, number: int, limit: int) -> str:
        where = bounds(self._prefixes[number], self._starts[number])
        return f"select k from {self._source} where {where} order by k limit {limit} for update skip locked"

    async def _move(self, transaction: Transaction, chosen: dict[int, list[bytes]], now: int) -> Taken:
        rests = sorted(
            (
                unpack(
                    self._family, key[len(self._prefixes[number]) :], skip=len(self._take.ranges[number].prefix) - 1
                ),
                key,
            )
            for number, keys in chosen.items()
            for key in keys
        )
        statements = self._heads(chosen)
        if not rests:
            answers = await transaction.run([*statements, "commit"], commits=True)
            return Taken(0, (), (), self._found_heads(answers[0]), now)
        keys, value = [key for _, key in rests], str(now).encode()
        targets: dict[bytes, bytes] = {pack(self._target(rest)): value for rest, _ in rests}
        for some in pages(keys):
            statements.append(delete(self._network, self._family, some))
        statements += [*draw(self._network), *upsert(self._network, self._take.to[0], targets)]
        ids = [rest[-1] for rest, _ in rests]
        statements += [
            f"select k, v from {source(self._network, family)} where k in {listed(ids)}" for family in self._take.also
        ]
        answers = await transaction.run([*statements, "select last_insert_id()", "commit"], commits=True)
        values: list[dict[Any, Any]] = [dict(rows) for rows in answers[1:-1]]  # type: ignore[arg-type]
        also = [tuple(found.get(id_) for found in values) for id_ in ids]
        revision = answers[-1][0][0]
        return Taken(revision, [rest for rest, _ in rests], also, self._found_heads(answers[0]), now)

    def _target(self, rest: Rest) -> Key:
        return self._take.to + rest + self._take.tail

    def _heads(self, chosen: dict[int, list[bytes]]) -> list[str]:
        parts = []
        for number, prefix in enumerate(self._prefixes):
            keys = chosen.get(number)
            where = bounds(prefix, max(keys) if keys else self._starts[number])
            parts.append(f"(select {number} n, k from {self._source} where {where} order by k limit 1)")
        return [" union all ".join(parts)]

    def _found_heads(self, rows: Rows) -> Sequence[Rest | None]:
        heads: list[Rest | None] = [None] * len(self._prefixes)
        for number, key in rows:
            skip = len(self._take.ranges[number].prefix) - 1
            heads[number] = unpack(self._family, key[len(self._prefixes[number]) :], skip=skip)
        return heads
