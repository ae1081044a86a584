"""What `converge run` does: a node, its agents, the tasks of a file, until the pool is drained or a signal comes."""

from __future__ import annotations

import difflib
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from converge.contracts.store import Feature, Store
from converge.errors import ConfigError, ConvergeError, InvalidValue, NoSuchPool, ResultTimeout, UserCodeExited
from converge.foreign import describe, tell
from converge.machines.breaker import CircuitState
from converge.machines.lane import Lane
from converge.machines.match import refusal
from converge.model.identity import SHOWN
from converge.model.pool import Pool
from converge.model.task import Task
from converge.operations import drain
from converge.operations.drain import Drain, Drained, Ended, Progress
from converge.operations.signals import StopAsked, stop_asked
from converge.plugins import PluginHost
from converge.plugins.blame import owner_of
from converge.runtime.agents.agent import Agent, claimer_of, claims_tasks, takes_messages
from converge.runtime.config.config import DEFAULT, Config, check_options, needing_transport, options_with_origin
from converge.runtime.config.fields import AgentGroup
from converge.runtime.config.node_settings import NodeSettings
from converge.secret import without_password
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.store.opening import open_store
from converge.settings import Problem, raise_problems

if TYPE_CHECKING:
    from converge.runtime.node import Node

log = logging.getLogger("converge.node")

SUBMIT = 500
"""Tasks of one submit: large enough that calls cost little, small enough that the first agents start meanwhile."""

BEYOND_SEC = 5.0
"""What a stop may take beyond the grace time, whatever the store does: together, what Kubernetes leaves a process."""

DEAD_LOOK_SEC = 0.5
"""How often a process looks whether its store's handle is dead."""

NOTE_SEC = 0.5
"""How often it is told how many agents rest."""

Note = Callable[[str], None]

COLLECTOR = (10_000, 10, 10)
"""Thresholds of the garbage collector: a full pass after a million new containers, some 100 MB, not after 70,000."""

SWITCH_SEC = 0.0005
"""How long a thread keeps the interpreter lock from one that asks for it: with Python's 5 ms the thread that writes a
file store, which gives the lock up at each step of a statement, was kept waiting for most of a transaction. On `file` a
node passes 1.6 times as many tasks.
"""


@attrs.frozen(kw_only=True)
class Run:
    """What one `run` is to do beyond its configuration. `agents` are the classes of its `groups`, in their order."""

    agents: Sequence[type[Agent]]
    tasks: Sequence[Task] = ()
    is_drain: bool = False
    may_create_pool: bool = False


def check(config: Config, run: Run) -> None:
    """Refuse what cannot work, before anything is opened.

    Raises:
        ConfigError: All that is missing, or does not fit.
    """
    problems = [
        Problem("pool_id", f"is missing: {cls.__name__} works on tasks, so name its pool with --pool")
        for cls, group in zip(run.agents, config.groups, strict=True)
        if claims_tasks(cls) and not takes_messages(cls) and not group.pool_id
    ]
    if run.is_drain and not pools_of(config) and not problems:
        problems.append(Problem("pool_id", "is missing: --drain is about a pool, so name it with --pool"))
    problems += needing_transport(config)
    if problems:
        from converge.runtime.config_check import problems_of

        # What is wrong is told beside what is missing: else it would be the next thing to fail.
        raise_problems([*problems, *(Problem("", line) for line in problems_of(config))])
    if not any(":" in name and not name.startswith("no:") for name in config.plugins):
        # Who names a plugin by its import path may give options to what nobody else knows.
        check_options(config, PluginHost())


def node_of(config: Config) -> Node:
    """Return the node that the configuration describes, not yet entered."""
    # Imported here, since it is half of what there is to import: commands that run no agents, and those that are
    # refused, answer sooner.
    from converge.runtime.node import Node

    settings: Any = {field.name: getattr(config, field.name) for field in attrs.fields(NodeSettings)}
    return Node(**settings | {"transport": config.transport_url})


def checked_host(config: Config) -> PluginHost:
    """Return the host of the configured plugins.

    Raises:
        ConfigError: Only this process would see the store, or a plugin cannot be used.
    """
    host = PluginHost(config.plugins)
    _check_shared(config, host)
    return host


@asynccontextmanager
async def opened_store(config: Config, *, must_exist: bool = True) -> AsyncIterator[Store]:
    """Return the configured store, for a command that works on what others do; a mistyped path makes no new one.

    Raises:
        ConfigError: Only this process would see it, or its plugin cannot be used.
    """
    store = open_store(
        config.store,
        plugins=checked_host(config),
        network=config.network,
        options=config.options,
        require_durability=config.require_durability,
        must_exist=must_exist,
    )
    with options_with_origin(config):
        async with store as handle:
            yield handle


