"""A wake is a hint: whatever the system refuses while one is told, what was committed stands, as its caller learns."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from converge import open_store
from converge.contracts.store import ABSENT, Batch, Committed
from converge.errors import StoreUnavailable
from converge.model.keys import ACTOR


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
async def test_a_commit_stands_though_nobody_can_be_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(path: str) -> NoReturn:
        raise OSError(code, os.strerror(code), path)

    async with open_store(f"file:{tmp_path / 'state.db'}") as store:
        key = ACTOR("p", "k")
        with monkeypatch.context() as patch:
            patch.setattr("converge.builtin.file.wake.os.listdir", refuse)
            (outcome,) = await store.commit([Batch([(key, ABSENT)], [(key, b"1")])], wake=["lane.x"])
        assert isinstance(outcome, Committed)
        assert [entry and entry.value for entry in await store.get([key])] == [b"1"]


def opened_under(folder: Path) -> list[str]:
    """What this process has open under the folder."""
    found: list[str] = []
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the descriptor that lists them
            found.append(os.readlink(f"/dev/fd/{name}"))
    return [one for one in found if one.startswith(str(folder))]


async def test_an_opening_for_which_descriptors_run_out_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr("converge.builtin.file.wake._socket", refuse)
        async with open_store(f"file:{tmp_path / 'state.db'}"):
            raise AssertionError("it cannot be woken")
    assert not any(one.endswith(".wake") for one in opened_under(tmp_path))
