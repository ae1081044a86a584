"""The view `NETWORK_tasks`: every task as a row of real columns, for operators."""

from __future__ import annotations

from converge.machines.task import TaskState

VERSION = 5
"""Of the view; a comment on it says which one is there. A newer one is left alone."""

COMMENT = "converge view "

CURRENT = f"""select coalesce(max(substring(obj_description(to_regclass($1)::oid, 'pg_class') from
    '^{COMMENT}([0-9]{{1,4}})$')::integer), 0)"""
"""The statement that answers the version of the view of that name: 0 where there is none, or one of before."""


def create_view(network: str) -> list[str]:
    """Return the statements that make the view anew; a role that could read it is to be given the right again."""
    return [
        f"drop view if exists {network}_tasks",
        _JSON.format(network=network),
        _MOMENT.format(network=network),
        _NUMBER.format(network=network),
        _VIEW.format(network=network, held=TaskState.ASSIGNED, parked=TaskState.WAITING, unclaimed=TaskState.PENDING),
        f"comment on view {network}_tasks is '{COMMENT}{VERSION}'",
    ]


# What cannot be read is null: one spoiled record does not keep an operator from seeing all others.
_JSON = """create or replace function {network}_json(bytes bytea) returns json language plpgsql stable strict as $$
begin
    return replace(convert_from(bytes, 'UTF8'), '\\u0000', '')::json;
exception when others then return null;
end $$"""

_MOMENT = """create or replace function {network}_moment(micros text) returns timestamptz language sql immutable strict
as $$
    select case when micros ~ '^[1-9][0-9]{{0,16}}$' then to_timestamp(micros::numeric / 1000000) end
$$"""

_NUMBER = """create or replace function {network}_number(digits text) returns bigint language sql immutable strict
as $$
    select case when digits ~ '^-?[0-9]{{1,18}}$' then digits::bigint end
$$"""

_VIEW = """create view {network}_tasks as select
    encode(t.id, 'hex')::uuid as id,
    coalesce(t.spec ->> 'pool', p.pool) as pool,
    case when p.place = 'done' then p.state when p.place = 'held' then '{held}'
        when p.place = 'later' and s.record -> 'wait' is not null then '{parked}' else '{unclaimed}' end as state,
    coalesce(p.place, case when t.spec ->> 'ordering_key' is not null then 'behind' end) as place,
    t.spec ->> 'type' as type,
    t.spec ->> 'topic' as topic,
    coalesce({network}_number(t.spec ->> 'priority'), 0) as priority,
    case when p.place = 'done' then null
        else coalesce(p.rank, {network}_number(s.record ->> 'rank'), {network}_number(t.spec ->> 'rank')) end as rank,
    {network}_moment(coalesce(p.due::text, s.record ->> 'due', t.spec ->> 'due')) as due,
    encode(p.lease, 'hex')::uuid as holder,
    l.lease ->> 'host' as holder_host,
    {network}_number(l.lease ->> 'pid') as holder_pid,
    coalesce({network}_number(s.record ->> 'attempts'), 0) + case when p.place = 'held' then 1 else 0 end as attempts,
    coalesce({network}_number(t.spec ->> 'max_attempts'), 3) as max_attempts,
    {network}_moment(t.spec ->> 'submitted') as submitted_at,
    {network}_moment(p.claimed) as claimed_at,
    {network}_moment(s.record ->> 'finished') as finished_at,
    {network}_moment(t.spec ->> 'deadline') as deadline,
    {network}_moment(p.until::text) as kept_until,
    t.spec ->> 'dedup_key' as dedup_key,
    t.spec ->> 'ordering_key' as ordering_key,
    s.record ->> 'by' as last_agent,
    s.record ->> 'error' as error,
    t.spec::text as task,
    s.record::text as record
    from (select id, {network}_json(value) as spec from {network}_task) t
    left join (select id, {network}_json(value) as record from {network}_state) s on s.id = t.id
    left join (
        select id, 'ready' as place, null as pool, null as state, rank, null::bigint as due, null::bytea as lease,
            null as claimed, null::bigint as until from {network}_ready
        union all select id, 'later', null, null, null, due, null, null, null from {network}_later
        union all select id, 'held', null, null, rank, null, lease, encode(value, 'escape'), null from {network}_held
        union all select id, 'done', pool, "state", null, null, null, null, until from {network}_done
    ) p on p.id = t.id
    left join (select id, {network}_json(value) as lease from {network}_lease) l on l.id = p.lease"""
