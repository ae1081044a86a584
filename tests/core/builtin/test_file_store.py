"""The file store keeps every clause of the store contract."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converge.builtin.file.plugin import FILE
from converge.testing import StoreContract, TaskContract

IS_FULL = os.environ.get("FULL_TESTS") == "1"


class _OnFile(StoreContract):
    backend = FILE

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """A file of the test's own."""
        return f"file:{tmp_path / 'state.db'}"


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
    def url(self, tmp_path: Path) -> str:
        """A file of the test's own."""
        return f"file:{tmp_path / 'state.db'}"
