"""The statements, one for each operation and shape: which families occur. Every value is an argument, and most
arguments are arrays.

All joins go from an array to an index, one lookup a row: `connect.py` forbids the planner the scans and hash joins that
it would choose from what it saw of a table while that was empty.
"""

from __future__ import annotations

from converge.model.keys import Family
from converge_store_sql.postgresql import tables
from converge_store_sql.postgresql.fragments import listed, match_all, unnest, within
from converge_store_sql.postgresql.plan import Shape
from converge_store_sql.postgresql.turn_text import TurnText


class Statements:
    """The text of every statement for the tables of one network, made once for each shape."""

    def __init__(self, network: str) -> None:
        self._network = network
        self.told = ""
        """What every turn answers last, besides its own: a comma, then columns."""
        self._turns: dict[Shape, str] = {}
        self._gets: dict[tuple[Family, ...], str] = {}
        self._scans: dict[tuple[Family, int, bool], str] = {}
        self._counts: dict[tuple[Family, int], str] = {}

    def turn(self, shape: Shape) -> str:
        """Return the statement that commits, takes, or does both: checks, then deciding deletes, then the revision,
        then the other writes.
        """
        text = self._turns.get(shape)
        if text is None:
            text = self._turns[shape] = TurnText(self._network, shape, self.told).text()
        return text

    def get(self, families: tuple[Family, ...]) -> str:
        """Return rows of (number, value, revision); arguments for each family: its key columns, then the numbers."""
        text = self._gets.get(families)
        if text is None:
            parts, count = [], 0
            for family in families:
                names, kinds = tables.columns(family), tables.types(family)
                q = unnest([*zip(names, kinds, strict=True), ("i", "integer")], count)
                count += len(names) + 1
                parts.append(f"select q.i, x.value, x.revision from {q} {self._lookup(family, 't.value, t.revision')}")
            text = self._gets[families] = " union all ".join(parts)
        return text

    def _lookup(self, family: Family, what: str) -> str:
        match = match_all(tables.columns(family))
        return (
            f"cross join lateral (select {what} from {tables.table(self._network, family)} t where {match} limit 1) x"
        )

    def scan(self, family: Family, prefix_length: int, *, has_after: bool) -> str:
        """Return rows of (number of the range, rest..., value, revision); arguments: prefix columns, after columns,
        limits, numbers.
        """
        shape = (family, prefix_length, has_after)
        text = self._scans.get(shape)
        if text is None:
            names, kinds = tables.columns(family), tables.types(family)
            rest = names[prefix_length:] if family.parts else names
            args = [(f"p{n}", kinds[n]) for n in range(prefix_length)]
            if has_after:
                args += [(f"a{n}", kinds[n]) for n in range(prefix_length, len(names))]
            args += [("l", "bigint"), ("n", "integer")]
            where = within(names, prefix_length, has_after=has_after)
            order = f" order by {listed(rest, 't')}" if rest else ""
            body = (
                f"select {listed((*rest, 'value', 'revision'), 't')} from {tables.table(self._network, family)} t "
                f"where {where}{order} limit r.l"
            )
            text = (
                f"select r.n, x.* from {unnest(args, 0, 'r')} cross join lateral ({body}) x order by "
                f"r.n{''.join(f', x.{c}' for c in rest)}"
            )
            self._scans[shape] = text
        return text

    def count(self, family: Family, prefix_length: int) -> str:
        """Return rows of (number, how many); arguments: prefix columns, numbers."""
        shape = (family, prefix_length)
        text = self._counts.get(shape)
        if text is None:
            names, kinds = tables.columns(family), tables.types(family)
            args = [(f"p{n}", kinds[n]) for n in range(prefix_length)] + [("n", "integer")]
            where = within(names, prefix_length, has_after=False)
            text = (
                f"select r.n, (select count(*) from {tables.table(self._network, family)} t where {where}) from "
                f"{unnest(args, 0, 'r')}"
            )
            self._counts[shape] = text
        return text

    def register(self) -> str:
        """Return the statement that sleeps on channels, also again on those that a waker has struck out; arguments:
        channels, listener, its connection's process.
        """
        waiter = f"{self._network}_waiter"
        return (
            f"insert into {waiter} (channel, listener, pid) select c, $2::text, $3::integer from unnest($1::text[]) c "
            f"where not exists (select 1 from {waiter} w where w.channel = c and w.listener = $2::text)"
        )

    def beat(self) -> str:
        """Return the statement that shows that a listener lives; arguments: channels, listener."""
        return (
            f"update {self._network}_waiter set seen = clock_timestamp() where channel = any($1::text[]) and listener "
            "= $2::text"
        )

    def forget(self) -> str:
        """Return the statement that sleeps no longer; arguments: channels, listener."""
        return f"delete from {self._network}_waiter where channel = any($1::text[]) and listener = $2::text"

    def sweep(self) -> str:
        """Return the statement that removes the rows of listeners that are long dead; argument: seconds."""
        return f"delete from {self._network}_waiter where seen < clock_timestamp() - make_interval(secs => $1)"

    def wake(self) -> str:
        """Return the statement that strikes out, for each channel, the dead sleepers and the first living one, and
        notifies that one; arguments: channels, seconds.

        It returns each channel with True if one was notified, and with False if any slept there. One that is only in
        rows with False was passed over: another statement held its row, such as the beat of its listener, or has just
        written it. It sleeps on, so it must be tried again.

        A sleeper is dead if its connection is gone, or if it has not shown itself for so long that its host must be.
        """
        waiter = f"{self._network}_waiter"
        return (
            "with w as materialized (select c.channel, x.* from unnest($1::text[]) c(channel) cross join lateral "
            "(select t.ctid as tid, t.waiter, t.listener, t.seen > clock_timestamp() - make_interval(secs => $2) and "
            f"exists (select 1 from pg_stat_get_activity(t.pid)) as lives from {waiter} t where t.channel = c.channel "
            f"order by t.waiter limit 100 for update skip locked) x), d as (delete from {waiter} where ctid = "
            "any(array(select w.tid from w where not w.lives or w.waiter = (select min(v.waiter) from w v where "
            "v.channel = w.channel and v.lives))) returning channel, waiter) select w.channel, "
            "pg_notify(w.listener, w.channel) is not null from w where w.lives and exists (select 1 from d where "
            "d.channel = w.channel and d.waiter = w.waiter) union all select c.channel, false from "
            f"unnest($1::text[]) c(channel) where exists (select 1 from {waiter} t where t.channel = c.channel)"
        )
