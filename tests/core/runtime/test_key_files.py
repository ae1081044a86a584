"""Key files are refused when anybody else on the machine can have a hand in them, and no two processes use one key."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import preloaded
import pytest

from converge.env import SYSTEM
from converge.errors import KeyFileRefused, KeyInUse
from converge.runtime.keys.folder import KeyFolder
from converge.runtime.keys.keyring import BLOCK, Keyring, new_key, read_key, rotate_key, show_keys

STRANGER = 12_345
NAME = "agent.Counter.0"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[KeyFolder]:
    one = KeyFolder.open(tmp_path / "keys")
    new_key(one, "Counter", SYSTEM)
    try:
        yield one
    finally:
        one.close()


def refused(folder: KeyFolder, reason: str) -> None:
    with pytest.raises(KeyFileRefused, match=reason) as raised:
        read_key(folder, NAME)
    assert raised.value.path == str(folder.path / f"{NAME}.key")
    assert raised.value.reason in str(raised.value) and raised.value.way_out in str(raised.value)


def test_the_folder_and_what_is_in_it_are_for_its_owner_alone(folder: KeyFolder) -> None:
    assert folder.path.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.path.iterdir()}
    assert modes == {f"{NAME}.key": 0o600, f"{NAME}.lock": 0o600}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o620, 0o602, 0o601, 0o610])
def test_a_key_that_others_can_use_is_refused(folder: KeyFolder, mode: int) -> None:
    (folder.path / f"{NAME}.key").chmod(mode)
    refused(folder, f"{mode:04o}")


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o701, 0o777])
def test_a_folder_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(KeyFileRefused, match=f"{mode:04o}.*chmod 0700"):
        KeyFolder.open(path)


def test_a_symlink_in_place_of_a_key_is_refused_though_what_it_leads_to_is_sound(folder: KeyFolder) -> None:
    key = folder.path / f"{NAME}.key"
    key.rename(folder.path / "moved")
    key.symlink_to(folder.path / "moved")
    refused(folder, "symlink")


def test_a_symlink_in_place_of_the_folder_is_refused(folder: KeyFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.path)
    with pytest.raises(KeyFileRefused, match="symlink"):
        KeyFolder.open(tmp_path / "link")


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_plain_file_is_refused_at_once(folder: KeyFolder, kind: str) -> None:
    key = folder.path / f"{NAME}.key"
    key.unlink()
    if kind == "fifo":
        os.mkfifo(key, 0o600)
    else:
        key.mkdir(0o700)
    refused(folder, "plain file")


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_in_one_that_every_user_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    above = tmp_path / "shared"
    above.mkdir()
    above.chmod(mode)
    with pytest.raises(KeyFileRefused, match="every user can write"):
        KeyFolder.open(above / "keys")


needs_root = pytest.mark.xfail(os.geteuid() != 0, reason="only root can give a file to somebody else", strict=True)


@needs_root
def test_a_key_of_another_user_is_refused(folder: KeyFolder) -> None:
    os.chown(folder.path / f"{NAME}.key", STRANGER, -1)
    refused(folder, f"belongs to user {STRANGER}")


@needs_root
def test_a_folder_of_another_user_is_refused_and_so_is_one_inside_it(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir(0o700)
    os.chown(path, STRANGER, -1)
    for one in (path, path / "keys"):
        with pytest.raises(KeyFileRefused, match=f"belongs to user {STRANGER}"):
            KeyFolder.open(one)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "nonsense",
        '{"v": 1, "type": "ed25519", "id": "cv1", "seed": "c2VjcmV0", "succession": []}',
        "[" * 5_000,
    ],
)
def test_a_file_that_holds_no_key_is_refused_and_not_quoted(folder: KeyFolder, text: str) -> None:
    (folder.path / f"{NAME}.key").write_text(text)
    refused(folder, "no key that this release can read")
    with pytest.raises(KeyFileRefused) as raised:
        read_key(folder, NAME)
    assert "c2VjcmV0" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_a_huge_file_is_refused(folder: KeyFolder) -> None:
    (folder.path / f"{NAME}.key").write_bytes(b" " * 70_000)
    refused(folder, "more than 65536 bytes")


def test_each_keyring_takes_the_keys_that_no_other_has_and_they_are_free_again_when_it_is_closed(
    tmp_path: Path,
) -> None:
    first, second = (Keyring.open(tmp_path / "keys", SYSTEM) for _ in range(2))
    a, b = first.acquire("Counter", 2)
    (c,) = second.acquire("Counter")
    first.close()
    third = Keyring.open(tmp_path / "keys", SYSTEM)
    again = third.acquire("Counter", 3)
    assert [one.id for one in again[:2]] == [a.id, b.id]
    assert again[2].id not in (a.id, b.id, c.id), "the third is still used by the second keyring"
    second.close()
    third.close()


def test_a_key_that_is_refused_leaves_the_others_free(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path / "keys", SYSTEM)
    first = [one.id for one in keyring.acquire("Counter", 30)]
    keyring.close()
    (tmp_path / "keys" / "agent.Counter.7.key").chmod(0o644)
    again, other = (Keyring.open(tmp_path / "keys", SYSTEM) for _ in range(2))
    with pytest.raises(KeyFileRefused, match=r"Counter\.7\.key"):
        again.acquire("Counter", 10)
    assert [one.id for one in other.acquire("Counter", 7)] == first[:7]
    (tmp_path / "keys" / "agent.Counter.7.key").chmod(0o600)
    assert [one.id for one in again.acquire("Counter", 3)] == first[7:10]
    again.close()
    other.close()


HOLDER = """
import sys
from converge.env import SYSTEM
from converge.runtime.keys.keyring import Keyring
keyring = Keyring.open(sys.argv[1], SYSTEM)
print(keyring.acquire("Counter")[0].id, keyring.acquire("node")[0].id, flush=True)
sys.stdin.read()
"""


def test_a_key_of_a_process_that_lives_is_taken_by_no_other_and_that_of_a_killed_one_is_free(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with preloaded.start(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        theirs = holder.stdout.readline().split()
        own = Keyring.open(path, SYSTEM)
        mine = [own.acquire("Counter")[0].id, own.acquire("node")[0].id]
        assert set(mine).isdisjoint(theirs) and len(theirs) == 2
        with pytest.raises(KeyInUse):
            rotate_key(KeyFolder.open(path), NAME, SYSTEM)
        holder.kill()
    own.close()
    after = Keyring.open(path, SYSTEM)
    assert [after.acquire("Counter")[0].id, after.acquire("node")[0].id] == theirs
    after.close()


async def numbers(path: Path, count: int, now: int = 0) -> list[int]:
    keyring = Keyring.open(path, SYSTEM)
    (one,) = keyring.acquire("Counter")
    found = [number for _ in range(count) for number in await keyring.sequences([one.id], now)]
    keyring.close()  # as a process that dies here: nothing is written at the end
    return found


async def test_no_sequence_number_is_used_twice_however_often_its_process_dies(tmp_path: Path) -> None:
    lives = [await numbers(tmp_path / "keys", count) for count in (1, 1, 3, BLOCK + 5, 1)]
    flat = [number for life in lives for number in life]
    assert flat == sorted(set(flat))
    assert lives[1][0] == BLOCK + 1, "the block that was reserved is given up whole"


async def test_the_number_is_reserved_before_it_is_used(tmp_path: Path) -> None:
    (number,) = await numbers(tmp_path / "keys", 1)
    assert int((tmp_path / "keys" / "sequence").read_text()) == number + BLOCK - 1


async def test_the_keys_of_a_process_share_a_block_and_those_of_another_process_have_another(tmp_path: Path) -> None:
    first, second = (Keyring.open(tmp_path / "keys", SYSTEM) for _ in range(2))
    a, b = (one.id for one in first.acquire("Counter", 2))
    (c,) = (one.id for one in second.acquire("Counter"))
    assert await first.sequences([a, b, a], 0) == [1, 1, 2]
    assert await second.sequences([c], 0) == [BLOCK + 1]
    more = await first.sequences([a] * BLOCK, 0)
    assert more == sorted(set(more)) and more[-1] == 2 * BLOCK + 2, "the block between is the other process's"
    first.close()
    again = Keyring.open(tmp_path / "keys", SYSTEM)
    assert [one.id for one in again.acquire("Counter", 2)] == [a, b]
    assert min(await again.sequences([a, b], 0)) > 2 * BLOCK
    again.close()
    second.close()


async def test_what_a_process_left_half_written_when_it_died_is_no_trouble(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    (before,) = await numbers(keys, 1)
    for name in ("sequence.new", f"{NAME}.key.new", "agent.Counter.1.key.new"):
        (keys / name).write_text("half")
    keyring = Keyring.open(keys, SYSTEM)
    first, second = keyring.acquire("Counter", 2)
    assert min(await keyring.sequences([first.id, second.id], 0)) > before
    keyring.close()


async def test_a_folder_that_was_restored_from_a_backup_does_not_repeat_numbers_while_store_time_goes_on(
    tmp_path: Path,
) -> None:
    (before,) = await numbers(tmp_path / "keys", 1, now=1_000_000)
    (tmp_path / "keys" / "sequence").write_text("0")
    (after,) = await numbers(tmp_path / "keys", 1, now=2_000_000)
    assert after > before


async def test_a_store_whose_time_is_absurd_does_not_use_up_the_numbers(tmp_path: Path) -> None:
    assert await numbers(tmp_path / "keys", 1, now=2**62) == [1]


async def test_a_number_that_cannot_be_reserved_is_not_used(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path / "keys", SYSTEM)
    (one,) = keyring.acquire("Counter")
    (tmp_path / "keys" / "sequence.new").mkdir()  # what it is written to first cannot be a folder
    with pytest.raises(KeyFileRefused):
        await keyring.sequences([one.id], 0)
    keyring.close()


async def test_the_numbers_of_a_fresh_key_rise_even_while_store_time_stands(tmp_path: Path) -> None:
    keyring = Keyring(SYSTEM)
    (one,) = keyring.acquire("Counter")
    assert [number for _ in range(3) for number in await keyring.sequences([one.id], 7)] == [7, 8, 9]


def test_a_rotated_key_tells_whom_it_succeeds_and_the_old_one_is_gone(folder: KeyFolder) -> None:
    old = read_key(folder, NAME)
    shown = rotate_key(folder, NAME, SYSTEM)
    new = read_key(folder, NAME)
    assert old is not None and new is not None
    assert (shown.id, shown.rotations, len(new.succession)) == (new.id, 1, 1)
    assert new.id != old.id and new.succession[0].startswith(old.public_key.hex())
    assert [one.id for one in show_keys(folder)] == [new.id]


def test_what_is_shown_of_a_key_has_neither_the_key_nor_its_seed(folder: KeyFolder) -> None:
    seed = (folder.path / f"{NAME}.key").read_text().split('"seed":"')[1].split('"')[0]
    (shown,) = show_keys(folder)
    assert seed not in repr(shown) and seed not in repr(read_key(folder, NAME))
    assert shown.id in (folder.path / f"{NAME}.key").read_text()


@pytest.mark.parametrize("kind", ["Zähler", "a b", "x" * 300])
def test_a_class_of_any_name_has_a_key(tmp_path: Path, kind: str) -> None:
    keyring = Keyring.open(tmp_path / "keys", SYSTEM)
    (one,) = keyring.acquire(kind)
    keyring.close()
    again = Keyring.open(tmp_path / "keys", SYSTEM)
    assert [found.id for found in again.acquire(kind)] == [one.id]
    again.close()
