"""What the settings of a server mean for an operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from converge.codec import FORMAT
from converge.contracts.store import Durability, Finding, Inspection, error, fine, warning
from converge_store_sql.way import way

LEAST_VERSION = 140000
TESTED = (15, 16, 18)

SETTINGS = """select current_setting('server_version_num')::integer, current_setting('fsync'),
    current_setting('full_page_writes'), current_setting('synchronous_commit'),
    current_setting('synchronous_standby_names'), pg_is_in_recovery(), current_setting('default_transaction_read_only'),
    (select extract(epoch from max(clock_timestamp() - xact_start)) from pg_stat_activity
        where datname = current_database() and backend_xmin is not null)::float8,
    current_setting('server_encoding'),
    case current_setting('track_counts') when 'off' then 'off' else current_setting('autovacuum') end,
    coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), true)"""

ENCODINGS = ("UTF8", "SQL_ASCII")
"""Those of a database that can hold every text of a key, and return it as it was."""

OLD_SNAPSHOT_SEC = 600.0
"""From when on an open transaction is worth telling: what has been deleted since it began stays on the disk."""


class Settings(NamedTuple):
    """What `SETTINGS` answers; `oldest_sec`: since when the oldest transaction is open that we may see."""

    version: int
    fsync: str
    full_page_writes: str
    synchronous_commit: str
    standbys: str
    is_standby: bool
    is_read_only: str
    oldest_sec: float | None
    encoding: str = "UTF8"
    autovacuum: str = "on"
    is_encrypted: bool = True

    @property
    def durability(self) -> Durability:
        return durability(self.fsync, self.full_page_writes, self.synchronous_commit, self.standbys)


def durability(fsync: str, full_page_writes: str, synchronous_commit: str, standbys: str) -> Durability:
    """Return what an acknowledged commit survives with these settings of the server."""
    if synchronous_commit == "off":
        return Durability.D0  # it may still be in the server's memory when the server is killed
    if fsync == "off" or full_page_writes == "off":
        return Durability.D1
    return Durability.D3 if standbys.strip() and synchronous_commit in ("on", "remote_apply") else Durability.D2


def inspection(found: Settings, schema: int | None = None, where: str = "") -> Inspection:
    """Return what these settings of the server at `where` mean, and the number of the schema if there is one."""
    major, minor = divmod(found.version, 10_000)
    return Inspection(
        durability=found.durability,
        product=f"PostgreSQL {major}.{minor}",
        role="replica" if found.is_standby else "primary",
        is_tested=major in TESTED,
        findings=(
            *_findings(found, schema),
            *way(where, is_encrypted=found.is_encrypted, adds="?sslmode=verify-full"),
        ),
    )


def _findings(found: Settings, schema: int | None) -> Iterator[Finding]:
    yield from _on_durability(found)
    if found.autovacuum == "off":
        text = "autovacuum is off: rows of finished tasks stay on the disk, and the store becomes slower"
        yield warning("autovacuum", text, _set_on("autovacuum", "track_counts"))
    if found.is_standby:
        yield error("replica", "the server is a standby and takes no writes", "name the primary in the store's URL")
    if found.is_read_only == "on":
        text = "default_transaction_read_only is on: writes of others than Converge are refused"
        yield warning("read-only", text, "set default_transaction_read_only to off")
    if found.oldest_sec is not None and found.oldest_sec > OLD_SNAPSHOT_SEC:
        text = f"a transaction has been open for {found.oldest_sec / 60:.0f} min: dead rows since then stay on the disk"
        yield warning(
            "old-snapshot", text, "end it; pg_stat_activity names it, idle_in_transaction_session_timeout helps"
        )
    if found.encoding not in ENCODINGS:
        text = f"the database's encoding is {found.encoding}, which has no place for every text of a key"
        yield error("encoding", text, "create one with ENCODING 'UTF8'")
    if schema is not None:
        yield fine("schema", f"the schema has version {schema}, this release knows {FORMAT}")


def _on_durability(found: Settings) -> Iterator[Finding]:
    if found.synchronous_commit == "off":
        text = "synchronous_commit is off: a crash of the server loses what it acknowledged in the last moments"
        mend = f"{_set_on('synchronous_commit')}; reset it where `\\drds` shows it for a role or a database"
        yield error("durability", text, mend)
    for name, value in (("fsync", found.fsync), ("full_page_writes", found.full_page_writes)):
        if value == "off":
            yield error("durability", f"{name} is off: a power cut may destroy the database", _set_on(name))
    if found.durability is Durability.D2:
        text = f"synchronous_commit is {found.synchronous_commit}, without a synchronous standby"
        yield fine("durability", f"{text}: each commit is on the primary's disk, and is lost with it")
    elif found.durability is Durability.D3:
        yield fine("durability", f"each commit waits for {found.standbys}")


def _set_on(*names: str) -> str:
    """Return what sets these for the server: `set NAME to on` would do so for the session that says it."""
    return "".join(f"alter system set {name} = on; " for name in names) + "select pg_reload_conf()"
