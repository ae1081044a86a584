"""`converge pools`: list, create and change pools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import NONE, Common
from converge.cli.run import loop_options
from converge.errors import InputError
from converge.machines.task import TaskState
from converge.model.pool import Pool
from converge.operations import run as main
from converge.runtime.config.config import Config
from converge.services.pools import PoolManager
from converge.services.tasks.counts import Census, census

Ids = Annotated[list[str], Parameter(help="The pools' ids.")]
PriorityStep = Annotated[
    float | None,
    Parameter(metavar="SEC", help="The head start, in seconds, that one step of priority gives; by default 3,600."),
]
DedupWindow = Annotated[
    float | None, Parameter(metavar="SEC", help="Seconds that a dedup key is remembered at least; by default a day.")
]
KeepCompleted = Annotated[
    float | None, Parameter(metavar="SEC", help="Seconds that completed tasks are kept; by default a day.")
]
KeepFailed = Annotated[
    float | None, Parameter(metavar="SEC", help="Seconds that failed and cancelled tasks are kept; by default a week.")
]
KeepCount = Annotated[
    int | None,
    Parameter(metavar="N", help="The most ended tasks that are kept, whatever their age; by default no limit."),
]
KeepMegabytes = Annotated[
    float | None, Parameter(metavar="MB", help="The most megabytes of ended tasks that are kept; by default no limit.")
]


def create(
    pool_id: Annotated[str, Parameter(help="The pool's id: 1 to 64 characters of A-Z a-z 0-9 . _ : -")],
    /,
    *,
    admission: Annotated[Literal["open", "allow", "secret"], Parameter(help="Who may join.")] = "open",
    allow: Annotated[
        list[str] | None,
        Parameter(
            metavar="AGENT", negative=(), help="An agent that may join under --admission allow; may be repeated."
        ),
    ] = None,
    secret_file: Annotated[
        Path | None, Parameter(metavar="FILE", help="A file with the join secret, for --admission secret.")
    ] = None,
    paused: Annotated[
        bool, Parameter(negative=(), help="Create it paused: nothing is claimed until it is resumed.")
    ] = False,
    priority_step: PriorityStep = None,
    dedup_window: DedupWindow = None,
    keep_completed: KeepCompleted = None,
    keep_failed: KeepFailed = None,
    keep_count: KeepCount = None,
    keep_mb: KeepMegabytes = None,
    require_durability: Annotated[
        Literal["D0", "D1", "D2", "D3"] | None, Parameter(help="Refuse stores that have less.")
    ] = None,
    common: Common = NONE,
) -> int:
    """Create a pool; an existing one is left as it is, settings and members alike."""
    settings = common.configured()
    given: dict[str, Any] = {
        "priority_step_sec": priority_step,
        "dedup_window_sec": dedup_window,
        "keep_completed_sec": keep_completed,
        "keep_failed_sec": keep_failed,
        "keep_count": keep_count,
        "keep_bytes": None if keep_mb is None else int(keep_mb * 1_000_000),
        "require_durability": require_durability,
    }
    own = {name: value for name, value in given.items() if value is not None}
    asked = [*own, *(["admission"] if admission != "open" else []), *(["is_paused"] if paused else [])]
    own = {
        "keep_completed_sec": settings.retention.completed_sec,
        "keep_failed_sec": settings.retention.failed_sec,
    } | own
    if allow and admission != "allow":
        raise InputError("--allow needs --admission allow; without it everybody may join")
    if (admission == "secret") != (secret_file is not None):
        raise InputError("--secret-file and --admission secret must be used together")
    pool = Pool(id=pool_id, admission=admission, allow=tuple(allow or ()), is_paused=paused, **own)
    is_created, there = anyio.run(_create, settings, pool, _secret(secret_file), backend_options=loop_options())
    _write_created(pool, is_created, there, asked, as_json=common.json)
    return DONE


def _write_created(pool: Pool, is_created: bool, there: Pool, asked: Sequence[str], *, as_json: bool) -> None:
    """Show whether the pool was made, and in what an existing one differs from what was asked."""
    differs = {name: getattr(there, name) for name in asked if getattr(there, name) != getattr(pool, name)}
    if as_json:
        output.line({"id": pool.id, "is_created": is_created, "differs": differs})
    else:
        output.write(
            f"pool {pool.id} was created" if is_created else f"pool {pool.id} exists already and was left as it is"
        )
        for name, value in differs.items():
            output.note(f"{name} of pool {pool.id} is {value}, not {getattr(pool, name)} as asked")


def list_pools(*, common: Common = NONE) -> int:
    """List pools with their task counts: ready, later, parked, waiting behind a key, held, done (failed ones too)."""
    settings = common.configured()
    found = anyio.run(_list, settings, backend_options=loop_options())
    if common.json:
        for pool, count in found:
            output.line({"id": pool.id, "admission": pool.admission, "is_paused": pool.is_paused, **_numbers(count)})
        return DONE
    columns = ("pool", "admission", "paused", "ready", "later", "parked", "waiting", "held", "done",
        TaskState.FAILED.lower())  # fmt: skip
    cells = [
        (pool.id, pool.admission, _yes(pool.is_paused), count.ready, count.later, count.parked,
        count.waiting, count.held, count.done, count.failed)
        for pool, count in found
    ]  # fmt: skip
    output.table(columns, cells, empty="no pools", has_lines=True)
    return DONE


def show(pool_id: Annotated[str, Parameter(help="The pool's id.")], /, *, common: Common = NONE) -> int:
    """Show one pool: its settings, task counts and members."""
    settings = common.configured()
    pool, count, members = anyio.run(_show, settings, pool_id, backend_options=loop_options())
    record = attrs.asdict(pool, filter=attrs.filters.exclude("secret_hash"))
    record |= _numbers(count) | {"members": members}
    if common.json:
        output.line(record)
        return DONE
    shown = [(name, _shown(value)) for name, value in record.items()]
    output.table(("field", "value"), [row for row in shown if row[1] != ""])
    return DONE


def allow(
    pool_id: Annotated[str, Parameter(help="The pool's id.")],
    agent_ids: Annotated[list[str], Parameter(help="The agents' ids.")],
    /,
    *,
    remove: Annotated[
        bool, Parameter(negative=(), help="Take the agents off the list; they are no longer members.")
    ] = False,
    common: Common = NONE,
) -> int:
    """Put agents on the allow-list of a pool whose admission is `allow`, or take them off it."""
    settings = common.configured()
    listed, is_changed = anyio.run(_allow, settings, pool_id, agent_ids, remove, backend_options=loop_options())
    if common.json:
        output.line({"id": pool_id, "allow": list(listed), "is_changed": is_changed})
    else:
        output.write(
            f"pool {pool_id} allows {len(listed)} "
            f"{'agent' if len(listed) == 1 else 'agents'}{'' if is_changed else '; nothing was to be changed'}"
        )
    return DONE


def pause(pool_ids: Ids, /, *, common: Common = NONE) -> int:
    """Stop claims from the pools until they are resumed; running tasks go on."""
    _set_paused(common.configured(), pool_ids, is_paused=True, as_json=common.json)
    return DONE


def resume(pool_ids: Ids, /, *, common: Common = NONE) -> int:
    """Resume claims from the pools."""
    _set_paused(common.configured(), pool_ids, is_paused=False, as_json=common.json)
    return DONE


def _set_paused(config: Config, pool_ids: Sequence[str], *, is_paused: bool, as_json: bool) -> None:
    changes = anyio.run(_pause, config, list(dict.fromkeys(pool_ids)), is_paused, backend_options=loop_options())
    word = "paused" if is_paused else "resumed"
    for pool_id, is_changed in changes:
        if as_json:
            output.line({"id": pool_id, "is_paused": is_paused, "is_changed": is_changed})
        else:
            output.write(f"pool {pool_id} was {word}" if is_changed else f"pool {pool_id} was {word} before")


def _secret(file: Path | None) -> str | None:
    """Return the first line of the file: a secret on the command line would be seen by every process of the host."""
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--secret-file {file}: cannot be read: {error}") from error
    if not lines or not lines[0]:
        raise InputError(f"--secret-file {file}: its first line is empty; it should be the join secret")
    return lines[0]


def _numbers(count: Census) -> dict[str, int]:
    return {**attrs.asdict(count), "done": count.done}


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return _yes(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return " ".join(value) if isinstance(value, list | tuple) else value


async def _create(config: Config, pool: Pool, secret: str | None) -> tuple[bool, Pool]:
    async with main.opened_store(config, must_exist=False) as store:
        pools = PoolManager(store)
        return await pools.create_pool(pool, secret=secret), await pools.get(pool.id)


async def _list(config: Config) -> list[tuple[Pool, Census]]:
    async with main.opened_store(config) as store:
        pools = await PoolManager(store).pools()
        counts = await census(store, [pool.id for pool in pools])
        return [(pool, counts[pool.id]) for pool in pools]


async def _show(config: Config, pool_id: str) -> tuple[Pool, Census, list[str]]:
    async with main.opened_store(config) as store:
        manager = PoolManager(store)
        pool = await manager.get(pool_id)
        return pool, (await census(store, [pool_id]))[pool_id], await manager.members(pool_id)


async def _allow(config: Config, pool_id: str, agent_ids: Sequence[str], is_remove: bool) -> tuple[Sequence[str], bool]:
    async with main.opened_store(config) as store:
        manager = PoolManager(store)
        if is_remove:
            is_changed = await manager.change_allowed(pool_id, remove=agent_ids)
        else:
            is_changed = await manager.change_allowed(pool_id, add=agent_ids)
        return (await manager.get(pool_id)).allow, is_changed


async def _pause(config: Config, pool_ids: Sequence[str], is_paused: bool) -> list[tuple[str, bool]]:
    async with main.opened_store(config) as store:
        manager = PoolManager(store)
        for pool_id in pool_ids:
            await manager.get(pool_id)  # a misspelt one is refused before anything is changed
        return [(pool_id, await manager.set_paused(pool_id, is_paused=is_paused)) for pool_id in pool_ids]
