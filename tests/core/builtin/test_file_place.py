"""What becomes of a path that is named as a store: where a file may be, whose it may be, how it is made."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from converge import Pool, PoolManager, open_store
from converge.builtin.file import place
from converge.builtin.file.database import pending
from converge.builtin.file.options import FileOptions
from converge.builtin.file.place import checked_path, file_system
from converge.builtin.file.reader import CACHE_KIB, Reader
from converge.builtin.file.schema import APPLICATION_ID, connect_writer
from converge.builtin.file.store import FileStore
from converge.contracts.store import ABSENT, Batch, Committed, Store
from converge.errors import NoSuchStore, SchemaTooNew, StoreRefused, StoreUnavailable
from converge.model.keys import LATER, POOL, STATE, TASK


async def put(store: Store, text: bytes = b"{}") -> None:
    (outcome,) = await store.commit([Batch([(POOL("docs"), ABSENT)], [(POOL("docs"), text)])])
    assert type(outcome) is Committed


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_a_relative_path_is_one_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with FileStore.open("file:state.db") as store:
        await put(store)
    async with FileStore.open(f"file://{tmp_path}/state.db") as store:
        assert (await store.get([POOL("docs")]))[0] is not None


@pytest.mark.parametrize("name", ["a b.db", "what?mode=memory", "100%25.db", "#1.db", "ä.db", "d" * 200 + ".db"])
async def test_any_name_of_a_file_serves(tmp_path: Path, name: str) -> None:
    async with FileStore.open(f"file:{tmp_path / name}") as store:
        await put(store)
    assert (tmp_path / name).stat().st_size > 0


async def test_a_store_whose_log_is_being_folded_back_for_the_first_time_is_no_other_programs(tmp_path: Path) -> None:
    """Between two pages of that, as another process that opens it may find it: there is more than one, and no mark."""
    found = tmp_path / "found.db"
    async with open_store(f"file:{tmp_path / 'state.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        for end in ("", "-wal", ".turn"):
            shutil.copy(tmp_path / f"state.db{end}", f"{found}{end}")
    with found.open("ab") as file:
        assert file.tell() == 4_096, "the log has been folded back, so the test shows nothing"
        file.write(bytes(4_096))
    async with open_store(f"file:{found}") as store:
        assert (await PoolManager(store).get("p")).id == "p"


async def test_a_file_that_is_no_database_is_refused_and_nothing_is_put_beside_it(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text("class User: ...")
    with pytest.raises(StoreRefused, match="is not a SQLite database"):
        async with FileStore.open(f"file:{tmp_path / 'user.py'}"):
            pass
    assert list(modes_in(tmp_path)) == ["user.py"]
    assert (tmp_path / "user.py").read_text() == "class User: ..."


async def test_the_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with FileStore.open(f"file:{tmp_path / 'state.db'}") as store:
            await put(store)
            watch = aiter(store.watch(["lane.x"]))
            await anext(watch)
            modes = modes_in(tmp_path)
            await watch.aclose()  # type: ignore[attr-defined]  # an async generator
    finally:
        os.umask(before)
    assert set(modes) == {"state.db", "state.db-wal", "state.db-shm", "state.db.lock", "state.db.turn", "state.db.wake"}
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:", "a path is missing"),
        ("file://", "a path is missing"),
        ("file:{}", "is a folder"),
        ("FILE:{}", "is a folder"),
        ("file:~/none/state.db", "only a shell knows what ~ is"),
        ("file:{}/none/state.db", "does not exist"),
    ],
)
async def test_a_path_that_is_no_place_for_a_file_is_refused(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(StoreRefused, match=said):
        async with FileStore.open(url.format(tmp_path)):
            raise AssertionError("it was opened")


@pytest.mark.parametrize("must_exist", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "long", "beside", "dangling", "surrogate"])
def test_what_can_be_no_file_of_a_store_is_refused_and_nothing_is_written(
    tmp_path: Path, kind: str, must_exist: bool
) -> None:
    path = tmp_path / "state.db"
    match kind:
        case "pipe":
            os.mkfifo(path)
            said = "is a device, a pipe or a socket"
        case "device":
            path.symlink_to("/dev/null")
            said = "/dev/null is a device"
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
            said = "is a device, a pipe or a socket"
        case "long":
            path = tmp_path / ("d" * 250)
            said = "has at most 247 bytes, not 250"
        case "beside":
            path.touch()
            path = tmp_path / "state.db-wal"
            said = "belongs to the store .*state.db; name another"
        case "dangling":
            path.symlink_to(tmp_path / "none" / "state.db")
            said = "none does not exist"
        case _:
            path = tmp_path / os.fsdecode(b"\xc3")
            said = r"\\udcc3' is not UTF-8"
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StoreRefused, match=said):
        checked_path(f"file:{path}", must_exist=must_exist)
    assert sorted(os.listdir(tmp_path)) == before
    assert not Path("/dev/null.turn").exists()


def test_what_belongs_to_a_store_is_not_proposed_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "states.turn").touch()
    with pytest.raises(NoSuchStore) as raised:
        checked_path(f"file:{tmp_path}/states", must_exist=True)
    assert "did you mean" not in str(raised.value)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "state.db"
    loop.symlink_to(loop)
    with pytest.raises(StoreRefused, match="cannot be opened for writing"):
        checked_path(f"file:{loop}")


def mounted(monkeypatch: pytest.MonkeyPatch, point: Path, kind: str, folder: Path | None = None) -> None:
    """Let the system say that the point, a folder, or a file in `folder`, is on a file system of this type."""
    mounts = (folder or point) / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/ {point.resolve()} {kind} rw 0 0\n")
    monkeypatch.setattr(place, "MOUNTS", mounts)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mounted(monkeypatch, tmp_path, kind)
    with pytest.raises(StoreRefused, match=rf"network file system \({kind}\)"):
        checked_path(f"file:{tmp_path}/state.db")
    assert not (tmp_path / "state.db").exists()


def test_a_file_that_is_mounted_without_its_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is removed after a crash takes the log with it, and all that was acknowledged since."""
    mounted(monkeypatch, tmp_path / "state.db", "ext4", tmp_path)
    with pytest.raises(StoreRefused, match="mount its folder"):
        checked_path(f"file:{tmp_path}/state.db")
    checked_path(f"file:{tmp_path}/other.db")