async def submit_all(store: Store, tasks: Sequence[Task]) -> list[str]:
    """Submit all tasks; return their ids in order.

    Raises:
        InputError, StoreError: As `TaskManager.submit_many`.
    """
    manager, ids = TaskManager(store), list[str]()
    for at in range(0, len(tasks), SUBMIT):
        ids += await manager.submit_many(tasks[at : at + SUBMIT])
    return ids


async def wait_all(
    store: Store, ids: Sequence[str], poll_sec: float, timeout_sec: float | None, on_progress: Progress | None = None
) -> list[Ended]:
    """Wait until all tasks are terminal; return what has become of those that are still kept.

    Raises:
        ResultTimeout: After `timeout_sec` one was not.
        StoreError: As `Store.get`.
    """
    done: list[int] = [0]

    def on_one(count: int, bad: int) -> None:
        done[0] = count
        if on_progress is not None:
            on_progress(count, len(ids), bad)

    with anyio.move_on_after(timeout_sec):
        found = await drain.ask_all(TaskManager(store, poll_sec=poll_sec).result, ids, on_one)
        return [one for one in found.values() if one is not None]
    raise ResultTimeout(ids[0] if len(ids) == 1 else f"({len(ids) - done[0]} of {len(ids)})", timeout_sec or 0.0)


async def states_of(store: Store, ids: Sequence[str]) -> list[Ended]:
    """Return how the tasks stand now, those that have not ended too.

    Raises:
        StoreError: As `Store.get`.
    """
    found = await drain.ask_all(TaskManager(store).get, ids)
    return [one for one in found.values() if one is not None]


def tune_interpreter() -> None:
    """Make the garbage collector run less often and threads switch sooner, in a process that is only a node.

    So no class calls it by itself.

    A busy node makes thousands of short-lived tuples a second, nearly none in a cycle; on the memory store the
    collector's full passes over what is kept took 36 % of a node's time, and take 6 % with this. What was imported is
    not looked at again.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR)
    sys.setswitchinterval(SWITCH_SEC)


async def run(
    config: Config, run: Run, on_progress: Progress | None = None, on_note: Note | None = None
) -> tuple[Drained | None, int]:
    """Run until the pool is drained, if that is asked, or until a signal comes; then stop cleanly. Return what was
    drained, None if a signal came before, and the exit code: 128 and the signal's number for a drain that it cut short.

    `on_note` is told twice a second in a few words how many agents rest.

    Raises:
        ConvergeError: In a group, as task groups raise it.
    """
    check(config, run)
    with stop_asked(config.grace_sec + BEYOND_SEC) as stop, options_with_origin(config):
        node = node_of(config)
        node.vitals.starting = "its agents start"  # before anybody can ask
        async with node:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(cancel_when_asked, stop, scope)
                    group.start_soon(_end_when_dead, node)
                    if on_note is not None:
                        group.start_soon(_note_rests, node, on_note)
                    drained = await _work(node, config, run, on_progress)
                    group.cancel_scope.cancel()
                return drained, 0
    return None, 128 + stop.number if run.is_drain else 0


async def cancel_when_asked(stop: StopAsked, scope: anyio.CancelScope) -> None:
    """Cancel the scope once a signal has come."""
    await stop.wait()
    scope.cancel()


async def _end_when_dead(node: Node) -> None:
    """End a process that can do nothing more with its store: the next one opens what is there now.

    Raises:
        StoreReplaced: The store was removed or replaced.
    """
    while True:
        await anyio.sleep(DEAD_LOOK_SEC)
        if (error := node.handle.dead) is not None:
            raise error


async def _note_rests(node: Node, on_note: Note) -> None:
    while True:
        resting = sum(one.state is not CircuitState.CLOSED for one in node.supervision.troubled)
        on_note(f"{resting} resting" if resting else "")
        await anyio.sleep(NOTE_SEC)


async def _work(node: Node, config: Config, run: Run, on_progress: Progress | None) -> Drained:
    for cls, group in zip(run.agents, config.groups, strict=True):
        try:
            node.executor.check_agent_class(cls)  # before pools are made: a mistyped action leaves nothing behind
        except InvalidValue as error:
            raise ConfigError(f'agent "{group.type}": {error}') from error
    pools = pools_of(config)
    await prepare_pools(node.pools, config, pools, may_create=run.may_create_pool)
    warn_of_unclaimable(config, run)
    draining = Drain(node.handle, node.tasks, pools, on_progress) if run.is_drain else None
    if draining is not None:
        await draining.begin()  # before the agents: what they end at once is part of it
    for cls, group in zip(run.agents, config.groups, strict=True):
        await _spawn(node, cls, group)
        where = f"pool {group.pool_id}" if group.pool_id else "no pool"
        noun = "agent" if group.count == 1 else "agents"
        log.info(
            "running %d %s of %s in %s, store %s, process %s",
            group.count,
            noun,
            cls.__name__,
            where,
            without_password(config.store),
            node.identity.id[:SHOWN],
        )
    node.vitals.starting = ""
    ids = await submit_all(node.store, run.tasks)
    if draining is None:
        await anyio.sleep_forever()
        raise AssertionError("nobody wakes it")
    return await draining.run(ids)


async def _spawn(node: Node, cls: type[Agent], group: AgentGroup) -> None:
    """Start the group's agents; an error of their own code is reported as such."""
    try:
        await node.spawn(cls, count=group.count, pool=group.pool_id or None)
    except UserCodeExited as error:
        raise ConvergeError(f'agent "{group.type}" did not start: {error}') from error
    except ConvergeError:
        raise
    except Exception as error:
        if owner_of(error) is not None:
            raise  # a plugin's, whatever agent was about to start
        tell(log, logging.ERROR, "agent %s did not start", group.type, error=error)
        raise ConvergeError(f'agent "{group.type}" did not start: {describe(error)}') from error


