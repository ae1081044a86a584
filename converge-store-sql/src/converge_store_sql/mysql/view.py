"""The view `NETWORK_tasks`: every task as a row of real columns, for operators; the columns are those on PostgreSQL."""

from __future__ import annotations

from converge.machines.task import TaskState

NEWEST = "kept_until"
"""A column that views of before lack."""


def create_view(network: str) -> str:
    """Return the statement that makes the view, or makes it anew. It is read with the rights of whoever reads it."""
    task, state, lease = (_records(network, family) for family in ("task", "state", "lease"))
    return f"""create or replace sql security invoker view {network}_tasks as select
    {_uuid("t.k")} as id,
    coalesce({_of("t.doc", "pool")}, p.pool) as pool,
    case when p.place = 'done' then p.state when p.place = 'held' then '{TaskState.ASSIGNED}'
        when p.place = 'later' and {_of("s.doc", "wait")} is not null then '{TaskState.WAITING}'
        else '{TaskState.PENDING}' end as state,
    coalesce(p.place, if({_of("t.doc", "ordering_key")} is null, null, 'behind')) as place,
    {_of("t.doc", "type")} as type,
    {_of("t.doc", "topic")} as topic,
    coalesce({_number("t.doc", "priority")}, 0) as priority,
    if(p.place = 'done', null, coalesce(p.rank_usec, {_number("s.doc", "rank")}, {_number("t.doc", "rank")})) as `rank`,
    {_moment(f"coalesce(p.due, {_of('s.doc', 'due')}, {_of('t.doc', 'due')})")} as due,
    {_uuid("p.lease")} as holder,
    {_of("l.doc", "host")} as holder_host,
    {_number("l.doc", "pid")} as holder_pid,
    coalesce({_number("s.doc", "attempts")}, 0) + if(p.place = 'held', 1, 0) as attempts,
    coalesce({_number("t.doc", "max_attempts")}, 3) as max_attempts,
    {_moment(_of("t.doc", "submitted"))} as submitted_at,
    {_moment("p.claimed")} as claimed_at,
    {_moment(_of("s.doc", "finished"))} as finished_at,
    {_moment(_of("t.doc", "deadline"))} as deadline,
    {_moment("p.until")} as kept_until,
    {_of("t.doc", "dedup_key")} as dedup_key,
    {_of("t.doc", "ordering_key")} as ordering_key,
    {_of("s.doc", "by")} as last_agent,
    {_of("s.doc", "error")} as error,
    t.doc as task,
    s.doc as record
    from {task} t left join {state} s on s.k = t.k left join (
        select substr(k, -16) as id, 'ready' as place, null as pool, null as state, {_int("k", 17)} as rank_usec,
            null as due, null as lease, null as claimed, null as until from {network}_ready
        union all select substr(k, -16), 'later', null, null, null, {_int("k", 1)}, null, null, null
            from {network}_later
        union all select substr(k, 25, 16), 'held', null, null, {_int("k", 17)}, null, substr(k, 1, 16), {_text("v")},
            null from {network}_held
        union all select substr(k, -16), 'done', {_text("substring_index(k, X'00', 1)")},
            {_text("substring_index(substring_index(k, X'00', 2), X'00', -1)")}, null, null, null, null,
            {_int("k", -24)} from {network}_done
    ) p on p.id = t.k left join {lease} l on l.k = p.lease"""


def _records(network: str, family: str) -> str:
    """Return a family's records as JSON. What cannot be read is null: one spoiled record hides no other."""
    return f"(select k, if(json_valid({_text('v')}), {_text('v')}, null) as doc from {network}_{family})"


def _text(data: str) -> str:
    return f"convert({data} using utf8mb4)"


def _of(doc: str, name: str) -> str:
    """Return a field of a record as text, whatever its length."""
    return f"json_unquote(json_extract({doc}, '$.{name}'))"


def _number(doc: str, name: str) -> str:
    return f"cast({_of(doc, name)} as signed)"


def _int(key: str, at: int) -> str:
    """Return the number that a packed key has at a byte."""
    return f"cast(conv(hex(substr({key}, {at}, 8)), 16, 10) as decimal(20)) - 9223372036854775808"


def _moment(micros: str) -> str:
    """Return store time as a moment, in UTC whatever the session's time zone is."""
    moment = f"timestampadd(microsecond, {micros}, timestamp'1970-01-01 00:00:00')"
    return f"if({micros} regexp '^[1-9][0-9]{{0,16}}$', {moment}, null)"


def _uuid(id_: str) -> str:
    """Return an id as the commands show it."""
    parts = ", ".join(f"hex(substr({id_}, {at}, {size}))" for at, size in ((1, 4), (5, 2), (7, 2), (9, 2), (11, 6)))
    return f"if({id_} is null, null, lower(concat_ws('-', {parts})))"
