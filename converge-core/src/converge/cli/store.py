"""`converge store`: inspect a store; accept one that was restored from a backup."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE, FAILED
from converge.cli.options import NONE, Common
from converge.cli.run import loop_options
from converge.errors import InputError
from converge.operations import run as main
from converge.operations.store_changes import Accepting, accept_store, migrate_store
from converge.operations.store_copy import copy as copy_store
from converge.operations.store_copy import url_of
from converge.operations.store_info import StoreFacts, store_facts
from converge.plugins import PluginHost
from converge.runtime.config.config import Config
from converge.secret import without_password
from converge.services.tasks.records import moment

IdentityDir = Annotated[
    Path | None,
    Parameter(help="The identity_dir of processes that must accept the store; by default that of the configuration."),
]


def info(*, common: Common = NONE) -> int:
    """Show a store: backend, settings, epoch, clock compared with this host, contents, and processes that use it."""
    settings = common.configured()
    facts = anyio.run(_info, settings, backend_options=loop_options())
    if common.json:
        output.line(_record(facts))
        return DONE
    output.table(("field", "value"), [row for row in _rows(facts) if row[1] != ""])
    if facts.keys:
        output.write("")
        output.table(("keys of", "count"), list(facts.keys.items()))
    if facts.pools:
        output.write("")
        columns = ("pool", "ready", "later", "parked", "waiting", "held", "done")
        output.table(
            columns,
            [
                (pool_id, one.ready, one.later, one.parked, one.waiting, one.held, one.done)
                for pool_id, one in facts.pools.items()
            ],
        )
    output.write("")
    rows = [
        (
            *(one.id[:12], one.node[:12], f"{one.pid}@{one.host}" if one.pid else "", one.release),
            *(moment(one.started) if one.started else "", " ".join(one.endpoints)),
            *(f"{one.remaining_sec:.1f} s", one.agents, one.held),
        )
        for one in facts.leases
    ]
    output.table(
        ("lease", "node", "process", "release", "started", "endpoints", "runs for", "agents", "held"),
        rows,
        empty="no process has a lease on it",
    )
    return DONE


def migrate(
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="Show what is missing, and change nothing.")] = False,
    convert: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Also convert records of older formats to the newest; older releases refuse the store from then on.",
        ),
    ] = False,
    common: Common = NONE,
) -> int:
    """Add to a store what this release needs: tables for new kinds of records, with the rights of the existing ones.

    Opening a store does the same, so this is for databases where the role of the agents may not create tables: run it
    as the role that owns them, before the new release starts, such as

        converge store migrate --dry-run --plugin sql --store postgresql://owner@db/agents

    and then without --dry-run. It can be repeated, and processes of this release and of the one before may use the
    store meanwhile.
    """
    wanted = partial(migrate_store, common.configured(), is_dry_run=dry_run, converts=convert)
    done = anyio.run(wanted, backend_options=loop_options())
    if common.json:
        output.line(attrs.asdict(done) | {"missing": list(done.missing)})
        return DONE
    if not done.missing:
        output.write("nothing is missing: the store has all that this release needs")
    for line in done.missing:
        output.write(f"{'missing' if dry_run else 'added'}: {line}")
    if done.old is not None:
        output.write(f"{'of an older format' if dry_run else 'converted'}: {done.old:,} ordering keys")
    return DONE


def copy(
    source: Annotated[str, Parameter(metavar="SOURCE", help="The URL to copy from, or env:NAME.")],
    destination: Annotated[str, Parameter(metavar="DESTINATION", help="The URL to copy to, or env:NAME.")],
    /,
    *,
    common: Common = NONE,
) -> int:
    """Copy everything of a network from one store to another that is empty, and compare the two; all processes have to
    be stopped.

    Tasks with their history, pools, dedup and ordering keys go with it, and what stopped processes held goes back in
        the copy. Until both stores are the same nobody can open the destination; broken off, the same command begins
        anew. A URL with a password is put into an environment variable, such as

        converge store copy file:state.db env:NEW_STORE --plugin redis
    """
    if common.store is not None:
        raise InputError("--store is not used here: give both stores as arguments")
    urls = [url_of(given) for given in (source, destination)]
    settings = common.configured()
    with output.progress("keys", is_wanted=not common.json) as bar:
        done = anyio.run(partial(copy_store, settings, *urls, on_progress=bar), backend_options=loop_options())
    if common.json:
        output.line(attrs.asdict(done) | {"keys": dict(done.keys)})
        return DONE
    output.table(("keys of", "count"), list(done.keys.items()), empty="the source was empty")
    output.write("")
    output.write(f"copied {sum(done.keys.values()):,} keys; both stores are the same, digest {done.digest}")
    if done.leases:
        output.write(f"{done.leases} stopped without ending the lease: what was held goes back at the first sweep")
    return DONE


def accept(
    *,
    yes: Annotated[
        bool,
        Parameter(name=["--yes", "-y"], negative=(), help="Do not ask; required if standard input is not a terminal."),
    ] = False,
    identity_dir: IdentityDir = None,
    common: Common = NONE,
) -> int:
    """Accept a store that was flushed, restored or replaced: processes that stopped because of it go on with what it
    holds now.

    First find out what happened to its data: tasks that were submitted since the backup are not in it, and some that
    were completed may run again.
    """
    kept = str(identity_dir) if identity_dir else None
    settings = common.configured(identity_dir=kept)
    if not yes:
        if not output.can_ask():
            raise InputError("--yes is missing: standard input is not a terminal, and this cannot be undone")
        shown = without_password(settings.store)
        question = (
            f"Take what is in {shown} now for the true history? Every process begins anew with it; what they hold goes "
            "back."
        )
        if not output.ask(question):
            output.note("nothing was changed")
            return FAILED
    done = anyio.run(_accept, settings, backend_options=loop_options())
    if common.json:
        output.line(attrs.asdict(done))
    else:
        before = f"in place of {done.before[:12]}" if done.before else "it had none"
        output.write(f"epoch {done.epoch[:12]} was drawn, {before}; processes that had stopped go on within seconds")
        if done.identity_dir:
            output.write(f"{done.identity_dir} remembers it")
    return DONE


def _rows(facts: StoreFacts) -> list[tuple[str, object]]:
    return [
        ("store", facts.store),
        ("backend", facts.backend),
        ("network", facts.network),
        ("durability", facts.durability),
        ("features", " ".join(facts.features)),
        ("contract", facts.contract),
        ("format", f"{facts.format}, this release knows {facts.newest_format}"),
        ("epoch", facts.epoch),
        ("accepted", facts.accepted_at),
        ("clock", f"{facts.skew_sec * 1_000:+.1f} ms beside this host's"),
        ("answers in", f"{facts.answer_sec * 1_000:.1f} ms"),
        ("records", ", ".join(f"{count} of version {version}" for version, count in facts.versions.items())),
        *((_title(name), _sized(name, value)) for name, value in facts.settings.items()),
    ]


def _title(name: str) -> str:
    return f"{name.removesuffix('_bytes')} size" if name.endswith("_bytes") else name.replace("_", " ")


def _sized(name: str, value: str | int) -> str:
    if not name.endswith("_bytes") or not isinstance(value, int):
        return str(value)
    size = float(value)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1_024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1_024
    return f"{size:.1f} TiB"


def _record(facts: StoreFacts) -> dict[str, Any]:
    leases = [attrs.asdict(one) | {"endpoints": list(one.endpoints)} for one in facts.leases]
    pools = {pool_id: attrs.asdict(one) | {"done": one.done} for pool_id, one in facts.pools.items()}
    own = attrs.asdict(facts, recurse=False) | {"features": list(facts.features), "settings": dict(facts.settings)}
    return own | {"versions": dict(facts.versions), "keys": dict(facts.keys), "pools": pools, "leases": leases}


async def _info(config: Config) -> StoreFacts:
    async with main.opened_store(config) as store:
        return await store_facts(store, config, PluginHost(config.plugins))


async def _accept(config: Config) -> Accepting:
    async with main.opened_store(config) as store:
        return await accept_store(store, config)
