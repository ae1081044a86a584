"""The text of a turn: one statement that commits batches, takes, or does both, for one shape of call."""

from __future__ import annotations

from collections.abc import Sequence

from converge.model.keys import Family
from converge_store_sql.postgresql import tables
from converge_store_sql.postgresql.fragments import NOW, gate_space, lane_lock, listed, match_all, unnest, within
from converge_store_sql.postgresql.plan import CODE_BITS, Part, Shape, TakeShape, Work

LANE_HEX = "encode(t.lane, 'hex')"
_NONE = "'{}'::integer[]"

_EXTRA = {
    Work.SHARE: (("r", "bigint"), ("i", "integer")),
    Work.LOCK: (("r", "bigint"), ("i", "integer")),
    Work.ABSENT: (("i", "integer"),),
    Work.DELETE_AT: (("r", "bigint"), ("b", "integer")),
    Work.INSERT: (("c", "integer"),),
    Work.PUT: (("b", "integer"),),
    Work.DELETE: (("b", "integer"),),
}


class TurnText:
    """Writes the text of one turn; the arguments are numbered in the order in which they are asked for."""

    def __init__(self, network: str, shape: Shape, told: str) -> None:
        self._network, self._shape, self._told = network, shape, told
        self._count = 0
        self._parts: list[str] = []
        self._deciding: list[tuple[str, str, str]] = []
        self._batches = ""

    def text(self) -> str:
        parts = list(enumerate(self._shape.parts))
        if self._shape.has_gates:
            gates = f"unnest({self._argument('integer[]')}, {self._argument('boolean[]')}) a(k, alone)"
            one = f"pg_advisory_xact_lock{{}}({gate_space(self._network)}, a.k)::text"
            self._with(
                "gate",
                f"select count(case when a.alone then {one.format('')} else {one.format('_shared')} end) as n from "
                f"{gates}",
            )
        checks = [self._check(at, part) for at, part in parts if part.work <= Work.ABSENT]
        bad = " union all ".join(f"select i from {name}" for name in checks)
        inserts = {at: self._rows(part) for at, part in parts if part.work is Work.INSERT}
        there = " union all ".join(self._there(self._shape.parts[at].family, q) for at, q in inserts.items())
        after_gates = " from gate" if self._shape.has_gates else ""
        self._with(
            "bad",
            f"select {f'array({bad})' if bad else _NONE} as i, {f'array({there})' if there else _NONE} as "
            f"there{after_gates}",
        )
        self._decide_early()
        for at, part in parts:
            if part.work is Work.DELETE_AT:
                self._deciding_delete(at, part)
        # The revision is drawn when every row that decides is locked, so it is above all that this call has seen or
        # waited for.
        self._with("g", f"select e.bad, e.late, e.there, {self._missed()} as missed, e.wrong from e")
        if self._shape.take is not None:
            self._pick(self._shape.take)
        self._with(
            "f",
            "select g.bad, g.late, g.there, g.missed, g.wrong || g.missed as dead, "
            f"nextval('{self._network}_revision') as revision, {NOW} as now from "
            f"g{', (select count(*) from picked) as after_picking' if self._shape.take is not None else ''}",
        )
        for at, part in parts:
            if part.work > Work.DELETE_AT:
                self._write(at, part, inserts.get(at) or self._rows(part))
        columns, sources = "f.bad, f.late, f.there, f.missed, f.revision, f.now", "f"
        if self._shape.take is not None:
            self._move(self._shape.take)
            columns, sources = columns + ", tk.*, hd.*", "f, tk, hd"
        return f"with {', '.join(self._parts)} select {columns}{self._told} from {sources}"

    def _with(self, name: str, body: str, *, materialized: bool = True) -> None:
        self._parts.append(f"{name} as {'materialized ' if materialized else ''}({body})")

    def _argument(self, kind: str) -> str:
        self._count += 1
        return f"${self._count}::{kind}"

    def _rows(self, part: Part) -> str:
        args = [*zip(tables.columns(part.family), tables.types(part.family), strict=True), *_EXTRA[part.work]]
        first = self._count + 1
        self._count += len(args) + part.has_values
        arrays = [f"${n}::text::{kind}[]" for n, (_, kind) in enumerate(args, start=first)]
        names = [name for name, _ in args]
        if part.has_values:
            arrays.append(f"${self._count}::bytea[]")
            names.append("v")
        self._batches = f"${self._count - part.has_values}::text::integer[]"
        return f"unnest({', '.join(arrays)}) q({', '.join(names)})"

    def _table(self, family: Family) -> str:
        return tables.table(self._network, family)

    def _check(self, at: int, part: Part) -> str:
        q, match, found = self._rows(part), match_all(tables.columns(part.family)), f"from {self._table(part.family)} t"
        if part.work is Work.ABSENT:
            self._with(f"c{at}", f"select q.i from {q} cross join lateral (select 1 {found} where {match} limit 1) x")
        else:
            lock = "share" if part.work is Work.SHARE else "update"
            if part.work is Work.LOCK and part.family == "lane":
                # A transaction of a caller's that relies on the lane may be open: then this is refused at once.
                match += f" and {lane_lock(self._network, LANE_HEX, is_shared=False)}"
            row = f"select true as hit {found} where {match} and t.revision = q.r for {lock}"
            self._with(f"c{at}", f"select q.i from {q} left join lateral ({row}) x on true where x.hit is null")
        return f"c{at}"

    def _there(self, family: Family, q: str) -> str:
        """Find puts of keys that should be absent and are not. One that comes after this look makes the insert fail,
        and the statement is run again.
        """
        match = match_all(tables.columns(family))
        return f"select q.c from {q} cross join lateral (select 1 from {self._table(family)} t where {match} limit 1) x"

    def _decide_early(self) -> None:
        """Find the batches that fail by their checks and windows; store time is read after the rows of the checks are
        locked.
        """
        wrong, late = _NONE, _NONE
        if self._shape.has_runs:
            runs = (
                f"unnest({self._argument('integer[]')}, {self._argument('integer[]')}, {self._argument('integer[]')}) "
                "p(a, z, i)"
            )
            of_bad = (
                f"select distinct x.b from {runs} cross join lateral generate_series(p.a, p.z) x(b) where p.i "
                f"= any(bad.i)"
            )
            wrong = f"case when bad.i = {_NONE} then {_NONE} else array({of_bad}) end"
        wrong = f"{wrong} || array(select u.c >> {CODE_BITS} from unnest(bad.there) u(c))"
        self._with("m", f"select bad.i as bad, bad.there, {wrong} as wrong, {NOW} as now from bad")
        if self._shape.has_windows:
            windows = (
                f"unnest({self._argument('integer[]')}, {self._argument('bigint[]')}, {self._argument('bigint[]')}) "
                "w(b, lo, hi)"
            )
            late = f"array(select w.b from {windows} where w.lo > m.now or w.hi < m.now)"
        self._with("l", f"select m.bad, m.there, m.wrong, {late} as late from m")
        self._with("e", "select l.bad, l.there, l.late, l.wrong || l.late as wrong from l")

    def _deciding_delete(self, at: int, part: Part) -> None:
        q, match = self._rows(part), f"{match_all(tables.columns(part.family))} and t.revision = q.r"
        found = f"from {self._table(part.family)} t"
        self._with(
            f"d{at}",
            f"delete {found} using {q}, e where {match} and q.b <> all(e.wrong) returning q.b",
            materialized=False,
        )
        unseen = f"select q.b from {q} where q.b = any(e.wrong) and not exists (select 1 {found} where {match})"
        self._deciding.append((f"d{at}", self._batches, unseen))

    def _missed(self) -> str:
        """Find the batches whose deciding delete found nothing; of those that had failed before, what it would have
        found.
        """
        if not self._deciding:
            return _NONE
        done = " + ".join(f"(select count(*) from {name})" for name, _, _ in self._deciding)
        wanted = " + ".join(f"cardinality({batches})" for _, batches, _ in self._deciding)
        every = " || ".join(batches for _, batches, _ in self._deciding)
        hit = " union all ".join(f"select b from {name}" for name, _, _ in self._deciding)
        unseen = " union all ".join(look for _, _, look in self._deciding)
        return (
            f"case when {done} = {wanted} then {_NONE} else array((select b from unnest({every}) u(b) where b <> "
            f"all(e.wrong)) except select b from ({hit}) as hit(b)) || array({unseen}) end"
        )

    def _write(self, at: int, part: Part, q: str) -> None:
        names, family = tables.columns(part.family), self._table(part.family)
        mine = f"{f'q.c >> {CODE_BITS}' if part.work is Work.INSERT else 'q.b'} <> all(f.dead)"
        if part.work is Work.DELETE:
            self._with(
                f"w{at}", f"delete from {family} t using {q}, f where {match_all(names)} and {mine}", materialized=False
            )
            return
        is_sure = part.work is Work.INSERT or (part.family in tables.NEW and not self._shape.replaces)
        is_mixed = not is_sure and part.family in tables.OFTEN_NEW and not self._shape.replaces
        if is_mixed:
            there = f"select true as old from {family} t where {match_all(names)} limit 1"
            self._with(f"o{at}", f"select q.*, x.old from {q} left join lateral ({there}) x on true")
            q = f"o{at} q"
        value = "q.v" if part.has_values else "''::bytea"
        insert = (
            f"insert into {family} as t ({', '.join(names)}, value, revision) "
            f"select {listed(names, 'q')}, {value}, f.revision from {q}, f where {mine}"
        )
        if is_mixed:
            self._with(f"n{at}", f"{insert} and q.old is null", materialized=False)
            insert += " and q.old"
        self._with(f"w{at}", insert if is_sure else f"{insert} {self._replace(names)}", materialized=False)

    def _replace(self, names: Sequence[str]) -> str:
        """Replace rows, but begin again where a key was put at a greater revision after this call drew its own: no
        revision goes back.
        """
        newer = f"case when t.revision < excluded.revision then excluded.revision else {self._network}_lost_race() end"
        return f"on conflict ({', '.join(names)}) do update set value = excluded.value, revision = {newer}"

    def _pick(self, take: TakeShape) -> None:
        """Lock the first rows of each range that may be had; without its checks a take looks at nothing."""
        names, kinds = tables.columns(take.source), tables.types(take.source)
        rest = names[take.prefix_length :]
        args = [(f"p{n}", kinds[n]) for n in range(take.prefix_length)] + [
            (f"a{n}", kinds[n]) for n in range(take.prefix_length, len(names))
        ]
        ranges = unnest([*args, ("n", "integer")], self._count, "r")
        self._count += len(args) + 1
        self._with("r", f"select * from {ranges}")
        limit = self._argument("bigint")
        blocked = f"e.bad && {self._argument('integer[]')}" if take.has_checks else "false"
        self._with("lim", f"select case when {blocked} then 0 else {limit} end as n from e")
        where = within(names, take.prefix_length, has_after=True)
        source = f"from {self._table(take.source)} t where {where} order by {listed(rest, 't')}"
        if take.is_single:
            quota, count = "r", "(select n from lim)"
        else:
            # How many each range gives, by the order of all; then only as many rows are locked, and past those that
            # another take holds.
            most = "limit (select n from lim)"
            first = (
                f"select r.n from r cross join lateral (select {listed(rest, 't')} {source} {most}) x order by "
                f"{listed(rest, 'x')} {most}"
            )
            self._with("quota", f"select y.n, count(*) as k from ({first}) y group by y.n")
            quota, count = "quota join r on r.n = quota.n", "quota.k"
        locked = f"select t.ctid as tid, {listed(rest, 't')} {source} limit {count} for update skip locked"
        self._with("picked", f"select r.n, x.* from {quota} cross join lateral ({locked}) x")

    def _move(self, take: TakeShape) -> None:
        """Delete what was locked, put the new keys, and read the rest of the answer."""
        names, target = tables.columns(take.source), tables.columns(take.target)
        rest = names[take.prefix_length :]
        self._with(
            "gone",
            f"delete from {self._table(take.source)} where ctid = any(array(select tid from picked)) returning "
            f"{', '.join(rest)}",
            materialized=False,
        )
        kinds = tables.types(take.target)
        fixed = [self._argument(kind) for kind in kinds[: take.to_length]]
        tail = [self._argument(kind) for kind in kinds[take.to_length + len(rest) :]]
        conflict = f" {self._replace(target)}" if self._shape.replaces else ""
        self._with(
            "moved",
            f"insert into {self._table(take.target)} as t ({', '.join(target)}, value, revision) select "
            f"{', '.join([*fixed, *(f'gone.{c}' for c in rest), *tail])}, convert_to(f.now::text, 'UTF8'), f.revision "
            f"from gone, f{conflict}",
            materialized=False,
        )
        also = [
            f"array_agg((select t.value from {self._table(family)} t where t.id = gone.{rest[-1]})) as v{n}"
            for n, family in enumerate(take.also)
        ]
        self._with(
            "tk",
            f"select {', '.join([*(f'array_agg(gone.{c}) as g{n}' for n, c in enumerate(rest)), *also])} from gone",
        )
        last = (
            f"select distinct on (n) n, {', '.join(rest)} from picked order by n, "
            f"{', '.join(f'{c} desc' for c in rest)}"
        )
        self._with("last", last)
        where = " and ".join(f"t.{names[n]} = r.p{n}" for n in range(take.prefix_length))
        start = ", ".join(f"coalesce(last.{names[n]}, r.a{n})" for n in range(take.prefix_length, len(names)))
        beyond = f"{f'{where} and ' if where else ''}({listed(rest, 't')}) > ({start})"
        head = (
            f"select {listed(rest, 't')} from {self._table(take.source)} t where {beyond} order by "
            f"{listed(rest, 't')} limit 1"
        )
        heads = ", ".join(f"array_agg(h.{c}) as h{n}" for n, c in enumerate(rest))
        self._with(
            "hd",
            f"select array_agg(r.n) as hn, {heads} from r left join last on last.n = r.n cross join lateral ({head}) h",
        )