@pytest.mark.parametrize(
    "kind", ["virtiofs", "fuse.grpcfuse", "vboxsf", "fuse.vmhgfs-fuse", "prl_fs", "drvfs", "osxfs", "fakeowner"]
)
def test_a_file_system_that_several_kernels_share_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounted(monkeypatch, tmp_path, kind)
    with pytest.raises(StoreRefused, match=rf"folder that several systems share \({kind}\)"):
        checked_path(f"file:{tmp_path}/state.db")
    assert not (tmp_path / "state.db").exists()


def test_a_link_to_a_file_on_a_shared_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    mounted(monkeypatch, tmp_path / "shared", "virtiofs")
    (tmp_path / "state.db").symlink_to(tmp_path / "shared" / "state.db")
    with pytest.raises(StoreRefused, match="several systems share"):
        checked_path(f"file:{tmp_path}/state.db")


@pytest.mark.parametrize(("kind", "warnings"), [("fuse.novel", 1), ("fuse.gocryptfs", 0), ("ext4", 0)])
def test_an_unknown_file_system_in_user_space_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, warnings: int
) -> None:
    mounted(monkeypatch, tmp_path, kind)
    checked_path(f"file:{tmp_path}/state.db")
    assert [record.levelname for record in caplog.records if kind in record.getMessage()] == ["WARNING"] * warnings


@pytest.mark.parametrize(("system", "is_on"), [("darwin", 1), ("linux", 0)])
def test_a_commit_on_macos_waits_for_the_disk_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, is_on: int
) -> None:
    (tmp_path / "state.db").touch()
    monkeypatch.setattr(sys, "platform", system)
    connection = connect_writer(str(tmp_path / "state.db"))
    assert connection.execute("pragma fullfsync").fetchone() == (is_on,)
    connection.close()