def pools_of(config: Config) -> list[str]:
    """Return the pools that the configuration names, each once."""
    return list(
        dict.fromkeys(pool_id for pool_id in (config.pool_id, *(group.pool_id for group in config.groups)) if pool_id)
    )


async def prepare_pools(pool_manager: PoolManager, config: Config, pools: Sequence[str], *, may_create: bool) -> None:
    """Create the pools that are not there, all or none; a near name that exists and was not named is likely meant."""
    missing = []
    for pool_id in pools:
        try:
            _tell_of_retention(config, await pool_manager.get(pool_id))
        except NoSuchPool as error:
            missing.append(pool_id)
            if error.nearest is not None and error.nearest not in pools and not may_create:
                raise ConfigError(
                    f'pool_id: pool "{pool_id}" does not exist, but "{error.nearest}" does; did you mean that? '
                    f"--create-pool creates this "
                    f"one"
                ) from error
    for pool_id in missing:
        await pool_manager.create_pool(pool_of(config, pool_id))


def pool_of(config: Config, pool_id: str) -> Pool:
    """Return the pool as the configuration has new ones made."""
    keep = config.retention
    return Pool(id=pool_id, keep_completed_sec=keep.completed_sec, keep_failed_sec=keep.failed_sec)


def _tell_of_retention(config: Config, pool: Pool) -> None:
    """Log that an existing pool keeps its settings: the configured ones do not apply to it."""
    wanted = config.retention.completed_sec, config.retention.failed_sec
    kept = pool.keep_completed_sec, pool.keep_failed_sec
    if config.origins.get("retention", DEFAULT) != DEFAULT and wanted != kept:
        text = (
            "%s: retention: pool %s exists and keeps its own: completed tasks %g s, failed ones %g s; what is set here "
            "counts for new pools only"
        )
        log.warning(text, config.origins["retention"], pool.id, *kept)


def warn_of_unclaimable(config: Config, run: Run) -> None:
    """Warn of submitted tasks that no agent here may claim: a drain waits for them until somebody else does; and of
    agents that do nothing in their pool.
    """
    here = [(cls, claimer_of(cls), group.pool_id) for cls, group in zip(run.agents, config.groups, strict=True)]
    for cls, _, pool_id in here:
        if pool_id and not (claims_tasks(cls) or takes_messages(cls) or cls.tick_sec is not None):
            near = difflib.get_close_matches("on_task", vars(cls), n=1, cutoff=0.7)
            hint = f'; is its "{near[0]}" meant to be on_task?' if near else ""
            log.warning("%s has no on_task, so it works on nothing in pool %s%s", cls.__name__, pool_id, hint)
    counts = dict[tuple[str, str], int]()
    for task in run.tasks:
        lane = Lane(
            pool=task.pool_id,
            topic=task.topic,
            type=task.type,
            capabilities=tuple(map(str, task.required_capabilities)),
        )
        refusals = [(cls.__name__, refusal(lane, claimer)) for cls, claimer, pool_id in here if pool_id == task.pool_id]
        if refusals and all(why is not None for _, why in refusals):
            name, why = refusals[0]
            counts[name, str(why)] = counts.get((name, str(why)), 0) + 1
    for (name, why), count in counts.items():
        log.warning("%d submitted tasks cannot be claimed by %s: %s", count, name, why)


def _check_shared(config: Config, host: PluginHost) -> None:
    if Feature.SHARED not in host.store_backend(config.store).features:
        shown = without_password(config.store)
        raise ConfigError(
            f"store: {shown} is seen by this process only; name the one that the agents use, such as --store "
            f"file:state.db"
        )
