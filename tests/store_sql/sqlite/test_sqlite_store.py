"""What a SQLite URL may be, and which files there are."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from converge import Pool, PoolManager, open_store
from converge.errors import InvalidName, InvalidValue, StoreError, StoreRefused, Unsupported
from converge_store_sql.sqlite import SqliteOptions, SqliteStore
from converge_store_sql.sqlite.store import check_version


@pytest.mark.parametrize(
    "url", ["sqlite:", "sqlite://", "sqlite:///", "sqlite:state.db", "sqlite://host/state.db", "sqlite:///:memory:"]
)
async def test_a_url_without_a_file_of_this_host_is_refused(url: str) -> None:
    with pytest.raises(InvalidValue, match="sqlite:///PATH"):
        async with SqliteStore.open(url):
            pass


async def test_a_path_may_be_relative_or_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with SqliteStore.open("sqlite:///near%20by.db"):
        assert (tmp_path / "near by.db").exists()
    async with SqliteStore.open(f"SQLite:///{tmp_path}/far.db"):  # a scheme may be written in capitals
        assert (tmp_path / "far.db").exists()


async def test_networks_are_kept_apart_in_files_of_their_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    async with open_store(url, network="blue") as blue, open_store(url) as plain:
        await PoolManager(blue).create_pool(Pool(id="docs"))
        assert await PoolManager(plain).pools() == []
    assert (tmp_path / "state.db.blue").exists() and (tmp_path / "state.db").exists()
    with pytest.raises(InvalidName):
        SqliteOptions(network="../up")


async def test_each_commit_is_on_the_disk_and_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    async with SqliteStore.open(f"sqlite:///{tmp_path}/state.db") as store:
        facts = await store.facts()
        assert (facts["journal_mode"], facts["synchronous"]) == ("wal", "full")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table mine (a)")
    other.close()
    with pytest.raises(StoreRefused, match="another program"):
        async with SqliteStore.open(f"sqlite:///{tmp_path}/other.db"):
            pass
    with pytest.raises(StoreError, match="make the folder first"):
        async with SqliteStore.open(f"sqlite:///{tmp_path}/nowhere/state.db"):
            pass


def test_an_old_sqlite_is_refused_with_both_versions() -> None:
    with pytest.raises(Unsupported, match=r"3\.36\.0.*3\.37"):
        check_version((3, 36, 0))
    check_version((3, 37, 0))