def test_a_connection_that_reads_keeps_few_pages(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with closing(connect_writer(str(tmp_path / "state.db"))), closing(Reader(str(tmp_path / "state.db"))) as reader:
        assert reader._connection.execute("pragma cache_size").fetchone() == (-CACHE_KIB,)


def test_the_longest_mount_point_says_the_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    real, mounts = tmp_path.resolve(), tmp_path / "mounts"
    escaped = str(real / "a b").replace(" ", "\\040")
    mounts.write_text(
        f"/dev/vda / ext4 rw 0 0\nserver:/ {real} nfs rw 0 0\n/dev/vdb {escaped} tmpfs rw 0 0\n/dev/vdb {escaped} xfs "
        "rw 0 0\n"
    )
    monkeypatch.setattr(place, "MOUNTS", mounts)
    assert [file_system(path) for path in (Path("/"), tmp_path, tmp_path / "a b")] == ["ext4", "nfs", "xfs"]


@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "browser.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"pragma journal_mode = {mode}")
        connection.execute("create table meta (name, value)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="of another program"):
        async with FileStore.open(f"file:{path}"):
            raise AssertionError("it was opened")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["browser.db"]


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("the quick brown fox\n" * 500)
    with pytest.raises(StoreRefused, match="not a SQLite database"):
        async with FileStore.open(f"file:{path}"):
            raise AssertionError("it was opened")
    assert path.read_text() == "the quick brown fox\n" * 500


async def test_a_torn_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with FileStore.open(f"file:{path}") as store:
        await put(store)
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(StoreRefused, match=r"state\.db: it is not a SQLite database, or it is damaged"):
        async with FileStore.open(f"file:{path}") as store:
            await store.get([POOL("docs")])
            await put(store)


async def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with FileStore.open(f"file:{path}"):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("pragma user_version = 7")
    connection.close()
    with pytest.raises(SchemaTooNew, match="version 7"):
        async with FileStore.open(f"file:{path}"):
            raise AssertionError("it was opened")


async def test_a_new_file_takes_no_value_of_another_type(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with FileStore.open(f"file:{path}"):
        pass
    with closing(sqlite3.connect(path)) as connection:
        made = connection.execute("select sql from sqlite_master where type = 'table'").fetchall()
        assert made and all(text.endswith("strict") for (text,) in made)
        with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT value in INTEGER column"):
            connection.execute("insert into f_later values ('soon', x'00', '', 1)")


async def test_the_view_shows_a_task_in_each_place_of_its_life(
    tmp_path: Path, check_view: Callable[..., Awaitable[None]]
) -> None:
    async def rows() -> list[dict[str, Any]]:
        return of_view(tmp_path / "state.db")

    await check_view(f"file:{tmp_path / 'state.db'}", "converge", rows, text)


async def test_in_the_view_a_parked_task_waits_and_a_record_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    path, ids = tmp_path / "state.db", [bytes([number]) * 16 for number in range(3)]
    waits = b'{"state":"","attempts":0,"due":9,"rank":9,"wait":[["go"]]}'
    async with FileStore.open(f"file:{path}") as store:
        puts = [(TASK(ids[0]), b"{"), (TASK(ids[1]), b'{"pool":"p"}'), (STATE(ids[1]), waits), (LATER(9, ids[1]), b"")]
        await store.commit([Batch(puts=[*puts, (TASK(ids[2]), b'{"pool":"p","due":"x"}')])])
        rows = of_view(path)
    assert [(row["pool"], row["state"], row["due"]) for row in rows] == [
        (None, "PENDING", None),
        ("p", "WAITING", "1970-01-01 00:00:00.000"),
        ("p", "PENDING", None),
    ]


async def test_the_view_of_a_store_made_before_is_renewed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with FileStore.open(f"file:{path}"):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("drop view converge_tasks")
        connection.execute("create view converge_tasks as select id from f_task")
    assert pending(str(path)) == ["the view converge_tasks, with its present columns"]
    async with FileStore.open(f"file:{path}"):
        assert of_view(path) == []
    assert pending(str(path)) == []


def of_view(path: Path) -> list[dict[str, Any]]:
    """The rows of the view, by the names of its columns."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("select *, kept_until from converge_tasks order by id").fetchall()
        return [dict(row) for row in rows]


def text(moment: datetime | None) -> str | None:
    """A moment as the view has it."""
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}"


async def test_a_store_that_must_exist_is_not_made_and_the_nearest_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    with pytest.raises(StoreRefused, match=r'there is no store at .*stat\.db; did you mean "state\.db"\?'):
        async with FileStore.open(f"file:{tmp_path}/stat.db", FileOptions(must_exist=True)):
            pass
    assert os.listdir(tmp_path) == ["state.db"]
    with pytest.raises(
        StoreRefused, match=r"there is no store at .*state\.db; `converge run`"
    ):  # an empty file is not its own better name
        async with FileStore.open(f"file:{tmp_path}/state.db", FileOptions(must_exist=True)):
            pass


async def test_a_folder_in_which_no_lock_can_be_made_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", f"{tmp_path}/state.db.turn")

    monkeypatch.setattr("converge.builtin.file.turnstile.Turnstile.__init__", refused)
    with pytest.raises(
        StoreUnavailable, match=r"state\.db\.turn cannot be made or opened \(Permission denied\); look at its folder's"
    ):
        async with FileStore.open(f"file:{tmp_path}/state.db"):
            pass


def test_a_file_of_ours_that_grows_at_this_moment_is_not_taken_for_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    connection.execute("create table t (x)")
    connection.execute("insert into t values (zeroblob(100000))")
    connection.commit()
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    connection.close()
    os.truncate(path, 8_192)  # a checkpoint writes the first page, which says how many there are, before the last
    assert checked_path(f"file:{path}") == str(path)
