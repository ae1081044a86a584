"""The file store keeps every clause of the store contract."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from converge.builtin.file.plugin import FILE
from converge.testing import StoreContract, TaskContract

IS_FULL = os.environ.get("FULL_TESTS") == "1"

MEMORY = Path("/dev/shm")
"""Where nothing waits for a disk: the kit ends processes, not machines. A container may have little of it."""

ENOUGH_BYTES = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of the test's own, with FULL_TESTS=1 on a disk."""
    if IS_FULL or not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ENOUGH_BYTES:
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir=MEMORY, prefix="converge-") as made:
            yield Path(made)


class _OnFile(StoreContract):
    backend = FILE

    @pytest.fixture
    def url(self, folder: Path) -> str:
        """A file of the test's own."""
        return f"file:{folder / 'state.db'}"


class TestFileStore(_OnFile):
    """With its own turn, count and watch."""

    examples = 25 if IS_FULL else 10


class TestFileStoreInherited(_OnFile):
    """With those that every store inherits, which know nothing of event loops: on trio, too, with FULL_TESTS=1."""

    inherited_turn = True
    loops = ("asyncio", "trio") if IS_FULL else ("asyncio",)
    examples, rounds = (25, 20) if IS_FULL else (8, 6)


class TestFileTasks(TaskContract):
    """Tasks on it."""

    backend = FILE
    examples = 20 if IS_FULL else 8

    @pytest.fixture
    def url(self, folder: Path) -> str:
        """A file of the test's own."""
        return f"file:{folder / 'state.db'}"
