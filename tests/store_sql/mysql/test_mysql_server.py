"""What is said of a MariaDB or MySQL server by its settings, of a URL and of an error, without a call to the store."""

from __future__ import annotations

import sys
from pathlib import Path

import asyncmy
import pytest

from converge.contracts.store import Durability
from converge.errors import (
    ConfigError,
    InvalidName,
    InvalidValue,
    NotApplied,
    OutcomeUnknown,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
    Unsupported,
)
from converge.testing._transport.certificates import Authority
from converge_store_sql.mysql import MysqlOptions, MysqlStore
from converge_store_sql.mysql import server as servers
from converge_store_sql.mysql._errors import call_failed


@pytest.mark.parametrize(
    ("url", "words"),
    [("mysql://host", "database is missing"), ("mysql://h:x/db", "HOST:PORT"), ("mysql://h/db?sslmode=1", "ssl_ca")],
)
async def test_a_url_that_is_none_is_refused(url: str, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        async with MysqlStore.opened(url):
            pass


async def test_a_file_of_tls_that_cannot_be_used_is_named_and_no_passphrase_is_asked_for(tmp_path: Path) -> None:
    issued, ca = Authority(tmp_path, "house").issue("client", is_sealed=True), tmp_path / "none.pem"
    shown = f"ssl_cert={issued['certificate']}&ssl_key={issued['key']}"
    for query, words in ((f"ssl_ca={ca}", r"ssl_ca=.*none\.pem"), (shown, r"ssl_cert=.*the key is encrypted")):
        with pytest.raises(ConfigError, match=words):
            async with MysqlStore.opened(f"mysql://127.0.0.1:1/db?{query}"):
                pass


async def test_the_driver_that_is_missing_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "asyncmy", None)
    with pytest.raises(Unsupported, match=r"pip install converge-store-sql\[mysql\]"):
        async with MysqlStore.opened("mysql://h/db"):
            pass


def test_old_versions_and_clusters_are_refused_and_newer_ones_are_expected_to_work() -> None:
    found = {"version": "10.11.6-MariaDB", "sysdate_is_now": "OFF", "max_allowed_packet": "16777216"}
    servers.check(found, "w")
    for change, words in (
        ({"version": "10.5.9-MariaDB"}, r"10\.6"),
        ({"version": "5.7.44"}, r"8\.0"),
        ({"wsrep_on": "ON"}, "Galera"),
    ):
        with pytest.raises(Unsupported, match=words):
            servers.check({**found, **change}, "w")
    told = [servers.inspection({**found, "version": version}) for version in ("10.11.6-MariaDB", "8.4.3")]
    assert [(one.product, one.is_tested) for one in told] == [("MariaDB 10.11.6", True), ("MySQL 8.4.3", False)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Durability.D2),
        ({"innodb_flush_log_at_trx_commit": "2"}, Durability.D1),
        ({"innodb_doublewrite": "OFF"}, Durability.D1),
        ({"innodb_flush_method": "nosync"}, Durability.D1),
        ({"innodb_flush_log_at_trx_commit": "0"}, Durability.D0),
        (
            {"innodb_flush_log_at_trx_commit": "0", "innodb_doublewrite": "0", "innodb_flush_method": "nosync"},
            Durability.D0,
        ),
    ],
)
def test_the_class_of_durability_follows_the_settings(settings: dict[str, str], expected: Durability) -> None:
    told = servers.inspection({"version": "10.11.6-MariaDB", **settings})
    assert told.durability is expected
    mends = [finding.mend for finding in told.findings if finding.mend]
    assert [mend.removeprefix("set global ").split()[0] for mend in mends] == list(settings), "each is named"
    assert [finding.code for finding in told.findings if not finding.mend] == ([] if settings else ["durability"])


@pytest.mark.parametrize(
    ("number", "kind"),
    [(1021, StoreFull), (1114, StoreFull), (1213, StoreBusy), (1205, StoreBusy), (1290, StoreUnavailable)],
)
def test_what_the_server_refused_was_not_applied(number: int, kind: type[NotApplied]) -> None:
    error = asyncmy.errors.OperationalError(number, "no")
    assert isinstance(call_failed(error, "w", writes=True), kind)


@pytest.mark.parametrize("number", [2013, 2006, 1053, 1927])
def test_a_server_that_goes_away_in_a_call_leaves_a_write_unknown_and_a_read_unavailable(number: int) -> None:
    error = asyncmy.errors.OperationalError(number, "gone")
    assert isinstance(call_failed(error, "w", writes=True), OutcomeUnknown)
    assert isinstance(call_failed(error, "w", writes=False), StoreUnavailable)


async def test_exceptions_of_the_block_come_out_as_they_are(mariadb_url: str, options: MysqlOptions) -> None:
    for kind in (ZeroDivisionError, SystemExit):
        with pytest.raises(kind):
            async with MysqlStore.opened(mariadb_url, options):
                raise kind


@pytest.mark.parametrize("network", ["", "Upper", "a-b", "a" * 32, "x; drop table y"])
def test_a_network_that_cannot_begin_the_name_of_a_table_is_refused(network: str) -> None:
    with pytest.raises(InvalidName):
        MysqlOptions(network=network)
